"""The audit: proves the invariants by reading Postgres, Redis and what clients heard, and names what breaks them.

Each check says how much it looked at, and is true, false, or unknown where nothing could be proved: a sale that does
not come to rest, or entries that nobody applies. The audit changes nothing.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import asyncpg
import msgspec

from engine import coupon_audit, hearsay, sale_audit, statistics
from engine.coupon_audit import Source
from engine.findings import Case, Check, Questions, Verdict, in_chunks
from engine.hearsay import Heard
from engine.sale_audit import Hall, shelved
from engine.stores import queries
from engine.stores.connections import RedisClient
from engine.stores.keys import SaleKeys

SQL = queries.load("audit")

SETTLE_S = 10.0
"""How long a sale may take to come to rest."""

GRACE_S = 30
"""How long something may take to be finished after its time, or after the faults stopped."""

GATHERED_MS = 10_000
"""How long a freed seat may wait for others that go with it."""


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
    halls = [await sale_audit.come_to_rest(redis, postgres, sale, until) for sale in sales]
    sources = [
        await coupon_audit.come_to_rest(redis, postgres, row["coupon_id"], until)
        for row in await SQL.list_sources.fetch(postgres)
    ]
    found = Questions(postgres)
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
        cases.append(await hearsay.believe(postgres, heard))
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


# The checks -----------------------------------------------------------------------------------------------------------


async def _count_seats(found: Questions, halls: Sequence[Hall]) -> Case:
    case = Case("I1", await found.count("seats", "variants"))
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
    running = copy.units_in_holds()
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
    for seat_no in sorted(shelved(copy) - copy.freed.keys()):
        yield f"seat {seat_no} is kept for the waiting list, which does not know of it"


async def _compare_charges(found: Questions) -> Case:
    case = Case(
        "I3", await found.count("payments", "late_payments", "refunds", "reservations", "orders", "user_coupons")
    )
    case.accuse_all(
        await found.ask("find_double_charges"),
        lambda row: f"hold {row['hold_id']} has the payments {', '.join(row['payment_ids'])}",
    )
    case.accuse_all(
        await found.ask("find_uneven_charges"),
        lambda row: (
            f"reservation {row['reservation_id']} of {row['amount']} is {row['status']}, {row['charged']} was charged "
            f"by {row['charges']} payments; its seats come to {row['price'] or 0}"
        ),
    )
    case.accuse_all(
        await found.ask("find_strangers_money"),
        lambda row: f"{row['what']} {row['id']} is user {row['user_id']}'s, and what it is for is not",
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
        await found.ask("find_untold_refunds"),
        lambda row: (
            f"refund {row['refund_id']} to a card is {row['status']}, what its gateway was told is {row['told']}"
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
            f"{row['refund_amount']}, its refunds are {row['refunds']}, and {row['claims']} of its seats are claimed; "
            f"it kept {row['kept_amount']} of {row['worth']}"
        ),
    )
    return case


async def _find_repeats(found: Questions, miscounted: Sequence[str], heard: Sequence[Heard]) -> Case:
    case = Case("I4", await found.count("balance_history", "tickets", "waiting_list_entries"))
    case.accuse_all(
        await found.ask("find_repeated_changes"),
        lambda row: f"{row['ref_type']} {row['ref_id']} changed a balance {row['times']} times by {row['type']}",
    )
    case.accuse_all(
        await found.ask("find_miscounted_tickets"),
        lambda row: f"reservation {row['reservation_id']} has {row['tickets']} tickets for seat {row['seat_no']}",
    )
    case.accuse_all(
        await found.ask("find_seats_given_back_twice"),
        lambda row: f"reservation {row['reservation_id']} gave seat {row['seat_no']} back {row['times']} times",
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


async def _judge_line(found: Questions, redis: RedisClient, halls: Sequence[Hall]) -> Case:
    case = Case("I5", await found.count("queue_tokens"))
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
    for chunk in in_chunks(owners, 1000):
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


async def _sum_balances(found: Questions) -> Case:
    case = Case("I6", await found.count("balances", "balance_history"))
    case.accuse_all(
        await found.ask("find_uneven_balances"),
        lambda row: (
            f"user {row['user_id']} has {row['amount']}, history says {row['history']} and last {row['last_after']}; "
            f"{row['set_aside']} is set aside, live payments need {row['legs']}; "
            f"it is of version {row['version']}, the last line of {row['last_version']}"
        ),
    )
    case.accuse_all(
        await found.ask("find_broken_history"),
        lambda row: (
            f"user {row['user_id']}, version {row['version']}: {row['balance_after']} follows, not {row['expected']}"
        ),
    )
    return case


async def _find_unfinished(found: Questions, halls: Sequence[Hall], grace_s: int) -> Case:
    case = Case("I7", await found.count("reservations", "orders", "payments", "restores"))
    case.accuse_all(
        await found.ask("find_unfinished", grace_s),
        lambda row: f"{row['what']} {row['id']} should have ended at {row['since']:%F %T}",
    )
    letters = await found.ask("find_dead_letters")
    case.accuse_all(
        letters,
        lambda row: (
            f"sale {row['sale_id']}: entry {row['n']} of the {row['stream']} ({row['kind']}) was not applied and waits "
            f"for {'the word on its payment' if row['is_in_doubt'] else 'a rebuild'}: {row['error']}"
        ),
    )
    case.lying.update(row["sale_id"] for row in letters if not row["is_in_doubt"])
    overdue_ms = await found.read_clock() - grace_s * 1000
    case.looked_at["holds in Redis"] = 0
    for hall in halls:
        case.looked_at["holds in Redis"] += len(hall.copy.holds)
        for what, waiting in (("hold", hall.copy.deadlines), ("payment of hold", hall.copy.paying)):
            for hold_id, deadline_ms in sorted(waiting.items()):
                if deadline_ms < overdue_ms:
                    case.accuse_copy(hall, f"the {what} {hold_id} lapsed and was not ended")
        for seat_no in sorted(shelved(hall.copy)):
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


def _compare_stores(halls: Sequence[Hall], sources: Sequence[Source]) -> Case:
    case = Case(
        "I9",
        {
            "sales": len(halls),
            "seats": sum(len(hall.books.seats) for hall in halls),
            "variants": sum(len(hall.books.variants) for hall in halls),
        },
    )
    for hall in halls:
        if hall.moving is None:
            for finding in sale_audit.differences(hall):
                case.accuse_copy(hall, finding)
    for source in sources:
        if source.moving is None:
            for finding in coupon_audit.differences(source):
                case.accuse_copy(source, finding)
    if sources:
        case.looked_at["coupons"] = sum(len(source.books.users) for source in sources)
    case.doubt((*halls, *sources))
    return case


async def _follow_streams(found: Questions, halls: Sequence[Hall]) -> Case:
    case = Case("I13", await found.count("applied_batches", "applied_entries"))
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
