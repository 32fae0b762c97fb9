"""Charges by card: money that a user adds to their balance through a gateway.

The row comes first, the gateway takes the money under the charge's own id, and the balance grows in the transaction
that writes down that it was taken. `advance` begins again wherever a process died.
"""

import logging
from datetime import datetime
from typing import Final

import asyncpg
import msgspec

from engine import gateway as gateways
from engine import ids
from engine.balances import AMOUNT_MAX
from engine.balances import SQL as BALANCES
from engine.gateway import (
    AlreadyCaptured,
    Authorised,
    CaptureRefused,
    Declined,
    Gateway,
    GatewayUnavailable,
    GatewayUnknown,
    NeedsAction,
)
from engine.refusals import IdempotencyKeyReused, LimitReached
from engine.stores import queries

logger = logging.getLogger(__name__)

SQL = queries.load("charges")

# A buyer who has not said yes by then does not get the money any more.
OPEN_S: Final = 3600.0


class CardCharge(msgspec.Struct, frozen=True, kw_only=True):
    """A charge as it stands: PENDING, AUTHORISED (to be taken), SUCCESS or FAILED; the amount in minor units."""

    charge_id: str
    user_id: str
    amount: int
    status: str
    payment_method_id: str
    return_url: str | None
    gateway_ref: str | None
    action_url: str | None
    decline_code: str | None
    fingerprint: str
    # What the balance was right after it; None until it is taken.
    balance_after: int | None
    created_at: datetime
    done_at: datetime | None

    @property
    def public_status(self) -> str:
        """PENDING, SUCCESS or FAILED."""
        return "PENDING" if self.is_open else self.status

    @property
    def is_open(self) -> bool:
        """Whether it is still to be decided."""
        return self.status in {"PENDING", "AUTHORISED"}


async def begin(
    postgres: asyncpg.Pool,
    gateway: Gateway,
    *,
    charge_id: str,
    user_id: str,
    amount: int,
    currency: str,
    payment_method_id: str,
    return_url: str | None,
) -> tuple[CardCharge, bool] | IdempotencyKeyReused | LimitReached | None:
    """Charge a card, once for this id; answers the charge as it now stands, and whether an earlier request began it.

    None if nobody has that balance. An open charge goes on without its caller.
    """
    fingerprint = ids.fingerprint(user_id, str(amount), payment_method_id, return_url or "")
    known = await find(postgres, charge_id)
    if known is None:
        async with postgres.acquire() as connection, connection.transaction():
            # Locked as by a charge without a card: which of the two an id is, whoever comes second finds.
            balance = await SQL.lock_balance.fetchrow(connection, user_id)
            if balance is None:
                return None
            if await BALANCES.find_charge.fetchrow(connection, charge_id) is None:
                if balance["amount"] + amount > AMOUNT_MAX:
                    return LimitReached(limit=AMOUNT_MAX, have=balance["amount"])
                await SQL.add_charge.execute(
                    connection, charge_id, user_id, amount, payment_method_id, return_url, fingerprint
                )
    charge = await find(postgres, charge_id)
    if charge is None or charge.fingerprint != fingerprint:
        return IdempotencyKeyReused()
    return await advance(postgres, gateway, charge, currency=currency), known is not None


async def find(postgres: asyncpg.Pool, charge_id: str) -> CardCharge | None:
    """One charge by id, whoever's it is."""
    row = await SQL.find_charge.fetchrow(postgres, charge_id)
    return CardCharge(**{name: row[name] for name in CardCharge.__struct_fields__}) if row else None


async def find_told(postgres: asyncpg.Pool, ref: str) -> CardCharge | None:
    """The charge that a gateway knows by this name."""
    charge_id = await SQL.find_told.fetchval(postgres, ref)
    return await find(postgres, charge_id) if charge_id else None


async def advance(postgres: asyncpg.Pool, gateway: Gateway, charge: CardCharge, *, currency: str) -> CardCharge:
    """Bring an open charge as far as its gateway lets it; one that the gateway leaves open stays so."""
    try:
        return await _advance(postgres, gateway, charge, currency)
    except (GatewayUnknown, GatewayUnavailable) as fault:
        logger.warning("charge %s: %s", charge.charge_id, fault)
        return await find(postgres, charge.charge_id) or charge


