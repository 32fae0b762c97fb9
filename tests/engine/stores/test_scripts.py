"""The loader of scripts: headers, typed replies, batches, and what happens when the store misbehaves."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from fakeredis import FakeAsyncRedis
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ResponseError

from engine.stores.connections import RedisClient, StoreUnavailable, open_redis
from engine.stores.replies import Refusal, Reply
from engine.stores.scripts import (
    ARGUMENTS_MAX,
    OPERATIONS_MAX,
    SHARE_MIN,
    Gate,
    Script,
    ScriptFault,
    StoreFull,
    StoreTimeout,
    parse,
)

TAKE = """\
#!lua
-- Take places for somebody: all of them, or none.
--
-- KEYS
--   places  hash  place -> who
-- ARGV
--   who
--   ids...
-- RETURNS
--   taken       count time_ms
--   occupied    ids...
local places = KEYS[1]
local who = ARGV[1]

if who == "poison" then
  redis.call("HSET", places, "half", "done")
  redis.call("LPUSH", places, "wrong type")
end
local occupied = {}
for at = 2, #ARGV do
  if redis.call("HEXISTS", places, ARGV[at]) == 1 then
    occupied[#occupied + 1] = ARGV[at]
  end
end
if #occupied > 0 then
  return { "occupied", unpack(occupied) }
end
for at = 2, #ARGV do
  redis.call("HSET", places, ARGV[at], who)
end
return { "taken", #ARGV - 1, time_ms }
"""

FREE = """\
#!lua flags=allow-oom
-- Free every place.
--
-- KEYS
--   places  hash  place -> who
-- RETURNS
--   freed
redis.call("DEL", KEYS[1])
return { "freed" }
"""


@dataclass(frozen=True)
class Hall:
    name: str

    @property
    def places(self) -> str:
        return f"{{hall:{self.name}}}:places"


class Taken(Reply, frozen=True):
    """The places are yours."""

    count: int
    time_ms: int


class Occupied(Refusal, frozen=True):
    """Somebody has these places."""

    ids: tuple[str, ...]


class Freed(Reply, frozen=True):
    """Every place is free."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "take.lua").write_text(TAKE)
    (tmp_path / "free.lua").write_text(FREE)
    return tmp_path


@pytest.fixture
def take(folder: Path) -> Script[Taken | Occupied]:
    return Script("take", Hall, Taken | Occupied, folder=folder)


@pytest.fixture
def free(folder: Path) -> Script[Freed]:
    return Script("free", Hall, Freed, folder=folder)


async def calls_of(redis: RedisClient, command: str) -> int:
    """How often the store has run a command, over all its nodes."""
    if isinstance(redis, RedisCluster):
        nodes = (await redis.info("commandstats", target_nodes=RedisCluster.PRIMARIES)).values()
    else:
        nodes = [await redis.info("commandstats")]
    return sum(node.get(f"cmdstat_{command}", {}).get("calls", 0) for node in nodes)


# The header -----------------------------------------------------------------------------------------------------------


def test_a_header_says_order_names_and_flags() -> None:
    header = parse(TAKE)
    assert header.keys == ("places",)
    assert (header.arguments, header.variadic) == (("who", "ids"), True)
    assert header.returns == {"taken": ("count", "time_ms"), "occupied": ("ids...",)}
    assert header.key_names == {1: "places"}
    assert header.argument_names == {1: "who"}
    assert header.says == "Take places for somebody: all of them, or none."
    assert parse(FREE).flags == ("allow-oom",)


@pytest.mark.parametrize("source", ["", "-- no shebang\n", "#!lua nonsense\n"])
def test_a_script_without_its_first_line_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="first line"):
        parse(source)


def test_only_the_last_argument_may_be_variadic() -> None:
    with pytest.raises(ValueError, match="variadic"):
        parse("#!lua\n-- ARGV\n--   ids...\n--   who\n")


@pytest.mark.parametrize("line", ["--  who", "--    who", "--   who's"])
def test_a_name_that_would_be_read_as_free_text_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="three spaces"):
        parse(f"#!lua\n-- ARGV\n{line}\n--   ids...\n")


def test_a_section_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="ARGV stands twice"):
        parse("#!lua\n-- ARGV\n--   who\n-- RETURNS\n--   taken\n-- ARGV\n--   ids...\n")


