"""The adapter over HTTP, against the simulated gateway and against servers that misbehave."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from stripe import WebhookSignature

from engine import ids
from engine.gateway import (
    AlreadyCaptured,
    Authorised,
    Cancelled,
    Captured,
    CaptureRefused,
    Declined,
    Event,
    GatewayUnavailable,
    GatewayUnknown,
    NeedsAction,
    RefundedBy,
    RefundRefused,
    Voided,
)
from engine.settings import Settings
from engine.stripe_gateway import StripeGateway, open_gateway
from tests.gateways import API_KEY, WEBHOOK_SECRET, Operator, operating, running_gateway

RETURN_URL = "https://shop.example/back?order=1"
DAY_S = 24 * 3600


@pytest.fixture(scope="module")
def simulated() -> Iterator[Settings]:
    """A simulated gateway of this module's own."""
    with running_gateway() as settings:
        yield settings


@pytest.fixture
async def gateway(simulated: Settings) -> AsyncIterator[StripeGateway]:
    """The adapter as the faces open it."""
    async with open_gateway(simulated) as opened:
        assert opened is not None
        yield opened


@pytest.fixture
async def operator(simulated: Settings) -> AsyncIterator[Operator]:
    """The operator of the simulated gateway."""
    async with operating(simulated) as opened:
        yield opened


async def authorise(
    gateway: StripeGateway,
    payment_id: str,
    method: str = "pm_card_visa",
    *,
    amount: int = 1000,
    back: str | None = RETURN_URL,
) -> Authorised | NeedsAction | Declined:
    return await gateway.authorise(
        payment_id=payment_id,
        amount=amount,
        currency="KRW",
        payment_method_id=method,
        return_url=back,
        metadata={"sale_id": "5a1e" * 8, "reservation_id": "4e5e" * 8},
    )


async def authorised(gateway: StripeGateway, method: str = "pm_card_visa", *, amount: int = 1000) -> str:
    """The reference of an amount set aside."""
    outcome = await authorise(gateway, ids.random_id(), method, amount=amount)
    assert isinstance(outcome, Authorised)
    return outcome.ref


async def captured(gateway: StripeGateway, method: str = "pm_card_visa", *, amount: int = 1000) -> str:
    """The reference of an amount taken."""
    ref = await authorised(gateway, method, amount=amount)
    assert await gateway.capture(ref, amount=amount, key=ids.random_id()) == Captured()
    return ref


async def eventually(ask: Callable[[], Awaitable[Any]], wanted: Callable[[Any], bool]) -> Any:
    """Ask until the answer is the wanted one."""
    async with asyncio.timeout(20):
        while not wanted(answer := await ask()):  # noqa: ASYNC110 - nobody tells when a gateway is done
            await asyncio.sleep(0.01)
        return answer


