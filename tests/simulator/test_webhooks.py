"""What the simulated gateway tells a shop, and how it goes wrong on demand."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from stripe import SignatureVerificationError, WebhookSignature

from cli.processes import free_port
from engine import ids
from engine.gateway import Authorised, NeedsAction, RefundedBy
from engine.settings import Settings
from engine.stripe_gateway import StripeGateway, open_gateway
from simulator.webhooks import sign
from tests.gateways import WEBHOOK_SECRET, Mailbox, Operator, operating, receiving, running_gateway

Told = tuple[int, Settings]


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    """A gateway, and the port that it tells."""
    port = free_port("127.0.0.1")
    with running_gateway(f"http://127.0.0.1:{port}/v1/webhooks/stripe") as settings:
        yield port, settings


@pytest.fixture
async def mailbox(told: Told) -> AsyncIterator[Mailbox]:
    """Whoever takes the webhooks."""
    async with receiving(told[0]) as opened:
        yield opened


@pytest.fixture
async def gateway(told: Told) -> AsyncIterator[StripeGateway]:
    """The adapter as the faces open it."""
    async with open_gateway(told[1]) as opened:
        assert opened is not None
        yield opened


@pytest.fixture
async def operator(told: Told) -> AsyncIterator[Operator]:
    """The operator of the gateway."""
    async with operating(told[1]) as opened:
        yield opened


async def pay(gateway: StripeGateway, method: str, payment_id: str | None = None) -> Authorised | NeedsAction:
    outcome = await gateway.authorise(
        payment_id=payment_id or ids.random_id(),
        amount=1000,
        currency="KRW",
        payment_method_id=method,
        return_url="https://shop.example/back",
        metadata={},
    )
    assert isinstance(outcome, Authorised | NeedsAction)
    return outcome


def types_of(letters: list[tuple[bytes, str]]) -> list[str]:
    return [json.loads(body)["type"] for body, _ in letters]


async def report(operator: Operator) -> dict[str, Any]:
    async with operator.session.get(f"{operator.base}/simulator/webhooks") as answer:
        told: dict[str, Any] = await answer.json()
        return told


async def test_every_change_is_told_and_signed(gateway: StripeGateway, mailbox: Mailbox) -> None:
    ref = (await pay(gateway, "pm_card_visa")).ref
    await mailbox.about(ref, 1)
    await gateway.capture(ref, amount=1000, key=ids.random_id())
    await mailbox.about(ref, 2)
    await gateway.refund(ref, amount=400, key=ids.random_id())
    letters = await mailbox.about(ref, 3)
    assert types_of(letters) == [
        "payment_intent.amount_capturable_updated",
        "payment_intent.succeeded",
        "refund.created",
    ]
    for body, signature in letters:
        event = gateway.verify(body, signature)
        assert event is not None
        assert event.ref == ref
        assert event.type == json.loads(body)["type"]
        assert event.event_id.startswith("evt_")
        assert gateway.verify(body + b" ", signature) is None


async def test_a_repeated_request_tells_nothing_twice(gateway: StripeGateway, mailbox: Mailbox) -> None:
    payment_id = ids.random_id()
    ref = (await pay(gateway, "pm_card_visa", payment_id)).ref
    await pay(gateway, "pm_card_visa", payment_id)
    await gateway.void(ref, key="void-" + payment_id)
    await gateway.void(ref, key="void-" + payment_id)
    letters = await mailbox.about(ref, 2)
    assert sorted(types_of(letters)) == ["payment_intent.amount_capturable_updated", "payment_intent.canceled"]


@pytest.mark.parametrize(
    ("outcome", "told_type"),
    [("approve", "payment_intent.amount_capturable_updated"), ("fail", "payment_intent.payment_failed")],
)
async def test_what_a_buyer_does_is_told(
    gateway: StripeGateway, mailbox: Mailbox, operator: Operator, outcome: str, told_type: str
) -> None:
    needs = await pay(gateway, "pm_action_required")
    assert isinstance(needs, NeedsAction)
    await mailbox.about(needs.ref, 1)
    await operator.act(needs.url, outcome)
    assert types_of(await mailbox.about(needs.ref, 2)) == ["payment_intent.requires_action", told_type]


@pytest.mark.parametrize(
    ("method", "last"), [("pm_card_pendingRefund", "refund.updated"), ("pm_card_refundFail", "refund.failed")]
)
async def test_what_becomes_of_a_refund_is_told(
    gateway: StripeGateway, mailbox: Mailbox, method: str, last: str
) -> None:
    ref = (await pay(gateway, method)).ref
    await gateway.capture(ref, amount=1000, key=ids.random_id())
    refund = await gateway.refund(ref, amount=1000, key=ids.random_id())
    assert isinstance(refund, RefundedBy)
    body, signature = (await mailbox.about(refund.refund_ref, 2))[-1]
    event = gateway.verify(body, signature)
    assert event is not None
    assert (event.type, event.ref, event.refund_ref) == (last, ref, refund.refund_ref)


async def test_the_same_webhook_may_come_twice(gateway: StripeGateway, mailbox: Mailbox) -> None:
    ref = (await pay(gateway, "pm_webhook_duplicate")).ref
    one, two = await mailbox.about(ref, 2)
    assert one[0] == two[0]
    assert all(gateway.verify(*letter) for letter in (one, two))


async def test_a_webhook_may_come_late(gateway: StripeGateway, mailbox: Mailbox) -> None:
    late = (await pay(gateway, "pm_webhook_late")).ref
    soon = (await pay(gateway, "pm_card_visa")).ref
    await mailbox.about(soon, 1)
    assert not [body for body, _ in mailbox.letters if late.encode() in body]
    assert len(await mailbox.about(late, 1)) == 1


async def test_webhooks_may_come_out_of_order(gateway: StripeGateway, mailbox: Mailbox) -> None:
    ref = (await pay(gateway, "pm_webhook_out_of_order")).ref
    await gateway.capture(ref, amount=1000, key=ids.random_id())
    assert types_of(await mailbox.about(ref, 2)) == [
        "payment_intent.succeeded",
        "payment_intent.amount_capturable_updated",
    ]
    # One that nothing follows comes all the same.
    alone = (await pay(gateway, "pm_webhook_out_of_order")).ref
    assert len(await mailbox.about(alone, 1)) == 1


async def test_a_forged_webhook_is_not_believed_and_not_repeated(
    gateway: StripeGateway, mailbox: Mailbox, operator: Operator
) -> None:
    before = (await report(operator))["given_up"]
    mailbox.refusals = 1
    ref = (await pay(gateway, "pm_webhook_forged")).ref
    [(body, signature)] = await mailbox.about(ref, 1)
    assert gateway.verify(body, signature) is None
    assert json.loads(body)["data"]["object"]["id"] == ref
    async with asyncio.timeout(10):
        while (await report(operator))["given_up"] == before:
            pass


async def test_a_webhook_may_come_before_the_answer(gateway: StripeGateway, mailbox: Mailbox) -> None:
    payment_id = ids.random_id()
    ref = (await pay(gateway, "pm_webhook_first", payment_id)).ref
    assert [body for body, _ in mailbox.letters if ref.encode() in body], "it came before we were answered"


async def test_some_are_never_told(gateway: StripeGateway, mailbox: Mailbox, operator: Operator) -> None:
    ref = (await pay(gateway, "pm_webhook_never")).ref
    soon = (await pay(gateway, "pm_card_visa")).ref
    await mailbox.about(soon, 1)
    assert ref not in str((await report(operator))["last"])


async def test_who_does_not_take_it_is_told_again(gateway: StripeGateway, mailbox: Mailbox, operator: Operator) -> None:
    mailbox.refusals = 2
    ref = (await pay(gateway, "pm_card_visa")).ref
    letters = await mailbox.about(ref, 3)
    assert len({body for body, _ in letters}) == 1
    assert all(gateway.verify(*letter) for letter in letters)
    async with asyncio.timeout(10):
        while True:
            tries = [(told["attempt"], told["status"]) for told in (await report(operator))["last"]
                     if told["payment_intent"] == ref]  # fmt: skip
            if len(tries) == 3:
                break
    assert tries == [(1, 500), (2, 500), (3, 200)]


async def test_who_is_away_is_told_when_they_are_back(told: Told, gateway: StripeGateway) -> None:
    ref = (await pay(gateway, "pm_card_visa")).ref
    async with operating(told[1]) as operator, asyncio.timeout(10):
        while ref not in str((await report(operator))["last"]):
            pass
    async with receiving(told[0]) as mailbox:
        assert len(await mailbox.about(ref, 1)) == 1


def test_the_signature_is_the_one_that_the_official_package_checks() -> None:
    body = '{"name": "é"}'
    header = sign(body.encode(), WEBHOOK_SECRET, 1_700_000_000)
    assert header == WebhookSignature.generate_signature_header(body, WEBHOOK_SECRET, 1_700_000_000)
    with pytest.raises(SignatureVerificationError):
        WebhookSignature.verify_header(body, header, "whsec_other")


async def test_without_an_address_nobody_is_told() -> None:
    with running_gateway() as settings:
        async with operating(settings) as operator, open_gateway(settings) as gateway:
            assert gateway is not None
            await pay(gateway, "pm_card_visa")
            assert await report(operator) == {"waiting": 0, "taken": 0, "repeated": 0, "given_up": 0, "last": []}
