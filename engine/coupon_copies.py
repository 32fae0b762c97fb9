"""A source of coupons, written anew to Redis: its terms, and who has a coupon of it. It has no line and no holds."""

from engine import coupons
from engine.copies import Cleared, Loaded, LoadedAnswer, RebuildFailed, expect, pages
from engine.coupons import CountedCoupons
from engine.sales import Sale
from engine.stores import queries
from engine.stores.connections import Stores
from engine.stores.keys import CouponKeys
from engine.stores.replies import StaleEpoch
from engine.stores.scripts import Script

SQL = queries.load("coupon_copies")

COUPONS_AT_ONCE = 1000

CLEAR = Script("coupons/clear", CouponKeys, Cleared | StaleEpoch)
LOAD = Script("coupons/load", CouponKeys, LoadedAnswer)


async def write(stores: Stores, sale: Sale) -> None:
    """Write all of it, and compare the counts. Raises RebuildFailed."""
    terms = (
        *await coupons.find_stored_terms(stores.postgres, sale.sale_id),
        *("backlog_max", stores.settings.backlog_max),
    )
    expect(await CLEAR(stores.gate, sale.keys, epoch=sale.epoch, terms=terms), Cleared)
    issued = 0
    first = "0" * 32
    async for rows in pages(stores.postgres, SQL.list_users, sale.sale_id, first, "user_id", COUPONS_AT_ONCE):
        user_ids = [row["user_id"] for row in rows]
        expect(await LOAD(stores.gate, sale.keys, epoch=sale.epoch, user_ids=user_ids), Loaded)
        issued += len(rows)
    counted = await coupons.COUNT(stores.gate, sale.keys, epoch=sale.epoch)
    if not isinstance(counted, CountedCoupons) or counted.issued != issued:
        raise RebuildFailed(f"source {sale.sale_id}: meant to write {issued} coupons, the store has {counted}")
