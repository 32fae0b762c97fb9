"""The operator's verbs: what the API does for operators, done from a terminal on the installation's own stores."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import asyncpg
import click
import msgspec
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from engine import accounts, balances, ids, installation, messages, offers, payments, resolutions, sales, seat_blocks
from engine.accounts import KeptKey
from engine.balances import Charge
from engine.cards import Cards, is_asked
from engine.messages import Message
from engine.payments import Payment
from engine.resolutions import Resolution, Word
from engine.sales import Listing, Sale, SaleBook
from engine.seat_blocks import Asked
from engine.seats import SeatTaken
from engine.settings import Settings, variable
from engine.stores.connections import Stores, StoreUnavailable, open_stores
from engine.stores.outbox import BadEntry, Divergence
from engine.stores.replies import Reply, title_of
from engine.stripe_gateway import open_gateway

ROOM = 1_000
"""Columns that any table has room in."""

# What stands in the way of a fact that waits for an operator: it still does.
IN_THE_WAY = (Divergence, BadEntry, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """A waiting room as it is set."""

    sale_id: str
    name: str
    state: str
    active_max: int
    admitted_per_minute_max: int
    entry_s: int
    session_s: int
    recall_s: int
    draining_no: int | None
    version: int


class BlockedSeats(msgspec.Struct, frozen=True, kw_only=True):
    """Seats that were taken off their sale, or put on it again."""

    seat_block_id: str
    sale_id: str
    blocked: bool
    seats: list[str]


class PaymentStanding(msgspec.Struct, frozen=True, kw_only=True):
    """A payment with its inner state."""

    payment_id: str
    reservation_id: str
    sale_id: str
    user_id: str
    method: str
    state: str
    reason: str | None
    final_amount: int
    created_at: datetime


class Credit(msgspec.Struct, frozen=True, kw_only=True):
    """Money that was added to a balance; `repeated` where the same key added it before."""

    charge_id: str
    user_id: str
    amount: int
    balance_after: int
    repeated: bool


class SentMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message to everybody who waits for a sale; `repeated` where the same key sent it before."""

    message_id: str
    text: str
    at: datetime
    repeated: bool


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A new operator's key: it can be read here and never again."""

    name: str
    scopes: list[str]
    key: str


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Stores]:
    try:
        async with open_stores(settings) as stores:
            yield stores
    except asyncpg.UndefinedTableError as fault:
        raise StoreUnavailable("This database has no schema yet: start `lastseat up` once.") from fault


def _refused(refusal: Reply) -> click.ClickException:
    """A refusal as a line: what it is, and the fields that say more."""
    fields = ", ".join(f"{name} {value}" for name, value in msgspec.structs.asdict(refusal).items())
    return click.ClickException(f"{title_of(type(refusal))}{f' ({fields})' if fields else ''}.")


# Sales and their rooms ------------------------------------------------------------------------------------------------


async def list_sales(settings: Settings, *, limit: int) -> list[Listing]:
    """The newest sales."""
    async with _opened(settings) as stores:
        return await sales.list_newest(stores.postgres, limit=limit)


async def set_room(settings: Settings, sale_id: str, changes: Mapping[str, object]) -> Room:
    """Change a waiting room, or only look at it where nothing is to change."""
    async with _opened(settings) as stores:
        book = SaleBook(stores.postgres)
        if changes:
            sale = await offers.configure(stores, book, sale_id=sale_id, changes=changes)
        else:
            sale = await book.read(sale_id)
    if sale is None or (isinstance(sale, Sale) and sale.kind == "coupon"):
        raise click.ClickException(f"There is no sale {sale_id}.")
    if not isinstance(sale, Sale):
        raise _refused(sale)
    terms = {name: getattr(sale, name) for name in Room.__struct_fields__ if name != "state"}
    return Room(**terms, state=sale.room)


async def send_message(settings: Settings, sale_id: str, *, text: str, key: str | None) -> SentMessage:
    """Tell everybody who listens to a sale, once for a key."""
    message_id = ids.derive("command line", "message", sale_id, key) if key else ids.random_id()
    async with _opened(settings) as stores:
        sale = await SaleBook(stores.postgres).read(sale_id)
        if sale is None or sale.kind == "coupon":
            raise click.ClickException(f"There is no sale {sale_id}.")
        sent = await messages.send(
            stores.gate,
            stores.postgres,
            sale,
            message_id=message_id,
            text=text.strip(" "),
            api_key_id=await accounts.own_key(stores.postgres),
        )
    if not isinstance(sent, Message):
        raise _refused(sent)
    return SentMessage(message_id=sent.message_id, text=sent.text, at=sent.created_at, repeated=sent.repeated)


async def block(
    settings: Settings, sale_id: str, *, seat_nos: Sequence[str], section: str | None, blocked: bool
) -> BlockedSeats:
    """Take seats off a sale that runs, or put them on it again, all of them or none."""
    asked = Asked(seat_block_id=ids.random_id(), seat_nos=tuple(seat_nos), section=section, blocked=blocked)
    async with _opened(settings) as stores:
        sale = await SaleBook(stores.postgres).read(sale_id)
        if sale is None or sale.kind == "coupon":
            raise click.ClickException(f"There is no sale {sale_id}.")
        changed = await seat_blocks.change(stores, sale, asked)
    if isinstance(changed, SeatTaken):
        reasons = ", ".join(f"{seat.seat_no} {seat.reason}" for seat in changed.seats)
        raise click.ClickException(f"Nothing was changed: {reasons}.")
    if not isinstance(changed, tuple):
        raise _refused(changed)
    done = changed[0]
    return BlockedSeats(
        seat_block_id=done.seat_block_id, sale_id=sale_id, blocked=done.blocked, seats=list(done.seat_nos)
    )