class TestAuthorise:
    async def test_the_amount_is_set_aside(self, gateway: StripeGateway, operator: Operator) -> None:
        payment_id = ids.random_id()
        outcome = await authorise(gateway, payment_id)
        assert isinstance(outcome, Authorised)
        intent = await gateway.query(outcome.ref)
        assert intent is not None
        assert (intent.status, intent.amount, intent.captured, intent.refunded) == ("AUTHORISED", 1000, 0, 0)
        assert (intent.payment_id, intent.action_url, intent.decline_code) == (payment_id, None, None)
        [row] = await operator.ledger(payment_id)
        assert (row["authorised"], row["captured"], row["currency"]) == (1000, 0, "krw")
        assert (row["sale_id"], row["reservation_id"]) == ("5a1e" * 8, "4e5e" * 8)

    @pytest.mark.parametrize(
        ("method", "code"),
        [
            ("pm_card_chargeDeclined", "generic_decline"),
            ("pm_card_visa_chargeDeclined", "generic_decline"),
            ("pm_card_insufficientFunds", "insufficient_funds"),
            ("pm_card_visa_chargeDeclinedInsufficientFunds", "insufficient_funds"),
            ("pm_card_visa_chargeDeclinedLostCard", "lost_card"),
            ("pm_card_visa_chargeDeclinedStolenCard", "stolen_card"),
            ("pm_card_chargeDeclinedExpiredCard", "expired_card"),
            ("pm_card_chargeDeclinedIncorrectCvc", "incorrect_cvc"),
            ("pm_card_chargeDeclinedProcessingError", "processing_error"),
        ],
    )
    async def test_a_decline_names_its_code(self, gateway: StripeGateway, method: str, code: str) -> None:
        payment_id = ids.random_id()
        outcome = await authorise(gateway, payment_id, method)
        assert isinstance(outcome, Declined)
        assert outcome.decline_code == code
        assert outcome.ref is not None
        assert await authorise(gateway, payment_id, method) == outcome
        intent = await gateway.query(outcome.ref)
        assert intent is not None
        assert (intent.status, intent.decline_code) == ("DECLINED", code)

    @pytest.mark.parametrize("method", ["pm_of_somebody_else", "4242424242424242", "", "pm_card_visa' OR '1"])
    async def test_an_unknown_method_is_declined(
        self, gateway: StripeGateway, operator: Operator, method: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        payment_id = ids.random_id()
        assert await authorise(gateway, payment_id, method) == Declined(None, "resource_missing")
        assert await operator.ledger(payment_id) == []
        assert "4242424242424242" not in caplog.text
        # Nothing began, so the same key may still pay.
        assert isinstance(await authorise(gateway, payment_id), Authorised)

    @pytest.mark.parametrize("amount", [0, -1, 100_000_000, 10**12])
    async def test_an_amount_that_the_gateway_cannot_take_is_declined(
        self, gateway: StripeGateway, amount: int
    ) -> None:
        outcome = await authorise(gateway, ids.random_id(), amount=amount)
        assert isinstance(outcome, Declined)
        assert outcome.decline_code in {"parameter_invalid_integer", "amount_too_large"}

    async def test_a_repeat_sets_nothing_aside_twice(self, gateway: StripeGateway, operator: Operator) -> None:
        payment_id = ids.random_id()
        outcomes = await asyncio.gather(*[authorise(gateway, payment_id) for _ in range(20)], return_exceptions=True)
        # While the first one runs the gateway may say so.
        refs = {outcome.ref for outcome in outcomes if isinstance(outcome, Authorised)}
        assert len(refs) == 1
        assert all(isinstance(outcome, Authorised | GatewayUnknown) for outcome in outcomes)
        assert len(await operator.ledger(payment_id)) == 1

    async def test_the_order_of_the_metadata_is_no_other_request(self, gateway: StripeGateway) -> None:
        payment_id = ids.random_id()
        terms: dict[str, Any] = {
            "payment_id": payment_id,
            "amount": 1000,
            "currency": "KRW",
            "payment_method_id": "pm_card_visa",
            "return_url": None,
        }
        first = await gateway.authorise(**terms, metadata={"sale_id": "a", "reservation_id": "b"})
        assert await gateway.authorise(**terms, metadata={"reservation_id": "b", "sale_id": "a"}) == first

    async def test_a_key_with_another_amount_is_never_a_second_payment(
        self, gateway: StripeGateway, operator: Operator
    ) -> None:
        payment_id = ids.random_id()
        await authorise(gateway, payment_id)
        with pytest.raises(GatewayUnknown, match="IdempotencyError"):
            await authorise(gateway, payment_id, amount=2000)
        [row] = await operator.ledger(payment_id)
        assert row["amount"] == 1000


class TestAction:
    async def test_the_buyer_approves(self, gateway: StripeGateway, operator: Operator) -> None:
        payment_id = ids.random_id()
        outcome = await authorise(gateway, payment_id, "pm_action_required")
        assert isinstance(outcome, NeedsAction)
        before = await gateway.query(outcome.ref)
        assert before is not None
        assert (before.status, before.action_url) == ("ACTION_REQUIRED", outcome.url)
        back = await operator.act(outcome.url, "approve")
        assert back == f"{RETURN_URL}&payment_intent={outcome.ref}&redirect_status=succeeded"
        after = await gateway.query(outcome.ref)
        assert after is not None
        assert (after.status, after.action_url) == ("AUTHORISED", None)
        # The key still answers what it answered first.
        assert await authorise(gateway, payment_id, "pm_action_required") == outcome

    @pytest.mark.parametrize(
        ("method", "outcome", "code"),
        [
            ("pm_action_required", "fail", "payment_intent_authentication_failure"),
            ("pm_action_declined", "approve", "generic_decline"),
        ],
    )
    async def test_the_buyer_fails(
        self, gateway: StripeGateway, operator: Operator, method: str, outcome: str, code: str
    ) -> None:
        needs = await authorise(gateway, ids.random_id(), method)
        assert isinstance(needs, NeedsAction)
        assert "redirect_status=failed" in await operator.act(needs.url, outcome)
        intent = await gateway.query(needs.ref)
        assert intent is not None
        assert (intent.status, intent.decline_code) == ("DECLINED", code)
        assert await gateway.cancel(needs.ref, key=ids.random_id()) == Cancelled()

    async def test_what_the_buyer_abandons_is_cancelled_for_good(
        self, gateway: StripeGateway, operator: Operator
    ) -> None:
        needs = await authorise(gateway, ids.random_id(), "pm_action_abandoned")
        assert isinstance(needs, NeedsAction)
        assert "redirect_status=pending" in await operator.act(needs.url, "approve")
        key = ids.random_id()
        assert await gateway.cancel(needs.ref, key=key) == Cancelled()
        assert await gateway.cancel(needs.ref, key=key) == Cancelled()
        assert await gateway.cancel(needs.ref, key=ids.random_id()) == Cancelled()
        await operator.act(needs.url, "approve")
        intent = await gateway.query(needs.ref)
        assert intent is not None
        assert intent.status == "CANCELLED"

    async def test_cancelling_and_approving_at_once_leaves_nothing_set_aside(
        self, gateway: StripeGateway, operator: Operator
    ) -> None:
        for _ in range(10):
            payment_id = ids.random_id()
            needs = await authorise(gateway, payment_id, "pm_action_required")
            assert isinstance(needs, NeedsAction)
            cancelled, _ = await asyncio.gather(
                gateway.cancel(needs.ref, key=ids.random_id()), operator.act(needs.url, "approve")
            )
            assert cancelled == Cancelled()
            [row] = await operator.ledger(payment_id)
            assert (row["status"], row["authorised"]) == ("canceled", 0)

    async def test_without_a_way_back_there_is_no_action(self, gateway: StripeGateway) -> None:
        outcome = await authorise(gateway, ids.random_id(), "pm_action_required", back=None)
        assert isinstance(outcome, Declined)
        assert outcome.decline_code == "authentication_required"

    @pytest.mark.parametrize("back", ["javascript:alert(1)", "/back", 'https://shop.example/"><script>'])
    async def test_an_address_that_is_none_is_declined(self, gateway: StripeGateway, back: str) -> None:
        assert await authorise(gateway, ids.random_id(), back=back) == Declined(None, "url_invalid")


class TestDoubt:
    @pytest.mark.parametrize("method", ["pm_timeout_after_success", "pm_500_then_replay"])
    async def test_a_lost_answer_is_asked_for_again(self, simulated: Settings, operator: Operator, method: str) -> None:
        payment_id = ids.random_id()
        async with open_gateway(simulated, answer_within_s=0.4) as gateway:
            assert gateway is not None
            with pytest.raises(GatewayUnknown):
                await authorise(gateway, payment_id, method)
            found = await gateway.find(payment_id)
            assert found is not None
            assert found.status == "AUTHORISED"
            assert await authorise(gateway, payment_id, method) == Authorised(found.ref)
        assert len(await operator.ledger(payment_id)) == 1

    async def test_an_error_that_the_key_remembers_is_found_out_by_looking(
        self, gateway: StripeGateway, operator: Operator
    ) -> None:
        payment_id = ids.random_id()
        for _ in range(2):
            with pytest.raises(GatewayUnknown, match="500"):
                await authorise(gateway, payment_id, "pm_500_kept")
        found = await gateway.find(payment_id)
        assert found is not None
        assert (found.status, found.payment_id) == ("AUTHORISED", payment_id)
        assert len(await operator.ledger(payment_id)) == 1

    async def test_a_search_may_lag_behind(self, gateway: StripeGateway, operator: Operator) -> None:
        payment_id = ids.random_id()
        await authorise(gateway, payment_id)
        await operator.switch("stale")
        assert await gateway.find(payment_id) is None
        assert await gateway.find(payment_id) is not None
        assert await gateway.find(ids.random_id()) is None

    async def test_while_the_first_request_runs_its_repeat_is_in_doubt(
        self, simulated: Settings, operator: Operator
    ) -> None:
        payment_id = ids.random_id()
        await operator.switch("slow", payment_id=payment_id, delay_ms=700)
        async with open_gateway(simulated, answer_within_s=0.3) as gateway:
            assert gateway is not None
            with pytest.raises(GatewayUnknown, match="Timeout"):
                await authorise(gateway, payment_id)
            with pytest.raises(GatewayUnknown, match="409"):
                await authorise(gateway, payment_id)

            async def again() -> Authorised | NeedsAction | Declined | None:
                try:
                    return await authorise(gateway, payment_id)
                except GatewayUnknown:
                    return None

            assert isinstance(await eventually(again, bool), Authorised)
        assert len(await operator.ledger(payment_id)) == 1

    async def test_the_slow_one_is_in_doubt_at_the_deadline(self, simulated: Settings) -> None:
        async with open_gateway(simulated, answer_within_s=0.3) as gateway:
            assert gateway is not None
            with pytest.raises(GatewayUnknown):
                await authorise(gateway, ids.random_id(), "pm_slow")

    @pytest.mark.parametrize("fault", ["error_before", "silent_before"])
    async def test_what_was_not_done_is_done_by_the_repeat(
        self, simulated: Settings, operator: Operator, fault: str
    ) -> None:
        payment_id = ids.random_id()
        await operator.switch(fault, payment_id=payment_id, operation="authorise", delay_ms=500)
        async with open_gateway(simulated, answer_within_s=0.3) as gateway:
            assert gateway is not None
            with pytest.raises(GatewayUnknown):
                await authorise(gateway, payment_id)
            assert await operator.ledger(payment_id) == []

            async def again() -> Authorised | NeedsAction | Declined | None:
                try:
                    return await authorise(gateway, payment_id)
                except GatewayUnknown:
                    return None

            assert isinstance(await eventually(again, bool), Authorised)

    async def test_who_is_turned_away_did_nothing(self, gateway: StripeGateway, operator: Operator) -> None:
        payment_id = ids.random_id()
        await operator.switch("busy", payment_id=payment_id)
        with pytest.raises(GatewayUnavailable, match="429"):
            await authorise(gateway, payment_id)
        assert await operator.ledger(payment_id) == []
        assert isinstance(await authorise(gateway, payment_id), Authorised)

    @pytest.mark.parametrize("operation", ["capture", "cancel", "refund", "query"])
    async def test_every_operation_may_be_in_doubt(
        self, gateway: StripeGateway, operator: Operator, operation: str
    ) -> None:
        ref = await (captured if operation == "refund" else authorised)(gateway)
        key = ids.random_id()
        asks: dict[str, Callable[[], Awaitable[Any]]] = {
            "capture": lambda: gateway.capture(ref, amount=1000, key=key),
            "cancel": lambda: gateway.void(ref, key=key),
            "refund": lambda: gateway.refund(ref, amount=400, key=key),
            "query": lambda: gateway.query(ref),
        }
        await operator.switch("error_after", operation=operation)
        with pytest.raises(GatewayUnknown):
            await asks[operation]()
        first = await asks[operation]()
        assert isinstance(first, RefundedBy) or first in (Captured(), Voided(), await gateway.query(ref))
        assert await asks[operation]() == first
        intent = await gateway.query(ref)
        assert intent is not None
        assert intent.refunded == (400 if operation == "refund" else 0)


class TestCapture:
    async def test_what_is_set_aside_is_taken_once(self, gateway: StripeGateway, operator: Operator) -> None:
        payment_id, key = ids.random_id(), ids.random_id()
        outcome = await authorise(gateway, payment_id)
        assert isinstance(outcome, Authorised)
        for _ in range(3):
            assert await gateway.capture(outcome.ref, amount=1000, key=key) == Captured()
        # Past a day the key is forgotten, and what it did is not.
        await operator.advance(DAY_S + 1)
        assert await gateway.capture(outcome.ref, amount=1000, key=key) == Captured()
        [row] = await operator.ledger(payment_id)
        assert (row["authorised"], row["captured"]) == (0, 1000)

    async def test_a_part_may_be_taken(self, gateway: StripeGateway) -> None:
        ref = await authorised(gateway)
        assert await gateway.capture(ref, amount=600, key=ids.random_id()) == Captured()
        intent = await gateway.query(ref)
        assert intent is not None
        assert (intent.status, intent.captured) == ("CAPTURED", 600)
        # Another amount than was taken is not what was asked.
        outcome = await gateway.capture(ref, amount=1000, key=ids.random_id())
        assert outcome == CaptureRefused("payment_intent_unexpected_state")

    async def test_more_than_is_set_aside_is_refused(self, gateway: StripeGateway) -> None:
        ref = await authorised(gateway)
        assert await gateway.capture(ref, amount=1001, key=ids.random_id()) == CaptureRefused("amount_too_large")

    async def test_a_capture_is_refused_for_good(self, gateway: StripeGateway, operator: Operator) -> None:
        ref = await authorised(gateway, "pm_capture_refused")
        key = ids.random_id()
        for _ in range(2):
            assert await gateway.capture(ref, amount=1000, key=key) == CaptureRefused("do_not_honor")
        other = await authorised(gateway)
        await operator.switch("refused", operation="capture")
        assert await gateway.capture(other, amount=1000, key=ids.random_id()) == CaptureRefused("card_declined")

    async def test_an_authorisation_lapses_in_a_week(self, gateway: StripeGateway, operator: Operator) -> None:
        ref = await authorised(gateway)
        await operator.advance(7 * DAY_S)
        outcome = await gateway.capture(ref, amount=1000, key=ids.random_id())
        assert outcome == CaptureRefused("charge_expired_for_capture")
        intent = await gateway.query(ref)
        assert intent is not None
        assert intent.status == "CANCELLED"

    async def test_what_the_gateway_does_not_know_cannot_be_taken(self, gateway: StripeGateway) -> None:
        assert await gateway.capture("pi_unknown", amount=1, key=ids.random_id()) == CaptureRefused("resource_missing")
        assert await gateway.query("pi_unknown") is None


class TestVoid:
    async def test_what_is_set_aside_is_let_go(self, gateway: StripeGateway, operator: Operator) -> None:
        ref, key = await authorised(gateway), ids.random_id()
        for _ in range(2):
            assert await gateway.void(ref, key=key) == Voided()
        await operator.advance(DAY_S + 1)
        assert await gateway.void(ref, key=key) == Voided()
        assert await gateway.capture(ref, amount=1000, key=ids.random_id()) == CaptureRefused(
            "payment_intent_unexpected_state"
        )

    async def test_what_is_taken_cannot_be_let_go(self, gateway: StripeGateway) -> None:
        ref = await captured(gateway)
        assert await gateway.void(ref, key=ids.random_id()) == AlreadyCaptured()
        assert await gateway.cancel(ref, key=ids.random_id()) == AlreadyCaptured()

    async def test_what_the_gateway_lost_holds_no_money(self, gateway: StripeGateway) -> None:
        assert await gateway.void("pi_unknown", key=ids.random_id()) == Voided()


class TestRefund:
    async def test_parts_add_up_to_what_was_taken_and_no_further(
        self, gateway: StripeGateway, operator: Operator
    ) -> None:
        ref = await captured(gateway, amount=1000)
        refunds = [await gateway.refund(ref, amount=amount, key=ids.random_id()) for amount in (333, 333, 334)]
        assert all(isinstance(refund, RefundedBy) and not refund.pending for refund in refunds)
        assert len(set(map(repr, refunds))) == 3
        assert await gateway.refund(ref, amount=1, key=ids.random_id()) == RefundRefused("charge_already_refunded")
        intent = await gateway.query(ref)
        assert intent is not None
        assert (intent.captured, intent.refunded) == (1000, 1000)
        [row] = await operator.ledger(str(intent.payment_id))
        assert (row["captured"], row["refunded"]) == (1000, 1000)

    async def test_above_what_was_taken_is_refused(self, gateway: StripeGateway) -> None:
        ref = await captured(gateway, amount=1000)
        assert isinstance(await gateway.refund(ref, amount=700, key=ids.random_id()), RefundedBy)
        assert await gateway.refund(ref, amount=301, key=ids.random_id()) == RefundRefused("amount_invalid")

    async def test_a_repeat_gives_nothing_back_twice(self, gateway: StripeGateway) -> None:
        ref, key = await captured(gateway), ids.random_id()
        assert len({repr(await gateway.refund(ref, amount=400, key=key)) for _ in range(3)}) == 1
        intent = await gateway.query(ref)
        assert intent is not None
        assert intent.refunded == 400

    async def test_many_at_once_never_give_back_more(self, gateway: StripeGateway) -> None:
        ref = await captured(gateway, amount=1000)
        outcomes = await asyncio.gather(*[gateway.refund(ref, amount=300, key=ids.random_id()) for _ in range(10)])
        assert sum(isinstance(outcome, RefundedBy) for outcome in outcomes) == 3
        intent = await gateway.query(ref)
        assert intent is not None
        assert intent.refunded == 900

    async def test_what_is_not_taken_cannot_go_back(self, gateway: StripeGateway) -> None:
        ref = await authorised(gateway)
        outcome = await gateway.refund(ref, amount=1000, key=ids.random_id())
        assert outcome == RefundRefused("payment_intent_unexpected_state")

    async def test_the_bank_takes_none(self, gateway: StripeGateway) -> None:
        ref = await captured(gateway, "pm_refund_refused")
        assert await gateway.refund(ref, amount=1, key=ids.random_id()) == RefundRefused("charge_not_refundable")

    async def test_one_that_takes_a_while_is_pending_until_it_is_done(self, gateway: StripeGateway) -> None:
        ref = await captured(gateway, "pm_card_pendingRefund")
        refund = await gateway.refund(ref, amount=1000, key=ids.random_id())
        assert isinstance(refund, RefundedBy)
        assert refund.pending
        done = await eventually(lambda: gateway.query_refund(refund.refund_ref), lambda told: told != refund)
        assert done == RefundedBy(refund.refund_ref)

    async def test_one_may_fail_afterwards(self, gateway: StripeGateway) -> None:
        ref = await captured(gateway, "pm_card_refundFail")
        refund = await gateway.refund(ref, amount=1000, key=ids.random_id())
        assert isinstance(refund, RefundedBy)
        failed = await eventually(lambda: gateway.query_refund(refund.refund_ref), lambda told: told != refund)
        assert failed == RefundRefused("expired_or_canceled_card")
        intent = await gateway.query(ref)
        assert intent is not None
        assert intent.refunded == 0

    async def test_an_unknown_refund_is_none(self, gateway: StripeGateway) -> None:
        assert await gateway.query_refund("re_unknown") == RefundRefused("resource_missing")


class TestWire:
    """Servers that are no gateway at all, or one that breaks off."""

    async def test_silence_ends_at_the_deadline_and_holds_nothing_up(self) -> None:
        async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(1)
            await hanging.wait()
            writer.close()

        asked: list[int] = []
        pauses: list[float] = []
        hanging = asyncio.Event()
        async with listening(silent) as base, opened(base, answer_within_s=1) as gateway:
            measuring = asyncio.create_task(measure_pauses(pauses))
            begun = time.monotonic()
            outcomes = await asyncio.gather(
                *[authorise(gateway, ids.random_id()) for _ in range(20)], return_exceptions=True
            )
            took_s = time.monotonic() - begun
            measuring.cancel()
            hanging.set()
        assert all(isinstance(outcome, GatewayUnknown) for outcome in outcomes)
        assert 0.9 < took_s < 4
        assert len(asked) == 20, "each was sent once"
        assert max(pauses) < 0.5, "the loop stood still"

    async def test_nobody_there_means_that_nothing_was_done(self) -> None:
        async with opened("http://127.0.0.1:1") as gateway:
            for ask in (
                lambda: authorise(gateway, ids.random_id()),
                lambda: gateway.query("pi_1"),
                lambda: gateway.refund("pi_1", amount=1, key="k"),
            ):
                with pytest.raises(GatewayUnavailable):
                    await ask()

    async def test_an_address_that_no_name_server_knows_is_nobody(self) -> None:
        async with opened("https://gateway.test") as gateway:
            with pytest.raises(GatewayUnavailable):
                await gateway.query("pi_1")

    async def test_waiting_for_a_connection_is_bounded_and_sends_nothing(self) -> None:
        async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await hanging.wait()
            writer.close()

        hanging = asyncio.Event()
        async with (
            listening(silent) as base,
            opened(base, connections_max=2, answer_within_s=0.8) as gateway,
        ):
            outcomes = await asyncio.gather(*[gateway.query("pi_1") for _ in range(10)], return_exceptions=True)
            hanging.set()
        assert (
            sorted(type(outcome).__name__ for outcome in outcomes)
            == ["GatewayUnavailable"] * 8 + ["GatewayUnknown"] * 2
        )

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnull",
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n<html></>",
            b'HTTP/1.1 200 OK\r\ncontent-length: 31\r\n\r\n{"id":"pi_1","status":"strange"}',
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xfe",
            b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 5\r\n\r\n<html",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\n\r\n<html",
            b'HTTP/1.1 400 Bad Request\r\ncontent-length: 13\r\n\r\n{"error":"x"}',
            b'HTTP/1.1 400 Bad Request\r\ncontent-length: 12\r\n\r\n{"error":[]}',
            b'HTTP/1.1 402 Payment Required\r\ncontent-length: 22\r\n\r\n{"error":{"code":1,}} ',
            b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
            b"not HTTP at all\r\n\r\n",
        ],
    )
    async def test_an_answer_that_cannot_be_read_is_in_doubt(self, answer: bytes) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.append(1)
            writer.write(answer)
            await writer.drain()
            writer.close()

        asked: list[int] = []
        async with listening(serve) as base, opened(base, answer_within_s=2) as gateway:
            with pytest.raises(GatewayUnknown):
                await authorise(gateway, ids.random_id())
        if b" 302 " not in answer:
            assert asked == [1], "it was sent once"


