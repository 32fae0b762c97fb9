"""The audit of a small shop: true while all is well, and false for each way in which something can be wrong.

The shop has one sale of six seats: two sold to Ann, one held by Ben, one kept back, two free.
"""

from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from engine import cancellations, seat_cancellations
from engine.audit import Report, describe
from engine.stores.connections import Stores
from engine.stores.keys import SaleKeys
from loadtests.audit import audit
from loadtests.history import Heard, History
from tests.shop import open_shop

SALE = "5a1e" * 8
SCHEDULE = "5c4e" * 8
CONCERT = "c0" * 16
ANN, BEN = "a0" * 16, "b0" * 16
SOLD, HELD = "10" * 16, "20" * 16
PAYMENT = "9a" * 16
CHARGE = "ca" * 16
FENCE = 1_000_000_001
SEATS = [f"A-1-{number}" for number in range(1, 7)]

KEYS = SaleKeys(SALE)

World = tuple[asyncpg.Pool, Redis]
Corruption = Callable[[asyncpg.Pool, Redis], Coroutine[Any, Any, object]]


@pytest.fixture
async def shop(postgres: asyncpg.Pool, redis: Redis) -> World:
    await postgres.execute(
        f"""
        INSERT INTO users (user_id, subject, fingerprint) VALUES ('{ANN}', 'ann', ''), ('{BEN}', 'ben', '');
        INSERT INTO balances (user_id, amount, version) VALUES ('{ANN}', 300, 2), ('{BEN}', 0, 0);
        INSERT INTO balance_history (user_id, type, amount, balance_after, version, ref_type, ref_id, payment_id)
        VALUES ('{ANN}', 'CHARGE', 500, 500, 1, 'charge', '{CHARGE}', NULL),
          ('{ANN}', 'USE', 200, 300, 2, 'payment', '{PAYMENT}', '{PAYMENT}');
        INSERT INTO sales (sale_id, kind, name, epoch, store_state, room, serving, updated_at)
        VALUES ('{SALE}', 'seats', 'First night', 1, 'open', 'open', 2, now() - interval '1 hour');
        INSERT INTO concerts (concert_id, title, fingerprint) VALUES ('{CONCERT}', 'First night', '');
        INSERT INTO schedules (schedule_id, concert_id, sale_id, start_at, seats_total, seats_available, fingerprint)
        VALUES ('{SCHEDULE}', '{CONCERT}', '{SALE}', now(), 6, 3, '');
        INSERT INTO seats (sale_id, seat_no, section, row_name, number, category, price, blocked, sold)
        SELECT '{SALE}', 'A-1-' || number, 'A', '1', number, 'R', 100, number = 6, number <= 2
        FROM generate_series(1, 6) AS number;
        INSERT INTO reservations (reservation_id, sale_id, schedule_id, user_id, epoch, fence, queue_no, fingerprint,
          status, amount, expires_at, created_at, confirmed_at)
        VALUES ('{SOLD}', '{SALE}', '{SCHEDULE}', '{ANN}', 1, {FENCE}, 1, '', 'CONFIRMED', 200, now(), now(),
            now()),
          ('{HELD}', '{SALE}', '{SCHEDULE}', '{BEN}', 1, {FENCE + 1}, 2, '', 'PENDING', 100,
            date_trunc('second', now()) + interval '5 minutes', now(), NULL);
        INSERT INTO reservation_seats (reservation_id, seat_no, sale_id, price, status)
        VALUES ('{SOLD}', 'A-1-1', '{SALE}', 100, 'CLAIMED'), ('{SOLD}', 'A-1-2', '{SALE}', 100, 'CLAIMED'),
          ('{HELD}', 'A-1-3', '{SALE}', 100, 'HELD');
        INSERT INTO tickets (reservation_id, seat_no, sale_id, user_id)
        VALUES ('{SOLD}', 'A-1-1', '{SALE}', '{ANN}'), ('{SOLD}', 'A-1-2', '{SALE}', '{ANN}');
        INSERT INTO payments (payment_id, sale_id, reservation_id, user_id, epoch, fence, fingerprint, method, status,
          original_amount, final_amount, balance_amount, pay_deadline, paid_at)
        VALUES ('{PAYMENT}', '{SALE}', '{SOLD}', '{ANN}', 1, {FENCE}, '', 'BALANCE', 'SUCCESS', 200, 200, 200,
          now(), now());
        INSERT INTO queue_tokens (sale_id, queue_no, epoch, owner, status, created_at, admitted_at)
        VALUES ('{SALE}', 1, 1, '{ANN}', 'PROCESSED', now(), now()), ('{SALE}', 2, 1, '{BEN}', 'ACTIVE', now(), now()),
          ('{SALE}', 3, 1, 'v{ANN}', 'WAITING', now(), NULL);
        INSERT INTO stream_watermarks (sale_id, stream, epoch, n, entry_id)
        VALUES ('{SALE}', 'outbox', 1, 1, '1-0'), ('{SALE}', 'journal', 1, 6, '1-5');
        INSERT INTO applied_batches (sale_id, stream, epoch, first_n, last_n, count)
        VALUES ('{SALE}', 'outbox', 1, 1, 1, 1), ('{SALE}', 'journal', 1, 1, 4, 4), ('{SALE}', 'journal', 1, 5, 6, 2);
        """
    )
    expires_at_ms = await postgres.fetchval(
        "SELECT (extract(epoch FROM expires_at) * 1000)::bigint FROM reservations WHERE status = 'PENDING'"
    )
    terms = {"epoch": 1, "state": "open", "outbox_n": 1, "journal_n": 6, "serving": 2, "room": "open"}
    await fill(redis, KEYS.sale, terms)
    await fill(redis, KEYS.prices, dict.fromkeys(SEATS, 100))
    await fill(
        redis,
        KEYS.seats,
        {
            "A-1-1": f"SOLD {SOLD} {FENCE}",
            "A-1-2": f"SOLD {SOLD} {FENCE}",
            "A-1-3": f"HELD {HELD} {FENCE + 1}",
            "A-1-6": "BLOCKED - 0",
        },
    )
    await fill(
        redis,
        KEYS.holds,
        {
            SOLD: f"SOLD|{ANN}|{FENCE}|1||1|2|{PAYMENT}|3||1|200|A-1-1,A-1-2|100,100|||",
            HELD: held_record(expires_at_ms),
        },
    )
    await redis.zadd(KEYS.deadlines, {HELD: expires_at_ms})
    await fill(redis, KEYS.buyers, {ANN: "2 0 ", BEN: f"0 0 {HELD}"})
    await fill(redis, KEYS.tokens, {BEN: f"ACTIVE|2|1|{expires_at_ms}"})
    await redis.zadd(KEYS.waiting, {f"v{ANN}": 3})
    return postgres, redis


