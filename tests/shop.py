"""A concert in both stores and the people who buy from it: what rebuilds, failovers and workers are tried on."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from engine import authorisations, catalogue, ids, payments, rebuild, seats, settlement
from engine.authorisations import Authorisation
from engine.reservations import Holding
from engine.sales import Sale, SaleBook, Terms
from engine.stores import outbox
from engine.stores.connections import Stores
from engine.stores.outbox import STREAMS, Entry, Reader

PRICE = 30_000
START_AT = datetime(2031, 5, 1, 19, tzinfo=UTC)
STORED = (
    "sale",
    "prices",
    "seats",
    "holds",
    "deadlines",
    "paying",
    "ended",
    "buyers",
    "tokens",
    "waiting",
    "ended_tokens",
)


@dataclass
class Selling:
    """One sale, and what is done with it and looked at whatever it sells."""

    stores: Stores
    sale_id: str
    book: SaleBook
    people: dict[str, str] = field(default_factory=dict)
    made: int = 0

    async def sale(self) -> Sale:
        """The sale as its row stands."""
        sale = await self.book.read(self.sale_id)
        assert sale is not None
        return sale

    async def row(self) -> Mapping[str, Any]:
        """The sale's row, with all that a process does not keep in mind."""
        row = await self.stores.postgres.fetchrow("SELECT * FROM sales WHERE sale_id = $1", self.sale_id)
        assert row is not None
        return dict(row)

    async def person(self, name: str) -> str:
        """Somebody with money; the same name is the same person."""
        if name not in self.people:
            user_id = self.people[name] = ids.derive("person", self.sale_id, name)
            await self.stores.postgres.execute(
                "INSERT INTO users (user_id, subject, fingerprint) VALUES ($1, $2, '')", user_id, user_id
            )
            await self.stores.postgres.execute("INSERT INTO balances (user_id, amount) VALUES ($1, 10000000)", user_id)
        return self.people[name]

    async def set_balance(self, name: str, amount: int) -> None:
        """Let this person have just so much."""
        await self.stores.postgres.execute(
            "UPDATE balances SET amount = $2 WHERE user_id = $1", await self.person(name), amount
        )

    async def set_funds_aside(self, *requests: Authorisation) -> None:
        """Authorise these payments, each of which must be."""
        for payment in await authorisations.authorise(self.stores.postgres, requests):
            assert isinstance(payment, payments.Payment), payment
            assert payment.status == "AUTHORISED", payment

    # What a worker does --------------------------------------------------------------------------------------------

    async def own(self, owner: str = "test") -> int:
        """Own the sale's streams, whoever did before."""
        await self.stores.postgres.execute(
            "UPDATE stream_owners SET until = now() - interval '1 second' WHERE sale_id = $1", self.sale_id
        )
        taken = await outbox.take_ownership(self.stores.postgres, owner, sale_ids=[self.sale_id])
        return taken[self.sale_id]

    async def drain(self) -> int:
        """Apply all that both streams hold; returns how many entries."""
        generation, sale, count = await self.own(), await self.sale(), 0
        for stream in STREAMS:
            handler = rebuild.handlers(sale)[stream]
            reader = Reader(self.stores.gate, self.stores.postgres, sale.keys, stream, generation, handler)
            while applied := await reader.drain():
                count += applied
        return count

    async def settle(self, *facts: Entry) -> None:
        """Apply facts of the outbox in one batch, whatever the stream says."""
        async with self.stores.postgres.acquire() as connection, connection.transaction():
            await settlement.handler(await self.sale()).apply(connection, facts)

    async def rebuild(self) -> Sale:
        """Write the sale anew, as its owner does."""
        return await rebuild.rebuild(self.stores, self.sale_id, await self.own())

    async def inspect(self) -> str | None:
        """What a look at heads and watermarks finds wrong."""
        sale = await self.sale()
        return await outbox.inspect(self.stores.gate, self.stores.postgres, sale.keys, sale.epoch)

    # What a test looks at ------------------------------------------------------------------------------------------

    async def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """What Postgres answers, as plain tuples."""
        return [tuple(row) for row in await self.stores.postgres.fetch(sql, *arguments)]

    async def term(self, name: str) -> str:
        """A field of the sale."""
        value = await self.stores.redis.execute_command("HGET", (await self.sale()).keys.sale, name)
        return value.decode() if value is not None else ""

    async def stored(self) -> dict[str, Any]:
        """Everything of the sale in Redis that a rebuild writes, but for its counters and clocks."""
        redis: Any = self.stores.redis
        keys = (await self.sale()).keys
        content: dict[str, Any] = {}
        for name in STORED:
            kind = (await redis.type(getattr(keys, name))).decode()
            if kind == "hash":
                content[name] = await redis.hgetall(getattr(keys, name))
            elif kind == "zset":
                content[name] = dict(await redis.zrange(getattr(keys, name), 0, -1, withscores=True))
        for counter in (b"epoch", b"fence", b"map_version", b"now_ms", b"queue_no", b"queue_no_ceiling"):
            content.get("sale", {}).pop(counter, None)
        return content

    async def payment(self, payment_id: str) -> str:
        """Status of a payment's row."""
        status: str = await self.stores.postgres.fetchval(
            "SELECT status FROM payments WHERE payment_id = $1", payment_id
        )
        return status

    async def age(self, payment_id: str) -> None:
        """Let a payment have stood still for an hour."""
        await self.stores.postgres.execute(
            "UPDATE payments SET updated_at = now() - interval '1 hour' WHERE payment_id = $1", payment_id
        )

    async def set_aside(self, name: str) -> int:
        """What of somebody's balance is set aside."""
        amount: int = await self.stores.postgres.fetchval(
            "SELECT set_aside FROM balances WHERE user_id = $1", await self.person(name)
        )
        return amount


