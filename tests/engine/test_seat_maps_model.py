"""The map that a process keeps by what changed, against the map read whole, whatever buyers do in between."""

from dataclasses import dataclass, field
from random import Random

import pytest

from engine import ids, seat_maps, seats
from engine.catalogue import Hidden
from engine.seat_maps import VERSIONS_PER_EPOCH, Changes, Maps, SeatMap
from engine.stores.connections import RedisClient
from engine.wishes import AreaLine
from tests.engine.offered_halls import Area, OfferedHall, Row, open_offered, places_of
from tests.engine.seat_sales import Standing, buyer

STEPS = 250
LAWN = Area("Lawn", 6)
KEPT = "A-1-1"
CHANNEL = "fans"
IN_BLOCK = tuple(f"B-1-{number}" for number in range(1, 5))


async def open_floor(redis: RedisClient) -> OfferedHall:
    """Two rows of ten for all, one seat of which is never sold, a row of four for the fan club, and a lawn."""
    return await open_offered(
        redis,
        Row("A", "1", "FFFFFFFFFF"),
        Row("A", "2", "FFFFFFFFFF"),
        Row("B", "1", "FFFF", block=1),
        areas=(LAWN,),
        blocks={1: f"|{CHANNEL}|0|0"},
        kept=(KEPT,),
    )


@dataclass
class Crowd:
    """Buyers who do what chance tells them."""

    hall: OfferedHall
    chance: Random
    standing: list[Standing] = field(default_factory=list)
    sold: list[Standing] = field(default_factory=list)
    made: int = 0

    async def act(self) -> None:
        await self.chance.choice(
            (self.hold, self.hold, self.hold, self.release, self.pay, self.give_back, self.lapse)
        )()

    async def hold(self) -> None:
        self.made += 1
        by = f"buyer {self.made // 50}"
        wished: tuple[AreaLine | str, ...] = AreaLine("Lawn", 1), self.chance.choice(IN_BLOCK)
        if self.chance.random() < 0.8:
            public = [seat_no for seat_no in self.hall.seat_nos if seat_no.startswith("A")]
            wished = tuple(self.chance.sample(public, self.chance.randint(1, 3)))
        hold_id = ids.derive("crowd", str(self.made))
        reply = await self.hall.hold_lines(*wished, by=by, id_=hold_id, channel=CHANNEL)
        if isinstance(reply, seats.Held | seats.HeldLines):
            self.standing.append(Standing(self.hall, hold_id, buyer(by), reply))  # type: ignore[arg-type]
        else:
            assert isinstance(reply, seats.SeatTaken | seats.SoldOut), reply

    def _any(self) -> Standing | None:
        return self.standing.pop(self.chance.randrange(len(self.standing))) if self.standing else None

    async def release(self) -> None:
        if (one := self._any()) is not None:
            await one.release()

    async def pay(self) -> None:
        if (one := self._any()) is None:
            return
        await one.pay()
        if self.chance.random() < 0.3:
            if self.chance.random() < 0.5:
                await self.hall.rewrite(one.hold_id, expires_at_ms=1)
            await one.abandon()
        else:
            await one.confirm()
            self.sold.append(one)

    async def give_back(self) -> None:
        if self.sold:
            one = self.sold.pop()
            seat_nos = (await self.hall.records())[one.hold_id]["seats"].split(",")
            await one.restore(*map(seats.Claim, seat_nos))

    async def lapse(self) -> None:
        if (one := self._any()) is not None:
            await one.lapse()
            if self.chance.random() < 0.5:
                await seats.expire(self.hall.gate, self.hall.sale, most=3)


class Client:
    """A buyer's page: it has a map, and asks what has changed since."""

    def __init__(self) -> None:
        self.version = -1  # of no epoch
        self.statuses: dict[str, str] = {}

    async def look(self, maps: Maps, hall: OfferedHall) -> None:
        told = await maps.read_since(hall.sale, self.version)
        assert isinstance(told, Changes | SeatMap)
        if isinstance(told, SeatMap):
            self.statuses = {}
        assert told.version >= self.version
        self.version = told.version
        self.statuses |= told.statuses

    def shown(self) -> dict[str, str]:
        return {seat_no: status for seat_no, status in self.statuses.items() if status != "FREE"}


async def public_map(hall: OfferedHall) -> dict[str, str]:
    """What anybody may see, straight from the store."""
    public = {seat_no: "HELD" if state == "PAYING" else state for seat_no, state in (await hall.statuses()).items()}
    for place in places_of(LAWN):
        public.pop(place, None)
    return public | dict.fromkeys(IN_BLOCK, "BLOCKED")


@pytest.mark.parametrize(("seed", "changes_max"), [(1, 5000), (2, 8), (3, 3)])
async def test_the_kept_map_is_the_map_whatever_happens(
    redis_any: RedisClient, seed: int, changes_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seat_maps, "CHANGES_MAX", changes_max)
    hall = await open_floor(redis_any)
    chance = Random(seed)
    crowd = Crowd(hall, chance)

    async def find_hidden(_sale_id: str) -> Hidden:
        return Hidden(frozenset(places_of(LAWN)), frozenset(IN_BLOCK))

    # Two processes: one looks after nearly every change, the other misses many. Who has a page asks either.
    processes = [Maps(hall.gate, find_hidden), Maps(hall.gate, find_hidden)]
    pages = [Client() for _ in range(4)]
    wholes = 0
    for step in range(STEPS):
        await crowd.act()
        if step == STEPS // 2:
            # The sale goes on in another epoch; nothing of before says what changed in this one.
            version = 2 * VERSIONS_PER_EPOCH
            await hall.redis.execute_command("DEL", hall.sale.keys.map_changes)
            await hall.set(map_version=version, fence=version)
        for maps, looks in zip(processes, (0.8, 0.1), strict=True):
            if chance.random() < looks:
                if hall.sale.sale_id in maps._watched:
                    watched = maps._watched[hall.sale.sale_id]
                    watched.fresh_until = watched.spared_until = 0.0
                kept = await maps.read(hall.sale)
                assert isinstance(kept, SeatMap)
                assert (kept.version, kept.statuses) == (await hall.term("map_version"), await public_map(hall))
                page = chance.choice(pages)
                wholes += kept.changes(page.version) is None
                await page.look(maps, hall)
                assert page.shown() == kept.statuses
    assert wholes >= 1
