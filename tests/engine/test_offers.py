"""What a sale offers, in Redis as in Postgres: written anew it is what it was, and no place is there twice."""

from datetime import UTC, datetime
from typing import Any

from engine import accounts, catalogue, ids, offers, rebuild, reservations, seats, wishes
from engine.catalogue import Area, Block, Offering, Poster, Seat, Tier
from engine.sales import Sale, SaleBook, Terms
from engine.stores import outbox
from engine.stores.connections import Stores
from engine.stores.outbox import Reader
from engine.wishes import AreaLine, SeatLine

SEATS = [
    *[Seat(section="A", row="1", number=n, category="GOLD", price=9_000, accessible=n == 8) for n in range(1, 9)],
    *[Seat(section="A", row="2", number=n, category="STD", price=5_000, blocked=n == 8) for n in range(1, 9)],
    *[Seat(section="B", row="1", number=n, category="STD", price=5_000, block="fans") for n in range(1, 5)],
]
OFFER: dict[str, Any] = {
    "areas": [
        Area(area="Pit", category="STANDING", price=3_000, quantity=6),
        Area(area="Lawn", category="STANDING", price=2_000, quantity=2, block="fans"),
    ],
    "tiers": [
        Tier(tier="child", category="STANDING", price=1_000, max=3),
        Tier(tier="child", category="STD", price=500),
    ],
    "blocks": [Block(block="fans", access_code="LIED")],
}
KEYS = ("prices", "tiers", "blocks", "areas", "units", "sections", "categories", "tier_counts", "seats")


async def open_sale(stores: Stores) -> tuple[Sale, str]:
    """The sale of a schedule with one of everything, and a user."""
    concert_id, user_id = ids.random_id(), ids.random_id()
    await catalogue.create_concert(stores.postgres, concert_id=concert_id, poster=Poster(title="Winterreise"))
    made = await catalogue.create_schedule(
        stores.postgres,
        schedule_id=ids.random_id(),
        concert_id=concert_id,
        start_at=datetime(2030, 1, 1, tzinfo=UTC),
        terms=Terms(name="Winterreise"),
        seats=SEATS,
        fingerprint="f",
        **OFFER,
    )
    assert isinstance(made, tuple)
    await accounts.create_many(stores.postgres, user_ids=[user_id], fingerprint="test")
    assert await rebuild.ensure_open(stores, made[0].sale_id)
    return await sale_of(stores, made[0].sale_id), user_id


async def sale_of(stores: Stores, sale_id: str) -> Sale:
    sale = await SaleBook(stores.postgres).find(sale_id)
    assert sale is not None
    return sale


async def contents(stores: Stores, sale: Sale) -> dict[str, Any]:
    """The copy, without what tells an epoch or a time."""
    redis: Any = stores.redis
    keys = sale.keys
    return {
        **{name: await redis.hgetall(getattr(keys, name)) for name in KEYS},
        "places": await redis.zrange(keys.places, 0, -1, withscores=True),
        "floor": await redis.get(keys.floor),
    }


async def persist(stores: Stores, sale: Sale) -> None:
    """Bring the journal to Postgres."""
    taken = await outbox.take_ownership(stores.postgres, "test", sale_ids=[sale.sale_id])
    reader = Reader(
        stores.gate,
        stores.postgres,
        sale.keys,
        "journal",
        taken[sale.sale_id],
        rebuild.handlers(sale)["journal"],
    )
    while await reader.drain():
        pass
    await outbox.give_back_ownership(stores.postgres, "test", taken)


