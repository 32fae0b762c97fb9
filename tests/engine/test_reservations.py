"""Reservations: the journal's facts become rows, and Redis and the row together are what a buyer is told."""

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from engine import ids, reservations, seats
from engine.moments import LAST_ID, LATEST
from engine.reservations import Reservation
from engine.stores.connections import Stores
from engine.stores.outbox import BadEntry, Entry
from engine.stores.replies import SaleRebuilding
from tests.shop import PRICE, Shop, open_shop

HOLD_ID = "5a" * 16


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert of six seats whose sale is open."""
    return await open_shop(stores)


async def held(shop: Shop, hold_id: str = HOLD_ID, *, seat_nos: str = "A-1-1,A-1-2,A-1-3", **fields: str) -> Entry:
    """A fact of the journal: three seats for Ann."""
    prices = ",".join([str(PRICE)] * len(seat_nos.split(",")))
    named = {
        "hold_id": hold_id,
        "buyer_id": await shop.person("ann"),
        "fence": "1",
        "queue_no": "0",
        "fingerprint": "f" * 16,
        "seats": seat_nos,
        "prices": prices,
        "amount": str(PRICE * len(seat_nos.split(","))),
        "created_at_ms": "1900000000123",
        "expires_at_ms": "4000000000456",
    }
    return Entry("1-0", 1, 1, "0-0", "held", named | fields)


def fact(kind: str, hold_id: str = HOLD_ID, **fields: str) -> Entry:
    return Entry("2-0", 1, 2, "1-0", kind, {"hold_id": hold_id, "fence": "1", "at_ms": "1900000001000"} | fields)


def extended(expires_at_ms: int) -> Entry:
    return fact("extended", expires_at_ms=str(expires_at_ms))


def released(*seat_nos: str, whole: bool = False) -> Entry:
    return fact("released", seats=",".join(seat_nos), whole="1" if whole else "0")


async def record(shop: Shop, *entries: Entry) -> None:
    """Apply facts in one batch, whatever the stream says."""
    async with shop.stores.postgres.acquire() as connection, connection.transaction():
        await reservations.record(connection, await shop.sale(), entries)


async def row(shop: Shop, hold_id: str = HOLD_ID) -> dict[str, Any]:
    """A reservation's row with its seats, without what only says when it was written."""
    found = await shop.stores.postgres.fetchrow("SELECT * FROM reservations WHERE reservation_id = $1", hold_id)
    assert found is not None
    lines = await shop.stores.postgres.fetch(
        "SELECT seat_no, price, status FROM reservation_seats WHERE reservation_id = $1 ORDER BY 1", hold_id
    )
    passing = {"updated_at", "ended_at", "version", "is_pending"}
    return {name: value for name, value in found.items() if name not in passing} | {"lines": [tuple(x) for x in lines]}


async def let_time_pass(shop: Shop, ms: int = 3_600_000) -> None:
    """Let the sale's clock be later: its time never goes back."""
    now_ms = (await shop.find(await shop.hold("A-1-6", by="clock"))).now_ms
    await shop.stores.redis.execute_command("HSET", (await shop.sale()).keys.sale, "now_ms", str(now_ms + ms))


async def find(shop: Shop, hold_id: str, *, by: str = "ann") -> Reservation | SaleRebuilding | None:
    return await reservations.find(
        shop.stores.gate, shop.stores.postgres, shop.book, reservation_id=hold_id, user_id=await shop.person(by)
    )


# The journal ----------------------------------------------------------------------------------------------------------


