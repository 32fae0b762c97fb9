"""What is said of gateways in general."""

import re

import pytest

from engine import gateway
from engine.stripe_gateway import StripeGateway


@pytest.mark.parametrize("payment_method_id", ["pm_card_visa", "pm_1PqR5tUvWxYz", "card_1a", "src_1A2b3C"])
def test_the_id_of_a_payment_method_may_be_kept(payment_method_id: str) -> None:
    assert re.search(gateway.PAYMENT_METHOD_PATTERN, payment_method_id)


@pytest.mark.parametrize(
    "text",
    ["4242424242424242", "4242 4242 4242 4242", "pm_4242-4242", "pm_", "", "tok_visa", "pm_1a\n", "pm_" + "a" * 121],
)
def test_what_may_be_a_card_number_is_no_payment_method(text: str) -> None:
    assert not re.search(gateway.PAYMENT_METHOD_PATTERN, text)


def test_stripe_is_a_gateway() -> None:
    kind: type[gateway.Gateway] = StripeGateway
    asked = {name for name in vars(gateway.Gateway) if not name.startswith("_")}
    assert asked <= set(vars(kind))


def test_both_faults_are_caught_as_one() -> None:
    assert issubclass(gateway.GatewayUnknown, gateway.GatewayFault)
    assert issubclass(gateway.GatewayUnavailable, gateway.GatewayFault)
    assert not issubclass(gateway.GatewayUnavailable, gateway.GatewayUnknown)