async def fill(redis: Any, key: str, fields: Mapping[str, object]) -> None:
    await redis.execute_command("HSET", key, *(part for field in fields.items() for part in field))


def held_record(expires_at_ms: int, *, fence: int = FENCE + 1, seats: str = "A-1-3") -> str:
    return f"HELD|{BEN}|{fence}|2||1|{expires_at_ms}||||0|100|{seats}|100|||"


CONFIRMATION = Heard(
    event="confirmed",
    sale_id=SALE,
    user_id=ANN,
    key="k2",
    reservation_id=SOLD,
    seats=("A-1-1", "A-1-2"),
    amount=200,
    payment_id=PAYMENT,
)


@pytest.fixture
def heard(tmp_path: Path) -> Path:
    """What Ann heard."""
    path = tmp_path / "history.jsonl"
    with History(path) as kept:
        kept.record(CONFIRMATION)
    return path


async def look(shop: World, heard: Path | None = None) -> Report:
    postgres, redis = shop
    return await audit(redis, postgres, history_path=heard, settle_s=0)


def verdicts(report: Report) -> dict[str, str]:
    return {check.invariant: check.verdict for check in report.checks}


async def test_a_seat_that_was_just_freed_for_a_waiting_list_is_no_difference(shop: World) -> None:
    postgres, redis = shop
    now_ms = await postgres.fetchval("SELECT (extract(epoch FROM now()) * 1000)::bigint")
    await fill(redis, KEYS.seats, {"A-1-5": "BLOCKED list 0"})
    await redis.zadd(KEYS.freed, {"A-1-5": now_ms})
    report = await audit(redis, postgres)
    assert report.verdict == "true", describe(report)


async def test_every_invariant_of_a_healthy_shop_is_true(shop: World, heard: Path) -> None:
    report = await look(shop, heard)
    assert report.verdict == "true", describe(report)
    assert list(verdicts(report)) == ["I1", "I2", "I3", "I4", "I5", "I6", "I7", "I9", "I13"]
    looked_at = {check.invariant: check.looked_at for check in report.checks}
    assert looked_at["I1"] == {"seats": 6, "variants": 0, "seats in Redis": 6}
    assert looked_at["I2"] == {"confirmations heard": 1}
    assert looked_at["I13"] == {"applied batches": 3, "applied entries": 7}


async def test_what_was_confirmed_and_never_collected_is_somebodys_all_the_same(shop: World, heard: Path) -> None:
    await run("UPDATE payments SET status = 'UNCOLLECTED'")(*shop)
    assert verdicts(await look(shop, heard))["I2"] == "true"


async def test_without_a_history_nothing_is_said_of_what_was_heard(shop: World) -> None:
    assert "I2" not in verdicts(await look(shop))


async def test_an_empty_shop_is_well(postgres: asyncpg.Pool, redis: Redis) -> None:
    assert (await audit(redis, postgres, settle_s=0)).verdict == "true"


def run(statement: str) -> Corruption:
    """Change Postgres; what forbids that is taken away first."""

    async def corrupt(postgres: asyncpg.Pool, _redis: Redis) -> None:
        await postgres.execute(
            """
            DROP INDEX reservation_seats_claim, payments_live;
            ALTER TABLE balance_history DROP CONSTRAINT balance_history_once,
              DROP CONSTRAINT balance_history_version;
            ALTER TABLE tickets DROP CONSTRAINT tickets_once,
              DROP CONSTRAINT tickets_reservation_id_seat_no_fkey;
            ALTER TABLE payments DROP CONSTRAINT payments_refunded;
            """
        )
        await postgres.execute(statement)

    return corrupt


def wait(*, status: str, user_id: str, reservation_id: str) -> Corruption:
    """Somebody waits for one seat, and has this reservation by it."""
    return run(
        f"""
        INSERT INTO waiting_list_entries (entry_id, sale_id, schedule_id, user_id, quantity, adjacent, hold_id,
          status, fingerprint)
        VALUES ('{STRANGER}', '{SALE}', '{SCHEDULE}', '{user_id}', 1, true, '{reservation_id}', '{status}', '');
        UPDATE reservations SET created_at = now() - interval '1 hour' WHERE reservation_id = '{reservation_id}'
        """
    )


def shelve(seat_no: str) -> Corruption:
    """A seat that was freed long ago."""

    async def corrupt(_postgres: asyncpg.Pool, redis: Redis) -> None:
        await fill(redis, KEYS.seats, {seat_no: "BLOCKED list 0"})
        await redis.zadd(KEYS.freed, {seat_no: 1})

    return corrupt


def put(key: str, name: str, value: str | None) -> Corruption:
    """Change or remove one field of a hash in Redis."""

    async def corrupt(_postgres: asyncpg.Pool, redis: Any) -> None:
        command = ("HDEL", key, name) if value is None else ("HSET", key, name, value)
        await redis.execute_command(*command)

    return corrupt


def rank(key: str, member: str, score: int | None) -> Corruption:
    """Change or remove one member of a sorted set in Redis."""

    async def corrupt(_postgres: asyncpg.Pool, redis: Redis) -> None:
        await (redis.zrem(key, member) if score is None else redis.zadd(key, {member: score}))

    return corrupt


STRANGER = "30" * 16

