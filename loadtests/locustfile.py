"""Locust buyers: the on-sale rush, a coupon rush, a drop rush, and the same crowd at shops that read before they write.

Run by `loadtests.rush`, which writes the plan that this reads: who the buyers are, what they want, and where to note
what they heard. Each buyer goes once, from the line to the ticket.
"""

import itertools
import json
import os
import random
import uuid
from pathlib import Path
from typing import Any

from gevent import sleep, spawn_later
from locust import FastHttpUser, task
from locust.exception import StopUser

PLAN: dict[str, Any] = json.loads(Path(os.environ["LASTSEAT_LOAD_PLAN"]).read_text())
ATTEMPTS_MAX = 8
POLLS_MAX = 200
GIVEN_BACK_SHARE = 0.1

_buyers = itertools.count()
_gone = itertools.count(1)
_dice = random.Random(PLAN["seed"])
_history = Path(PLAN["history"]).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115 - open for the whole run


def note(heard: dict[str, Any]) -> None:
    """Write down what a buyer heard as true, before anything else happens."""
    _history.write(json.dumps(heard) + "\n")


class Buyer(FastHttpUser):
    """Somebody who wants seats now; each request has a key of its own."""

    abstract = True

    def on_start(self) -> None:
        """Take the next account; whoever comes in place of a buyer who went home early has none."""
        number = next(_buyers)
        nobody = ("", "")
        self.user_id: str
        self.token: str
        self.user_id, self.token = PLAN["buyers"][number] if number < len(PLAN["buyers"]) else nobody

    def on_stop(self) -> None:
        """End the run when the last buyer has gone."""
        if self.token and next(_gone) == len(PLAN["buyers"]):
            spawn_later(1, self.environment.runner.quit)  # once this buyer is out of the way, too

    def send(self, method: str, path: str, name: str, body: object = None, **headers: str) -> Any:
        """Send one request; refusals are part of a rush and no failures."""
        named = {"authorization": f"Bearer {self.token}", **headers}
        with self.client.request(method, path, json=body, headers=named, name=name, catch_response=True) as response:
            if 0 < response.status_code < 500 or response.status_code == 503:
                response.success()
            return response

    def wait_in_line(self) -> str:
        """Join and wait for the turn; the token of a place that is ACTIVE, or nothing."""
        path = f"/v1/sales/{PLAN['sale_id']}/queue/token"
        joined = self.send("POST", f"{path}s", "join", {}, **key())
        if joined.status_code not in (200, 201):
            return ""
        token = joined.json()
        for _ in range(POLLS_MAX):
            if token["status"] != "WAITING":
                break
            sleep(token["poll_after_ms"] / 1000)
            polled = self.send("GET", path, "status", **{"queue-token": token["token"]})
            if polled.status_code == 200:
                token = polled.json()
        return token["token"] if token["status"] == "ACTIVE" else ""

    def leave(self, place: str) -> None:
        """Give the place up; harmless where it is used up already."""
        self.send("DELETE", f"/v1/sales/{PLAN['sale_id']}/queue/token", "leave", **{"queue-token": place})

    def pay(self, path: str, body: dict[str, Any]) -> tuple[Any, str]:
        """Pay, and ask again while it is not decided; the answer and the payment's key."""
        paying = key()
        paid = self.send("POST", path, "pay", body, **paying)
        for _ in range(ATTEMPTS_MAX):
            if paid.status_code not in (202, 503):
                break
            sleep(1)
            paid = self.send("POST", path, "pay", body, **paying)
        return paid, paying["idempotency-key"]


class RushBuyer(Buyer):
    """Join, wait, pick from the map, reserve, pay."""

    @task
    def buy(self) -> None:
        """Go once through the whole journey, and again for other seats while some are free."""
        place = self.wait_in_line() if self.token else ""
        for _ in range(ATTEMPTS_MAX if place else 0):
            seats = self._pick()
            if not seats:  # sold out: make room for whoever still hopes
                self.leave(place)
                break
            if self._try(place, seats):
                break
        raise StopUser

    def _pick(self) -> list[str]:
        found = self.send("GET", f"/v1/schedules/{PLAN['schedule_id']}/seats", "map")
        free = [seat["seat_no"] for seat in found.json()["seats"] if seat["status"] == "FREE"]
        return _dice.sample(free, min(len(free), _dice.choice((1, 1, 2, 2, 3, 4))))

    def _try(self, place: str, seats: list[str]) -> bool:
        path = f"/v1/schedules/{PLAN['schedule_id']}/reservations"
        held = self.send("POST", path, "reserve", {"seats": seats}, **{"queue-token": place}, **key())
        if held.status_code != 201:
            return bool(held.status_code != 409)
        reservation = held.json()
        path = f"/v1/reservations/{reservation['reservation_id']}/payments"
        paid, pay_key = self.pay(path, {"method": "BALANCE"})
        if paid.status_code == 201:
            document = paid.json()
            note(
                {
                    "event": "confirmed",
                    "sale_id": PLAN["sale_id"],
                    "user_id": self.user_id,
                    "key": pay_key,
                    "reservation_id": reservation["reservation_id"],
                    "seats": seats,
                    "amount": document["final_amount"],
                    "payment_id": document["payment_id"],
                }
            )
        return True


