"""The audit: proves the invariants by reading Postgres, Redis and what clients heard, and names what breaks them.

Each check says how much it looked at, and is true, false, or unknown where nothing could be proved: a sale that does
not come to rest, or entries that nobody applies. The audit changes nothing.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import asyncpg
import msgspec

from engine import coupon_audit, statistics
from engine.coupon_audit import Source
from engine.stores import queries
from engine.stores.connections import RedisClient
from engine.stores.keys import SaleKeys

SQL = queries.load("audit")

FINDINGS_MAX = 20
"""How many findings a check spells out; it counts all of them."""

SETTLE_S = 10.0
"""How long a sale may take to come to rest."""

GRACE_S = 30
"""How long something may take to be finished after its time, or after the faults stopped."""

GATHERED_MS = 10_000
"""How long a freed seat may wait for others that go with it."""

TITLES: Mapping[str, str] = {
    "I1": "Every seat and every unit is counted once, and a seat has at most one live claim",
    "I2": "Everything that a client heard confirmed is in Postgres",
    "I3": "What was confirmed was charged once, and nothing else was",
    "I4": "One operation, one effect",
    "I5": "The line is kept: places, rate and room",
    "I6": "Every balance is the sum of its history",
    "I7": "Nothing is left half-done",
    "I9": "At rest, Redis says what Postgres says",
    "I13": "Every entry was applied once, in order",
}

Verdict = Literal["true", "false", "unknown"]
Rows = Sequence[asyncpg.Record]


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


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One invariant: whether it holds, what was looked at, what breaks it, what kept it from being proved."""

    invariant: str
    title: str
    verdict: Verdict
    looked_at: dict[str, int]
    found: int
    findings: list[str]
    unknown: list[str]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Every check that applies."""

    verdict: Verdict
    sales: int
    checks: list[Check]
    to_rebuild: list[str]
    """Sales whose copy in Redis is wrong or closed: what an operator may have written anew."""


async def audit(
    redis: RedisClient,
    postgres: asyncpg.Pool,
    *,
    heard: Sequence[Heard] | None = None,
    settle_s: float = SETTLE_S,
    grace_s: int = GRACE_S,
) -> Report:
    """Check every invariant; I2 only where clients kept what they heard."""
    sales = await SQL.list_sales.fetch(postgres)
    until = asyncio.get_running_loop().time() + settle_s
    halls = [await _come_to_rest(redis, postgres, sale, until) for sale in sales]
    sources = [
        await coupon_audit.come_to_rest(redis, postgres, row["coupon_id"], until)
        for row in await SQL.list_sources.fetch(postgres)
    ]
    found = _Questions(postgres)
    cases = [
        await _count_seats(found, halls),
        await _compare_charges(found),
        await _find_repeats(found, await statistics.check(postgres), heard or []),
        await _judge_line(found, redis, halls),
        await _sum_balances(found),
        await _find_unfinished(found, halls, grace_s),
        _compare_stores(halls, sources),
        await _follow_streams(found, halls),
    ]
    if heard is not None:
        cases.append(await _believe(postgres, heard))
    checks = sorted((case.judge() for case in cases), key=lambda check: int(check.invariant[1:]))
    closed = {hall.sale_id for hall in halls if hall.closed} | {each.sale_id for each in sources if each.closed}
    to_rebuild = closed.union(*(case.lying for case in cases))
    return Report(
        verdict=_worst(check.verdict for check in checks),
        sales=len(sales),
        checks=checks,
        to_rebuild=sorted(to_rebuild),
    )


def describe(report: Report) -> str:
    """The report as lines of text."""
    words: Mapping[Verdict, str] = {"true": "true   ", "false": "FALSE  ", "unknown": "unknown"}
    lines = []
    for check in report.checks:
        looked_at = ", ".join(f"{count:,} {what}" for what, count in check.looked_at.items())
        lines.append(f"{check.invariant:<4}{words[check.verdict]}  {check.title} ({looked_at})")
        lines += [f"     - {finding}" for finding in check.findings]
        if check.found > len(check.findings):
            lines.append(f"     - … and {check.found - len(check.findings):,} more")
        lines += [f"     ? {reason}" for reason in check.unknown]
    return "\n".join(lines)


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    seen = set(verdicts)
    return "false" if "false" in seen else "unknown" if "unknown" in seen else "true"


@dataclass
class _Case:
    """An invariant while it is being judged."""

    invariant: str
    looked_at: dict[str, int]
    found: int = 0
    findings: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    lying: set[str] = field(default_factory=set)

    def accuse(self, finding: str) -> None:
        self.found += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)

    def accuse_copy(self, hall: "Hall | Source", finding: str) -> None:
        """Accuse the copy of a sale in Redis."""
        self.lying.add(hall.sale_id)
        self.accuse(f"sale {hall.sale_id}: {finding}")

    def accuse_all(self, rows: Rows, say: Callable[[asyncpg.Record], str], *, lying: bool = False) -> None:
        """Accuse each row, and with `lying` its sale's copy; a query answers with some, and in each with the total."""
        self.lying.update(row["sale_id"] for row in rows if lying)
        self.findings += [say(row) for row in rows[: FINDINGS_MAX - len(self.findings)]]
        self.found += rows[0]["total"] if rows else 0

    def doubt(self, halls: Iterable["Hall | Source"]) -> None:
        """Leave the case open for each sale that did not come to rest."""
        self.unknown += [f"sale {hall.sale_id}: {hall.moving}" for hall in halls if hall.moving]

    def judge(self) -> Check:
        return Check(
            invariant=self.invariant,
            title=TITLES[self.invariant],
            verdict="false" if self.found else "unknown" if self.unknown else "true",
            looked_at=self.looked_at,
            found=self.found,
            findings=self.findings,
            unknown=self.unknown,
        )


