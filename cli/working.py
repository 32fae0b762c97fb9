"""`lastseat worker`: one worker process, after the stores are prepared."""

import asyncio
import logging

import uvloop
from rich.console import Console

from cli.up import show_key
from engine.installation import prepare_database
from engine.processes import tame_collector
from engine.settings import Settings
from engine.stores import embedded
from workers.main import run_worker


def work(settings: Settings, console: Console) -> None:
    """Work until SIGTERM or SIGINT; what was begun is finished."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with embedded.provide(settings) as known:
        show_key(asyncio.run(prepare_database(known)), console)
        tame_collector()
        uvloop.run(run_worker(known))
