"""`lastseat gateway`: a card gateway of its own, reached with what it prints or with what the settings name."""

import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import msgspec
import pytest

from cli import gatewaying, processes
from engine import ids
from engine.gateway import Authorised
from engine.settings import Settings
from engine.stripe_gateway import open_gateway
from tests.cli.program import PROGRAM, environment, lastseat
from tests.gateways import receiving


@contextmanager
def serving(settings: Mapping[str, str], *arguments: str) -> Iterator[str]:
    """Run the verb, and answer what it prints; it ends with SIGTERM."""
    process = subprocess.Popen(
        [PROGRAM, "gateway", *arguments], env=environment(settings), stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    lines = 1 if "LASTSEAT_STRIPE_API_KEY" in settings else 5
    said = "".join(process.stdout.readline() for _ in range(lines))
    try:
        [port] = re.findall(r"Gateway  \S+:(\d+) ", said)
        deadline = time.monotonic() + 20
        while processes.is_free("127.0.0.1", int(port)):
            assert time.monotonic() < deadline, "nobody listens"
            with suppress(subprocess.TimeoutExpired):  # its end is all that it tells; it listens sooner
                pytest.fail(f"the gateway ended with {process.wait(0.02)}")
        yield said
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        process.stdout.close()


async def pay(settings: Settings) -> str:
    async with open_gateway(settings) as gateway:
        assert gateway is not None
        outcome = await gateway.authorise(
            payment_id=ids.random_id(),
            amount=1000,
            currency=settings.currency,
            payment_method_id="pm_card_visa",
            return_url=None,
            metadata={},
        )
    assert isinstance(outcome, Authorised)
    return outcome.ref


async def test_what_it_prints_is_what_an_api_needs() -> None:
    port = processes.free_port("127.0.0.1")
    with serving({}, "--port", str(port)) as said:
        settings = Settings.from_environment(dict(re.findall(r"^  (LASTSEAT_\w+)=(\S+)$", said, re.MULTILINE)))
        assert settings.stripe_api_base == f"http://127.0.0.1:{port}"
        assert not settings.has_real_gateway
        await pay(settings)


async def test_it_serves_what_the_settings_name_and_tells_their_api() -> None:
    known = gatewaying.simulated(Settings(port=processes.free_port("127.0.0.1")))
    assert gatewaying.simulated(known) is known
    assert not known.has_real_gateway
    async with receiving(known.port) as mailbox, open_gateway(known) as gateway:
        with serving(known.to_environment()) as said:
            ref = await pay(known)
            [(body, signature)] = await mailbox.about(ref, 1)
        assert gateway is not None
        assert gateway.verify(body, signature) is not None
    for secret in (known.stripe_api_key, known.stripe_webhook_secret):
        assert str(secret) not in said


def test_two_installations_share_no_secret() -> None:
    one, other = gatewaying.simulated(Settings()), gatewaying.simulated(Settings())
    assert one.stripe_api_key != other.stripe_api_key
    assert one.stripe_webhook_secret != other.stripe_webhook_secret
    real = Settings(stripe_api_key="sk_test_of_a_shop")
    assert gatewaying.simulated(real) is real
    assert (
        msgspec.structs.replace(one, stripe_api_key=None, stripe_api_base=None, stripe_webhook_secret=None)
        == Settings()
    )


def test_a_shop_of_any_currency_has_one_to_try() -> None:
    assert gatewaying.simulated(Settings(currency="ISK")).stripe_api_key is not None


def test_a_key_of_a_real_gateway_is_not_served() -> None:
    said = lastseat("gateway", settings={"LASTSEAT_STRIPE_API_KEY": "sk_test_of_a_shop"})
    assert said.returncode == 1
    assert "a simulated gateway's key begins with sk_test_simulated" in said.stderr
    assert "of_a_shop" not in said.stdout + said.stderr


def test_a_taken_port_is_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = lastseat("gateway", "--port", str(port))
    assert (said.returncode, said.stderr.count("\n")) == (1, 1), said.stderr
    assert f"Port {port} of 127.0.0.1 is taken." in said.stderr
