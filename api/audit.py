"""The audit, for operators: every invariant, proved from both stores at this moment."""

import asyncio

from api.answers import Answer, answer
from api.callers import operator
from api.operations import Request, Routes
from api.problems import BUSY, Refused
from engine import accounts, audit
from engine.audit import Report
from engine.refusals import Busy

routes = Routes("Operators")

AUDITED_WITHIN_S = 300.0

# It reads everything there is: one at a time is enough for a process.
_auditing = asyncio.Lock()


@routes.add(
    "GET",
    "/v1/admin/audit",
    {200: Report},
    caller=operator(accounts.AUDIT),
    refusals=(Busy,),
    deadline_s=AUDITED_WITHIN_S,
)
async def find(request: Request) -> Answer:
    """Check every invariant now, but for what only clients know (I2); sales that sell may leave some unknown."""
    if _auditing.locked():
        raise Refused(BUSY)
    async with _auditing:
        return answer(await audit.audit(request.house.stores.redis, request.house.postgres))