CORRUPTIONS: Mapping[str, tuple[set[str], Corruption, str]] = {
    "a seat is missing": (
        {"I1", "I9"},
        run("DELETE FROM seats WHERE seat_no = 'A-1-5'"),
        "says 6 seats, 3 available; it has 5 and 2",
    ),
    "seats_available was not kept": (
        {"I1"},
        run("UPDATE schedules SET seats_available = 4"),
        "says 6 seats, 4 available; it has 6 and 3",
    ),
    "a seat is claimed twice": (
        {"I1", "I4", "I9"},
        run(
            f"INSERT INTO reservation_seats VALUES ('{HELD}', 'A-1-1', '{SALE}', 100, 'CLAIMED');"
            f"UPDATE reservations SET status = 'CANCELLED', reason = 'ADMIN' WHERE reservation_id = '{HELD}'"
        ),
        f"seat A-1-1 is claimed by {SOLD}, {HELD}",
    ),
    "a sold seat lost its claim": (
        {"I1", "I2", "I3", "I4", "I9"},
        run("UPDATE reservation_seats SET status = 'ENDED' WHERE seat_no = 'A-1-2'"),
        "seat A-1-2 is sold and nobody claims it",
    ),
    "a claim was not marked as sold": (
        {"I1"},
        run("UPDATE seats SET sold = false WHERE seat_no = 'A-1-1'"),
        "seat A-1-1 is claimed and not sold",
    ),
    "a confirmed reservation claims nothing": (
        {"I1", "I2", "I3", "I4", "I9"},
        run("UPDATE reservation_seats SET status = 'ENDED' WHERE status = 'CLAIMED'"),
        f"reservation {SOLD} is CONFIRMED and claims 0 seats",
    ),
    "Redis knows a seat that does not exist": (
        {"I1", "I9"},
        put(KEYS.prices, "A-9-9", "100"),
        "seat A-9-9 exists in Redis only",
    ),
    "two live holds list one seat": (
        {"I1", "I9"},
        put(KEYS.holds, STRANGER, held_record(1).replace(BEN, ANN)),
        f"seat A-1-3 is in 2 live holds: {HELD}, {STRANGER}",
    ),
    "a seat is held by a hold that is not there": (
        {"I1"},
        put(KEYS.seats, "A-1-4", f"HELD {STRANGER} 7"),
        f"seat A-1-4 is HELD by hold {STRANGER}, which does not have it",
    ),
    "a hold has no deadline": (
        {"I1"},
        rank(KEYS.deadlines, HELD, None),
        f"hold {HELD} is HELD or has the deadline of one, and not both",
    ),
    "a seat is in no state": (
        {"I1"},
        put(KEYS.seats, "A-1-4", "LOST - 0"),
        "seat A-1-4 is in no known state: 'LOST - 0'",
    ),
    "a confirmed payment is gone": (
        {"I2", "I3"},
        run("DELETE FROM payments"),
        f"payment {PAYMENT} was heard as confirmed: it is not in Postgres",
    ),
    "a confirmed payment became something else": (
        {"I2", "I3"},
        run("UPDATE payments SET status = 'VOIDED'"),
        f"payment {PAYMENT} was heard as confirmed: it is VOIDED",
    ),
    "the seats confirmed are others": (
        {"I1", "I2", "I4", "I9"},
        run("UPDATE reservation_seats SET seat_no = 'A-1-4' WHERE seat_no = 'A-1-2' AND status = 'CLAIMED'"),
        "its seats are A-1-1, A-1-4, not A-1-1, A-1-2",
    ),
    "a reservation was charged twice": (
        {"I3"},
        run(
            f"""
            INSERT INTO payments (payment_id, sale_id, reservation_id, user_id, epoch, fence, fingerprint, method,
              status, original_amount, final_amount, balance_amount, pay_deadline, paid_at)
            SELECT '{STRANGER}', sale_id, reservation_id, user_id, epoch, fence, fingerprint, method,
              status, original_amount, final_amount, balance_amount, pay_deadline, paid_at
            FROM payments
            """
        ),
        f"hold {SOLD} has the payments {STRANGER}, {PAYMENT}",
    ),
    "a confirmed reservation was not charged": (
        {"I2", "I3", "I6"},
        run("UPDATE payments SET status = 'FAILED'; DELETE FROM balance_history WHERE type = 'USE'"),
        f"reservation {SOLD} of 200 is CONFIRMED, 0 was charged",
    ),
    "a charge is for what never was confirmed": (
        {"I3", "I9"},
        run(
            f"""
            INSERT INTO payments (payment_id, sale_id, reservation_id, user_id, epoch, fence, fingerprint, method,
              status, original_amount, final_amount, balance_amount, card_amount, pay_deadline, paid_at)
            VALUES ('{STRANGER}', '{SALE}', '{HELD}', '{BEN}', 1, 1, '', 'CARD', 'SUCCESS', 100, 100, 0, 100, now(),
              now());
            UPDATE reservations SET status = 'CANCELLED', reason = 'ADMIN' WHERE reservation_id = '{HELD}'
            """
        ),
        f"reservation {HELD} of 100 is CANCELLED, 100 was charged",
    ),
    "a reservation costs another sum than its seats": (
        {"I3"},
        run("UPDATE reservation_seats SET price = 90 WHERE seat_no = 'A-1-1'"),
        f"reservation {SOLD} of 200 is CONFIRMED, 200 was charged by 1 payments; its seats come to 190",
    ),
    "what costs nothing was confirmed without a payment": (
        {"I2", "I3"},
        run(
            """
            UPDATE reservations SET amount = 0 WHERE status = 'CONFIRMED';
            UPDATE reservation_seats SET price = 0 WHERE status = 'CLAIMED';
            DELETE FROM balance_history WHERE type = 'USE';
            UPDATE balances SET amount = 500, version = 1 WHERE amount = 300;
            DELETE FROM payments
            """
        ),
        f"reservation {SOLD} of 0 is CONFIRMED, 0 was charged by 0 payments",
    ),
    "somebody else paid": (
        {"I2", "I3"},
        run(f"UPDATE payments SET user_id = '{BEN}'"),
        f"payment {PAYMENT} is user {BEN}'s, and what it is for is not",
    ),
    "money was taken from somebody else": (
        {"I3"},
        run(
            f"""
            UPDATE balance_history SET user_id = '{BEN}', version = 2, balance_after = 300 WHERE type = 'USE';
            INSERT INTO balance_history (user_id, type, amount, balance_after, version, ref_type, ref_id)
            VALUES ('{BEN}', 'CHARGE', 500, 500, 1, 'charge', '{STRANGER}');
            UPDATE balances SET amount = 500, version = 1 WHERE user_id = '{ANN}';
            UPDATE balances SET amount = 300, version = 2 WHERE user_id = '{BEN}'
            """
        ),
        f"use of 200 by {PAYMENT} is user {BEN}'s, and what it is for is not",
    ),
    "money was taken for nothing": (
        {"I3"},
        run(
            f"""
            INSERT INTO balance_history (user_id, type, amount, balance_after, version, ref_type, ref_id)
            VALUES ('{ANN}', 'USE', 100, 200, 3, 'payment', '{STRANGER}');
            UPDATE balances SET amount = 200, version = 3 WHERE user_id = '{ANN}'
            """
        ),
        f"use of 100 by {STRANGER} is user {ANN}'s, and what it is for is not",
    ),
    "money was given back for nothing": (
        {"I3"},
        run(
            f"""
            INSERT INTO balance_history (user_id, type, amount, balance_after, version, ref_type, ref_id)
            VALUES ('{ANN}', 'REFUND', 100, 400, 3, 'refund', '{STRANGER}');
            UPDATE balances SET amount = 400, version = 3 WHERE user_id = '{ANN}'
            """
        ),
        f"refund of 100 by {STRANGER} is user {ANN}'s, and what it is for is not",
    ),
    "a capture is not in the history": (
        {"I3", "I6"},
        run("DELETE FROM balance_history WHERE type = 'USE'"),
        f"payment {PAYMENT} is SUCCESS: 200 captured, 0 used",
    ),
    "a card was never charged": (
        {"I3", "I6"},
        run(
            "DELETE FROM balance_history WHERE type = 'USE';"
            "UPDATE payments SET method = 'CARD', balance_amount = 0, card_amount = 200"
        ),
        f"payment {PAYMENT} is SUCCESS: of 200 by card 0 is taken; its capture is None, its void None",
    ),
    "a card was charged for what failed": (
        {"I3"},
        run(
            f"""
            INSERT INTO payments (payment_id, sale_id, reservation_id, user_id, epoch, fence, fingerprint, method,
              status, original_amount, final_amount, balance_amount, card_amount, captured_amount, pay_deadline)
            VALUES ('{STRANGER}', '{SALE}', '{HELD}', '{BEN}', 1, 1, '', 'CARD', 'FAILED', 100, 100, 0, 100, 100, now())
            """
        ),
        f"payment {STRANGER} is FAILED: of 100 by card 100 is taken; its capture is None, its void None",
    ),
    "a capture was never sent": (
        {"I3", "I6", "I7"},
        run(
            f"""
            DELETE FROM balance_history WHERE type = 'USE';
            UPDATE payments SET method = 'CARD', balance_amount = 0, card_amount = 200, captured_amount = 200;
            INSERT INTO gateway_operations (operation_id, payment_id, kind, amount, created_at)
            VALUES ('{STRANGER}', '{PAYMENT}', 'CAPTURE', 200, now() - interval '1 hour')
            """
        ),
        f"capture of payment {PAYMENT} should have ended",
    ),
    "a card was let go of what was kept": (
        {"I3"},
        run(
            f"""
            DELETE FROM balance_history WHERE type = 'USE';
            UPDATE balances SET amount = 500, version = 1 WHERE amount = 300;
            UPDATE payments SET method = 'CARD', balance_amount = 0, card_amount = 200;
            INSERT INTO gateway_operations (operation_id, payment_id, kind, amount, status, done_at)
            VALUES ('{STRANGER}', '{PAYMENT}', 'VOID', 200, 'DONE', now())
            """
        ),
        f"payment {PAYMENT} is SUCCESS: of 200 by card 0 is taken; its capture is None, its void DONE",
    ),
    "no gateway was told of a refund": (
        {"I3"},
        run(
            f"""
            DELETE FROM balance_history WHERE type = 'USE';
            UPDATE balances SET amount = 500, version = 1 WHERE amount = 300;
            UPDATE payments SET method = 'CARD', balance_amount = 0, card_amount = 200, captured_amount = 200,
              refunded_amount = 100, status = 'PARTIALLY_REFUNDED';
            INSERT INTO gateway_operations (operation_id, payment_id, kind, amount, status, done_at)
            VALUES ('{STRANGER}', '{PAYMENT}', 'CAPTURE', 200, 'DONE', now());
            INSERT INTO refunds (refund_id, payment_id, user_id, amount, refund_to, status, reason, done_at)
            VALUES ('{STRANGER}', '{PAYMENT}', '{ANN}', 100, 'CARD', 'DONE', 'USER', now())
            """
        ),
        f"refund {STRANGER} to a card is DONE, what its gateway was told is None",
    ),
    "a charge by card never reached the balance": (
        {"I3"},
        run(
            f"""
            INSERT INTO card_charges (charge_id, user_id, amount, status, payment_method_id, fingerprint, done_at)
            VALUES ('{STRANGER}', '{BEN}', 500, 'SUCCESS', 'pm_card_visa', '', now())
            """
        ),
        f"charge {STRANGER} of 500 is SUCCESS, the history says None",
    ),
    "a charge by card reached another's balance": (
        {"I3"},
        run(
            f"""
            INSERT INTO card_charges (charge_id, user_id, amount, status, payment_method_id, fingerprint, done_at)
            VALUES ('{CHARGE}', '{BEN}', 500, 'SUCCESS', 'pm_card_visa', '', now())
            """
        ),
        f"charge {CHARGE} of 500 is SUCCESS, the history says None",
    ),
    "more was refunded than captured": (
        {"I3"},
        run("UPDATE payments SET refunded_amount = 201"),
        "of 200 collected 201 are to go back, its refunds are 0",
    ),
    "money is on its way back and no refund says so": (
        {"I3"},
        run("UPDATE payments SET refunded_amount = 100, status = 'PARTIALLY_REFUNDED'"),
        "of 200 collected 100 are to go back, its refunds are 0",
    ),
    "a refund never reached the balance": (
        {"I3"},
        run(
            f"""
            UPDATE payments SET refunded_amount = 100, status = 'PARTIALLY_REFUNDED';
            INSERT INTO refunds (refund_id, payment_id, user_id, amount, refund_to, status, reason, done_at)
            VALUES ('{STRANGER}', '{PAYMENT}', '{ANN}', 100, 'BALANCE', 'DONE', 'USER', now())
            """
        ),
        "100 to the balance, whose history says 0",
    ),
    "a card got more back than it paid": (
        {"I3"},
        run(
            f"""
            UPDATE payments SET method = 'SPLIT', card_amount = 100, balance_amount = 100, captured_amount = 50,
              refunded_amount = 100, status = 'PARTIALLY_REFUNDED';
            UPDATE balance_history SET amount = 100, balance_after = 400 WHERE type = 'USE';
            UPDATE balances SET amount = 400 WHERE amount = 300;
            INSERT INTO refunds (refund_id, payment_id, user_id, amount, refund_to, status, reason, done_at)
            VALUES ('{STRANGER}', '{PAYMENT}', '{ANN}', 100, 'CARD', 'DONE', 'USER', now())
            """
        ),
        "100 went to a card that paid 50",
    ),
    "a seat that was given back is still claimed": (
        {"I3"},
        run(
            f"""
            INSERT INTO cancellations (cancellation_id, reservation_id, user_id, seat_nos, reason, refund_amount,
              kept_amount, refund_to, fingerprint)
            VALUES ('{STRANGER}', '{SOLD}', '{ANN}', '{{A-1-2}}', 'USER', 50, 50, 'SOURCE', '')
            """
        ),
        f"cancellation {STRANGER} of hold {SOLD} promised 50, its refunds are 0, and 1 of its seats are claimed",
    ),
    "a seat was given back twice": (
        {"I4", "I9"},
        run(
            f"""
            UPDATE reservation_seats SET status = 'ENDED' WHERE seat_no = 'A-1-2';
            UPDATE tickets SET status = 'CANCELLED' WHERE seat_no = 'A-1-2';
            UPDATE seats SET sold = false WHERE seat_no = 'A-1-2';
            UPDATE schedules SET seats_available = 4;
            UPDATE payments SET status = 'REFUNDED', refunded_amount = 200;
            INSERT INTO cancellations (cancellation_id, reservation_id, user_id, seat_nos, reason, refund_amount,
              kept_amount, refund_to, fingerprint)
            VALUES ('{STRANGER}', '{SOLD}', '{ANN}', '{{A-1-2}}', 'USER', 100, 0, 'SOURCE', ''),
              ('{CHARGE}', '{SOLD}', '{ANN}', '{{A-1-2}}', 'USER', 100, 0, 'SOURCE', '');
            INSERT INTO refunds (refund_id, payment_id, cancellation_id, user_id, amount, refund_to, status, reason,
              done_at)
            VALUES ('{STRANGER}', '{PAYMENT}', '{STRANGER}', '{ANN}', 100, 'BALANCE', 'DONE', 'USER', now()),
              ('{CHARGE}', '{PAYMENT}', '{CHARGE}', '{ANN}', 100, 'BALANCE', 'DONE', 'USER', now());
            INSERT INTO balance_history (user_id, type, amount, balance_after, version, ref_type, ref_id, payment_id)
            VALUES ('{ANN}', 'REFUND', 100, 400, 3, 'refund', '{STRANGER}', '{PAYMENT}'),
              ('{ANN}', 'REFUND', 100, 500, 4, 'refund', '{CHARGE}', '{PAYMENT}');
            UPDATE balances SET amount = 500, version = 4 WHERE user_id = '{ANN}'
            """
        ),
        f"reservation {SOLD} gave seat A-1-2 back 2 times",
    ),
    "more came back than a seat cost": (
        {"I3", "I9"},
        run(
            f"""
            UPDATE reservation_seats SET status = 'ENDED' WHERE seat_no = 'A-1-2';
            UPDATE tickets SET status = 'CANCELLED' WHERE seat_no = 'A-1-2';
            UPDATE seats SET sold = false WHERE seat_no = 'A-1-2';
            UPDATE schedules SET seats_available = 4;
            UPDATE payments SET status = 'PARTIALLY_REFUNDED', refunded_amount = 150;
            INSERT INTO cancellations (cancellation_id, reservation_id, user_id, seat_nos, reason, refund_amount,
              kept_amount, refund_to, fingerprint)
            VALUES ('{STRANGER}', '{SOLD}', '{ANN}', '{{A-1-2}}', 'USER', 150, 0, 'SOURCE', '');
            INSERT INTO refunds (refund_id, payment_id, cancellation_id, user_id, amount, refund_to, status, reason,
              done_at)
            VALUES ('{STRANGER}', '{PAYMENT}', '{STRANGER}', '{ANN}', 150, 'BALANCE', 'DONE', 'USER', now());
            INSERT INTO balance_history (user_id, type, amount, balance_after, version, ref_type, ref_id, payment_id)
            VALUES ('{ANN}', 'REFUND', 150, 450, 3, 'refund', '{STRANGER}', '{PAYMENT}');
            UPDATE balances SET amount = 450, version = 3 WHERE user_id = '{ANN}'
            """
        ),
        "it kept 0 of 100",
    ),
    "a ticket opens a door for a seat that was given back": (
        {"I1", "I2", "I3", "I4", "I9"},
        run("UPDATE reservation_seats SET status = 'ENDED' WHERE seat_no = 'A-1-2'"),
        "is VALID for seat A-1-2, which was given back",
    ),
    "one payment took money twice": (
        {"I3", "I4", "I6"},
        run(
            f"""
            INSERT INTO balance_history (user_id, type, amount, balance_after, version, ref_type, ref_id, payment_id)
            VALUES ('{ANN}', 'USE', 200, 100, 3, 'payment', '{PAYMENT}', '{PAYMENT}')
            """
        ),
        f"payment {PAYMENT} changed a balance 2 times by USE",
    ),
    "a seat has two tickets": (
        {"I4"},
        run(
            f"""
            INSERT INTO tickets (reservation_id, seat_no, sale_id, user_id)
            VALUES ('{SOLD}', 'A-1-1', '{SALE}', '{ANN}')
            """
        ),
        f"reservation {SOLD} has 2 tickets for seat A-1-1",
    ),
    "a sold seat has no ticket": (
        {"I4"},
        run("DELETE FROM tickets WHERE seat_no = 'A-1-2'"),
        f"reservation {SOLD} has 0 tickets for seat A-1-2",
    ),
    "somebody is in line twice": (
        {"I5"},
        run(
            f"""
            INSERT INTO queue_tokens (sale_id, queue_no, epoch, owner, status, created_at)
            VALUES ('{SALE}', 4, 1, 'v{ANN}', 'WAITING', now())
            """
        ),
        f"v{ANN} is in line with 3, 4",
    ),
    "somebody passed the line": (
        {"I5"},
        run("UPDATE queue_tokens SET admitted_at = now(), status = 'ACTIVE' WHERE queue_no = 3"),
        "number 3 was admitted, and serving is 2",
    ),
    "somebody was called beyond serving": (
        {"I5"},
        put(KEYS.tokens, ANN, "SKIPPED|9|0|1"),
        f"number 9 of {ANN} was called, and serving is 2",
    ),
    "somebody was called and still waits": (
        {"I5"},
        put(KEYS.tokens, f"v{ANN}", "ACTIVE|2|0|1"),
        f"v{ANN} was called and still stands in line",
    ),
    "too many were admitted in a minute": (
        {"I5"},
        run("UPDATE sales SET admitted_per_minute_max = 1"),
        "2 people were admitted within 60 s",
    ),
    "too many are active": (
        {"I5"},
        put(KEYS.tokens, ANN, f"ACTIVE|1|0|{10**13}"),
        "2 are active, 1 may be",
    ),
    "serving went back": (
        {"I5"},
        run("UPDATE sales SET serving = 3"),
        "serving went back from 3 to 2",
    ),
    "a balance is not the sum of its history": (
        {"I6"},
        run(f"UPDATE balances SET amount = 301 WHERE user_id = '{ANN}'"),
        f"user {ANN} has 301, history says 300",
    ),
    "funds are set aside for nothing": (
        {"I6"},
        run(f"UPDATE balances SET set_aside = 5 WHERE user_id = '{ANN}'"),
        "5 is set aside, live payments need 0",
    ),
    "a balance is of an older version than its history": (
        {"I6"},
        run(f"UPDATE balances SET version = 1 WHERE user_id = '{ANN}'"),
        "it is of version 1, the last line of 2",
    ),
    "a line of history does not follow": (
        {"I6"},
        run("UPDATE balance_history SET balance_after = 499 WHERE type = 'CHARGE'"),
        f"user {ANN}, version 1: 499 follows, not 500",
    ),
    "a reservation should have ended": (
        {"I7", "I9"},
        run("UPDATE reservations SET expires_at = now() - interval '1 hour' WHERE status = 'PENDING'"),
        f"reservation {HELD} should have ended",
    ),
    "a payment should have been settled": (
        {"I7"},
        run(
            f"""
            INSERT INTO payments (payment_id, sale_id, reservation_id, user_id, epoch, fence, fingerprint, method,
              status, original_amount, final_amount, balance_amount, pay_deadline, updated_at)
            VALUES ('{STRANGER}', '{SALE}', '{HELD}', '{BEN}', 1, 1, '', 'BALANCE', 'AUTHORISED', 0, 0, 0, now(),
              now() - interval '1 hour')
            """
        ),
        f"payment {STRANGER} should have ended",
    ),
    "what a card pays should have been confirmed": (
        {"I7"},
        run(
            f"""
            INSERT INTO payments (payment_id, sale_id, reservation_id, user_id, epoch, fence, fingerprint, method,
              status, original_amount, final_amount, balance_amount, card_amount, pay_deadline, updated_at)
            VALUES ('{STRANGER}', '{SALE}', '{HELD}', '{BEN}', 1, 1, '', 'CARD', 'AUTHORISED', 100, 100, 0, 100,
              now() + interval '1 hour', now() - interval '1 hour')
            """
        ),
        f"payment {STRANGER} should have ended",
    ),
    "seats were not given back": (
        {"I7"},
        run(
            f"""
            INSERT INTO restores (hold_id, sale_id, fence, token_goes_next, created_at)
            VALUES ('{SOLD}', '{SALE}', 1, false, now() - interval '1 hour')
            """
        ),
        f"restore {SOLD} should have ended",
    ),
    "an event that is off was not refunded": (
        {"I7"},
        run(
            f"""
            INSERT INTO schedule_cancellations (schedule_id, sale_id, total, fingerprint, updated_at)
            VALUES ('{SCHEDULE}', '{SALE}', 1, '', now() - interval '1 hour')
            """
        ),
        f"event that is off {SCHEDULE} should have ended",
    ),
    "a dead letter waits": (
        {"I7"},
        run(
            f"""
            INSERT INTO dead_letters (sale_id, stream, epoch, n, entry_id, kind, fields, error)
            VALUES ('{SALE}', 'outbox', 1, 1, '1-0', 'confirmed', '{{}}', 'no such seat')
            """
        ),
        "entry 1 of the outbox (confirmed) was not applied and waits for a rebuild: no such seat",
    ),
    "an offer is another's": (
        {"I4"},
        wait(status="OFFERED", user_id=ANN, reservation_id=HELD),
        f"entry {STRANGER} of a waiting list is OFFERED and waits for 1; what it was offered is PENDING, with 1",
    ),
    "an offer is of another size": (
        {"I4"},
        wait(status="TAKEN", user_id=ANN, reservation_id=SOLD),
        f"entry {STRANGER} of a waiting list is TAKEN and waits for 1; what it was offered is CONFIRMED, with 2",
    ),
    "nobody knows of what was taken": (
        {"I4"},
        wait(status="TAKEN", user_id=BEN, reservation_id=STRANGER),
        f"entry {STRANGER} of a waiting list is TAKEN and waits for 1; what it was offered is not there, with 0",
    ),
    "what is offered is said to have lapsed": (
        {"I4"},
        wait(status="LAPSED", user_id=BEN, reservation_id=HELD),
        f"entry {STRANGER} of a waiting list is LAPSED and waits for 1; what it was offered is PENDING, with 1",
    ),
    "nobody noted an offer": (
        {"I7"},
        wait(status="WAITING", user_id=BEN, reservation_id=HELD),
        f"entry of a waiting list {STRANGER} should have ended",
    ),
    "the waiting list does not know of its seat": (
        {"I1"},
        put(KEYS.seats, "A-1-5", "BLOCKED list 0"),
        "seat A-1-5 is kept for the waiting list, which does not know of it",
    ),
    "a freed seat is kept from everybody": (
        {"I7"},
        shelve("A-1-5"),
        "seat A-1-5 was freed for a waiting list, and neither offered nor published",
    ),
    "a lapsed hold was not swept": (
        {"I7", "I9"},
        rank(KEYS.deadlines, HELD, 1),
        f"the hold {HELD} lapsed and was not ended",
    ),
    "Redis sold what Postgres does not know": (
        {"I9"},
        put(KEYS.seats, "A-1-4", f"SOLD {STRANGER} 7"),
        f"the claim on seat A-1-4: Redis says {STRANGER} 7, Postgres says nothing",
    ),
    "Redis would sell again what is sold": (
        {"I1", "I9"},
        put(KEYS.seats, "A-1-1", None),
        f"the claim on seat A-1-1: Redis says nothing, Postgres says {SOLD} {FENCE}",
    ),
    "a blocked seat is free in Redis": (
        {"I9"},
        put(KEYS.seats, "A-1-6", None),
        "the block on seat A-1-6: Redis says nothing, Postgres says yes",
    ),
    "a price differs": (
        {"I9"},
        put(KEYS.prices, "A-1-5", "99"),
        "the price of seat A-1-5: Redis says 99, Postgres says 100",
    ),
    "a hold is another's in Postgres": (
        {"I9"},
        run(f"UPDATE reservations SET user_id = '{ANN}' WHERE reservation_id = '{HELD}'"),
        f"hold {HELD}: Redis says {BEN} {FENCE + 1} A-1-3, Postgres says {ANN} {FENCE + 1} A-1-3",
    ),
    "a buyer's seats are miscounted": (
        {"I9"},
        put(KEYS.buyers, ANN, "3 0 "),
        f"what was bought by {ANN}: Redis says 3, Postgres says 2",
    ),
    "a buyer's holds are miscounted": (
        {"I9"},
        put(KEYS.buyers, BEN, None),
        f"the holds counted for {BEN} are not those that live",
    ),
    "money that came late did not go back": (
        {"I2", "I3"},
        run(
            f"""
            UPDATE payments SET gateway_ref = 'pi_1', status = 'FAILED', reason = 'hold_ended', method = 'CARD',
              card_amount = 200, balance_amount = 0 WHERE payment_id = '{PAYMENT}';
            UPDATE balances SET amount = 500, version = 1 WHERE user_id = '{ANN}';
            DELETE FROM balance_history WHERE type = 'USE';
            UPDATE reservations SET amount = 0 WHERE reservation_id = '{SOLD}';
            INSERT INTO late_payments (gateway_ref, payment_id, sale_id, user_id, amount, new_hold_id,
              new_payment_id, status, reason, done_at)
            VALUES ('pi_1', '{PAYMENT}', '{SALE}', '{ANN}', 200, '{STRANGER}', '{STRANGER}', 'RETURNED', 'seat_taken',
              now())
            """
        ),
        "late money pi_1 is RETURNED (seat_taken)",
    ),
    "an applied range is missing": (
        {"I13"},
        run("DELETE FROM applied_batches WHERE first_n = 1 AND stream = 'journal'"),
        "journal, epoch 1: 5 to 6 was applied where 1 was next",
    ),
    "an entry was applied twice": (
        {"I13"},
        run(f"INSERT INTO applied_batches VALUES ('{SALE}', 'journal', 1, 6, 6, 1)"),
        "journal, epoch 1: 6 to 6 was applied where 7 was next",
    ),
    "a watermark strayed": (
        {"I13"},
        run("UPDATE stream_watermarks SET n = 7 WHERE stream = 'journal'"),
        "journal, epoch 1: the watermark is 7, and 6 was applied last",
    ),
    "Redis forgot an entry that was applied": (
        {"I13"},
        put(KEYS.sale, "outbox_n", "0"),
        "1 was applied of the outbox, whose head is 0",
    ),
}