@dataclass
class Shop(Selling):
    """A sale of seats, and every step that an API process or a worker would take with it."""

    # What an API process does --------------------------------------------------------------------------------------

    async def hold(self, *seat_nos: str, by: str = "ann", queue_no: int = 0) -> str:
        """Hold seats; returns the hold."""
        sale, buyer_id = await self.sale(), await self.person(by)
        self.made += 1
        hold_id = ids.derive_in(self.sale_id, "hold", str(self.made))
        held = await seats.hold(
            self.stores.gate,
            sale,
            hold_id=hold_id,
            buyer_id=buyer_id,
            fingerprint=ids.fingerprint(*seat_nos),
            seat_nos=seat_nos,
            queue_no=queue_no,
        )
        assert isinstance(held, seats.Held), held
        return hold_id

    async def begin_payment(self, hold_id: str) -> Authorisation:
        """HELD to PAYING: the first step of a payment."""
        sale, hold = await self.sale(), await self.find(hold_id)
        payment_id = ids.derive("payment of", hold_id)
        paying = await seats.pay(self.stores.gate, sale, hold_id=hold_id, buyer_id=hold.buyer_id, payment_id=payment_id)
        assert isinstance(paying, seats.Paying), paying
        return Authorisation(
            payment_id=payment_id,
            fingerprint="",
            pay_deadline_ms=paying.pay_deadline_ms,
            holding=Holding(
                reservation_id=hold_id,
                sale_id=sale.sale_id,
                schedule_id=str(sale.schedule_id),
                user_id=hold.buyer_id,
                epoch=sale.epoch,
                fence=hold.fence,
                queue_no=hold.queue_no,
                fingerprint=hold.fingerprint,
                amount=hold.amount,
                expires_at_ms=hold.expires_at_ms,
                created_at_ms=hold.created_at_ms,
                seat_nos=tuple([line.seat_no for line in hold.lines]),
                prices=tuple([line.price for line in hold.lines]),
            ),
        )

    async def authorise(self, hold_id: str) -> Authorisation:
        """Funds are set aside: the second step."""
        request = await self.begin_payment(hold_id)
        await self.set_funds_aside(request)
        return request

    async def confirm(self, request: Authorisation) -> Any:
        """PAYING to SOLD: the third step."""
        return await seats.confirm(
            self.stores.gate,
            await self.sale(),
            hold_id=request.holding.hold_id,
            fence=request.holding.fence,
            payment_id=request.payment_id,
        )

    async def buy(self, *seat_nos: str, by: str = "ann") -> Authorisation:
        """Hold, pay and confirm; the worker has not heard of it."""
        request = await self.authorise(await self.hold(*seat_nos, by=by))
        assert isinstance(await self.confirm(request), seats.Confirmed)
        return request

    async def rival(self, *seat_nos: str, by: str) -> Authorisation:
        """A request to pay for seats that Redis gave to somebody else too, as it can after a failover."""
        sale = await self.sale()
        hold_id = ids.derive_in(self.sale_id, "rival", by, *seat_nos)
        return Authorisation(
            payment_id=ids.derive("payment of", hold_id),
            fingerprint="",
            pay_deadline_ms=4_000_000_000_000,
            holding=Holding(
                reservation_id=hold_id,
                sale_id=sale.sale_id,
                schedule_id=str(sale.schedule_id),
                user_id=await self.person(by),
                epoch=sale.epoch,
                fence=500,
                queue_no=0,
                fingerprint="",
                amount=PRICE * len(seat_nos),
                expires_at_ms=4_000_000_000_000,
                created_at_ms=1_900_000_000_000,
                seat_nos=seat_nos,
                prices=(PRICE,) * len(seat_nos),
            ),
        )

    async def release(self, hold_id: str) -> None:
        """Give a hold back whole."""
        hold = await self.find(hold_id)
        released = await seats.release(
            self.stores.gate,
            await self.sale(),
            hold_id=hold_id,
            buyer_id=hold.buyer_id,
            release_id=ids.derive("release of", hold_id),
            fingerprint="",
        )
        assert isinstance(released, seats.Released), released

    async def find(self, hold_id: str) -> seats.Hold:
        """The hold of this id, which must be known."""
        found = await seats.find(self.stores.gate, await self.sale(), hold_id=hold_id)
        assert isinstance(found, seats.Hold), found
        return found

    # What a test looks at ------------------------------------------------------------------------------------------

    async def set_price(self, seat_no: str, price: int) -> None:
        """Let a seat cost this from now on, in Redis."""
        key = (await self.sale()).keys.prices
        record: bytes = await self.stores.redis.execute_command("HGET", key, seat_no)
        changed = f"{price}|{record.decode().partition('|')[2]}"
        await self.stores.redis.execute_command("HSET", key, seat_no, changed)

    async def statuses(self) -> dict[str, str]:
        """What stands on each seat that is not free: state, hold and fence."""
        standing = await self.stores.redis.hgetall((await self.sale()).keys.seats)  # type: ignore[misc]
        return {seat_no.decode(): value.decode() for seat_no, value in standing.items()}

    async def states(self) -> dict[str, str]:
        """The state alone of each seat that is not free."""
        return {seat_no: value.split(" ")[0] for seat_no, value in (await self.statuses()).items()}

    async def reservation(self, hold_id: str) -> tuple[str, str | None]:
        """Status and reason of a reservation's row."""
        row = await self.stores.postgres.fetchrow(
            "SELECT status, reason FROM reservations WHERE reservation_id = $1", hold_id
        )
        assert row is not None
        return row["status"], row["reason"]

    async def check(self) -> None:
        """Assert that Redis and Postgres say the same, once everything is drained (I1, I6, I9, I13)."""
        postgres = self.stores.postgres
        claims = {
            row["seat_no"]: f"SOLD {row['reservation_id']} {row['fence']}"
            for row in await postgres.fetch(
                "SELECT seat_no, reservation_id, fence FROM reservation_seats JOIN reservations USING (reservation_id) "
                "WHERE reservations.sale_id = $1 AND reservation_seats.status = 'CLAIMED'",
                self.sale_id,
            )
        }
        standing = await self.statuses()
        assert {seat_no: value for seat_no, value in standing.items() if value.startswith("SOLD")} == claims
        sold = await postgres.fetch("SELECT seat_no FROM seats WHERE sale_id = $1 AND sold", self.sale_id)
        assert {row["seat_no"] for row in sold} == claims.keys()
        aside = await postgres.fetchval("SELECT coalesce(sum(set_aside), 0)::bigint FROM balances")
        live = await postgres.fetchval(
            "SELECT coalesce(sum(balance_amount), 0)::bigint FROM payments "
            "WHERE status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')"
        )
        assert aside == live
        rows = await postgres.fetch(
            "SELECT stream, epoch, first_n, last_n FROM applied_batches WHERE sale_id = $1 "
            "ORDER BY stream, epoch, first_n",
            self.sale_id,
        )
        reached: dict[tuple[str, int], int] = {}
        for row in rows:
            of = (row["stream"], row["epoch"])
            assert row["first_n"] == reached.get(of, 0) + 1
            reached[of] = row["last_n"]