async def _advance(postgres: asyncpg.Pool, gateway: Gateway, charge: CardCharge, currency: str) -> CardCharge:
    if charge.status == "PENDING":
        match await _ask(gateway, charge, currency):
            case Authorised(ref=ref):
                await SQL.keep_ref.execute(postgres, charge.charge_id, ref, None, "AUTHORISED")
            case NeedsAction(ref=ref, url=url):
                await SQL.keep_ref.execute(postgres, charge.charge_id, ref, url, "PENDING")
            case Declined(ref=declined_ref, decline_code=code):
                await SQL.finish_charge.execute(postgres, charge.charge_id, "FAILED", code, declined_ref)
        charge = await find(postgres, charge.charge_id) or charge
    if charge.status == "AUTHORISED" and charge.gateway_ref is not None:
        key = ids.derive("gateway", "CAPTURE", charge.charge_id)
        captured = await gateways.capture(gateway, charge.gateway_ref, amount=charge.amount, key=key)
        if isinstance(captured, CaptureRefused):
            await SQL.finish_charge.execute(postgres, charge.charge_id, "FAILED", captured.reason, None)
        else:
            await _credit(postgres, charge)
        charge = await find(postgres, charge.charge_id) or charge
    return charge


async def _ask(gateway: Gateway, charge: CardCharge, currency: str) -> Authorised | NeedsAction | Declined:
    if charge.gateway_ref is None:
        try:
            return await gateway.authorise(
                payment_id=charge.charge_id,
                amount=charge.amount,
                currency=currency,
                payment_method_id=charge.payment_method_id,
                return_url=charge.return_url,
                metadata={"user_id": charge.user_id},
            )
        except GatewayUnknown:
            # A key may remember a fault for ever: what was done under it is looked up.
            intent = await gateway.find(charge.charge_id)
            if intent is None:
                raise
            return intent.verdict()
    intent = await gateway.query(charge.gateway_ref)
    if intent is None:
        raise GatewayUnknown(f"the gateway has forgotten {charge.gateway_ref}")
    return intent.verdict()


async def _credit(postgres: asyncpg.Pool, charge: CardCharge) -> None:
    """The money is taken: the balance grows, once."""
    async with postgres.acquire() as connection, connection.transaction():
        balance = await SQL.lock_balance.fetchrow(connection, charge.user_id)
        if balance is None or not await SQL.finish_charge.execute(connection, charge.charge_id, "SUCCESS", None, None):
            return
        after, version = balance["amount"] + charge.amount, balance["version"] + 1
        await BALANCES.set_balance.execute(connection, charge.user_id, after, version)
        await BALANCES.add_charge.fetchval(
            connection, charge.user_id, charge.amount, after, version, "card", charge.charge_id, charge.fingerprint
        )


async def close(postgres: asyncpg.Pool, gateway: Gateway, charge: CardCharge, *, currency: str) -> CardCharge:
    """End a charge whose time is over: only what the gateway has cancelled is FAILED, what it took is credited."""
    if charge.gateway_ref is None:
        # The same key again tells what it is called; what that may begin is cancelled next time.
        return await advance(postgres, gateway, charge, currency=currency)
    try:
        key = ids.derive("gateway", "CANCEL", charge.charge_id)
        ended = await gateways.cancel(gateway, charge.gateway_ref, key=key)
    except (GatewayUnknown, GatewayUnavailable) as fault:
        logger.warning("charge %s: not cancelled yet: %s", charge.charge_id, fault)
        return charge
    if isinstance(ended, AlreadyCaptured):
        await _credit(postgres, charge)
    elif isinstance(ended, Authorised):
        return await advance(postgres, gateway, charge, currency=currency)
    else:
        await SQL.finish_charge.execute(postgres, charge.charge_id, "FAILED", "expired", None)
    return await find(postgres, charge.charge_id) or charge


async def reconcile(
    postgres: asyncpg.Pool, gateway: Gateway, *, currency: str, idle_s: float = 5.0, most: int = 50
) -> int:
    """Bring charges on that stand still, at most `most`; returns how many were decided."""
    decided = 0
    for row in await SQL.list_open.fetch(postgres, idle_s, OPEN_S, most):
        charge = await find(postgres, row["charge_id"])
        if charge is None or not charge.is_open:
            continue
        bring = close if row["overdue"] else advance
        decided += not (await bring(postgres, gateway, charge, currency=currency)).is_open
    return decided