@pytest.mark.parametrize("wrong", CORRUPTIONS)
async def test_it_is_seen_when(wrong: str, shop: World, heard: Path) -> None:
    postgres, redis = shop
    if wrong == "too many are active":
        await postgres.execute("UPDATE sales SET active_max = 1")
    broken, corrupt, finding = CORRUPTIONS[wrong]
    await corrupt(postgres, redis)
    report = await look(shop, heard)
    assert finding in describe(report), describe(report)
    assert {name for name, verdict in verdicts(report).items() if verdict == "false"} == broken, describe(report)
    assert report.verdict == "false"


async def test_what_a_card_never_paid_was_confirmed_all_the_same(shop: World, heard: Path) -> None:
    await run(
        f"""
        DELETE FROM balance_history WHERE type = 'USE';
        UPDATE balances SET amount = 500, version = 1 WHERE amount = 300;
        UPDATE payments SET method = 'CARD', balance_amount = 0, card_amount = 200, status = 'UNCOLLECTED';
        INSERT INTO gateway_operations (operation_id, payment_id, kind, amount, status, done_at)
        VALUES ('{STRANGER}', '{PAYMENT}', 'CAPTURE', 200, 'REFUSED', now())
        """
    )(*shop)
    report = await look(shop, heard)
    assert report.verdict == "true", describe(report)


