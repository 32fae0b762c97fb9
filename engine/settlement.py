"""Settlement: the transaction in which a sale becomes true, or is undone.

Redis has confirmed; here Postgres decides. The caller owns the stream (its watermark is locked). Then *read* under
locks taken in one order (balances, payments, reservations, each by id), *decide* in the order of the entries, *write*
in a few statements that each touch a row at most once. A sale stands only if its payment is AUTHORISED for this hold
and fence and every seat is unclaimed. What does not stand is voided in the same transaction: nobody is charged for
something that was lost.
"""

from collections.abc import Sequence

import msgspec

from engine import reservations, waiting_room
from engine.sales import Sale
from engine.stores import queries
from engine.stores.outbox import Divergence, Entry, Handler
from engine.stores.queries import Connection

SQL = queries.load("payments")
RESERVATIONS = queries.load("reservations")

LIVE = ("PENDING", "AUTHORISED", "IN_DOUBT")


class _Balance(msgspec.Struct):
    """A balance while a batch is decided: each use sees what the one before it left."""

    amount: int
    set_aside: int
    version: int


class _Payment(msgspec.Struct):
    reservation_id: str
    user_id: str
    fence: int
    status: str
    final_amount: int
    balance_amount: int


class _Reservation(msgspec.Struct):
    user_id: str
    status: str
    fence: int
    seat_nos: list[str]


class _Verdict(msgspec.Struct):
    """What a batch comes to: ids by what happens to them."""

    confirmed: list[str] = []
    paid: list[str] = []
    sold: list[str] = []
    uses: list[tuple[str, str, int, int, int]] = []
    ended_payments: dict[str, tuple[str, str]] = {}
    endings: dict[str, str] = {}
    restores: dict[str, int] = {}
    processed: list[tuple[int, str]] = []


def handler(sale: Sale) -> Handler:
    """What is done with the outbox of a sale of seats."""

    async def apply(connection: Connection, entries: Sequence[Entry]) -> None:
        for part in cut(entries):
            await settle(connection, sale, part)

    return Handler(apply=apply, bury=bury)


