"""Carts: what a buyer means to buy, at today's prices and with what is left today."""

from typing import Annotated

import msgspec
from msgspec import Meta

from api.answers import Answer, Document, answer
from api.callers import USER
from api.operations import Body, Request, Routes
from api.problems import NotSignedIn, Refused
from engine import carts
from engine.carts import QUANTITY_MAX, Cart
from engine.refusals import LimitReached

routes = Routes("Goods")


class Wanted(Body, frozen=True):
    """How many of a variant."""

    quantity: Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]


class ItemDocument(Document, frozen=True):
    """So many of a variant; `available` is what is left, 0 where it is not on sale any more."""

    variant_id: str
    product_id: str
    sale_id: str
    name: str
    size: str | None
    quantity: int
    unit_price: int
    available: int


class CartDocument(Document, frozen=True):
    """A cart in the order it was filled; `amount` is what all of it costs today."""

    items: list[ItemDocument]
    amount: int
    currency: str


@routes.add("GET", "/v1/cart", {200: CartDocument}, caller=USER)
async def find(request: Request) -> Answer:
    """My cart: it holds nothing, and its prices are today's."""
    return _answer(request, await carts.find(request.house.postgres, request.caller_id))


@routes.add("DELETE", "/v1/cart", {200: CartDocument}, caller=USER)
async def empty(request: Request) -> Answer:
    """Empty my cart; harmless to repeat."""
    await carts.empty(request.house.postgres, request.caller_id)
    return _answer(request, Cart(()))


@routes.add("PUT", "/v1/cart/items/{variant_id}", {200: CartDocument}, caller=USER, refusals=(LimitReached,))
async def put_item(request: Request, variant_id: str, body: Wanted) -> Answer:
    """Have so many of a variant in my cart, more than are left if need be; harmless to repeat."""
    put = await carts.put(
        request.house.postgres, user_id=request.caller_id, variant_id=variant_id, quantity=body.quantity
    )
    if put is None:
        raise Refused(NotSignedIn())
    if not isinstance(put, Cart):
        raise Refused(put)
    return _answer(request, put)


@routes.add("DELETE", "/v1/cart/items/{variant_id}", {200: CartDocument}, caller=USER)
async def remove_item(request: Request, variant_id: str) -> Answer:
    """Have nothing of a variant in my cart; harmless to repeat."""
    return _answer(
        request, await carts.remove(request.house.postgres, user_id=request.caller_id, variant_id=variant_id)
    )


def _answer(request: Request, cart: Cart) -> Answer:
    items = [ItemDocument(**msgspec.structs.asdict(line)) for line in cart.lines]
    return answer(CartDocument(items=items, amount=cart.amount, currency=request.house.currency))