class _Questions:
    """The questions of `sql/audit.sql`, each asked for as many rows as a check spells out."""

    def __init__(self, postgres: asyncpg.Pool) -> None:
        self._postgres = postgres
        self._counts: asyncpg.Record | None = None

    async def count(self, *names: str) -> dict[str, int]:
        """How many records of these kinds there are."""
        if self._counts is None:
            self._counts = await SQL.count_records.fetchrow(self._postgres)
        assert self._counts is not None  # noqa: S101 - a SELECT without FROM has one row
        return {name.replace("_", " "): self._counts[name] for name in names}

    async def ask(self, name: str, *arguments: object) -> Rows:
        return await getattr(SQL, name).fetch(self._postgres, FINDINGS_MAX, *arguments)  # type: ignore[no-any-return]

    async def read(self, name: str) -> Rows:
        return await getattr(SQL, name).fetch(self._postgres)  # type: ignore[no-any-return]

    async def read_clock(self) -> int:
        now_ms: int = await SQL.read_clock.fetchval(self._postgres)
        return now_ms


# A sale at rest -------------------------------------------------------------------------------------------------------


class Hold(msgspec.Struct, frozen=True):
    """A hold's record in Redis, as far as it is compared."""

    state: str
    buyer_id: str
    fence: int
    expires_at_ms: int
    seats: frozenset[str]

    @classmethod
    def parse(cls, record: str) -> "Hold":
        """Read a record; its fields are those of `lua/shared/holds.lua`."""
        parts = record.split("|")
        return cls(parts[0], parts[1], int(parts[2]), int(parts[6]), _set_of(parts[12]))


class Called(msgspec.Struct, frozen=True):
    """A token that was called, as in `lua/shared/room.lua`."""

    status: str
    queue_no: int
    admitted_at_ms: int

    @classmethod
    def parse(cls, record: str) -> "Called":
        """Read a record."""
        status, queue_no, _entered, admitted_at_ms = record.split("|")
        return cls(status, int(queue_no), int(admitted_at_ms))


@dataclass(frozen=True)
class Copy:
    """What Redis has of a sale."""

    terms: dict[str, str]
    prices: dict[str, str]
    seats: dict[str, str]
    holds: dict[str, Hold]
    deadlines: dict[str, int]
    paying: dict[str, int]
    freed: dict[str, int]
    buyers: dict[str, str]
    tokens: dict[str, Called]
    stock: dict[str, int]
    stock_freed: dict[str, int]

    def seats_in(self, *states: str) -> dict[str, tuple[str, str, int]]:
        """Each seat in one of these states, with its state, hold and fence."""
        parted = ((seat_no, value.split(" ")) for seat_no, value in self.seats.items())
        return {seat_no: (state, hold_id, int(fence)) for seat_no, (state, hold_id, fence) in parted if state in states}

    def holds_in(self, *states: str) -> dict[str, Hold]:
        """Each hold in one of these states."""
        return {hold_id: hold for hold_id, hold in self.holds.items() if hold.state in states}


@dataclass(frozen=True)
class Books:
    """What Postgres has of a sale, read in one transaction."""

    epoch: int
    store_state: str
    serving: int
    product_changes: int
    applied: dict[str, int]
    seats: Rows
    variants: Rows
    holds: Rows
    buyers: Rows


