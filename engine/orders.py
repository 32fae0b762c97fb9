"""Orders: what Postgres says of a hold of units, from the first entry of the journal to the last.

One id from hold to end. A row is PENDING, then PAID (and refunded in part or whole later), EXPIRED or CANCELLED; one
that has ended is never revived. While a hold runs, Redis knows more than the row; PAID is a word of Postgres alone.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final, cast

import asyncpg
import msgspec

from engine import carts, coupons, statistics, stock
from engine.holdings import Beside, Lines, Sold, Standing, Wanted, restore_all
from engine.moments import LAST_ID, LATEST, moment
from engine.products import Labels, VariantLabel
from engine.sales import Sale, SaleBook
from engine.seats import Paying
from engine.stock import Claim, units_of
from engine.stores import queries
from engine.stores.outbox import BadEntry, Entry
from engine.stores.queries import Connection
from engine.stores.replies import Refusal, SaleRebuilding, SaleUnknown, StaleEpoch
from engine.stores.scripts import Gate

SQL = queries.load("orders")
PAYMENTS = queries.load("payments")

# Above every item there ever was.
LAST_ITEM: Final = 2**63 - 1


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an order; HELD, SOLD or ENDED."""

    variant_id: str
    product_id: str
    name: str
    size: str | None
    quantity: int
    unit_price: int
    discount_amount: int = 0
    total_price: int
    status: str
    refunded_quantity: int = 0


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """An order as it stands; amounts in minor units."""

    order_id: str
    sale_id: str
    user_id: str
    fingerprint: str
    status: str
    reason: str | None
    lines: tuple[Item, ...]
    original_amount: int
    discount_amount: int
    total_amount: int
    user_coupon_id: str | None
    created_at: datetime
    expires_at: datetime
    paid_at: datetime | None
    version: int
    payment_id: str | None
    server_time: datetime


