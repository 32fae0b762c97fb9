"""`lastseat up`: stores, API and worker of one installation on this machine, in the foreground."""

import asyncio
import time

from rich.console import Console

from cli import gatewaying, processes
from cli.processes import Part
from engine.installation import prepare_database
from engine.settings import Settings
from engine.stores import embedded

VERBS = ["worker", "api"]
GATEWAY = "gateway"
"""The verb of the simulated card gateway, for an installation that names no other."""
LOOK_EVERY_S = 0.5


def up(settings: Settings, console: Console) -> None:
    """Run everything until Ctrl-C, SIGTERM, or the end of one of the processes."""
    try:
        _run(settings, console)
    except KeyboardInterrupt:
        console.print("Stopped.")


def _run(settings: Settings, console: Console) -> None:
    with processes.keeping(settings.host, settings.port, within_s=processes.PORT_FREE_WITHIN_S) as kept:
        if not kept:
            raise processes.port_taken(settings)
        _serve(settings, console)


def _serve(settings: Settings, console: Console) -> None:
    verbs = VERBS if settings.stripe_api_key else [GATEWAY, *VERBS]
    with embedded.provide(gatewaying.simulated(settings)) as known:
        show_key(asyncio.run(prepare_database(known)), console)
        with processes.running(verbs, known) as children:
            parts: list[Part] = [*children, *embedded.provided(settings)]
            processes.wait_until_ready(parts, known)
            address = address_of(known)
            console.print(f"API    {address}", highlight=False)
            console.print(f"Docs   {address}/docs", highlight=False)
            if GATEWAY in verbs:
                console.print("Cards  a simulated gateway: no money moves", highlight=False)
            console.print("Ctrl-C stops it.")
            while True:
                time.sleep(LOOK_EVERY_S)
                processes.raise_if_ended(parts)


def address_of(settings: Settings) -> str:
    """Where a browser on this machine finds the API."""
    host = processes.reachable(settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def show_key(key: str | None, console: Console) -> None:
    """Show an admin key that was just made."""
    if key is not None:
        console.print(f"Admin key, shown this once: {key}", highlight=False, soft_wrap=True)