async def test_a_sale_written_anew_offers_what_it_offered_and_every_place_once(stores_any: Stores) -> None:
    stores = stores_any
    sale, user_id = await open_sale(stores)
    mine: dict[str, Any] = {"buyer_id": user_id, "fingerprint": "f"}
    lines: list[SeatLine | AreaLine] = [
        SeatLine("A-1-2"),
        SeatLine("A-2-1", "child"),
        AreaLine("Pit", 2, "child"),
        AreaLine("Pit", 1),
    ]
    hold_ids = [ids.derive_in(sale.sale_id, str(n)) for n in range(3)]
    held = await wishes.hold_lines(stores.gate, sale, hold_id=hold_ids[0], lines=lines, **mine)
    assert isinstance(held, seats.HeldLines)
    best = await wishes.hold_best(
        stores.gate, sale, hold_id=hold_ids[1], best=wishes.Best(quantity=3), access_code="LIED", **mine
    )
    assert isinstance(best, wishes.HeldBest)
    gone = await wishes.hold_lines(stores.gate, sale, hold_id=hold_ids[2], lines=[AreaLine("Pit", 1)], **mine)
    assert isinstance(gone, seats.HeldLines)
    release = {"hold_id": hold_ids[2], "release_id": ids.random_id()} | mine
    await seats.release(stores.gate, sale, **release)
    await persist(stores, sale)
    before = await contents(stores, sale)
    assert (before["floor"], [place.decode() for place, _ in before["places"]]) == (
        b"FTTTTFFA" + b"TFFFFFFT" + b"FFFF",
        ["Pit-GA-4", "Pit-GA-5", "Pit-GA-6", "Lawn-GA-1", "Lawn-GA-2"],
    )
    assert before["tier_counts"] == {b"child|3": b"2", b"child|2": b"1"}

    assert await rebuild.demand(stores, sale.sale_id, reason="to see whether it is the same")

    newer = await sale_of(stores, sale.sale_id)
    assert newer.epoch == sale.epoch + 1
    assert await contents(stores, newer) == before
    found = await seats.find(stores.gate, newer, hold_id=hold_ids[0])
    assert isinstance(found, seats.Hold)
    assert sorted(found.lines, key=lambda line: line.seat_no) == sorted(held.lines, key=lambda line: line.seat_no)
    row = await reservations.find(
        stores.gate, stores.postgres, SaleBook(stores.postgres), reservation_id=hold_ids[0], user_id=user_id
    )
    assert isinstance(row, reservations.Reservation)
    assert {line.seat_no: line.tier for line in row.lines} == {line.seat_no: line.tier for line in held.lines}

    await seats.release(
        stores.gate, newer, hold_id=hold_ids[0], release_id=ids.random_id(), buyer_id=user_id, fingerprint="f"
    )
    after = await contents(stores, newer)
    assert len(after["places"]) == 8
    assert {int(count) for count in after["tier_counts"].values()} == {0}


async def test_caps_and_codes_are_sent_with_the_terms_of_a_running_sale(stores: Stores) -> None:
    sale, _ = await open_sale(stores)
    before = await contents(stores, sale)
    numbered = await catalogue.list_categories(stores.postgres, sale.sale_id)
    assert numbered == ["GOLD", "STD", "STANDING"]
    await stores.postgres.execute("UPDATE tiers SET max = 9")
    await stores.postgres.execute("UPDATE blocks SET access_code = 'WINTER'")
    await stores.postgres.execute("UPDATE sales SET version = version + 1")

    newer = await sale_of(stores, sale.sale_id)
    await offers.send(stores.gate, stores.postgres, newer)

    after = await contents(stores, newer)
    assert after["tiers"] == {b"child|3": b"1000|9", b"child|2": b"500|9"}
    assert after["blocks"] == {b"1": f"{wishes.code_hash(sale.sale_id, 'WINTER')}||0|0".encode()}
    unchanged = before.keys() - {"tiers", "blocks"}
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}


def test_a_plan_is_written_in_bounded_parts() -> None:
    hall = [Seat(section="A", row=str(n // 50), number=n, category="R", price=5) for n in range(1, 20_001)]
    plan = offers.draw("5" * 32, hall, Offering())
    parts = list(plan.parts())
    assert max(len(rows) for _, rows in parts) <= 2 * offers.FIELDS_AT_ONCE
    floor = [rows for name, rows in parts if name == "floor"]
    assert [at for at, _ in floor] == [0, offers.BYTES_AT_ONCE]
    assert b"".join(bytes(part) for _, part in floor if isinstance(part, bytes)) == b"F" * 20_000
    assert sum(len(rows) for name, rows in parts if name == "units") == 2 * len({seat.row for seat in hall})
