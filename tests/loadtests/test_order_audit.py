"""What buyers of goods heard, held against the book."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from engine.stores.connections import Stores
from loadtests.audit import audit
from loadtests.history import Heard, History
from tests.drops import PRICES, open_drop

Change = Callable[[Heard], Heard]


def said(**more: object) -> Change:
    return lambda heard: msgspec.structs.replace(heard, **more)


async def findings(stores: Stores, heard: list[Heard], path: Path) -> list[str]:
    """What I2 finds."""
    with History(path) as kept:
        for line in heard:
            kept.record(line)
    report = await audit(stores.redis, stores.postgres, history_path=path, settle_s=0.0)
    (check,) = [check for check in report.checks if check.invariant == "I2"]
    assert check.looked_at == {"confirmations heard": len(heard), "of goods": len(heard)}
    return check.findings


async def bought(stores: Stores) -> Heard:
    """Two mugs that Ann has paid, as she heard it."""
    drop = await open_drop(stores)
    order_id = await drop.order(by="ann", status="PAID", mug=2)
    return Heard(
        event="confirmed",
        sale_id=drop.sale_id,
        user_id=await drop.person("ann"),
        key="k1",
        reservation_id="",
        seats=(),
        amount=2 * PRICES["mug"],
        payment_id=await drop.payment(order_id, "SUCCESS"),
        order_id=order_id,
        lines=(f"{drop.variant_ids['mug']}:2",),
    )


async def test_an_order_that_was_heard_to_be_bought_is_believed(stores: Stores, tmp_path: Path) -> None:
    assert await findings(stores, [await bought(stores)], tmp_path / "heard") == []


async def test_an_order_that_was_never_collected_is_believed(stores: Stores, tmp_path: Path) -> None:
    heard = await bought(stores)
    await stores.postgres.execute("UPDATE payments SET status = 'UNCOLLECTED'")
    assert await findings(stores, [heard], tmp_path / "heard") == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (said(payment_id="9" * 32), "it is not in Postgres"),
        (said(user_id="9" * 32), "its user_id is"),
        (said(order_id="9" * 32), "its order_id is"),
        (said(amount=1), "its amount is"),
        (said(lines=("9" * 32 + ":2",)), "its lines are"),
    ],
)
async def test_an_order_that_is_not_as_it_was_heard_is_found(
    stores: Stores, tmp_path: Path, change: Change, complaint: str
) -> None:
    (finding,) = await findings(stores, [change(await bought(stores))], tmp_path / "heard")
    assert complaint in finding


async def test_more_units_than_there_ever_were_are_found(stores: Stores, tmp_path: Path) -> None:
    heard = await bought(stores)
    others = [said(key=f"k{n}", payment_id=f"{n:032x}", order_id=f"{n:032x}")(heard) for n in range(2, 7)]
    first, *_ = await findings(stores, [heard, *others], tmp_path / "heard")
    assert "12 units of variant" in first
    assert "no more than 10 to sell" in first