@dataclass(frozen=True)
class Hall:
    """One sale as both stores tell it; `moving` says why the two cannot be compared, `closed` why nothing is sold."""

    sale: asyncpg.Record
    copy: Copy
    books: Books
    closed: str | None
    moving: str | None

    @property
    def sale_id(self) -> str:
        """Whose hall it is."""
        return str(self.sale["sale_id"])


async def _come_to_rest(redis: RedisClient, postgres: asyncpg.Pool, sale: asyncpg.Record, until: float) -> Hall:
    """Read a sale until both stores stand still and agree, or the time is up.

    Redis is read before and after Postgres. Where the two readings are equal and every entry was applied, the stores
    were compared at one moment; what they still differ in may be on its way, and is looked at again.
    """
    keys = SaleKeys(sale["sale_id"])
    while True:
        before = await _read_copy(redis, keys)
        books = await _read_books(postgres, sale["sale_id"])
        after = await _read_copy(redis, keys)
        closed = _why_closed(after, books)
        hall = Hall(sale, after, books, closed, closed or _why_moving(before, after, books))
        if hall.moving is None and not any(_differences(hall)):
            return hall
        if asyncio.get_running_loop().time() >= until:
            return hall
        await asyncio.sleep(0.1)


def _why_closed(copy: Copy, books: Books) -> str | None:
    if books.store_state != "open":
        return f"it is {books.store_state} in Postgres"
    if not copy.terms:
        return "it is not in Redis"
    if copy.terms["epoch"] != str(books.epoch) or copy.terms["state"] != "open":
        return f"it is {copy.terms['state']} in Redis, in epoch {copy.terms['epoch']} of {books.epoch}"
    return None


def _why_moving(before: Copy, after: Copy, books: Books) -> str | None:
    for stream in ("outbox", "journal"):
        behind = int(after.terms.get(f"{stream}_n", "0")) - books.applied.get(stream, 0)
        if behind > 0:
            return f"{behind:,} entries of its {stream} are not applied: is a worker running?"
    untold = books.product_changes - int(after.terms.get("product_changes", "0"))
    if untold > 0:
        return f"{untold:,} changes of its products were not told: is a worker running?"
    return "it keeps changing" if before != after else None


async def _read_copy(redis: RedisClient, keys: SaleKeys) -> Copy:
    read_hash: Callable[[str], Any] = redis.hgetall
    terms, prices, seats, holds, buyers, tokens, stock, stock_freed = [
        {name.decode(): value.decode() for name, value in pairs.items()}
        for pairs in await asyncio.gather(
            *map(read_hash, (keys.sale, keys.prices, keys.seats, keys.holds, keys.buyers, keys.tokens)),
            *map(read_hash, (keys.stock, keys.stock_freed)),
        )
    ]
    deadlines, paying, freed = [
        {member.decode(): int(score) for member, score in pairs}
        for pairs in await asyncio.gather(
            *(redis.zrange(key, 0, -1, withscores=True) for key in (keys.deadlines, keys.paying, keys.freed))
        )
    ]
    return Copy(
        terms=terms,
        prices=prices,
        seats=seats,
        holds={hold_id: Hold.parse(record) for hold_id, record in holds.items()},
        deadlines=deadlines,
        paying=paying,
        freed=freed,
        buyers=buyers,
        tokens={owner: Called.parse(record) for owner, record in tokens.items()},
        stock={variant_id: int(units) for variant_id, units in stock.items()},
        stock_freed={variant_id: int(units) for variant_id, units in stock_freed.items()},
    )


async def _read_books(postgres: asyncpg.Pool, sale_id: str) -> Books:
    async with postgres.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        progress = await SQL.find_progress.fetch(connection, sale_id)
        return Books(
            epoch=progress[0]["epoch"],
            store_state=progress[0]["store_state"],
            serving=progress[0]["serving"],
            product_changes=progress[0]["product_changes"],
            applied={row["stream"]: row["n"] for row in progress if row["watermark_epoch"] == row["epoch"]},
            seats=await SQL.list_sale_seats.fetch(connection, sale_id),
            variants=await SQL.list_sale_variants.fetch(connection, sale_id),
            holds=await SQL.list_sale_holds.fetch(connection, sale_id),
            buyers=await SQL.count_sale_buyers.fetch(connection, sale_id),
        )


def _set_of(listed: str) -> frozenset[str]:
    return frozenset(filter(None, listed.split(",")))


# The checks -----------------------------------------------------------------------------------------------------------


