"""The same commands on Valkey, on fakeredis and on a model in plain Python: any difference is a bug.

Words are held against the model, states of the two stores against each other, times left out, and what is true of
every line is asserted after every step. Time does not pass by itself: what lapses is told to lapse.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from engine.refusals import NotFound
from engine.stores import embedded
from engine.stores.replies import Reply
from engine.waiting_room import Admitted, Joined, Left, PutBack, QueueClosed, Tied, Token
from tests.engine.lines import Line, open_line, owner_of
from tests.engine.two_stores import TwoStores, try_out

USERS = ("ann", "bob")
VISITORS = ("v1", "v2", "v3")
OWNERS = (*USERS, *VISITORS)
# Numbers from before the store was lost; those of this copy go on from the ceiling.
OLD = range(1, 13)
FIRST = 1_000_000
ACTIVE_MAX, RATE = 3, 5


# --- the model --------------------------------------------------------------------------------------------------------


@dataclass
class Live:
    """A live token as the model knows it."""

    status: str
    queue_no: int
    entered: bool = False
    lapsed: bool = False
    absent: bool = False

    @property
    def public(self) -> str:
        return "ACTIVE" if self.status == "ACTIVE" else "WAITING"


@dataclass(frozen=True)
class End:
    """How a number ended, or which one stands for it."""

    status: str
    owner: str
    kept: int = 0


class Model:
    """What the scripts promise, without a store: dictionaries and no cleverness."""

    def __init__(self) -> None:
        self.live: dict[str, Live] = {}
        self.ended: dict[int, End] = {}
        self.old: set[int] = set()
        self.ties: dict[str, tuple[str, int]] = {}
        self.browsers: dict[str, list[str]] = {}
        self.queue_no = FIRST
        self.serving = 0
        self.admitted_lately = 0
        self.room = "open"

    # What time and others do to a token.

    def end(self, owner: str, queue_no: int, status: str, kept: int = 0) -> None:
        token = self.live.get(owner)
        if token and token.queue_no == queue_no:
            del self.live[owner]
        self.ended[queue_no] = End("MOVED" if kept else status, owner, kept)

    def settle(self, owner: str) -> Live | None:
        token = self.live.get(owner)
        if token and token.status == "ACTIVE" and token.lapsed and not token.entered:
            self.skip(owner)
            return self.live[owner]
        if token and token.lapsed:
            self.end(owner, token.queue_no, "EXPIRED")
            return None
        return token

    def skip(self, owner: str) -> None:
        self.live[owner] = Live("SKIPPED", self.live[owner].queue_no)

    def standing(self, owner: str) -> tuple[Live, str] | None:
        if token := self.settle(owner):
            return token, owner
        user, tied_no = self.ties.get(owner, ("", 0))
        token = self.settle(user)
        return (token, user) if token and token.queue_no == tied_no else None

    def follow(self, owner: str, queue_no: int) -> tuple[Live | End, str, int] | None:
        holders = [owner, *([self.ties[owner][0]] if owner in self.ties else [])]
        while True:
            for holder in holders:
                token = self.settle(holder)
                if token and token.queue_no == queue_no:
                    return token, holder, queue_no
            end = self.ended.get(queue_no)
            if end is None or end.owner not in holders:
                return None
            if end.status != "MOVED":
                return end, end.owner, queue_no
            queue_no = end.kept

    def keep_tie(self, user: str, visitor: str, queue_no: int) -> None:
        browsers = self.browsers.setdefault(user, [])
        if visitor not in browsers:
            browsers.append(visitor)
        for each in browsers:
            self.ties[each] = (user, queue_no)

    # What people do.

    def join(self, owner: str) -> Reply:
        if standing := self.standing(owner):
            return Joined(standing[0].queue_no, 0, standing[0].public)
        if self.room == "closed":
            return QueueClosed()
        self.queue_no += 1
        self.live[owner] = Live("WAITING", self.queue_no)
        return Joined(self.queue_no, 1, "WAITING")

    def enter(self, owner: str, queue_no: int) -> Reply:
        found = self.follow(owner, queue_no)
        if found is None:
            return NotFound()
        token, holder, queue_no = found
        if isinstance(token, End):
            return Token(token.status, queue_no, 0, 0)
        if token.status == "ACTIVE":
            token.entered = True
            return Token("ACTIVE", queue_no, 0, 1)
        if token.status == "SKIPPED":
            self.live[holder] = token = Live("RETURNED", queue_no)
        if token.queue_no <= self.serving:
            token.absent = False
        before = [other for other in self.live.values() if other.status == "RETURNED"]
        if token.status == "RETURNED":
            ahead = sum(other.queue_no < queue_no for other in before)
        else:
            waiting = [other.queue_no for other in self.live.values() if other.status == "WAITING"]
            ahead = len(before) + sum(number < queue_no for number in waiting)
        return Token("WAITING", queue_no, ahead, 0)

    def leave(self, owner: str, queue_no: int) -> Reply:
        found = self.follow(owner, queue_no)
        if found is None:
            return NotFound()
        token, holder, queue_no = found
        if isinstance(token, End):
            return Left(queue_no, token.status)
        self.end(holder, queue_no, "LEFT")
        return Left(queue_no, "LEFT")

    def tie(self, visitor: str, user: str, queue_no: int) -> Reply:
        found = self.follow(visitor, queue_no)
        if found is None or found[1] not in {visitor, user}:
            return NotFound()
        token, holder, queue_no = found
        if isinstance(token, End):
            return Tied(queue_no, token.status)
        if holder == user:
            return Tied(queue_no, token.public)
        kept = self.hand_over(visitor, user, token)
        return Tied(kept.queue_no, kept.public)

    def hand_over(self, visitor: str, user: str, token: Live) -> Live:
        own = self.settle(user)
        both = [each for each in (token, own) if each]
        kept = min(both, key=lambda each: (each.status != "ACTIVE", each.queue_no))
        if kept is token:
            if own:
                self.end(user, own.queue_no, "LEFT", token.queue_no)
            self.live[user] = self.live.pop(visitor)
        else:
            self.end(visitor, token.queue_no, "LEFT", kept.queue_no)
        self.keep_tie(user, visitor, kept.queue_no)
        return kept

    def put_back(self, owner: str, queue_no: int, visitor: str) -> Reply:
        found = self.follow(owner, queue_no)
        if found is None and visitor:
            found = self.follow(visitor, queue_no)
            if found and found[1] not in {visitor, owner}:
                return NotFound()
        if found:
            token, holder, queue_no = found
            if isinstance(token, End):
                return PutBack(queue_no, token.status)
            kept = self.hand_over(visitor, owner, token) if holder == visitor else token
            return PutBack(kept.queue_no, kept.public)
        if queue_no > self.queue_no:
            return NotFound()
        standing = self.standing(owner)
        if standing and (standing[0].status != "WAITING" or standing[0].queue_no < queue_no):
            kept, holder = standing
            self.end(holder, queue_no, "LEFT", kept.queue_no)
        else:
            holder = owner
            if standing:
                holder = standing[1]
                self.end(holder, standing[0].queue_no, "LEFT", queue_no)
            kept = self.live[holder] = Live("WAITING", queue_no)
        if visitor:
            self.keep_tie(holder, visitor, kept.queue_no)
        return PutBack(kept.queue_no, kept.public)

    # What the tick does.

    def admit(self, most: int) -> Reply:
        expired = skipped = lapsed_most = 0
        for status in ("ACTIVE", "SKIPPED"):
            lapsed = [owner for owner, token in self.live.items() if token.status == status and token.lapsed][:most]
            ended = sum(self.settle(owner) is None for owner in lapsed)
            expired, skipped = expired + ended, skipped + len(lapsed) - ended
            lapsed_most = max(lapsed_most, len(lapsed))
        quota = 0
        if self.room == "open":
            active = sum(token.status == "ACTIVE" for token in self.live.values())
            quota = min(ACTIVE_MAX - active, RATE - self.admitted_lately)
        called: list[str] = []
        absent: list[str] = []
        for status in ("RETURNED", "WAITING"):
            for owner in self._in_order(status):
                if len(called) < quota and len(called) + len(absent) < most:
                    (absent if self.live[owner].absent else called).append(owner)
        for owner in (*called, *absent):
            self.serving = max(self.serving, self.live[owner].queue_no)
        for owner in absent:
            self.skip(owner)
        for owner in called:
            self.live[owner] = Live("ACTIVE", self.live[owner].queue_no)
        self.admitted_lately += len(called)
        forgotten = sorted(self.old)[:most]
        for queue_no in forgotten:
            self.old.remove(queue_no)
            self._forget(queue_no, self.ended.pop(queue_no))
        more = most in (lapsed_most, len(forgotten)) or (len(called) + len(absent) == most and len(called) < quota)
        waiting = sum(token.status in {"WAITING", "RETURNED"} for token in self.live.values())
        return Admitted(len(called), self.serving, skipped + len(absent), expired, waiting, int(more))

    def _in_order(self, status: str) -> list[str]:
        people = [(token.queue_no, owner) for owner, token in self.live.items() if token.status == status]
        return [owner for _, owner in sorted(people)]

    def _forget(self, queue_no: int, end: End) -> None:
        if end.status == "MOVED":
            return
        for visitor in list(self.browsers.get(end.owner, [])):
            if self.ties[visitor][1] == queue_no:
                del self.ties[visitor]
                self.browsers[end.owner].remove(visitor)


# --- the machine ------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(OWNERS)
PICKS = st.integers(0, 99)


class Lines(TwoStores[Line]):
    """Two users and three visitors in one line, on two stores and in the model at once."""

    def __init__(self) -> None:
        super().__init__()
        self.past_ms = self.runner.run(self.valkey.now_ms()) - 60_000
        self.model = Model()
        self.lapses = 0
        # Every number that an owner has ever been told.
        self.known: dict[str, list[int]] = {name: [] for name in OWNERS}

    async def open(self, redis: Any, *, shebang: bool) -> Line:
        terms: dict[str, Any] = {
            "active_max": ACTIVE_MAX,
            "admitted_per_minute_max": RATE,
            "queue_no": FIRST,
            "queue_no_ceiling": 2 * FIRST,
            # What was told to lapse has lapsed by a minute; what follows from that must not have, in a slow run either.
            "recall_ms": 10**9,
        }
        return await open_line(redis, shebang=shebang, **terms)

    def timeless(self, answer: Any) -> Any:
        if isinstance(answer, Token):
            return msgspec.structs.replace(answer, expires_at_ms=int(answer.expires_at_ms > 0))
        return answer

    def learn(self, name: str, reply: Reply) -> None:
        """Remember the number that somebody was told."""
        queue_no = getattr(reply, "queue_no", 0)
        if queue_no and queue_no not in self.known[name]:
            self.known[name].append(queue_no)

    def number(self, name: str, pick: int) -> int:
        """Mostly a number that this owner was told, the newest first; now and then somebody else's."""
        own = self.known[name] or [FIRST + 1]
        if pick % 10 == 9:
            own = [number for numbers in self.known.values() for number in numbers] or own
        return own[-1 - pick % len(own)] if pick % 3 else own[-1]

    # What people do.

    @initialize()
    def some_are_in_line(self) -> None:
        for name in ("v1", "ann", "v2", "bob"):
            self.join(name)

    @rule(name=NAMES)
    def join(self, name: str) -> None:
        expected = self.model.join(name)
        assert self.on_both(lambda line: line.join(name)) == expected
        self.learn(name, expected)

    @rule(name=NAMES, pick=PICKS)
    def enter(self, name: str, pick: int) -> None:
        queue_no = self.number(name, pick)
        expected = self.model.enter(name, queue_no)
        assert self.timeless(self.on_both(lambda line: line.enter(name, queue_no))) == expected
        self.learn(name, expected)

    @rule(name=NAMES, pick=PICKS)
    def leave(self, name: str, pick: int) -> None:
        queue_no = self.number(name, pick)
        assert self.on_both(lambda line: line.leave(name, queue_no)) == self.model.leave(name, queue_no)

    @rule(visitor=st.sampled_from(VISITORS), user=st.sampled_from(USERS), pick=PICKS)
    def tie(self, visitor: str, user: str, pick: int) -> None:
        queue_no = self.number(visitor, pick)
        expected = self.model.tie(visitor, user, queue_no)
        assert self.on_both(lambda line: line.tie(visitor, user, queue_no)) == expected
        self.learn(user, expected)

    @rule(name=NAMES, place=st.integers(0, 2), visitor=st.sampled_from(("", "", *VISITORS)))
    def put_back(self, name: str, place: int, visitor: str) -> None:
        if name in VISITORS:
            visitor = ""
        # Each owner has numbers of its own from before the loss.
        number = OWNERS.index(visitor or name) + place * len(OWNERS)
        queue_no = OLD[number % len(OLD)] if place < 2 else 3 * FIRST
        if queue_no in {token.queue_no for owner, token in self.model.live.items() if owner not in {name, visitor}}:
            return  # a number is one person's: only a tie may have given it to another owner
        expected = self.model.put_back(name, queue_no, visitor)
        assert self.on_both(lambda line: line.put_back(name, queue_no, visitor)) == expected
        self.learn(name, expected)

    # What the tick does, and the operator.

    @rule(most=st.sampled_from((1, 2, 100, 100)))
    def admit(self, most: int) -> None:
        assert self.on_both(lambda line: line.admit(most)) == self.model.admit(most)

    @rule(room=st.sampled_from(("open", "open", "prequeue", "paused", "closed")))
    def set_room(self, room: str) -> None:
        self.model.room = room
        self.on_both(lambda line: line.set(room=room))

    @rule()
    def a_minute_passes(self) -> None:
        self.model.admitted_lately = 0

        async def pass_by(line: Line) -> None:
            counts = await line.fields("admissions")
            if counts:
                await line.redis.hdel(line.sale.keys.admissions, *counts)
                await line.redis.hset(
                    line.sale.keys.admissions, mapping={int(second) - 61: count for second, count in counts.items()}
                )

        self.on_both(pass_by)

    @rule()
    def an_hour_passes(self) -> None:
        self.model.old |= self.model.ended.keys()

        async def pass_by(line: Line) -> None:
            for queue_no in await line.scores("ended_tokens_at"):
                await line.redis.zadd(line.sale.keys.ended_tokens_at, {queue_no: int(queue_no)})

        self.on_both(pass_by)

    @rule(pick=PICKS)
    def a_token_lapses(self, pick: int) -> None:
        """The entry, session or recall of one token is over."""
        lasting = [owner for owner, token in self.model.live.items() if _set_of(token) and not token.lapsed]
        if not lasting:
            return
        owner = lasting[pick % len(lasting)]
        token = self.model.live.pop(owner)
        self.model.live[owner] = replace(token, lapsed=True)  # last, as the scores are
        self.lapses += 1
        at_ms = self.past_ms + self.lapses

        async def lapse(line: Line) -> None:
            await line.redis.zadd(getattr(line.sale.keys, _set_of(token)), {owner_of(owner): at_ms})

        self.on_both(lapse)

    @rule(pick=PICKS, gone=st.booleans())
    def somebody_polls_or_is_silent(self, pick: int, gone: bool) -> None:  # noqa: FBT001
        people = [(owner, token) for owner, token in self.model.live.items() if token.status == "WAITING"]
        if people:
            owner, token = people[pick % len(people)]
            token.absent = gone
            overdue_in_ms = -60_000 if gone else 10**6
            reply = self.on_both(lambda line: line.signs((owner, token.queue_no, overdue_in_ms)))
            assert reply.count == 1

    # What is true after every step.

    @invariant()
    def the_line_is_in_order(self) -> None:
        self.runner.run(self.valkey.check())

    @invariant()
    def both_stores_hold_the_same_and_what_the_model_says(self) -> None:
        state = self.on_both(_state)
        live = {
            owner_of(owner): f"{token.status}|{token.queue_no}|{int(token.entered)}"
            for owner, token in self.model.live.items()
        }
        waiting = {owner: f"WAITING|{queue_no}|0" for owner, queue_no in state["waiting"].items()}
        assert state["tokens"] | waiting == live
        assert state["ended_tokens"] == {
            str(queue_no): f"{end.status}|{owner_of(end.owner)}" + (f"|{end.kept}" if end.kept else "")
            for queue_no, end in self.model.ended.items()
        }
        ties = {owner_of(each): f"{owner_of(user)}|{queue_no}" for each, (user, queue_no) in self.model.ties.items()}
        assert {owner: tie for owner, tie in state["ties"].items() if owner[0] == "v"} == ties


def _set_of(token: Live) -> str:
    return {"ACTIVE": "active", "SKIPPED": "skipped"}.get(token.status, "")


async def _state(line: Line) -> dict[str, Any]:
    """All that a line consists of, times left out."""
    members: Iterable[str] = ("alive", "active", "skipped", "ended_tokens_at")
    state: dict[str, Any] = {name: set(await line.scores(name)) for name in members}
    state |= {name: await line.scores(name) for name in ("waiting", "returned", "gone")}
    state |= {name: await line.fields(name) for name in ("ended_tokens", "ties")}
    tokens = await line.fields("tokens")
    state["tokens"] = {owner: record.rpartition("|")[0] for owner, record in tokens.items()}
    state["told"] = await line.told()
    sale = await line.fields("sale")
    del sale["now_ms"]
    return state | {"sale": sale}


@pytest.mark.timeout(600)
def test_valkey_fakeredis_and_the_model_agree(valkey_server: embedded.Server) -> None:
    try_out(Lines, valkey_server, examples=30, steps=40)