class CouponUser(Buyer):
    """Wants one of the coupons, and asks twice: whoever has one is told of the same again."""

    @task
    def take(self) -> None:
        """Ask until it is known whether there is one, then once more with another key."""
        path = f"/v1/coupons/{PLAN['coupon_id']}/issues"
        for _ in range(2 if self.token else 0):
            named = key()
            issued = self.send("POST", path, "issue", {}, **named)
            for _ in range(ATTEMPTS_MAX):
                if issued.status_code not in (202, 503):
                    break
                sleep(1)
                issued = self.send("POST", path, "issue", {}, **named)
            if issued.status_code in (200, 201):
                note(
                    {
                        "event": "issued",
                        "sale_id": PLAN["coupon_id"],
                        "user_id": self.user_id,
                        "key": named["idempotency-key"],
                        "reservation_id": "",
                        "seats": [],
                        "amount": 0,
                        "user_coupon_id": issued.json()["user_coupon_id"],
                    }
                )
        raise StopUser


class DropBuyer(Buyer):
    """Join, wait, order one or two units of what is dropped, pay; some give their order back."""

    @task
    def buy(self) -> None:
        """Go once through the whole journey, and again while others give something back."""
        place = self.wait_in_line() if self.token else ""
        for _ in range(ATTEMPTS_MAX if place else 0):
            lines = [{"variant_id": PLAN["variant_id"], "quantity": _dice.choice((1, 1, 2))}]
            named = {"queue-token": place, **key()}
            ordered = self.send("POST", "/v1/orders", "order", {"lines": lines}, **named)
            if ordered.status_code == 201:
                self._settle(ordered.json(), lines)
                break
            if ordered.status_code != 409:
                break
            sleep(_dice.random())
        if place:  # make room for whoever still hopes
            self.leave(place)
        raise StopUser

    def _settle(self, order: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        path = f"/v1/orders/{order['order_id']}"
        if _dice.random() < GIVEN_BACK_SHARE:
            self.send("DELETE", path, "give back")
            return
        paid, pay_key = self.pay(f"{path}/payments", {"method": "BALANCE"})
        if paid.status_code == 201:
            document = paid.json()
            note_order(self, pay_key, order["order_id"], lines, document["final_amount"], document["payment_id"])


class NaiveDropBuyer(Buyer):
    """Orders at the twin that looks how many are left and then writes down one less."""

    @task
    def buy(self) -> None:
        """Order until an order is said to stand."""
        lines = [{"variant_id": PLAN["variant_id"], "quantity": 1}]
        for _ in range(ATTEMPTS_MAX if self.token else 0):
            named = key()
            sold = self.send("POST", "/twins/naive_orders", "naive", {"lines": lines}, **named)
            if sold.status_code == 201:
                order_id = sold.json()["order_id"]
                note_order(self, named["idempotency-key"], order_id, lines, 0, order_id)
                break
        raise StopUser


def note_order(
    buyer: Buyer, pay_key: str, order_id: str, lines: list[dict[str, Any]], amount: int, payment_id: str
) -> None:
    """Write down an order that was heard to be bought."""
    note(
        {
            "event": "confirmed",
            "sale_id": PLAN["sale_id"],
            "user_id": buyer.user_id,
            "key": pay_key,
            "reservation_id": "",
            "seats": [],
            "amount": amount,
            "payment_id": payment_id,
            "order_id": order_id,
            "lines": [f"{line['variant_id']}:{line['quantity']}" for line in lines],
        }
    )


class NaiveBuyer(Buyer):
    """Buys at the twin that looks first and sells second."""

    @task
    def buy(self) -> None:
        """Try seats from a small hall until one is said to be bought."""
        for _ in range(ATTEMPTS_MAX if self.token else 0):
            seat_no = f"A-1-{_dice.randint(1, PLAN['naive_seats'])}"
            named = key()
            sold = self.send("POST", "/twins/naive", "naive", {"seats": [seat_no]}, **named)
            if sold.status_code == 201:
                note(
                    {
                        "event": "confirmed",
                        "sale_id": PLAN["sale_id"],
                        "user_id": self.user_id,
                        "key": named["idempotency-key"],
                        "reservation_id": sold.json()["hold_id"],
                        "seats": [seat_no],
                        "amount": 0,
                        "payment_id": sold.json()["hold_id"],
                    }
                )
                break
        raise StopUser


def key() -> dict[str, str]:
    """A fresh `Idempotency-Key`."""
    return {"idempotency-key": uuid.uuid4().hex}
