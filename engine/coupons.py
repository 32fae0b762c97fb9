"""Coupons: a source hands out so many, one a user, first come first served; what a user owns keeps its terms.

A source is a shard like a sale, and has its row there, of the kind `coupon`: what is said of a sale's epoch, streams,
watermarks and owner holds for it. Redis decides who gets one; a coupon is issued once Postgres has its row.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal

import asyncpg
import msgspec
from redis.exceptions import RedisError

from engine import ids, sales
from engine.refusals import Busy, IdempotencyKeyReused, NotFound
from engine.sales import Configured, Sale, SaleBook, StaleVersion
from engine.stores import outbox, queries
from engine.stores.connections import Stores, StoreUnavailable
from engine.stores.keys import CouponKeys
from engine.stores.outbox import BadEntry, Entry, Handler
from engine.stores.queries import Connection
from engine.stores.replies import Refusal, Reply, SaleUnknown, StaleEpoch, Unavailable
from engine.stores.scripts import Argument, Gate, Script

AMOUNT_MAX: Final = 10**12
QUANTITY_MAX: Final = 10**7

Type = Literal["FIXED", "RATE"]
Status = Literal["DRAFT", "ISSUING", "PAUSED", "SOLD_OUT", "CLOSED"]
STATUSES: Final[tuple[Status, ...]] = ("DRAFT", "ISSUING", "PAUSED", "SOLD_OUT", "CLOSED")
# What the public sees; of these only what is ISSUING is issued.
SHOWN: Final[tuple[Status, ...]] = ("ISSUING", "PAUSED", "SOLD_OUT", "CLOSED")

SQL = queries.load("coupons")


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a coupon is worth, and when: FIXED takes off an amount, RATE whole percent, to a maximum if there is one."""

    name: str
    type: Type
    discount_amount: int | None = None
    discount_rate: int | None = None
    max_discount_amount: int | None = None
    minimum_spend: int | None = None
    usable_from: datetime
    usable_to: datetime


class Plan(Terms, frozen=True, kw_only=True):
    """What an operator says of a source."""

    initial_quantity: int
    status: Status = "ISSUING"
    issue_from: datetime | None = None
    issue_to: datetime | None = None


class Coupon(Plan, frozen=True, kw_only=True):
    """A source as it stands: `quantity` is what is left, `initial_quantity` all that there ever were."""

    coupon_id: str
    quantity: int
    fingerprint: str
    version: int
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None

    @property
    def issued(self) -> int:
        """How many of it users have."""
        return self.initial_quantity - self.quantity


class UserCoupon(Terms, frozen=True, kw_only=True):
    """What a user owns; its terms are those of the moment it was issued at."""

    user_coupon_id: str
    coupon_id: str
    user_id: str
    status: Literal["AVAILABLE", "RESERVED", "USED"]
    payment_id: str | None
    order_id: str | None
    reservation_id: str | None
    created_at: datetime
    updated_at: datetime
    used_at: datetime | None


# --- what a coupon takes off ------------------------------------------------------------------------------------------


def discount_of(terms: Terms, base: int) -> int:
    """What a coupon takes off an amount: never more than the amount."""
    if terms.type == "FIXED":
        return min(terms.discount_amount or 0, base)
    part = base * (terms.discount_rate or 0) // 100
    return min(part, base if terms.max_discount_amount is None else terms.max_discount_amount, base)