# Payments and money ---------------------------------------------------------------------------------------------------


async def list_payments(settings: Settings, *, state: str, limit: int) -> list[PaymentStanding]:
    """The newest payments in this inner state."""
    async with _opened(settings) as stores:
        found = await payments.list_in_state(stores.postgres, state, limit=limit)
    return [_standing(payment) for payment in found]


def _standing(payment: Payment) -> PaymentStanding:
    named = {name: getattr(payment, name) for name in PaymentStanding.__struct_fields__ if name != "state"}
    return PaymentStanding(**named, state=payment.status)


async def resolve(settings: Settings, payment_id: str, *, word: Word, note: str) -> PaymentStanding:
    """Decide a payment in doubt; said again, it answers how the payment stands."""
    async with _opened(settings) as stores, open_gateway(settings) as gateway:
        postgres = stores.postgres
        payment = (await payments.read(postgres, [payment_id])).get(payment_id)
        if payment is None:
            raise click.ClickException(f"There is no payment {payment_id}.")
        if gateway is None and payment.status == "IN_DOUBT" and is_asked(payment):
            raise click.ClickException(f"Its card gateway must be asked, and {variable('stripe_api_key')} names none.")
        cards = None
        if gateway is not None:
            currency = (await installation.read(postgres)).currency
            cards = Cards(stores.gate, postgres, gateway, currency=currency)
        resolution = Resolution(
            resolution_id=ids.derive("command line", "resolution", payment_id, word, note),
            payment_id=payment_id,
            word=word,
            note=note,
            api_key_id=await accounts.own_key(postgres),
        )
        try:
            resolved = await resolutions.resolve(postgres, SaleBook(postgres), cards, resolution)
        except IN_THE_WAY as fault:
            why = str(fault).partition("\n")[0]
            raise click.ClickException(f"It is still in doubt: {why}") from fault
    if not isinstance(resolved, tuple):
        raise _refused(resolved)
    return _standing(resolved[0])


async def credit(settings: Settings, user_id: str, *, amount: int, reason: str, key: str | None) -> Credit:
    """Add money to somebody's balance, once for a key."""
    charge_id = ids.derive("command line", "credit", user_id, key) if key else ids.random_id()
    async with _opened(settings) as stores:
        charged = await balances.charge(
            stores.postgres, charge_id=charge_id, user_id=user_id, amount=amount, reason=reason
        )
    if charged is None:
        raise click.ClickException(f"There is no user {user_id}.")
    if not isinstance(charged, Charge):
        raise _refused(charged)
    return Credit(
        charge_id=charge_id,
        user_id=user_id,
        amount=charged.amount,
        balance_after=charged.balance_after,
        repeated=charged.repeated,
    )


# Operators' keys ------------------------------------------------------------------------------------------------------


async def list_keys(settings: Settings) -> list[KeptKey]:
    """Every operator's key, without what opens it."""
    async with _opened(settings) as stores:
        return await accounts.list_api_keys(stores.postgres)


async def make_key(settings: Settings, name: str, scopes: Sequence[str]) -> NewKey:
    """Make a key that may do this, or everything where nothing is said."""
    scopes = [*(scopes or accounts.SCOPES)]
    async with _opened(settings) as stores:
        key = await accounts.add_api_key(stores.postgres, name=name, scopes=scopes)
    return NewKey(name=name, scopes=scopes, key=key)


async def revoke_key(settings: Settings, api_key_id: str) -> KeptKey:
    """End a key at once."""
    async with _opened(settings) as stores:
        revoked = await accounts.revoke_api_key(stores.postgres, api_key_id)
    if revoked is None:
        raise click.ClickException(f"There is no key {api_key_id}: `lastseat keys` lists them.")
    return revoked


# How it is told -------------------------------------------------------------------------------------------------------


def show(told: Any, console: Console) -> None:
    """Show a list as a table with a line for each, where that has room, and else field by field."""
    if not isinstance(told, list):
        console.print(_card(told))
        return
    if not told:
        console.print("None.", highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    for name in told[0].__struct_fields__:
        # An id is there to be copied: it keeps to its line.
        table.add_column(name, no_wrap=name.endswith("_id"))
    for one in told:
        table.add_row(*map(_words, msgspec.structs.astuple(one)))
    # Measured as if there were room: in less, columns at the end would vanish.
    wide = console.options.update_width(ROOM)
    if Measurement.get(console, wide, table).minimum <= console.width:
        console.print(table)
        return
    for one in told:
        console.print(_card(one), Text())


def _card(told: Any) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in msgspec.structs.asdict(told).items():
        table.add_row(name, _words(value))
    return table


def _words(value: object) -> Text:
    # What people wrote is shown as they wrote it: in a plain string a [name] would be taken for a style.
    if value is None:
        return Text("-")
    if isinstance(value, datetime):
        return Text(f"{value:%F %T}")
    if isinstance(value, list):
        return Text(", ".join(map(str, value)))
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    return Text(str(value))
