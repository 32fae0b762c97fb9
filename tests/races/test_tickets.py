"""Fifty doors scan one ticket: one opens. The control looks first and writes then."""

import asyncio
from collections import Counter

import pytest

from engine import ids, tickets
from engine.stores.connections import Stores
from engine.tickets import AlreadyRedeemed, Redemption
from tests.doors import CODES, key_of, redeem
from tests.shop import Shop, open_shop

DOORS = 50


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert whose first seat is bought."""
    shop = await open_shop(stores)
    await shop.buy("A-1-1")
    await shop.drain()
    return shop


async def test_control_looking_before_writing_lets_many_in(shop: Shop) -> None:
    postgres, door = shop.stores.postgres, await key_of(shop.stores.postgres)
    all_have_looked = asyncio.Barrier(2)

    async def redeem_naively(at: int) -> bool:
        status = await postgres.fetchval("SELECT status FROM tickets WHERE seat_no = 'A-1-1'")
        await all_have_looked.wait()
        if status != "VALID":
            return False
        await postgres.execute(
            "UPDATE tickets SET status = 'REDEEMED', redeemed_at = now(), redemption_id = $1, "
            "redemption_fingerprint = '', redeemed_by = $2 WHERE seat_no = 'A-1-1'",
            ids.derive("naive", str(at)),
            door,
        )
        return True

    assert await asyncio.gather(*[redeem_naively(at) for at in range(2)]) == [True, True]


async def test_one_of_fifty_doors_opens(shop: Shop) -> None:
    postgres = shop.stores.postgres
    names = [f"door {at}" for at in range(DOORS)]
    for name in names:
        await key_of(postgres, name)
    answers = await asyncio.gather(*[redeem(postgres, "A-1-1", by=name) for name in names])
    assert Counter(type(answer) for answer in answers) == {Redemption: 1, AlreadyRedeemed: DOORS - 1}
    assert len({answer.at for answer in answers}) == 1  # type: ignore[union-attr]
    ((redeemed_by, redemption_id),) = await shop.rows("SELECT redeemed_by, redemption_id FROM tickets")
    (opened,) = (at for at, answer in enumerate(answers) if isinstance(answer, Redemption))
    assert redeemed_by == await key_of(postgres, names[opened])
    assert not answers[opened].repeated  # type: ignore[union-attr]
    assert redemption_id is not None


async def test_copies_of_one_scan_are_one_scan(shop: Shop) -> None:
    answers = await asyncio.gather(*[redeem(shop.stores.postgres, "A-1-1") for _ in range(DOORS)])
    assert Counter(answer.repeated for answer in answers) == {False: 1, True: DOORS - 1}  # type: ignore[union-attr]
    assert len({answer.at for answer in answers}) == 1  # type: ignore[union-attr]


async def test_doors_with_and_without_the_code_agree(shop: Shop) -> None:
    postgres = shop.stores.postgres
    (mine,) = await tickets.list_mine(postgres, await shop.person("ann"))
    for name in ("one", "other"):
        await key_of(postgres, name)
    answers = await asyncio.gather(
        redeem(postgres, "A-1-1", by="one", code=CODES.of(mine)), redeem(postgres, "A-1-1", by="other")
    )
    assert {type(answer) for answer in answers} == {Redemption, AlreadyRedeemed}
