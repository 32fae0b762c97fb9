"""The simulated gateway over plain HTTP: who may ask, what is remembered by a key, what is never taken."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import aiohttp
import pytest

from engine import ids
from engine.settings import Settings
from simulator.server import Config
from tests.gateways import API_KEY, WEBHOOK_SECRET, Operator, operating, running_gateway

PAYS = {
    "amount": "1000",
    "currency": "krw",
    "capture_method": "manual",
    "confirm": "true",
    "payment_method": "pm_card_visa",
    "return_url": "https://shop.example/back",
}


@pytest.fixture(scope="module")
def simulated() -> Iterator[Settings]:
    """A simulated gateway of this module's own."""
    with running_gateway() as settings:
        yield settings


@pytest.fixture
async def operator(simulated: Settings) -> AsyncIterator[Operator]:
    """The operator of the simulated gateway, who also asks as a shop does."""
    async with operating(simulated) as opened:
        yield opened


async def post(
    operator: Operator, path: str, form: Mapping[str, str], *, key: str | None = None
) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    headers = {"Idempotency-Key": key} if key else {}
    async with operator.session.post(f"{operator.base}{path}", data=dict(form), headers=headers) as answer:
        return answer.status, await answer.json(), answer.headers


def error_of(answer: dict[str, Any]) -> tuple[str | None, ...]:
    return tuple(answer["error"].get(name) for name in ("type", "code", "param"))


class TestKeys:
    async def test_a_repeat_hears_what_the_first_one_heard(self, operator: Operator) -> None:
        key, payment_id = ids.random_id(), ids.random_id()
        form = {**PAYS, "metadata[payment_id]": payment_id}
        status, first, headers = await post(operator, "/v1/payment_intents", form, key=key)
        assert (status, first["status"], first["amount_capturable"]) == (200, "requires_capture", 1000)
        assert "Idempotent-Replayed" not in headers
        assert headers["Request-Id"].startswith("req_")
        # Whatever became of it since.
        await post(operator, f"/v1/payment_intents/{first['id']}/cancel", {})
        status, again, headers = await post(operator, "/v1/payment_intents", dict(reversed(form.items())), key=key)
        assert (status, again, headers["Idempotent-Replayed"]) == (200, first, "true")
        assert len(await operator.ledger(payment_id)) == 1

    async def test_a_decline_is_remembered(self, operator: Operator) -> None:
        key = ids.random_id()
        form = {**PAYS, "payment_method": "pm_card_insufficientFunds"}
        status, first, _ = await post(operator, "/v1/payment_intents", form, key=key)
        assert status == 402
        assert error_of(first) == ("card_error", "card_declined", None)
        assert first["error"]["decline_code"] == "insufficient_funds"
        assert first["error"]["payment_intent"]["status"] == "requires_payment_method"
        status, again, headers = await post(operator, "/v1/payment_intents", form, key=key)
        assert (status, again, headers["Idempotent-Replayed"]) == (402, first, "true")

    @pytest.mark.parametrize("other", [{"amount": "1001"}, {"metadata[a]": "b"}, {"return_url": "https://a.example"}])
    async def test_other_parameters_are_refused(self, operator: Operator, other: dict[str, str]) -> None:
        key = ids.random_id()
        await post(operator, "/v1/payment_intents", PAYS, key=key)
        status, answer, _ = await post(operator, "/v1/payment_intents", {**PAYS, **other}, key=key)
        assert (status, error_of(answer)[0]) == (400, "idempotency_error")

    async def test_another_path_is_another_request(self, operator: Operator) -> None:
        key = ids.random_id()
        _, intent, _ = await post(operator, "/v1/payment_intents", PAYS)
        path = f"/v1/payment_intents/{intent['id']}"
        assert (await post(operator, f"{path}/capture", {}, key=key))[0] == 200
        status, answer, _ = await post(operator, f"{path}/cancel", {}, key=key)
        assert (status, error_of(answer)[0]) == (400, "idempotency_error")

    async def test_what_never_began_is_not_remembered(self, operator: Operator) -> None:
        key = ids.random_id()
        assert (await post(operator, "/v1/payment_intents", {**PAYS, "amount": "x"}, key=key))[0] == 400
        status, _, headers = await post(operator, "/v1/payment_intents", PAYS, key=key)
        assert status == 200
        assert "Idempotent-Replayed" not in headers

    async def test_a_key_is_forgotten_after_a_day(self, operator: Operator) -> None:
        key = ids.random_id()
        _, first, _ = await post(operator, "/v1/payment_intents", PAYS, key=key)
        await operator.advance(24 * 3600 - 60)
        assert (await post(operator, "/v1/payment_intents", PAYS, key=key))[1] == first
        await operator.advance(120)
        _, other, headers = await post(operator, "/v1/payment_intents", PAYS, key=key)
        assert other["id"] != first["id"]
        assert "Idempotent-Replayed" not in headers

    async def test_many_at_once_have_one_effect(self, operator: Operator) -> None:
        key, payment_id = ids.random_id(), ids.random_id()
        form = {**PAYS, "metadata[payment_id]": payment_id}
        answers = await asyncio.gather(*[post(operator, "/v1/payment_intents", form, key=key) for _ in range(50)])
        assert {status for status, _, _ in answers} <= {200, 409}
        assert len({answer["id"] for status, answer, _ in answers if status == 200}) == 1
        assert len(await operator.ledger(payment_id)) == 1

    async def test_without_a_key_each_request_is_one(self, operator: Operator) -> None:
        answers = [await post(operator, "/v1/payment_intents", PAYS) for _ in range(2)]
        assert len({answer["id"] for _, answer, _ in answers}) == 2


