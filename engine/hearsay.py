"""What clients took for true, held against the book: I2, that nobody heard a confirmation that is not so."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import asyncpg

from engine.findings import Case, in_chunks
from engine.stores import queries

SQL = queries.load("audit")

# A buyer is told of a card that never paid as of any other: what was bought is theirs.
_BOUGHT = frozenset({"SUCCESS", "UNCOLLECTED", "PARTIALLY_REFUNDED", "REFUNDED"})


class Heard(Protocol):
    """One answer that a client took for true: its seats are held, or bought, a ticket was let in, a coupon issued."""

    @property
    def event(self) -> str:
        """`held`, `confirmed`, `redeemed` or `issued`."""

    @property
    def sale_id(self) -> str:
        """Where."""

    @property
    def user_id(self) -> str:
        """Who heard it."""

    @property
    def key(self) -> str:
        """The `Idempotency-Key` of the request that was answered: one key, one effect."""

    @property
    def reservation_id(self) -> str:
        """What was answered."""

    @property
    def seats(self) -> tuple[str, ...]:
        """Its seats."""

    @property
    def amount(self) -> int:
        """What was paid, or is to be."""

    @property
    def payment_id(self) -> str | None:
        """What paid for it."""

    @property
    def ticket_no(self) -> int | None:
        """The ticket that was let in."""

    @property
    def user_coupon_id(self) -> str | None:
        """The coupon that was issued; `sale_id` says of which source."""

    @property
    def order_id(self) -> str | None:
        """The order of goods that was bought."""

    @property
    def lines(self) -> tuple[str, ...]:
        """What was bought: of each variant `variant_id:quantity`."""


async def believe(postgres: asyncpg.Pool, heard: Sequence[Heard]) -> Case:
    """Hold the book to all that was heard: each confirmation is somebody's, and no two are of one thing."""
    told = [line for line in heard if line.event == "confirmed"]
    case = Case("I2", {"confirmations heard": len(told)})
    confirmed = [line for line in told if line.order_id is None]
    owners: dict[tuple[str, str], str] = {}
    disproved: list[str] = []
    for chunk in in_chunks(confirmed, 1000):
        rows = {
            row["payment_id"]: row for row in await SQL.find_heard.fetch(postgres, [line.payment_id for line in chunk])
        }
        for line in chunk:
            row = rows.get(line.payment_id or "")
            # What was given back since may have been sold again.
            for seat_no in set(line.seats).difference(row["given_back"] if row else ()):
                owner = owners.setdefault((line.sale_id, seat_no), line.reservation_id)
                if owner != line.reservation_id:
                    case.accuse(f"seat {seat_no} was confirmed to both {owner} and {line.reservation_id}")
            if complaint := _disproof(line, row):
                disproved.append(f"payment {line.payment_id} was heard as confirmed: {complaint}")
    # What was sold twice is named first: of many findings only some are.
    for finding in disproved:
        case.accuse(finding)
    await _believe_orders(postgres, case, [line for line in told if line.order_id is not None])
    await _believe_doors(postgres, case, [line for line in heard if line.event == "redeemed"])
    await _believe_issues(postgres, case, [line for line in heard if line.event == "issued"])
    return case


async def _believe_orders(postgres: asyncpg.Pool, case: Case, bought: Sequence[Heard]) -> None:
    """Hold the book to what buyers of goods were told: each order is theirs, and no unit was sold twice."""
    units: Counter[str] = Counter()
    for each in [each for line in bought for each in line.lines]:
        variant_id, _, quantity = each.rpartition(":")
        units[variant_id] += int(quantity)
    for row in await SQL.find_heard_variants.fetch(postgres, list(units)):
        if units[row["variant_id"]] > row["units"]:
            case.accuse(
                f"{units[row['variant_id']]} units of variant {row['variant_id']} were confirmed, and there were no "
                f"more than {row['units']} to sell"
            )
    for chunk in in_chunks(bought, 1000):
        payment_ids = [line.payment_id for line in chunk]
        rows = {row["payment_id"]: row for row in await SQL.find_heard_orders.fetch(postgres, payment_ids)}
        for line in chunk:
            if complaint := _disproof_of_order(line, rows.get(line.payment_id or "")):
                case.accuse(f"payment {line.payment_id} was heard as confirmed: {complaint}")
    if bought:
        case.looked_at["of goods"] = len(bought)


