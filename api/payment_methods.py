"""Cards as requests name them and answers speak of them, wherever one may pay."""

from typing import Annotated, Literal

from msgspec import Meta

from api.answers import Document
from api.bodies import whole
from api.operations import Body
from engine.gateway import PAYMENT_METHOD_PATTERN

# How long a client may wait before it asks how a payment went that was not durable in time.
ASK_AGAIN_S = 1
# A card's gateway has a deadline of its own, and what it says must still be written down.
CARD_DEADLINE_S = 30.0

ReturnUrl = Annotated[
    str,
    Meta(
        max_length=2000,
        pattern=whole(r"https?://[^\x00-\x20\x7f]+"),
        description="Where the buyer comes back to after their bank has asked them something.",
    ),
]


class Card(Body, frozen=True):
    """A card as its gateway knows it; its number has no place here."""

    payment_method_id: Annotated[str, Meta(max_length=128, pattern=PAYMENT_METHOD_PATTERN)]


class Action(Document, frozen=True):
    """What the buyer must do before the card pays: go to this address."""

    type: Literal["REDIRECT"]
    url: str