async def _count_seats(found: _Questions, halls: Sequence[Hall]) -> _Case:
    case = _Case("I1", await found.count("seats", "variants"))
    case.accuse_all(
        await found.ask("find_miscounted_schedules"),
        lambda row: (
            f"schedule {row['schedule_id']} says {row['seats_total']} seats, {row['seats_available']} available; "
            f"it has {row['seats']} and {row['available']}"
        ),
    )
    case.accuse_all(
        await found.ask("find_miscounted_variants"),
        lambda row: (
            f"sale {row['sale_id']}: of {row['initial_quantity']} units of variant {row['variant_id']} "
            f"{row['quantity']} are left and {row['bought']} are bought"
        ),
    )
    case.accuse_all(
        await found.ask("find_seats_claimed_twice"),
        lambda row: f"{_seat(row)} is claimed by {', '.join(row['reservation_ids'])}",
    )
    case.accuse_all(
        await found.ask("find_seats_sold_unclaimed"),
        lambda row: f"{_seat(row)} is {'sold and nobody claims it' if row['sold'] else 'claimed and not sold'}",
    )
    case.accuse_all(
        await found.ask("find_unfounded_claims"),
        lambda row: f"reservation {row['reservation_id']} is {row['status']} and claims {row['claims']} seats",
    )
    case.accuse_all(
        await found.ask("find_miscounted_coupons"),
        lambda row: (
            f"source {row['sale_id']} had {row['initial_quantity']} coupons: {row['quantity']} are left, "
            f"{row['issued']} are users'"
        ),
    )
    case.looked_at["seats in Redis"] = 0
    for hall in halls:
        if hall.moving is None:
            case.looked_at["seats in Redis"] += len(hall.copy.prices) if hall.sale["kind"] == "seats" else 0
            for finding in _miscounts(hall):
                case.accuse_copy(hall, finding)
    case.doubt(halls)
    return case


def _miscounts(hall: Hall) -> Iterator[str]:
    """What does not add up within Redis: holds and their deadlines, and what they hold."""
    for state, waiting in (("HELD", hall.copy.deadlines), ("PAYING", hall.copy.paying)):
        for hold_id in sorted(hall.copy.holds_in(state).keys() ^ waiting.keys()):
            yield f"hold {hold_id} is {state} or has the deadline of one, and not both"
    yield from _miscounted_units(hall) if hall.sale["kind"] == "stock" else _miscounted_seats(hall)


def _miscounted_units(hall: Hall) -> Iterator[str]:
    """Variants of which left, freed, held, being paid and bought is not all that there ever was."""
    copy = hall.copy
    running: Counter[str] = Counter()
    for hold in copy.holds_in("HELD", "PAYING").values():
        for line in hold.seats:
            variant_id, _, quantity = line.rpartition(":")
            running[variant_id] += int(quantity)
    known = {row["variant_id"]: row for row in hall.books.variants}
    for variant_id in sorted(known.keys() ^ copy.prices.keys()):
        yield f"variant {variant_id} exists in {'Postgres' if variant_id in known else 'Redis'} only"
    for variant_id, row in sorted(known.items()):
        parts = (
            copy.stock.get(variant_id, 0),
            copy.stock_freed.get(variant_id, 0),
            running[variant_id],
            row["bought"],
        )
        if min(parts) < 0 or sum(parts) != row["initial_quantity"]:
            left, freed, in_holds, bought = parts
            yield (
                f"of {row['initial_quantity']} units of variant {variant_id} {left} are left, {freed} are the waiting "
                f"list's, {in_holds} are in holds and {bought} are bought"
            )


def _miscounted_seats(hall: Hall) -> Iterator[str]:
    """Seats that do not stand under the one live hold that lists them."""
    copy = hall.copy
    listed = {row["seat_no"] for row in hall.books.seats}
    for seat_no in sorted(listed ^ copy.prices.keys()):
        yield f"seat {seat_no} exists in {'Postgres' if seat_no in listed else 'Redis'} only"
    for seat_no in sorted(copy.seats.keys() - copy.prices.keys()):
        yield f"seat {seat_no} is {copy.seats[seat_no]!r} and does not exist"
    known = copy.seats_in("HELD", "PAYING", "SOLD", "BLOCKED")
    for seat_no in sorted(copy.seats.keys() - known.keys()):
        yield f"seat {seat_no} is in no known state: {copy.seats[seat_no]!r}"
    holders: defaultdict[str, list[str]] = defaultdict(list)
    for hold_id, hold in sorted(copy.holds_in("HELD", "PAYING", "SOLD").items()):
        for seat_no in sorted(hold.seats):
            holders[seat_no].append(hold_id)
            if known.get(seat_no) != (hold.state, hold_id, hold.fence):
                yield (
                    f"hold {hold_id} is {hold.state} with fence {hold.fence} and lists {seat_no}, "
                    f"which is {copy.seats.get(seat_no, 'FREE')!r}"
                )
    for seat_no, hold_ids in sorted(holders.items()):
        if len(hold_ids) > 1:
            yield f"seat {seat_no} is in {len(hold_ids)} live holds: {', '.join(hold_ids)}"
    for seat_no, (state, hold_id, _) in sorted(known.items()):
        # The record of what was sold is forgotten after the repeat window; the seat keeps its hold.
        if state in ("HELD", "PAYING") and hold_id not in holders[seat_no]:
            yield f"seat {seat_no} is {state} by hold {hold_id}, which does not have it"
    for seat_no in sorted(_shelved(copy) - copy.freed.keys()):
        yield f"seat {seat_no} is kept for the waiting list, which does not know of it"


