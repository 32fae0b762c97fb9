"""The installation: secret, currency and time zone that all its processes share, made or checked when it starts."""

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
TIME_ZONE: Final = "time_zone"

SQL = queries.load("installation")


class CurrencyChanged(Exception):
    """The amounts in this database are of another currency than the settings name."""


class TimeZoneRefused(Exception):
    """The days in this database are of another time zone than the settings name, or Postgres knows no such zone."""


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What every process needs to know."""

    secret: str
    currency: str


async def prepare_database(settings: Settings) -> str | None:
    """Migrate the database that the settings name and `prepare` the installation in it, as each face does at its start.

    Raises StoreUnavailable, MigrationFault, CurrencyChanged and TimeZoneRefused.
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

    The key can be read here and never again. Any number of processes may call this at once. Raises CurrencyChanged and
    TimeZoneRefused.
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
        await _keep_time_zone(connection, kept.get(TIME_ZONE), settings.time_zone)
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


async def _keep_time_zone(connection: Connection, kept: str | None, time_zone: str) -> None:
    """Keep the zone whose days are counted: another one only as long as nothing is, for a day stays what it was."""
    try:
        await SQL.check_time_zone.fetchval(connection, time_zone)
    except asyncpg.InvalidParameterValueError as fault:
        raise TimeZoneRefused(f"{variable('time_zone')}: Postgres knows no time zone {time_zone!r}.") from fault
    if kept not in (None, time_zone) and await SQL.has_counted_days.fetchval(connection):
        raise TimeZoneRefused(
            f"{variable('time_zone')} is {time_zone}, but the days of this database are counted in {kept}. "
            f"Set {variable('time_zone')}={kept}."
        )
    await SQL.keep_in_installation.execute(connection, TIME_ZONE, time_zone)


async def _kept(connection: "asyncpg.Pool | Connection") -> dict[str, str]:
    return {row["name"]: row["value"] for row in await SQL.list_installation.fetch(connection)}
