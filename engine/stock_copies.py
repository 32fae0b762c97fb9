"""Copies of sales of stock: which orders stand in a new epoch, what is left beside them, and how Redis is told.

What a copy counts as bought stands in Postgres as `counted`, line by line: it is set once, when the epoch begins, and
moves again only with what the copy itself says. So units that are given back while a copy is being written are neither
left in it already nor forgotten by it: they are given back when it is open.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import asyncpg
import msgspec

from engine import copies, orders, products
from engine.copies import Loaded, LoadedAnswer, Row, Verdict
from engine.sales import Sale
from engine.stores import queries
from engine.stores.connections import Stores
from engine.stores.keys import SaleKeys
from engine.stores.queries import Connection
from engine.stores.replies import Reply, SaleUnknown, StaleEpoch
from engine.stores.scripts import Argument, Gate, Script

SQL = queries.load("stock_copies")

VARIANTS_AT_ONCE = 1000
HOLDS_AT_ONCE = 200
BUYERS_AT_ONCE = 1000


class CountedStock(Reply, frozen=True):
    """What stands in the store, of a sale of stock: units left, freed for its waiting list, running and bought."""

    variants: int
    left: int
    freed: int
    running: int
    holds: int
    held_holds: int
    paying_holds: int
    ended_holds: int
    buyers: int
    bought: int
    ended_tokens: int


LOAD_STOCK = Script("sales/load_stock", SaleKeys, LoadedAnswer)
LOAD_STOCK_HOLDS = Script("sales/load_stock_holds", SaleKeys, LoadedAnswer)
LOAD_BUYERS = Script("sales/load_buyers", SaleKeys, LoadedAnswer)
COUNT_STOCK = Script("sales/count_stock", SaleKeys, CountedStock | SaleUnknown | StaleEpoch)


# In Postgres ----------------------------------------------------------------------------------------------------------


async def settle(connection: Connection, sale: Sale, *, repeat_window_s: int) -> "Contents":
    """End what cannot stand in a new epoch, in the transaction that begins it, and read what does."""
    left = {row["variant_id"]: row["units"] for row in await SQL.list_left.fetch(connection, sale.sale_id)}
    live_payments = await SQL.list_live_payments.fetch(connection, sale.sale_id)
    unpaid = await SQL.list_unpaid.fetch(connection, sale.sale_id)
    verdict = decide(left, live_payments, unpaid)
    await copies.void(connection, verdict.voided_payment_ids)
    await orders.end(connection, verdict.endings)
    # What is given back between the first reading and this one is more to have, not less.
    await SQL.keep_counted.execute(connection, sale.sale_id)
    given_up: Counter[str] = Counter()
    for row in (*live_payments, *unpaid):
        if row["hold_id"] in verdict.endings:
            given_up.update(_units(row))
    return Contents(
        variants=await SQL.list_variants.fetch(connection, sale.sale_id),
        holds=copies.standing(await SQL.list_holds.fetch(connection, sale.sale_id, repeat_window_s), verdict),
        buyers=await SQL.list_buyers.fetch(connection, sale.sale_id),
        given_up=given_up,
    )


def decide(left: Mapping[str, int], live_payments: Iterable[Row], unpaid: Iterable[Row]) -> Verdict:
    """Say who keeps units: who has paid first while they suffice, then who held them first.

    Args:
        left: of each variant the units that nobody has bought.
        live_payments: payment_id, hold_id, variant_ids and quantities of each, the first authorised first.
        unpaid: hold_id, variant_ids, quantities and lapsed of each, the oldest first.
    """
    remaining = Counter(left)

    def take(row: Row) -> bool:
        units = _units(row)
        if any(remaining[variant_id] < quantity for variant_id, quantity in units.items()):
            return False
        remaining.subtract(units)
        return True

    return copies.decide(take, live_payments, unpaid)


def _units(row: Row) -> dict[str, int]:
    return dict(zip(row["variant_ids"], row["quantities"], strict=True))


# In Redis -------------------------------------------------------------------------------------------------------------


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """The variants, holds and buyers of a new copy; `given_up` are units of holds that ended with the epoch before it.

    Whatever frees units makes them the waiting list's, where there is one.
    """

    variants: Sequence[asyncpg.Record]
    holds: Sequence[asyncpg.Record]
    buyers: Sequence[asyncpg.Record]
    given_up: Mapping[str, int]

    async def write(self, stores: Stores, sale: Sale, *, ended_tokens: int) -> CountedStock:
        """Write what is left, what runs or is remembered, and how much each buyer has bought."""
        running: Counter[str] = Counter()
        for hold in self.holds:
            if hold["state"] in {"HELD", "PAYING"}:
                running.update(_units(hold))
        freed = self.given_up if sale.waiting_list else {}
        stock = [
            _stock_values(row, running[row["variant_id"]], freed.get(row["variant_id"], 0)) for row in self.variants
        ]
        await _load(stores.gate, sale, LOAD_STOCK, stock, VARIANTS_AT_ONCE)
        await _load(stores.gate, sale, LOAD_STOCK_HOLDS, [_hold_values(row) for row in self.holds], HOLDS_AT_ONCE)
        bought = [(row["user_id"], row["bought"]) for row in self.buyers]
        await _load(stores.gate, sale, LOAD_BUYERS, bought, BUYERS_AT_ONCE)
        of_state = Counter(hold["state"] for hold in self.holds)
        return CountedStock(
            variants=len(stock),
            left=sum(left for _variant_id, _price, left, _freed, _total in stock),
            freed=sum(freed for _variant_id, _price, _left, freed, _total in stock),
            running=running.total(),
            holds=of_state.total(),
            held_holds=of_state["HELD"],
            paying_holds=of_state["PAYING"],
            ended_holds=of_state["SOLD"] + of_state["ENDED"],
            buyers=len(
                {row["user_id"] for row in self.buyers}
                # What is left of a hold that was sold is among what its buyer has bought.
                | {hold["buyer_id"] for hold in self.holds if hold["state"] != "SOLD"}
            ),
            bought=sum(row["bought"] for row in self.buyers),
            ended_tokens=ended_tokens,
        )

    async def count(self, gate: Gate, sale: Sale) -> Reply:
        """Count what stands in the store."""
        return await COUNT_STOCK(gate, sale.keys, epoch=sale.epoch)


async def _load(
    gate: Gate, sale: Sale, script: Script[LoadedAnswer], rows: Sequence[tuple[Argument, ...]], at_once: int
) -> None:
    for part in copies.chunks(rows, at_once):
        flat = [value for row in part for value in row]
        copies.expect(await script(gate, sale.keys, epoch=sale.epoch, rows=flat), Loaded)


def _stock_values(row: Row, running: int, given_up: int) -> tuple[str, str, int, int, int]:
    """One row of lua/sales/load_stock.lua."""
    left = max(0, row["units"] - running)
    freed = min(left, given_up)
    return row["variant_id"], products.told_price(row), left - freed, freed, row["initial_quantity"]


def _hold_values(row: Row) -> tuple[Argument, ...]:
    """One row of lua/sales/load_stock_holds.lua."""
    return (
        row["hold_id"],
        row["ended_at_ms"] or 0,
        row["state"],
        row["buyer_id"],
        row["fence"],
        row["queue_no"],
        row["fingerprint"],
        row["created_at_ms"],
        row["expires_at_ms"],
        row["payment_id"] or "",
        row["pay_deadline_ms"] or 0,
        row["reason"],
        row["amount"],
        ",".join(f"{variant_id}:{quantity}" for variant_id, quantity in _units(row).items()),
        ",".join(map(str, row["prices"])),
        ",".join(row["ended_payment_ids"]),
    )
