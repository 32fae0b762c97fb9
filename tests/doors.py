"""A door: who may redeem tickets, and what it does with one."""

import asyncpg

from engine import accounts, ids, tickets
from engine.refusals import IdempotencyKeyReused, NotFound
from engine.stores.queries import Connection
from engine.tickets import AlreadyRedeemed, Codes, Redemption, TicketCancelled
from engine.tokens import make_key

CODES = Codes(make_key(0))

Redeemed = Redemption | AlreadyRedeemed | TicketCancelled | IdempotencyKeyReused | NotFound


async def key_of(connection: asyncpg.Pool | Connection, name: str = "door") -> str:
    """The id of the key of this name, made when it is first asked for."""
    await accounts.add_api_key(connection, name=name, scopes=[accounts.TICKETS], key=f"the key of {name}")
    key = await accounts.find_api_key(connection, f"the key of {name}")  # type: ignore[arg-type]
    assert key is not None
    return key.api_key_id


async def redeem(
    connection: asyncpg.Pool | Connection, seat_no: str, *, by: str = "door", code: str | None = None
) -> Redeemed:
    """Scan the newest ticket for a seat, at a door of this name."""
    ticket_no = await connection.fetchval("SELECT max(ticket_no) FROM tickets WHERE seat_no = $1", seat_no)
    return await tickets.redeem(
        connection,
        CODES,
        ticket_no=ticket_no or 0,
        redemption_id=ids.derive("redemption", by, str(ticket_no)),
        api_key_id=await key_of(connection, by),
        code=code,
    )
