"""Whether this process lives, whether it can serve, and what it has counted."""

import asyncio
from typing import Literal

from api import metrics
from api.answers import Answer, Document, answer
from api.operations import Request, Routes
from api.problems import BUSY, FAULTS, Refused
from engine.refusals import Busy

routes = Routes("Health")

# A store that takes longer than this to say that it is there cannot carry a sale.
ANSWERS_WITHIN_S = 2.0


class Health(Document, frozen=True):
    """This process, and both stores where they were asked."""

    status: Literal["ok"]


@routes.add("GET", "/health/live", {200: Health})
async def live(_request: Request) -> Answer:
    """Whether this process answers at all."""
    return answer(Health(status="ok"))


@routes.add("GET", "/health/ready", {200: Health}, refusals=(Busy,))
async def ready(request: Request) -> Answer:
    """Whether both stores answer in time."""
    stores = request.house.stores
    try:
        async with asyncio.timeout(ANSWERS_WITHIN_S):
            await asyncio.gather(stores.redis.execute_command("PING"), stores.postgres.execute("SELECT"))
    except FAULTS as fault:
        raise Refused(BUSY) from fault
    return answer(Health(status="ok"))


@routes.add("GET", "/metrics", {200: metrics.MEDIA_TYPE})
async def show_metrics(_request: Request) -> Answer:
    """What was counted, for Prometheus."""
    return Answer(metrics.exposition(), media_type=metrics.MEDIA_TYPE.encode())
