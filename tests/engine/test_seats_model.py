"""The same commands on Valkey, on fakeredis and on a model in plain Python: any difference is a bug.

Words are held against the model, states of the two stores against each other, times left out, and what is true of
every sale is asserted after every step.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from engine import ids, seat_blocks, seats
from engine.refusals import IdempotencyKeyReused, LimitReached, NotFound
from engine.stores import embedded
from engine.stores.replies import Reply
from engine.stores.scripts import Script
from tests.engine.seat_sales import Hall, buyer, open_hall
from tests.engine.two_stores import TwoStores, try_out

LIMIT = 4
SEATS = tuple(f"A-1-{number}" for number in range(1, 9))
BLOCKED = "B-1-1"
UNKNOWN = "Z-9-9"
BUYERS = ("ann", "bob", "cat")

# Whatever tells a time, or follows from one.
TIMES = {"created_at_ms", "expires_at_ms", "pay_deadline_ms", "at_ms", "now_ms", "id", "before", "holds"}


# --- the model --------------------------------------------------------------------------------------------------------


@dataclass
class Wish:
    """A hold as the model knows it."""

    hold_id: str
    by: str
    fingerprint: str
    fence: int
    seat_nos: list[str]
    state: str = "HELD"
    reason: str | None = None
    lapsed: bool = False
    payment: str | None = None
    over: set[str] = field(default_factory=set)
    extensions: dict[str, str] = field(default_factory=dict)
    releases: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    sold_n: int = 0

    @property
    def shown(self) -> str:
        """The state as a reader is told it."""
        return "ENDED" if self.state == "HELD" and self.lapsed else self.state

    @property
    def why(self) -> str:
        """Why it ended, as a reader is told it."""
        return "EXPIRED" if self.state == "HELD" else self.reason or ""


class Model:
    """What the scripts promise, without a store: dictionaries and no cleverness."""

    def __init__(self) -> None:
        self.wishes: dict[str, Wish] = {}
        self.sold: dict[str, int] = dict.fromkeys(BUYERS, 0)
        # Seats whose sold hold is forgotten: only the seat is known.
        self.bought: dict[str, tuple[str, int]] = {}
        self.blocked = {BLOCKED}
        self.block_no = 0
        self.fence = 0
        self.outbox_n = 0
        self.persisted_n = 0

    def holder(self, seat_no: str) -> Wish | None:
        """The hold that stands on a seat."""
        standing = [w for w in self.wishes.values() if w.state != "ENDED" and seat_no in w.seat_nos]
        assert len(standing) <= 1
        return standing[0] if standing else None

    def end(self, wish: Wish, reason: str) -> None:
        """A hold ends, and its seats are free."""
        wish.state, wish.reason = "ENDED", reason

    def hold(
        self, hold_id: str, by: str, fingerprint: str, seat_nos: tuple[str, ...], *, admitted: bool
    ) -> Reply | None:
        """Answer a refusal, or None and hold."""
        if known := self.wishes.get(hold_id):
            same = (known.by, known.fingerprint) == (by, fingerprint)
            return seats.HoldKnown(known.shown) if same else IdempotencyKeyReused()
        if not admitted:
            return seats.NotAdmitted()
        if UNKNOWN in seat_nos:
            return seats.SeatUnknown((UNKNOWN,))
        conflicts, lapsed = [], []
        for seat_no in seat_nos:
            other = self.holder(seat_no)
            if other is not None and other.shown == "ENDED":
                lapsed.append(other)
            elif other is not None:
                conflicts.append(f"{seat_no} {'yours' if other.by == by else other.state.lower()}")
            elif seat_no in self.bought:
                conflicts.append(f"{seat_no} sold")
            elif seat_no in self.blocked:
                conflicts.append(f"{seat_no} blocked")
        if conflicts:
            return seats.SeatTaken(tuple(conflicts))
        live = [w for w in self.wishes.values() if w.by == by and w.shown in {"HELD", "PAYING"}]
        have = self.sold[by] + sum(len(w.seat_nos) for w in live)
        if have + len(seat_nos) > LIMIT:
            return LimitReached(limit=LIMIT, have=have)
        for other in lapsed:
            self.end(other, "EXPIRED")
        self.fence += 1
        self.wishes[hold_id] = Wish(hold_id, by, fingerprint, self.fence, list(seat_nos))
        return None

    def block(self, no: int, seat_nos: Sequence[str]) -> Reply:
        """Block what is free, or say what is not."""
        holders = {seat_no: self.holder(seat_no) for seat_no in seat_nos}
        conflicts, lapsed = [], []
        for seat_no, other in holders.items():
            if seat_no == UNKNOWN:
                conflicts.append(f"{seat_no} unknown")
            elif other is not None and other.shown == "ENDED":
                lapsed.append(other)
            elif other is not None or seat_no in self.bought:
                conflicts.append(f"{seat_no} {other.state.lower() if other else 'sold'}")
        added = [seat_no for seat_no in seat_nos if seat_no not in self.blocked]
        if no < self.block_no or (no == self.block_no and added):
            return seat_blocks.Superseded()
        self.block_no = no
        if conflicts:
            return seats.SeatTaken(tuple(conflicts))
        for other in lapsed:
            self.end(other, "EXPIRED")
        self.blocked.update(added)
        return seat_blocks.SeatsBlocked(len(added))

    def unblock(self, no: int, seat_nos: Sequence[str]) -> Reply:
        """Free what is blocked."""
        if no < self.block_no:
            return seat_blocks.Superseded()
        self.block_no = no
        gone = self.blocked.intersection(seat_nos)
        self.blocked -= gone
        return seat_blocks.SeatsUnblocked(len(gone))

    def extend(self, hold_id: str, by: str, extension_id: str, fingerprint: str) -> Reply | None:
        """Answer a refusal, or None and extend."""
        wish = self.wishes.get(hold_id)
        if wish is None or wish.by != by:
            return NotFound()
        if wish.extensions.get(extension_id, fingerprint) != fingerprint:
            return IdempotencyKeyReused()
        if wish.shown == "ENDED":
            return seats.HoldEnded(wish.why)
        if extension_id in wish.extensions:
            return None
        if wish.state != "HELD":
            return seats.PaymentRunning(wish.payment or "")
        if len(wish.extensions) >= 2:
            return seats.ExtensionSpent()
        wish.extensions[extension_id] = fingerprint
        return None

    def release(self, hold_id: str, by: str, release_id: str, fingerprint: str, named: tuple[str, ...]) -> Reply:
        """Answer what is released, or a refusal."""
        wish = self.wishes.get(hold_id)
        if wish is None or wish.by != by:
            return NotFound()
        wanted = named or tuple(wish.seat_nos)
        if release_id in wish.releases:
            known, _ = wish.releases[release_id]
            return seats.Released(1, wanted) if known == fingerprint else IdempotencyKeyReused()
        if wish.shown == "ENDED":
            return seats.HoldEnded(wish.why)
        if wish.state != "HELD":
            return seats.PaymentRunning(wish.payment or "")
        if foreign := tuple(seat_no for seat_no in wanted if seat_no not in wish.seat_nos):
            return seats.SeatUnknown(foreign)
        wish.releases[release_id] = (fingerprint, wanted)
        if len(wanted) == len(wish.seat_nos):
            self.end(wish, "USER")
        else:
            wish.seat_nos = [seat_no for seat_no in wish.seat_nos if seat_no not in wanted]
        return seats.Released(0, wanted)

    def pay(self, hold_id: str, by: str, payment_id: str) -> Reply | None:
        """Answer a refusal, or None and pay."""
        wish = self.wishes.get(hold_id)
        if wish is None or wish.by != by:
            return NotFound()
        if payment_id in wish.over:
            return seats.PaymentEnded()
        if wish.shown == "ENDED":
            return seats.HoldEnded(wish.why)
        if wish.state == "SOLD":
            return seats.HoldSold(wish.payment or "")
        if wish.state == "PAYING":
            return None if wish.payment == payment_id else seats.PaymentRunning(wish.payment or "")
        wish.state, wish.payment = "PAYING", payment_id
        return None

    def confirm(self, hold_id: str, fence: int, payment_id: str) -> Reply:
        """Sell, or say why not."""
        wish = self.wishes.get(hold_id)
        if wish is None or wish.fence != fence or wish.state not in {"PAYING", "SOLD"}:
            return seats.HoldUnknown()
        if wish.payment != payment_id:
            return seats.PaymentMismatch()
        if wish.state == "PAYING":
            self.outbox_n += 1
            wish.state, wish.sold_n = "SOLD", self.outbox_n
            self.sold[wish.by] += len(wish.seat_nos)
        return seats.Confirmed(wish.sold_n)

    def abandon(self, hold_id: str, fence: int, payment_id: str) -> Reply:
        """Give a payment up, or say why not."""
        wish = self.wishes.get(hold_id)
        if wish is None or wish.fence != fence:
            return seats.HoldUnknown()
        if wish.state == "SOLD":
            return seats.HoldSold(wish.payment or "")
        if payment_id in wish.over:
            return seats.Abandoned("free" if wish.shown == "ENDED" else "held")
        if wish.state != "PAYING" or wish.payment != payment_id:
            return seats.HoldUnknown()
        wish.over.add(payment_id)
        self.outbox_n += 1
        if wish.lapsed:
            self.end(wish, "EXPIRED")
            return seats.Abandoned("free")
        wish.state, wish.payment = "HELD", None
        return seats.Abandoned("held")

    def give_back(self, wish: Wish, gone: tuple[str, ...], reason: str) -> Reply:
        """Free seats of a hold that was sold."""
        mine = [seat_no for seat_no in wish.seat_nos if seat_no in gone] if wish.state == "SOLD" else []
        if not mine:
            return seats.HoldUnknown() if wish.state == "ENDED" else seats.Restored(0)
        self.outbox_n += 1
        self.sold[wish.by] -= len(mine)
        if len(mine) == len(wish.seat_nos):
            self.end(wish, reason)
        else:
            wish.seat_nos = [seat_no for seat_no in wish.seat_nos if seat_no not in mine]
        return seats.Restored(len(mine))

    def forget(self, wish: Wish) -> None:
        """The record goes; what was bought stays bought."""
        del self.wishes[wish.hold_id]
        if wish.state == "SOLD":
            self.bought |= dict.fromkeys(wish.seat_nos, (wish.hold_id, wish.fence))


# --- the machine ------------------------------------------------------------------------------------------------------

# Which hold, see `_choose`.
PICKS = st.integers(0, 99)
NAMES = st.sampled_from(BUYERS)
SEAT_LISTS = st.lists(st.sampled_from((*SEATS * 4, BLOCKED, UNKNOWN)), min_size=1, max_size=3, unique=True)
FEW_IDS = st.sampled_from(("one", "two", "three")).map(ids.derive)
FINGERPRINTS = st.sampled_from(("f" * 16, "f" * 16, "e" * 16))


def some(*states: str) -> Callable[[Any], bool]:
    """Whether there is a hold in one of these states: a step that finds nothing to act on teaches little."""
    return lambda machine: any(wish.state in states for wish in machine.model.wishes.values())


class Seats(TwoStores[Hall]):
    """Holds of three buyers on eight seats, on two stores and in the model at once."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.aged_ms = 1
        self.made = 0
        self.queue_nos: dict[str, int] = {}

    async def open(self, redis: Any, *, shebang: bool) -> Hall:
        return await open_hall(redis, *SEATS, shebang=shebang, blocked=(BLOCKED,), per_buyer_max=LIMIT)

    def timeless(self, answer: Any) -> Any:
        if isinstance(answer, Reply | seats.Hold):
            fields = {name: getattr(answer, name) for name in answer.__struct_fields__}
            return type(answer), self.timeless(fields)
        if isinstance(answer, dict):
            return {name: self.timeless(value) for name, value in answer.items() if name not in TIMES}
        if isinstance(answer, list):
            return [self.timeless(value) for value in answer]
        return answer

    def ask(self, verb: Callable[..., Coroutine[Any, Any, Any]], **arguments: Any) -> Any:
        """Call one of the engine's functions on both stores."""
        return self.on_both(lambda hall: verb(hall.gate, hall.sale, **arguments))

    def _choose(self, pick: int, *states: str) -> str:
        """Mostly a hold in one of these states; now and then any other, or one that nobody made."""
        preferred = [wish.hold_id for wish in self.model.wishes.values() if wish.state in states]
        if pick % 10 == 9 or not preferred:
            preferred = [ids.derive("hold", "nobody"), *self.model.wishes]
        return preferred[pick % len(preferred)]

    def _wish(self, pick: int, *states: str) -> Wish | None:
        """A hold in one of these states, if there is one."""
        wish = self.model.wishes.get(self._choose(pick, *states))
        return wish if wish is not None and wish.state in states else None

    def _mine(self, hold_id: str, by: str) -> str:
        """Its own buyer, except when cat, who tries foreign ones."""
        wish = self.model.wishes.get(hold_id)
        return by if wish is None or by == "cat" else wish.by

    # What buyers do.

    def _hold(self, hold_id: str, by: str, fingerprint: str, seat_nos: Sequence[str]) -> None:
        async def look(hall: Hall) -> bool:
            """Whether the room lets this buyer in."""
            room = await hall.redis.hget(hall.sale.keys.sale, "room")
            token = await hall.redis.hget(hall.sale.keys.tokens, buyer(by)) or b""
            return room == b"off" or token.startswith(b"ACTIVE|")

        admitted = self.on_both(look)
        expected = self.model.hold(hold_id, by, fingerprint, tuple(seat_nos), admitted=admitted)
        reply = self.ask(
            seats.hold,
            hold_id=hold_id,
            buyer_id=buyer(by),
            fingerprint=fingerprint,
            seat_nos=seat_nos,
            queue_no=self.queue_nos.get(by, 0),
        )
        if expected is None:
            assert isinstance(reply, seats.Held), reply
            assert reply.fence == self.model.fence
        else:
            assert reply == expected

    @initialize()
    def something_is_in_every_state(self) -> None:
        self.hold("ann", [SEATS[0], SEATS[1]])
        self.hold("bob", [SEATS[2], SEATS[3], SEATS[4]])
        for seat_nos, ends in (((SEATS[6], SEATS[7]), True), ((SEATS[5],), False)):
            self.hold("cat", list(seat_nos))
            self.pay(2, "cat", ids.derive("one"))
            if ends:
                self.confirm(1, ids.derive("one"))

    @rule(by=NAMES, seat_nos=SEAT_LISTS)
    def hold(self, by: str, seat_nos: list[str]) -> None:
        self.made += 1
        self._hold(ids.derive("hold", str(self.made)), by, ids.fingerprint(*seat_nos), seat_nos)

    @precondition(some("HELD"))
    @rule(pick=PICKS, by=NAMES, seat_nos=SEAT_LISTS)
    def take_over(self, pick: int, by: str, seat_nos: list[str]) -> None:
        """Want a seat of a hold that has lapsed, and others beside it."""
        lapsed = [wish for wish in self.model.wishes.values() if wish.shown == "ENDED" and wish.state == "HELD"]
        if lapsed:
            seat_no = lapsed[pick % len(lapsed)].seat_nos[0]
            self.hold(by, list(dict.fromkeys([seat_no, *seat_nos])))

    @rule(pick=PICKS, by=NAMES, seat_nos=SEAT_LISTS)
    def hold_with_a_known_id(self, pick: int, by: str, seat_nos: list[str]) -> None:
        if self.model.wishes:
            hold_id = list(self.model.wishes)[pick % len(self.model.wishes)]
            wish = self.model.wishes[hold_id]
            fingerprint = wish.fingerprint if pick % 2 else ids.fingerprint(*seat_nos)
            self._hold(hold_id, self._mine(hold_id, by), fingerprint, seat_nos)

    @precondition(some("HELD"))
    @rule(pick=PICKS, by=NAMES, extension_id=FEW_IDS, fingerprint=FINGERPRINTS)
    def extend(self, pick: int, by: str, extension_id: str, fingerprint: str) -> None:
        hold_id = self._choose(pick, "HELD")
        by = self._mine(hold_id, by)
        expected = self.model.extend(hold_id, by, extension_id, fingerprint)
        reply = self.ask(
            seats.extend,
            hold_id=hold_id,
            buyer_id=buyer(by),
            extension_id=extension_id,
            fingerprint=fingerprint,
        )
        assert isinstance(reply, seats.Extended) if expected is None else reply == expected

    @precondition(some("HELD"))
    @rule(
        pick=PICKS,
        by=NAMES,
        release_id=FEW_IDS,
        fingerprint=FINGERPRINTS,
        places=st.sampled_from([(), (0,), (0,), (1,), (1, 0), (0, 5)]),
    )
    def release(self, pick: int, by: str, release_id: str, fingerprint: str, places: tuple[int, ...]) -> None:
        hold_id = self._choose(pick, "HELD")
        by = self._mine(hold_id, by)
        wish = self.model.wishes.get(hold_id)
        # A place beyond the hold's seats is somebody else's.
        seat_nos = [*(wish.seat_nos if wish else ()), *SEATS]
        named = tuple(dict.fromkeys(seat_nos[place] for place in places))
        expected = self.model.release(hold_id, by, release_id, fingerprint, named)
        reply = self.ask(
            seats.release,
            hold_id=hold_id,
            buyer_id=buyer(by),
            release_id=release_id,
            fingerprint=fingerprint,
            seat_nos=named,
        )
        assert reply == expected

    @precondition(some("HELD"))
    @rule(pick=PICKS, by=NAMES, payment_id=FEW_IDS)
    def pay(self, pick: int, by: str, payment_id: str) -> None:
        hold_id = self._choose(pick, "HELD")
        by = self._mine(hold_id, by)
        expected = self.model.pay(hold_id, by, payment_id)
        reply = self.ask(seats.pay, hold_id=hold_id, buyer_id=buyer(by), payment_id=payment_id)
        if expected is None:
            assert isinstance(reply, seats.Paying), reply
            assert [line.seat_no for line in reply.lines] == self.model.wishes[hold_id].seat_nos
        else:
            assert reply == expected

    # How it ends.

    def _door(self, pick: int, payment_id: str) -> dict[str, Any]:
        """What is presented at a door: mostly the payment that runs, now and then another or a false fence."""
        hold_id = self._choose(pick, "PAYING")
        wish = self.model.wishes.get(hold_id)
        if wish is not None and wish.payment and pick % 4:
            payment_id = wish.payment
        fence = (wish.fence if wish else 1) + (pick % 7 == 0)
        return {"hold_id": hold_id, "fence": fence, "payment_id": payment_id}

    @precondition(some("PAYING", "SOLD"))
    @rule(pick=PICKS, payment_id=FEW_IDS)
    def confirm(self, pick: int, payment_id: str) -> None:
        presented = self._door(pick, payment_id)
        expected = self.model.confirm(**presented)
        assert self.ask(seats.confirm, **presented) == expected

    @precondition(some("PAYING", "SOLD"))
    @rule(pick=PICKS, payment_id=FEW_IDS)
    def abandon(self, pick: int, payment_id: str) -> None:
        presented = self._door(pick, payment_id)
        expected = self.model.abandon(**presented)
        assert self.ask(seats.abandon, **presented) == expected

    @precondition(some("SOLD"))
    @rule(pick=PICKS, places=st.sets(st.integers(0, 2), min_size=1), goes_next=st.booleans())
    def restore(self, pick: int, places: set[int], *, goes_next: bool) -> None:
        wish = self._wish(pick, "SOLD", "ENDED")
        if wish is None:
            return
        gone = tuple(seat_no for place, seat_no in enumerate(wish.seat_nos) if place in places)
        claims = [
            seats.Claim(seat_no)
            if seat_no in gone or wish.state == "ENDED"
            else seats.Claim(seat_no, wish.hold_id, wish.fence)
            for seat_no in wish.seat_nos
        ]
        expected = self.model.give_back(wish, gone, "ADMIN")
        reply = self.ask(
            seats.restore,
            hold_id=wish.hold_id,
            fence=wish.fence,
            buyer_id=buyer(wish.by),
            reason="ADMIN",
            goes_next=goes_next,
            claims=claims,
        )
        assert reply == expected

    # What the operator does.

    @rule(seat_nos=SEAT_LISTS, later=st.sampled_from((1, 1, 1, 0, -1)))
    def block(self, seat_nos: list[str], later: int) -> None:
        self._operate(seat_blocks.BLOCK, self.model.block, seat_nos, later)

    @rule(seat_nos=SEAT_LISTS, later=st.sampled_from((1, 1, 1, 0, -1)))
    def unblock(self, seat_nos: list[str], later: int) -> None:
        self._operate(seat_blocks.UNBLOCK, self.model.unblock, seat_nos, later)

    def _operate(self, script: Script[Any], decide: Callable[..., Reply], seat_nos: list[str], later: int) -> None:
        no = self.model.block_no + later

        async def call(hall: Hall) -> Any:
            return await script(hall.gate, hall.sale.keys, epoch=1, seat_block_no=no, seat_nos=seat_nos)

        expected = decide(no, seat_nos)
        assert self.on_both(call) == expected

    # Time, and what follows from it.

    @precondition(some("HELD", "PAYING"))
    @rule(pick=PICKS)
    def let_a_hold_lapse(self, pick: int) -> None:
        if wish := self._wish(pick, "HELD", "PAYING"):
            wish.lapsed = True
            self.on_both(lambda hall: hall.rewrite(wish.hold_id, expires_at_ms=self.aged_ms))
            self.aged_ms += 1

    @precondition(some("PAYING"))
    @rule(pick=PICKS, most=st.integers(1, 3))
    def let_a_payment_be_overdue(self, pick: int, most: int) -> None:
        if wish := self._wish(pick, "PAYING"):
            self.on_both(lambda hall: hall.rewrite(wish.hold_id, pay_deadline_ms=self.aged_ms))
            self.aged_ms += 1
            reply = self.ask(seats.overdue, most=most)
            assert all(self.model.wishes[each.hold_id].payment == each.payment_id for each in reply.holds)
            assert 1 <= len(reply.holds) <= most

    @precondition(some("HELD"))
    @rule(most=st.integers(1, 3))
    def sweep(self, most: int) -> None:
        async def order(hall: Hall) -> list[str]:
            lapsed = await hall.redis.zrangebyscore(hall.sale.keys.deadlines, 0, self.aged_ms)
            return [hold_id.decode() for hold_id in lapsed]

        lapsed = self.on_both(order)
        for hold_id in lapsed[:most]:
            self.model.end(self.model.wishes[hold_id], "EXPIRED")
        assert self.ask(seats.expire, most=most) == seats.Expired(len(lapsed[:most]), len(lapsed[most:]), 0)

    @precondition(some("SOLD", "ENDED"))
    @rule(pick=PICKS, persisted=st.booleans())
    def let_the_window_pass(self, pick: int, *, persisted: bool) -> None:
        wish = self._wish(pick, "SOLD", "ENDED")
        if wish is None:
            return
        if persisted:
            self.model.persisted_n = self.model.outbox_n
            self.on_both(lambda hall: hall.set(outbox_persisted_n=self.model.outbox_n))
        forgotten = wish.state == "ENDED" or wish.sold_n <= self.model.persisted_n
        lapsed = [each for each in self.model.wishes.values() if each.state == "HELD" and each.lapsed]

        async def age_and_sweep(hall: Hall) -> Any:
            ended = hall.sale.keys.ended
            since = await hall.redis.zscore(ended, wish.hold_id)
            await hall.redis.zadd(ended, {wish.hold_id: 1})
            reply = await seats.expire(hall.gate, hall.sale, most=20)
            await hall.redis.zadd(ended, {wish.hold_id: since}, xx=True)
            return reply

        assert self.on_both(age_and_sweep) == seats.Expired(len(lapsed), 0, int(forgotten))
        for each in lapsed:
            self.model.end(each, "EXPIRED")
        if forgotten:
            self.model.forget(wish)

    @rule(room=st.sampled_from(("off", "open")))
    def turn_the_room(self, room: str) -> None:
        """Close it, or open it with new places in line for ann and bob; cat has none."""
        first_no = max(self.queue_nos.values(), default=0) + 1
        self.queue_nos = {"ann": first_no, "bob": first_no + 1}

        async def turn(hall: Hall) -> None:
            await hall.set(room=room)
            for name, queue_no in self.queue_nos.items():
                await hall.redis.hset(hall.sale.keys.tokens, buyer(name), f"ACTIVE|{queue_no}|0|1")
                await hall.redis.zadd(hall.sale.keys.active, {buyer(name): 4_000_000_000_000})

        self.on_both(turn)

    # Always.

    @invariant()
    def a_hold_is_found_as_it_stands(self) -> None:
        hold_id = self._choose(self.aged_ms + self.model.fence + len(self.model.wishes))
        found = self.ask(seats.find, hold_id=hold_id)
        wish = self.model.wishes.get(hold_id)
        if wish is None:
            assert found == NotFound()
        else:
            assert (found.state, found.fence, found.buyer_id) == (wish.shown, wish.fence, buyer(wish.by))
            assert [line.seat_no for line in found.lines] == wish.seat_nos
            assert (found.reason or "") == (wish.why if wish.shown == "ENDED" else "")

    @invariant()
    def seats_stand_as_the_model_says(self) -> None:
        expected = dict.fromkeys(self.model.blocked, "BLOCKED") | dict.fromkeys(self.model.bought, "SOLD")
        for wish in self.model.wishes.values():
            expected |= {} if wish.state == "ENDED" else dict.fromkeys(wish.seat_nos, wish.state)
        assert self.runner.run(self.valkey.statuses()) == expected

    @invariant()
    def a_buyer_has_bought_what_the_model_says(self) -> None:
        rows = self.runner.run(self.valkey.fields("buyers"))
        bought = {name: int(rows.get(buyer(name), "0").split(" ")[0]) for name in BUYERS}
        assert bought == self.model.sold

    @invariant()
    def both_stores_hold_the_same(self) -> None:
        self.on_both(_contents)

    @invariant()
    def what_is_true_of_every_sale_is_true(self) -> None:
        self.runner.run(self.valkey.check())


async def _contents(hall: Hall) -> dict[str, Any]:
    """Everything that the sale has in this store."""
    hashes = ("sale", "seats", "buyers", "prices", "tokens", "ended_tokens")
    sets = ("deadlines", "paying", "ended", "active", "returned", "ended_tokens_at")
    return {
        **{name: await hall.fields(name) for name in hashes},
        **{name: sorted(await hall.scores(name)) for name in sets},
        "records": await hall.records(),
        "journal": await hall.entries("journal"),
        "outbox": await hall.entries("outbox"),
    }


@pytest.mark.timeout(600)
def test_seats_behave_alike_on_valkey_on_fakeredis_and_in_the_model(valkey_server: embedded.Server) -> None:
    try_out(Seats, valkey_server, examples=80, steps=50)