def test_free_text_ends_a_section_and_is_no_name() -> None:
    header = parse(
        "#!lua\n-- One.\n--\n-- ARGV\n--   who  a name\n-- Safe to repeat:\n--   always.\nlocal who = ARGV[1]\n"
    )
    assert (header.says, header.arguments) == ("One.", ("who",))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("local who = ARGV[1]", "local who = ARGV[2]"),
        ("local who = ARGV[1]", "local buyer = tonumber(ARGV[1])"),
        ("local who = ARGV[1]", "local who = { unpack(ARGV, 2) }"),
        ("local places = KEYS[1]", "local places = KEYS[2]"),
    ],
)
def test_a_body_that_unpacks_other_names_than_its_header_fails_at_import(folder: Path, old: str, new: str) -> None:
    (folder / "take.lua").write_text(TAKE.replace(old, new))
    with pytest.raises(ValueError, match="of its header"):
        Script("take", Hall, Taken | Occupied, folder=folder)


def test_two_reply_classes_of_one_word_fail_at_import(folder: Path) -> None:
    class freed(Reply, frozen=True):  # noqa: N801
        """Another class of the same word."""

    with pytest.raises(ValueError, match="one word"):
        Script("free", Hall, Freed | freed, folder=folder)


def test_reply_classes_that_differ_from_returns_fail_at_import(folder: Path) -> None:
    with pytest.raises(ValueError, match="occupied"):
        Script("take", Hall, Taken, folder=folder)
    (folder / "take.lua").write_text(TAKE.replace("count time_ms", "time_ms count"))
    with pytest.raises(ValueError, match="taken"):
        Script("take", Hall, Taken | Occupied, folder=folder)


def test_a_key_that_the_keys_class_lacks_fails_at_import(folder: Path) -> None:
    (folder / "take.lua").write_text(TAKE.replace("--   places", "--   chairs"))
    with pytest.raises(ValueError, match="chairs"):
        Script("take", Hall, Taken | Occupied, folder=folder)


def test_a_reply_field_that_no_script_can_answer_fails_at_import(folder: Path) -> None:
    class Freed(Reply, frozen=True):
        """A share of the places is free."""

        share: float

    (folder / "free.lua").write_text(FREE.replace("--   freed", "--   freed  share"))
    with pytest.raises(TypeError, match="share"):
        Script("free", Hall, Freed, folder=folder)


# One call -------------------------------------------------------------------------------------------------------------


async def test_replies_are_typed(redis_any: RedisClient, take: Script[Taken | Occupied]) -> None:
    gate = Gate(redis_any)
    taken = await take(gate, Hall("a"), who="ann", ids=("1", "2"))
    assert isinstance(taken, Taken)
    assert taken.count == 2
    assert taken.time_ms > 1_700_000_000_000
    assert await take(gate, Hall("a"), who="bob", ids=("2", "3", "1")) == Occupied(ids=("2", "1"))


async def test_a_wrong_argument_name_is_an_error_of_the_caller(redis: Redis, take: Script[Taken | Occupied]) -> None:
    with pytest.raises(TypeError, match="not whom, ids"):
        take(Gate(redis), Hall("a"), whom="ann", ids=())
    with pytest.raises(TypeError, match="ids is a sequence"):
        take(Gate(redis), Hall("a"), who="ann", ids="12")
    with pytest.raises(TypeError, match="who, ids"):
        take(Gate(redis), Hall("a"), who="ann", ids=(), more="1")


async def test_fakeredis_answers_the_same(take: Script[Taken | Occupied]) -> None:
    gate = Gate(FakeAsyncRedis(), shebang=False)
    assert isinstance(await take(gate, Hall("a"), who="ann", ids=("1",)), Taken)
    assert await take(gate, Hall("a"), who="bob", ids=("1",)) == Occupied(ids=("1",))


# Batches --------------------------------------------------------------------------------------------------------------


async def test_requests_of_one_moment_are_one_call_in_order_of_arrival(
    redis_any: RedisClient, take: Script[Taken | Occupied]
) -> None:
    gate = Gate(redis_any)
    await take(gate, Hall("a"), who="loads the script", ids=())
    before = await calls_of(redis_any, "evalsha")
    replies = await asyncio.gather(*[take(gate, Hall("a"), who=str(n), ids=("same",)) for n in range(SHARE_MIN)])
    assert await calls_of(redis_any, "evalsha") == before + 1
    assert [type(reply) for reply in replies] == [Taken] + [Occupied] * (SHARE_MIN - 1)