class UserItem(msgspec.Struct, frozen=True, kw_only=True):
    """A unit that a user owns, or gave back."""

    item_id: int
    order_id: str
    product_id: str
    variant_id: str
    name: str
    size: str | None
    returned_at: datetime | None
    created_at: datetime


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What a row needs to know of a hold of units."""

    kind: ClassVar[str] = "stock"

    order_id: str
    sale_id: str
    user_id: str
    epoch: int
    fence: int
    queue_no: int
    fingerprint: str
    amount: int
    expires_at_ms: int
    created_at_ms: int
    items: tuple[stock.Line, ...]

    @property
    def hold_id(self) -> str:
        """One id from hold to end."""
        return self.order_id

    @property
    def lines(self) -> Lines:
        """What is held."""
        return {item.variant_id: item.quantity for item in self.items}


def holding_of(sale: Sale, hold_id: str, user_id: str, paying: Paying) -> Holding:
    """What transaction A needs to know of a hold that is PAYING."""
    return Holding(
        order_id=hold_id,
        sale_id=sale.sale_id,
        user_id=user_id,
        epoch=sale.epoch,
        fence=paying.fence,
        queue_no=paying.queue_no,
        fingerprint=paying.fingerprint,
        amount=paying.amount,
        expires_at_ms=paying.expires_at_ms,
        created_at_ms=paying.created_at_ms,
        items=stock.lines_of(paying.seats, paying.prices),
    )


# Writing --------------------------------------------------------------------------------------------------------------

_ROW: Final = (
    *("order_id", "sale_id", "user_id", "epoch", "fence", "queue_no", "fingerprint", "amount"),
    *("expires_at_ms", "created_at_ms"),
)


async def add(connection: Connection, holdings: Sequence[Any]) -> None:
    """Write PENDING rows with their lines; what is there already, however it stands, stays."""
    if not holdings:
        return
    ours = cast("Sequence[Holding]", holdings)
    rows = await SQL.add_orders.fetch(connection, *[[getattr(each, name) for each in ours] for name in _ROW])
    added = {row["order_id"] for row in rows}
    if not added:
        return
    # Whoever made an order of a cart may have died before it was emptied.
    await carts.finish(connection, list(added))
    lines = [
        (holding.order_id, item.variant_id, holding.sale_id, item.quantity, item.price)
        for holding in ours
        if holding.order_id in added
        for item in holding.items
    ]
    await SQL.add_items.execute(connection, *map(list, zip(*lines, strict=True)))


async def keep(connection: Connection, kept: Mapping[str, Lines]) -> None:
    """Leave rows that still wait these lines of those they have, and sum up what is left."""
    if not kept:
        return
    lines = [
        (order_id, variant_id, quantity) for order_id, left in kept.items() for variant_id, quantity in left.items()
    ]
    order_ids, variant_ids, quantities = map(list, zip(*lines, strict=True))
    await SQL.lower_items.execute(connection, order_ids, variant_ids, quantities)
    await SQL.remove_items.execute(connection, list(kept), order_ids, variant_ids)
    await SQL.sum_items.execute(connection, list(kept))


async def end(connection: Connection, endings: Mapping[str, str]) -> None:
    """End rows that still wait, each with its reason, and their lines."""
    if endings:
        rows = await SQL.end_orders.fetch(connection, list(endings), list(endings.values()))
        await SQL.end_items.execute(connection, [row["order_id"] for row in rows])


async def record(connection: Connection, sale: Sale, entries: Sequence[Entry]) -> None:
    """Write what the journal says of holds: held, extended, released, expired; other kinds are passed over.

    The facts of one hold are folded, as in `reservations`: it begins, it is extended, it gives units back, it ends. Of
    units given back the entry says what is left, and the last one says it for all. Raises BadEntry.
    """
    held: dict[str, Holding] = {}
    extended: dict[str, int] = {}
    kept: dict[str, Lines] = {}
    endings: dict[str, str] = {}
    for entry in entries:
        match entry.kind:
            case "held":
                held[entry.id("hold_id")] = _holding(sale, entry)
            case "extended":
                extended[entry.id("hold_id")] = entry.number("expires_at_ms")
            case "released" if entry.text("whole") == "1":
                endings[entry.id("hold_id")] = "USER"
            case "released":
                kept[entry.id("hold_id")] = _lines(entry, "left")
            case "expired":
                endings[entry.id("hold_id")] = "EXPIRED"
            case _:
                pass
    await add(connection, list(held.values()))
    if extended:
        await SQL.extend_orders.execute(connection, list(extended), list(extended.values()))
    await keep(connection, kept)
    await end(connection, endings)


def _holding(sale: Sale, entry: Entry) -> Holding:
    _lines(entry, "seats")
    try:
        items = stock.lines_of(entry.text("seats"), entry.text("prices"))
    except ValueError:
        raise BadEntry(f"{entry.kind}: {entry.fields['prices']!r} are not the prices of its lines") from None
    return Holding(
        order_id=entry.id("hold_id"),
        sale_id=sale.sale_id,
        user_id=entry.id("buyer_id"),
        epoch=entry.epoch,
        fence=entry.number("fence"),
        queue_no=entry.number("queue_no"),
        fingerprint=entry.text("fingerprint"),
        amount=entry.number("amount"),
        expires_at_ms=entry.number("expires_at_ms"),
        created_at_ms=entry.number("created_at_ms"),
        items=items,
    )


def _lines(entry: Entry, name: str) -> dict[str, int]:
    """Read a field that lists units; what there is none of may be left out of it."""
    text = entry.text(name)
    try:
        return {each.variant_id: each.quantity for each in units_of(text.split(","))} if text else {}
    except ValueError:
        raise BadEntry(f"{entry.kind}: {name} is {text!r} and no list of units") from None


# For transactions A and B ---------------------------------------------------------------------------------------------


async def lock(connection: Connection, order_ids: Sequence[str]) -> dict[str, Standing]:
    """Lock rows in id order and answer how they stand; their lines are still to be read."""
    return {
        row["order_id"]: Standing(row["user_id"], row["status"], row["fence"])
        for row in await SQL.lock_orders.fetch(connection, order_ids)
    }


async def read_beside(
    connection: Connection, rows: Mapping[str, Standing], payment_ids: Sequence[str], order_ids: Sequence[str]
) -> list[Beside]:
    """Read what stands beside these payments, and the lines of the locked rows."""
    found = await SQL.find_beside.fetch(connection, payment_ids, order_ids)
    for row in found:
        rows[row["order_id"]].lines = row["lines"]
    return [Beside(row["payment_id"], row["order_id"], row["is_known"], row["live_payment_id"]) for row in found]


class _Left:
    """What is left of each variant while a batch is decided."""

    def __init__(self, left: dict[str, int]) -> None:
        self._left = left

    def allow(self, hold_id: str, lines: Lines) -> bool:  # noqa: ARG002 - nobody's claim stands on a unit
        return all(self._left.get(variant_id, 0) >= quantity for variant_id, quantity in lines.items())

    def take(self, hold_id: str, lines: Lines) -> None:  # noqa: ARG002 - as above
        for variant_id, quantity in lines.items():
            self._left[variant_id] -= quantity


async def read_claims(connection: Connection, sale: Sale, rows: Mapping[str, Standing]) -> _Left:  # noqa: ARG001
    """Read the lines of locked rows, and lock what is left of their variants."""
    variant_ids = set()
    for line in await SQL.find_items.fetch(connection, list(rows)):
        rows[line["order_id"]].lines[line["variant_id"]] = line["quantity"]
        variant_ids.add(line["variant_id"])
    left = await SQL.lock_variants.fetch(connection, list(variant_ids))
    return _Left({row["variant_id"]: row["quantity"] for row in left})


async def sell(connection: Connection, sale: Sale, sold: Sequence[Sold]) -> None:  # noqa: ARG001 - variants say it
    """Write sales that stand: units leave the stock, each is its buyer's, order and payment are paid."""
    order_ids = [each.hold_id for each in sold]
    await SQL.sell_units.execute(connection, order_ids, [each.user_id for each in sold])
    await _share_discounts(connection, {each.hold_id: each.discount for each in sold if each.discount > 0})
    await SQL.pay_orders.execute(connection, order_ids, [each.payment_id for each in sold])
    await statistics.count_sold(connection, order_ids)


