"""Tickets: a code that anybody can check and nobody can make, and a door that opens once."""

import asyncio
import base64

import asyncpg
import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import ids, tickets
from engine.refusals import IdempotencyKeyReused, NotFound
from engine.stores.connections import Stores
from engine.tickets import AlreadyRedeemed, Codes, Redemption, Ticket, TicketCancelled, find_key
from engine.tokens import Passes, make_key
from tests.doors import CODES, key_of, redeem
from tests.shop import Shop, open_shop

NUMBERS = st.integers(min_value=1, max_value=2**63 - 1)
HEX = st.binary(min_size=16, max_size=16).map(bytes.hex)


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert of six seats whose sale is open."""
    return await open_shop(stores)


async def bought(shop: Shop, *seat_nos: str, by: str = "ann") -> list[Ticket]:
    """Seats that somebody paid for: their tickets, in the order of the seats."""
    await shop.buy(*seat_nos, by=by)
    await shop.drain()
    mine = await tickets.list_mine(shop.stores.postgres, await shop.person(by))
    return sorted((each for each in mine if each.seat_no in seat_nos), key=lambda each: each.seat_no)


def ticket(**fields: object) -> Ticket:
    values = {
        "ticket_no": 41,
        "reservation_id": "ab" * 16,
        "schedule_id": "cd" * 16,
        "seat_no": "A-1-1",
        "status": "VALID",
    }
    return Ticket(**values | fields)  # type: ignore[arg-type]


# Mine -----------------------------------------------------------------------------------------------------------------


async def test_my_tickets_come_newest_first_in_pages(shop: Shop) -> None:
    for seat_nos, by in ((("A-1-1", "A-1-2"), "ann"), (("A-1-3",), "ann"), (("A-1-4",), "bob")):
        await bought(shop, *seat_nos, by=by)
    postgres, user_id = shop.stores.postgres, await shop.person("ann")
    first = await tickets.list_mine(postgres, user_id, limit=2)
    rest = await tickets.list_mine(postgres, user_id, before=first[-1].ticket_no, limit=2)
    assert [each.seat_no for each in (*first, *rest)] == ["A-1-3", "A-1-2", "A-1-1"]
    assert {each.status for each in (*first, *rest)} == {"VALID"}
    assert {each.schedule_id for each in first} == {(await shop.sale()).schedule_id}


# Codes ----------------------------------------------------------------------------------------------------------------


@given(ticket_no=NUMBERS, schedule_id=HEX, seat_no=st.text(min_size=5, max_size=20))
def test_a_door_reads_the_code_with_the_published_key_alone(ticket_no: int, schedule_id: str, seat_no: str) -> None:
    code = CODES.of(ticket(ticket_no=ticket_no, schedule_id=schedule_id, seat_no=seat_no))
    header = jwt.get_unverified_header(code)
    assert (header["typ"], header["kid"]) == ("ticket+jwt", CODES.jwk["kid"])
    assert jwt.decode(code, jwt.PyJWK(CODES.jwk), ["EdDSA"], audience=schedule_id) == {
        "aud": schedule_id,
        "sub": str(ticket_no),
        "seat_no": seat_no,
    }


def test_the_same_ticket_makes_the_same_code_whoever_owns_it() -> None:
    key = make_key(0)
    assert Codes(key).of(ticket()) == Codes(key).of(ticket(status="REDEEMED", reservation_id="ef" * 16))
    texts = [ticket(), ticket(ticket_no=42), ticket(schedule_id="ce" * 16), ticket(seat_no="A-1-2")]
    assert len({Codes(key).of(each) for each in texts}) == 4
    # A square that any camera reads.
    assert len(Codes(key).of(ticket(ticket_no=10**12, seat_no="Grandstand-12-345"))) < 300


@pytest.mark.parametrize("fault", ["another evening", "another key", "another seat", "a pass"])
def test_a_code_that_is_not_right_is_refused(fault: str) -> None:
    key, schedule_id = make_key(0), "cd" * 16
    codes, audience = Codes(key), schedule_id
    code = codes.of(ticket())
    if fault == "another evening":
        audience = "ce" * 16
    elif fault == "another key":
        code = Codes(make_key(0)).of(ticket())
    elif fault == "another seat":
        head, claims, signature = code.split(".")
        said = base64.urlsafe_b64decode(claims + "==").replace(b"A-1-1", b"A-1-2")
        code = f"{head}.{base64.urlsafe_b64encode(said).decode().rstrip('=')}.{signature}"
    else:
        passes = Passes([make_key(0)])
        code = passes.issue(sale_id=schedule_id, owner="ab" * 16, queue_no=1, now_ms=2**42, until_ms=2**42)
    with pytest.raises(jwt.InvalidTokenError):
        jwt.decode(code, jwt.PyJWK(codes.jwk), ["EdDSA"], audience=audience)


async def test_all_processes_sign_with_one_key_for_good(postgres: asyncpg.Pool) -> None:
    found = await asyncio.gather(*[find_key(postgres) for _ in range(6)])
    assert len(set(found)) == 1
    assert await find_key(postgres) == found[0]


# At the door ----------------------------------------------------------------------------------------------------------


async def test_a_ticket_opens_the_door_once(shop: Shop) -> None:
    (mine,) = await bought(shop, "A-1-1")
    opened = await redeem(shop.stores.postgres, "A-1-1")
    assert isinstance(opened, Redemption)
    assert (opened.ticket_no, opened.seat_no, opened.schedule_id) == (mine.ticket_no, "A-1-1", mine.schedule_id)
    assert (opened.status, opened.repeated) == ("REDEEMED", False)
    assert await redeem(shop.stores.postgres, "A-1-1", by="another door") == AlreadyRedeemed(at=opened.at)
    again = await redeem(shop.stores.postgres, "A-1-1")
    assert isinstance(again, Redemption)
    assert (again.at, again.repeated) == (opened.at, True)
    assert await shop.rows("SELECT status, redeemed_at, redeemed_by FROM tickets") == [
        ("REDEEMED", opened.at, await key_of(shop.stores.postgres))
    ]


async def test_a_code_is_compared_where_it_is_shown(shop: Shop) -> None:
    mine, other = await bought(shop, "A-1-1", "A-1-2")
    for code in (CODES.of(other), CODES.of(mine)[:-1], CODES.of(mine) + "=", "x", "é", "\ud800"):
        assert await redeem(shop.stores.postgres, "A-1-1", code=code) == NotFound()
    assert isinstance(await redeem(shop.stores.postgres, "A-1-1", code=CODES.of(mine)), Redemption)
    assert await shop.rows("SELECT seat_no, status FROM tickets ORDER BY 1") == [
        ("A-1-1", "REDEEMED"),
        ("A-1-2", "VALID"),
    ]


async def test_a_key_is_for_one_wish(shop: Shop) -> None:
    (mine,) = await bought(shop, "A-1-1")
    assert isinstance(await redeem(shop.stores.postgres, "A-1-1"), Redemption)
    assert await redeem(shop.stores.postgres, "A-1-1", code=CODES.of(mine)) == IdempotencyKeyReused()


async def test_a_ticket_that_was_given_back_opens_no_door(shop: Shop) -> None:
    await bought(shop, "A-1-1", "A-1-2")
    opened = await redeem(shop.stores.postgres, "A-1-2")
    assert isinstance(opened, Redemption)
    await shop.stores.postgres.execute("UPDATE tickets SET status = 'CANCELLED'")
    assert await redeem(shop.stores.postgres, "A-1-1") == TicketCancelled()
    assert await redeem(shop.stores.postgres, "A-1-2", by="another door") == TicketCancelled()
    again = await redeem(shop.stores.postgres, "A-1-2")
    assert isinstance(again, Redemption)
    assert (again.status, again.at, again.repeated) == ("CANCELLED", opened.at, True)


async def test_a_number_that_nobody_has_opens_no_door(shop: Shop) -> None:
    assert await redeem(shop.stores.postgres, "A-1-1") == NotFound()
    assert await redeem(shop.stores.postgres, "A-1-1", code="x") == NotFound()


@pytest.mark.parametrize(
    "lie",
    [
        "status = 'REDEEMED'",
        "redeemed_at = now()",
        "status = 'CANCELLED', redeemed_at = now()",
        "redeemed_at = now(), redemption_id = gen_random_uuid(), redemption_fingerprint = '', redeemed_by = '{door}'",
    ],
)
async def test_the_row_knows_when_and_by_whom_or_was_never_redeemed(shop: Shop, lie: str) -> None:
    await bought(shop, "A-1-1")
    door = await key_of(shop.stores.postgres)
    with pytest.raises(asyncpg.CheckViolationError):
        await shop.stores.postgres.execute(f"UPDATE tickets SET {lie.replace('{door}', door)}")


def test_a_redemption_is_known_by_who_asks_and_how() -> None:
    assert ids.derive("a", "POST", "/v1/admin/tickets/1/redemptions", "k") != ids.derive(
        "a", "POST", "/v1/admin/tickets/2/redemptions", "k"
    )