class TestSecrets:
    async def test_no_secret_is_told(
        self, simulated: Settings, operator: Operator, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        told = [repr(simulated), str(simulated), repr(simulated.__rich_repr__())]
        async with open_gateway(simulated) as gateway:
            assert gateway is not None
            logging.getLogger("stripe").setLevel(logging.DEBUG)
            for name in ("aiohttp", "asyncio"):
                logging.getLogger(name).setLevel(logging.DEBUG)
            told += [repr(gateway), repr(vars(gateway)), repr(vars(gateway._client))]
            await authorise(gateway, ids.random_id())
            await authorise(gateway, ids.random_id(), "pm_card_chargeDeclined")
            for fault in ("busy", "error_before"):
                payment_id = ids.random_id()
                await operator.switch(fault, payment_id=payment_id)
                with pytest.raises((GatewayUnavailable, GatewayUnknown)) as raised:
                    await authorise(gateway, payment_id)
                told += [
                    repr(raised.value),
                    str(raised.value),
                    repr(raised.value.__cause__),
                    str(raised.value.__cause__),
                ]
            assert gateway.verify(b"{}", "t=1,v1=00") is None
        async with opened(str(simulated.stripe_api_base), key="sk_test_wrong_key") as stranger:
            with pytest.raises(GatewayUnavailable, match="401") as refused:
                await authorise(stranger, ids.random_id())
        told += [repr(refused.value), repr(refused.value.__cause__), caplog.text]
        assert "pm_card_visa" in caplog.text, "the package's log was read, too"
        for secret in (API_KEY, WEBHOOK_SECRET, "sk_test_wrong_key"):
            assert all(secret not in text for text in told)

    async def test_the_package_tells_no_requests_by_itself(
        self, simulated: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        async with open_gateway(simulated) as gateway:
            assert gateway is not None
            await authorise(gateway, ids.random_id())
        assert caplog.text == ""

    async def test_without_a_key_there_is_no_gateway(self) -> None:
        async with open_gateway(Settings()) as gateway:
            assert gateway is None


class TestVerify:
    BODY = json.dumps(
        {
            "id": "evt_1",
            "object": "event",
            "type": "payment_intent.succeeded",
            "data": {"object": {"id": "pi_1", "object": "payment_intent", "status": "succeeded"}},
        }
    )

    def sign(self, body: str, secret: str = WEBHOOK_SECRET, *, age_s: int = 0) -> str:
        return str(WebhookSignature.generate_signature_header(body, secret, int(time.time()) - age_s))

    async def test_what_the_gateway_signed_is_read(self, gateway: StripeGateway) -> None:
        event = gateway.verify(self.BODY.encode(), self.sign(self.BODY))
        assert event == Event(event_id="evt_1", type="payment_intent.succeeded", ref="pi_1", refund_ref=None)
        assert gateway.verify(self.BODY.encode(), self.sign(self.BODY, age_s=290)) == event

    async def test_a_refund_names_what_it_refunds(self, gateway: StripeGateway) -> None:
        subject = {"id": "re_1", "object": "refund", "payment_intent": "pi_1"}
        body = json.dumps({"id": "evt_2", "object": "event", "type": "refund.failed", "data": {"object": subject}})
        event = gateway.verify(body.encode(), self.sign(body))
        assert event == Event(event_id="evt_2", type="refund.failed", ref="pi_1", refund_ref="re_1")

    async def test_what_is_about_something_else_has_no_reference(self, gateway: StripeGateway) -> None:
        subject = {"id": "cus_1", "object": "customer"}
        body = json.dumps({"id": "evt_3", "object": "event", "type": "customer.created", "data": {"object": subject}})
        event = gateway.verify(body.encode(), self.sign(body))
        assert event is not None
        assert (event.ref, event.refund_ref) == (None, None)

    async def test_what_anybody_else_sent_is_none(self, gateway: StripeGateway) -> None:
        body = self.BODY.encode()
        good = self.sign(self.BODY)
        assert gateway.verify(body, self.sign(self.BODY, "whsec_of_somebody")) is None
        assert gateway.verify(body, self.sign(self.BODY, age_s=301)) is None
        assert gateway.verify(body.replace(b"pi_1", b"pi_2"), good) is None
        assert gateway.verify(body, good.replace("v1=", "v0=")) is None
        for signature in (
            "",
            "t=,v1=",
            "v1=abc",
            "t=1",
            "nonsense",
            "t=1,v1=é",
            "t=99999999999999999999,v1=0",
            ",",
            "==",
        ):
            assert gateway.verify(body, signature) is None

    async def test_what_is_signed_and_yet_no_event_is_none(self, gateway: StripeGateway) -> None:
        for body in ("", "[]", "null", "{}", '{"id":"evt_1"}', '{"id":1,"type":"a","data":{"object":{}}}'):
            assert gateway.verify(body.encode(), self.sign(body)) is None
        assert gateway.verify(b"\xff\xfe", "t=1,v1=00") is None

    async def test_without_a_secret_nothing_is_believed(self, simulated: Settings) -> None:
        async with opened(str(simulated.stripe_api_base), secret=None) as gateway:
            assert gateway.verify(self.BODY.encode(), self.sign(self.BODY, "")) is None
            assert gateway.verify(self.BODY.encode(), self.sign(self.BODY)) is None


async def measure_pauses(pauses: list[float]) -> None:
    """Note how long the loop takes to come back, in seconds, until cancelled."""
    while True:
        last = time.monotonic()
        await asyncio.sleep(0.005)
        pauses.append(time.monotonic() - last)


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """The address of a server of our own."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def opened(
    base: str, *, key: str = "sk_test_simulated", secret: str | None = WEBHOOK_SECRET, **bounds: Any
) -> AsyncIterator[StripeGateway]:
    """The adapter at another address."""
    settings = Settings(stripe_api_key=key, stripe_api_base=base, stripe_webhook_secret=secret)
    async with open_gateway(settings, **bounds) as gateway:
        assert gateway is not None
        yield gateway