async def _believe(postgres: asyncpg.Pool, heard: Sequence[Heard]) -> _Case:
    told = [line for line in heard if line.event == "confirmed"]
    case = _Case("I2", {"confirmations heard": len(told)})
    confirmed = [line for line in told if line.order_id is None]
    owners: dict[tuple[str, str], str] = {}
    for chunk in _in_chunks(confirmed, 1000):
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
                case.accuse(f"payment {line.payment_id} was heard as confirmed: {complaint}")
    await _believe_orders(postgres, case, [line for line in told if line.order_id is not None])
    await _believe_doors(postgres, case, [line for line in heard if line.event == "redeemed"])
    await _believe_issues(postgres, case, [line for line in heard if line.event == "issued"])
    return case


async def _believe_orders(postgres: asyncpg.Pool, case: _Case, bought: Sequence[Heard]) -> None:
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
    for chunk in _in_chunks(bought, 1000):
        payment_ids = [line.payment_id for line in chunk]
        rows = {row["payment_id"]: row for row in await SQL.find_heard_orders.fetch(postgres, payment_ids)}
        for line in chunk:
            if complaint := _disproof_of_order(line, rows.get(line.payment_id or "")):
                case.accuse(f"payment {line.payment_id} was heard as confirmed: {complaint}")
    if bought:
        case.looked_at["of goods"] = len(bought)


async def _believe_doors(postgres: asyncpg.Pool, case: _Case, redeemed: Sequence[Heard]) -> None:
    """Hold the book to what doors were told: one that let somebody in did, though the ticket was given back since."""
    for chunk in _in_chunks(redeemed, 1000):
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


async def _believe_issues(postgres: asyncpg.Pool, case: _Case, issued: Sequence[Heard]) -> None:
    """Hold the book to what users were told of coupons: each is a row of theirs."""
    for chunk in _in_chunks(issued, 1000):
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
    if row["status"] not in ("SUCCESS", "PARTIALLY_REFUNDED", "REFUNDED"):
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
    if row["status"] not in ("SUCCESS", "PARTIALLY_REFUNDED", "REFUNDED"):
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


async def _compare_charges(found: _Questions) -> _Case:
    case = _Case(
        "I3", await found.count("payments", "late_payments", "refunds", "reservations", "orders", "user_coupons")
    )
    case.accuse_all(
        await found.ask("find_double_charges"),
        lambda row: f"hold {row['hold_id']} has the payments {', '.join(row['payment_ids'])}",
    )
    case.accuse_all(
        await found.ask("find_uneven_charges"),
        lambda row: (
            f"reservation {row['reservation_id']} of {row['amount']} is {row['status']}, {row['charged']} was charged"
        ),
    )
    case.accuse_all(
        await found.ask("find_uneven_orders"),
        lambda row: (
            f"order {row['order_id']} of {row['total_amount']} is {row['status']}: its lines come to {row['price']}, "
            f"{row['charged'] or 0} was charged, of {row['bought']} units {row['returned']} were given back"
        ),
    )
    case.accuse_all(
        await found.ask("find_uneven_lines"),
        lambda row: (
            f"order {row['order_id']}: of variant {row['variant_id']} {row['sold']} were sold and "
            f"{row['refunded_quantity']} refunded, {row['cancelled']} were cancelled; its buyer got {row['items']} "
            f"and returned {row['returned']}"
        ),
    )
    case.accuse_all(
        await found.ask("find_uneven_captures"),
        lambda row: f"payment {row['payment_id']} is {row['status']}: {row['captured']} captured, {row['used']} used",
    )
    case.accuse_all(
        await found.ask("find_uneven_cards"),
        lambda row: (
            f"payment {row['payment_id']} is {row['status']}: of {row['card_amount']} by card "
            f"{row['captured_amount']} is taken; its capture is {row['capture']}, its void {row['void']}"
        ),
    )
    case.accuse_all(
        await found.ask("find_uneven_late_payments"),
        lambda row: (
            f"late money {row['gateway_ref']} is {row['status']} ({row['reason']}): payment {row['payment_id']} is "
            f"{row['ended_status']}, the new one {row['new_status']}, the void {row['void']}"
        ),
    )
    case.accuse_all(
        await found.ask("find_uneven_card_charges"),
        lambda row: f"charge {row['charge_id']} of {row['amount']} is {row['status']}, the history says {row['added']}",
    )
    case.accuse_all(
        await found.ask("find_uneven_refunds"),
        lambda row: (
            f"payment {row['payment_id']} is {row['status']}: of {row['collected']} collected "
            f"{row['refunded_amount']} are to go back, its refunds are {row['refunds']}: "
            f"{row['to_card']} went to a card that paid {row['captured_amount']}, "
            f"{row['to_balance']} to the balance, whose history says {row['history']}"
        ),
    )
    case.accuse_all(
        await found.ask("find_misused_coupons"),
        lambda row: (
            f"coupon {row['user_coupon_id']} is {row['coupon_status']}: {row['running']} payments that run name it, "
            f"{row['bought']} that bought something, {row['strangers']} of other people"
        ),
    )
    case.accuse_all(
        await found.ask("find_uneven_discounts"),
        lambda row: (
            f"payment {row['payment_id']} has a discount of {row['discount_amount']}, its seats of {row['shared']}"
        ),
    )
    case.accuse_all(
        await found.ask("find_uneven_cancellations"),
        lambda row: (
            f"cancellation {row['cancellation_id']} of hold {row['hold_id']} promised "
            f"{row['refund_amount']}, its refunds are {row['refunds']}, and {row['claims']} of its seats are claimed"
        ),
    )
    return case


