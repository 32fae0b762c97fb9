"""`lastseat`: every verb of the command line; what each of them does lives in the module it calls."""

import asyncio
import os
import re
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, get_args

import asyncpg
import click
import msgspec
from redis.exceptions import RedisError
from rich.console import Console

from cli import lifeline, processes
from cli.processes import METRICS_FOLDER, ProcessFault
from engine.accounts import SCOPES
from engine.balances import AMOUNT_MAX
from engine.installation import CurrencyChanged, TimeZoneRefused
from engine.messages import TEXT_MAX
from engine.payments import State
from engine.processes import take_turns
from engine.resolutions import Word
from engine.sales import PEOPLE_MAX, QUEUE_NO_MAX, SECONDS_MAX, RoomState
from engine.seat_blocks import SEATS_MAX
from engine.settings import Settings, SettingsFault
from engine.stores.connections import StoreUnavailable, UnsafeStore
from engine.stores.embedded import EmbeddedFault
from engine.stores.migrations import MigrationFault
from loadtests.client import NoAnswer
from loadtests.history import HistoryFault

FAULTS = (
    SettingsFault,
    EmbeddedFault,
    UnsafeStore,
    StoreUnavailable,
    MigrationFault,
    CurrencyChanged,
    TimeZoneRefused,
    ProcessFault,
    HistoryFault,
    NoAnswer,
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
        lifeline.stop_as_by_ctrl_c()
        try:
            return super().invoke(context)
        except FAULTS as fault:
            raise click.ClickException(_line(fault)) from fault
        except KeyboardInterrupt:
            sys.exit(130)


class Unproved(click.ClickException):
    """An audit that came to no verdict; 1 would say that an invariant is broken."""

    exit_code = 2


def _line(fault: BaseException) -> str:
    return str(fault) or type(fault).__name__


class Id(click.ParamType[str]):
    """The id of something: 32 hex digits."""

    def __init__(self, what: str) -> None:
        self.name = what

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        """Take an id as it is written everywhere."""
        if not re.fullmatch("[0-9a-f]{32}", value):
            self.fail(f"{value!r} is no {self.name}: its id has 32 hex digits.", parameter, context)
        return str(value)


def _text(*, most: int) -> Callable[[click.Context, click.Parameter, str], str]:
    """Check a text as the API does: something, at most so long, and on one line."""

    def check(context: click.Context, parameter: click.Parameter, value: str) -> str:
        if not (value.strip() and len(value) <= most and value.isprintable()):
            raise click.BadParameter(f"Expected 1 to {most} printable characters.", context, parameter)
        return value

    return check


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lastseat", prog_name="lastseat")
def main() -> None:
    """The last seat is sold once: a queue and reservation engine.

    Every setting is a variable of the environment: see docs/operations.md.
    """


def _settings() -> Settings:
    settings = Settings.from_environment(os.environ)
    if settings.take_turns:
        take_turns()  # before anything is started, stores too: children inherit it
    return settings


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
    if not processes.is_free(settings.host, settings.port, shared=True):
        raise processes.port_taken(settings)
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
    "--settle", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Seconds to wait for rest."
)
@click.option("--repair", is_flag=True, help="Make counters and Redis what the rows of Postgres say, then prove again.")
def audit(*, as_json: bool, history: Path | None, settle: float, repair: bool) -> None:
    """Prove the invariants. Exit status 0: all true, 1: one is broken, 2: one could not be proved."""
    from cli import auditing  # noqa: PLC0415

    told = Console(stderr=True) if as_json else _console()
    repairs = partial(auditing.show_repaired, console=told) if repair else None
    try:
        report = asyncio.run(
            auditing.audit_installation(_settings(), history=history, settle_s=settle, repairs=repairs)
        )
    except FAULTS as fault:
        raise Unproved(_line(fault)) from fault
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


# The operator's verbs -------------------------------------------------------------------------------------------------

_SALE, _PAYMENT, _USER, _KEY = (Id(what) for what in ("sale", "payment", "user", "key"))
_PEOPLE = click.IntRange(1, PEOPLE_MAX)
_SECONDS = click.IntRange(1, SECONDS_MAX)

_as_json = click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
_limit = click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many at most.")


def _tell(told: Any, *, as_json: bool) -> None:
    from cli import operating  # noqa: PLC0415

    if as_json:
        click.echo(msgspec.json.encode(told))
    else:
        operating.show(told, _console())


@main.command()
@_limit
@_as_json
def sales(*, limit: int, as_json: bool) -> None:
    """List the sales, the newest first, with what is left of each."""
    from cli import operating  # noqa: PLC0415

    _tell(asyncio.run(operating.list_sales(_settings(), limit=limit)), as_json=as_json)


@main.command()
@click.argument("sale", type=_SALE)
@click.option("--state", "room", type=click.Choice(get_args(RoomState)), help="Open, pause, drain or close it …")
@click.option("--active-max", type=_PEOPLE, help="How many people may be inside.")
@click.option("--admitted-per-minute-max", type=_PEOPLE, help="How many may come in within any 60 seconds.")
@click.option("--entry-s", type=_SECONDS, help="How long somebody who was called may take to come.")
@click.option("--session-s", type=_SECONDS, help="How long somebody may stay inside without buying.")
@click.option("--recall-s", type=_SECONDS, help="How long somebody who did not come keeps priority.")
@click.option("--draining-no", type=click.IntRange(0, QUEUE_NO_MAX), help="The last number a draining room lets in.")
@_as_json
def room(sale: str, *, as_json: bool, **changes: str | int | None) -> None:
    """Show the waiting room of a SALE, or set what is named of it; nobody loses their place."""
    from cli import operating  # noqa: PLC0415

    named = {name: value for name, value in changes.items() if value is not None}
    _tell(asyncio.run(operating.set_room(_settings(), sale, named)), as_json=as_json)