class TestRefused:
    @pytest.mark.parametrize(
        "extra",
        [
            {"card[number]": "4242424242424242"},
            {"payment_method_data[card][number]": "4242424242424242"},
            {"payment_method_data[type]": "card", "payment_method_data[card][cvc]": "123"},
            {"source[card][exp_month]": "12"},
        ],
    )
    async def test_card_details(self, operator: Operator, extra: dict[str, str]) -> None:
        status, answer, _ = await post(operator, "/v1/payment_intents", {**PAYS, **extra})
        assert (status, error_of(answer)[2]) == (400, "card")
        assert "4242" not in str(answer)

    async def test_a_card_number_in_the_place_of_a_method_is_not_repeated(self, operator: Operator) -> None:
        form = {**PAYS, "payment_method": "4242424242424242"}
        status, answer, _ = await post(operator, "/v1/payment_intents", form)
        assert (status, error_of(answer)) == (400, ("invalid_request_error", "resource_missing", "payment_method"))
        assert "4242" not in str(answer)

    @pytest.mark.parametrize(
        ("changed", "param"),
        [
            ({"amount": ""}, "amount"),
            ({"amount": "0"}, "amount"),
            ({"amount": "-5"}, "amount"),
            ({"amount": "10.5"}, "amount"),
            ({"amount": "1e3"}, "amount"),
            ({"amount": "\u0661\u0662"}, "amount"),
            ({"amount": "9" * 30}, "amount"),
            ({"amount": "100000000"}, "amount"),
            ({"currency": "KRW"}, "currency"),
            ({"currency": "won!"}, "currency"),
            ({"capture_method": "automatic"}, "capture_method"),
            ({"return_url": "javascript:alert(1)"}, "return_url"),
            ({"metadata[a]": "b" * 501}, "metadata"),
            ({"unheard_of": "1"}, "unheard_of"),
        ],
    )
    async def test_a_parameter(self, operator: Operator, changed: dict[str, str], param: str) -> None:
        status, answer, _ = await post(operator, "/v1/payment_intents", {**PAYS, **changed})
        assert (status, error_of(answer)[2]) == (400, param)

    @pytest.mark.parametrize("key", [None, "", "Bearer", "Bearer sk_test_other", "Basic c2s6", f"Bearer {API_KEY}x"])
    @pytest.mark.parametrize("path", ["/v1/payment_intents", "/v1/refunds/re_1", "/simulator/ledger"])
    async def test_whoever_has_no_key(self, simulated: Settings, path: str, key: str | None) -> None:
        headers = {"Authorization": key} if key is not None else {}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{simulated.stripe_api_base}{path}", data=PAYS, headers=headers) as answer,
        ):
            assert answer.status == 401
            assert API_KEY not in await answer.text()

    @pytest.mark.parametrize(
        "path", ["/", "/v1", "/v1/charges", "/v1/payment_intents/pi_1/void", "/simulator/nothing", "/simulator"]
    )
    async def test_an_address_that_is_none(self, operator: Operator, path: str) -> None:
        assert (await post(operator, path, {}))[0] == 404

    @pytest.mark.parametrize(
        "path", ["/v1/payment_intents/pi_1/capture", "/v1/payment_intents/pi_1/cancel", "/v1/refunds"]
    )
    async def test_what_does_not_exist(self, operator: Operator, path: str) -> None:
        status, answer, _ = await post(operator, path, {"payment_intent": "pi_1"} if path == "/v1/refunds" else {})
        assert (status, error_of(answer)[1]) == (404, "resource_missing")

    @pytest.mark.parametrize(
        ("body", "kind", "status"),
        [
            (b'{"amount": 1}', "application/json", 400),
            (b"amount=\xff", "application/x-www-form-urlencoded", 400),
            (b"amount=%ff", "application/x-www-form-urlencoded", 400),
            (b"amount", "application/x-www-form-urlencoded", 400),
            (b"&".join(b"a%d=1" % n for n in range(300)), "application/x-www-form-urlencoded", 400),
            (b"a=" + b"b" * 70_000, "application/x-www-form-urlencoded", 413),
        ],
    )
    async def test_a_body_that_cannot_be_read(self, operator: Operator, body: bytes, kind: str, status: int) -> None:
        headers = {"Content-Type": kind}
        async with operator.session.post(f"{operator.base}/v1/payment_intents", data=body, headers=headers) as answer:
            assert answer.status == status

    @pytest.mark.parametrize("query", ["", "amount>1", "metadata['a']:'b' OR metadata['c']:'d'", "metadata['a']:b"])
    async def test_a_search_it_does_not_know(self, operator: Operator, query: str) -> None:
        terms = {"query": query}
        async with operator.session.get(f"{operator.base}/v1/payment_intents/search", params=terms) as answer:
            assert answer.status == 400


