"""Messages: a row once for its id, what Redis has of the last hour, and what a rebuild brings back."""

import pytest

from engine import accounts, ids, map_changes, messages
from engine.map_changes import MapChanges
from engine.messages import KEPT_MAX, Lately, Message
from engine.refusals import IdempotencyKeyReused
from engine.stores.connections import Stores
from engine.stores.replies import SaleRebuilding, SaleUnknown
from tests.shop import Shop, open_shop


@pytest.fixture
async def shop(stores_any: Stores) -> Shop:
    """A sale, on one Valkey and on a cluster."""
    return await open_shop(stores_any)


async def say(shop: Shop, text: str, *, under: str | None = None) -> Message | IdempotencyKeyReused:
    """Send a message, under an id of its own unless one is given."""
    return await messages.send(
        shop.stores.gate,
        shop.stores.postgres,
        await shop.sale(),
        message_id=under or ids.random_id(),
        text=text,
        api_key_id=await accounts.own_key(shop.stores.postgres),
    )


async def lately(shop: Shop) -> Lately:
    """What who comes now may be told."""
    found = await messages.list_lately(shop.stores.gate, await shop.sale())
    assert isinstance(found, Lately), found
    return found


async def texts(shop: Shop) -> list[str]:
    return [told.text for told in (await lately(shop)).told]


async def seen_no(shop: Shop) -> int:
    """The number that whoever reads the map sees."""
    sale = await shop.sale()
    changes = await map_changes.read_changes(shop.stores.gate, sale, sale.epoch * 10**9)
    assert isinstance(changes, MapChanges)
    return changes.message_no


async def age(shop: Shop, seconds: int) -> None:
    """Let all that was sent be older, in both stores."""
    sale = await shop.sale()
    await shop.stores.postgres.execute(
        "UPDATE messages SET created_at = created_at - make_interval(secs => $1)", seconds
    )
    for message, score in await shop.stores.redis.zrange(sale.keys.messages, 0, -1, withscores=True):
        await shop.stores.redis.zadd(sale.keys.messages, {message: score - seconds * 1000})


async def lose(shop: Shop) -> None:
    """Redis forgets the sale."""
    await shop.stores.redis.flushall()


async def test_a_message_is_kept_and_told_in_the_order_of_sending(shop: Shop) -> None:
    assert await texts(shop) == []
    before = await seen_no(shop)
    first = await say(shop, "Doors open at eight. 문이 열립니다 🎟")
    await say(shop, "Sorry, at nine.")
    assert isinstance(first, Message)
    assert not first.repeated
    found = await lately(shop)
    assert [told.text for told in found.told] == ["Doors open at eight. 문이 열립니다 🎟", "Sorry, at nine."]
    assert found.message_no == await seen_no(shop) == before + 2
    assert found.told[0].message_id == first.message_id
    assert found.told[0].at_ms == int(first.created_at.timestamp() * 1000)
    assert 3_590_000 < found.told[0].told_for_ms <= 3_600_500


async def test_a_repeat_sends_nothing_and_another_text_is_refused(shop: Shop) -> None:
    once = await say(shop, "Once.", under="1" * 32)
    assert isinstance(once, Message)
    again = await say(shop, "Once.", under="1" * 32)
    assert again == Message(message_id=once.message_id, text="Once.", created_at=once.created_at, repeated=True)
    assert await say(shop, "Twice.", under="1" * 32) == IdempotencyKeyReused()
    assert (await texts(shop), await seen_no(shop) % 10**9) == (["Once."], 1)


async def test_what_was_only_written_down_is_sent_by_the_repeat(shop: Shop) -> None:
    await say(shop, "Written.", under="1" * 32)
    sale = await shop.sale()
    await shop.stores.redis.execute_command("DEL", sale.keys.messages)
    await say(shop, "Written.", under="1" * 32)
    assert await texts(shop) == ["Written."]


async def test_messages_are_told_for_an_hour_and_the_newest_are_kept(shop: Shop) -> None:
    for number in range(KEPT_MAX + 3):
        await say(shop, f"Number {number}.")
    assert await texts(shop) == [f"Number {number}." for number in range(3, KEPT_MAX + 3)]
    await age(shop, 3500)
    await say(shop, "Another.")
    await age(shop, 120)
    assert await texts(shop) == ["Another."]


async def test_the_list_is_newest_first_and_goes_on_at_a_cursor(shop: Shop) -> None:
    for number in range(5):
        await say(shop, f"Number {number}.")
    await age(shop, 100_000)
    postgres, sale = shop.stores.postgres, await shop.sale()
    first = await messages.list_newest(postgres, sale.sale_id, limit=3)
    last = first[-1]
    rest = await messages.list_newest(postgres, sale.sale_id, before=(last.created_at, last.message_id))
    assert [each.text for each in (*first, *rest)] == [f"Number {number}." for number in (4, 3, 2, 1, 0)]
    other = await open_shop(shop.stores)
    assert await messages.list_newest(postgres, other.sale_id) == []
    assert await texts(other) == []


async def test_a_rebuild_brings_back_what_is_still_told(shop: Shop) -> None:
    await say(shop, "Long ago.")
    await age(shop, 4000)
    await say(shop, "Before.")
    await say(shop, "Just before.")
    before = await seen_no(shop)
    await lose(shop)
    # Redis is away for nobody: the row is there, and the rebuild brings it.
    await say(shop, "While it was lost.")
    assert await messages.list_lately(shop.stores.gate, await shop.sale()) == SaleUnknown()
    await shop.rebuild()
    assert await texts(shop) == ["Before.", "Just before.", "While it was lost."]
    assert await seen_no(shop) > before


async def test_what_is_sent_while_a_sale_is_written_anew_stands_afterwards(shop: Shop) -> None:
    sale = await shop.sale()
    await shop.stores.redis.execute_command("HSET", sale.keys.sale, "state", "rebuilding")
    await say(shop, "Meanwhile.")
    assert await messages.list_lately(shop.stores.gate, sale) == SaleRebuilding()
    # The sender came after the clearing, and the rebuild finds the same row.
    await messages.put_back(shop.stores.gate, shop.stores.postgres, sale)
    await shop.stores.redis.execute_command("HSET", sale.keys.sale, "state", "open")
    assert (await texts(shop), await seen_no(shop) % 10**9) == (["Meanwhile."], 1)
