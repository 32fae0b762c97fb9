"""The same commands on Valkey, on fakeredis and on a model in plain Python: any difference is a bug.

Words are held against the model, states of the two stores against each other, times left out, and what is true of
every sale is asserted after every step: of each variant left + freed + held + paying + sold is what there ever was.
"""

from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from engine import ids, products, sales, seats, stock, waiting_lists
from engine.refusals import IdempotencyKeyReused, LimitReached, NotFound
from engine.stores import embedded
from engine.stores.replies import Reply
from engine.variant_waiting_lists import FREED_UNITS, OFFER_UNITS, PUBLISH_UNITS, FreedUnits, PublishedUnits
from tests.engine.seat_sales import buyer
from tests.engine.stock_sales import PRICES, Stall, open_stall
from tests.engine.two_stores import TwoStores, try_out

LIMIT = 7
INITIAL = {"mug": 9, "cap": 5, "shirt": 2}
STOPPED = "pin"
UNKNOWN = "pen"
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
    units: Counter[str]
    state: str = "HELD"
    reason: str | None = None
    # The moment at which it lapsed, in the order in which holds did.
    lapsed: int | None = None
    payment: str | None = None
    over: set[str] = field(default_factory=set)
    extensions: dict[str, str] = field(default_factory=dict)
    releases: dict[str, str] = field(default_factory=dict)
    # The number of the last entry that says what it has bought.
    sold_n: int = 0
    forgotten: bool = False
    # What Postgres was told that it has.
    counted: Counter[str] = field(default_factory=Counter)

    @property
    def shown(self) -> str:
        """The state as a reader is told it."""
        return "ENDED" if self.state == "HELD" and self.lapsed is not None else self.state

    @property
    def why(self) -> str:
        """Why it ended, as a reader is told it."""
        return "EXPIRED" if self.state == "HELD" else self.reason or ""


