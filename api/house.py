"""What the handlers of one process share, opened once when it starts."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import asyncpg

from api.clock import Clock
from api.events import Events
from api.problems import FAULTS
from api.seats import SeatMaps
from api.waiting_room import PassDesk
from engine import accounts, catalogue, installation, tickets
from engine.accounts import TOKEN_LIFETIME_S, Passwords, UserTokens
from engine.cards import Cards
from engine.catalogue import Offerings
from engine.gateway import Gateway
from engine.products import Labels
from engine.rooms import REFRESH_EVERY_S, Rooms
from engine.sales import SaleBook
from engine.seat_maps import Maps
from engine.settings import Settings
from engine.statistics import Charts
from engine.stores.connections import Stores, open_stores
from engine.stores.scripts import Gate
from engine.stripe_gateway import open_gateway
from engine.till import Till
from engine.tokens import Passes, QueueTokens, find_pass_keys
from engine.waiters import Waiters

logger = logging.getLogger(__name__)

REFRESH_S = 1.0
# New keys of passes sign ten minutes after they were published, so a minute late is early enough.
KEYS_REFRESH_S = 60.0


@dataclass
class House:
    """Both stores, and what this process knows of them."""

    settings: Settings
    stores: Stores
    currency: str
    clock: Clock
    book: SaleBook
    offerings: Offerings
    labels: Labels
    user_tokens: UserTokens
    passwords: Passwords
    seat_maps: SeatMaps
    queue_tokens: QueueTokens
    till: Till
    waiters: Waiters
    rooms: Rooms
    events: Events
    passes: PassDesk
    ticket_codes: tickets.Codes
    charts: Charts
    cards: Cards | None = None
    in_flight: int = 0

    @property
    def gateway(self) -> Gateway | None:
        """Whoever authorises cards, where there is one."""
        return self.cards.gateway if self.cards else None

    @property
    def postgres(self) -> asyncpg.Pool:
        """The pool of connections to Postgres."""
        return self.stores.postgres

    @property
    def gate(self) -> Gate:
        """The way into Redis."""
        return self.stores.gate


@asynccontextmanager
async def open_house(settings: Settings) -> AsyncIterator[House]:
    """Open the stores, read what all processes share, and keep it fresh until the end."""
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(open_stores(settings))
        postgres = stores.postgres
        shared = await installation.read(postgres)
        passwords = Passwords(
            memory_kib=settings.password_memory_kib,
            passes=settings.password_passes,
            threads=max(1, (os.cpu_count() or 1) // settings.workers),
        )
        stack.callback(passwords.close)
        book = SaleBook(postgres)
        maps = Maps(stores.gate, partial(catalogue.find_hidden, postgres))
        stack.push_async_callback(maps.close)
        rooms = Rooms(stores.gate, book, postgres)
        passes = Passes(await find_pass_keys(postgres))
        waiters = await stack.enter_async_context(Waiters(postgres, stores.listener).listening())
        gateway = await stack.enter_async_context(open_gateway(settings))
        cards = Cards(stores.gate, postgres, gateway, currency=shared.currency) if gateway else None
        house = House(
            settings=settings,
            stores=stores,
            currency=shared.currency,
            clock=Clock(await postgres.fetchval("SELECT now()")),
            book=book,
            offerings=Offerings(postgres),
            labels=Labels(postgres),
            user_tokens=UserTokens(shared.secret),
            passwords=passwords,
            seat_maps=SeatMaps(maps, postgres),
            queue_tokens=QueueTokens(shared.secret),
            till=Till(stores.gate, postgres, waiters, cards=cards),
            waiters=waiters,
            rooms=rooms,
            events=Events(stores.gate, book, maps, rooms, most=settings.listeners_max),
            passes=PassDesk(passes),
            ticket_codes=tickets.Codes(await tickets.find_key(postgres)),
            charts=Charts(postgres),
            cards=cards,
        )
        await refresh_people(house)
        await house.book.refresh()
        stack.push_async_callback(house.events.close)
        await stack.enter_async_context(
            _running(
                _every(REFRESH_S, partial(refresh_people, house)),
                _every(REFRESH_S, house.book.refresh),
                _every(REFRESH_EVERY_S, house.rooms.refresh),
                _every(KEYS_REFRESH_S, partial(_refresh_keys, postgres, passes)),
            )
        )
        yield house


@asynccontextmanager
async def _running(*work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run these until the block ends."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def refresh_people(house: House) -> None:
    """Take over the time, and who was wiped since a token that is still valid was made."""
    house.clock.set(await house.postgres.fetchval("SELECT now()"))
    house.user_tokens.wiped.update(await accounts.find_wiped(house.postgres, within_s=TOKEN_LIFETIME_S))


async def _refresh_keys(postgres: asyncpg.Pool, passes: Passes) -> None:
    """Sign with, and publish, what another process may have rotated in."""
    passes.use(await find_pass_keys(postgres))


async def _every(seconds: float, work: Callable[[], Awaitable[object]]) -> None:
    """Do this for ever; while a store is away, what this process knows grows older."""
    while True:
        try:
            await work()
        except Exception as fault:  # the outermost loop: what one pass meets must not end all that come after
            stack = None if isinstance(fault, FAULTS) else fault
            logger.warning("not refreshed: %s: %s", type(fault).__name__, fault, exc_info=stack)
        await asyncio.sleep(seconds)
