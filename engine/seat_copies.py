"""Copies of sales of seats: who keeps which seat in a new epoch, and how halls and holds are written to Redis."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import asyncpg
import msgspec

from engine import copies, offers, reservations, seats
from engine.copies import Loaded, LoadedAnswer, Row, Verdict
from engine.sales import Sale
from engine.stores import queries
from engine.stores.connections import Stores
from engine.stores.keys import SaleKeys
from engine.stores.queries import Connection
from engine.stores.replies import Reply, SaleUnknown, StaleEpoch
from engine.stores.scripts import Argument, Gate, Script

SQL = queries.load("seat_copies")

SEATS_AT_ONCE = 1000
HOLDS_AT_ONCE = 200


class Counted(Reply, frozen=True):
    """What stands in the store."""

    seats: int
    blocked: int
    held: int
    paying: int
    sold: int
    holds: int
    held_holds: int
    paying_holds: int
    ended_holds: int
    buyers: int
    bought: int
    ended_tokens: int


LOAD_SEATS = Script("sales/load_seats", SaleKeys, LoadedAnswer)
LOAD_OFFER = Script("sales/load_offer", SaleKeys, LoadedAnswer)
LOAD_HOLDS = Script("sales/load_holds", SaleKeys, LoadedAnswer)
COUNT = Script("sales/count", SaleKeys, Counted | SaleUnknown | StaleEpoch)


# In Postgres ----------------------------------------------------------------------------------------------------------


async def settle(connection: Connection, sale: Sale, *, repeat_window_s: int) -> "Contents":
    """End what cannot stand in a new epoch, in the transaction that begins it, and read what does."""
    claims = {row["seat_no"]: row["reservation_id"] for row in await SQL.list_claims.fetch(connection, sale.sale_id)}
    live_payments = await SQL.list_live_payments.fetch(connection, sale.sale_id)
    unpaid = await SQL.list_unpaid.fetch(connection, sale.sale_id)
    verdict = decide(claims, live_payments, unpaid)
    await copies.void(connection, verdict.voided_payment_ids)
    await reservations.end(connection, dict(verdict.endings))
    return Contents(
        holds=copies.standing(await SQL.list_holds.fetch(connection, sale.sale_id, repeat_window_s), verdict),
        given_up={
            seat_no
            for row in (*live_payments, *unpaid)
            if row["hold_id"] in verdict.endings
            for seat_no in row["seat_nos"]
        },
    )


def decide(claims: Mapping[str, str | None], live_payments: Iterable[Row], unpaid: Iterable[Row]) -> Verdict:
    """Say who keeps which seat: who has bought it, else the first who paid for it, else the first who held it.

    Args:
        claims: seat_no to the reservation that has bought it, None where the operator keeps it back.
        live_payments: payment_id, hold_id and seat_nos of each, the first authorised first.
        unpaid: hold_id, seat_nos and lapsed of each, the oldest first.
    """
    taken = dict(claims)

    def take(row: Row) -> bool:
        if any(taken.get(seat_no, row["hold_id"]) != row["hold_id"] for seat_no in row["seat_nos"]):
            return False
        taken.update(dict.fromkeys(row["seat_nos"], row["hold_id"]))
        return True

    return copies.decide(take, live_payments, unpaid)


# In Redis -------------------------------------------------------------------------------------------------------------


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """The holds of a new copy; `given_up` are seats of holds that ended with the epoch before it.

    Whatever frees a seat makes it the waiting list's, where there is one.
    """

    holds: Sequence[asyncpg.Record]
    given_up: AbstractSet[str]

    async def write(self, stores: Stores, sale: Sale, *, ended_tokens: int) -> Counted:
        """Write the hall, what it offers, and everything that is held and sold."""
        gate = stores.gate
        taken = {seat_no for hold in self.holds if hold["state"] != "ENDED" for seat_no in hold["seat_nos"] or ()}
        shelved = self.given_up - taken if sale.waiting_list else frozenset()
        plan = await offers.read(stores.postgres, sale.sale_id, taken | shelved)
        for name, part in plan.parts():
            copies.expect(await LOAD_OFFER(gate, sale.keys, epoch=sale.epoch, name=name, rows=part), Loaded)
        seats_total = 0
        blocked: set[str] = set()
        async for rows in copies.pages(stores.postgres, SQL.list_seats, sale.sale_id, "", "seat_no", SEATS_AT_ONCE):
            flat = [
                value
                for row in rows
                for value in (row["seat_no"], plan.prices[row["seat_no"]], _standing(row, shelved))
            ]
            copies.expect(await LOAD_SEATS(gate, sale.keys, epoch=sale.epoch, rows=flat), Loaded)
            seats_total += len(rows)
            blocked.update(row["seat_no"] for row in rows if _standing(row, shelved))
        for held in copies.chunks(self.holds, HOLDS_AT_ONCE):
            flat = [value for row in held for value in _hold_values(row)]
            copies.expect(await LOAD_HOLDS(gate, sale.keys, epoch=sale.epoch, rows=flat), Loaded)
        return expect(self.holds, seats=seats_total, blocked=blocked, ended_tokens=ended_tokens)

    async def count(self, gate: Gate, sale: Sale) -> Reply:
        """Count what stands in the store."""
        return await COUNT(gate, sale.keys, epoch=sale.epoch)


def expect(holds: Iterable[Row], *, seats: int, blocked: set[str], ended_tokens: int) -> Counted:
    """Count what a sale written from these holds must have."""
    seat_nos: dict[str, set[str]] = {"HELD": set(), "PAYING": set(), "SOLD": set()}
    of_state = dict.fromkeys(("HELD", "PAYING", "SOLD", "ENDED"), 0)
    buyers = set()
    for hold in holds:
        buyers.add(hold["buyer_id"])
        of_state[hold["state"]] += hold["remembered"]
        if hold["state"] != "ENDED":
            seat_nos[hold["state"]].update(hold["seat_nos"])
    taken = set().union(*seat_nos.values())
    return Counted(
        seats=seats,
        blocked=len(blocked - taken),
        held=len(seat_nos["HELD"]),
        paying=len(seat_nos["PAYING"]),
        sold=len(seat_nos["SOLD"]),
        holds=sum(of_state.values()),
        held_holds=of_state["HELD"],
        paying_holds=of_state["PAYING"],
        ended_holds=of_state["SOLD"] + of_state["ENDED"],
        buyers=len(buyers),
        bought=len(seat_nos["SOLD"]),
        ended_tokens=ended_tokens,
    )


def _hold_values(row: Row) -> tuple[Argument, ...]:
    """One row of lua/sales/load_holds.lua."""
    return (
        row["hold_id"],
        int(row["remembered"]),
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
        ",".join(row["seat_nos"] or ()),
        ",".join(map(str, row["prices"] or ())),
        ",".join(row["ended_payment_ids"]),
        seats.joined_tiers(row["tiers"] or ()),
    )


def _standing(row: Row, shelved: AbstractSet[str]) -> int:
    """How a seat stands before holds are written on it, as lua/sales/load_seats.lua has it."""
    return 1 if row["blocked"] else 2 if row["seat_no"] in shelved else 0