class Model:
    """What the scripts promise, without a store: dictionaries and no cleverness."""

    def __init__(self) -> None:
        self.wishes: dict[str, Wish] = {}
        self.left = Counter(INITIAL)
        # Postgres: of each variant its price and all there ever were, and of each change of a product which it was.
        self.products = {variant_id: (PRICES[variant_id], units) for variant_id, units in INITIAL.items()}
        self.changes: list[str] = []
        # The store: the last change that it was told of, and the same of each variant.
        self.told_no = 0
        self.told = dict(self.products)
        self.freed: Counter[str] = Counter()
        self.waiting_list = False
        self.fence = 0
        self.outbox_n = 0
        self.persisted_n = 0

    @property
    def known(self) -> dict[str, Wish]:
        """The holds whose records are kept."""
        return {hold_id: wish for hold_id, wish in self.wishes.items() if not wish.forgotten}

    def part(self, after: int) -> dict[str, Any]:
        """What whoever reads Postgres now tells a store that has heard of so many changes."""
        changed = sorted(set(self.changes[after:]))
        rows = tuple([value for each in changed for value in (each, *self.products[each])])
        return {"after": after, "change_no": len(self.changes), "rows": rows}

    def tell(self, *, after: int, change_no: int, rows: Sequence[Any]) -> Reply:
        """Believe what goes on from what is known; units that came since are free."""
        if after <= self.told_no < change_no:
            self.told_no = change_no
            for variant_id, price, total in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
                self.free(Counter({variant_id: total - self.told[variant_id][1]}))
                self.told[variant_id] = price, total
        return products.Told(self.told_no)

    def bought(self, by: str) -> int:
        """How many units a buyer has bought, remembered or not."""
        return sum(w.units.total() for w in self.wishes.values() if w.by == by and w.state == "SOLD")

    def free(self, units: Counter[str]) -> None:
        """Units are anybody's, or the waiting list's."""
        (self.freed if self.waiting_list else self.left).update(units)

    def end(self, wish: Wish, reason: str) -> None:
        """A hold ends, and its units are free."""
        self.free(wish.units)
        wish.state, wish.reason = "ENDED", reason

    def lapsed(self) -> list[Wish]:
        """The holds that have lapsed and were not swept, the first first."""
        found = [wish for wish in self.known.values() if wish.state == "HELD" and wish.lapsed is not None]
        return sorted(found, key=lambda wish: wish.lapsed or 0)

    def hold(self, hold_id: str, by: str, fingerprint: str, units: Counter[str], *, admitted: bool) -> Reply | None:
        """Answer a refusal, or None and hold."""
        if known := self.known.get(hold_id):
            same = (known.by, known.fingerprint) == (by, fingerprint)
            return seats.HoldKnown(known.shown) if same else IdempotencyKeyReused()
        if not admitted:
            return seats.NotAdmitted()
        if strange := tuple(variant_id for variant_id in units if variant_id in {UNKNOWN, STOPPED}):
            return stock.UnitUnknown(strange)
        live = [w for w in self.known.values() if w.by == by and w.shown in {"HELD", "PAYING"}]
        have = self.bought(by) + sum(w.units.total() for w in live)
        if have + units.total() > LIMIT:
            return LimitReached(limit=LIMIT, have=have)
        if not units <= self.left and not self.waiting_list:
            for other in self.lapsed():
                self.end(other, "EXPIRED")
        short = tuple(f"{each} {units[each]} {self.left[each]}" for each in units if units[each] > self.left[each])
        if short:
            return stock.SoldOut(short)
        self.left -= units
        self.fence += 1
        self.wishes[hold_id] = Wish(hold_id, by, fingerprint, self.fence, Counter(units))
        return None

    def extend(self, hold_id: str, by: str, extension_id: str, fingerprint: str) -> Reply | None:
        """Answer a refusal, or None and extend."""
        wish = self.known.get(hold_id)
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

    def release(self, hold_id: str, by: str, release_id: str, fingerprint: str, named: Counter[str]) -> Reply:
        """Answer what is released, or a refusal."""
        wish = self.known.get(hold_id)
        if wish is None or wish.by != by:
            return NotFound()
        wanted = named or Counter(wish.units)
        told = tuple(f"{variant_id}:{quantity}" for variant_id, quantity in wanted.items())
        if release_id in wish.releases:
            return stock.Released(1, told) if wish.releases[release_id] == fingerprint else IdempotencyKeyReused()
        if wish.shown == "ENDED":
            return seats.HoldEnded(wish.why)
        if wish.state != "HELD":
            return seats.PaymentRunning(wish.payment or "")
        if foreign := tuple(each for each in wanted if wanted[each] > wish.units[each]):
            return stock.UnitUnknown(foreign)
        wish.releases[release_id] = fingerprint
        if wanted == wish.units:
            self.end(wish, "USER")
        else:
            self.free(wanted)
            wish.units -= wanted
        return stock.Released(0, told)

    def offer(self, hold_id: str, by: str, fingerprint: str, variant_id: str, quantity: int) -> Reply | None:
        """Answer a refusal, or None and hold what the waiting list has for one who waits."""
        if known := self.known.get(hold_id):
            return seats.HoldKnown(known.shown)
        if variant_id in {UNKNOWN, STOPPED}:
            return stock.UnitUnknown((variant_id,))
        if self.freed[variant_id] < quantity:
            return stock.SoldOut((f"{variant_id} {quantity} {self.freed[variant_id]}",))
        live = [w for w in self.known.values() if w.by == by and w.shown in {"HELD", "PAYING"}]
        have = self.bought(by) + sum(w.units.total() for w in live)
        if have + quantity > LIMIT:
            return LimitReached(limit=LIMIT, have=have)
        units = Counter({variant_id: quantity})
        self.freed -= units
        self.fence += 1
        self.wishes[hold_id] = Wish(hold_id, by, fingerprint, self.fence, units)
        return None

    def publish(self, variant_id: str, quantity: int) -> Reply:
        """Give the public what the waiting list has, of each no more than that."""
        given = min(quantity, self.freed[variant_id])
        self.freed -= Counter({variant_id: given})
        self.left[variant_id] += given
        return PublishedUnits(given)

    def pay(self, hold_id: str, by: str, payment_id: str) -> Reply | None:
        """Answer a refusal, or None and pay."""
        wish = self.known.get(hold_id)
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
        wish = self.known.get(hold_id)
        if wish is None or wish.fence != fence or wish.state not in {"PAYING", "SOLD"}:
            return seats.HoldUnknown()
        if wish.payment != payment_id:
            return seats.PaymentMismatch()
        if wish.state == "PAYING":
            self.outbox_n += 1
            wish.state, wish.sold_n, wish.counted = "SOLD", self.outbox_n, Counter(wish.units)
        return seats.Confirmed(wish.sold_n)

    def abandon(self, hold_id: str, fence: int, payment_id: str) -> Reply:
        """Give a payment up, or say why not."""
        wish = self.known.get(hold_id)
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
        if wish.lapsed is not None:
            self.end(wish, "EXPIRED")
            return seats.Abandoned("free")
        wish.state, wish.payment = "HELD", None
        return seats.Abandoned("held")

    def give_back(self, wish: Wish, keeps: Counter[str], reason: str) -> Reply:
        """Make a hold what Postgres says that it bought, remembered or not: all but what it keeps goes back."""
        if runs := wish.state in {"HELD", "PAYING"}:
            wish.state = "SOLD"
        gone = wish.units - keeps if wish.state == "SOLD" else Counter()
        if not gone and not runs:
            return seats.Restored(0) if wish.state == "SOLD" and not wish.forgotten else seats.HoldUnknown()
        self.outbox_n += 1
        wish.sold_n = self.outbox_n
        changed = wish.units.total() if runs else gone.total()
        if keeps:
            self.free(gone)
            wish.units = keeps
            wish.counted = wish.counted or Counter(keeps)
        else:
            self.end(wish, reason)
        return seats.Restored(changed)