@pytest.mark.parametrize(("due_in", "verdict"), [("5 minutes", "true"), ("-5 minutes", "false")])
async def test_a_refund_that_a_bank_thinks_about_is_on_its_way_while_it_is_asked_about(
    shop: World, heard: Path, due_in: str, verdict: str
) -> None:
    await run(
        f"""
        DELETE FROM balance_history WHERE type = 'USE';
        UPDATE balances SET amount = 500, version = 1 WHERE amount = 300;
        UPDATE payments SET method = 'CARD', balance_amount = 0, card_amount = 200, captured_amount = 200,
          refunded_amount = 100, status = 'PARTIALLY_REFUNDED';
        INSERT INTO refunds (refund_id, payment_id, user_id, amount, refund_to, status, reason)
        VALUES ('{STRANGER}', '{PAYMENT}', '{ANN}', 100, 'CARD', 'PENDING', 'USER');
        INSERT INTO gateway_operations (operation_id, payment_id, kind, amount, status, done_at)
        VALUES ('{CHARGE}', '{PAYMENT}', 'CAPTURE', 200, 'DONE', now());
        INSERT INTO gateway_operations (operation_id, payment_id, kind, refund_id, amount, answer_ref, created_at,
          due_at)
        VALUES ('{STRANGER}', '{PAYMENT}', 'REFUND', '{STRANGER}', 100, 're_1', now() - interval '1 day',
          now() + interval '{due_in}')
        """
    )(*shop)
    report = await look(shop, heard)
    assert verdicts(report)["I7"] == report.verdict == verdict, describe(report)


