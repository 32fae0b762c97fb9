"""Who waits is offered what was freed, whole, in order of joining, and the public has the rest."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from engine import catalogue, ids, offers, rebuild, sales, seat_cancellations, seat_waiting_lists, seats, waiting_lists
from engine.cancellations import Cancellation
from engine.refusals import IdempotencyKeyReused, LimitReached, NotFound, SaleClosed
from engine.seat_waiting_lists import NeverFits
from engine.seats import OfferUnknown, PaymentRunning, SaleNotOpen
from engine.shelf import Wish
from engine.stores.connections import Stores
from engine.waiting_lists import Entry, Served
from tests.shop import PRICE, START_AT, Shop, open_shop


@dataclass
class Line:
    """A sale of six seats that are all held, and those who wait for them."""

    shop: Shop
    hold_ids: dict[str, str]

    @property
    def redis(self) -> Any:
        """The store, behind everybody's back."""
        return self.shop.stores.redis

    async def join(self, name: str, key: str = "", **wish: Any) -> Any:
        sale = await self.shop.sale()
        return await seat_waiting_lists.join(
            self.shop.stores,
            self.shop.book,
            sale,
            entry_id=ids.derive("entry", name, key),
            user_id=await self.shop.person(name),
            wish=Wish(**{"quantity": 1} | wish),
        )

    async def joined(self, name: str, **wish: Any) -> Entry:
        entry = await self.join(name, **wish)
        assert isinstance(entry, Entry), entry
        return entry

    async def free(self, *seat_nos: str) -> None:
        for seat_no in seat_nos:
            await self.shop.release(self.hold_ids[seat_no])

    async def serve(self) -> Served:
        return await seat_waiting_lists.serve(self.shop.stores, await self.shop.sale())

    async def follow(self) -> None:
        """The journal reaches Postgres, and what became of offers is noted."""
        await self.shop.drain()
        await waiting_lists.follow(self.shop.stores.postgres)

    async def statuses(self) -> dict[str, str]:
        """Status by name."""
        rows = await self.shop.rows("SELECT user_id, status FROM waiting_list_entries ORDER BY entry_no")
        names = {user_id: name for name, user_id in self.shop.people.items()}
        return {names[user_id]: status for user_id, status in rows}

    async def offer_of(self, entry: Entry) -> seats.Hold:
        return await self.shop.find(entry.hold_id)

    async def age_shelf(self) -> None:
        """Let what is on the shelf have been there for long enough."""
        keys, redis = (await self.shop.sale()).keys, self.redis
        for seat_no, score in await redis.zrange(keys.freed, 0, -1, withscores=True):
            await redis.zadd(keys.freed, {seat_no: score - waiting_lists.GATHER_MS})

    async def shelf(self) -> list[str]:
        keys = (await self.shop.sale()).keys
        return sorted([seat_no.decode() for seat_no in await self.redis.zrange(keys.freed, 0, -1)])


@pytest.fixture
async def line(stores_any: Stores) -> AsyncIterator[Line]:
    shop = await open_shop(stores_any)
    hold_ids = {f"A-1-{at}": await shop.hold(f"A-1-{at}", by="holder") for at in range(1, 7)}
    await shop.drain()
    line = Line(shop, hold_ids)
    yield line
    await shop.drain()
    await shop.check()


# Joining --------------------------------------------------------------------------------------------------------------


async def test_who_joins_is_behind_those_who_wait(line: Line) -> None:
    first, second = await line.joined("ann"), await line.joined("ben", quantity=2)
    assert (first.status, first.ahead, first.repeated) == ("WAITING", 0, False)
    assert (second.status, second.ahead) == ("WAITING", 1)
    again = await line.joined("ben", quantity=2)
    assert (again.entry_id, again.ahead, again.repeated) == (second.entry_id, 1, True)
    assert [entry.entry_id for entry in await waiting_lists.list_mine(line.shop.stores.postgres, first.user_id)] == [
        first.entry_id
    ]
    assert await line.shop.term("waiting_list") == "1"


