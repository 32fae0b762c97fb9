"""The audit of coupons: true while all is well, and false for each way in which something can be wrong with them."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from engine import coupons, rebuild
from engine.audit import Report, describe
from engine.repair import repair
from engine.stores.connections import Stores
from engine.stores.keys import CouponKeys
from loadtests.audit import audit
from loadtests.history import Heard, History
from tests.engine.coupon_sources import CouponShop, open_coupons

Corruption = Callable[[CouponShop], Awaitable[object]]


@pytest.fixture
async def shop(stores: Stores) -> CouponShop:
    """A source of five, of which Ann and Bob have one each."""
    shop = await open_coupons(stores, 5)
    await shop.issued("ann", "bob")
    await shop.drain()
    await stores.postgres.execute("UPDATE balances SET amount = 0")  # nobody charged it
    return shop


async def look(shop: CouponShop, heard: Path | None = None) -> Report:
    return await audit(shop.stores.redis, shop.stores.postgres, history_path=heard, settle_s=0.0)


def false(report: Report) -> set[str]:
    return {check.invariant for check in report.checks if check.verdict == "false"}


def run(sql: str) -> Corruption:
    return lambda shop: shop.stores.postgres.execute(sql)


def put(name: str, *command: str) -> Corruption:
    """Change a key of the source: HSET it, unless another command is named."""

    def change(shop: CouponShop) -> Awaitable[object]:
        verb, *rest = command if command[0].isupper() else ("HSET", *command)
        changed: Awaitable[object] = shop.stores.redis.execute_command(
            verb, getattr(CouponKeys(shop.coupon_id), name), *rest
        )
        return changed

    return change


async def test_a_source_at_rest_is_in_order(shop: CouponShop) -> None:
    report = await look(shop)
    assert report.verdict == "true", describe(report)
    assert report.sales == 0
    assert {check.invariant: check.looked_at for check in report.checks}["I9"]["coupons"] == 2


@pytest.mark.parametrize(
    ("corrupt", "invariants", "finding"),
    [
        (run("UPDATE coupons SET quantity = 4"), {"I1", "I9"}, "had 5 coupons: 4 are left, 2 are users'"),
        (run("DELETE FROM user_coupons"), {"I1", "I9"}, "has a coupon of it in Redis only"),
        (put("issued", "5" * 32, "3"), {"I9"}, f"user {'5' * 32} has a coupon of it in Redis only"),
        (put("issued", "DEL"), {"I9"}, "has a coupon of it in Postgres only"),
        (put("sale", "quantity", "6"), {"I9"}, "Redis says that there were 6 of it, Postgres says 5"),
        (run("UPDATE stream_watermarks SET n = 3 WHERE stream = 'outbox'"), {"I13"}, "the watermark is 3"),
    ],
)
async def test_what_is_wrong_with_coupons_is_seen_and_what_can_be_repaired_is(
    corrupt: Corruption, invariants: set[str], finding: str, shop: CouponShop
) -> None:
    await corrupt(shop)
    report = await look(shop)
    assert false(report) == invariants, describe(report)
    assert finding in describe(report)
    assert report.to_rebuild == [shop.coupon_id]
    if invariants == {"I9"}:
        repaired = await repair(shop.stores, report)
        assert repaired.rebuilt == [shop.coupon_id]
        assert (await look(shop)).verdict == "true"


@pytest.mark.parametrize(
    ("moving", "reason"),
    [
        (put("sale", "outbox_n", "4"), "2 entries of its outbox are not applied"),
        (put("sale", "version", "2"), "its terms are on their way"),
        (put("sale", "DEL"), "it is not in Redis"),
        (run("UPDATE sales SET store_state = 'frozen'"), "it is frozen in Postgres"),
    ],
)
async def test_a_source_that_is_not_at_rest_is_unknown(moving: Corruption, reason: str, shop: CouponShop) -> None:
    await moving(shop)
    report = await look(shop)
    assert (report.verdict, reason in describe(report)) == ("unknown", True), describe(report)


async def test_what_users_heard_of_coupons_is_held_against_the_rows(shop: CouponShop, tmp_path: Path) -> None:
    ann, bob = await shop.person("ann"), await shop.person("bob")

    def line(user_id: str, mine: str, key: str = "k1") -> Heard:
        said: dict[str, Any] = {"reservation_id": "", "seats": (), "amount": 0, "key": key}
        user_coupon_id = coupons.user_coupon_id_of(shop.coupon_id, mine)
        return Heard(event="issued", sale_id=shop.coupon_id, user_id=user_id, user_coupon_id=user_coupon_id, **said)

    heard = tmp_path / "heard"
    with History(heard) as kept:
        kept.record(line(ann, ann))
    report = await look(shop, heard)
    assert report.verdict == "true", describe(report)
    with History(heard) as kept:
        kept.record(line(bob, "nobody"))
        kept.record(line(bob, ann, "k2"))
        kept.record(line(ann, bob))
    report = await look(shop, heard)
    assert false(report) == {"I2", "I4"}
    assert "was heard as issued: it is not in Postgres" in describe(report)
    assert f"was heard as issued to {bob} from {shop.coupon_id}: it is {ann}'s" in describe(report)
    assert "key k1 of user" in describe(report)


async def test_a_source_that_was_not_opened_again_is_to_be_rebuilt(shop: CouponShop) -> None:
    await rebuild.CLOSE(shop.stores.gate, (await shop.sale()).keys, epoch=1)
    assert (await look(shop)).to_rebuild == [shop.coupon_id]
