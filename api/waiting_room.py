"""The line of a sale: join it, ask for one's place, enter, leave; and what everybody may know of it."""

from api.operations import Header, Request, Routes
from api.problems import Refused, not_admitted
from engine.sales import Sale

routes = Routes("The line")

QUEUE_TOKEN = Header("Queue-Token", "The token of one's place in line, from `POST …/queue/tokens`.")


async def place_in_line(request: Request, sale: Sale) -> int:
    """The queue number that came along, 0 without one; raises Refused for a token that is not this caller's here."""
    presented = request.headers.get(b"queue-token")
    if presented is None:
        return 0
    token = request.house.queue_tokens.verify(presented.decode("latin-1"))
    if token is None or token.sale_id != sale.sale_id or token.owner != request.caller_id:
        raise Refused(not_admitted(sale.sale_id))
    return token.queue_no