class TestOperator:
    @pytest.mark.parametrize(
        "body", [b"", b"[]", b"{}", b'{"fault":"fire"}', b'{"fault":"busy","times":0}', b'{"fault":"busy","other":1}']
    )
    async def test_a_switch_that_is_none_is_refused(self, operator: Operator, body: bytes) -> None:
        async with operator.session.post(f"{operator.base}/simulator/switches", data=body) as answer:
            assert answer.status == 400

    async def test_a_switch_counts_down(self, operator: Operator) -> None:
        await operator.switch("busy", times=2)
        statuses = [(await post(operator, "/v1/payment_intents", PAYS))[0] for _ in range(3)]
        assert statuses == [429, 429, 200]

    async def test_a_switch_is_for_its_operation_and_payment(self, operator: Operator) -> None:
        payment_id = ids.random_id()
        await operator.switch("refused", operation="capture", payment_id=payment_id)
        statuses = []
        for who in (ids.random_id(), payment_id):
            _, intent, _ = await post(operator, "/v1/payment_intents", {**PAYS, "metadata[payment_id]": who})
            statuses.append((await post(operator, f"/v1/payment_intents/{intent['id']}/capture", {}))[0])
        assert statuses == [200, 402]

    async def test_switches_are_shown_and_cleared(self, operator: Operator) -> None:
        await operator.switch("slow", delay_ms=5)
        async with operator.session.get(f"{operator.base}/simulator/switches") as answer:
            assert [switch["fault"] for switch in (await answer.json())["switches"]] == ["slow"]
        async with operator.session.delete(f"{operator.base}/simulator/switches") as answer:
            assert (await answer.json())["switches"] == []

    async def test_the_ledger_is_read_in_pages(self, operator: Operator) -> None:
        payment_ids = [ids.random_id() for _ in range(5)]
        for payment_id in payment_ids:
            await post(operator, "/v1/payment_intents", {**PAYS, "metadata[payment_id]": payment_id})
        read: list[str] = []
        after = ""
        while True:
            async with operator.session.get(f"{operator.base}/simulator/ledger?limit=2{after}") as answer:
                page = await answer.json()
            assert len(page["intents"]) <= 2
            read += [row["payment_id"] for row in page["intents"]]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        assert read[-5:] == payment_ids
        async with operator.session.get(f"{operator.base}/simulator/ledger?limit=0") as answer:
            assert answer.status == 400


