"""The balance of a user: what it holds, what is added, how it came about."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, Document, answer
from api.callers import USER, operator
from api.clock import Time, rfc3339
from api.operations import Body, Request, Routes
from api.pages import Listed, Number, Page, page_of
from api.problems import Refused
from engine import accounts, balances
from engine.balances import AMOUNT_MAX, Charge
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
    """How much to add."""

    amount: Amount


class NewChargeByOperator(Body, frozen=True):
    """How much to add to somebody's balance, and why."""

    amount: Amount
    reason: Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=200)]


class Charged(Document, frozen=True):
    """Money that was added."""

    charge_id: str
    amount: int
    balance_after: int
    currency: str
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
    {201: Charged},
    caller=USER,
    keyed=True,
    refusals=(IdempotencyKeyReused, LimitReached),
)
async def charge(request: Request, body: NewCharge) -> Answer:
    """Add money to my balance."""
    return await _charge(request, request.caller_id, body.amount)


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