def cut(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Cut a batch before a fact that follows its hold's `confirmed`: what comes later must see what that wrote."""
    parts: list[list[Entry]] = [[]]
    confirmed: set[str] = set()
    for entry in entries:
        hold_id = entry.fields.get("hold_id", "")
        if hold_id in confirmed:
            parts.append([])
            confirmed.clear()
        if entry.kind == "confirmed":
            confirmed.add(hold_id)
        parts[-1].append(entry)
    return [part for part in parts if part]


async def settle(connection: Connection, sale: Sale, entries: Sequence[Entry]) -> None:
    """Apply facts of a sale's outbox, inside the transaction that owns it.

    Raises Divergence when a fact speaks of a payment or a reservation that Postgres never had: Redis then knows
    another history.
    """
    facts = [entry for entry in entries if entry.kind in {"confirmed", "abandoned"}]
    if not facts:
        return  # `restored` says that Redis has caught up with what is already written here
    balances = await _lock_balances(connection, facts)
    payments = await _lock_payments(connection, facts)
    rows = await _lock_reservations(connection, facts)
    claims = await _find_claims(connection, sale, rows)

    verdict = _Verdict()
    for entry in facts:
        fields = entry.fields
        payment, row = payments.get(fields["payment_id"]), rows.get(fields["hold_id"])
        if payment is None or row is None:
            raise Divergence(
                f"outbox n {entry.n} ({entry.kind}) is of payment {fields['payment_id']} and hold {fields['hold_id']}, "
                f"and Postgres has no such {'payment' if payment is None else 'reservation'}"
            )
        if entry.kind == "confirmed":
            _decide_confirmed(verdict, fields, payment, row, balances, claims)
        else:
            _decide_abandoned(verdict, fields, payment, balances)

    await _write(connection, sale, verdict, balances)


# Read -----------------------------------------------------------------------------------------------------------------


async def _lock_balances(connection: Connection, facts: Sequence[Entry]) -> dict[str, _Balance]:
    payment_ids = [fact.fields["payment_id"] for fact in facts]
    return {
        row["user_id"]: _Balance(row["amount"], row["set_aside"], row["version"])
        for row in await SQL.lock_balances_of_payments.fetch(connection, payment_ids)
    }


async def _lock_payments(connection: Connection, facts: Sequence[Entry]) -> dict[str, _Payment]:
    rows = await SQL.lock_payments.fetch(connection, [fact.fields["payment_id"] for fact in facts])
    return {row["payment_id"]: _Payment(**{name: row[name] for name in _Payment.__struct_fields__}) for row in rows}


async def _lock_reservations(connection: Connection, facts: Sequence[Entry]) -> dict[str, _Reservation]:
    rows = await RESERVATIONS.lock_reservations.fetch(connection, [fact.fields["hold_id"] for fact in facts])
    return {
        row["reservation_id"]: _Reservation(row["user_id"], row["status"], row["fence"], row["seat_nos"])
        for row in rows
    }


async def _find_claims(connection: Connection, sale: Sale, rows: dict[str, _Reservation]) -> dict[str, str]:
    seat_nos = [seat_no for row in rows.values() for seat_no in row.seat_nos]
    found = await SQL.find_claims.fetch(connection, sale.sale_id, seat_nos)
    return {row["seat_no"]: row["reservation_id"] for row in found}


# Decide ---------------------------------------------------------------------------------------------------------------


def _decide_confirmed(
    verdict: _Verdict,
    fields: dict[str, str],
    payment: _Payment,
    row: _Reservation,
    balances: dict[str, _Balance],
    claims: dict[str, str],
) -> None:
    hold_id, payment_id, fence = fields["hold_id"], fields["payment_id"], int(fields["fence"])
    if payment.status == "SUCCESS" and payment.reservation_id == hold_id:
        return  # the very same sale, told again
    stands = (
        payment.status == "AUTHORISED"
        and payment.reservation_id == hold_id
        and payment.fence == fence
        and row.status == "PENDING"
        and row.fence == fence
        and len(row.seat_nos) > 0
        and all(claims.get(seat_no, hold_id) == hold_id for seat_no in row.seat_nos)
    )
    if not stands:
        _end_payment(verdict, payment_id, payment, "hold_ended", balances)
        if row.status == "PENDING":
            verdict.endings[hold_id] = "LATE_UNFULFILLABLE"
            row.status = "CANCELLED"
        verdict.restores[hold_id] = fence
        return
    row.status, payment.status = "CONFIRMED", "SUCCESS"
    claims.update(dict.fromkeys(row.seat_nos, hold_id))
    verdict.confirmed.append(hold_id)
    verdict.sold.extend(row.seat_nos)
    verdict.paid.append(payment_id)
    if fields["queue_no"] != "0":
        verdict.processed.append((int(fields["queue_no"]), fields["buyer_id"]))
    if payment.balance_amount > 0:  # what costs nothing moves nothing
        balance = balances[payment.user_id]
        balance.amount -= payment.balance_amount
        balance.set_aside -= payment.balance_amount
        balance.version += 1
        verdict.uses.append((payment_id, payment.user_id, payment.balance_amount, balance.amount, balance.version))


def _decide_abandoned(
    verdict: _Verdict, fields: dict[str, str], payment: _Payment, balances: dict[str, _Balance]
) -> None:
    # Redis has shut the door: whoever was about to write this down may have died.
    _end_payment(verdict, fields["payment_id"], payment, "hold_ended", balances)
    if fields["to"] == "free":
        verdict.endings[fields["hold_id"]] = "EXPIRED"


def _end_payment(
    verdict: _Verdict, payment_id: str, payment: _Payment, reason: str, balances: dict[str, _Balance]
) -> None:
    if payment.status not in LIVE:
        return
    verdict.ended_payments[payment_id] = ("FAILED" if payment.status == "PENDING" else "VOIDED", reason)
    payment.status = verdict.ended_payments[payment_id][0]
    balances[payment.user_id].set_aside -= payment.balance_amount


# Write ----------------------------------------------------------------------------------------------------------------


async def _write(connection: Connection, sale: Sale, verdict: _Verdict, balances: dict[str, _Balance]) -> None:
    if verdict.confirmed:
        await SQL.claim_lines.execute(connection, verdict.confirmed)
        await SQL.mark_sold.execute(connection, sale.sale_id, verdict.sold)
        await SQL.confirm_reservations.execute(connection, verdict.confirmed)
        await SQL.add_tickets.execute(connection, verdict.confirmed)
        await SQL.succeed_payments.execute(connection, verdict.paid)
        await SQL.count_sold.execute(connection, sale.sale_id, len(verdict.sold))
    if verdict.ended_payments:
        statuses, reasons = zip(*verdict.ended_payments.values(), strict=True)
        await SQL.end_payments.fetch(connection, list(verdict.ended_payments), list(statuses), list(reasons))
    if verdict.uses or verdict.ended_payments:
        await SQL.set_balances.execute(
            connection,
            list(balances),
            [balance.amount for balance in balances.values()],
            [balance.set_aside for balance in balances.values()],
            [balance.version for balance in balances.values()],
        )
    if verdict.uses:
        await SQL.add_uses.execute(connection, *map(list, zip(*verdict.uses, strict=True)))
    await reservations.end(connection, verdict.endings)
    if verdict.restores:
        await SQL.add_restores.execute(
            connection, sale.sale_id, list(verdict.restores), list(verdict.restores.values())
        )
    if verdict.processed:
        await waiting_room.record_processed(connection, sale, verdict.processed)


async def bury(connection: Connection, entry: Entry) -> str | None:
    """Leave the payment of a fact that could not be applied IN_DOUBT; its funds stay set aside until it is resolved."""
    payment_id = entry.fields.get("payment_id")
    if payment_id is not None:
        await SQL.doubt_payment.execute(connection, payment_id)
    return payment_id
