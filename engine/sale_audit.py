"""What the audit reads of sales, and what both stores tell differently of one at rest."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import msgspec

from engine.stores import queries
from engine.stores.connections import RedisClient
from engine.stores.keys import SaleKeys

SQL = queries.load("audit")

Rows = Sequence[asyncpg.Record]


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

    def units_in_holds(self) -> Counter[str]:
        """Of each variant the units that are held or being paid."""
        units: Counter[str] = Counter()
        for hold in self.holds_in("HELD", "PAYING").values():
            for line in hold.seats:
                variant_id, _, quantity = line.rpartition(":")
                units[variant_id] += int(quantity)
        return units


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


async def come_to_rest(redis: RedisClient, postgres: asyncpg.Pool, sale: asyncpg.Record, until: float) -> Hall:
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
        if hall.moving is None and not any(differences(hall)):
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


def differences(hall: Hall) -> Iterator[str]:
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
        dict.fromkeys(copy.seats_in("BLOCKED").keys() - shelved(copy), True),
        {row["seat_no"]: True for row in books.seats if row["blocked"]},
    )
    if hall.sale["kind"] == "stock":
        in_holds = copy.units_in_holds()
        yield from _compare(
            "what nobody has bought of variant",
            {
                variant_id: copy.stock.get(variant_id, 0) + copy.stock_freed.get(variant_id, 0) + in_holds[variant_id]
                for variant_id in copy.prices
            },
            {row["variant_id"]: row["quantity"] for row in books.variants},
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


def shelved(copy: Copy) -> set[str]:
    """Seats that were freed for a waiting list, and not given on yet: Postgres knows nothing of them."""
    return {seat_no for seat_no, (_, holder, _) in copy.seats_in("BLOCKED").items() if holder == "list"}


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


def _set_of(listed: str) -> frozenset[str]:
    return frozenset(filter(None, listed.split(",")))
