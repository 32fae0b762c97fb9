"""Lua scripts with parsed headers, typed replies, and batching by construction.

A file in ``lua/`` reads like a script for one request. What is sent is that file's body as a function, looped over all
requests of the moment for the same script and the same keys: one EVALSHA for up to 128 of them, each in a ``pcall`` of
its own, so that one fault cannot poison its neighbours. The header is the contract, and it is parsed: the order of keys
and arguments is written once, and reply classes that differ from RETURNS fail at import.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Generic, Protocol, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from redis.exceptions import (
    ClusterError,
    DataError,
    NoScriptError,
    OutOfMemoryError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from typing_extensions import TypeForm

from engine.stores.coalesce import Coalescer
from engine.stores.connections import StoreUnavailable
from engine.stores.replies import Reply, word_of

FOLDER = Path(__file__).resolve().parents[2] / "lua"

# One batch is about three milliseconds of script time, because meanwhile the store answers nobody else. Measured here:
# a hold of one seat (7 arguments with their count) takes 27 microseconds, one of twenty (27) takes 62.
OPERATIONS_MAX = 128
ARGUMENTS_MAX = 1280
IN_FLIGHT_MAX = 2
# From here on two batches of half the size are faster than one: the store runs one while this process packs the other.
SHARE_MIN = 32

Argument = str | int | bytes
R = TypeVar("R")


class StoreTimeout(StoreUnavailable):
    """The store did not answer in time, twice: whether the operation took effect is unknown."""


class StoreFull(StoreUnavailable):
    """The store has no memory left for anything new; what frees or finishes something still works."""


class ScriptFault(Exception):
    """One operation failed inside its script; its neighbours did not notice."""


class Keys(Protocol):
    """The keys of one hash tag: hashable, one property a key."""

    def __hash__(self) -> int: ...


# --- the header -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """What the comment at the top of a script says, and what its body unpacks."""

    flags: tuple[str, ...]
    says: str
    uses: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    variadic: bool = False
    returns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # Names given to KEYS[n] and ARGV[n] by `local <name> = …`, by position.
    key_names: dict[int, str] = field(default_factory=dict)
    argument_names: dict[int, str] = field(default_factory=dict)


_SECTION = re.compile(r"-- (USES|KEYS|ARGV|RETURNS)")
_LINE = re.compile(r"--   (\w+(?:\.\.\.)?(?: .*)?)")
_UNPACK = re.compile(
    r"^\s*local (\w+) = (?:(?:tonumber\()?(KEYS|ARGV)\[(\d+)\]\)?|\{ unpack\((KEYS|ARGV), (\d+)\) \})\s*$", re.MULTILINE
)


def parse(source: str) -> Header:
    """Parse a script's shebang, header and unpacking lines.

    Raises ValueError where the header is not of the form that every script has.
    """
    lines = source.splitlines()
    if not lines or not re.fullmatch(r"#!lua( flags=[\w,-]+)?", lines[0]):
        raise ValueError("the first line must be #!lua, or #!lua flags=…")
    sections: dict[str, list[str]] = {"USES": [], "KEYS": [], "ARGV": [], "RETURNS": []}
    says: list[str] = []
    section: list[str] | None = None
    ended = False
    for line in lines[1:]:
        if not line.startswith("--"):
            break
        if found := _SECTION.fullmatch(line):
            section, ended = sections[found.group(1)], False
            if section:
                raise ValueError(f"{found.group(1)} stands twice")
        elif line == "--" or ended:
            continue
        elif section is None:
            says.append(line.removeprefix("--").strip())
        elif found := _LINE.fullmatch(line):
            section.append(found.group(1))
        elif line.startswith("--  "):
            # Read as free text, it and every name after it would be lost without a word.
            raise ValueError(f"{line!r}: a name stands three spaces after --")
        else:
            ended = True
    arguments = [line.split()[0] for line in sections["ARGV"]]
    if any(name.endswith("...") for name in arguments[:-1]):
        raise ValueError("only the last argument may be variadic")
    unpacked = list(unpackings(source))
    return Header(
        flags=tuple(lines[0].partition("flags=")[2].split(",")) if "flags=" in lines[0] else (),
        says=" ".join(says),
        uses=tuple(line.split()[0] for line in sections["USES"]),
        keys=tuple(line.split()[0] for line in sections["KEYS"]),
        arguments=tuple(name.removesuffix("...") for name in arguments),
        variadic=bool(arguments) and arguments[-1].endswith("..."),
        returns={words[0]: tuple(words[1:]) for line in sections["RETURNS"] if (words := line.split())},
        key_names={at: name for name, table, at in unpacked if table == "KEYS"},
        argument_names={at: name for name, table, at in unpacked if table == "ARGV"},
    )


def unpackings(source: str) -> Iterator[tuple[str, str, int]]:
    """Yield name, table and n of each `local <name> = KEYS[n]`, `tonumber(ARGV[n])` or `{ unpack(ARGV, n) }`."""
    for name, table, at, rest_of, rest_from in _UNPACK.findall(source):
        yield name, table or rest_of, int(at or rest_from)


_WRAPPED = """\
local time_ms
do
  local clock = redis.call("TIME")
  time_ms = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