async def test_a_place_of_an_older_epoch_is_not_live_until_it_is_put_back(shop: World, heard: Path) -> None:
    await run(
        f"""
        INSERT INTO queue_tokens (sale_id, queue_no, epoch, owner, status, created_at)
        VALUES ('{SALE}', 4, 0, 'v{ANN}', 'WAITING', now())
        """
    )(*shop)
    assert (await look(shop, heard)).verdict == "true"


async def test_two_people_who_heard_one_seat_confirmed_are_seen(shop: World, heard: Path) -> None:
    with History(heard) as kept:
        kept.record(Heard(**{**_fields(CONFIRMATION), "reservation_id": HELD, "user_id": BEN}))
    assert f"seat A-1-1 was confirmed to both {SOLD} and {HELD}" in describe(await look(shop, heard))


async def test_a_seat_that_was_sold_twice_is_named_before_much_that_is_not_so(shop: World, heard: Path) -> None:
    fields = _fields(CONFIRMATION)
    with History(heard) as kept:
        for n in range(30):
            strange = {
                "reservation_id": f"{n:032x}",
                "payment_id": f"{n:032x}",
                "seats": (f"B-1-{n + 1}",),
                "key": f"{n}",
            }
            kept.record(Heard(**{**fields, **strange}))
        kept.record(Heard(**{**fields, "reservation_id": HELD, "user_id": BEN}))
    assert f"seat A-1-1 was confirmed to both {SOLD} and {HELD}" in describe(await look(shop, heard))