async def test_the_same_id_for_another_wish_is_refused(line: Line) -> None:
    await line.joined("ann")
    assert await line.join("ann", quantity=2) == IdempotencyKeyReused()
    assert await line.shop.rows("SELECT quantity FROM waiting_list_entries") == [(1,)]


@pytest.mark.parametrize(
    ("wish", "answer"),
    [
        ({"quantity": 7}, NeverFits(6)),
        ({"quantity": 7, "adjacent": False}, NeverFits(6)),
        ({"price_max": PRICE - 1}, NeverFits(0)),
        ({"accessible": 1, "quantity": 7}, NeverFits(6)),
        ({"category": "VIP", "section": "B"}, OfferUnknown(("category VIP", "section B"))),
    ],
)
async def test_what_the_hall_does_not_have_nobody_waits_for(line: Line, wish: dict[str, Any], answer: object) -> None:
    assert await line.join("ann", **wish) == answer
    assert await line.shop.rows("SELECT entry_id FROM waiting_list_entries") == []
    assert await line.shop.term("waiting_list") == "0"


async def test_nobody_waits_before_a_sale_or_after_it(line: Line) -> None:
    postgres = line.shop.stores.postgres
    await postgres.execute("UPDATE sales SET opens_at = now() + interval '1 hour'")
    assert isinstance(await line.join("ann"), SaleNotOpen)
    await postgres.execute("UPDATE sales SET opens_at = NULL, closes_at = now()")
    assert await line.join("ann") == SaleClosed()
    await postgres.execute("UPDATE sales SET closes_at = NULL")
    await postgres.execute("UPDATE schedules SET start_at = now()")
    assert await line.join("ann") == SaleClosed()
    assert await line.shop.rows("SELECT entry_id FROM waiting_list_entries") == []


async def test_one_waits_a_few_times_and_for_no_more_than_one_may_have(line: Line) -> None:
    for key in range(waiting_lists.ENTRIES_MAX):
        assert isinstance(await line.join("ann", key=str(key)), Entry)
    assert await line.join("ann", key="more") == LimitReached(limit=5, have=5)
    await line.shop.stores.postgres.execute("UPDATE sales SET per_buyer_max = 2")
    assert await line.join("ben", quantity=3) == LimitReached(limit=2, have=0)
    assert isinstance(await line.join("ben", quantity=2), Entry)


# Serving --------------------------------------------------------------------------------------------------------------


async def test_a_freed_seat_is_offered_to_the_first_who_waits_and_never_to_the_public(line: Line) -> None:
    ann, ben = await line.joined("ann"), await line.joined("ben")
    await line.free("A-1-3")
    assert (await line.shop.states())["A-1-3"] == "BLOCKED"
    assert await line.serve() == Served(offered=1)

    offer = await line.offer_of(ann)
    assert (offer.state, offer.buyer_id, [each.seat_no for each in offer.lines]) == ("HELD", ann.user_id, ["A-1-3"])
    assert (offer.amount, offer.queue_no, offer.expires_at_ms - offer.created_at_ms) == (PRICE, 0, 900_000)
    await line.follow()
    assert await line.statuses() == {"ann": "OFFERED", "ben": "WAITING"}
    [mine] = await waiting_lists.list_mine(line.shop.stores.postgres, ann.user_id)
    assert mine.expires_at is not None
    [bens] = await waiting_lists.list_mine(line.shop.stores.postgres, ben.user_id)
    assert (bens.ahead, bens.expires_at) == (0, None)


async def test_freed_seats_serve_the_first_they_fill_whole(line: Line) -> None:
    await line.joined("ann", quantity=3)
    ben, cid = await line.joined("ben", quantity=2), await line.joined("cid")
    await line.free("A-1-1", "A-1-2", "A-1-5")
    assert await line.serve() == Served(offered=2)
    assert [each.seat_no for each in (await line.offer_of(ben)).lines] == ["A-1-1", "A-1-2"]
    assert [each.seat_no for each in (await line.offer_of(cid)).lines] == ["A-1-5"]
    await line.follow()
    assert await line.statuses() == {"ann": "WAITING", "ben": "OFFERED", "cid": "OFFERED"}


