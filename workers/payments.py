"""The reconciler: what a process left half done between Redis and Postgres is finished."""

from engine import reconciliation
from engine.sales import Sale
from engine.stores.connections import Stores
from workers import metrics

RECONCILE_EVERY_S = 5.0


async def reconcile(stores: Stores, sale: Sale) -> bool:
    """Confirm, void, abandon or restore what stands still in a sale."""
    done = await reconciliation.reconcile(stores.gate, stores.postgres, sale)
    for step in ("confirmed", "ended", "abandoned", "restored"):
        metrics.RECONCILED.labels(step).inc(getattr(done, step))
    return False