end

-- A write that nothing else in this call reads or writes: `value` is a field's, or a member's score. All operations
-- together write it at the end, because a command costs as much again to log as to carry out.
local last_writes = {{ HSET = {{}}, ZADD = {{}}, ZREM = {{}} }}
local function write_last(command, key, member, value)
  local members = last_writes[command][key]
  if not members then
    members = {{}}
    last_writes[command][key] = members
  end
  members[member] = value or true
end
{shared}
local function operation(ARGV)
{body}
end

-- Operations stand one after another, each preceded by the count of its arguments.
local operations = ARGV
local function carry_out(first, last)
  local reply
  if last - first < 100 then
    reply = operation({{ unpack(operations, first, last) }})
  else
    -- Thousands would not fit on the stack of a script.
    local arguments = {{}}
    for at = first, last do
      arguments[at - first + 1] = operations[at]
    end
    reply = operation(arguments)
  end
  -- Said here, because on its way out nil would hand everybody after it somebody else's reply, an array ends at its
  -- first nil, and a number loses its fraction.
  if type(reply) ~= "table" or type(reply[1]) ~= "string" then
    error(type(reply) == "table" and reply.err or "no word was answered", 0)
  end
  for at = 2, #reply do
    local field = reply[at]
    local kind = type(field)
    if kind ~= "string" and not (kind == "number" and field % 1 == 0 and field < 2 ^ 53 and field > -2 ^ 53) then
      error("field " .. at - 1 .. " of " .. reply[1] .. " is " .. tostring(field), 0)
    end
  end
  return reply
end