class TestConfirm:
    async def test_an_intent_may_be_confirmed_later_and_again(self, operator: Operator) -> None:
        _, intent, _ = await post(operator, "/v1/payment_intents", {**PAYS, "confirm": "false"})
        assert (intent["status"], intent["amount_capturable"]) == ("requires_confirmation", 0)
        path = f"/v1/payment_intents/{intent['id']}/confirm"
        assert (await post(operator, path, {"payment_method": "pm_card_chargeDeclined"}))[0] == 402
        status, confirmed, _ = await post(operator, path, {"payment_method": "pm_card_visa"})
        assert (status, confirmed["status"]) == (200, "requires_capture")
        status, answer, _ = await post(operator, path, {})
        assert (status, error_of(answer)[1]) == (400, "payment_intent_unexpected_state")


class TestPage:
    async def test_a_buyer_sees_what_is_asked(self, operator: Operator) -> None:
        form = {**PAYS, "payment_method": "pm_action_required", "return_url": "https://shop.example/a?b=1&c=2"}
        _, intent, _ = await post(operator, "/v1/payment_intents", form)
        url = intent["next_action"]["redirect_to_url"]["url"]
        async with aiohttp.ClientSession() as stranger:
            async with stranger.get(url) as answer:
                page = await answer.text()
                assert answer.status == 200
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert "1000 KRW" in page
            assert 'href="https://shop.example/a?b=1&amp;c=2"' in page
            assert set(re.findall(r'name="outcome" value="(\w+)"', page)) == {"approve", "fail"}
            async with stranger.post(url, data={"outcome": "steal"}) as answer:
                assert answer.status == 400
        await operator.act(url, "approve")
        # Whoever comes back changes nothing.
        assert "redirect_status=succeeded" in await operator.act(url, "fail")
        async with operator.session.get(url) as answer:
            assert "settled" in await answer.text()

    async def test_a_bank_may_hear_a_buyer_once_after_the_shop_has_cancelled(self, operator: Operator) -> None:
        form = {**PAYS, "payment_method": "pm_action_late", "return_url": "https://shop.example/"}
        _, intent, _ = await post(operator, "/v1/payment_intents", form)
        url = intent["next_action"]["redirect_to_url"]["url"]
        for authorised in (1000, 0):
            _, cancelled, _ = await post(operator, f"/v1/payment_intents/{intent['id']}/cancel", {})
            assert cancelled["status"] == "canceled"
            await operator.act(url, "approve")
            async with operator.session.get(f"{operator.base}/v1/payment_intents/{intent['id']}") as answer:
                assert (await answer.json())["amount_capturable"] == authorised

    async def test_a_page_that_is_nobodys(self, operator: Operator) -> None:
        async with operator.session.get(f"{operator.base}/simulator/actions/pi_nobody") as answer:
            assert answer.status == 404


def test_a_config_tells_no_secret() -> None:
    config = Config(host="127.0.0.1", port=1, api_key=API_KEY, webhook_secret=WEBHOOK_SECRET)
    assert API_KEY not in repr(config)
    assert WEBHOOK_SECRET not in repr(config)
