"""`lastseat`: every verb of the command line; what each of them does lives in the module it calls."""

import asyncio
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import click
import msgspec
from redis.exceptions import RedisError
from rich.console import Console

from cli import lifeline
from cli.processes import METRICS_FOLDER, ProcessFault
from engine.installation import CurrencyChanged
from engine.settings import Settings, SettingsFault
from engine.stores.connections import StoreUnavailable, UnsafeStore
from engine.stores.embedded import EmbeddedFault
from engine.stores.migrations import MigrationFault

FAULTS = (
    SettingsFault,
    EmbeddedFault,
    UnsafeStore,
    StoreUnavailable,
    MigrationFault,
    CurrencyChanged,
    ProcessFault,
    RedisError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    OSError,
)
"""What is answered in a line and not in a stack: somebody else can do something about it."""

LOG_WIDTH = 120


class Verbs(click.Group):
    """The verbs in the order in which they are told, with faults in a line."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Name the verbs, those a newcomer needs first."""
        return list(self.commands)

    def invoke(self, context: click.Context) -> Any:
        """Run a verb."""
        try:
            return super().invoke(context)
        except FAULTS as fault:
            raise click.ClickException(str(fault) or type(fault).__name__) from fault
        except KeyboardInterrupt:
            sys.exit(130)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lastseat", prog_name="lastseat")
def main() -> None:
    """The last seat is sold once: a queue and reservation engine.

    Every setting is a variable of the environment: see docs/operations.md.
    """


def _settings() -> Settings:
    return Settings.from_environment(os.environ)


def _console() -> Console:
    # Where nobody looks on, a line is as long as a log's.
    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)


@main.command()
def up() -> None:
    """Run everything here: stores, API and worker, until Ctrl-C."""
    from cli import up as running_here  # noqa: PLC0415 - each verb loads what it needs

    running_here.up(_settings(), _console())


@main.command()
@click.option("--once", is_flag=True, help="Stop after the audit; the exit status says whether all held.")
@click.option(
    "--buyers", type=click.IntRange(1, 100_000), default=2400, show_default=True, help="How many people come."
)
@click.option("--seed", type=int, default=None, help="Of the crowd's dice; a random one unless given.")
def demo(*, once: bool, buyers: int, seed: int | None) -> None:
    """Sell out a concert to a crowd that comes all at once, then prove that nothing went wrong."""
    from cli import demo as demonstration  # noqa: PLC0415

    console = _console()
    stays = console.is_terminal and not once
    held = demonstration.demo(_settings(), console, stays=stays, buyers=buyers, seed=seed)
    sys.exit(0 if held else 1)


_follow = click.option("--follow", type=int, hidden=True, help="The process whose end is also ours.")


@main.command()
@_follow
def api(follow: int | None) -> None:
    """Serve the API."""
    settings = _settings()
    if follow:
        lifeline.follow(follow)
    with tempfile.TemporaryDirectory(prefix="lastseat-metrics-") as counted:
        # The library of metrics looks once, when it is imported, whether several processes count together.
        os.environ.setdefault(METRICS_FOLDER, counted)
        from api import server  # noqa: PLC0415

        server.serve(settings)


@main.command()
@_follow
def worker(follow: int | None) -> None:
    """Do the work behind the API: bring sales to Postgres, admit, expire, reconcile."""
    from cli import working  # noqa: PLC0415

    if follow:
        lifeline.follow(follow)
    working.work(_settings(), _console())


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Where it listens; where the settings say, unless given.")
@_follow
def gateway(port: int | None, follow: int | None) -> None:
    """Serve a card gateway that moves no money, for demonstrations and tests."""
    from cli import gatewaying  # noqa: PLC0415

    if follow:
        lifeline.follow(follow)
    gatewaying.serve(_settings(), _console(), port=port)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.option(
    "--history",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What clients heard; the demo's own, if there is one, unless given.",
)
@click.option(
    "--settle", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Seconds to wait for rest."
)
@click.option("--repair", is_flag=True, help="Make counters and Redis what the rows of Postgres say, then prove again.")
def audit(*, as_json: bool, history: Path | None, settle: float, repair: bool) -> None:
    """Prove the invariants. Exit status 0: all true, 1: one is broken, 2: one could not be proved."""
    from cli import auditing  # noqa: PLC0415

    settings = _settings()
    told = Console(stderr=True) if as_json else _console()
    repairs = partial(auditing.show_repaired, console=told) if repair else None
    report = asyncio.run(auditing.audit_installation(settings, history=history, settle_s=settle, repairs=repairs))
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        auditing.show(report, _console())
    sys.exit({"true": 0, "false": 1, "unknown": 2}[report.verdict])


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
def doctor(*, as_json: bool) -> None:
    """Look for what an operator should change, and say the line. Exit status 1 where no sale may be made before."""
    from cli import doctor as examining  # noqa: PLC0415

    examination = asyncio.run(examining.examine(_settings()))
    if as_json:
        click.echo(msgspec.json.encode(examination))
    else:
        examining.show(examination, _console())
    sys.exit(0 if examination.well else 1)


@main.command()
@click.argument("sale")
def rebuild(sale: str) -> None:
    """Write the copy of a SALE in Redis anew from Postgres; meanwhile it sells nothing."""
    from cli import rebuilding  # noqa: PLC0415

    epoch = asyncio.run(rebuilding.rebuild(_settings(), sale))
    click.echo(f"Sale {sale} is open in epoch {epoch}.")


@main.command()
def openapi() -> None:
    """Print the OpenAPI document of the API."""
    from importlib.metadata import version  # noqa: PLC0415

    from api import app  # noqa: PLC0415
    from api import openapi as describing  # noqa: PLC0415

    described = describing.document_of(app.operations(), version=version("lastseat"))
    click.echo(msgspec.json.format(msgspec.json.encode(described)))


if __name__ == "__main__":
    main()