async def test_what_nobody_can_use_is_the_publics_at_once_and_what_is_too_little_after_a_while(line: Line) -> None:
    await line.joined("ann", quantity=2)
    await line.free("A-1-1", "A-1-3")
    assert await line.serve() == Served()  # two more might come to stand beside them
    assert await line.shelf() == ["A-1-1", "A-1-3"]
    await line.age_shelf()
    assert await line.serve() == Served(published=2)
    assert (await line.shop.states()).keys() == {"A-1-2", "A-1-4", "A-1-5", "A-1-6"}
    await line.shop.hold("A-1-1", "A-1-3", by="public")

    assert isinstance(await line.join("ben", section="A", category="R"), Entry)
    await line.free("A-1-6")
    assert await line.serve() == Served(offered=1)


async def test_seats_of_a_lapsed_hold_are_the_lists_too(line: Line) -> None:
    ann = await line.joined("ann")
    keys = (await line.shop.sale()).keys
    record = (await line.redis.hget(keys.holds, line.hold_ids["A-1-2"])).decode().split("|")
    record[6] = str(int(record[5]) + 1)
    await line.redis.hset(keys.holds, line.hold_ids["A-1-2"], "|".join(record))
    await line.redis.zadd(keys.deadlines, {line.hold_ids["A-1-2"]: int(record[6])})
    sale = await line.shop.sale()
    taken = await seats.hold(
        line.shop.stores.gate,
        sale,
        hold_id=ids.random_id(),
        buyer_id=await line.shop.person("public"),
        fingerprint="",
        seat_nos=["A-1-2"],
    )
    assert isinstance(taken, seats.SeatTaken)  # while somebody waits nobody takes over
    assert isinstance(await seats.expire(line.shop.stores.gate, sale, most=10), seats.Expired)
    assert await line.serve() == Served(offered=1)
    assert [each.seat_no for each in (await line.offer_of(ann)).lines] == ["A-1-2"]


