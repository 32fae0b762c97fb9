"""A sale of a few seats in Redis, written without Postgres, and what must be true of it after every script."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from engine import ids, seats
from engine.sales import Sale
from engine.stores.scripts import Gate
from tests.engine.stored_sales import HOUR_MS, HeldSale

PRICE = 50_000


TERMS: dict[str, Any] = {
    "epoch": 1,
    "state": "open",
    "hold_ms": 300_000,
    "hold_max_ms": 900_000,
    "pay_ms": 600_000,
    "extensions_max": 2,
    "repeat_window_ms": HOUR_MS,
    "per_buyer_max": 0,
    "room": "off",
    "session_ms": 600_000,
}


def buyer(name: str) -> str:
    """A buyer's id; the same name is the same buyer."""
    return ids.derive("buyer", name)


@dataclass
class Hall(HeldSale):
    """A sale of seats and the ways in which a test acts on it, looks at it and ages it."""

    seat_nos: tuple[str, ...]
    made: int = field(default=0)

    async def hold(self, *seat_nos: str, by: str = "ann", id_: str | None = None, **more: Any) -> Any:
        """Hold under a new id unless one is given; the reply, whatever it is."""
        self.made += 1
        return await seats.hold(
            self.gate,
            self.sale,
            hold_id=id_ or ids.derive("hold", str(self.made)),
            buyer_id=buyer(by),
            seat_nos=seat_nos,
            fingerprint=more.pop("fingerprint", ids.fingerprint(*seat_nos)),
            **more,
        )

    async def held(self, *seat_nos: str, by: str = "ann", **more: Any) -> "Standing":
        """Hold, which must succeed."""
        hold_id = more.pop("id_", None) or ids.derive("hold", str(self.made + 1))
        reply = await self.hold(*seat_nos, by=by, id_=hold_id, **more)
        assert isinstance(reply, seats.Held), reply
        return Standing(self, hold_id, buyer(by), reply)

    async def sold(self, *seat_nos: str, **more: Any) -> "Standing":
        """A hold that was paid and confirmed."""
        standing = await self.held(*seat_nos, **more)
        await standing.pay()
        assert isinstance(await standing.confirm(), seats.Confirmed)
        return standing

    async def find(self, hold_id: str) -> seats.Hold:
        """The hold of this id, which must be known."""
        found = await seats.find(self.gate, self.sale, hold_id=hold_id)
        assert isinstance(found, seats.Hold), found
        return found

    async def statuses(self) -> dict[str, str]:
        """What stands on each seat that is not free: the state alone."""
        return {seat_no: value.split(" ")[0] for seat_no, value in (await self.fields("seats")).items()}

    async def check(self) -> None:
        """Assert what is true of every sale at every moment."""
        records = await self.records()
        prices = await self.fields("prices")
        standing = await self.fields("seats")
        # I1: every seat is in one state, under one hold, and that hold says the same of it.
        assert standing.keys() <= prices.keys()
        counted: dict[str, str] = {}
        for hold_id, record in records.items():
            lines = list(zip(record["seats"].split(","), record["prices"].split(","), strict=True))
            assert int(record["amount"]) == sum(int(price) for _, price in lines)
            for seat_no, price in lines:
                assert price in self.prices_of(prices[seat_no])
                if record["state"] != "ENDED":
                    assert seat_no not in counted
                    counted[seat_no] = f"{record['state']} {hold_id} {record['fence']}"
        assert {seat_no: value for seat_no, value in standing.items() if not _forgotten(value, records)} == counted

        await self.check_holds(records, lambda record: len(record["seats"].split(",")))

    def prices_of(self, record: str) -> frozenset[str]:
        """What a seat may cost, by its record."""
        return frozenset([record])


def _forgotten(value: str, records: dict[str, dict[str, str]]) -> bool:
    """Whether this stands without a record: a blocked seat, or one that was sold long ago."""
    state, hold_id, _ = value.split(" ")
    return state == "BLOCKED" or (state == "SOLD" and hold_id not in records)


@dataclass
class Standing:
    """A hold that was made, and what its buyer may do next."""

    hall: Hall
    hold_id: str
    buyer_id: str
    held: seats.Held

    @property
    def fence(self) -> int:
        return self.held.fence

    def _mine(self, more: dict[str, Any]) -> dict[str, Any]:
        return {"hold_id": self.hold_id, "buyer_id": self.buyer_id} | more

    def _fenced(self, more: dict[str, Any]) -> dict[str, Any]:
        return {"hold_id": self.hold_id, "fence": self.fence} | more

    async def extend(self, id_: str = "x1", **more: Any) -> Any:
        more = self._mine({"extension_id": ids.derive(id_), "fingerprint": "e" * 16} | more)
        return await seats.extend(self.hall.gate, self.hall.sale, **more)

    async def release(self, *seat_nos: str, id_: str = "r1", **more: Any) -> Any:
        more = self._mine({"release_id": ids.derive(id_), "fingerprint": ids.fingerprint(*seat_nos)} | more)
        return await seats.release(self.hall.gate, self.hall.sale, seat_nos=seat_nos, **more)

    async def pay(self, id_: str = "p1", **more: Any) -> Any:
        more = self._mine({"payment_id": ids.derive(id_)} | more)
        return await seats.pay(self.hall.gate, self.hall.sale, **more)

    async def confirm(self, id_: str = "p1", **more: Any) -> Any:
        more = self._fenced({"payment_id": ids.derive(id_)} | more)
        return await seats.confirm(self.hall.gate, self.hall.sale, **more)

    async def abandon(self, id_: str = "p1", **more: Any) -> Any:
        more = self._fenced({"payment_id": ids.derive(id_)} | more)
        return await seats.abandon(self.hall.gate, self.hall.sale, **more)

    async def restore(self, *claims: seats.Claim, **more: Any) -> Any:
        decided = {"buyer_id": self.buyer_id, "reason": "LATE_UNFULFILLABLE", "goes_next": False}
        more = self._fenced(decided | more)
        return await seats.restore(self.hall.gate, self.hall.sale, claims=claims, **more)

    async def find(self) -> seats.Hold:
        return await self.hall.find(self.hold_id)

    async def lapse(self, *, ago_ms: int = 1) -> None:
        await self.hall.lapse(self.hold_id, ago_ms=ago_ms)


async def open_hall(
    redis: Any, *seat_nos: str, blocked: tuple[str, ...] = (), shebang: bool = True, **terms: Any
) -> Hall:
    """Write a sale of these seats, six in one row unless named."""
    seat_nos = seat_nos or tuple(f"A-1-{number}" for number in range(1, 7))
    sale = Sale(sale_id=ids.random_id())
    await redis.hset(sale.keys.sale, mapping=TERMS | terms)
    await redis.hset(sale.keys.prices, mapping=dict.fromkeys((*seat_nos, *blocked), PRICE))
    if blocked:
        await redis.hset(sale.keys.seats, mapping=dict.fromkeys(blocked, "BLOCKED - 0"))
    return Hall(redis, Gate(redis, shebang=shebang, deadline_s=30), sale, seat_nos)


async def together(*asked: Any) -> list[Any]:
    """Ask all of these in one moment: those of one script travel in one batch, in this order."""
    return list(await asyncio.gather(*asked))
