"""The balance of a user: what it holds, what is added, how it came about."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, Document, answer
from api.bodies import whole
from api.callers import USER, operator
from api.clock import Time, rfc3339
from api.operations import Body, Request, Routes
from api.pages import Listed, Number, Page, page_of
from api.payment_methods import ASK_AGAIN_S, CARD_DEADLINE_S, Action, Card, ReturnUrl
from api.problems import Refused, invalid
from engine import accounts, balances, charges
from engine.balances import AMOUNT_MAX, Charge
from engine.charges import CardCharge
from engine.payments import CardDeclined
from engine.refusals import IdempotencyKeyReused, LimitReached, NotFound

routes = Routes("People and money")

Amount = Annotated[int, Meta(ge=1, le=AMOUNT_MAX, description="In the smallest unit of the currency.")]


class BalanceNow(Document, frozen=True):
    """What I have; `set_aside` belongs to payments that are not finished."""

    amount: int
    set_aside: int
    available: int
    currency: str
    version: int


class NewCharge(Body, frozen=True):
    """How much to add, and by which card: only where the gateway is a simulated one money may come from nowhere."""

    amount: Amount
    card: Card | UnsetType = UNSET
    return_url: ReturnUrl | UnsetType = UNSET


class NewChargeByOperator(Body, frozen=True):
    """How much to add to somebody's balance, and why."""

    amount: Amount
    reason: Annotated[str, Meta(pattern=whole(r"[^\x00-\x1f\x7f]+"), max_length=200)]


class Charged(Document, frozen=True, kw_only=True):
    """Money that was added, or that a card is still to pay: `balance_after` is there once it is taken."""

    charge_id: str
    status: Annotated[str, Meta(extra_json_schema={"enum": ["PENDING", "SUCCESS", "FAILED"]})]
    amount: int
    balance_after: int | UnsetType = UNSET
    currency: str
    decline_code: str | UnsetType = UNSET
    action: Action | UnsetType = UNSET
    at: Time


class HistoryItem(Document, frozen=True, kw_only=True):
    """One change of the balance."""

    type: Literal["CHARGE", "USE", "REFUND"]
    amount: int
    balance_after: int
    reason: str | None
    payment_id: str | UnsetType = UNSET
    at: Time


@routes.add("GET", "/v1/balance", {200: BalanceNow}, caller=USER)
async def find(request: Request) -> Answer:
    """What I have."""
    balance = await balances.find(request.house.postgres, request.caller_id)
    if balance is None:
        raise Refused(NotFound())
    document = BalanceNow(
        amount=balance.amount,
        set_aside=balance.set_aside,
        available=balance.amount - balance.set_aside,
        currency=request.house.currency,
        version=balance.version,
    )
    return answer(document, version=balance.version)


@routes.add(
    "POST",
    "/v1/balance/charges",
    {201: Charged, 202: Charged},
    caller=USER,
    keyed=True,
    refusals=(IdempotencyKeyReused, LimitReached, CardDeclined),
    sends=("Location", "Retry-After"),
    deadline_s=CARD_DEADLINE_S,
)
async def charge(request: Request, body: NewCharge) -> Answer:
    """Add money to my balance, by card: 201 once it is taken, 202 with its address until then."""
    house = request.house
    if body.card is UNSET:
        if house.settings.has_real_gateway:
            raise invalid("card", "Expected it: the balance is charged by card")
        return await _charge(request, request.caller_id, body.amount)
    if house.gateway is None:
        raise invalid("card", "Expected nothing: this installation has no card gateway")
    begun = await charges.begin(
        house.postgres,
        house.gateway,
        charge_id=request.new_id(),
        user_id=request.caller_id,
        amount=body.amount,
        currency=house.currency,
        payment_method_id=body.card.payment_method_id,
        return_url=body.return_url or None,
    )
    if begun is None:
        raise Refused(NotFound())
    if not isinstance(begun, tuple):
        raise Refused(begun)
    charged, repeated = begun
    if charged.status == "FAILED":
        raise Refused(CardDeclined(payment_id=charged.charge_id, decline_code=charged.decline_code or ""))
    document = _card_charge(charged, house.currency)
    if not charged.is_open:
        return answer(document, 201, repeated=repeated)
    location = f"/v1/balance/charges/{charged.charge_id}"
    return answer(document, 202, location=location, retry_after_s=ASK_AGAIN_S, repeated=repeated)


@routes.add("GET", "/v1/balance/charges/{charge_id}", {200: Charged}, caller=USER)
async def find_charge(request: Request, charge_id: str) -> Answer:
    """One of my charges by card."""
    house = request.house
    charged = await charges.find(house.postgres, charge_id)
    if charged is None or charged.user_id != request.caller_id:
        raise Refused(NotFound())
    if charged.is_open and house.gateway is not None:
        charged = await charges.advance(house.postgres, house.gateway, charged, currency=house.currency)
    return answer(_card_charge(charged, house.currency))


def _card_charge(charged: CardCharge, currency: str) -> Charged:
    return Charged(
        charge_id=charged.charge_id,
        status=charged.public_status,
        amount=charged.amount,
        currency=currency,
        decline_code=charged.decline_code or UNSET,
        balance_after=charged.balance_after if charged.balance_after is not None else UNSET,
        action=Action("REDIRECT", charged.action_url) if charged.action_url else UNSET,
        at=rfc3339(charged.done_at or charged.created_at),
    )


@routes.add(
    "POST",
    "/v1/admin/users/{user_id}/balance/charges",
    {201: Charged},
    caller=operator(accounts.BALANCES),
    keyed=True,
    refusals=(IdempotencyKeyReused, LimitReached),
)
async def charge_user(request: Request, user_id: str, body: NewChargeByOperator) -> Answer:
    """Add money to somebody's balance."""
    return await _charge(request, user_id, body.amount, body.reason)


async def _charge(request: Request, user_id: str, amount: int, reason: str | None = None) -> Answer:
    charged = await balances.charge(
        request.house.postgres, charge_id=request.new_id(), user_id=user_id, amount=amount, reason=reason
    )
    if charged is None:
        raise Refused(NotFound())
    if not isinstance(charged, Charge):
        raise Refused(charged)
    document = Charged(
        charge_id=charged.charge_id,
        status="SUCCESS",
        amount=charged.amount,
        balance_after=charged.balance_after,
        currency=request.house.currency,
        at=rfc3339(charged.charged_at),
    )
    return answer(document, 201, repeated=charged.repeated)


@routes.add("GET", "/v1/balance/history", {200: Listed[HistoryItem]}, caller=USER)
async def history(request: Request, query: Page) -> Answer:
    """How my balance came about, newest first."""
    below_version = query.after(Number)
    changes = await balances.history(
        request.house.postgres, request.caller_id, below_version=below_version, most=query.limit + 1
    )
    items = [
        HistoryItem(
            type=change.type,
            amount=change.amount,
            balance_after=change.balance_after,
            reason=change.reason,
            payment_id=change.payment_id or UNSET,
            at=rfc3339(change.created_at),
        )
        for change in changes
    ]
    return answer(page_of(items, [change.version for change in changes], query))
