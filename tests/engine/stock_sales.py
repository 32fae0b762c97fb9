"""A sale of a few variants in Redis, written without Postgres, and what must be true of it after every script."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine import ids, seats, stock
from engine.sales import Sale
from engine.stores.scripts import Gate
from tests.engine.seat_sales import TERMS, buyer
from tests.engine.stored_sales import HeldSale

PRICES = {"mug": 1_200, "cap": 2_500, "shirt": 4_000}
EACH = 10


def units_in(text: str) -> Counter[str]:
    """What a list `variant_id:quantity,…` adds up to."""
    return Counter({each.variant_id: each.quantity for each in stock.units_of(text.split(",") if text else [])})


def count_of(record: Mapping[str, str]) -> int:
    """How many units a record has."""
    return units_in(record["seats"]).total()


@dataclass
class Stall(HeldSale):
    """A sale of stock and the ways in which a test acts on it, looks at it and ages it."""

    initial: dict[str, int]
    # What the store has forgotten that it sold, by hold.
    forgotten: dict[str, Counter[str]] = field(default_factory=dict)
    made: int = field(default=0)

    async def hold(self, *, by: str = "ann", id_: str | None = None, more: Any = None, **units: int) -> Any:
        """Hold units, `mug=2, cap=1`, under a new id unless one is given; the reply, whatever it is."""
        self.made += 1
        lines = [stock.Units(variant_id, quantity) for variant_id, quantity in units.items()]
        arguments = {
            "hold_id": id_ or ids.derive("hold", str(self.made)),
            "buyer_id": buyer(by),
            "fingerprint": ids.fingerprint(*[line.told for line in lines]),
            "units": lines,
        }
        return await stock.hold(self.gate, self.sale, **arguments | (more or {}))

    async def held(self, *, by: str = "ann", id_: str | None = None, more: Any = None, **units: int) -> "Order":
        """Hold, which must succeed."""
        hold_id = id_ or ids.derive("hold", str(self.made + 1))
        reply = await self.hold(by=by, id_=hold_id, more=more, **units)
        assert isinstance(reply, stock.Held), reply
        return Order(self, hold_id, buyer(by), reply)

    async def sold(self, *, by: str = "ann", more: Any = None, **units: int) -> "Order":
        """A hold that was paid and confirmed."""
        order = await self.held(by=by, id_=None, more=more, **units)
        await order.pay()
        assert isinstance(await order.confirm(), seats.Confirmed)
        return order

    async def left(self) -> dict[str, int]:
        """What anybody may have of each variant."""
        return {variant_id: int(left) for variant_id, left in (await self.fields("stock")).items()}

    async def freed(self) -> dict[str, int]:
        """What the waiting list has of each variant."""
        return {variant_id: int(left) for variant_id, left in (await self.fields("stock_freed")).items()}

    async def forget(self, hold_id: str) -> None:
        """Let the window of an ended or sold hold pass, and Postgres have all of it."""
        memo = (await self.fields("restored")).get(hold_id)
        record = (await self.records()).get(hold_id)
        if record is not None and record["state"] == "SOLD":
            self.forgotten[hold_id] = units_in(record["seats"])
        elif memo is not None:
            self.forgotten[hold_id] = units_in(memo.partition(" ")[2])
        await self.set(outbox_persisted_n=await self.term("outbox_n"))
        await self.redis.zadd(self.sale.keys.ended, {hold_id: 1})
        expired = await stock.expire(self.gate, self.sale, most=100)
        assert isinstance(expired, seats.Expired)
        assert expired.trimmed == 1

    async def check(self) -> None:
        """Assert what is true of every sale at every moment."""
        records = await self.records()
        # I1: of each variant left + freed + held + paying + sold is what there ever was, and nothing is below zero.
        left, freed = await self.left(), await self.freed()
        assert min([*left.values(), *freed.values()], default=0) >= 0
        total = Counter(left) + Counter(freed)
        for record in records.values():
            lines = stock.lines_of(record["seats"], record["prices"])
            assert len({line.variant_id for line in lines}) == len(lines)
            assert int(record["amount"]) == sum(line.price * line.quantity for line in lines)
            assert all(line.quantity > 0 for line in lines)
            if record["state"] != "ENDED":
                total += units_in(record["seats"])
        memos = {hold_id: units_in(memo.partition(" ")[2]) for hold_id, memo in (await self.fields("restored")).items()}
        for units in (self.forgotten | memos).values():
            total += units
        assert total == Counter(self.initial)
        await self.check_holds(records, count_of)
        assert await self.fields("seats") == {}


@dataclass
class Order:
    """A hold that was made, and what its buyer may do next."""

    stall: Stall
    hold_id: str
    buyer_id: str
    held: stock.Held

    @property
    def fence(self) -> int:
        return self.held.fence

    def _mine(self, more: dict[str, Any]) -> dict[str, Any]:
        return {"hold_id": self.hold_id, "buyer_id": self.buyer_id} | more

    def _fenced(self, more: dict[str, Any]) -> dict[str, Any]:
        return {"hold_id": self.hold_id, "fence": self.fence} | more

    async def extend(self, id_: str = "x1", **more: Any) -> Any:
        more = self._mine({"extension_id": ids.derive(id_), "fingerprint": "e" * 16} | more)
        return await stock.extend(self.stall.gate, self.stall.sale, **more)

    async def release(self, id_: str = "r1", more: Any = None, **units: int) -> Any:
        """Give back units, `mug=1`, or all of them."""
        lines = [stock.Units(variant_id, quantity) for variant_id, quantity in units.items()]
        fingerprint = ids.fingerprint(*[line.told for line in lines])
        arguments = self._mine({"release_id": ids.derive(id_), "fingerprint": fingerprint} | (more or {}))
        return await stock.release(self.stall.gate, self.stall.sale, units=lines, **arguments)

    async def pay(self, id_: str = "p1", **more: Any) -> Any:
        more = self._mine({"payment_id": ids.derive(id_)} | more)
        return await stock.pay(self.stall.gate, self.stall.sale, **more)

    async def confirm(self, id_: str = "p1", **more: Any) -> Any:
        more = self._fenced({"payment_id": ids.derive(id_)} | more)
        return await stock.confirm(self.stall.gate, self.stall.sale, **more)

    async def abandon(self, id_: str = "p1", **more: Any) -> Any:
        more = self._fenced({"payment_id": ids.derive(id_)} | more)
        return await stock.abandon(self.stall.gate, self.stall.sale, **more)

    async def restore(self, more: Any = None, counted: Mapping[str, int] | None = None, **bought: int) -> Any:
        """Make the hold what Postgres says it bought, `mug=1`; `counted` is all that it held, unless said."""
        at_first = {line.variant_id: line.quantity for line in self.held.lines}
        claims = [
            stock.Claim(variant_id, (counted or at_first).get(variant_id, 0), bought.get(variant_id, 0))
            for variant_id in at_first
        ]
        decided = {"buyer_id": self.buyer_id, "reason": "USER", "goes_next": False, "claims": claims}
        return await stock.restore(self.stall.gate, self.stall.sale, **self._fenced(decided | (more or {})))

    async def find(self) -> stock.Hold:
        found = await stock.find(self.stall.gate, self.stall.sale, hold_id=self.hold_id)
        assert isinstance(found, stock.Hold), found
        return found

    async def lapse(self, *, ago_ms: int = 1) -> None:
        await self.stall.lapse(self.hold_id, ago_ms=ago_ms)


async def open_stall(
    redis: Any, units: Mapping[str, int] | None = None, *, shebang: bool = True, **terms: Any
) -> Stall:
    """Write a sale of these units, ten of each variant unless said."""
    initial = dict(units or dict.fromkeys(PRICES, EACH))
    sale = Sale(sale_id=ids.random_id(), kind="stock")
    await redis.hset(sale.keys.sale, mapping=TERMS | {"kind": "stock"} | terms)
    await redis.hset(sale.keys.prices, mapping={variant_id: PRICES.get(variant_id, 100) for variant_id in initial})
    for key in (sale.keys.stock, sale.keys.stock_total):
        await redis.hset(key, mapping=initial)
    return Stall(redis, Gate(redis, shebang=shebang, deadline_s=30), sale, initial)