async def test_what_was_cancelled_in_part_or_whole_is_well(stores: Stores, tmp_path: Path) -> None:
    hall = await open_shop(stores)
    first, second = await hall.buy("A-1-1", "A-1-2"), await hall.buy("A-1-3")
    await hall.drain()
    path = tmp_path / "history.jsonl"
    with History(path) as kept:
        for request in (first, second):
            kept.record(
                Heard(
                    event="confirmed",
                    sale_id=hall.sale_id,
                    user_id=request.holding.user_id,
                    key=request.payment_id,
                    reservation_id=request.holding.hold_id,
                    seats=tuple(request.holding.lines),
                    amount=request.holding.amount,
                    payment_id=request.payment_id,
                )
            )
    for request, seat_nos in ((first, ["A-1-2"]), (second, [])):
        cancelled = await seat_cancellations.cancel(
            stores.gate,
            stores.postgres,
            hall.book,
            cancellation_id=request.payment_id,
            reservation_id=request.holding.hold_id,
            user_id=request.holding.user_id,
            seat_nos=seat_nos,
        )
        assert isinstance(cancelled, cancellations.Cancellation)
    await hall.buy("A-1-2", by="bob")
    await hall.drain()
    report = await audit(stores.redis, stores.postgres, history_path=path, settle_s=5)
    told = describe(report)
    # These people were born with their money.
    assert {name: verdict for name, verdict in verdicts(report).items() if name != "I6"} == dict.fromkeys(
        ("I1", "I2", "I3", "I4", "I5", "I7", "I9", "I13"), "true"
    ), told


