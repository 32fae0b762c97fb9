"""A hall with a floor in Redis, with areas, tiers and blocks, written without Postgres; and what must be true of it."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from engine import ids, seats, wishes
from engine.sales import Sale
from engine.stores.scripts import Gate
from tests.engine.seat_sales import TERMS, Hall, Standing, buyer

PRICE = 50_000
AREA_SCORE = 10**7


@dataclass(frozen=True)
class Row:
    """Seats of one row: F ordinary, A accessible, a space where a number is missing."""

    section: str
    row: str
    seats: str
    category: str = "STD"
    block: int = 0
    first: int = 1


@dataclass(frozen=True)
class Area:
    """Places without a number."""

    area: str
    quantity: int
    category: str = "GA"
    block: int = 0


@dataclass(frozen=True)
class Unit:
    """Adjacent seats that are alike."""

    seat_nos: tuple[str, ...]
    row: Row
    first_position: int
    kinds: str


@dataclass
class OfferedHall(Hall):
    """A sale with a floor."""

    units: tuple[Unit, ...] = ()
    areas: tuple[Area, ...] = ()
    tiers: dict[tuple[str, str], tuple[int, int | None]] = field(default_factory=dict)
    categories: dict[str, int] = field(default_factory=dict)

    def prices_of(self, record: str) -> frozenset[str]:
        price, category_no = record.split("|")[:2]
        of_tiers = {
            str(of_tier)
            for (_, category), (of_tier, _) in self.tiers.items()
            if str(self.categories[category]) == category_no
        }
        return frozenset(of_tiers | {price})

    async def hold_lines(self, *lines: Any, by: str = "ann", id_: str | None = None, **more: Any) -> Any:
        """Hold lines; a plain text is a seat, a pair a seat in a tier."""
        self.made += 1
        wanted = [
            wishes.SeatLine(line)
            if isinstance(line, str)
            else wishes.SeatLine(*line)
            if isinstance(line, tuple)
            else line
            for line in lines
        ]
        return await wishes.hold_lines(
            self.gate,
            self.sale,
            hold_id=id_ or ids.derive("hold", str(self.made)),
            buyer_id=buyer(by),
            fingerprint=more.pop("fingerprint", ids.fingerprint(*map(str, lines))),
            lines=wanted,
            **more,
        )

    async def hold_best(self, quantity: int, by: str = "ann", id_: str | None = None, **more: Any) -> Any:
        """Hold the best seats."""
        self.made += 1
        asked = {name: more.pop(name) for name in ("category", "section", "tier", "accessible") if name in more}
        return await wishes.hold_best(
            self.gate,
            self.sale,
            hold_id=id_ or ids.derive("hold", str(self.made)),
            buyer_id=buyer(by),
            fingerprint=more.pop("fingerprint", ids.fingerprint(str(quantity), str(asked))),
            best=wishes.Best(quantity=quantity, **asked),
            **more,
        )

    async def standing(self, reply: Any, by: str = "ann") -> Standing:
        """What its buyer may do with what was just held."""
        assert isinstance(reply, wishes.HeldBest | seats.HeldLines), reply
        return Standing(self, ids.derive("hold", str(self.made)), buyer(by), reply)  # type: ignore[arg-type]

    async def counts(self) -> dict[str, int]:
        """What counts against the caps of tiers, without what is 0."""
        rows = await self.redis.hgetall(self.sale.keys.tier_counts)
        return {key.decode(): int(count) for key, count in rows.items() if int(count)}

    async def free_places(self) -> list[str]:
        """The free places of all areas, in order."""
        return [place.decode() for place in await self.redis.zrange(self.sale.keys.places, 0, -1)]

    async def changed(self) -> dict[str, int]:
        """The seats that changed on the map, each with the version."""
        return await self.scores("map_changes")

    async def check(self) -> None:
        """Assert what is true of every sale with a floor, at every moment."""
        await super().check()
        keys = self.sale.keys
        taken = {seat_no.decode() for seat_no in await self.redis.hkeys(keys.seats)}
        floor = (await self.redis.get(keys.floor) or b"").decode()
        bounds = await self.redis.get(keys.bounds) or b""
        for number, unit in enumerate(self.units):
            stands = floor[unit.first_position : unit.first_position + len(unit.kinds)]
            assert stands == "".join(
                "T" if seat_no in taken else kind for seat_no, kind in zip(unit.seat_nos, unit.kinds, strict=True)
            )
            longest = max((len(run) for run in re.findall("[FA]+", stands)), default=0)
            assert (128 if unit.row.block else 0) + 64 + min(longest, 60) <= bounds[number]
            assert bounds[number] <= (252 if unit.row.block else 124)

        places = {place for area in self.areas for place in places_of(area)}
        assert set(await self.free_places()) == places - taken

        records = await self.records()
        kinds = {seat_no.decode(): row.decode() for seat_no, row in (await self.redis.hgetall(keys.prices)).items()}
        counts: Counter[str] = Counter()
        standing = await self.fields("seats")
        listed = {seat_no for record in records.values() for seat_no in record["seats"].split(",")}
        for record in records.values():
            if record["state"] != "ENDED" and record["tiers"]:
                for seat_no, tier in zip(record["seats"].split(","), record["tiers"].split(","), strict=True):
                    if tier != "-":
                        counts[f"{tier}|{kinds[seat_no].split('|')[1]}"] += 1
        counted = Counter(await self.counts())
        forgotten = {seat_no for seat_no, value in standing.items() if value.startswith("SOLD")} - listed
        assert counted == counts if not forgotten else counted >= counts
        for key, count in counts.items():
            tier, category_no = key.split("|")
            [category] = [name for name, number in self.categories.items() if str(number) == category_no]
            cap = self.tiers[tier, category][1]
            assert cap is None or count <= cap

        version = await self.term("map_version")
        in_blocks = {seat_no for unit in self.units if unit.row.block for seat_no in unit.seat_nos}
        changed = await self.changed()
        assert not changed.keys() & (places | in_blocks)
        assert all(score <= version for score in changed.values())
        assert taken - places - in_blocks <= changed.keys()


def places_of(area: Area) -> list[str]:
    """The places of an area, by number."""
    return [f"{area.area}-GA-{number}" for number in range(1, area.quantity + 1)]


def units_of(rows: Sequence[Row]) -> tuple[Unit, ...]:
    """Cut rows at missing numbers."""
    units, position = [], 0
    for row in rows:
        numbered = [(row.first + at, kind) for at, kind in enumerate(row.seats)]
        for is_seat, run in groupby(numbered, key=lambda each: each[1] != " "):
            if is_seat:
                seats = list(run)
                seat_nos = tuple(f"{row.section}-{row.row}-{number}" for number, _ in seats)
                units.append(Unit(seat_nos, row, position, "".join(kind for _, kind in seats)))
                position += len(seats)
    return tuple(units)


def ranges(units: Sequence[Unit], name: str) -> dict[str, str]:
    """Which units have which section or category."""
    found: dict[str, list[int]] = {}
    for number, unit in enumerate(units):
        found.setdefault(getattr(unit.row, name), []).append(number)
    return {key: ",".join(f"{number}-{number}" for number in numbers) for key, numbers in found.items()}


async def open_offered(
    redis: Any,
    *rows: Row,
    areas: Sequence[Area] = (),
    tiers: dict[tuple[str, str], tuple[int, int | None]] | None = None,
    blocks: dict[int, str] | None = None,
    kept: Sequence[str] = (),
    shebang: bool = True,
    **terms: Any,
) -> OfferedHall:
    """Write a sale with a floor; `blocks` are records by number, `kept` seats are BLOCKED for good."""
    sale = Sale(sale_id=ids.random_id())
    keys, units = sale.keys, units_of(rows)
    named = dict.fromkeys([*(row.category for row in rows), *(area.category for area in areas)])
    categories = {category: number for number, category in enumerate(named, start=1)}
    await redis.hset(keys.sale, mapping=TERMS | {"has_floor": 1} | terms)
    prices, floor, bounds = {}, "", b""
    for number, unit in enumerate(units):
        for at, (seat_no, kind) in enumerate(zip(unit.seat_nos, unit.kinds, strict=True)):
            prices[seat_no] = (
                f"{PRICE}|{categories[unit.row.category]}|{unit.row.block}|{unit.first_position + at}|{number}|{kind}"
            )
            floor += "T" if seat_no in kept else kind
        bounds += bytes([(192 if unit.row.block else 64) + min(len(unit.kinds), 60)])
        fields = (unit.row.section, unit.row.row, categories[unit.row.category], unit.row.block, unit.first_position)
        first = int(unit.seat_nos[0].rpartition("-")[2])
        await redis.hset(keys.units, number, "|".join(map(str, (*fields, first, len(unit.kinds)))))
    for area_no, area in enumerate(areas, start=1):
        await redis.hset(keys.areas, area.area, f"{area_no}|{categories[area.category]}|{area.block}|{area.quantity}")
        for number, place in enumerate(places_of(area), start=1):
            prices[place] = f"{PRICE}|{categories[area.category]}|{area.block}||{area_no * AREA_SCORE + number}|P"
            await redis.zadd(keys.places, {place: area_no * AREA_SCORE + number})
    await redis.hset(keys.prices, mapping=prices)
    if units:
        await redis.set(keys.floor, floor)
        await redis.set(keys.bounds, bounds)
        await redis.hset(keys.sections, mapping=ranges(units, "section"))
        await redis.hset(keys.categories, mapping=ranges(units, "category"))
    for (tier, category), (price, cap) in (tiers or {}).items():
        await redis.hset(keys.tiers, f"{tier}|{categories[category]}", f"{price}|{'' if cap is None else cap}")
    for block_no, record in (blocks or {}).items():
        await redis.hset(keys.blocks, block_no, record)
    for seat_no in kept:
        await redis.hset(keys.seats, seat_no, "BLOCKED - 0")
        await redis.zadd(keys.map_changes, {seat_no: 0})
    return OfferedHall(
        redis,
        Gate(redis, shebang=shebang, deadline_s=30),
        sale,
        tuple(prices),
        units=units,
        areas=tuple(areas),
        tiers=tiers or {},
        categories=categories,
    )
