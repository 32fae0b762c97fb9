"""Messages: what an operator tells everybody who waits for a sale; `api/events.py` tells them."""

import logging
from typing import Annotated

from msgspec import Meta

from api.answers import Answer, Document, answer
from api.bodies import whole
from api.callers import operator
from api.clock import Time, rfc3339
from api.operations import Body, Request, Routes
from api.pages import Listed, Page, Place, moment_of, page_of, place_of
from api.problems import Refused
from engine import accounts, messages
from engine.messages import TEXT_MAX, Message
from engine.refusals import IdempotencyKeyReused

logger = logging.getLogger(__name__)

routes = Routes("Sales")

Text = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=TEXT_MAX,
        pattern=whole(r" *[^\x00-\x20\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*"),
        description="One line; spaces around it are left out.",
    ),
]


class NewMessage(Body, frozen=True):
    """What everybody is to be told."""

    text: Text


class MessageDocument(Document, frozen=True):
    """A message to everybody who waits for a sale."""

    message_id: str
    text: str
    at: Time


@routes.add(
    "POST",
    "/v1/admin/sales/{sale_id}/messages",
    {201: MessageDocument},
    caller=operator(accounts.SALES),
    keyed=True,
    refusals=(IdempotencyKeyReused,),
)
async def send(request: Request, sale_id: str, body: NewMessage) -> Answer:
    """Tell everybody who listens to the events of a sale a message; who comes within an hour is told the last one."""
    house = request.house
    sale = await request.sale(sale_id)
    sent = await messages.send(
        house.gate,
        house.postgres,
        sale,
        message_id=request.new_id(),
        text=body.text.strip(" "),
        api_key_id=request.caller_id,
    )
    if not isinstance(sent, Message):
        raise Refused(sent)
    logger.info("sale %s was told by %s: %r", sale_id, request.caller_name, sent.text)
    return answer(_document(sent), 201, repeated=sent.repeated)


@routes.add(
    "GET",
    "/v1/admin/sales/{sale_id}/messages",
    {200: Listed[MessageDocument]},
    caller=operator(accounts.SALES),
)
async def list_sent(request: Request, sale_id: str, query: Page) -> Answer:
    """What those who wait for a sale were told, the newest first."""
    before = moment_of(query.after(Place))
    sale = await request.sale(sale_id)
    found = await messages.list_newest(
        request.house.postgres,
        sale.sale_id,
        limit=query.limit + 1,
        **({"before": before} if before else {}),
    )
    places = [place_of(message.created_at, message.message_id) for message in found]
    return answer(page_of([_document(message) for message in found], places, query))


def _document(message: Message) -> MessageDocument:
    return MessageDocument(message_id=message.message_id, text=message.text, at=rfc3339(message.created_at))
