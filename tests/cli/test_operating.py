"""The operator's verbs, as an operator runs them on the stores of a shop."""

import json
import re
from typing import Any

import pytest

from engine import accounts, messages
from engine.messages import Lately
from engine.stores.connections import Stores
from tests.cli.program import lastseat
from tests.shop import PRICE, Shop, open_shop

NOBODY = "0" * 32


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert with six seats."""
    return await open_shop(stores)


def told(*arguments: str, settings: dict[str, str]) -> Any:
    """What a verb answers to a machine."""
    said = lastseat(*arguments, "--json", settings=settings)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def refused(*arguments: str, settings: dict[str, str]) -> str:
    """What a verb says in its last line when it does nothing; the lines before warn of the stores of the tests."""
    said = lastseat(*arguments, settings=settings)
    assert said.returncode == 1, said.stdout
    return said.stderr.splitlines()[-1].removeprefix("Error: ")


async def test_sales_are_listed_with_what_is_left(outside: dict[str, str], shop: Shop, stores: Stores) -> None:
    await shop.buy("A-1-1")
    await shop.drain()
    newer = await open_shop(stores, seats_count=2)
    first, second = told("sales", settings=outside)
    assert first["sale_id"] == newer.sale_id
    assert (second["sale_id"], second["name"], second["room"]) == (shop.sale_id, "One night", "off")
    assert (second["seats_available"], second["seats_total"], second["store_state"]) == (5, 6, "open")
    assert len(told("sales", "--limit", "1", settings=outside)) == 1
    assert shop.sale_id in lastseat("sales", settings=outside).stdout


async def test_a_room_is_shown_and_set_in_both_stores(outside: dict[str, str], shop: Shop) -> None:
    assert told("room", shop.sale_id, settings=outside)["state"] == "off"
    changed = told("room", shop.sale_id, "--state", "open", "--active-max", "7", settings=outside)
    assert (changed["state"], changed["active_max"], changed["version"]) == ("open", 7, 2)
    assert (await shop.term("room"), await shop.term("active_max")) == ("open", "7")
    assert told("room", shop.sale_id, settings=outside) == changed
    assert refused("room", NOBODY, "--state", "open", settings=outside) == f"There is no sale {NOBODY}."


async def test_names_are_shown_as_they_were_written(outside: dict[str, str], shop: Shop, stores: Stores) -> None:
    await stores.postgres.execute("UPDATE sales SET name = 'Night [live] one [/]'")
    said = lastseat("room", shop.sale_id, settings=outside)
    assert said.returncode == 0, said.stderr
    assert "Night [live] one [/]" in said.stdout
    assert "[live]" in lastseat("sales", settings=outside).stdout


async def test_a_message_is_sent_once_for_a_key(outside: dict[str, str], shop: Shop, stores: Stores) -> None:
    sending = ("message", shop.sale_id, " Doors open at eight. ", "--key", "doors")
    first, again = (told(*sending, settings=outside) for _ in range(2))
    assert (first["text"], first["repeated"]) == ("Doors open at eight.", False)
    assert again == first | {"repeated": True}
    changed = refused("message", shop.sale_id, "At nine.", "--key", "doors", settings=outside)
    assert changed == "This key was used for another request."
    assert refused("message", NOBODY, "x", settings=outside) == f"There is no sale {NOBODY}."
    lately = await messages.list_lately(stores.gate, await shop.sale())
    assert isinstance(lately, Lately)
    assert [each.message_id for each in lately.told] == [first["message_id"]]


async def test_seats_are_blocked_and_unblocked(outside: dict[str, str], shop: Shop) -> None:
    done = told("block", shop.sale_id, "A-1-1", "A-1-2", settings=outside)
    assert (done["seats"], done["blocked"]) == (["A-1-1", "A-1-2"], True)
    assert await shop.states() == {"A-1-1": "BLOCKED", "A-1-2": "BLOCKED"}
    await shop.hold("A-1-3")
    said = refused("block", shop.sale_id, "--section", "A", settings=outside)
    assert said == "Nothing was changed: A-1-3 held."
    assert told("unblock", shop.sale_id, "--section", "A", settings=outside)["seats"] == ["A-1-1", "A-1-2"]
    assert await shop.states() == {"A-1-3": "HELD"}
    assert refused("block", NOBODY, "A-1-1", settings=outside) == f"There is no sale {NOBODY}."


async def test_a_payment_in_doubt_is_listed_and_resolved(outside: dict[str, str], shop: Shop, stores: Stores) -> None:
    assert lastseat("payments", settings=outside).stdout == "None.\n"
    bought = await shop.buy("A-1-1")
    await stores.postgres.execute("ALTER TABLE tickets ADD CONSTRAINT none_today CHECK (seat_no <> 'A-1-1') NOT VALID")
    await shop.drain()
    (doubtful,) = told("payments", settings=outside)
    assert (doubtful["payment_id"], doubtful["state"], doubtful["final_amount"]) == (
        bought.payment_id, "IN_DOUBT", PRICE,
    )  # fmt: skip
    # Too wide for a table: each field has its line, and each id is whole.
    shown = lastseat("payments", settings=outside).stdout
    assert re.search(f"^payment_id +{bought.payment_id} *$", shown, re.MULTILINE)
    assert re.search("^state +IN_DOUBT *$", shown, re.MULTILINE)
    resolving = ("resolve", bought.payment_id, "AUTHORISED", "--note", "seen on the statement")
    assert refused(*resolving, settings=outside).startswith("It is still in doubt: ")
    await stores.postgres.execute("ALTER TABLE tickets DROP CONSTRAINT none_today")
    assert told(*resolving, settings=outside)["state"] == "SUCCESS"
    # Said again it is the same word, and another word comes too late.
    assert told(*resolving, settings=outside)["state"] == "SUCCESS"
    another = refused("resolve", bought.payment_id, "FAILED", "--note", "no", settings=outside)
    assert another == "This payment is not in doubt (state SUCCESS)."
    kept = await stores.postgres.fetch("SELECT resolution, note, api_key_id FROM payment_resolutions")
    assert [tuple(row) for row in kept] == [("AUTHORISED", "seen on the statement", accounts.COMMAND_LINE)]
    nobody = refused("resolve", NOBODY, "FAILED", "--note", "no", settings=outside)
    assert nobody == f"There is no payment {NOBODY}."


async def test_a_payment_whose_gateway_nobody_names_is_left_alone(
    outside: dict[str, str], shop: Shop, stores: Stores
) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    await stores.postgres.execute(
        "UPDATE payments SET status = 'IN_DOUBT', method = 'CARD', card_amount = balance_amount, balance_amount = 0"
    )
    said = refused("resolve", request.payment_id, "FAILED", "--note", "no", settings=outside)
    assert said == "Its card gateway must be asked, and LASTSEAT_STRIPE_API_KEY names none."
    assert await stores.postgres.fetchval("SELECT count(*) FROM payment_resolutions") == 0


async def test_a_balance_is_credited_once_for_a_key(outside: dict[str, str], shop: Shop, stores: Stores) -> None:
    user_id = await shop.person("ann")
    crediting = ("credit", user_id, "500", "--reason", "for the long wait", "--key", "case 7")
    before = await stores.postgres.fetchval("SELECT amount FROM balances")
    first, again = (told(*crediting, settings=outside) for _ in range(2))
    assert (first["balance_after"], first["repeated"]) == (before + 500, False)
    assert again == first | {"repeated": True}
    changed = refused("credit", user_id, "501", "--reason", "for the long wait", "--key", "case 7", settings=outside)
    assert changed == "This key was used for another request."
    assert refused("credit", NOBODY, "1", "--reason", "x", settings=outside) == f"There is no user {NOBODY}."
    history = await stores.postgres.fetch("SELECT amount, reason FROM balance_history")
    assert [tuple(row) for row in history] == [(500, "for the long wait")]


async def test_keys_are_made_listed_and_revoked(outside: dict[str, str], stores: Stores) -> None:
    made = told("key", "the west door", "--scope", "tickets", settings=outside)
    found = await accounts.find_api_key(stores.postgres, made["key"])
    assert found is not None
    assert (found.name, found.scopes) == ("the west door", frozenset({"tickets"}))
    assert set(told("key", "all", settings=outside)["scopes"]) == set(accounts.SCOPES)
    listed = told("keys", settings=outside)
    assert [key["name"] for key in listed] == ["all", "the west door"]
    assert made["key"] not in json.dumps(listed)
    told("revoke", found.api_key_id, settings=outside)
    assert await accounts.find_api_key(stores.postgres, made["key"]) is None
    assert refused("revoke", NOBODY, settings=outside).startswith(f"There is no key {NOBODY}")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("room", "first-night"), "'first-night' is no sale: its id has 32 hex digits."),
        (("room", NOBODY, "--active-max", "0"), "0 is not in the range"),
        (("block", NOBODY), "Expected either SEATS or --section."),
        (("unblock", NOBODY, "A-1-1", "--section", "A"), "Expected either SEATS or --section."),
        (("resolve", NOBODY, "MAYBE", "--note", "x"), "'MAYBE' is not one of"),
        (("resolve", NOBODY, "FAILED", "--note", ""), "Expected 1 to 1000 printable characters."),
        (("credit", NOBODY, "-5", "--reason", "x"), "No such option"),
        (("credit", NOBODY, "0", "--reason", "x"), "0 is not in the range"),
        (("credit", NOBODY, "1"), "Missing option '--reason'"),
        (("key", "two\nlines"), "Expected 1 to 100 printable characters."),
        (("message", NOBODY, "  "), "Expected 1 to 500 printable characters."),
    ],
)
def test_what_is_mistyped_is_said_before_anything_is_opened(arguments: tuple[str, ...], line: str) -> None:
    said = lastseat(*arguments, settings={"LASTSEAT_POSTGRES_URL": "postgresql://nobody@127.0.0.1:1/none"})
    assert said.returncode == 2
    assert line in said.stderr
