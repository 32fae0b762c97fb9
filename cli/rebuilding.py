"""`lastseat rebuild`: an operator has a sale written to Redis anew."""

import re

import asyncpg

from cli.processes import ProcessFault
from engine import rebuild as rebuilds
from engine import sales
from engine.settings import Settings
from engine.stores.connections import StoreUnavailable, open_stores

WITHIN_S = 120.0


async def rebuild(settings: Settings, sale_id: str) -> int:
    """Rebuild the sale and return the epoch of its new copy; raises ProcessFault where that cannot be done."""
    if not re.fullmatch("[0-9a-f]{32}", sale_id):
        raise ProcessFault(f"{sale_id!r} is no sale: its id has 32 hex digits.")
    async with open_stores(settings) as stores:
        book = sales.SaleBook(stores.postgres)
        try:
            sale = await book.find(sale_id)
        except asyncpg.UndefinedTableError as fault:
            raise StoreUnavailable("This database has no schema yet: start `lastseat up` once.") from fault
        if sale is None:
            raise ProcessFault(f"There is no sale {sale_id}.")
        if not await rebuilds.demand(stores, sale_id, reason="an operator asked", within_s=WITHIN_S):
            raise ProcessFault(f"Sale {sale_id} was not rebuilt within {WITHIN_S:.0f} s; it stays closed.")
        rebuilt = await book.read(sale_id)
        return rebuilt.epoch if rebuilt else 0