async def test_a_hold_becomes_a_pending_row_with_its_seats_and_prices(shop: Shop) -> None:
    await record(shop, await held(shop, queue_no="17"))
    sale = await shop.sale()
    assert await row(shop) == {
        "reservation_id": HOLD_ID,
        "sale_id": shop.sale_id,
        "schedule_id": sale.schedule_id,
        "user_id": await shop.person("ann"),
        "epoch": 1,
        "fence": 1,
        "queue_no": 17,
        "fingerprint": "f" * 16,
        "status": "PENDING",
        "reason": None,
        "amount": 3 * PRICE,
        "expires_at": datetime(2096, 10, 2, 7, 6, 40, 456_000, tzinfo=UTC),
        "created_at": datetime(2030, 3, 17, 17, 46, 40, 123_000, tzinfo=UTC),
        "confirmed_at": None,
        "lines": [("A-1-1", PRICE, "HELD"), ("A-1-2", PRICE, "HELD"), ("A-1-3", PRICE, "HELD")],
    }


async def test_a_hold_without_a_place_in_line_has_none(shop: Shop) -> None:
    await record(shop, await held(shop))
    assert (await row(shop))["queue_no"] is None


@pytest.mark.parametrize(
    ("ending", "status", "reason"),
    [
        ([], "PENDING", None),
        ([released("A-1-1", "A-1-3", whole=True)], "CANCELLED", "USER"),
        ([fact("expired")], "CANCELLED", "EXPIRED"),
    ],
)
async def test_a_life_is_the_same_however_its_facts_fall_into_batches(
    stores: Stores, ending: list[Entry], status: str, reason: str | None
) -> None:
    shop = await open_shop(stores)
    life = [await held(shop), extended(4_100_000_000_000), released("A-1-2"), extended(4_200_000_000_000), *ending]
    lives = []
    for cuts in itertools.product([False, True], repeat=len(life) - 1):
        await stores.postgres.execute("TRUNCATE reservations CASCADE")
        batch: list[Entry] = []
        for entry, is_cut in zip(life, [*cuts, True], strict=True):
            batch.append(entry)
            if is_cut:
                await record(shop, *batch)
                batch = []
        lives.append(await row(shop))
    assert all(life == lives[0] for life in lives)
    line = "HELD" if status == "PENDING" else "ENDED"
    assert (lives[0]["status"], lives[0]["reason"], lives[0]["amount"]) == (status, reason, 2 * PRICE)
    assert lives[0]["expires_at"].timestamp() == 4_200_000_000
    assert lives[0]["lines"] == [("A-1-1", PRICE, line), ("A-1-2", PRICE, "ENDED"), ("A-1-3", PRICE, line)]


async def test_a_row_that_ended_is_never_revived(shop: Shop) -> None:
    await record(shop, await held(shop), fact("expired"))
    ended = await row(shop)
    await record(shop, await held(shop))
    await record(shop, extended(4_100_000_000_000), released("A-1-1"), released("A-1-1", "A-1-2", whole=True))
    assert await row(shop) == ended


