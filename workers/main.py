"""One worker process, from its start to its stop."""

import asyncio
import logging
import os
import secrets
import signal
import socket

import uvloop

from engine.processes import tame_collector
from engine.settings import Settings
from engine.stores.connections import open_stores
from engine.stripe_gateway import open_gateway
from workers import cards, queue
from workers.sales import Shift

logger = logging.getLogger(__name__)


async def run_worker(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT; then finish what was begun and give everything back."""
    async with open_stores(settings) as stores, open_gateway(settings) as gateway:
        desk = await cards.open_desk(stores, gateway)
        worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        stopped = _on_signals()
        logger.info("worker %s begins", worker)
        tasks = [
            asyncio.create_task(Shift(stores, worker, desk).run()),
            asyncio.create_task(queue.run(stores)),
            *([asyncio.create_task(cards.run(stores, desk))] if desk else []),
            asyncio.create_task(stopped.wait()),
        ]
        try:
            # None but the last ends by itself: if one does, its fault ends the process.
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in ended:
            task.result()
        logger.info("worker %s has stopped", worker)


def _on_signals() -> asyncio.Event:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return stopped


def main() -> None:
    """Run a worker with the settings of the environment."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    tame_collector()
    uvloop.run(run_worker(Settings.from_environment(os.environ)))


if __name__ == "__main__":
    main()