async def _find_repeats(found: _Questions, miscounted: Sequence[str], heard: Sequence[Heard]) -> _Case:
    case = _Case("I4", await found.count("balance_history", "tickets", "waiting_list_entries"))
    case.accuse_all(
        await found.ask("find_repeated_changes"),
        lambda row: f"{row['ref_type']} {row['ref_id']} changed a balance {row['times']} times by {row['type']}",
    )
    case.accuse_all(
        await found.ask("find_miscounted_tickets"),
        lambda row: f"reservation {row['reservation_id']} has {row['tickets']} tickets for seat {row['seat_no']}",
    )
    case.accuse_all(
        await found.ask("find_tickets_without_a_seat"),
        lambda row: f"ticket {row['ticket_no']} is {row['status']} for seat {row['seat_no']}, which was given back",
    )
    case.accuse_all(
        await found.ask("find_strayed_offers"),
        lambda row: (
            f"entry {row['entry_id']} of a waiting list is {row['status']} and waits for {row['quantity']}; what it "
            f"was offered is {row['hold_status'] or 'not there'}, with {row['count'] or 0}"
        ),
    )
    for finding in miscounted:
        case.accuse(f"statistics: {finding}")
    effects: dict[tuple[str, str, str], str] = {}
    doors: dict[int | None, tuple[str, str]] = {}
    for line in heard:
        if line.event == "redeemed":
            let_in = doors.setdefault(line.ticket_no, (line.user_id, line.key))
            if let_in != (line.user_id, line.key):
                case.accuse(f"ticket {line.ticket_no} was redeemed by both key {let_in[1]} and key {line.key}")
        effect = {
            "held": line.order_id or line.reservation_id,
            "redeemed": str(line.ticket_no),
            "issued": line.user_coupon_id or "",
        }.get(line.event, line.payment_id or "")
        known = effects.setdefault((line.event, line.user_id, line.key), effect)
        if known != effect:
            case.accuse(f"key {line.key} of user {line.user_id} made both {known} and {effect}")
    if heard:
        case.looked_at["keys heard"] = len(effects)
    return case


async def _judge_line(found: _Questions, redis: RedisClient, halls: Sequence[Hall]) -> _Case:
    case = _Case("I5", await found.count("queue_tokens"))
    case.accuse_all(
        await found.ask("find_owners_in_line_twice"),
        lambda row: f"sale {row['sale_id']}: {row['owner']} is in line with {', '.join(map(str, row['queue_nos']))}",
        lying=True,
    )
    case.accuse_all(
        await found.ask("find_hurried_minutes"),
        lambda row: (
            f"sale {row['sale_id']}: {row['admitted']} people were admitted within 60 s up to {row['admitted_at']}, "
            f"{row['admitted_per_minute_max']} may be"
        ),
    )
    highest = {(row["sale_id"], row["epoch"]): row["queue_no"] for row in await found.read("list_highest_admitted")}
    case.looked_at["called tokens"] = 0
    for hall in halls:
        if hall.moving is None:
            case.looked_at["called tokens"] += len(hall.copy.tokens)
            waiting = await _find_waiting(redis, SaleKeys(hall.sale_id), list(hall.copy.tokens))
            for finding in _misplaced(hall, highest.get((hall.sale_id, hall.books.epoch), 0), waiting):
                case.accuse_copy(hall, finding)
    case.doubt(halls)
    return case