async def _believe_doors(postgres: asyncpg.Pool, case: Case, redeemed: Sequence[Heard]) -> None:
    """Hold the book to what doors were told: one that let somebody in did, though the ticket was given back since."""
    for chunk in in_chunks(redeemed, 1000):
        ticket_nos = [line.ticket_no for line in chunk]
        rows = {row["ticket_no"]: row for row in await SQL.find_redeemed.fetch(postgres, ticket_nos)}
        for line in chunk:
            row = rows.get(line.ticket_no)
            if row is None:
                case.accuse(f"ticket {line.ticket_no} was heard as redeemed: it is not in Postgres")
            elif not row["was_redeemed"]:
                case.accuse(f"ticket {line.ticket_no} was heard as redeemed: it is {row['status']}")
            elif row["sale_id"] != line.sale_id or row["seat_no"] not in line.seats:
                case.accuse(
                    f"ticket {line.ticket_no} was heard as redeemed for {', '.join(line.seats)} of sale "
                    f"{line.sale_id}: it is for {row['seat_no']} of sale {row['sale_id']}"
                )
    if redeemed:
        case.looked_at["redemptions heard"] = len(redeemed)


async def _believe_issues(postgres: asyncpg.Pool, case: Case, issued: Sequence[Heard]) -> None:
    """Hold the book to what users were told of coupons: each is a row of theirs."""
    for chunk in in_chunks(issued, 1000):
        user_coupon_ids = [line.user_coupon_id for line in chunk]
        rows = {row["user_coupon_id"]: row for row in await SQL.find_issued.fetch(postgres, user_coupon_ids)}
        for line in chunk:
            row = rows.get(line.user_coupon_id)
            if row is None:
                case.accuse(f"coupon {line.user_coupon_id} was heard as issued: it is not in Postgres")
            elif (row["coupon_id"], row["user_id"]) != (line.sale_id, line.user_id):
                case.accuse(
                    f"coupon {line.user_coupon_id} was heard as issued to {line.user_id} from {line.sale_id}: it is "
                    f"{row['user_id']}'s, from {row['coupon_id']}"
                )
    if issued:
        case.looked_at["issues heard"] = len(issued)


def _disproof(line: Heard, row: asyncpg.Record | None) -> str | None:
    if row is None:
        return "it is not in Postgres"
    if row["status"] not in _BOUGHT:
        return f"it is {row['status']}"
    for name in ("user_id", "sale_id", "reservation_id"):
        if row[name] != getattr(line, name):
            return f"its {name} is {row[name]}, not {getattr(line, name)}"
    if row["final_amount"] != line.amount:
        return f"its amount is {row['final_amount']}, not {line.amount}"
    if not row["was_confirmed"]:
        return f"its reservation is {row['reservation_status']} and never was confirmed"
    if row["reservation_status"] == "CONFIRMED" and row["status"] == "SUCCESS" and set(row["seats"]) != set(line.seats):
        return f"its seats are {', '.join(sorted(row['seats']))}, not {', '.join(sorted(line.seats))}"
    return None


def _disproof_of_order(line: Heard, row: asyncpg.Record | None) -> str | None:
    if row is None:
        return "it is not in Postgres"
    if row["status"] not in _BOUGHT:
        return f"it is {row['status']}"
    for name in ("user_id", "sale_id", "order_id"):
        if row[name] != getattr(line, name):
            return f"its {name} is {row[name]}, not {getattr(line, name)}"
    if row["final_amount"] != line.amount:
        return f"its amount is {row['final_amount']}, not {line.amount}"
    if not row["was_paid"]:
        return f"its order is {row['order_status']} and never was paid"
    if set(row["lines"]) != set(line.lines):
        return f"its lines are {', '.join(sorted(row['lines']))}, not {', '.join(sorted(line.lines))}"
    return None
