"""Two rushes beside a concert: a drop of goods with a line of its own, and coupons for whoever comes first.

Buyers of goods wait for their turn, order, and pay with the coupon that they got, if they did. Everything that somebody
heard as true goes into the history.
"""

import asyncio
import random
import secrets
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import msgspec

from loadtests.client import Client
from loadtests.crowd import ATTEMPTS_MAX, LATE, Buyer, Crowd, Gone, Habit, Payment, Person, word_of
from loadtests.history import Heard, History

SHOPPERS: Mapping[Habit, float] = {Habit.BUYS: 0.88, Habit.LEAVES: 0.04, Habit.VANISHES: 0.03, Habit.DROPS: 0.05}
"""Which share of a crowd at a drop has which habit; who drops an order gives it back."""

TRIES_MAX = 20
BOUGHT, ISSUED, GONE = "bought", "got a coupon", "found all coupons gone"


class Order(msgspec.Struct):
    """An order."""

    order_id: str


class Issue(msgspec.Struct):
    """A coupon of one's own."""

    user_coupon_id: str


class Drop(Crowd):
    """A crowd at a drop of one variant; `coupons` are what they have, by user."""

    def __init__(
        self,
        client: Client,
        *,
        sale_id: str,
        variant_id: str,
        units: int,
        people: Sequence[Person],
        history: History | None = None,
        coupons: Mapping[str, str] | None = None,
        seed: int = 0,
        **more: Any,
    ) -> None:
        super().__init__(client, sale_id=sale_id, schedule_id="", people=people, history=history, seed=seed, **more)
        self.variant_id = variant_id
        self.units = units
        self.coupons = {} if coupons is None else coupons

    def _send(self, person: Person, dice: random.Random) -> Coroutine[Any, Any, None]:
        return Shopper(self, person, dice).visit()

    async def _read_board(self) -> None:
        """There is none: whoever pays the last unit tells them all."""


class Shopper(Buyer):
    """Somebody who wants a unit or two of what is dropped."""

    crowd: Drop

    async def visit(self) -> None:
        """Go from the street to the unit; always ends with Gone, or with NoAnswer when nobody answers any more."""
        await asyncio.sleep(self.dice.random() ** 2 * self.crowd.arrive_within_s)
        token = await self._join()
        self.tally.stages["joined"] += 1
        await self._wait(token)
        self.tally.stages["admitted"] += 1
        for _ in range(TRIES_MAX):
            if self.crowd.sold_out.is_set():
                await self._leave(LATE)
            await self._think(1.0)
            quantity = min(self.person.wish, 2)
            order = await self._order(quantity)
            if order is not None:
                await self._pay_for(order, quantity)
            await self._think(2.0)  # all of it is in others' hands at the moment; some of it may come back
        await self._leave(LATE)

    async def _order(self, quantity: int) -> Order | None:
        headers = {**self._visitor, **self._user, "queue-token": self.token}
        body = {"lines": [{"variant_id": self.crowd.variant_id, "quantity": quantity}]}
        answer = await self._write("order", "POST", "/v1/orders", headers, body)
        if answer.status == 201:
            self.tally.stages["ordered"] += 1
            return msgspec.json.decode(answer.body, type=Order)
        word = word_of(answer)
        if word == "sold_out":
            return None
        raise Gone("lost the place" if word == "not_admitted" else f"refused: {word}")

    async def _pay_for(self, order: Order, quantity: int) -> None:
        path = f"/v1/orders/{order.order_id}"
        if self.person.habit is Habit.DROPS:
            await self._ask("give back", "DELETE", path, self._user)
            await self._leave("gave it back")
        coupon = self.crowd.coupons.get(self.person.user_id)
        key, answer = await self._pay(path, {"method": "BALANCE", **({"user_coupon_id": coupon} if coupon else {})})
        if answer.status not in (200, 201):
            raise Gone("payment unknown" if answer.status == 202 else f"refused: {word_of(answer)}")
        payment = msgspec.json.decode(answer.body, type=Payment)
        if payment.status != "SUCCESS":
            raise Gone(f"refused: {payment.reason}")
        self.tally.stages["sold"] += quantity
        self.tally.stages["with a coupon"] += coupon is not None
        if self.tally.stages["sold"] >= self.crowd.units:
            self.crowd.sold_out.set()
        if self.crowd.history is not None:
            self.crowd.history.record(
                Heard(
                    event="confirmed",
                    sale_id=self.crowd.sale_id,
                    user_id=self.person.user_id,
                    key=key,
                    reservation_id="",
                    seats=(),
                    amount=payment.final_amount,
                    payment_id=payment.payment_id,
                    order_id=order.order_id,
                    lines=(f"{self.crowd.variant_id}:{quantity}",),
                )
            )
        raise Gone(BOUGHT)


class Coupons(Crowd):
    """A crowd that wants a coupon each, of a source that has fewer."""

    def __init__(
        self,
        client: Client,
        *,
        coupon_id: str,
        people: Sequence[Person],
        history: History | None = None,
        seed: int = 0,
        **more: Any,
    ) -> None:
        super().__init__(client, sale_id=coupon_id, schedule_id="", people=people, history=history, seed=seed, **more)
        self.issued: dict[str, str] = {}
        """What was issued, by user."""

    def _send(self, person: Person, dice: random.Random) -> Coroutine[Any, Any, None]:
        return Hunter(self, person, dice).visit()

    async def _read_board(self) -> None:
        """There is none: whoever comes asks."""


class Hunter(Buyer):
    """Somebody who wants a coupon."""

    crowd: Coupons

    async def visit(self) -> None:
        """Ask until it is issued or gone; always ends with Gone, or with NoAnswer when nobody answers any more."""
        await asyncio.sleep(self.dice.random() ** 2 * self.crowd.arrive_within_s)
        path = f"/v1/coupons/{self.crowd.sale_id}/issues"
        key = secrets.token_hex(8)
        answer = await self._write("issue", "POST", path, self._user, {}, key=key)
        for _ in range(ATTEMPTS_MAX):
            if answer.status != 202:
                break
            await self._think(1.0)
            answer = await self._write("issue", "POST", path, self._user, {}, key=key)
        if answer.status not in (200, 201):
            word = word_of(answer)
            raise Gone(
                GONE if word == "coupons_gone" else "issue unknown" if answer.status == 202 else f"refused: {word}"
            )
        issue = msgspec.json.decode(answer.body, type=Issue)
        self.crowd.issued[self.person.user_id] = issue.user_coupon_id
        self.tally.stages["issued"] += 1
        if self.crowd.history is not None:
            self.crowd.history.record(
                Heard(
                    event="issued",
                    sale_id=self.crowd.sale_id,
                    user_id=self.person.user_id,
                    key=key,
                    reservation_id="",
                    seats=(),
                    amount=0,
                    user_coupon_id=issue.user_coupon_id,
                )
            )
        raise Gone(ISSUED)


def told(crowd: Crowd, step: str) -> str:
    """How long a step took, as people are told."""
    return f"{step} p50/p99 {crowd.tally.percentile(step, 0.5):.0f}/{crowd.tally.percentile(step, 0.99):.0f} ms"


def refused(crowd: Crowd) -> str:
    """What was refused and how often, the most frequent first."""
    counts = [f"{word} {count:,}" for (_step, word), count in crowd.tally.refusals.most_common()]
    return f"refused: {', '.join(counts) or 'nothing'}"
