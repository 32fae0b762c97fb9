"""What Postgres keeps of the line: a row a number, folded from what the journal says."""

import pytest

from engine import ids, waiting_room
from engine.stores.connections import Stores
from engine.stores.outbox import BadEntry, Entry
from tests.engine.lines import RecordedLine, open_recorded_line, user, visitor


@pytest.fixture
async def line(stores_any: Stores) -> RecordedLine:
    return await open_recorded_line(stores_any)


async def test_the_rows_say_what_became_of_each_number(line: RecordedLine) -> None:
    await line.joined("ann", "bob", "vic", "dan", "eve")
    await line.admit(2)
    await line.enter("ann", 1)
    await line.tie("vic", "cat", 3)
    await line.leave("dan", 4)
    await line.age(600_000)
    await line.set(room="paused")
    await line.admit()
    for _ in range(2):
        await line.record()
        assert await line.rows() == {
            1: ("EXPIRED", user("ann")),
            2: ("EXPIRED", user("bob")),
            3: ("WAITING", user("cat")),
            4: ("LEFT", user("dan")),
            5: ("WAITING", user("eve")),
        }


async def test_batches_cut_anywhere_end_in_the_same_rows(line: RecordedLine) -> None:
    await line.joined("ann", "vic", "bob")
    await line.admit(1)
    await line.tie("vic", "cat", 2)
    await line.leave("bob", 3)
    await line.admit(1)
    entries = await line.journal()
    outcomes = []
    for size in (1, 2, len(entries)):
        await line.postgres.execute("DELETE FROM queue_tokens")
        for at in range(0, len(entries), size):
            await line.record(*entries[at : at + size])
        outcomes.append(await line.rows())
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert outcomes[0] == {1: ("ACTIVE", user("ann")), 2: ("ACTIVE", user("cat")), 3: ("LEFT", user("bob"))}


async def test_bought_is_written_whichever_stream_comes_first(line: RecordedLine) -> None:
    await line.joined("ann", "bob")
    await line.admit()
    await line.enter("ann", 1)
    for _ in range(2):
        await line.record_processed(1, "ann")
    assert await line.rows() == {1: ("PROCESSED", user("ann"))}
    await line.record()
    assert await line.rows() == {1: ("PROCESSED", user("ann")), 2: ("ACTIVE", user("bob"))}
    await line.record_processed(2, "bob")
    assert (await line.rows())[2] == ("PROCESSED", user("bob"))


async def test_a_returned_number_lives_again_unless_it_has_bought_meanwhile(line: RecordedLine) -> None:
    await line.joined("ann", "bob")
    await line.leave("ann", 1)
    await line.record()
    returned = [Entry("9-9", 1, 9, "9-8", "returned", {"queue_no": str(number)}) for number in (1, 2)]
    await line.record_processed(2, "bob")
    await line.record(*returned)
    assert await line.rows() == {1: ("WAITING", user("ann")), 2: ("PROCESSED", user("bob"))}


async def test_a_number_that_was_put_back_waits_again_in_its_new_epoch(line: RecordedLine) -> None:
    await line.joined("ann")
    await line.admit()
    await line.record()
    assert await line.rows() == {1: ("ACTIVE", user("ann"))}
    await line.lose()
    await line.put_back("ann", 1)
    await line.record(*await line.journal(epoch=2))
    assert (await line.rows())[1] == ("WAITING", user("ann"))
    assert await line.postgres.fetchval("SELECT epoch FROM queue_tokens") == 2


async def test_an_entry_that_makes_no_sense_is_named(line: RecordedLine) -> None:
    entry = Entry("1-1", 1, 1, "0-0", "joined", {"queue_no": "many", "owner": "ann", "at_ms": "1"})
    with pytest.raises(BadEntry):
        await line.record(entry)


async def test_entries_about_holds_are_passed_over(line: RecordedLine) -> None:
    entry = Entry("1-1", 1, 1, "0-0", "released", {"hold_id": ids.random_id()})
    await line.record(entry)
    assert await line.rows() == {}


async def test_a_resync_writes_the_line_as_it_stands(line: RecordedLine) -> None:
    await line.joined("ann", "vic", "bob", "dan", "eve")
    await line.record()
    await line.admit(2)
    await line.tie("vic", "cat", 2)
    await line.leave("dan", 4)
    async with line.postgres.acquire() as connection:
        for _ in range(2):
            await waiting_room.resync(line.gate, connection, line.sale)
    assert await line.rows() == {
        1: ("ACTIVE", user("ann")),
        2: ("ACTIVE", user("cat")),
        3: ("WAITING", user("bob")),
        4: ("LEFT", user("dan")),
        5: ("WAITING", user("eve")),
    }
    assert visitor("vic") not in [owner for _, owner in (await line.rows()).values()]