async def test_different_shards_are_never_mixed_in_one_call(
    redis_any: RedisClient, take: Script[Taken | Occupied]
) -> None:
    gate = Gate(redis_any)
    replies = await asyncio.gather(*[take(gate, Hall(f"hall {n % 7}"), who=str(n), ids=("same",)) for n in range(70)])
    assert sum(isinstance(reply, Taken) for reply in replies) == 7


async def test_a_batch_is_bounded(redis: Redis, take: Script[Taken | Occupied]) -> None:
    gate = Gate(redis)
    await asyncio.gather(*[take(gate, Hall("a"), who=str(n), ids=(str(n),)) for n in range(2 * OPERATIONS_MAX + 1)])
    assert gate.statistics.batches == 3
    # The bound on arguments cuts a batch before the bound on operations does.
    many = ARGUMENTS_MAX // SHARE_MIN - 2
    await asyncio.gather(
        *[take(gate, Hall("b"), who=str(n), ids=[f"{n}-{at}" for at in range(many)]) for n in range(SHARE_MIN + 1)]
    )
    assert gate.statistics.batches == 3 + 2


async def test_a_fault_in_one_operation_spares_its_neighbours(
    redis_any: RedisClient, take: Script[Taken | Occupied]
) -> None:
    gate = Gate(redis_any)
    first, poison, last = await asyncio.gather(
        take(gate, Hall("a"), who="ann", ids=("1",)),
        take(gate, Hall("a"), who="poison", ids=("2",)),
        take(gate, Hall("a"), who="bob", ids=("3",)),
        return_exceptions=True,
    )
    assert isinstance(first, Taken)
    assert isinstance(poison, ScriptFault)
    assert "WRONGTYPE" in str(poison)
    assert isinstance(last, Taken)
    assert gate.statistics.faults == 1


ANSWER = """\
#!lua
-- Answer what one is told to.
--
-- KEYS
--   places  hash
-- ARGV
--   with
-- RETURNS
--   answered  number
--   listed    first second rest...
local with = ARGV[1]
if with == "an error" then return redis.error_reply("MINE said no") end
return loadstring("return " .. with)()
"""


class Answered(Reply, frozen=True):
    """What one is told to."""

    number: int


class Listed(Reply, frozen=True):
    """Two and more."""

    first: int
    second: str
    rest: tuple[str, ...]


NOTE = """\
#!lua
-- Note who came last, and how often anybody came.
--
-- KEYS
--   places  hash  place -> who
-- ARGV
--   place
--   who
-- RETURNS
--   noted
local places = KEYS[1]
local place = ARGV[1]
local who = ARGV[2]

write_last("HSET", places, place, who)
if who == "poison" then
  write_last("ZADD", places, place, 1)
end
return { "noted" }
"""


class Noted(Reply, frozen=True):
    pass


@pytest.fixture
def note(tmp_path: Path) -> Script[Noted]:
    (tmp_path / "note.lua").write_text(NOTE)
    return Script("note", Hall, Noted, folder=tmp_path)