async def _find_waiting(redis: RedisClient, keys: SaleKeys, owners: Sequence[str]) -> set[str]:
    """Which of these owners stand in the line."""
    waiting: set[str] = set()
    for chunk in _in_chunks(owners, 1000):
        scores = await redis.zmscore(keys.waiting, list(chunk))
        waiting.update(owner for owner, score in zip(chunk, scores, strict=True) if score is not None)
    return waiting


def _misplaced(hall: Hall, highest: int, waiting: set[str]) -> Iterator[str]:
    serving = int(hall.copy.terms.get("serving", "0"))
    if hall.books.serving > serving:
        yield f"serving went back from {hall.books.serving} to {serving}"
    if highest > serving:
        yield f"number {highest} was admitted, and serving is {serving}"
    for owner, token in sorted(hall.copy.tokens.items()):
        if token.queue_no > serving:
            yield f"number {token.queue_no} of {owner} was called, and serving is {serving}"
    for owner in sorted(waiting):
        yield f"{owner} was called and still stands in line"
    admitted = [token.admitted_at_ms for token in hall.copy.tokens.values() if token.status == "ACTIVE"]
    # A cap that was lowered lets those stay who are in, and nobody more until enough have left.
    if len(admitted) > hall.sale["active_max"] and max(admitted) > hall.sale["updated_at_ms"] + 2000:
        yield f"{len(admitted)} are active, {hall.sale['active_max']} may be"


async def _sum_balances(found: _Questions) -> _Case:
    case = _Case("I6", await found.count("balances", "balance_history"))
    case.accuse_all(
        await found.ask("find_uneven_balances"),
        lambda row: (
            f"user {row['user_id']} has {row['amount']}, history says {row['history']} and last {row['last_after']}; "
            f"{row['set_aside']} is set aside, live payments need {row['legs']}"
        ),
    )
    case.accuse_all(
        await found.ask("find_broken_history"),
        lambda row: (
            f"user {row['user_id']}, version {row['version']}: {row['balance_after']} follows, not {row['expected']}"
        ),
    )
    return case


async def _find_unfinished(found: _Questions, halls: Sequence[Hall], grace_s: int) -> _Case:
    case = _Case("I7", await found.count("reservations", "orders", "payments", "restores"))
    case.accuse_all(
        await found.ask("find_unfinished", grace_s),
        lambda row: f"{row['what']} {row['id']} should have ended at {row['since']:%F %T}",
    )
    case.accuse_all(
        await found.ask("find_dead_letters"),
        lambda row: (
            f"sale {row['sale_id']}: entry {row['n']} of the {row['stream']} ({row['kind']}) waits for an operator: "
            f"{row['error']}"
        ),
    )
    overdue_ms = await found.read_clock() - grace_s * 1000
    case.looked_at["holds in Redis"] = 0
    for hall in halls:
        case.looked_at["holds in Redis"] += len(hall.copy.holds)
        for what, waiting in (("hold", hall.copy.deadlines), ("payment of hold", hall.copy.paying)):
            for hold_id, deadline_ms in sorted(waiting.items()):
                if deadline_ms < overdue_ms:
                    case.accuse_copy(hall, f"the {what} {hold_id} lapsed and was not ended")
        for seat_no in sorted(_shelved(hall.copy)):
            if hall.copy.freed.get(seat_no, overdue_ms) < overdue_ms - GATHERED_MS:
                case.accuse_copy(
                    hall, f"seat {seat_no} was freed for a waiting list, and neither offered nor published"
                )
        for variant_id in sorted(hall.copy.stock_freed):
            is_on_sale = not hall.copy.prices[variant_id].startswith("-")
            if is_on_sale and hall.copy.freed.get(variant_id, overdue_ms) < overdue_ms - GATHERED_MS:
                case.accuse_copy(
                    hall,
                    f"units of variant {variant_id} wait for a waiting list, neither offered nor published",
                )
    return case


def _shelved(copy: Copy) -> set[str]:
    """Seats that were freed for a waiting list, and not given on yet: Postgres knows nothing of them."""
    return {seat_no for seat_no, (_, holder, _) in copy.seats_in("BLOCKED").items() if holder == "list"}


