"""The installation: the secret and the currency that all its processes share, made or checked when it starts."""

import secrets
from typing import Final

import asyncpg
import msgspec

from engine import accounts
from engine.settings import Settings, variable
from engine.stores import migrations, queries
from engine.stores.connections import StoreUnavailable, open_postgres
from engine.stores.queries import Connection

SIGNED_WITH: Final = "secret"
CURRENCY: Final = "currency"

SQL = queries.load("installation")


class CurrencyChanged(Exception):
    """The amounts in this database are of another currency than the settings name."""


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What every process needs to know."""

    secret: str
    currency: str


async def prepare_database(settings: Settings) -> str | None:
    """Migrate the database that the settings name and `prepare` the installation in it, as each face does at its start.

    Raises StoreUnavailable, MigrationFault and CurrencyChanged.
    """
    try:
        connection = await asyncpg.connect(settings.postgres_url)
    except (OSError, asyncpg.PostgresError) as fault:
        raise StoreUnavailable(f"Postgres cannot be opened: {fault}") from fault
    try:
        await migrations.migrate(connection)
    finally:
        await connection.close()
    postgres = await open_postgres(str(settings.postgres_url), connections_max=1)
    try:
        return await prepare(postgres, settings)
    finally:
        await postgres.close()


async def prepare(postgres: asyncpg.Pool, settings: Settings) -> str | None:
    """Make what is made once, check what must not change, and answer an operator's key if one was made.

    The key can be read here and never again. Any number of processes may call this at once. Raises CurrencyChanged.
    """
    async with postgres.acquire() as connection, connection.transaction():
        await SQL.lock_installation.execute(connection)
        kept = await _kept(connection)
        currency = kept.get(CURRENCY, settings.currency)
        if currency != settings.currency:
            raise CurrencyChanged(
                f"{variable('currency')} is {settings.currency}, but the amounts of this database are in {currency}. "
                f"Set {variable('currency')}={currency}."
            )
        await SQL.keep_in_installation.execute(connection, CURRENCY, currency)
        secret = settings.secret or kept.get(SIGNED_WITH) or secrets.token_urlsafe(32)
        await SQL.keep_in_installation.execute(connection, SIGNED_WITH, secret)
        if settings.admin_key:
            await accounts.add_api_key(connection, name="LASTSEAT_ADMIN_KEY", key=settings.admin_key)
            return None
        if await SQL.count_api_keys.fetchval(connection):
            return None
        return await accounts.add_api_key(connection, name="first start")


async def read(postgres: asyncpg.Pool) -> Installation:
    """What `prepare` has made."""
    kept = await _kept(postgres)
    return Installation(secret=kept[SIGNED_WITH], currency=kept[CURRENCY])


async def _kept(connection: "asyncpg.Pool | Connection") -> dict[str, str]:
    return {row["name"]: row["value"] for row in await SQL.list_installation.fetch(connection)}