def spread(discount: int, prices: Sequence[int]) -> list[int]:
    """Share a discount out among lines of these prices, in proportion; it adds up, and no line costs less than nothing.

    What rounding down leaves goes one by one to the lines that lost most by it, the first first. Raises ValueError for
    more than all of them cost.
    """
    total = sum(prices)
    if not 0 <= discount <= total:
        raise ValueError(f"{discount} cannot be taken off {total}")
    shares = [discount * price // total if total else 0 for price in prices]
    by_loss = sorted(range(len(prices)), key=lambda at: -(discount * prices[at] % total) if total else 0)
    for at in by_loss[: discount - sum(shares)]:
        shares[at] += 1
    return shares


def usable(terms: Terms, base: int, now: datetime) -> Literal["NOT_STARTED", "ENDED", "MINIMUM_SPEND"] | None:
    """Why a coupon cannot be used for this amount at this moment, or None."""
    if now < terms.usable_from:
        return "NOT_STARTED"
    if now >= terms.usable_to:
        return "ENDED"
    if base < (terms.minimum_spend or 0):
        return "MINIMUM_SPEND"
    return None


def user_coupon_id_of(coupon_id: str, user_id: str) -> str:
    """The id of a user's coupon: one a source and user, whatever the key of the request."""
    return ids.derive("user coupon", coupon_id, user_id)


# --- replies and refusals ---------------------------------------------------------------------------------------------


class Issued(Reply, frozen=True):
    """The user has a coupon once the entry `n` is durable; `repeated` 1 where they had it before."""

    n: int
    repeated: int


class CountedCoupons(Reply, frozen=True):
    """What the store has of a source: the version of its terms, how many there ever were, how many users have one."""

    state: str
    version: int
    quantity: int
    issued: int
    outbox_behind: int


class CouponsGone(Refusal, frozen=True):
    """All of these coupons are gone."""


class NotIssuing(Refusal, frozen=True):
    """These coupons are not being issued now. The reason is NOT_STARTED, PAUSED, ENDED or CLOSED."""

    reason: str
    starts_at_ms: int = 0


class QuantityTaken(Refusal, frozen=True):
    """More of these coupons than that were issued already."""

    issued: int


NotIssued = CouponsGone | NotIssuing | NotFound | Busy | Unavailable

ISSUE = Script("coupons/issue", CouponKeys, Issued | NotIssued)
COUNT = Script("coupons/count", CouponKeys, CountedCoupons | SaleUnknown | StaleEpoch)


# --- what a user does -------------------------------------------------------------------------------------------------


async def issue(gate: Gate, sale: Sale, *, user_id: str) -> Issued | NotIssued:
    """Give a user a coupon of this source, one whatever is asked; it counts once Postgres has its row."""
    return await sales.ask(gate, sale, ISSUE, user_id=user_id)


async def read(postgres: asyncpg.Pool | Connection, user_coupon_ids: Sequence[str]) -> dict[str, UserCoupon]:
    """Coupons of users by id; those without a row are missing."""
    rows = await SQL.find_user_coupons.fetch(postgres, user_coupon_ids)
    return {row["user_coupon_id"]: UserCoupon(**row) for row in rows}


async def find_mine(postgres: asyncpg.Pool | Connection, user_coupon_id: str, user_id: str) -> UserCoupon | None:
    """A user's coupon."""
    found = (await read(postgres, [user_coupon_id])).get(user_coupon_id)
    return found if found is not None and found.user_id == user_id else None


async def is_on_its_way(
    gate: Gate, postgres: asyncpg.Pool, book: SaleBook, *, user_coupon_id: str, user_id: str
) -> bool:
    """Whether a user was issued this coupon and Postgres does not have it yet. Raises StoreUnavailable."""
    if await find_mine(postgres, user_coupon_id, user_id) is not None:
        return False
    for sale in book.sales():
        if sale.kind == "coupon" and user_coupon_id_of(sale.sale_id, user_id) == user_coupon_id:
            try:
                return bool(await gate.redis.hexists(CouponKeys(sale.sale_id).issued, user_id))
            except RedisError as fault:
                raise StoreUnavailable(f"what {sale.sale_id} issued cannot be read: {fault}") from fault
    return False


async def list_mine(
    postgres: asyncpg.Pool, user_id: str, *, before: tuple[datetime, str] | None, most: int
) -> list[UserCoupon]:
    """What a user has, newest first, from before a place in that order on."""
    rows = await SQL.list_user_coupons.fetch(postgres, user_id, *(before or (None, None)), most)
    return [UserCoupon(**row) for row in rows]


# --- what an operator does --------------------------------------------------------------------------------------------


async def create(
    postgres: asyncpg.Pool, *, coupon_id: str, plan: Plan, fingerprint: str
) -> tuple[Coupon, bool] | IdempotencyKeyReused:
    """Make a source; answers it as it now stands, and whether an earlier request made it.

    It may be not yet open: it is written to Redis next, as a sale is.
    """
    async with postgres.acquire() as connection, connection.transaction():
        await sales.create(connection, sale_id=coupon_id, kind="coupon", terms=sales.Terms(name=plan.name))
        added = await SQL.add_coupon.execute(connection, coupon_id, fingerprint, *_columns(plan))
        coupon = await _read(connection, coupon_id)
    return (coupon, not added) if coupon.fingerprint == fingerprint else IdempotencyKeyReused()


async def find(postgres: asyncpg.Pool | Connection, coupon_id: str) -> Coupon | None:
    """A source that was not deleted, in whatever state."""
    row = await SQL.find_coupon.fetchrow(postgres, coupon_id)
    return Coupon(**row) if row is not None and row["deleted_at"] is None else None


async def list_coupons(
    postgres: asyncpg.Pool, *, statuses: Sequence[Status], before: tuple[datetime, str] | None, most: int
) -> list[Coupon]:
    """Sources in these states, newest first, from before a place in that order on."""
    rows = await SQL.list_coupons.fetch(postgres, list(statuses), *(before or (None, None)), most)
    return [Coupon(**row) for row in rows]


async def edit(
    stores: Stores, book: SaleBook, *, coupon_id: str, version: int, changes: Mapping[str, Any]
) -> Coupon | StaleVersion | QuantityTaken | NotIssuing | NotFound | Unavailable:
    """Change what these fields of a source say, if it still has this version; what was issued keeps its terms.

    There may be no fewer than Redis has issued: what it issues while this is decided does not stand, and its users are
    told so. A source that is CLOSED stays it. What only the row has, the source's owner sends to Redis again.
    """
    sale = await book.find(coupon_id)
    if sale is None or sale.kind != "coupon":
        return NotFound()
    issued = 0
    if "initial_quantity" in changes:
        counted = await sales.ask(stores.gate, sale, COUNT)
        if not isinstance(counted, CountedCoupons):
            return counted
        issued = counted.issued
    async with stores.postgres.acquire() as connection, connection.transaction():
        row = await SQL.lock_coupon.fetchrow(connection, coupon_id)
        if row is None or row["deleted_at"] is not None:
            return NotFound()
        coupon = Coupon(**row)
        if coupon.version != version:
            return StaleVersion(coupon.version)
        edited = msgspec.structs.replace(coupon, **changes)
        if edited.initial_quantity < max(issued, coupon.issued):
            return QuantityTaken(max(issued, coupon.issued))
        if coupon.status == "CLOSED" and edited.status != "CLOSED":
            return NotIssuing("CLOSED")
        left = edited.initial_quantity - coupon.issued
        if edited.status in {"ISSUING", "SOLD_OUT"}:
            edited = msgspec.structs.replace(edited, status="ISSUING" if left else "SOLD_OUT")
        await SQL.edit_coupon.execute(connection, coupon_id, *_columns(edited))
        await SQL.edit_shard.execute(connection, coupon_id, edited.name)
        coupon = await _read(connection, coupon_id)
    await _tell(stores, book, coupon_id)
    return coupon


async def remove(stores: Stores, book: SaleBook, *, coupon_id: str) -> bool:
    """Issue nothing of a source any more and hide it; False when there is none. Harmless to repeat."""
    async with stores.postgres.acquire() as connection, connection.transaction():
        row = await SQL.lock_coupon.fetchrow(connection, coupon_id)
        if row is None:
            return False
        if await SQL.remove_coupon.execute(connection, coupon_id):
            await SQL.edit_shard.execute(connection, coupon_id, row["name"])
    await _tell(stores, book, coupon_id)
    return True


async def send(gate: Gate, postgres: asyncpg.Pool, sale: Sale) -> Configured | Unavailable:
    """Write the terms of a source to the store, unless newer ones stand there."""
    coupon = await _read(postgres, sale.sale_id)
    return await sales.ask(gate, sale, sales.CONFIGURE, version=coupon.version, terms=stored_terms(coupon))


async def find_stored_terms(postgres: asyncpg.Pool, coupon_id: str) -> tuple[Argument, ...]:
    """The terms of a source with their version, for a copy of it that is written anew."""
    coupon = await _read(postgres, coupon_id)
    return (*stored_terms(coupon), "version", coupon.version)


def stored_terms(coupon: Coupon) -> tuple[Argument, ...]:
    """The terms as `lua/shared/sale.lua` names them: name, value and so on."""
    return (
        *("kind", "coupon"),
        *("status", "DELETED" if coupon.deleted_at else coupon.status),
        *("quantity", coupon.initial_quantity),
        *("opens_at_ms", sales.milliseconds(coupon.issue_from)),
        *("closes_at_ms", sales.milliseconds(coupon.issue_to)),
        *("terms", msgspec.json.encode(_part(Terms, coupon)).decode()),
    )


async def _tell(stores: Stores, book: SaleBook, coupon_id: str) -> None:
    sale = await book.read(coupon_id)
    assert sale is not None  # noqa: S101 - sales are never deleted
    await send(stores.gate, stores.postgres, sale)


async def _read(postgres: asyncpg.Pool | Connection, coupon_id: str) -> Coupon:
    row = await SQL.find_coupon.fetchrow(postgres, coupon_id)
    if row is None:
        raise LookupError(f"there is no source of coupons {coupon_id}")
    return Coupon(**row)


def _columns(plan: Plan) -> tuple[object, ...]:
    return tuple([getattr(plan, name) for name in Plan.__struct_fields__])


def _part(kind: type[Terms], whole: Terms) -> Terms:
    return kind(**{name: getattr(whole, name) for name in kind.__struct_fields__})


# --- how an issue becomes true ----------------------------------------------------------------------------------------


def handler(sale: Sale) -> Handler:
    """What is done with the outbox of a source."""

    async def apply(connection: Connection, entries: Sequence[Entry]) -> None:
        await settle(connection, sale, entries)

    async def bury(connection: Connection, entry: Entry) -> None:
        await _rewrite(connection, sale, f"issue n {entry.n} cannot be applied")

    return Handler(apply=apply, bury=bury)


async def settle(connection: Connection, sale: Sale, entries: Sequence[Entry]) -> None:
    """Apply issues, inside the transaction that owns the stream: rows are added, and what is left is counted down.

    An issue stands as long as anything is left. For one that does not, as when an operator took away what was issued at
    that moment, Redis is written anew from the rows.
    """
    row = await SQL.lock_coupon.fetchrow(connection, sale.sale_id)
    if row is None:
        raise BadEntry(f"there is no source of coupons {sale.sale_id}")
    user_ids = [entry.id("user_id") for entry in entries]
    owners = {owner["user_id"] for owner in await SQL.list_owners.fetch(connection, sale.sale_id, user_ids)}
    left: int = row["quantity"]
    added: list[tuple[object, ...]] = []
    for entry, user_id in zip(entries, user_ids, strict=True):
        if user_id in owners:
            continue  # told again: there is one already
        if len(added) == left:
            await _rewrite(connection, sale, f"issue n {entry.n} does not stand: nothing is left")
            break
        owners.add(user_id)
        added.append(_row(sale, entry, user_id))
    if added:
        await SQL.add_user_coupons.execute(connection, sale.sale_id, *map(list, zip(*added, strict=True)))
        await SQL.count_down.execute(connection, sale.sale_id, len(added))


def _row(sale: Sale, entry: Entry, user_id: str) -> tuple[object, ...]:
    try:
        terms = msgspec.json.decode(entry.text("terms"), type=Terms)
    except msgspec.DecodeError as fault:
        raise BadEntry(f"issued: its terms are {entry.text('terms')!r}: {fault}") from fault
    issued_at = datetime.fromtimestamp(entry.number("at_ms") / 1000, UTC)
    return (user_coupon_id_of(sale.sale_id, user_id), user_id, issued_at, *msgspec.structs.astuple(terms))


async def _rewrite(connection: Connection, sale: Sale, reason: str) -> None:
    """Have the copy in Redis written anew from the rows, where it has given out what nobody may have."""
    await outbox.freeze(connection, sale.sale_id, sale.epoch, reason)