async def test_an_offer_is_made_once_however_often_it_is_tried(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, ben = await line.joined("ann"), await line.joined("ben")
    await line.free("A-1-1")

    async def die(*_: object) -> None:
        raise RuntimeError("died between the offer and the note of it")

    with monkeypatch.context() as patched:
        patched.setattr(waiting_lists, "_note", die)
        with pytest.raises(RuntimeError, match="died"):
            await line.serve()
    await line.free("A-1-4")
    assert await line.serve() == Served(offered=2)
    assert [each.seat_no for each in (await line.offer_of(ann)).lines] == ["A-1-1"]
    assert [each.seat_no for each in (await line.offer_of(ben)).lines] == ["A-1-4"]

    # Also when the store has forgotten: the reservation says that there was an offer.
    await line.follow()
    await line.shop.stores.postgres.execute("UPDATE waiting_list_entries SET status = 'WAITING'")
    await line.free("A-1-5")
    assert await line.serve() == Served(offered=2, published=1)


async def test_an_offer_that_was_lost_with_the_store_is_made_again(line: Line) -> None:
    ann = await line.joined("ann")
    postgres = line.shop.stores.postgres
    await postgres.execute("UPDATE waiting_list_entries SET status = 'OFFERED', updated_at = now() - interval '1 hour'")
    await postgres.execute("UPDATE sales SET waiting_list = false")
    await waiting_lists.follow(postgres)
    assert await line.statuses() == {"ann": "WAITING"}
    assert (await line.shop.sale()).waiting_list
    await line.free("A-1-1")
    assert await line.serve() == Served(offered=1)
    assert (await line.offer_of(ann)).state == "HELD"


async def test_one_who_may_have_no_more_stays_in_line_and_holds_up_nobody(line: Line) -> None:
    ann, ben = await line.joined("ann"), await line.joined("ben")
    await offers.configure(
        line.shop.stores, line.shop.book, sale_id=line.shop.sale_id, changes={"per_buyer_max": 1}, version=None
    )
    await line.free("A-1-6")
    await line.shop.stores.postgres.execute("UPDATE sales SET waiting_list = false")  # so that ann may buy as others do
    await line.redis.hset((await line.shop.sale()).keys.sale, "waiting_list", 0)
    await seat_waiting_lists.give_back(line.shop.stores, await line.shop.sale())
    await line.shop.hold("A-1-6", by="ann")
    await line.redis.hset((await line.shop.sale()).keys.sale, "waiting_list", 1)
    await line.free("A-1-5")
    assert await line.serve() == Served(offered=1)
    assert (await line.offer_of(ben)).state == "HELD"
    await line.follow()
    assert await line.statuses() == {"ann": "WAITING", "ben": "OFFERED"}
    assert await seats.find(line.shop.stores.gate, await line.shop.sale(), hold_id=ann.hold_id) == NotFound()


# What becomes of an offer ---------------------------------------------------------------------------------------------


async def test_an_offer_that_is_paid_is_taken(line: Line) -> None:
    ann = await line.joined("ann", quantity=2)
    await line.free("A-1-1", "A-1-2")
    await line.serve()
    assert isinstance(await line.shop.confirm(await line.shop.authorise(ann.hold_id)), seats.Confirmed)
    await line.follow()
    assert await line.statuses() == {"ann": "TAKEN"}
    assert await line.shop.reservation(ann.hold_id) == ("CONFIRMED", None)

    # It stays so when what was bought is given back, and that goes to whoever waits then.
    ben = await line.joined("ben", quantity=2)
    cancelled = await seat_cancellations.cancel(
        line.shop.stores.gate,
        line.shop.stores.postgres,
        line.shop.book,
        cancellation_id=ids.random_id(),
        reservation_id=ann.hold_id,
        user_id=ann.user_id,
    )
    assert isinstance(cancelled, Cancellation)
    assert await line.serve() == Served(offered=1)
    assert [each.seat_no for each in (await line.offer_of(ben)).lines] == ["A-1-1", "A-1-2"]
    await line.follow()
    assert await line.statuses() == {"ann": "TAKEN", "ben": "OFFERED"}


async def test_an_offer_that_lapses_or_is_given_back_goes_to_the_next_and_then_to_the_public(line: Line) -> None:
    ann, ben = await line.joined("ann"), await line.joined("ben")
    await line.free("A-1-1")
    await line.serve()
    await line.shop.release(ann.hold_id)
    assert await line.serve() == Served(offered=1)
    await line.follow()
    assert await line.statuses() == {"ann": "LAPSED", "ben": "OFFERED"}
    assert await line.serve() == Served()  # nobody waits: the list is over
    assert await line.shop.term("waiting_list") == "0"
    assert not (await line.shop.sale()).waiting_list
    await line.shop.release(ben.hold_id)
    assert "A-1-1" not in await line.shop.states()
    await line.follow()
    assert await line.statuses() == {"ann": "LAPSED", "ben": "LAPSED"}


async def test_who_leaves_gives_back_what_was_offered(line: Line) -> None:
    ann, ben = await line.joined("ann"), await line.joined("ben")
    gate, postgres, book = line.shop.stores.gate, line.shop.stores.postgres, line.shop.book
    await line.free("A-1-1")
    await line.serve()
    await line.follow()
    assert await waiting_lists.leave(gate, postgres, book, entry_id=ann.entry_id, user_id=ben.user_id) == NotFound()
    for _ in range(2):
        left = await waiting_lists.leave(gate, postgres, book, entry_id=ann.entry_id, user_id=ann.user_id)
        assert isinstance(left, Entry)
        assert (left.status, left.reason) == ("LEFT", "USER")
    assert await line.serve() == Served(offered=1)
    await line.follow()
    assert await line.statuses() == {"ann": "LEFT", "ben": "OFFERED"}

    await line.shop.begin_payment(ben.hold_id)
    refused = await waiting_lists.leave(gate, postgres, book, entry_id=ben.entry_id, user_id=ben.user_id)
    assert isinstance(refused, PaymentRunning)
    assert (await line.statuses())["ben"] == "OFFERED"


async def test_what_is_offered_to_one_who_leaves_in_that_moment_is_taken_back(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await line.joined("ann")
    await line.free("A-1-1")
    note = waiting_lists._note

    async def leave_first(*arguments: Any) -> None:
        await waiting_lists.SQL.leave.execute(line.shop.stores.postgres, ann.entry_id)
        await note(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(waiting_lists, "_note", leave_first)
        await line.serve()
    assert (await line.offer_of(ann)).state == "ENDED"
    assert await line.shelf() == ["A-1-1"]
    await line.follow()
    assert await line.statuses() == {"ann": "LEFT"}


async def test_nobody_waits_for_an_event_that_has_begun(line: Line) -> None:
    await line.joined("ann")
    await line.shop.stores.postgres.execute("UPDATE schedules SET start_at = now()")
    await waiting_lists.follow(line.shop.stores.postgres)
    reasons = await line.shop.rows("SELECT status, reason FROM waiting_list_entries")
    assert reasons == [("LEFT", "EVENT_OVER")]


async def test_of_an_event_that_is_off_nothing_is_offered(line: Line) -> None:
    await line.joined("ann")
    schedule_id = str((await line.shop.sale()).schedule_id)
    await seat_cancellations.call_off(line.shop.stores, line.shop.book, schedule_id=schedule_id)
    await line.free("A-1-1")
    assert await line.serve() == Served(published=1)
    await waiting_lists.follow(line.shop.stores.postgres)
    reasons = await line.shop.rows("SELECT status, reason FROM waiting_list_entries")
    assert reasons == [("LEFT", "EVENT_CANCELLED")]


# The list as a whole --------------------------------------------------------------------------------------------------


async def test_the_list_ends_when_nobody_waits_and_what_is_on_the_shelf_is_given_to_the_public(line: Line) -> None:
    ann = await line.joined("ann", quantity=2)
    await line.free("A-1-1")
    await waiting_lists.leave_all(line.shop.stores.postgres, ann.user_id)
    assert await line.serve() == Served(published=1)
    assert await line.serve() == Served()
    assert not (await line.shop.sale()).waiting_list
    assert await line.shop.term("waiting_list") == "0"
    await line.free("A-1-2")
    assert await line.shop.hold("A-1-1", "A-1-2", by="public")

    await line.joined("ben")  # and it begins anew
    assert await line.shop.term("waiting_list") == "1"


async def test_what_a_list_that_is_over_left_behind_is_seen_and_given_back(line: Line) -> None:
    await line.joined("ann", quantity=2)
    await line.free("A-1-1")
    await line.shop.stores.postgres.execute("UPDATE waiting_list_entries SET status = 'LEFT', reason = 'USER'")
    await line.shop.stores.postgres.execute("UPDATE sales SET waiting_list = false, version = version + 1")
    sale = await line.shop.sale()
    await offers.send(line.shop.stores.gate, line.shop.stores.postgres, sale)
    reply = await sales.look(line.shop.stores.gate, sale)
    assert isinstance(reply, sales.Checkpoint)
    assert reply.stranded == 1
    assert await seat_waiting_lists.give_back(line.shop.stores, sale) == 1
    assert await line.shelf() == []
    await line.shop.hold("A-1-1", by="public")


async def test_a_rebuild_keeps_places_offers_and_what_it_frees_for_the_list(line: Line) -> None:
    ann, ben = await line.joined("ann"), await line.joined("ben")
    await line.free("A-1-1")
    await line.serve()
    await line.shop.drain()
    await line.shop.stores.postgres.execute(
        "UPDATE reservations SET expires_at = now() - interval '1 second' WHERE reservation_id = $1",
        line.hold_ids["A-1-5"],
    )
    await line.shop.rebuild()
    assert (await line.offer_of(ann)).state == "HELD"
    assert (await line.shop.states())["A-1-5"] == "BLOCKED"
    assert await line.shelf() == ["A-1-5"]
    assert await line.serve() == Served(offered=1)
    assert [each.seat_no for each in (await line.offer_of(ben)).lines] == ["A-1-5"]


async def test_a_rebuild_of_a_sale_without_a_list_gives_to_the_public(line: Line) -> None:
    await line.shop.stores.postgres.execute(
        "UPDATE reservations SET expires_at = now() - interval '1 second' WHERE reservation_id = $1",
        line.hold_ids["A-1-5"],
    )
    await line.shop.rebuild()
    assert "A-1-5" not in await line.shop.states()


# A larger hall --------------------------------------------------------------------------------------------------------


async def test_areas_prices_and_sections_are_offered_as_wished(stores_any: Stores) -> None:
    concert_id, schedule_id = ids.random_id(), ids.random_id()
    await stores_any.postgres.execute("INSERT INTO installation (name, value) VALUES ('currency', 'KRW')")
    await catalogue.create_concert(stores_any.postgres, concert_id=concert_id, poster=catalogue.Poster(title="Two"))
    made = await catalogue.create_schedule(
        stores_any.postgres,
        schedule_id=schedule_id,
        concert_id=concert_id,
        start_at=START_AT,
        terms=sales.Terms(name="Two", offer_s=60),
        seats=[
            catalogue.Seat(section="A", row="1", number=1, category="VIP", price=900),
            catalogue.Seat(section="A", row="1", number=2, category="VIP", price=900, accessible=True),
            catalogue.Seat(section="B", row="1", number=1, category="R", price=500, block="fans"),
            catalogue.Seat(section="B", row="1", number=2, category="R", price=500),
        ],
        areas=[catalogue.Area(area="Lawn", category="GA", price=100, quantity=3)],
        blocks=[catalogue.Block(block="fans", access_code="x")],
        fingerprint="",
    )
    assert isinstance(made, tuple), made
    shop = Shop(stores_any, made[0].sale_id, sales.SaleBook(stores_any.postgres))
    assert await rebuild.ensure_open(stores_any, shop.sale_id)
    line = Line(shop, {})
    keys = (await shop.sale()).keys
    everything = ["A-1-1", "A-1-2", "B-1-1", "B-1-2", "Lawn-GA-1", "Lawn-GA-2", "Lawn-GA-3"]
    wishes: dict[str, dict[str, Any]] = {
        "cheap": {"quantity": 2, "price_max": 100},
        "vip": {"category": "VIP"},
        "wheels": {"accessible": 1},
        "b": {"section": "B"},
        "lawn": {"section": "Lawn"},
    }
    entries = {name: await line.joined(name, **wish) for name, wish in wishes.items()}
    assert await line.join("too dear", quantity=4, price_max=100) == NeverFits(3)
    assert await line.join("of a block", quantity=2, section="B", adjacent=False) == NeverFits(1)
    # Everything was somebody's and comes back at once.
    await line.redis.hset(keys.seats, mapping=dict.fromkeys(everything, "BLOCKED list 0"))
    await line.redis.zadd(keys.freed, {seat_no: await now_ms(stores_any) for seat_no in everything})
    await line.redis.zremrangebyrank(keys.places, 0, -1)

    assert await line.serve() == Served(offered=5, published=1)
    offers = {
        name: sorted(each.seat_no for each in (await line.offer_of(entry)).lines) for name, entry in entries.items()
    }
    assert offers["cheap"][0].startswith("Lawn-GA-")
    assert len(offers["cheap"]) == 2
    assert (offers["vip"], offers["wheels"], offers["b"]) == (["A-1-1"], ["A-1-2"], ["B-1-2"])
    assert offers["lawn"][0].startswith("Lawn-GA-")
    assert (await line.offer_of(entries["b"])).amount == 500
    offer = await line.offer_of(entries["b"])
    assert offer.expires_at_ms - offer.created_at_ms == 60_000
    assert "B-1-1" not in await shop.states()  # of a block: not for the list
    await shop.drain()
    await shop.check()


async def now_ms(stores: Stores) -> int:
    seconds, micros = await stores.redis.time()
    return int(seconds) * 1000 + int(micros) // 1000
