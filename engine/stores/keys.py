"""The data dictionary of the Redis store: one class per hash tag, one property per key.

Every key of a sale carries the hash tag ``{sale:<id>}``, so that one script works in one cluster slot and different
sales spread over shards; a source of coupons is such a shard, too. A script declares each key it touches by the
property's name; none builds a key.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar


@dataclass(frozen=True)
class SaleKeys:
    """The keys of one sale, all in the slot of ``{sale:<sale_id>}``."""

    sale_id: str

    _shard: ClassVar[str] = "sale"

    def _key(self, name: str) -> str:
        return f"{{{self._shard}:{self.sale_id}}}:{name}"

    @cached_property
    def sale(self) -> str:
        """Hash: the sale itself, its fields named in ``lua/shared/sale.lua``; bounded, and read whole once a call."""
        return self._key("sale")

    @cached_property
    def outbox(self) -> str:
        """Stream: what somebody waits for (confirmed, abandoned, restored), numbered and chained."""
        return self._key("outbox")

    @cached_property
    def journal(self) -> str:
        """Stream: what nobody waits for (joined, admitted, ended, held, extended, released, expired)."""
        return self._key("journal")

    @cached_property
    def prices(self) -> str:
        """Hash: seat_no -> price in minor units, in a sale with a floor the record that ``lua/shared/hall.lua`` names.

        In a sale of stock variant_id -> price of a unit, after a ``-`` where it is not on sale. What is not here does
        not exist.
        """
        return self._key("prices")

    @cached_property
    def seats(self) -> str:
        """Hash: seat_no -> ``state hold_id fence``; a seat that is not here is FREE.

        One kept back is ``BLOCKED - 0``, one that the waiting list has ``BLOCKED list 0``.
        """
        return self._key("seats")

    @cached_property
    def holds(self) -> str:
        """Hash: hold_id -> the hold's record (see ``lua/shared/holds.lua``), ended ones for the repeat window."""
        return self._key("holds")

    @cached_property
    def deadlines(self) -> str:
        """Sorted set: hold_id of every HELD hold, scored by the millisecond its seats become free."""
        return self._key("deadlines")

    @cached_property
    def paying(self) -> str:
        """Sorted set: hold_id of every PAYING hold, scored by the millisecond of its pay deadline."""
        return self._key("paying")

    @cached_property
    def ended(self) -> str:
        """Sorted set: hold_id of every ended or sold hold whose record is kept, scored by the millisecond it ended."""
        return self._key("ended")

    @cached_property
    def buyers(self) -> str:
        """Hash: buyer_id -> ``sold ended hold_id,hold_id…``: bought seats or units, holds ended lately, open ones."""
        return self._key("buyers")

    @cached_property
    def map_changes(self) -> str:
        """Sorted set: seat_no of each seat of the map that ever changed, scored by the version of its last change."""
        return self._key("map_changes")

    @cached_property
    def messages(self) -> str:
        """Sorted set: ``message_id text`` of what operators told everybody, scored by the millisecond it was sent."""
        return self._key("messages")

    @cached_property
    def tiers(self) -> str:
        """Hash: ``tier|category_no`` -> ``price|max``; an empty max is no cap."""
        return self._key("tiers")

    @cached_property
    def tier_counts(self) -> str:
        """Hash: ``tier|category_no`` -> seats held, being paid and sold in this tier."""
        return self._key("tier_counts")

    @cached_property
    def blocks(self) -> str:
        """Hash: block_no -> ``code hash|channel|opens_at_ms|closes_at_ms``; one of the first two is empty."""
        return self._key("blocks")

    @cached_property
    def areas(self) -> str:
        """Hash: area -> ``area_no|category_no|block_no|quantity``."""
        return self._key("areas")

    @cached_property
    def places(self) -> str:
        """Sorted set: seat_no of every free place in an area, scored by area_no * 10^7 + number."""
        return self._key("places")

    @cached_property
    def units(self) -> str:
        """Hash: unit_no -> ``section|row|category_no|block_no|first_position|first_number|length``; best first."""
        return self._key("units")

    @cached_property
    def floor(self) -> str:
        """String: one byte a position, F free, A free and accessible, T neither."""
        return self._key("floor")

    @cached_property
    def bounds(self) -> str:
        """String: one byte a unit, 64 + the longest free run it may have (60 at most), 128 more in a block."""
        return self._key("bounds")

    @cached_property
    def sections(self) -> str:
        """Hash: section -> its unit_nos as ``first-last,first-last…``."""
        return self._key("sections")

    @cached_property
    def categories(self) -> str:
        """Hash: category -> its unit_nos as ``first-last,first-last…``."""
        return self._key("categories")

    @cached_property
    def freed(self) -> str:
        """Sorted set: seat_no or variant_id of what the waiting list has, scored by the millisecond it got there."""
        return self._key("freed")

    @cached_property
    def stock(self) -> str:
        """Hash: variant_id -> units left, which anybody may have."""
        return self._key("stock")

    @cached_property
    def stock_freed(self) -> str:
        """Hash: variant_id -> units that were freed while the sale has a waiting list, and not given on yet."""
        return self._key("stock_freed")

    @cached_property
    def stock_total(self) -> str:
        """Hash: variant_id -> units there ever were, as far as the store was told: a restock is the difference."""
        return self._key("stock_total")

    @cached_property
    def restored(self) -> str:
        """Hash: hold_id -> ``n variant_id:quantity,…``: what a forgotten hold has left since its entry ``restored``.

        Kept until the repeat window has passed and Postgres has that entry.
        """
        return self._key("restored")

    @cached_property
    def waiting(self) -> str:
        """Sorted set: owner -> queue number; everybody who is WAITING in line and was never called."""
        return self._key("waiting")

    @cached_property
    def alive(self) -> str:
        """Sorted set: queue number, scored by the millisecond at which the poll promised to it is overdue."""
        return self._key("alive")

    @cached_property
    def tokens(self) -> str:
        """Hash: owner -> ``status|queue_no|entered|admitted_at_ms`` of called tokens: ACTIVE, SKIPPED, RETURNED."""
        return self._key("tokens")

    @cached_property
    def active(self) -> str:
        """Sorted set: owner of every ACTIVE token, scored by the millisecond its entry or session lapses."""
        return self._key("active")

    @cached_property
    def skipped(self) -> str:
        """Sorted set: owner of every skipped token, scored by the millisecond its recall lapses."""
        return self._key("skipped")

    @cached_property
    def returned(self) -> str:
        """Sorted set: owner -> queue number of skipped people who came back; admitted before the line."""
        return self._key("returned")

    @cached_property
    def ended_tokens(self) -> str:
        """Hash: queue number -> ``status|owner`` of tokens that ended lately, or ``MOVED|owner|queue_no``."""
        return self._key("ended_tokens")

    @cached_property
    def ended_tokens_at(self) -> str:
        """Sorted set: queue number of each ended token, scored by the millisecond it ended."""
        return self._key("ended_tokens_at")

    @cached_property
    def gone(self) -> str:
        """Sorted set: queue numbers above ``serving`` that left the line, scored by the order in which they left."""
        return self._key("gone")

    @cached_property
    def admissions(self) -> str:
        """Hash: second -> people admitted in it, for the 61 seconds that the rate looks at."""
        return self._key("admissions")

    @cached_property
    def ties(self) -> str:
        """Hash: visitor owner -> ``user owner|queue_no`` until that token ends, and user owner -> its visitors."""
        return self._key("ties")


@dataclass(frozen=True)
class CouponKeys(SaleKeys):
    """The keys of one source of coupons, all in the slot of ``{coupon:<coupon_id>}``.

    Of those of a sale it has `sale`, `outbox` and `journal`, which mean the same; the others stay empty.
    """

    _shard: ClassVar[str] = "coupon"

    @cached_property
    def issued(self) -> str:
        """Hash: user_id -> number of the entry that issued a coupon to them, 0 where a rebuild wrote it."""
        return self._key("issued")
