"""`lastseat gateway`: the simulated card gateway, for demonstrations and tests; no money moves there."""

import secrets
from urllib.parse import urlsplit

import msgspec
from rich.console import Console

from cli import processes
from engine.settings import SIMULATED_KEY, Settings, SettingsFault, variable
from simulator.server import Config
from simulator.server import serve as serve_forever

PORT = 8420
SIMULATED_SECRET = "whsec_simulated"  # noqa: S105 - it signs what the simulated gateway says, and no money moves there
WEBHOOKS = "/v1/webhooks/stripe"


def simulated(settings: Settings) -> Settings:
    """These settings with a simulated gateway on a free port, unless they name a gateway.

    Whoever runs the API with them runs the verb `gateway` with them, too.
    """
    if settings.stripe_api_key is not None:
        return settings
    return msgspec.structs.replace(
        settings,
        stripe_api_key=f"{SIMULATED_KEY}_{secrets.token_hex(12)}",
        stripe_api_base=f"http://127.0.0.1:{processes.free_port('127.0.0.1')}",
        stripe_webhook_secret=f"whsec_{secrets.token_hex(12)}",
    )


def serve(settings: Settings, console: Console, *, port: int | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C, at the address that the settings name, and tell their API of every change."""
    if settings.has_real_gateway:
        raise SettingsFault(f"{variable('stripe_api_key')}: a simulated gateway's key begins with {SIMULATED_KEY}.")
    named = urlsplit(settings.stripe_api_base or f"http://127.0.0.1:{PORT}")
    host, listens_on = named.hostname or "127.0.0.1", port or named.port or PORT
    if not processes.wait_until_free(host, listens_on):
        raise SettingsFault(f"Port {listens_on} of {host} is taken. Name another one: lastseat gateway --port …")
    config = Config(
        host=host,
        port=listens_on,
        api_key=settings.stripe_api_key or SIMULATED_KEY,
        webhook_secret=settings.stripe_webhook_secret or SIMULATED_SECRET,
        webhook_url=f"{_address(settings.host, settings.port)}{WEBHOOKS}",
    )
    console.print(f"Gateway  {_address(host, listens_on)} (simulated: no money moves)", highlight=False)
    if settings.stripe_api_key is None:
        console.print("An API that is to use it needs:", highlight=False)
        for field, value in (
            ("stripe_api_key", SIMULATED_KEY),
            ("stripe_api_base", _address(host, listens_on)),
            ("stripe_webhook_secret", SIMULATED_SECRET),
        ):
            console.print(f"  {variable(field)}={value}", highlight=False)
    serve_forever(config)


def _address(host: str, port: int) -> str:
    host = processes.reachable(host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
