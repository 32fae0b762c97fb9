"""The card gateway Stripe, by its official package: PaymentIntents with manual capture.

What each answer means is from docs.stripe.com: api/payment_intents, api/refunds, api/errors, api/idempotent_requests,
webhooks/signatures. The package sends through aiohttp, which costs a sixth of what httpx does. Its retries are off:
only the caller knows what may be repeated.

The key is inside the package's client, the webhook secret in one name closed over: no message, log line or repr of ours
has them.
"""

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import msgspec
import stripe

from engine.gateway import (
    AlreadyCaptured,
    Authorised,
    Cancelled,
    Captured,
    CaptureRefused,
    Declined,
    Event,
    GatewayUnavailable,
    GatewayUnknown,
    Intent,
    IntentStatus,
    NeedsAction,
    RefundedBy,
    RefundRefused,
    Voided,
)
from engine.settings import Settings

logger = logging.getLogger(__name__)

ANSWER_WITHIN_S = 8.0
CONNECT_WITHIN_S = 2.0
"""Waiting for a free connection and opening one; past it nothing was sent."""
CONNECTIONS_MAX = 64
SIGNATURE_VALID_S = 300
"""What Stripe recommends: an older signature may be a recorded one."""

STATUSES: Mapping[str, IntentStatus] = {
    "requires_payment_method": "DECLINED",
    "requires_confirmation": "PROCESSING",
    "requires_action": "ACTION_REQUIRED",
    "processing": "PROCESSING",
    "requires_capture": "AUTHORISED",
    "succeeded": "CAPTURED",
    "canceled": "CANCELLED",
}

_ID = re.compile("[0-9a-f]{32}")

MISSING = "resource_missing"
UNEXPECTED_STATE = "payment_intent_unexpected_state"

# Errors of the connection that come before the first byte of a request is sent.
NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)


class _Redirect(msgspec.Struct, frozen=True):
    url: str | None = None


class _NextAction(msgspec.Struct, frozen=True):
    redirect_to_url: _Redirect | None = None


class _Charge(msgspec.Struct, frozen=True):
    amount_refunded: int = 0


class _Error(msgspec.Struct, frozen=True):
    code: str | None = None
    decline_code: str | None = None
    param: str | None = None
    payment_intent: "_PaymentIntent | None" = None

    @property
    def reason(self) -> str:
        """The most that the gateway says in one word."""
        return self.decline_code or self.code or (f"{self.param}_invalid" if self.param else "invalid_request")


class _PaymentIntent(msgspec.Struct, frozen=True):
    id: str
    status: str
    amount: int = 0
    amount_received: int = 0
    metadata: dict[str, str] = {}
    next_action: _NextAction | None = None
    last_payment_error: _Error | None = None
    latest_charge: _Charge | str | None = None

    @property
    def action_url(self) -> str | None:
        """Where the buyer must go, if anywhere."""
        redirect = self.next_action.redirect_to_url if self.next_action else None
        return redirect.url if redirect else None

    @property
    def declined_for(self) -> str:
        """Why the last attempt was refused."""
        return self.last_payment_error.reason if self.last_payment_error else "card_declined"


class _Refund(msgspec.Struct, frozen=True):
    id: str
    status: str | None = None
    failure_reason: str | None = None


class _Found(msgspec.Struct, frozen=True):
    data: list[_PaymentIntent]


class _Failure(msgspec.Struct, frozen=True):
    error: _Error


class _Subject(msgspec.Struct, frozen=True):
    object: str = ""
    id: str | None = None
    payment_intent: str | None = None


class _Told(msgspec.Struct, frozen=True):
    object: _Subject


class _Webhook(msgspec.Struct, frozen=True):
    id: str
    type: str
    data: _Told


Answer = TypeVar("Answer", bound=msgspec.Struct)


@asynccontextmanager
async def open_gateway(
    settings: Settings, *, connections_max: int = CONNECTIONS_MAX, answer_within_s: float = ANSWER_WITHIN_S
) -> AsyncIterator["StripeGateway | None"]:
    """Open the gateway that the settings name, None where they name no key: there are no card payments then."""
    if settings.stripe_api_key is None:
        yield None
        return
    # It would write a file beside the home directory and read the platform in the middle of a call.
    stripe.enable_telemetry = False
    # It tells every request, and at its finest whole bodies.
    logging.getLogger("stripe").setLevel(logging.WARNING)
    trusted = await asyncio.to_thread(_prepare)
    connector = aiohttp.TCPConnector(limit=connections_max, ssl=trusted)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        client = stripe.StripeClient(
            settings.stripe_api_key,
            base_addresses={"api": settings.stripe_api_base.rstrip("/")} if settings.stripe_api_base else {},
            max_network_retries=0,
            http_client=stripe.AIOHTTPClient(
                session=session,
                timeout=aiohttp.ClientTimeout(
                    total=answer_within_s, connect=min(CONNECT_WITHIN_S, answer_within_s / 2)
                ),
            ),
        )
        yield StripeGateway(client, settings.stripe_webhook_secret)


