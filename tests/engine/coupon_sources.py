"""A source of coupons: in Redis alone, or in both stores, and the ways in which a test acts on it."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from engine import coupons, ids, rebuild
from engine.coupons import Coupon, Issued, Plan, Terms
from engine.sales import Sale, SaleBook
from engine.stores.connections import Stores
from engine.stores.scripts import Gate
from tests.engine.seat_sales import buyer
from tests.engine.stored_sales import StoredSale
from tests.shop import Shop

FIVE_OFF = Terms(
    name="Five off",
    type="FIXED",
    discount_amount=5_000,
    usable_from=datetime(2026, 1, 1, tzinfo=UTC),
    usable_to=datetime(2036, 1, 1, tzinfo=UTC),
)
TERMS_TEXT = msgspec.json.encode(FIVE_OFF).decode()


@dataclass
class Source(StoredSale):
    """A source in Redis, written without Postgres."""

    async def issue(self, by: str = "ann") -> Any:
        """Ask for a coupon; the reply, whatever it is."""
        return await coupons.issue(self.gate, self.sale, user_id=buyer(by))

    async def issued(self) -> dict[str, str]:
        """Who has one, and the number of its entry."""
        return await self.fields("issued")

    async def check(self) -> None:
        """Assert what is true of every source at every moment: nobody has two, and each one has an entry."""
        issued = await self.issued()
        assert len(issued) <= await self.term("quantity")
        await self.check_stream("outbox")
        told = {entry["user_id"]: entry["n"] for entry in await self.entries("outbox")}
        assert {user_id: n for user_id, n in issued.items() if n != "0"} == told
        assert await self.entries("journal") == []


async def open_source(redis: Any, quantity: int, *, shebang: bool = True, **terms: Any) -> Source:
    """Write a source of so many coupons."""
    sale = Sale(sale_id=ids.random_id(), kind="coupon")
    stored = {"epoch": 1, "state": "open", "kind": "coupon", "status": "ISSUING", "quantity": quantity}
    await redis.hset(sale.keys.sale, mapping=stored | {"terms": TERMS_TEXT, "version": 1} | terms)
    return Source(redis, Gate(redis, shebang=shebang, deadline_s=30), sale)


@dataclass
class CouponShop(Shop):
    """A source of coupons in both stores, with every step that an API process or a worker would take with it."""

    @property
    def coupon_id(self) -> str:
        return self.sale_id

    async def coupon(self) -> Coupon:
        """The source as its row stands."""
        row = await self.stores.postgres.fetchrow("SELECT * FROM coupons WHERE coupon_id = $1", self.sale_id)
        assert row is not None
        return Coupon(**row)

    async def crowd(self, count: int) -> list[str]:
        """So many people, who have no money."""
        user_ids = [ids.derive("one of a crowd", self.sale_id, str(number)) for number in range(count)]
        await self.stores.postgres.execute(
            "INSERT INTO users (user_id, subject, fingerprint) SELECT u, u::text, '' FROM unnest($1::uuid[]) AS u",
            user_ids,
        )
        return user_ids

    async def issue(self, by: str = "ann") -> Any:
        """Ask for a coupon; the reply, whatever it is."""
        return await coupons.issue(self.stores.gate, await self.sale(), user_id=await self.person(by))

    async def issued(self, *names: str) -> None:
        """Let each of these have one as far as Redis knows."""
        for reply in await asyncio.gather(*map(self.issue, names)):
            assert isinstance(reply, Issued), reply

    async def edit(self, **changes: Any) -> Any:
        """Change what an operator says."""
        version = (await self.coupon()).version
        return await coupons.edit(self.stores, self.book, coupon_id=self.sale_id, version=version, changes=changes)

    async def owners(self) -> set[str]:
        """Who has one in Postgres."""
        rows = await self.stores.postgres.fetch("SELECT user_id FROM user_coupons WHERE coupon_id = $1", self.sale_id)
        return {row["user_id"] for row in rows}

    async def remembered(self) -> set[str]:
        """Who has one in Redis."""
        redis: Any = self.stores.redis
        return {user_id.decode() for user_id in await redis.hkeys(f"{{coupon:{self.sale_id}}}:issued")}

    async def check(self) -> None:
        """Assert that what is left and who has one add up, and that both stores say the same (I1, I9, I13)."""
        await super().check()
        coupon, owners = await self.coupon(), await self.owners()
        assert coupon.quantity + len(owners) == coupon.initial_quantity
        assert await self.remembered() == owners
        assert await self.term("quantity") == str(coupon.initial_quantity)


async def new_coupons(stores: Stores, quantity: int = 3, **plan: Any) -> CouponShop:
    """Make a source that no store of Redis knows yet."""
    await stores.postgres.execute(
        "INSERT INTO installation (name, value) VALUES ('currency', 'KRW') ON CONFLICT DO NOTHING"
    )
    made = await coupons.create(
        stores.postgres,
        coupon_id=ids.random_id(),
        plan=Plan(**msgspec.structs.asdict(FIVE_OFF) | {"initial_quantity": quantity} | plan),
        fingerprint="",
    )
    assert isinstance(made, tuple)
    return CouponShop(stores, made[0].coupon_id, SaleBook(stores.postgres))


async def open_coupons(stores: Stores, quantity: int = 3, **plan: Any) -> CouponShop:
    """Make a source that is open."""
    shop = await new_coupons(stores, quantity, **plan)
    assert await rebuild.ensure_open(stores, shop.sale_id)
    return shop
