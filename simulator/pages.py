"""The page that a buyer is sent to, in the place of their bank's."""

from html import escape
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from simulator.gateway import Intent

HEADERS = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Confirm your payment</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 26rem; margin: 4rem auto; padding: 0 1rem; }}
button {{ font: inherit; padding: .6rem 1.2rem; margin: .5rem .5rem .5rem 0; }}
</style>
<h1>Confirm your payment</h1>
<p>A simulated bank asks: may the shop take <strong>{amount} {currency}</strong> from your card?
No money moves here.</p>
{forms}
<p><a href="{leave}">Back to the shop</a> without an answer.</p>
</html>
"""

FORMS = """<form method="post"><input type="hidden" name="outcome" value="approve"><button>Approve</button></form>
<form method="post"><input type="hidden" name="outcome" value="fail"><button>Refuse</button></form>"""


def page(intent: Intent) -> bytes:
    """Ask the buyer, or tell that there is nothing to ask any more."""
    asks = intent.status == "requires_action"
    return PAGE.format(
        amount=intent.amount,
        currency=escape(intent.currency.upper()),
        forms=FORMS if asks else f"<p>This payment is settled: {escape(intent.status)}.</p>",
        leave=escape(intent.return_url or "#"),
    ).encode()


def way_back(intent: Intent) -> str:
    """Where the buyer goes from here: the return address, with what became of the payment."""
    parts = urlsplit(intent.return_url or "about:blank")
    outcome = {"requires_capture": "succeeded", "succeeded": "succeeded", "requires_action": "pending"}
    said = {"payment_intent": intent.id, "redirect_status": outcome.get(intent.status, "failed")}
    return urlunsplit(parts._replace(query=urlencode([*parse_qsl(parts.query), *said.items()])))