async def test_a_key_with_two_effects_is_seen(shop: World, heard: Path) -> None:
    held = Heard(event="held", sale_id=SALE, user_id=ANN, key="k1", reservation_id=SOLD, seats=("A-1-1",), amount=1)
    with History(heard) as kept:
        kept.record(held)
        kept.record(Heard(**{**_fields(held), "reservation_id": STRANGER}))
    assert verdicts(await look(shop, heard))["I4"] == "false"


REDEMPTION = Heard(
    event="redeemed",
    sale_id=SALE,
    user_id="a door",
    key="k3",
    reservation_id="",
    seats=("A-1-1",),
    amount=0,
    ticket_no=1,
)
LET_IN = f"""
    INSERT INTO api_keys (api_key_id, key_hash, name, scopes) VALUES ('{BEN}', 'x', 'door', '{{tickets}}');
    UPDATE tickets SET status = 'REDEEMED', redeemed_at = now(), redemption_id = '{STRANGER}',
      redemption_fingerprint = '', redeemed_by = '{BEN}'
    WHERE ticket_no = 1
    """


async def test_whom_a_door_let_in_was_let_in(shop: World, heard: Path) -> None:
    await run(LET_IN)(*shop)
    with History(heard) as kept:
        kept.record(REDEMPTION)
        kept.record(REDEMPTION)  # the same key again was answered the same
    report = await look(shop, heard)
    assert report.verdict == "true", describe(report)
    looked_at = {check.invariant: check.looked_at for check in report.checks}
    assert looked_at["I2"] == {"confirmations heard": 1, "redemptions heard": 2}
    # One that was given back afterwards opened the door all the same.
    await shop[0].execute("UPDATE tickets SET status = 'CANCELLED' WHERE ticket_no = 1")
    assert verdicts(await look(shop, heard))["I2"] == "true"


@pytest.mark.parametrize(
    ("redemption", "finding"),
    [
        ({"ticket_no": 2}, "ticket 2 was heard as redeemed: it is VALID"),
        ({"ticket_no": 9}, "ticket 9 was heard as redeemed: it is not in Postgres"),
        ({"seats": ("A-1-2",)}, "ticket 1 was heard as redeemed for A-1-2"),
    ],
)
async def test_what_a_door_heard_and_the_book_does_not_say_is_seen(
    shop: World, heard: Path, redemption: dict[str, Any], finding: str
) -> None:
    await run(LET_IN)(*shop)
    with History(heard) as kept:
        kept.record(Heard(**_fields(REDEMPTION) | redemption))
    report = await look(shop, heard)
    assert verdicts(report)["I2"] == "false"
    assert finding in describe(report)


async def test_a_ticket_that_let_two_in_is_seen(shop: World, heard: Path) -> None:
    await run(LET_IN)(*shop)
    with History(heard) as kept:
        kept.record(REDEMPTION)
        kept.record(Heard(**_fields(REDEMPTION) | {"key": "k4"}))
    report = await look(shop, heard)
    assert verdicts(report)["I4"] == "false"
    assert "ticket 1 was redeemed by both key k3 and key k4" in describe(report)


def _fields(heard: Heard) -> dict[str, Any]:
    return {name: getattr(heard, name) for name in heard.__struct_fields__}


@pytest.mark.parametrize(
    ("moving", "reason"),
    [
        (put(KEYS.sale, "journal_n", "8"), "2 entries of its journal are not applied"),
        (run("UPDATE sales SET store_state = 'frozen'"), "it is frozen in Postgres"),
        (put(KEYS.sale, "state", "rebuilding"), "it is rebuilding in Redis, in epoch 1 of 1"),
        (put(KEYS.sale, "epoch", "0"), "it is open in Redis, in epoch 0 of 1"),
    ],
)
async def test_a_sale_that_is_not_at_rest_leaves_what_compares_both_stores_unknown(
    moving: Corruption, reason: str, shop: World, heard: Path
) -> None:
    await moving(*shop)
    report = await look(shop, heard)
    assert report.verdict == "unknown", describe(report)
    assert {name for name, verdict in verdicts(report).items() if verdict == "unknown"} == {"I1", "I5", "I9"}
    assert reason in describe(report)


async def test_a_sale_that_redis_lost_is_unknown(shop: World) -> None:
    await shop[1].flushall()
    report = await look(shop)
    assert (report.verdict, "it is not in Redis" in describe(report)) == ("unknown", True)


async def test_of_many_findings_some_are_named_and_all_are_counted(shop: World) -> None:
    postgres, _ = shop
    await postgres.execute(
        """
        INSERT INTO seats (sale_id, seat_no, section, row_name, number, category, price, sold)
        SELECT sale_id, 'B-1-' || number, 'B', '1', number, 'R', 100, true
        FROM sales, generate_series(1, 50) AS number
        """
    )
    report = await look(shop)
    [check] = [check for check in report.checks if check.invariant == "I1"]
    assert len(check.findings) == 20
    assert check.found == 1 + 50 + 50  # the count of the schedule, each seat sold to nobody, each unknown to Redis
    assert "… and 81 more" in describe(report)