local replies, at = {{}}, 1
while at <= #operations do
  local count = tonumber(operations[at])
  local answered, reply = pcall(carry_out, at + 1, at + count)
  if not answered then
    reply = {{ "fault", type(reply) == "table" and reply.err or tostring(reply) }}
  end
  replies[#replies + 1] = reply
  at = at + count + 1
end

local fault
for command, keys in pairs(last_writes) do
  for key, members in pairs(keys) do
    local words = {{}}
    for member, value in pairs(members) do
      if command == "ZADD" then
        words[#words + 1] = value
      end
      words[#words + 1] = member
      if command == "HSET" then
        words[#words + 1] = value
      end
    end
    for first = 1, #words, 1000 do
      local written = redis.pcall(command, key, unpack(words, first, math.min(first + 999, #words)))
      fault = fault or type(written) == "table" and written.err
    end
  end
end
if fault then
  error(fault, 0) -- each of them may have wanted it
end
return replies
"""


def wrap(source: str, shared: Sequence[str]) -> str:
    """Return the text that is sent for a script: its shebang, the shared files it uses, the loop over its body."""
    shebang, _, body = source.partition("\n")
    return shebang + "\n" + _WRAPPED.format(shared="\n".join(shared), body=body)


@cache
def shared_source(name: str) -> str:
    """Read ``lua/shared/<name>.lua``."""
    return (FOLDER / "shared" / f"{name}.lua").read_text(encoding="utf-8")


# --- typed replies ----------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


_CONVERTERS: dict[Any, Callable[[Any], Any]] = {int: int, str: _text}


class _Decoder:
    """Makes one reply class from the elements of an answer."""

    def __init__(self, kind: type[Reply]) -> None:
        self.kind = kind
        hints = get_type_hints(kind)
        self.fields: list[str] = []
        self.fixed: list[Callable[[Any], Any]] = []
        self.rest = False
        for name in kind.__struct_fields__:
            if hints[name] == tuple[str, ...]:
                self.rest = True
                self.fields.append(f"{name}...")
            elif hints[name] in _CONVERTERS and not self.rest:
                self.fixed.append(_CONVERTERS[hints[name]])
                self.fields.append(name)
            else:
                raise TypeError(f"{kind.__name__}.{name}: a reply's field is int, str, or last and tuple[str, ...]")

    def decode(self, reply: Sequence[Any]) -> Reply:
        fixed = self.fixed
        count = len(reply) - 1
        if count < len(fixed) or (count > len(fixed) and not self.rest):
            raise ValueError(f"{self.kind.__name__} has the fields {self.fields}, the script answered {reply!r}")
        values = [convert(value) for convert, value in zip(fixed, reply[1:], strict=False)]
        if self.rest:
            values.append(tuple([_text(value) for value in reply[1 + len(fixed) :]]))
        return self.kind(*values)


class Script(Generic[R]):
    """One verb: ``lua/<path>.lua``, called with the header's argument names, answering one of the reply classes.

    ``HOLD = Script("seats/hold", SaleKeys, Held | SeatTaken)``, then
    ``await HOLD(gate, SaleKeys(sale_id), epoch=1, …, seat_nos=("A-1-1",))``.

    Raises at import: ValueError or TypeError when the header, the keys class and the reply classes disagree.
    """

    def __init__(self, path: str, keys: type[Any], replies: TypeForm[R], *, folder: Path = FOLDER) -> None:
        self.path = path
        self.source = (folder / f"{path}.lua").read_text(encoding="utf-8")
        self.header = parse(self.source)
        shared = [shared_source(name) for name in self.header.uses]
        self.text = wrap(self.source, shared)
        self.plain_text = self.text.partition("\n")[2]  # without the shebang, for servers that know none
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        self.plain_sha = hashlib.sha1(self.plain_text.encode(), usedforsecurity=False).hexdigest()
        self._names = self.header.arguments
        kinds = get_args(replies) if get_origin(replies) is UnionType else (replies,)
        self.decoders = {word_of(kind): _Decoder(kind) for kind in kinds}
        if len(self.decoders) != len(kinds):
            raise ValueError(f"lua/{path}.lua: two of its reply classes are one word")
        self._check(keys, [*shared, self.source])

    def __repr__(self) -> str:
        return f"<Script {self.path}>"

    def _check(self, keys: type[Any], sources: Sequence[str]) -> None:
        for name in self.header.keys:
            if not hasattr(keys, name):
                raise ValueError(f"lua/{self.path}.lua: {keys.__name__} has no key named {name}")
        places = {"KEYS": self.header.keys, "ARGV": self.header.arguments}
        for name, table, at in (unpacking for source in sources for unpacking in unpackings(source)):
            if places[table][at - 1 : at] != (name,):
                raise ValueError(f"lua/{self.path}.lua: {name} is not {table}[{at}] of its header")
        declared = {word: list(names) for word, names in self.header.returns.items()}
        classes = {word: decoder.fields for word, decoder in self.decoders.items()}
        for word in declared.keys() | classes.keys():
            if declared.get(word) != classes.get(word):
                raise ValueError(
                    f"lua/{self.path}.lua RETURNS {word} {declared.get(word)}, its reply class says {classes.get(word)}"
                )

    def __call__(self, gate: "Gate", keys: Keys, **arguments: Argument | Sequence[Argument]) -> "asyncio.Future[R]":
        """Queue one operation; the future answers with its reply.

        Raises StoreUnavailable (StoreTimeout, StoreFull) when the store cannot answer and ScriptFault when the
        operation failed inside the script.
        """
        values: list[Any] = [arguments.get(name) for name in self._names]
        if len(arguments) != len(values) or None in values:
            raise TypeError(f"{self!r} takes {', '.join(self._names)}, not {', '.join(arguments)}; and none is None")
        if self.header.variadic:
            rest = values.pop()
            if isinstance(rest, str | bytes):
                raise TypeError(f"{self!r}: {self._names[-1]} is a sequence, not one {type(rest).__name__}")
            values.extend(rest)
        return gate.submit(self, keys, values)

    def key_values(self, keys: Keys) -> list[str]:
        """The names in the store of the keys that this script declares, in its order."""
        return [getattr(keys, name) for name in self.header.keys]

    def decode(self, reply: Sequence[Any]) -> R | Exception:
        """Return the typed reply of one operation, or the exception that its requester gets."""
        word = _text(reply[0])
        if word == "fault":
            return ScriptFault(f"lua/{self.path}.lua: {reply[1].decode(errors='replace')}")
        decoder = self.decoders.get(word)
        if decoder is None:
            return ScriptFault(f"lua/{self.path}.lua answered {word!r}, which its header does not name")
        try:
            return decoder.decode(reply)  # type: ignore[return-value]  # one of the classes that R is the union of
        except ValueError as fault:
            return ScriptFault(f"lua/{self.path}.lua: {fault}")


# --- the gate ---------------------------------------------------------------------------------------------------------


class Statistics(msgspec.Struct):
    """What passed a gate since it was opened."""

    batches: int = 0
    operations: int = 0
    repeats: int = 0
    loads: int = 0
    faults: int = 0


class Gate:
    """The way into Redis: operations of one script and one shard that are asked at once go as one call.

    Args:
        redis: an asyncio client whose own retries are off (`connections.open_redis`).
        deadline_s: how long one operation may take, its wait for a turn and one repeat included.
        shebang: whether the server knows ``#!lua``; fakeredis does not.
    """

    def __init__(self, redis: Any, *, deadline_s: float = 3.0, shebang: bool = True) -> None:
        self.redis = redis
        self.statistics = Statistics()
        self._attempt_s = deadline_s / 3
        self._shebang = shebang
        self._queues: dict[tuple[str, Keys], Coalescer[list[Any], Any]] = {}

    @property
    def queued(self) -> int:
        """Operations that wait for their turn, over all scripts and shards."""
        return sum(queue.queued for queue in self._queues.values())

    @property
    def in_flight(self) -> int:
        """Batches under way, over all scripts and shards."""
        return sum(queue.in_flight for queue in self._queues.values())

    def submit(self, script: Script[R], keys: Keys, arguments: list[Any]) -> "asyncio.Future[R]":
        """Queue one operation of a script; see `Script.__call__`."""
        shard = (script.path, keys)
        queue = self._queues.get(shard)
        if queue is None:
            queue = self._queues[shard] = self._open_queue(script, keys)
        return queue.submit(arguments, len(arguments) + 1)

    def _open_queue(self, script: Script[Any], keys: Keys) -> Coalescer[list[Any], Any]:
        key_values = script.key_values(keys)

        async def run(batch: list[list[Any]]) -> Sequence[Any]:
            return await self._carry_out(script, key_values, batch)

        return Coalescer(
            run,
            most=OPERATIONS_MAX,
            weight_max=ARGUMENTS_MAX,
            in_flight_max=IN_FLIGHT_MAX,
            share_min=SHARE_MIN,
            wait_s=self._attempt_s,
            # The number of queues is the number of shards in use this moment, not of all there ever were.
            idle=lambda: self._queues.pop((script.path, keys), None),
        )

    async def _carry_out(self, script: Script[Any], key_values: list[str], batch: list[list[Any]]) -> Sequence[Any]:
        operations: list[Any] = []
        for arguments in batch:
            operations.append(len(arguments))
            operations.extend(arguments)
        self.statistics.batches += 1
        self.statistics.operations += len(batch)
        try:
            replies = await self._call(script, key_values, operations)
        except (DataError, UnicodeEncodeError) as fault:
            # Nothing was sent: one of the operations has an argument that cannot be. Each goes alone, so that only its
            # own requester is told.
            if len(batch) == 1:
                return [TypeError(f"{script!r}: {fault}")]
            return [(await self._carry_out(script, key_values, [arguments]))[0] for arguments in batch]
        answers = [script.decode(reply) for reply in replies]
        self.statistics.faults += sum(isinstance(answer, Exception) for answer in answers)
        return answers

    async def _call(self, script: Script[Any], key_values: list[str], operations: list[Any]) -> Sequence[Any]:
        try:
            return await self._attempt(script, key_values, operations)
        except (TimeoutError, RedisTimeoutError, RedisConnectionError):
            # The outcome is unknown. The ids in the arguments make a repeat safe, and only we know that: the client
            # library never retries. Once, because a second silence says more about the store than about the call.
            self.statistics.repeats += 1
        try:
            return await self._attempt(script, key_values, operations)
        except (TimeoutError, RedisTimeoutError) as fault:
            raise StoreTimeout(f"{script!r}: the store did not answer in {self._attempt_s:.1f} s, twice") from fault
        except RedisConnectionError as fault:
            raise StoreUnavailable(f"{script!r}: {fault}") from fault

    async def _attempt(self, script: Script[Any], key_values: list[str], operations: list[Any]) -> Sequence[Any]:
        text, sha = (script.text, script.sha) if self._shebang else (script.plain_text, script.plain_sha)
        rest = (len(key_values), *key_values, *operations)
        try:
            async with asyncio.timeout(self._attempt_s):
                try:
                    return await self.redis.execute_command("EVALSHA", sha, *rest)  # type: ignore[no-any-return]
                except NoScriptError:
                    # EVAL is routed by its keys to the node that lacks the script; SCRIPT LOAD might reach another.
                    self.statistics.loads += 1
                    return await self.redis.execute_command("EVAL", text, *rest)  # type: ignore[no-any-return]
        except (RedisTimeoutError, RedisConnectionError, DataError):
            raise
        except OutOfMemoryError as fault:
            raise StoreFull(str(fault)) from fault
        except ResponseError as fault:
            raise _fault_of(script, fault) from fault
        except (RedisError, RedisClusterException, ClusterError) as fault:
            raise StoreUnavailable(f"{script!r}: {fault}") from fault


# Answers of a server that is well but cannot serve this call now; anything else is a fault of the script's.
_PASSING = (
    "BUSY",
    "LOADING",
    "READONLY",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ASK",
    "MISCONF",
    "NOREPLICAS",
)


def _fault_of(script: Script[Any], fault: ResponseError) -> Exception:
    message = str(fault)
    if message.startswith("OOM"):
        return StoreFull(message)
    if message.startswith(_PASSING) or "Cluster" in type(fault).__name__ or type(fault) is not ResponseError:
        return StoreUnavailable(f"{script!r}: {type(fault).__name__} {message}")
    return ScriptFault(f"{script!r}: {message}")
