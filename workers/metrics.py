"""What the workers count, as Prometheus names; every label has a handful of values.

The processes of one machine write into one folder (`PROMETHEUS_MULTIPROC_DIR`), and the API answers for all of them.
"""

from prometheus_client import Counter, Gauge, Histogram

ENTRIES = Counter("lastseat_entries_applied", "Entries of a stream that Postgres has.", ["stream"])
BATCH = Histogram(
    "lastseat_batch_entries",
    "Entries in one transaction.",
    ["stream"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000),
)
BEHIND = Gauge(
    "lastseat_entries_behind",
    "Entries that Redis has given out and Postgres does not have, over all owned sales.",
    ["stream"],
    multiprocess_mode="livesum",
)
DRAIN_SECONDS = Histogram(
    "lastseat_drain_seconds",
    "Time to apply one batch, from reading it to telling that it is durable.",
    ["stream"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
OWNED = Gauge("lastseat_sales_owned", "Sales whose streams this worker owns.", multiprocess_mode="livesum")
FREEZES = Counter("lastseat_freezes", "Sales that were frozen because Redis and Postgres disagreed.")
REBUILDS = Counter("lastseat_rebuilds", "Sales that were written to Redis anew.", ["outcome"])
REBUILD_SECONDS = Histogram(
    "lastseat_rebuild_seconds", "Time to write one sale anew.", buckets=(0.05, 0.2, 1, 5, 20, 60)
)
EXPIRED = Counter("lastseat_holds_expired", "Holds that a sweep ended.")
ADMITTED = Counter("lastseat_people_admitted", "People who were called from a waiting line.")
OFFERED = Counter("lastseat_waiting_list_offers", "Offers of freed seats to those who waited for them.")
RECONCILED = Counter("lastseat_reconciled", "Steps of payments that were left half done, and finished.", ["step"])
ERRANDS = Counter("lastseat_gateway_errands", "Captures, voids and refunds that a gateway was told.", ["outcome"])
FAULTS = Counter("lastseat_worker_faults", "Passes of a worker's loops that failed and are tried again.", ["work"])

_behind: dict[str, tuple[int, int]] = {}


def keep_behind(sale_id: str, *, outbox: int, journal: int) -> None:
    """Take in how far Postgres is behind a sale's streams; what is shown is the sum over all."""
    _behind[sale_id] = (outbox, journal)
    _show_behind()


def forget_behind(sale_id: str) -> None:
    """A sale that is not served here any more counts no more."""
    _behind.pop(sale_id, None)
    _show_behind()


def _show_behind() -> None:
    for place, stream in enumerate(("outbox", "journal")):
        BEHIND.labels(stream).set(sum(behind[place] for behind in _behind.values()))