async def _share_discounts(connection: Connection, discounts: Mapping[str, int]) -> None:
    """Share the discount of each order out among its lines, so that what is refunded of a line adds up."""
    if not discounts:
        return
    lines: defaultdict[str, list[asyncpg.Record]] = defaultdict(list)
    for row in await SQL.find_sold_items.fetch(connection, list(discounts)):
        lines[row["order_id"]].append(row)
    shares = [
        (order_id, row["variant_id"], share)
        for order_id, rows in lines.items()
        for row, share in zip(rows, coupons.spread(discounts[order_id], [row["price"] for row in rows]), strict=True)
    ]
    await SQL.discount_items.execute(connection, *map(list, zip(*shares, strict=True)))


async def record_restored(connection: Connection, entries: Sequence[Entry]) -> None:
    """Take over what Redis counts for an order since it gave units back: a later restore begins there.

    Raises BadEntry.
    """
    counted = {entry.id("hold_id"): _lines(entry, "seats") for entry in entries if entry.kind == "restored"}
    if not counted:
        return
    rows = [
        (row["order_id"], row["variant_id"], counted[row["order_id"]].get(row["variant_id"], 0))
        for row in await SQL.lock_sold_items.fetch(connection, list(counted))
    ]
    if rows:
        await SQL.keep_counted.execute(connection, *map(list, zip(*rows, strict=True)))


async def restore(gate: Gate, connection: Connection, sale: Sale, *, most: int) -> int:
    """Make holds in Redis what Postgres says they have bought, of at most so many orders; returns of how many.

    The lines stay locked until Redis has answered: units given back in between would be counted twice.
    """
    rows = await SQL.lock_restores.fetch(connection, sale.sale_id, most)
    claims: defaultdict[str, list[Claim]] = defaultdict(list)
    for line in await SQL.lock_items.fetch(connection, [row["hold_id"] for row in rows]):
        claims[line["order_id"]].append(Claim(line["variant_id"], line["counted"], line["bought"]))
    done = await restore_all(stock.restore, gate, sale, rows, claims)
    await PAYMENTS.finish_restores.execute(connection, done)
    return len(done)


async def list_forgotten(connection: asyncpg.Pool | Connection, sale: Sale, *, within_s: float, most: int) -> list[str]:
    """List rows long past their deadline that no live payment keeps."""
    rows = await SQL.list_forgotten.fetch(connection, sale.sale_id, within_s, most)
    return [row["order_id"] for row in rows]


async def find_wanted(connection: asyncpg.Pool | Connection, payment_id: str) -> Wanted | None:
    """What a payment that has ended was for.

    Of units that were given back after it nothing is known: what is left does not add up to what it cost then.
    """
    rows = await SQL.find_wanted.fetch(connection, payment_id)
    if not 0 < len(rows) <= stock.LINES_MAX:
        return None
    return Wanted(
        lines=tuple([stock.Units(row["variant_id"], row["quantity"]).told for row in rows]),
        prices=tuple([row["unit_price"] for row in rows]),
        amount=sum(row["quantity"] * row["unit_price"] for row in rows),
    )