async def open_shop(stores: Stores, *, seats_count: int = 6, blocked: int = 0, **terms: Any) -> Shop:
    """Make a concert whose sale is open."""
    shop = await new_shop(stores, seats_count=seats_count, blocked=blocked, **terms)
    assert await rebuild.ensure_open(stores, shop.sale_id)
    return shop


async def new_shop(stores: Stores, *, seats_count: int = 6, blocked: int = 0, **terms: Any) -> Shop:
    """Make a concert whose sale no store knows yet: seats A-1-1, A-1-2 …, the last of them blocked."""
    await stores.postgres.execute(
        "INSERT INTO installation (name, value) VALUES ('currency', 'KRW') ON CONFLICT DO NOTHING"
    )
    concert_id, schedule_id = ids.random_id(), ids.random_id()
    await catalogue.create_concert(stores.postgres, concert_id=concert_id, poster=catalogue.Poster(title="One night"))
    made = await catalogue.create_schedule(
        stores.postgres,
        schedule_id=schedule_id,
        concert_id=concert_id,
        start_at=START_AT,
        terms=Terms(name="One night", **terms),
        seats=[
            catalogue.Seat(
                section="A", row="1", number=number, category="R", price=PRICE, blocked=number > seats_count - blocked
            )
            for number in range(1, seats_count + 1)
        ],
        fingerprint="",
    )
    assert isinstance(made, tuple), made
    return Shop(stores, made[0].sale_id, SaleBook(stores.postgres))


def fact(kind: str, *, n: int, hold_id: str, payment_id: str, fence: int = 1, **fields: str) -> Entry:
    """A fact as it might stand in the outbox, true or not."""
    named = {"hold_id": hold_id, "payment_id": payment_id, "fence": str(fence), "queue_no": "0"}
    named |= {"buyer_id": "0b" * 16, "at_ms": "1900000000000"}
    return Entry(f"{n}-0", 1, n, f"{n - 1}-0", kind, named | fields)


def fact_of(request: Authorisation, kind: str, *, n: int, **fields: str) -> Entry:
    """A fact about the hold of this payment."""
    holding = request.holding
    return fact(
        kind,
        n=n,
        hold_id=holding.hold_id,
        payment_id=request.payment_id,
        fence=holding.fence,
        **{"buyer_id": holding.user_id} | fields,
    )


async def together(*asked: Any) -> list[Any]:
    """Ask all of these in one moment."""
    return list(await asyncio.gather(*asked))
