"""Sales: the book of rows, asking with an epoch, terms that reach the store."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from engine import ids, offers, sales
from engine.sales import Configured, Sale, SaleBook, StaleVersion, Terms
from engine.stores.connections import Stores
from engine.stores.keys import SaleKeys
from engine.stores.replies import SaleRebuilding, SaleUnknown, StaleEpoch

OPENS_AT = datetime(2031, 4, 1, 10, tzinfo=UTC)


async def make(postgres: asyncpg.Pool, *, epoch: int = 1, **terms: Any) -> str:
    """A sale whose row says that it is open in this epoch."""
    sale_id = ids.random_id()
    await create(postgres, sale_id, **terms)
    await postgres.execute("UPDATE sales SET epoch = $2, store_state = 'open' WHERE sale_id = $1", sale_id, epoch)
    return sale_id


async def create(postgres: asyncpg.Pool, sale_id: str, **terms: Any) -> bool:
    async with postgres.acquire() as connection, connection.transaction():
        return await sales.create(connection, sale_id=sale_id, kind="seats", terms=Terms(name="One night", **terms))


async def store(stores: Stores, sale_id: str, **fields: Any) -> None:
    """Put a sale's hash into Redis."""
    values = {"epoch": 1, "state": "open"} | fields
    flat = [str(part) for pair in values.items() for part in pair]
    await stores.redis.execute_command("HSET", SaleKeys(sale_id).sale, *flat)


async def stored(stores: Stores, sale_id: str, name: str) -> str | None:
    value = await stores.redis.execute_command("HGET", SaleKeys(sale_id).sale, name)
    return value.decode() if value is not None else None


class Counted:
    """A pool that counts what is asked of it."""

    def __init__(self, postgres: asyncpg.Pool) -> None:
        self._postgres = postgres
        self.fetches = 0

    async def fetch(self, *args: Any) -> Any:
        self.fetches += 1
        return await self._postgres.fetch(*args)


# The book -------------------------------------------------------------------------------------------------------------


async def test_a_sale_is_found_with_its_terms(postgres: asyncpg.Pool) -> None:
    policy = ({"hours_before": 24, "percent": 50},)
    sale_id = await make(postgres, epoch=3, opens_at=OPENS_AT, per_buyer_max=4, refund_policy=policy)
    sale = await SaleBook(postgres).find(sale_id)
    assert sale is not None
    assert (sale.sale_id, sale.kind, sale.epoch, sale.store_state) == (sale_id, "seats", 3, "open")
    assert (sale.name, sale.opens_at, sale.per_buyer_max, sale.refund_policy) == ("One night", OPENS_AT, 4, policy)
    assert sale.keys.seats == f"{{sale:{sale_id}}}:seats"


async def test_creating_a_sale_again_changes_nothing(postgres: asyncpg.Pool) -> None:
    sale_id = ids.random_id()
    assert await create(postgres, sale_id, pay_s=60)
    assert not await create(postgres, sale_id, pay_s=90)
    sale = await SaleBook(postgres).find(sale_id)
    assert sale is not None
    assert (sale.pay_s, sale.store_state, sale.epoch) == (60, "new", 0)


async def test_a_sale_that_another_process_just_made_is_found(postgres: asyncpg.Pool) -> None:
    book = SaleBook(postgres)
    await book.refresh()
    sale_id = await make(postgres)
    assert (await book.find(sale_id)) is not None
    assert [sale.sale_id for sale in book.sales()] == [sale_id]


async def test_many_unknown_ids_cost_one_read_at_a_time(postgres: asyncpg.Pool) -> None:
    counted = Counted(postgres)
    book = SaleBook(counted)  # type: ignore[arg-type]  # as much of a pool as a book uses
    found = await asyncio.gather(*[book.find(ids.random_id()) for _ in range(200)])
    assert found == [None] * 200
    assert counted.fetches == 1


async def test_a_known_sale_is_found_without_a_read(postgres: asyncpg.Pool) -> None:
    sale_id = await make(postgres)
    counted = Counted(postgres)
    book = SaleBook(counted)  # type: ignore[arg-type]
    await book.refresh()
    for _ in range(5):
        assert await book.find(sale_id) is not None
    assert counted.fetches == 1


async def test_a_refresh_reads_what_changed_and_not_what_did_not(postgres: asyncpg.Pool) -> None:
    quiet, changed = await make(postgres), await make(postgres)
    await postgres.execute("UPDATE sales SET updated_at = now() - interval '1 day' WHERE sale_id = $1", quiet)
    book = SaleBook(postgres)
    await book.refresh()
    await postgres.execute("UPDATE sales SET active_max = 7, updated_at = now() WHERE sale_id = $1", changed)
    await postgres.execute("UPDATE sales SET active_max = 7 WHERE sale_id = $1", quiet)
    await book.refresh()
    await book.refresh()
    assert {sale.sale_id: sale.active_max for sale in book.sales()} == {quiet: 1000, changed: 7}