async def explain(connection: asyncpg.Pool | Connection, order_id: str, user_id: str) -> str | None:
    """Why a user's order that Redis has forgotten is over, SOLD where it was bought; None without a row."""
    reason: str | None = await SQL.find_reason.fetchval(connection, order_id, user_id)
    return reason


# Reading --------------------------------------------------------------------------------------------------------------


async def find(
    gate: Gate, postgres: asyncpg.Pool, book: SaleBook, labels: Labels, *, order_id: str, user_id: str
) -> Order | SaleRebuilding | None:
    """How a user's order stands: what Redis knows of the hold, unless the row has the last word."""
    row = await SQL.find_order.fetchrow(postgres, order_id, user_id)
    known = from_row(row) if row else None
    if row is not None and row["status"] != "PENDING":
        return known
    # A deadline that has passed in the row may have been put off in Redis: the journal comes a moment later.
    found: stock.Hold | Refusal | None = None
    for sale in await book.find_by_prefix(order_id):
        if sale.kind != "stock":
            continue
        found = await stock.find(gate, sale, hold_id=order_id)
        if isinstance(found, stock.Hold):
            if found.buyer_id != user_id:
                return None
            called = await labels.find([line.variant_id for line in found.lines])
            return _merge(sale, known, found, items_of(called, found.lines, found.state))
    if known is not None:
        return known
    if isinstance(found, SaleRebuilding | SaleUnknown | StaleEpoch):
        return SaleRebuilding()
    return None


def items_of(called: Mapping[str, VariantLabel], lines: Sequence[stock.Line], state: str) -> tuple[Item, ...]:
    """The lines of a hold with what they are called."""
    return tuple(
        [
            Item(
                variant_id=line.variant_id,
                product_id=label.product_id,
                name=label.name,
                size=label.size,
                quantity=line.quantity,
                unit_price=line.price,
                total_price=line.price * line.quantity,
                status="ENDED" if state == "ENDED" else "HELD",
            )
            for line in lines
            for label in [called[line.variant_id]]
        ]
    )


def _merge(sale: Sale, row: Order | None, hold: stock.Hold, items: tuple[Item, ...]) -> Order:
    """A hold that Postgres has not ended, as its buyer is told of it."""
    reason = (hold.reason or "EXPIRED") if hold.state == "ENDED" else None
    return Order(
        order_id=hold.hold_id,
        sale_id=sale.sale_id,
        user_id=hold.buyer_id,
        fingerprint=hold.fingerprint,
        # SOLD without its row is PENDING: nobody hears "paid" before the commit.
        status="PENDING" if reason is None else "EXPIRED" if reason == "EXPIRED" else "CANCELLED",
        reason=reason,
        lines=items,
        original_amount=hold.amount,
        discount_amount=0,
        total_amount=hold.amount,
        user_coupon_id=None,
        created_at=moment(hold.created_at_ms),
        expires_at=moment(hold.expires_at_ms),
        paid_at=None,
        version=row.version if row else 1,
        payment_id=hold.payment_id or (row.payment_id if row else None),
        server_time=moment(hold.now_ms),
    )


async def list_mine(
    postgres: asyncpg.Pool, user_id: str, *, before: tuple[datetime, str] = (LATEST, LAST_ID), limit: int = 20
) -> list[Order]:
    """A user's orders, newest first, from after the cursor (created_at, order_id)."""
    return [from_row(row) for row in await SQL.list_orders.fetch(postgres, user_id, *before, limit)]


async def list_items(
    postgres: asyncpg.Pool, user_id: str, *, before: int = LAST_ITEM, limit: int = 20
) -> list[UserItem]:
    """What a user owns, the newest first, from after an item."""
    return [UserItem(**row) for row in await SQL.list_items.fetch(postgres, user_id, before, limit)]


def from_row(row: asyncpg.Record | dict[str, Any]) -> Order:
    """Make an order of its row; one past its deadline that no payment holds has ended, sweep or not."""
    values = {name: row[name] for name in Order.__struct_fields__ if name != "lines"}
    lines = tuple([msgspec.convert(line, Item) for line in row["lines"]])
    if row["status"] == "PENDING" and not row["payment_live"] and row["expires_at"] <= row["server_time"]:
        values |= {"status": "EXPIRED", "reason": "EXPIRED"}
        lines = tuple([msgspec.structs.replace(line, status="ENDED") for line in lines])
    return Order(**values, lines=lines)