async def test_what_is_written_last_is_one_command_and_the_last_operations_word(
    redis: Any, note: Script[Noted]
) -> None:
    gate, hall = Gate(redis), Hall("one")
    await note(gate, hall, place="A", who="nobody")
    before = await calls_of(redis, "hset")
    places = [f"place {n}" for n in range(SHARE_MIN // 2)]
    await asyncio.gather(*[note(gate, hall, place=place, who=who) for who in ("ann", "bob") for place in places])
    assert await calls_of(redis, "hset") == before + 1
    assert await redis.hgetall(hall.places) == {b"A": b"nobody"} | {place.encode(): b"bob" for place in places}


async def test_more_than_fits_on_a_stack_is_written_last(redis: Any, note: Script[Noted]) -> None:
    hall = Hall("one")
    operations = [word for n in range(2_000) for word in (2, f"place {n}", "ann")]
    replies = await redis.execute_command("EVAL", note.text, 1, hall.places, *operations)
    assert len(replies) == await redis.hlen(hall.places) == 2_000


async def test_a_last_write_that_fails_is_told_to_all_and_stops_no_other(redis: Any, note: Script[Noted]) -> None:
    gate, hall = Gate(redis), Hall("one")
    told = await asyncio.gather(
        *[note(gate, hall, place=who, who=who) for who in ("ann", "poison", "bob")], return_exceptions=True
    )
    assert [type(each) for each in told] == [ScriptFault] * 3
    assert set(await redis.hkeys(hall.places)) == {b"ann", b"poison", b"bob"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("nil", "no word"),
        ("true", "no word"),
        ("7", "no word"),
        ("{}", "no word"),
        ("{ 7 }", "no word"),
        ("an error", "MINE said no"),
        ('{ "answered" }', "has the fields"),
        ('{ "answered", 1, 2 }', "has the fields"),
        ('{ "answered", "many" }', "many"),
        ('{ "answered", 1.5 }', r"field 1 of answered is 1\.5"),
        ('{ "answered", 2 ^ 53 }', "field 1 of answered"),
        ('{ "answered", 0 / 0 }', "field 1 of answered"),
        ('{ "answered", true }', "field 1 of answered is true"),
        ('{ "answered", { 1 } }', "field 1 of answered is table"),
        ('{ "listed", 1 }', "has the fields"),
        ('{ "listed", 1, "b", nil, "d" }', "field 3 of listed is nil"),
        ('{ "listed", 1, "\\255" }', "utf-8"),
        ('{ "unheard_of" }', "unheard_of"),
        ("nonsense(", "user_script|attempt to call"),
    ],
)
async def test_an_answer_that_makes_no_sense_is_a_fault_of_its_own_operation(
    redis: Redis, tmp_path: Path, answer: str, said: str
) -> None:
    (tmp_path / "answer.lua").write_text(ANSWER)
    script: Script[Answered | Listed] = Script("answer", Hall, Answered | Listed, folder=tmp_path)
    gate = Gate(redis)
    first, poison, last = await asyncio.gather(
        script(gate, Hall("a"), **{"with": '{ "answered", 1 }'}),
        script(gate, Hall("a"), **{"with": answer}),
        script(gate, Hall("a"), **{"with": '{ "listed", 3, "b", "c", 4 }'}),
        return_exceptions=True,
    )
    assert (first, last) == (Answered(number=1), Listed(first=3, second="b", rest=("c", "4")))
    assert isinstance(poison, ScriptFault)
    assert re.search(said, str(poison)), poison


@pytest.mark.parametrize("value", [True, ("2",), object(), "\ud800"])
async def test_an_argument_that_cannot_be_sent_is_an_error_of_its_own_caller(
    redis_any: RedisClient, take: Script[Taken | Occupied], value: Any
) -> None:
    gate = Gate(redis_any)
    first, wrong, last = await asyncio.gather(
        take(gate, Hall("a"), who="ann", ids=("1",)),
        take(gate, Hall("a"), who=value, ids=("2",)),
        take(gate, Hall("a"), who="bob", ids=("3",)),
        return_exceptions=True,
    )
    assert isinstance(first, Taken)
    assert isinstance(wrong, TypeError)
    assert isinstance(last, Taken)


async def test_two_batches_at_most_are_under_way_while_others_gather(
    redis: Redis, take: Script[Taken | Occupied]
) -> None:
    gate = Gate(redis)
    calls = [take(gate, Hall("a"), who=str(n), ids=(str(n),)) for n in range(4 * OPERATIONS_MAX)]
    assert (gate.in_flight, gate.queued) == (0, 4 * OPERATIONS_MAX)
    await asyncio.sleep(0)
    assert (gate.in_flight, gate.queued) == (2, 2 * OPERATIONS_MAX)
    assert all(isinstance(reply, Taken) for reply in await asyncio.gather(*calls))
    assert gate.statistics.operations == 4 * OPERATIONS_MAX


async def test_queues_of_idle_shards_are_forgotten(redis: Redis, take: Script[Taken | Occupied]) -> None:
    gate = Gate(redis)
    await asyncio.gather(*[take(gate, Hall(str(n)), who="ann", ids=("1",)) for n in range(50)])
    await asyncio.sleep(0)
    assert (gate.queued, gate.in_flight, len(gate._queues)) == (0, 0, 0)


async def test_a_caller_who_gives_up_disturbs_nobody(redis: Redis, take: Script[Taken | Occupied]) -> None:
    gate = Gate(redis)

    async def caller(n: int) -> Taken | Occupied:
        return await take(gate, Hall("a"), who=str(n), ids=(str(n),))

    tasks = [asyncio.create_task(caller(n)) for n in range(10)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks[4].cancel()
    replies = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(replies[4], asyncio.CancelledError)
    assert all(isinstance(reply, Taken) for at, reply in enumerate(replies) if at != 4)


# A store in trouble ---------------------------------------------------------------------------------------------------


async def test_a_forgotten_script_is_sent_again(redis_any: RedisClient, take: Script[Taken | Occupied]) -> None:
    gate = Gate(redis_any)
    await take(gate, Hall("a"), who="ann", ids=("1",))
    loads = gate.statistics.loads
    everywhere = {"target_nodes": RedisCluster.PRIMARIES} if isinstance(redis_any, RedisCluster) else {}
    await redis_any.execute_command("SCRIPT FLUSH", **everywhere)
    assert isinstance(await take(gate, Hall("a"), who="bob", ids=("2",)), Taken)
    assert gate.statistics.loads == loads + 1


async def test_a_full_store_refuses_what_is_new_and_lets_through_what_frees(
    redis: Redis, take: Script[Taken | Occupied], free: Script[Freed]
) -> None:
    gate = Gate(redis)
    await take(gate, Hall("a"), who="ann", ids=("1",))
    await redis.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(StoreFull):
            await take(gate, Hall("a"), who="bob", ids=("2",))
        assert await free(gate, Hall("a")) == Freed()
    finally:
        await redis.config_set("maxmemory", "0")


async def test_a_store_busy_with_another_script_is_a_fault_that_passes(
    redis: Redis, take: Script[Taken | Occupied]
) -> None:
    gate = Gate(redis)

    async def take_until_busy() -> None:
        while True:
            await take(gate, Hall("a"), who="ann", ids=())

    await redis.config_set("busy-reply-threshold", 1)
    stubborn = asyncio.ensure_future(cast("Awaitable[str]", redis.eval("while true do end", 0)))
    try:
        with pytest.raises(StoreUnavailable, match="BUSY"):
            await take_until_busy()
    finally:
        await redis.script_kill()
        with pytest.raises(ResponseError, match="killed"):
            await stubborn
        await redis.config_set("busy-reply-threshold", 5000)
    assert isinstance(await take(gate, Hall("a"), who="ann", ids=("1",)), Taken)


@asynccontextmanager
async def proxy(url: str, *, passes: Callable[[int], bool], cuts: bool = False) -> AsyncIterator[str]:
    """Forward to the store, swallowing the answer of each EVALSHA whose count, from 1, `passes` refuses.

    With `cuts` the connection ends in place of that answer.
    """
    host, port = url.removeprefix("redis://").split("/")[0].rsplit("@")[-1].split(":")
    count = 0
    connections: set[asyncio.Task[None]] = set()

    async def forward(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        nonlocal count
        store, to_store = await asyncio.open_connection(host, int(port))
        swallow = False

        async def answers() -> None:
            while received := await store.read(65536):
                if not swallow:
                    to_client.write(received)
                elif cuts:
                    to_client.close()

        answering = asyncio.create_task(answers())
        try:
            while received := await client.read(65536):
                if b"EVALSHA" in received:
                    count += 1
                    swallow = not passes(count)
                to_store.write(received)
        finally:
            answering.cancel()
            to_store.close()
            to_client.close()

    def accept(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(forward(client, to_client))
        connections.add(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


@pytest.mark.parametrize("cuts", [False, True])
async def test_a_lost_answer_is_asked_for_once_more(
    redis: Redis, redis_url: str, take: Script[Taken | Occupied], *, cuts: bool
) -> None:
    await take(Gate(redis), Hall("a"), who="loads the script", ids=())
    async with proxy(redis_url, passes=lambda count: count != 1, cuts=cuts) as url:
        client = open_redis(url)
        gate = Gate(client, deadline_s=1.5)
        # The first attempt took effect and its answer was lost; an id in the arguments is what makes a repeat safe.
        assert await take(gate, Hall("a"), who="ann", ids=("1",)) == Occupied(ids=("1",))
        assert gate.statistics.repeats == 1
        await client.aclose()


async def test_a_second_silence_is_a_fault_and_there_is_no_third_attempt(
    redis: Redis, redis_url: str, take: Script[Taken | Occupied]
) -> None:
    await take(Gate(redis), Hall("a"), who="loads the script", ids=())
    before = await calls_of(redis, "evalsha")
    async with proxy(redis_url, passes=lambda _count: False) as url:
        client = open_redis(url)
        with pytest.raises(StoreTimeout):
            await take(Gate(client, deadline_s=0.6), Hall("a"), who="ann", ids=("1",))
        await client.aclose()
    assert await calls_of(redis, "evalsha") == before + 2


async def test_a_store_that_is_away_is_a_fault_and_not_a_hang(take: Script[Taken | Occupied]) -> None:
    client = open_redis("redis://127.0.0.1:1/0")
    with pytest.raises(StoreUnavailable):
        await take(Gate(client, deadline_s=1.5), Hall("a"), who="ann", ids=("1",))
    await client.aclose()