async def test_a_change_that_commits_late_is_not_missed(postgres: asyncpg.Pool) -> None:
    late, early = await make(postgres), await make(postgres)
    book = SaleBook(postgres)
    await book.refresh()
    async with postgres.acquire() as connection:
        async with connection.transaction():
            await connection.execute("UPDATE sales SET active_max = 7, updated_at = now() WHERE sale_id = $1", late)
            await postgres.execute("UPDATE sales SET active_max = 8, updated_at = now() WHERE sale_id = $1", early)
            await book.refresh()
        await book.refresh()
    assert {sale.sale_id: sale.active_max for sale in book.sales()} == {late: 7, early: 8}


async def test_an_id_made_in_a_sale_leads_to_it(postgres: asyncpg.Pool) -> None:
    sale_id, _other = await make(postgres), await make(postgres)
    book = SaleBook(postgres)
    await book.refresh()
    assert [sale.sale_id for sale in await book.find_by_prefix(ids.derive_in(sale_id, "hold"))] == [sale_id]
    new = await make(postgres)  # by another process, a moment ago
    assert [sale.sale_id for sale in await book.find_by_prefix(ids.derive_in(new, "hold"))] == [new]
    assert await book.find_by_prefix("0" * 32) == []


# Asking ---------------------------------------------------------------------------------------------------------------


async def test_a_process_that_knows_an_old_epoch_reads_the_new_one_and_asks_once_more(stores_any: Stores) -> None:
    stores = stores_any
    sale_id = await make(stores.postgres)
    book = SaleBook(stores.postgres)
    old = await book.find(sale_id)
    assert old is not None
    await store(stores, sale_id, epoch=2)
    await stores.postgres.execute("UPDATE sales SET epoch = 2, updated_at = now() WHERE sale_id = $1", sale_id)
    assert await sales.ask(stores.gate, old, sales.CONFIGURE, version=1, terms=()) == Configured(1)
    known = await book.find(sale_id)
    assert known is not None
    assert known.epoch == 2


async def test_a_hundred_stale_askers_share_a_read(stores: Stores) -> None:
    sale_id = await make(stores.postgres)
    counted = Counted(stores.postgres)
    old = await SaleBook(counted).find(sale_id)  # type: ignore[arg-type]
    assert old is not None
    await store(stores, sale_id, epoch=2)
    await stores.postgres.execute("UPDATE sales SET epoch = 2, updated_at = now() WHERE sale_id = $1", sale_id)
    asked = [sales.ask(stores.gate, old, sales.CONFIGURE, version=1, terms=()) for _ in range(100)]
    assert set(await asyncio.gather(*asked)) == {Configured(1)}
    assert counted.fetches <= 4


async def test_an_older_copy_in_the_store_is_not_asked_twice(stores: Stores) -> None:
    sale_id = await make(stores.postgres, epoch=2)
    sale = await SaleBook(stores.postgres).find(sale_id)
    assert sale is not None
    await store(stores, sale_id, epoch=1)
    assert await sales.ask(stores.gate, sale, sales.CONFIGURE, version=1, terms=()) == StaleEpoch(1)


@pytest.mark.parametrize(
    ("fields", "refusal"), [(None, SaleUnknown()), ({"state": "rebuilding"}, SaleRebuilding())], ids=str
)
async def test_a_sale_that_is_not_open_is_refused(
    stores: Stores, fields: dict[str, str] | None, refusal: object
) -> None:
    sale = Sale(sale_id=ids.random_id())
    if fields:
        await store(stores, sale.sale_id, **fields)
    assert await offers.send(stores.gate, stores.postgres, sale) == refusal
    assert await sales.look(stores.gate, sale) == refusal


# Terms ----------------------------------------------------------------------------------------------------------------


async def test_terms_reach_the_row_and_then_the_store(stores_any: Stores) -> None:
    stores = stores_any
    sale_id = await make(stores.postgres)
    await store(stores, sale_id)
    book = SaleBook(stores.postgres)
    changes = {"room": "open", "active_max": 50, "opens_at": OPENS_AT, "entry_s": 30}
    edited = await offers.configure(stores, book, sale_id=sale_id, changes=changes, version=1)
    assert isinstance(edited, Sale)
    assert (edited.room, edited.active_max, edited.opens_at, edited.version) == ("open", 50, OPENS_AT, 2)
    names = ("room", "active_max", "entry_ms", "opens_at_ms", "version", "pay_ms")
    assert [await stored(stores, sale_id, name) for name in names] == [
        "open",
        "50",
        "30000",
        str(sales.milliseconds(OPENS_AT)),
        "2",
        "600000",
    ]


async def test_an_edit_that_begins_with_an_old_version_is_refused(stores: Stores) -> None:
    sale_id = await make(stores.postgres)
    await store(stores, sale_id)
    book = SaleBook(stores.postgres)
    await offers.configure(stores, book, sale_id=sale_id, changes={"active_max": 5}, version=1)
    refused = await offers.configure(stores, book, sale_id=sale_id, changes={"active_max": 6}, version=1)
    assert refused == StaleVersion(2)
    sale = await book.read(sale_id)
    assert sale is not None
    assert sale.active_max == 5


