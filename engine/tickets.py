"""Tickets: what a buyer shows at the door, and what the door does with it, once.

A ticket is a row that the sale itself writes, and its number is given out then, once. Its code is what the buyer shows:
a signed text that says the number, the schedule and the seat and nobody's name, so that a door can check it by the
published keys when it has no network. It is not kept anywhere: the same ticket makes the same code again.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final

import asyncpg
import msgspec

from engine import ids
from engine.refusals import IdempotencyKeyReused, NotFound
from engine.stores import queries
from engine.stores.queries import Connection
from engine.stores.replies import Refusal
from engine.tokens import Signer, SigningKey, make_key

SQL = queries.load("tickets")

LAST_NO: Final = 2**63 - 1

# To sign costs a tenth of a millisecond, and a buyer looks at the same tickets again and again.
CODES_REMEMBERED_MAX: Final = 16_384


class AlreadyRedeemed(Refusal, frozen=True):
    """This ticket has opened the door before."""

    at: datetime


class TicketCancelled(Refusal, frozen=True):
    """This ticket was given back."""


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """One seat that somebody bought: VALID, REDEEMED or CANCELLED."""

    ticket_no: int
    reservation_id: str
    schedule_id: str
    seat_no: str
    status: str


class Redemption(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket that has opened the door, and when; it may have been cancelled since."""

    ticket_no: int
    schedule_id: str
    seat_no: str
    status: str
    at: datetime
    repeated: bool


# Codes ----------------------------------------------------------------------------------------------------------------


class Codes:
    """Signs the codes of tickets: JWTs of the type `ticket+jwt`, for the audience that is the schedule."""

    def __init__(self, key: SigningKey) -> None:
        self.jwk = key.jwk
        self._signer = Signer(key, "ticket+jwt")
        self._signed = lru_cache(CODES_REMEMBERED_MAX)(self._sign)

    def of(self, ticket: Ticket) -> str:
        """The code of a ticket, always the same one."""
        return self._signed(ticket.ticket_no, ticket.schedule_id, ticket.seat_no)

    def _sign(self, ticket_no: int, schedule_id: str, seat_no: str) -> str:
        return self._signer.sign({"aud": schedule_id, "sub": str(ticket_no), "seat_no": seat_no})


async def find_key(postgres: asyncpg.Pool) -> SigningKey:
    """The key that signs the tickets of this installation; the first process to ask makes it, and it stays."""
    kept = await SQL.find_ticket_key.fetchval(postgres)
    if kept is None:
        await SQL.add_ticket_key.execute(postgres, msgspec.json.encode(make_key(0)).decode())
        kept = await SQL.find_ticket_key.fetchval(postgres)
    return msgspec.json.decode(kept, type=SigningKey)


# Mine -----------------------------------------------------------------------------------------------------------------


async def list_mine(
    postgres: asyncpg.Pool, user_id: str, *, before: int = LAST_NO, limit: int = 20
) -> Sequence[Ticket]:
    """A user's tickets, newest first, from after the cursor."""
    return [Ticket(**row) for row in await SQL.list_tickets.fetch(postgres, user_id, before, limit)]


# At the door ----------------------------------------------------------------------------------------------------------


async def redeem(
    connection: asyncpg.Pool | Connection,
    codes: Codes,
    *,
    ticket_no: int,
    redemption_id: str,
    api_key_id: str,
    code: str | None = None,
) -> Redemption | AlreadyRedeemed | TicketCancelled | IdempotencyKeyReused | NotFound:
    """Let somebody in, once: the same id again is told what it did, and every other one when that was.

    A `code` that is not the ticket's is no ticket. Without one the door has checked it already.
    """
    fingerprint = ids.fingerprint("redemption", code or "")
    if code is not None:
        shown = await SQL.find_ticket.fetchrow(connection, ticket_no)
        if shown is None or codes.of(Ticket(**shown)) != code:
            return NotFound()
    # One statement judges and changes: of all the doors that scan a ticket at once, one finds it VALID.
    row = await SQL.redeem_ticket.fetchrow(connection, ticket_no, redemption_id, fingerprint, api_key_id)
    if row is not None:
        return Redemption(**row, repeated=False)
    row = await SQL.find_redemption.fetchrow(connection, ticket_no)
    if row is None:
        return NotFound()
    if row["redemption_id"] == redemption_id:
        if row["redemption_fingerprint"] != fingerprint:
            return IdempotencyKeyReused()
        return Redemption(**{name: row[name] for name in _TOLD}, repeated=True)
    return TicketCancelled() if row["status"] == "CANCELLED" else AlreadyRedeemed(at=row["at"])


_TOLD: Final = ("ticket_no", "schedule_id", "seat_no", "status", "at")
