"""What must stand in Postgres before a face starts; each face does it, and whoever comes first does the work."""

import asyncpg

from engine import installation
from engine.settings import Settings
from engine.stores import migrations
from engine.stores.connections import StoreUnavailable, open_postgres


async def prepare(settings: Settings) -> str | None:
    """Migrate, make what is made once, and answer the first admin key if it was made now."""
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
        return await installation.prepare(postgres, settings)
    finally:
        await postgres.close()