# --- the machine ------------------------------------------------------------------------------------------------------

# Which hold, see `_choose`.
PICKS = st.integers(0, 99)
NAMES = st.sampled_from(BUYERS)
LINES = st.lists(
    st.tuples(st.sampled_from((*[*INITIAL] * 6, STOPPED, UNKNOWN)), st.integers(1, 3)), min_size=1, max_size=3
)
FEW_IDS = st.sampled_from(("one", "two", "three")).map(ids.derive)
FINGERPRINTS = st.sampled_from(("f" * 16, "f" * 16, "e" * 16))


def some(*states: str) -> Callable[[Any], bool]:
    """Whether there is a hold in one of these states: a step that finds nothing to act on teaches little."""
    return lambda machine: any(wish.state in states for wish in machine.model.known.values())


class Stock(TwoStores[Stall]):
    """Holds of three buyers of three variants, on two stores and in the model at once."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.aged_ms = 1
        self.made = 0
        self.queue_nos: dict[str, int] = {}
        self.on_the_way: list[dict[str, Any]] = []

    async def open(self, redis: Any, *, shebang: bool) -> Stall:
        stall = await open_stall(redis, INITIAL, shebang=shebang, per_buyer_max=LIMIT, offer_ms=60_000)
        await stall.redis.hset(stall.sale.keys.prices, STOPPED, "-500")
        return stall

    def timeless(self, answer: Any) -> Any:
        if isinstance(answer, FreedUnits):
            return answer.units, answer.left
        if isinstance(answer, Reply | stock.Hold):
            fields = {name: getattr(answer, name) for name in answer.__struct_fields__}
            return type(answer), self.timeless(fields)
        if isinstance(answer, dict):
            return {name: self.timeless(value) for name, value in answer.items() if name not in TIMES}
        if isinstance(answer, list):
            return [self.timeless(value) for value in answer]
        return answer

    def ask(self, verb: Callable[..., Coroutine[Any, Any, Any]], **arguments: Any) -> Any:
        """Call one of the engine's functions on both stores."""
        return self.on_both(lambda stall: verb(stall.gate, stall.sale, **arguments))

    def _choose(self, pick: int, *states: str) -> str:
        """Mostly a hold in one of these states; now and then any other, or one that nobody made."""
        preferred = [wish.hold_id for wish in self.model.known.values() if wish.state in states]
        if pick % 10 == 9 or not preferred:
            preferred = [ids.derive("hold", "nobody"), *self.model.wishes]
        return preferred[pick % len(preferred)]

    def _wish(self, pick: int, *states: str) -> Wish | None:
        """A hold in one of these states whose record is kept, if there is one."""
        wish = self.model.known.get(self._choose(pick, *states))
        return wish if wish is not None and wish.state in states else None

    def _mine(self, hold_id: str, by: str) -> str:
        """Its own buyer, except when cat, who tries foreign ones."""
        wish = self.model.wishes.get(hold_id)
        return by if wish is None or by == "cat" else wish.by

    # What buyers do.

    def _hold(self, hold_id: str, by: str, fingerprint: str, lines: Sequence[tuple[str, int]]) -> None:
        async def look(stall: Stall) -> bool:
            """Whether the room lets this buyer in."""
            room = await stall.redis.hget(stall.sale.keys.sale, "room")
            token = await stall.redis.hget(stall.sale.keys.tokens, buyer(by)) or b""
            return room == b"off" or token.startswith(b"ACTIVE|")

        units: Counter[str] = Counter()
        for variant_id, quantity in lines:
            units[variant_id] += quantity
        expected = self.model.hold(hold_id, by, fingerprint, units, admitted=self.on_both(look))
        reply = self.ask(
            stock.hold,
            hold_id=hold_id,
            buyer_id=buyer(by),
            fingerprint=fingerprint,
            units=[stock.Units(*line) for line in lines],
            queue_no=self.queue_nos.get(by, 0),
        )
        if expected is None:
            assert isinstance(reply, stock.Held), reply
            assert reply.fence == self.model.fence
            assert {line.variant_id: line.quantity for line in reply.lines} == units
        else:
            assert reply == expected

    @initialize()
    def something_is_in_every_state(self) -> None:
        self.hold("ann", [("mug", 1), ("cap", 1)])
        self.hold("bob", [("mug", 2)])
        for lines, ends in (([("mug", 2), ("shirt", 1)], True), ([("cap", 1)], False)):
            self.hold("cat", lines)
            self.pay(2, "cat", ids.derive("one"))
            if ends:
                self.confirm(1, ids.derive("one"))

    @rule(by=NAMES, lines=LINES)
    def hold(self, by: str, lines: list[tuple[str, int]]) -> None:
        self.made += 1
        self._hold(ids.derive("hold", str(self.made)), by, ids.fingerprint(str(lines)), lines)

    @rule(by=NAMES, variant_id=st.sampled_from(tuple(INITIAL)), more=st.integers(0, 1))
    def want_the_last(self, by: str, variant_id: str, more: int) -> None:
        """All that is left of a variant, or one more than that, which lapsed holds may have."""
        self.hold(by, [(variant_id, max(1, self.model.left[variant_id] + more))])

    @rule(pick=PICKS, by=NAMES, lines=LINES)
    def hold_with_a_known_id(self, pick: int, by: str, lines: list[tuple[str, int]]) -> None:
        known = self.model.known
        if known:
            hold_id = list(known)[pick % len(known)]
            fingerprint = known[hold_id].fingerprint if pick % 2 else ids.fingerprint(str(lines))
            self._hold(hold_id, self._mine(hold_id, by), fingerprint, lines)

    @precondition(some("HELD"))
    @rule(pick=PICKS, by=NAMES, extension_id=FEW_IDS, fingerprint=FINGERPRINTS)
    def extend(self, pick: int, by: str, extension_id: str, fingerprint: str) -> None:
        hold_id = self._choose(pick, "HELD")
        by = self._mine(hold_id, by)
        expected = self.model.extend(hold_id, by, extension_id, fingerprint)
        reply = self.ask(
            stock.extend,
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
        named=st.dictionaries(st.sampled_from(tuple(INITIAL)), st.integers(1, 2), max_size=2).map(Counter),
        fitting=st.booleans(),
    )
    def release(
        self, pick: int, by: str, release_id: str, fingerprint: str, named: Counter[str], *, fitting: bool
    ) -> None:
        hold_id = self._choose(pick, "HELD")
        by = self._mine(hold_id, by)
        wish = self.model.wishes.get(hold_id)
        if wish is not None and fitting:
            named = named & wish.units
        expected = self.model.release(hold_id, by, release_id, fingerprint, named)
        reply = self.ask(
            stock.release,
            hold_id=hold_id,
            buyer_id=buyer(by),
            release_id=release_id,
            fingerprint=fingerprint,
            units=[stock.Units(*line) for line in named.items()],
        )
        assert reply == expected

    @precondition(some("HELD"))
    @rule(pick=PICKS, by=NAMES, payment_id=FEW_IDS)
    def pay(self, pick: int, by: str, payment_id: str) -> None:
        hold_id = self._choose(pick, "HELD")
        by = self._mine(hold_id, by)
        expected = self.model.pay(hold_id, by, payment_id)
        reply = self.ask(stock.pay, hold_id=hold_id, buyer_id=buyer(by), payment_id=payment_id)
        if expected is None:
            assert isinstance(reply, seats.Paying), reply
            lines = stock.lines_of(reply.seats, reply.prices)
            assert {line.variant_id: line.quantity for line in lines} == self.model.wishes[hold_id].units
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
        assert self.ask(stock.confirm, **presented) == expected

    @precondition(some("PAYING", "SOLD"))
    @rule(pick=PICKS, payment_id=FEW_IDS)
    def abandon(self, pick: int, payment_id: str) -> None:
        presented = self._door(pick, payment_id)
        expected = self.model.abandon(**presented)
        assert self.ask(stock.abandon, **presented) == expected

    def sold(self) -> list[Wish]:
        """What was ever sold, and what Postgres may have sold while the store knows it as being paid."""
        return [wish for wish in self.model.wishes.values() if wish.counted or wish.state == "PAYING"]

    @precondition(lambda machine: machine.sold())
    @rule(pick=PICKS, less=st.integers(0, 2), goes_next=st.booleans())
    def restore(self, pick: int, less: int, *, goes_next: bool) -> None:
        """Give back units of what was ever sold, remembered or not; the same again finds nothing to do."""
        wish = self.sold()[pick % len(self.sold())]
        keeps = Counter({each: max(0, quantity - less) for each, quantity in wish.units.items()})
        keeps = Counter() if wish.state == "ENDED" else +keeps
        claims = [stock.Claim(each, wish.counted[each], keeps[each]) for each in wish.counted | wish.units]
        arguments = {
            "hold_id": wish.hold_id,
            "fence": wish.fence,
            "buyer_id": buyer(wish.by),
            "reason": "ADMIN",
            "goes_next": goes_next,
            "claims": claims,
        }
        expected = self.model.give_back(wish, keeps, "ADMIN")
        assert self.ask(stock.restore, **arguments) == expected
        assert self.ask(stock.restore, **arguments) == self.model.give_back(wish, keeps, "ADMIN")

    # Time, and what follows from it.

    @precondition(some("HELD", "PAYING"))
    @rule(pick=PICKS)
    def let_a_hold_lapse(self, pick: int) -> None:
        if wish := self._wish(pick, "HELD", "PAYING"):
            wish.lapsed = self.aged_ms
            self.on_both(lambda stall: stall.rewrite(wish.hold_id, expires_at_ms=self.aged_ms))
            self.aged_ms += 1

    @precondition(some("PAYING"))
    @rule(pick=PICKS, most=st.integers(1, 3))
    def let_a_payment_be_overdue(self, pick: int, most: int) -> None:
        if wish := self._wish(pick, "PAYING"):
            self.on_both(lambda stall: stall.rewrite(wish.hold_id, pay_deadline_ms=self.aged_ms))
            self.aged_ms += 1
            reply = self.ask(stock.overdue, most=most)
            assert all(self.model.wishes[each.hold_id].payment == each.payment_id for each in reply.holds)
            assert 1 <= len(reply.holds) <= most

    @precondition(some("HELD"))
    @rule(most=st.integers(1, 3))
    def sweep(self, most: int) -> None:
        lapsed = self.model.lapsed()
        for wish in lapsed[:most]:
            self.model.end(wish, "EXPIRED")
        assert self.ask(stock.expire, most=most) == seats.Expired(len(lapsed[:most]), len(lapsed[most:]), 0)

    @rule(pick=PICKS, persisted=st.booleans())
    def let_the_window_pass(self, pick: int, *, persisted: bool) -> None:
        """An ended or sold hold is old; Postgres has everything, or nothing since it last had."""
        done = [w for w in self.model.wishes.values() if w.state in {"SOLD", "ENDED"}]
        if not done:
            return
        wish = done[pick % len(done)]
        if persisted:
            self.model.persisted_n = self.model.outbox_n
            self.on_both(lambda stall: stall.set(outbox_persisted_n=self.model.outbox_n))
        lapsed = self.model.lapsed()

        async def age_and_sweep(stall: Stall) -> Any:
            ended = stall.sale.keys.ended
            since = await stall.redis.zscore(ended, wish.hold_id)
            if since is not None:
                await stall.redis.zadd(ended, {wish.hold_id: 1})
            reply = await stock.expire(stall.gate, stall.sale, most=50)
            if since is not None:
                await stall.redis.zadd(ended, {wish.hold_id: since}, xx=True)
            stall.forgotten.pop(wish.hold_id, None)
            if wish.state == "SOLD" and await stall.redis.zscore(ended, wish.hold_id) is None:
                stall.forgotten[wish.hold_id] = Counter(wish.units)
            return since is not None, reply

        was_remembered, reply = self.on_both(age_and_sweep)
        trimmed = was_remembered and wish.sold_n <= self.model.persisted_n
        assert reply == seats.Expired(len(lapsed), 0, int(trimmed))
        for each in lapsed:
            self.model.end(each, "EXPIRED")
        if trimmed:
            # Whatever Postgres did not have would still be remembered.
            wish.forgotten, wish.counted = True, Counter(wish.units) if wish.state == "SOLD" else Counter()

    @rule(on=st.booleans())
    def turn_the_waiting_list(self, *, on: bool) -> None:
        self.model.waiting_list = on
        self.on_both(lambda stall: stall.set(waiting_list=int(on)))

    @precondition(lambda machine: +machine.model.freed)
    @rule(pick=PICKS, by=NAMES, quantity=st.integers(1, 3), known=st.integers(0, 4))
    def offer(self, pick: int, by: str, quantity: int, known: int) -> None:
        """Offer what the list has, now and then something else, or under an id that has held before."""
        freed = sorted(+self.model.freed)
        variant_id = [*freed * 4, *INITIAL, STOPPED, UNKNOWN][pick % (len(freed) * 4 + len(INITIAL) + 2)]
        self.made += 1
        remembered = list(self.model.known)
        is_new = known > 0 or not remembered
        hold_id = ids.derive("hold", str(self.made)) if is_new else remembered[pick % len(remembered)]
        expected = self.model.offer(hold_id, by, "o" * 16, variant_id, quantity)
        reply = self.ask(
            partial(sales.ask, script=OFFER_UNITS),
            hold_id=hold_id,
            buyer_id=buyer(by),
            fingerprint="o" * 16,
            variant_id=variant_id,
            quantity=quantity,
        )
        if expected is None:
            assert isinstance(reply, waiting_lists.Offered), reply
            assert (reply.fence, reply.amount) == (self.model.fence, self.model.told[variant_id][0] * quantity)
        else:
            assert reply == expected

    @precondition(lambda machine: +machine.model.freed)
    @rule(variant_id=st.sampled_from(tuple(INITIAL)), quantity=st.integers(1, 4))
    def publish(self, variant_id: str, quantity: int) -> None:
        expected = self.model.publish(variant_id, quantity)
        reply = self.ask(partial(sales.ask, script=PUBLISH_UNITS), lines=(f"{variant_id}:{quantity}",))
        assert reply == expected

    @invariant()
    def the_shelf_is_listed_as_it_stands(self) -> None:
        shelf = self.ask(partial(sales.ask, script=FREED_UNITS), most=9)
        assert (Counter(shelf.units), shelf.left) == (+self.model.freed, 0)
        assert self.runner.run(self.valkey.scores("freed")).keys() == shelf.since.keys()

    @rule(room=st.sampled_from(("off", "open")))
    def turn_the_room(self, room: str) -> None:
        """Close it, or open it with new places in line for ann and bob; cat has none."""
        first_no = max(self.queue_nos.values(), default=0) + 1
        self.queue_nos = {"ann": first_no, "bob": first_no + 1}

        async def turn(stall: Stall) -> None:
            await stall.set(room=room)
            for name, queue_no in self.queue_nos.items():
                await stall.redis.hset(stall.sale.keys.tokens, buyer(name), f"ACTIVE|{queue_no}|0|1")
                await stall.redis.zadd(stall.sale.keys.active, {buyer(name): 4_000_000_000_000})

        self.on_both(turn)

    # What an operator does, and how the store hears of it.

    @rule(variant_id=st.sampled_from(tuple(INITIAL)), price=st.integers(1, 9), more=st.integers(0, 2))
    def change_a_product(self, variant_id: str, price: int, more: int) -> None:
        """In Postgres alone; who reads it now may be long on the way to the store."""
        self.model.products[variant_id] = price, self.model.products[variant_id][1] + more
        self.model.changes.append(variant_id)
        self.on_the_way.append(self.model.part(self.model.told_no))

    @precondition(lambda machine: machine.on_the_way)
    @rule(pick=PICKS)
    def tell(self, pick: int) -> None:
        """The last that was read, or any before it, again and late."""
        part = self.on_the_way[-1 - (pick // 2) % len(self.on_the_way) if pick % 2 else -1]
        expected = self.model.tell(**part)

        async def tell(stall: Stall) -> Any:
            stall.initial = {variant_id: total for variant_id, (_, total) in self.model.told.items()}
            return await products.TELL(stall.gate, stall.sale.keys, epoch=1, **part)

        assert self.on_both(tell) == expected

    # Always.

    @invariant()
    def units_cost_what_the_store_was_told_last(self) -> None:
        prices = self.runner.run(self.valkey.fields("prices"))
        assert prices == {STOPPED: "-500"} | {each: str(price) for each, (price, _) in self.model.told.items()}

    @invariant()
    def a_hold_is_found_as_it_stands(self) -> None:
        hold_id = self._choose(self.aged_ms + self.model.fence + len(self.model.wishes))
        found = self.ask(stock.find, hold_id=hold_id)
        wish = self.model.known.get(hold_id)
        if wish is None:
            assert found == NotFound()
        else:
            assert (found.state, found.fence, found.buyer_id) == (wish.shown, wish.fence, buyer(wish.by))
            assert {line.variant_id: line.quantity for line in found.lines} == wish.units
            assert (found.reason or "") == (wish.why if wish.shown == "ENDED" else "")

    @invariant()
    def as_many_are_left_as_the_model_says(self) -> None:
        assert Counter(self.runner.run(self.valkey.left())) == self.model.left
        assert Counter(self.runner.run(self.valkey.freed())) == self.model.freed

    @invariant()
    def a_buyer_has_bought_what_the_model_says(self) -> None:
        rows = self.runner.run(self.valkey.fields("buyers"))
        bought = {name: int(rows.get(buyer(name), "0").split(" ")[0]) for name in BUYERS}
        assert bought == {name: self.model.bought(name) for name in BUYERS}

    @invariant()
    def both_stores_hold_the_same(self) -> None:
        self.on_both(_contents)

    @invariant()
    def what_is_true_of_every_sale_is_true(self) -> None:
        self.runner.run(self.valkey.check())


async def _contents(stall: Stall) -> dict[str, Any]:
    """Everything that the sale has in this store."""
    hashes = ("sale", "stock", "stock_freed", "stock_total", "restored", "buyers", "prices", "tokens", "ended_tokens")
    sets = ("deadlines", "paying", "ended", "active", "returned", "ended_tokens_at")
    return {
        **{name: await stall.fields(name) for name in hashes},
        **{name: sorted(await stall.scores(name)) for name in sets},
        "records": await stall.records(),
        "journal": await stall.entries("journal"),
        "outbox": await stall.entries("outbox"),
    }


@pytest.mark.timeout(600)
def test_stock_behaves_alike_on_valkey_on_fakeredis_and_in_the_model(valkey_server: embedded.Server) -> None:
    try_out(Stock, valkey_server, examples=80, steps=50)