async def test_nobody_edits_a_sale_that_does_not_exist(stores: Stores) -> None:
    book = SaleBook(stores.postgres)
    assert await offers.configure(stores, book, sale_id=ids.random_id(), changes={"active_max": 5}) is None


async def test_terms_that_arrive_late_do_not_undo_newer_ones(stores: Stores) -> None:
    newer = Sale(sale_id=ids.random_id(), active_max=8, version=3)
    await store(stores, newer.sale_id)
    assert await offers.send(stores.gate, stores.postgres, newer) == Configured(3)
    older = Sale(sale_id=newer.sale_id, active_max=7, version=2)
    assert await offers.send(stores.gate, stores.postgres, older) == Configured(3)
    assert await offers.send(stores.gate, stores.postgres, newer) == Configured(3)
    assert await stored(stores, newer.sale_id, "active_max") == "8"


async def test_an_edit_stands_while_the_store_is_being_rebuilt(stores: Stores) -> None:
    sale_id = await make(stores.postgres)
    await store(stores, sale_id, state="rebuilding")
    edited = await offers.configure(stores, SaleBook(stores.postgres), sale_id=sale_id, changes={"active_max": 5})
    assert isinstance(edited, Sale)
    assert (edited.active_max, await stored(stores, sale_id, "active_max")) == (5, None)


async def test_a_draining_room_is_cut_off_at_the_last_number(stores: Stores) -> None:
    sale_id = await make(stores.postgres)
    await store(stores, sale_id, queue_no=4711)
    book = SaleBook(stores.postgres)
    drained = await offers.configure(stores, book, sale_id=sale_id, changes={"room": "draining"})
    assert isinstance(drained, Sale)
    assert (drained.draining_no, await stored(stores, sale_id, "draining_no")) == (4711, "4711")


# Checkpoints ----------------------------------------------------------------------------------------------------------


async def kept(postgres: asyncpg.Pool, sale_id: str) -> tuple[int, int]:
    row = await postgres.fetchrow("SELECT serving, queue_no_ceiling FROM sales WHERE sale_id = $1", sale_id)
    assert row is not None
    return row["serving"], row["queue_no_ceiling"]


async def checkpoint(stores: Stores, sale: Sale) -> sales.Checkpoint:
    """Keep what is found, as the owner does, and look again."""
    found = await sales.look(stores.gate, sale)
    assert isinstance(found, sales.Checkpoint)
    await sales.keep_checkpoint(stores, sale, found)
    found = await sales.look(stores.gate, sale)
    assert isinstance(found, sales.Checkpoint)
    return found


async def test_a_checkpoint_keeps_serving_and_allows_more_numbers(stores_any: Stores) -> None:
    stores = stores_any
    sale_id = await make(stores.postgres)
    sale = await SaleBook(stores.postgres).find(sale_id)
    assert sale is not None
    await store(stores, sale_id, queue_no=10, serving=4, queue_no_ceiling=20)
    reply = await checkpoint(stores, sale)
    assert (reply.queue_no, reply.serving, reply.queue_no_ceiling) == (10, 4, 10 + sales.QUEUE_NO_STEP)
    assert await kept(stores.postgres, sale_id) == (4, 10 + sales.QUEUE_NO_STEP)
    assert await checkpoint(stores, sale) == reply


async def test_serving_never_goes_back(stores: Stores) -> None:
    sale_id = await make(stores.postgres)
    sale = await SaleBook(stores.postgres).find(sale_id)
    assert sale is not None
    await store(stores, sale_id, serving=9)
    await checkpoint(stores, sale)
    await store(stores, sale_id, serving=2)
    await checkpoint(stores, sale)
    assert (await kept(stores.postgres, sale_id))[0] == 9


async def test_a_ceiling_that_only_the_row_has_reaches_the_store(stores: Stores) -> None:
    sale_id = await make(stores.postgres)
    sale = await SaleBook(stores.postgres).find(sale_id)
    assert sale is not None
    # The process died between the two writes.
    await stores.postgres.execute("UPDATE sales SET queue_no_ceiling = 5000000 WHERE sale_id = $1", sale_id)
    await store(stores, sale_id, queue_no=100, queue_no_ceiling=100)
    reply = await checkpoint(stores, sale)
    assert reply.queue_no_ceiling == 5_000_000


async def test_an_old_copy_moves_no_checkpoint(stores: Stores) -> None:
    sale_id = await make(stores.postgres, epoch=2)
    await store(stores, sale_id, epoch=1, serving=50, queue_no=100)
    old = Sale(sale_id=sale_id, epoch=1)
    await checkpoint(stores, old)
    assert await kept(stores.postgres, sale_id) == (0, 0)
    assert await stored(stores, sale_id, "queue_no_ceiling") is None


def test_moments_are_milliseconds() -> None:
    assert sales.milliseconds(None) == 0
    assert sales.milliseconds(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=1234)) == 1234
