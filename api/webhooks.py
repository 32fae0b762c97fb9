"""What a card gateway tells us of its own accord: signed, each event once."""

from api.answers import Answer, Document, answer
from api.operations import WEBHOOK_MAX, Header, Raw, Request, Routes
from api.problems import BUSY, Refused, invalid
from engine import cards, charges
from engine.gateway import GatewayUnavailable, GatewayUnknown

routes = Routes("Payments")


class Received(Document, frozen=True):
    """The event was taken in, now or before; or it was about nothing of ours."""

    received: bool = True


@routes.add(
    "POST",
    "/v1/webhooks/stripe",
    {200: Received},
    reads=(Header("Stripe-Signature", "What the gateway signed the body with.", required=True),),
    body_max=WEBHOOK_MAX,
    deadline_s=30.0,
)
async def receive(request: Request, body: Raw) -> Answer:
    """Take in an event of the card gateway; what it says of a payment is read from the gateway itself."""
    house = request.house
    if house.gateway is None:
        raise invalid("", "This installation has no card gateway")
    event = house.gateway.verify(bytes(body), request.headers.get(b"stripe-signature", b"").decode("latin-1"))
    if event is None:
        raise invalid("Stripe-Signature", "Expected the signature of this body by our gateway, made lately")
    try:
        payment = await cards.take_in(house.postgres, house.gateway, event)
    except (GatewayUnknown, GatewayUnavailable) as fault:
        raise Refused(BUSY) from fault  # it is sent again
    if payment is None and event.ref is not None:
        charge = await charges.find_told(house.postgres, event.ref)
        if charge is not None and charge.is_open:
            await charges.advance(house.postgres, house.gateway, charge, currency=house.currency)
    sale = await house.book.find(payment.sale_id) if payment is not None else None
    if payment is not None and sale is not None:
        if payment.public_status == "FAILED" and house.cards is not None:
            payment = await house.cards.climb(sale, payment)
        await house.till.go_on(sale, payment)
    return answer(Received())