class StripeGateway:
    """A `Gateway`; a reference is the id of a PaymentIntent."""

    def __init__(self, client: stripe.StripeClient, webhook_secret: str | None) -> None:
        self._client = client

        def check(body: bytes, signature: str) -> None:
            stripe.WebhookSignature.verify_header(body, signature, webhook_secret, SIGNATURE_VALID_S)

        # Closed over, so that no repr or dump of this object's fields shows the secret.
        self._check = check

    async def authorise(
        self,
        *,
        payment_id: str,
        amount: int,
        currency: str,
        payment_method_id: str,
        return_url: str | None,
        metadata: Mapping[str, str],
    ) -> Authorised | NeedsAction | Declined:
        """Make a PaymentIntent and confirm it in one call."""
        # Without an address to come back to there is no redirect, so that what needs one is declined.
        way = {"return_url": return_url} if return_url else {"error_on_requires_action": True}
        answer = await self._send(
            "post",
            "/v1/payment_intents",
            _PaymentIntent,
            key=payment_id,
            amount=amount,
            currency=currency.lower(),
            capture_method="manual",
            confirm=True,
            payment_method=payment_method_id,
            payment_method_types=["card"],
            metadata={"payment_id": payment_id, **metadata},
            **way,
        )
        if isinstance(answer, _Error):
            return Declined(answer.payment_intent.id if answer.payment_intent else None, answer.reason)
        match STATUSES.get(answer.status):
            case "AUTHORISED" | "CAPTURED":
                return Authorised(answer.id)
            case "ACTION_REQUIRED" if answer.action_url:
                return NeedsAction(answer.id, answer.action_url)
            case "DECLINED" | "CANCELLED":
                return Declined(answer.id, answer.declined_for)
            case _:
                raise GatewayUnknown(f"The authorisation is {answer.status}.")

    async def capture(self, ref: str, *, amount: int, key: str) -> Captured | CaptureRefused:
        """Take the amount; an authorisation lapses after about seven days."""
        path = f"/v1/payment_intents/{ref}/capture"
        answer = await self._send("post", path, _PaymentIntent, key=key, amount_to_capture=amount)
        if isinstance(answer, _PaymentIntent):
            if answer.status != "succeeded":
                raise GatewayUnknown(f"The capture is {answer.status}.")
            return Captured()
        standing = answer.payment_intent
        # A key is remembered for a day: after it a repeat finds what the first one did.
        if standing and standing.status == "succeeded" and standing.amount_received == amount:
            return Captured()
        if standing and standing.status == "processing":
            raise GatewayUnknown("The capture is processing.")
        return CaptureRefused(answer.reason)

    async def void(self, ref: str, *, key: str) -> Voided | AlreadyCaptured:
        """Let go what is set aside."""
        match await self._cancel(ref, key):
            case "CANCELLED":
                return Voided()
            case "CAPTURED":
                return AlreadyCaptured()
            case status:
                raise GatewayUnknown(f"The authorisation could not be let go: it is {status}.")

    async def cancel(self, ref: str, *, key: str) -> Cancelled | Authorised | AlreadyCaptured:
        """End what the buyer has not finished; Stripe also cancels what was authorised meanwhile."""
        match await self._cancel(ref, key):
            case "CANCELLED":
                return Cancelled()
            case "CAPTURED":
                return AlreadyCaptured()
            case "AUTHORISED":
                return Authorised(ref)
            case status:
                raise GatewayUnknown(f"The authorisation could not be cancelled: it is {status}.")

    async def refund(self, ref: str, *, amount: int, key: str) -> RefundedBy | RefundRefused:
        """Give back part or all of what was taken."""
        return _refunded(await self._send("post", "/v1/refunds", _Refund, key=key, payment_intent=ref, amount=amount))

    async def query_refund(self, refund_ref: str) -> RefundedBy | RefundRefused:
        """What became of a refund."""
        return _refunded(await self._send("get", f"/v1/refunds/{refund_ref}", _Refund))

    async def query(self, ref: str) -> Intent | None:
        """What stands at the gateway now."""
        answer = await self._send("get", f"/v1/payment_intents/{ref}", _PaymentIntent, expand=["latest_charge"])
        if isinstance(answer, _Error):
            if answer.code == MISSING:
                return None
            raise GatewayUnknown(f"The gateway refused to tell: {answer.reason}.")
        if answer.status not in STATUSES:
            raise GatewayUnknown(f"The payment intent is {answer.status}.")
        status = STATUSES[answer.status]
        return Intent(
            ref=answer.id,
            status=status,
            amount=answer.amount,
            captured=answer.amount_received,
            refunded=answer.latest_charge.amount_refunded if isinstance(answer.latest_charge, _Charge) else 0,
            payment_id=_ours(answer.metadata.get("payment_id", "")),
            action_url=answer.action_url if status == "ACTION_REQUIRED" else None,
            decline_code=answer.declined_for if status == "DECLINED" else None,
        )

    async def find(self, payment_id: str) -> Intent | None:
        """Search by metadata: found within a minute, in outages within an hour (api/payment_intents/search)."""
        query = f"metadata['payment_id']:'{payment_id}'"
        answer = await self._send("get", "/v1/payment_intents/search", _Found, query=query, limit=1)
        if isinstance(answer, _Error):
            raise GatewayUnknown(f"The gateway refused to search: {answer.reason}.")
        # What was found may be as old as the search's copy of it.
        return await self.query(answer.data[0].id) if answer.data else None

    def verify(self, body: bytes, signature: str) -> Event | None:
        """Read a webhook; what is not signed as it should be is none."""
        try:
            # The package compares as text, which fails on anything but ASCII.
            signature.encode("ascii")
            self._check(body, signature)
            told = msgspec.json.decode(body, type=_Webhook)
        except (stripe.SignatureVerificationError, msgspec.DecodeError, UnicodeError):
            return None
        subject = told.data.object
        is_refund = subject.object == "refund"
        return Event(
            event_id=told.id,
            type=told.type,
            ref=subject.id if subject.object == "payment_intent" else subject.payment_intent,
            refund_ref=subject.id if is_refund else None,
        )

    async def _cancel(self, ref: str, key: str) -> str:
        """Cancel, and answer how it stands then; what was never there is cancelled, too."""
        answer = await self._send("post", f"/v1/payment_intents/{ref}/cancel", _PaymentIntent, key=key)
        if isinstance(answer, _PaymentIntent):
            return STATUSES.get(answer.status, answer.status)
        if answer.code == MISSING:
            logger.error("The gateway does not know %s, which it made; nothing can be set aside by it.", ref)
            return "CANCELLED"
        if answer.code == UNEXPECTED_STATE and answer.payment_intent:
            return STATUSES.get(answer.payment_intent.status, answer.payment_intent.status)
        return answer.reason

    async def _send(
        self, verb: str, path: str, kind: type[Answer], *, key: str | None = None, **asked: Any
    ) -> Answer | _Error:
        """Send one request once, and answer what it answers or why it was refused for certain."""
        # The package's services would build an object for every field: a third more time for what is not read.
        keyed = {"idempotency_key": key} if key else {}
        try:
            told = await self._client.raw_request_async(verb, path, **asked, **keyed)
        except stripe.APIConnectionError as fault:
            if isinstance(fault.__cause__, NOT_SENT):
                raise GatewayUnavailable(f"The gateway cannot be reached: {type(fault.__cause__).__name__}.") from fault
            raise GatewayUnknown(f"The gateway did not answer: {type(fault.__cause__).__name__}.") from fault
        except (aiohttp.ClientError, TimeoutError, UnicodeError, AttributeError, TypeError) as fault:
            # The package reads the body outside of its own try, and trips over what is no error of Stripe's shape.
            raise GatewayUnknown(f"The gateway's answer broke off: {type(fault).__name__}.") from fault
        except (stripe.RateLimitError, stripe.AuthenticationError, stripe.PermissionError) as fault:
            logger.warning("The gateway turned us away with %s.", _described(fault, verb, path))
            raise GatewayUnavailable(f"The gateway turned us away: {fault.http_status}.") from fault
        except (stripe.CardError, stripe.InvalidRequestError) as fault:
            refused = _decode(fault.http_body or "", _Failure).error
            if not isinstance(fault, stripe.CardError):
                logger.warning("The gateway refused %s: %s.", _described(fault, verb, path), refused.reason)
            return refused
        except stripe.StripeError as fault:
            # 409: the first request with this key still runs. 5xx: it may have been done. A key that was used for other
            # arguments is a fault of ours, and what was done under it must be looked up.
            logger.warning("The gateway failed with %s.", _described(fault, verb, path))
            raise GatewayUnknown(f"The gateway failed: {fault.http_status} {type(fault).__name__}.") from fault
        return _decode(told.body, kind)


def _prepare() -> ssl.SSLContext:
    """Do at the start what takes tens of milliseconds, which no loop should stand still for: read the certificates."""
    # With its first error the package imports what an error may hold.
    stripe.StripeError(json_body={"error": {"payment_intent": {"object": "payment_intent"}}})
    return ssl.create_default_context(cafile=stripe.ca_bundle_path)


def _ours(payment_id: str) -> str | None:
    """What may be an id of ours: others may use the same account, and call their payments as they like."""
    return payment_id if _ID.fullmatch(payment_id) else None


def _refunded(answer: _Refund | _Error) -> RefundedBy | RefundRefused:
    if isinstance(answer, _Error):
        return RefundRefused(answer.reason)
    if answer.status in {"failed", "canceled"}:
        return RefundRefused(answer.failure_reason or answer.status)
    return RefundedBy(answer.id, pending=answer.status != "succeeded")


def _decode(body: str, kind: type[Answer]) -> Answer:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as fault:
        raise GatewayUnknown("The gateway's answer is none that can be read.") from fault


def _described(fault: stripe.StripeError, verb: str, path: str) -> str:
    return f"{fault.http_status} for {verb.upper()} {path} ({fault.request_id})"