async def test_a_row_that_a_payment_brought_first_is_not_written_twice(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1", "A-1-2"))
    before = await row(shop, request.holding.hold_id)
    await shop.drain()
    assert await row(shop, request.holding.hold_id) == before


async def test_what_was_bought_is_not_touched_by_the_journal_that_comes_after(shop: Shop) -> None:
    request = await shop.buy("A-1-1")
    await shop.drain()
    hold_id = request.holding.hold_id
    bought = await row(shop, hold_id)
    await record(shop, fact("expired", hold_id), fact("released", hold_id, seats="A-1-1", whole="1"))
    assert await row(shop, hold_id) == bought


async def test_facts_about_the_room_are_passed_over(shop: Shop) -> None:
    await record(shop, Entry("1-0", 1, 1, "0-0", "joined", {"queue_no": "1", "owner": "v", "at_ms": "1"}))
    assert await shop.stores.postgres.fetchval("SELECT count(*) FROM reservations") == 0


@pytest.mark.parametrize(
    "wrong",
    [{"hold_id": "x"}, {"buyer_id": "x"}, {"fence": "one"}, {"prices": "1,2"}, {"prices": "a,b,c"}, {"amount": ""}],
)
async def test_a_fact_that_cannot_be_read_says_so(shop: Shop, wrong: dict[str, str]) -> None:
    entry = await held(shop)
    with pytest.raises(BadEntry):
        await record(shop, Entry("1-0", 1, 1, "0-0", "held", entry.fields | wrong))


async def test_one_hold_that_postgres_refuses_does_not_stop_the_others(shop: Shop) -> None:
    """A buyer who is nobody: the entry is dead-lettered, and the sale goes on."""
    sale = await shop.sale()
    await shop.hold("A-1-1")
    nobody = await seats.hold(
        shop.stores.gate, sale, hold_id="0e" * 16, buyer_id="0f" * 16, fingerprint="", seat_nos=["A-1-2"]
    )
    assert isinstance(nobody, seats.Held)
    last = await shop.hold("A-1-3")
    await shop.drain()
    assert await shop.reservation(last) == ("PENDING", None)
    letters = await shop.stores.postgres.fetch("SELECT stream, kind FROM dead_letters")
    assert [tuple(letter) for letter in letters] == [("journal", "held")]
    assert (await shop.row())["store_state"] == "open"


# One reservation ------------------------------------------------------------------------------------------------------


def summary(found: Reservation | SaleRebuilding | None) -> tuple[str, str | None, Sequence[tuple[str, str]], int]:
    assert isinstance(found, Reservation)
    return found.status, found.reason, [(line.seat_no, line.status) for line in found.lines], found.amount


async def test_a_hold_is_found_before_it_has_a_row(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1", "A-1-2")
    found = await find(shop, hold_id)
    assert summary(found) == ("PENDING", None, [("A-1-1", "HELD"), ("A-1-2", "HELD")], 2 * PRICE)
    assert isinstance(found, Reservation)
    assert (found.schedule_id, found.payment_id) == ((await shop.sale()).schedule_id, None)
    assert (found.expires_at - found.created_at).total_seconds() == (await shop.sale()).hold_s
    await shop.drain()
    again = await find(shop, hold_id)
    assert isinstance(again, Reservation)
    assert again.version == found.version
    assert summary(again) == summary(found)


async def test_a_reservation_is_found_by_its_owner_alone(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    assert await find(shop, hold_id, by="bob") is None
    await shop.drain()
    assert await find(shop, hold_id, by="bob") is None
    assert await find(shop, ids.random_id()) is None


async def test_from_the_deadline_on_it_has_ended_sweep_or_not(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    await let_time_pass(shop)
    assert summary(await find(shop, hold_id)) == ("CANCELLED", "EXPIRED", [("A-1-1", "ENDED")], PRICE)


async def test_a_row_past_its_deadline_that_redis_forgot_has_ended(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    await shop.drain()
    await shop.stores.redis.delete((await shop.sale()).keys.holds)
    await shop.stores.postgres.execute("UPDATE reservations SET expires_at = now() - interval '1 second'")
    assert summary(await find(shop, hold_id)) == ("CANCELLED", "EXPIRED", [("A-1-1", "ENDED")], PRICE)


async def test_a_deadline_that_redis_has_put_off_counts_before_the_row_knows(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    await shop.drain()
    await shop.stores.postgres.execute("UPDATE reservations SET expires_at = now() - interval '1 second'")
    assert summary(await find(shop, hold_id))[0] == "PENDING"


async def test_a_payment_that_runs_is_named_and_keeps_it_pending(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    await let_time_pass(shop, 301_000)
    found = await find(shop, request.holding.hold_id)
    assert summary(found) == ("PENDING", None, [("A-1-1", "HELD")], PRICE)
    assert isinstance(found, Reservation)
    assert found.payment_id == request.payment_id


async def test_sold_without_the_row_is_pending(shop: Shop) -> None:
    request = await shop.buy("A-1-1")
    hold_id = request.holding.hold_id
    assert summary(await find(shop, hold_id))[0] == "PENDING"
    await shop.drain()
    found = await find(shop, hold_id)
    assert summary(found) == ("CONFIRMED", None, [("A-1-1", "CLAIMED")], PRICE)
    assert isinstance(found, Reservation)
    assert found.confirmed_at is not None
    assert found.payment_id == request.payment_id
    assert all(line.ticket_no for line in found.lines)


async def test_what_was_released_has_ended_also_after_redis_forgot_it(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    await shop.release(hold_id)
    assert summary(await find(shop, hold_id))[:2] == ("CANCELLED", "USER")
    await shop.drain()
    await shop.stores.redis.delete((await shop.sale()).keys.holds)
    assert summary(await find(shop, hold_id))[:2] == ("CANCELLED", "USER")


async def test_while_a_sale_is_rebuilt_its_rows_answer_and_nothing_is_said_to_be_missing(shop: Shop) -> None:
    known = await shop.hold("A-1-1")
    await shop.drain()
    unknown = await shop.hold("A-1-2")
    await shop.stores.redis.execute_command("HSET", (await shop.sale()).keys.sale, "state", "rebuilding")
    assert summary(await find(shop, known))[0] == "PENDING"
    assert isinstance(await find(shop, unknown), SaleRebuilding)


# Lists ----------------------------------------------------------------------------------------------------------------


async def test_my_reservations_come_newest_first_in_pages(shop: Shop) -> None:
    hold_ids = [await shop.hold(f"A-1-{number}") for number in range(1, 6)]
    await shop.hold("A-1-6", by="bob")
    await shop.drain()
    postgres, user_id = shop.stores.postgres, await shop.person("ann")
    # Three of one moment: then the id decides. A millisecond may have room for the other two as well.
    for day, of_one_moment in (
        ("2031-01-03", hold_ids[:3]),
        ("2031-01-01", hold_ids[3:4]),
        ("2031-01-02", hold_ids[4:]),
    ):
        await postgres.execute(
            "UPDATE reservations SET created_at = $1::text::timestamptz WHERE reservation_id = ANY ($2)",
            day,
            of_one_moment,
        )
    found: list[Reservation] = []
    while page := await reservations.list_mine(
        postgres, user_id, limit=2, **({"before": (found[-1].created_at, found[-1].reservation_id)} if found else {})
    ):
        found += page
    newest_first = sorted(hold_ids[:3], reverse=True) + hold_ids[:2:-1]
    assert [each.reservation_id for each in found] == newest_first


async def test_a_list_shows_what_has_lapsed_as_ended(shop: Shop) -> None:
    await shop.hold("A-1-1")
    paying = await shop.authorise(await shop.hold("A-1-2"))
    await shop.drain()
    await shop.stores.postgres.execute("UPDATE reservations SET expires_at = now() - interval '1 second'")
    listed = await reservations.list_mine(shop.stores.postgres, await shop.person("ann"))
    assert {(each.reservation_id == paying.holding.hold_id, each.status) for each in listed} == {
        (True, "PENDING"),
        (False, "CANCELLED"),
    }


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("find_reservation", (HOLD_ID, HOLD_ID)),
        ("list_reservations", (HOLD_ID, LATEST, LAST_ID, 20)),
    ],
)
async def test_a_reservation_finds_its_payment_by_an_index_among_a_hundred_thousand(
    shop: Shop, query: str, asked: tuple[object, ...]
) -> None:
    async with shop.stores.postgres.acquire() as connection, connection.transaction():
        await connection.execute(
            """
            SET LOCAL session_replication_role = replica;  -- nobody checks whom these rows refer to
            INSERT INTO payments (payment_id, sale_id, reservation_id, user_id, epoch, fence, fingerprint, method,
              status, original_amount, final_amount, balance_amount, pay_deadline, paid_at)
            SELECT gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 1, 1, '', 'BALANCE',
              CASE WHEN number % 4 = 0 THEN 'FAILED' ELSE 'SUCCESS' END, 1, 1, 1, now(), now()
            FROM generate_series(1, 100000) AS number;
            ANALYZE payments
            """
        )
        text = getattr(reservations.SQL, query).text
        plan = "\n".join([row[0] for row in await connection.fetch(f"EXPLAIN {text}", *asked)])
        assert "Seq Scan on payments" not in plan, plan
        assert plan.count("using payments_live") == 2
        assert plan.count("using payments_ended") == 1