def _compare_stores(halls: Sequence[Hall], sources: Sequence[Source]) -> _Case:
    case = _Case(
        "I9",
        {
            "sales": len(halls),
            "seats": sum(len(hall.books.seats) for hall in halls),
            "variants": sum(len(hall.books.variants) for hall in halls),
        },
    )
    for hall in halls:
        if hall.moving is None:
            for finding in _differences(hall):
                case.accuse_copy(hall, finding)
    for source in sources:
        if source.moving is None:
            for finding in coupon_audit.differences(source):
                case.accuse_copy(source, finding)
    if sources:
        case.looked_at["coupons"] = sum(len(source.books.users) for source in sources)
    case.doubt((*halls, *sources))
    return case


def _differences(hall: Hall) -> Iterator[str]:
    """What the two stores tell differently of a sale at rest."""
    copy, books = hall.copy, hall.books
    yield from _compare(
        "the price of seat" if hall.sale["kind"] == "seats" else "the price of variant",
        {name: record.partition("|")[0] for name, record in copy.prices.items()},
        {row["seat_no"]: str(row["price"]) for row in books.seats}
        | {row["variant_id"]: f"{'' if row['on_sale'] else '-'}{row['price']}" for row in books.variants},
    )
    yield from _compare(
        "the claim on seat",
        {seat_no: (hold_id, fence) for seat_no, (_, hold_id, fence) in copy.seats_in("SOLD").items()},
        {row["seat_no"]: (row["reservation_id"], row["fence"]) for row in books.seats if row["reservation_id"]},
    )
    yield from _compare(
        "the block on seat",
        dict.fromkeys(copy.seats_in("BLOCKED").keys() - _shelved(copy), True),
        {row["seat_no"]: True for row in books.seats if row["blocked"]},
    )
    live = copy.holds_in("HELD", "PAYING")
    yield from _compare(
        "hold",
        {hold_id: (hold.buyer_id, hold.fence, sorted(hold.seats)) for hold_id, hold in live.items()},
        {row["hold_id"]: (row["user_id"], row["fence"], sorted(row["seats"])) for row in books.holds},
    )
    yield from _compare(
        "the deadline of hold",
        copy.deadlines,
        {row["hold_id"]: row["expires_at_ms"] for row in books.holds if row["hold_id"] in copy.deadlines},
    )
    bought = {buyer_id: int(record.split(" ")[0]) for buyer_id, record in copy.buyers.items()}
    yield from _compare(
        "what was bought by",
        {buyer_id: count for buyer_id, count in bought.items() if count},
        {row["user_id"]: row["bought"] for row in books.buyers},
    )
    holding: defaultdict[str, set[str]] = defaultdict(set)
    for hold_id, hold in live.items():
        holding[hold.buyer_id].add(hold_id)
    counted = {buyer_id: set(_set_of(record.split(" ")[2])) for buyer_id, record in copy.buyers.items()}
    for buyer_id in sorted(holding.keys() | counted.keys()):
        if holding.get(buyer_id, set()) != counted.get(buyer_id, set()):
            yield f"the holds counted for {buyer_id} are not those that live"


def _compare(what: str, in_redis: Mapping[str, object], in_postgres: Mapping[str, object]) -> Iterator[str]:
    for name in sorted(in_redis.keys() | in_postgres.keys()):
        here, there = in_redis.get(name), in_postgres.get(name)
        if here != there:
            yield f"{what} {name}: Redis says {_words(here)}, Postgres says {_words(there)}"


def _words(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list | tuple):
        return " ".join(_words(each) for each in value)
    return "yes" if value is True else str(value)


async def _follow_streams(found: _Questions, halls: Sequence[Hall]) -> _Case:
    case = _Case("I13", await found.count("applied_batches", "applied_entries"))
    case.accuse_all(
        await found.ask("find_broken_ranges"),
        lambda row: f"{_stream(row)}: {row['first_n']} to {row['last_n']} was applied where {row['expected']} was next",
    )
    case.accuse_all(
        await found.ask("find_strayed_watermarks"),
        lambda row: f"{_stream(row)}: the watermark is {row['n']}, and {row['last_n']} was applied last",
        lying=True,
    )
    for hall in halls:
        if hall.moving is None:
            for stream, n in hall.books.applied.items():
                head = int(hall.copy.terms.get(f"{stream}_n", "0"))
                if head != n:
                    case.accuse_copy(hall, f"{n} was applied of the {stream}, whose head is {head}")
    return case


def _seat(row: asyncpg.Record) -> str:
    return f"sale {row['sale_id']}: seat {row['seat_no']}"


def _stream(row: asyncpg.Record) -> str:
    return f"sale {row['sale_id']}, {row['stream']}, epoch {row['epoch']}"


def _in_chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