_seats = click.argument("seats", nargs=-1)
_section = click.option("--section", help="All numbered seats of a section, in place of SEATS.")


def _change_seats(sale: str, seats: tuple[str, ...], section: str | None, *, blocked: bool, as_json: bool) -> None:
    from cli import operating  # noqa: PLC0415

    if bool(seats) == bool(section):
        raise click.UsageError("Expected either SEATS or --section.")
    if len(seats) > SEATS_MAX:
        raise click.UsageError(f"Expected at most {SEATS_MAX} seats.")
    changing = operating.block(_settings(), sale, seat_nos=seats, section=section, blocked=blocked)
    _tell(asyncio.run(changing), as_json=as_json)


@main.command()
@click.argument("sale", type=_SALE)
@_seats
@_section
@_as_json
def block(sale: str, seats: tuple[str, ...], *, section: str | None, as_json: bool) -> None:
    """Take SEATS off a SALE that runs, all of them or none: free ones, by their numbers."""
    _change_seats(sale, seats, section, blocked=True, as_json=as_json)


@main.command()
@click.argument("sale", type=_SALE)
@_seats
@_section
@_as_json
def unblock(sale: str, seats: tuple[str, ...], *, section: str | None, as_json: bool) -> None:
    """Put SEATS on a SALE again that were blocked."""
    _change_seats(sale, seats, section, blocked=False, as_json=as_json)


@main.command()
@click.argument("sale", type=_SALE)
@click.argument("text", callback=_text(most=TEXT_MAX))
@click.option("--key", help="Sends it once, however often the same key is given.")
@_as_json
def message(sale: str, text: str, *, key: str | None, as_json: bool) -> None:
    """Tell everybody who listens to a SALE a TEXT; who comes within an hour is told the last one."""
    from cli import operating  # noqa: PLC0415

    _tell(asyncio.run(operating.send_message(_settings(), sale, text=text, key=key)), as_json=as_json)


@main.command()
@click.option(
    "--state", type=click.Choice(get_args(State)), default="IN_DOUBT", show_default=True, help="Their inner state."
)
@_limit
@_as_json
def payments(*, state: str, limit: int, as_json: bool) -> None:
    """List payments in one inner state, the newest first: those in doubt wait for somebody to decide them."""
    from cli import operating  # noqa: PLC0415

    _tell(asyncio.run(operating.list_payments(_settings(), state=state, limit=limit)), as_json=as_json)


@main.command()
@click.argument("payment", type=_PAYMENT)
@click.argument("word", type=click.Choice(get_args(Word)))
@click.option("--note", required=True, callback=_text(most=1000), help="Why; it is kept.")
@_as_json
def resolve(payment: str, word: Word, *, note: str, as_json: bool) -> None:
    """Decide a PAYMENT in doubt, for good: what waits for it is done, or it is voided and its seats are given back."""
    from cli import operating  # noqa: PLC0415

    _tell(asyncio.run(operating.resolve(_settings(), payment, word=word, note=note)), as_json=as_json)


@main.command()
@click.argument("user", type=_USER)
@click.argument("amount", type=click.IntRange(1, AMOUNT_MAX))
@click.option("--reason", required=True, callback=_text(most=200), help="Why; the user reads it in their history.")
@click.option("--key", help="Adds it once, however often the same key is given.")
@_as_json
def credit(user: str, amount: int, *, reason: str, key: str | None, as_json: bool) -> None:
    """Add an AMOUNT, in the smallest unit of the currency, to the balance of a USER."""
    from cli import operating  # noqa: PLC0415

    credited = operating.credit(_settings(), user, amount=amount, reason=reason, key=key)
    _tell(asyncio.run(credited), as_json=as_json)


@main.command()
@_as_json
def keys(*, as_json: bool) -> None:
    """List the operators' keys, the newest first, without what opens them."""
    from cli import operating  # noqa: PLC0415

    _tell(asyncio.run(operating.list_keys(_settings())), as_json=as_json)


@main.command()
@click.argument("name", callback=_text(most=100))
@click.option(
    "--scope", "scopes", type=click.Choice(SCOPES), multiple=True, help="What it may do; everything, unless given."
)
@_as_json
def key(name: str, *, scopes: tuple[str, ...], as_json: bool) -> None:
    """Make an operator's key with this NAME, and show it: it cannot be read again."""
    from cli import operating  # noqa: PLC0415

    _tell(asyncio.run(operating.make_key(_settings(), name, scopes)), as_json=as_json)


@main.command()
@click.argument("key_id", type=_KEY)
@_as_json
def revoke(key_id: str, *, as_json: bool) -> None:
    """End an operator's key at once, by its KEY_ID."""
    from cli import operating  # noqa: PLC0415

    _tell(asyncio.run(operating.revoke_key(_settings(), key_id)), as_json=as_json)


@main.group()
def statistics() -> None:
    """Look after what is counted of the goods that are sold."""


_DAY = click.DateTime(formats=["%Y-%m-%d"])


@statistics.command()
@click.argument("first", metavar="FROM", type=_DAY)
@click.argument("last", metavar="TO", type=_DAY)
@_as_json
def recompute(*, first: datetime, last: datetime, as_json: bool) -> None:
    """Count the days FROM to TO anew from orders and refunds.

    Exit status 0: each was right and stays untouched, 3: some were not, are named, and are right now.
    """
    from cli import recounting  # noqa: PLC0415

    if first > last:
        raise click.UsageError("Expected FROM before TO, or the same day.")
    found = asyncio.run(recounting.recompute(_settings(), first.date(), last.date()))
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        recounting.show(found, _console())
    sys.exit(3 if found else 0)


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
