"""Simulated buyers who go through the front door: join, wait, pick, reserve, pay, over real HTTP.

Most want seats and take what is free. Some do what people do: leave the line, fall asleep in it, fight for the front
row, have too little money, hold seats and walk away. Everything that a buyer heard as true goes into the history.
"""

import asyncio
import enum
import itertools
import random
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from loadtests.client import Answer, Client, NoAnswer
from loadtests.history import Heard, History

ATTEMPTS_MAX = 8
PICKS_MAX = 60
RETRY_AFTER_MAX_S = 5.0
DROPPED_ABOVE = 0.2
"""Which share of the hall must be free for seats to be dropped."""

CARD_SHARE = 0.35
"""Which share of a crowd pays by card, where cards are taken."""
DECLINED_SHARE = 0.08
"""Which share of those shows a card first that is declined."""
CANCELLED_SHARE = 0.05
"""Which share of those who bought two seats and more gives one back."""
LATE = "came too late"
"""How it ends for who finds everything sold."""
GOOD_CARD, BAD_CARD = "pm_card_visa", "pm_card_insufficientFunds"
"""Payment methods of the simulated gateway."""


class Habit(enum.Enum):
    """What somebody came to do."""

    BUYS = "buys"
    FIGHTS = "wants the front row like everybody else"
    LEAVES = "leaves the line"
    VANISHES = "never polls again"
    POOR = "has too little money"
    DROPS = "holds seats and walks away"


HABITS: Mapping[Habit, float] = {
    Habit.BUYS: 0.70,
    Habit.FIGHTS: 0.16,
    Habit.LEAVES: 0.04,
    Habit.VANISHES: 0.04,
    Habit.POOR: 0.03,
    Habit.DROPS: 0.03,
}
"""Which share of a crowd has which habit."""

WISHES: Mapping[int, float] = {1: 0.35, 2: 0.45, 3: 0.12, 4: 0.08}
"""Which share of a crowd wants how many seats."""


@dataclass(frozen=True)
class Person:
    """Somebody in the crowd, with the token they sign in by."""

    user_id: str
    access_token: str
    habit: Habit
    wish: int
    visits: bool
    """Joins the line as a visitor, and signs in only when it is their turn."""


def gather(
    accounts: Sequence[tuple[str, str]], dice: random.Random, habits: Mapping[Habit, float] = HABITS
) -> list[Person]:
    """Give each account, a user's id and token, a habit and a wish."""
    drawn_habits = dice.choices(list(habits), list(habits.values()), k=len(accounts))
    drawn_wishes = dice.choices(list(WISHES), list(WISHES.values()), k=len(accounts))
    return [
        Person(user_id, token, habit, wish, visits=dice.random() < 0.1)
        for (user_id, token), habit, wish in zip(accounts, drawn_habits, drawn_wishes, strict=True)
    ]


@dataclass
class Tally:
    """What the crowd has done so far: counts of stages and endings, refusals by step and word, times by step."""

    stages: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    repeats: int = 0
    faults: list[str] = field(default_factory=list)
    times_ms: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def percentile(self, step: str, share: float) -> float:
        """The time in milliseconds that this share of a step's requests stayed within."""
        times = sorted(self.times_ms[step])
        return times[min(len(times) - 1, int(len(times) * share))] if times else 0.0


class Gone(Exception):
    """This person's journey is over."""

    def __init__(self, ending: str) -> None:
        super().__init__(ending)
        self.ending = ending


# What a buyer reads of the answers; there may be more in them.


class Token(msgspec.Struct):
    """A place in line."""

    token: str
    status: str
    poll_after_ms: int
    queue_no: int | None = None


class Seat(msgspec.Struct):
    """A seat of the map; where it is and what it costs only in the full map."""

    seat_no: str
    status: str
    section: str = ""
    row: str = ""
    number: int = 0
    accessible: bool = False


class SeatMap(msgspec.Struct):
    """The seat map, or what changed in it since a version."""

    map_version: int
    full: bool
    seats: list[Seat]


class Reservation(msgspec.Struct):
    """What is held."""

    reservation_id: str
    amount: int


class Payment(msgspec.Struct):
    """How a payment stands."""

    payment_id: str
    status: str
    final_amount: int
    reason: str | None = None


@dataclass(frozen=True)
class Purchase:
    """What somebody bought: the address of the reservation, and its seats."""

    person: Person
    path: str
    seat_nos: tuple[str, ...]


class Crowd:
    """People who go to one sale at once; `tally` may be looked at while they do."""

    def __init__(
        self,
        client: Client,
        *,
        sale_id: str,
        schedule_id: str,
        people: Sequence[Person],
        history: History | None = None,
        arrive_within_s: float = 5.0,
        think_s: float = 0.5,
        seed: int = 0,
        cards: bool = False,
    ) -> None:
        self.client = client
        self.sale_id = sale_id
        self.schedule_id = schedule_id
        self.people = people
        self.history = history
        self.arrive_within_s = arrive_within_s
        self.think_s = think_s
        self.cards = cards
        self.tally = Tally()
        self.sold_out = asyncio.Event()
        self.late: list[Person] = []
        """Who found everything sold."""
        self.purchases: list[Purchase] = []
        """What was bought and kept."""
        self.hall: dict[str, Seat] = {}
        """Where each seat is, as the first map told: people share what never changes."""
        self._seed = seed

    async def run(self) -> Tally:
        """Send everybody in and wait until the last one has gone."""
        board = asyncio.create_task(self._read_board())
        try:
            async with asyncio.TaskGroup() as crowd:
                for number, person in enumerate(self.people):
                    dice = random.Random(self._seed * 1_000_003 + number)
                    crowd.create_task(self.count(self._send(person, dice), person))
        finally:
            board.cancel()
        return self.tally

    def _send(self, person: Person, dice: random.Random) -> Coroutine[Any, Any, None]:
        """Send somebody on their way."""
        return Buyer(self, person, dice).visit()

    async def count(self, journey: Coroutine[Any, Any, object], person: Person) -> bool:
        """Go a part of somebody's way, and count how it ended, if it did; returns whether it goes on."""
        try:
            await journey
        except Gone as gone:
            self.tally.endings[gone.ending] += 1
            if gone.ending == LATE:
                self.late.append(person)
        except NoAnswer as fault:
            self.tally.endings["gave up"] += 1
            self.tally.faults.append(str(fault))
        else:
            return True
        return False

    async def _read_board(self) -> None:
        """Read the public page about once a second: everybody sees the same board, and leaves when it says sold out."""
        request = self.client.encode("GET", f"/v1/schedules/{self.schedule_id}")
        while not self.sold_out.is_set():
            await asyncio.sleep(1.0)
            try:
                answer = await self.client.send(request)
            except NoAnswer:
                continue
            if answer.status == 200 and answer.json()["seats_available"] == 0:
                self.sold_out.set()


class Buyer:
    """One person's journey."""

    def __init__(self, crowd: Crowd, person: Person, dice: random.Random) -> None:
        self.crowd = crowd
        self.person = person
        self.dice = dice
        self.token = ""
        self.map_version = -1
        self.statuses: dict[str, str] = {}
        self.free_share = 1.0
        self._user = {"authorization": f"Bearer {person.access_token}"}
        self._visitor = {"visitor-secret": secrets.token_urlsafe(24)} if person.visits else {}

    @property
    def tally(self) -> Tally:
        """Where everything is counted."""
        return self.crowd.tally

    async def visit(self) -> None:
        """Go from the street to the seat; always ends with Gone, or with NoAnswer when nobody answers any more."""
        stages = self.tally.stages
        await asyncio.sleep(self.dice.random() ** 2 * self.crowd.arrive_within_s)
        token = await self._join()
        stages["joined"] += 1
        await self._wait(token)
        stages["admitted"] += 1
        for _ in range(PICKS_MAX):
            seat_nos = await self._pick()
            if seat_nos is None:  # everything is held by others at the moment; some of it may come back
                await self._think(2.0)
                continue
            held = await self._reserve(seat_nos)
            if held is not None:
                stages["reserved"] += 1
                await self._buy(held, seat_nos)
        await self._leave("found nothing")

    # The line.

    async def _join(self) -> Token:
        who = self._visitor or self._user
        answer = await self._write("join", "POST", f"/v1/sales/{self.crowd.sale_id}/queue/tokens", who, {})
        if answer.status not in (200, 201):
            raise Gone("turned away")
        return self._read_token(answer)

    async def _wait(self, token: Token) -> None:
        """Poll as told until it is our turn."""
        who = {**(self._visitor or self._user), "queue-token": self.token}
        wait_s, etag = token.poll_after_ms / 1000, None
        patience = self.dice.uniform(0.2, 0.9)
        while token.status != "ACTIVE":
            if token.status != "WAITING":
                raise Gone("lost the place")
            if self.person.habit is Habit.VANISHES and self.dice.random() > patience:
                raise Gone("never polled again")
            if self.person.habit is Habit.LEAVES and self.dice.random() > patience:
                await self._leave("left the line")
            await self._sleep_unless_sold_out(wait_s)
            headers = {**who, "queue-token": self.token, **({"if-none-match": etag} if etag else {})}
            answer = await self._ask("poll", "GET", f"/v1/sales/{self.crowd.sale_id}/queue/token", headers)
            if answer.status == 304:
                wait_s = float(answer.header("retry-after") or wait_s)
            elif answer.status == 200:
                token = self._read_token(answer)
                wait_s, etag = token.poll_after_ms / 1000, answer.header("etag")
            else:
                wait_s = max(1.0, wait_s)

    def _read_token(self, answer: Answer) -> Token:
        token = msgspec.json.decode(answer.body, type=Token)
        self.token = token.token
        return token

    async def _sleep_unless_sold_out(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self.crowd.sold_out.wait()
        except TimeoutError:
            return
        await self._leave(LATE)

    async def _leave(self, ending: str) -> None:
        who = {**(self._visitor or self._user), **self._user, "queue-token": self.token}
        await self._ask("leave", "DELETE", f"/v1/sales/{self.crowd.sale_id}/queue/token", who)
        raise Gone(ending)

    # The hall.

    async def _pick(self) -> list[str] | None:
        """Seats to try for; None while all that is not sold is held by others. Gone when everything is sold."""
        since = f"?since={self.map_version}" if self.statuses else ""
        answer = await self._ask("map", "GET", f"/v1/schedules/{self.crowd.schedule_id}/seats{since}", self._user)
        if answer.status == 200:
            seat_map = msgspec.json.decode(answer.body, type=SeatMap)
            self.map_version = seat_map.map_version
            if seat_map.full:
                self.crowd.hall = self.crowd.hall or {seat.seat_no: seat for seat in seat_map.seats}
            self.statuses.update((seat.seat_no, seat.status) for seat in seat_map.seats)
        free = [seat for seat_no, seat in self.crowd.hall.items() if self.statuses.get(seat_no) == "FREE"]
        if not free:
            if self.statuses and not {"HELD", "FREE"}.intersection(self.statuses.values()):
                await self._leave(LATE)
            return None
        self.free_share = len(free) / len(self.crowd.hall)
        await self._think(1.0)
        wish = min(self.person.wish, len(free))
        if self.person.habit is Habit.FIGHTS:
            return [seat.seat_no for seat in self.dice.sample(free[: max(20, wish)], wish)]
        start = self.dice.randrange(len(free) - wish + 1)
        # Side by side where there is such a place near the first one that caught the eye.
        for at in range(start, min(start + 200, len(free) - wish + 1)):
            run = free[at : at + wish]
            if run[0].row == run[-1].row and run[-1].number - run[0].number == wish - 1:
                return [seat.seat_no for seat in run]
        return [seat.seat_no for seat in free[start : start + wish]]

    async def _reserve(self, seat_nos: Sequence[str]) -> Reservation | None:
        headers = {**self._visitor, **self._user, "queue-token": self.token}
        path = f"/v1/schedules/{self.crowd.schedule_id}/reservations"
        key = secrets.token_hex(8)
        answer = await self._write("reserve", "POST", path, headers, {"seats": list(seat_nos)}, key=key)
        if answer.status == 201:
            held = msgspec.json.decode(answer.body, type=Reservation)
            self._heard("held", key, held.reservation_id, seat_nos, held.amount)
            return held
        word = word_of(answer)
        if word == "seat_taken":
            return None
        raise Gone("lost the place" if word == "not_admitted" else f"refused: {word}")

    # The till.

    async def _buy(self, held: Reservation, seat_nos: Sequence[str], ending: str = "bought") -> None:
        # Towards the end a dropped seat would only make everybody wait for its deadline.
        if self.person.habit is Habit.DROPS and self.free_share > DROPPED_ABOVE:
            raise Gone("walked away")
        await self._think(2.0)
        path = f"/v1/reservations/{held.reservation_id}"
        by_card = self.crowd.cards and self.person.habit is not Habit.POOR and self.dice.random() < CARD_SHARE
        key, answer = await self._pay(path, self._card() if by_card else {"method": "BALANCE"})
        if by_card and answer.status == 402:
            key, answer = await self._pay(path, {"method": "CARD", "card": {"payment_method_id": GOOD_CARD}})
        if answer.status in (200, 201):
            payment = msgspec.json.decode(answer.body, type=Payment)
            if payment.status == "SUCCESS":
                self._heard("confirmed", key, held.reservation_id, seat_nos, payment.final_amount, payment.payment_id)
                self.tally.stages["sold"] += len(seat_nos)
                # Towards the end nobody is left to buy what comes back.
                if len(seat_nos) > 1 and self.free_share > DROPPED_ABOVE and self.dice.random() < CANCELLED_SHARE:
                    await self._give_back(path, seat_nos[0])
                else:
                    self.crowd.purchases.append(Purchase(self.person, path, tuple(seat_nos)))
                raise Gone(ending)
            raise Gone(f"refused: {payment.reason}")
        if answer.status == 402:
            await self._ask("release", "DELETE", path, self._user)
            await self._leave("had too little money")
        raise Gone("payment unknown" if answer.status == 202 else f"refused: {word_of(answer)}")

    def _card(self) -> dict[str, object]:
        method = BAD_CARD if self.dice.random() < DECLINED_SHARE else GOOD_CARD
        return {"method": "CARD", "card": {"payment_method_id": method}}

    async def _pay(self, path: str, body: object) -> tuple[str, Answer]:
        """Pay, and ask until it is decided; returns the payment's key and the last answer."""
        key = secrets.token_hex(8)
        answer = await self._write("pay", "POST", f"{path}/payments", self._user, body, key=key)
        address = answer.header("location") or ""
        for _ in range(ATTEMPTS_MAX):
            if answer.status != 202:
                break
            await asyncio.sleep(_retry_after(answer))
            answer = await self._ask("pay later", "GET", address, self._user)
            if answer.status == 200 and answer.json()["status"] == "PENDING":
                answer.status = 202
        return key, answer

    async def _give_back(self, path: str, seat_no: str) -> None:
        """Cancel one seat of those bought: it is refunded to where the money came from, and on sale again."""
        answer = await self._write("cancel", "POST", f"{path}/cancellations", self._user, {"seats": [seat_no]})
        if answer.status == 201:
            self.tally.stages["sold"] -= 1
            self.tally.stages["given back"] += 1

    def _heard(
        self,
        event: Any,
        key: str,
        reservation_id: str,
        seat_nos: Sequence[str],
        amount: int,
        payment_id: str | None = None,
    ) -> None:
        if self.crowd.history is not None:
            self.crowd.history.record(
                Heard(
                    event=event,
                    sale_id=self.crowd.sale_id,
                    user_id=self.person.user_id,
                    key=key,
                    reservation_id=reservation_id,
                    seats=tuple(seat_nos),
                    amount=amount,
                    payment_id=payment_id,
                )
            )

    # How a buyer talks.

    async def _think(self, times: float) -> None:
        await asyncio.sleep(self.dice.random() * times * self.crowd.think_s)

    async def _write(
        self,
        step: str,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: object,
        *,
        key: str | None = None,
    ) -> Answer:
        """Send a write until it is answered for good: the same key again, as it is told or when no answer came."""
        keyed = {**headers, "idempotency-key": key or secrets.token_hex(8)}
        return await self._ask(step, method, path, keyed, body)

    async def _ask(self, step: str, method: str, path: str, headers: Mapping[str, str], body: object = None) -> Answer:
        """Send a request, and send it again while it gets no answer, or is told to come back later."""
        tally = self.tally
        request = self.crowd.client.encode(method, path, headers=headers, body=body)
        for attempt in itertools.count(1):
            began = time.perf_counter()
            try:
                answer = await self.crowd.client.send(request)
            except NoAnswer:
                if attempt == ATTEMPTS_MAX:
                    raise
                tally.repeats += 1
                await asyncio.sleep(0.1 * 2**attempt * self.dice.random())
                continue
            tally.times_ms[step].append((time.perf_counter() - began) * 1000)
            if answer.status < 400:
                return answer
            tally.refusals[step, word_of(answer)] += 1
            if answer.status not in (429, 503) or attempt == ATTEMPTS_MAX:
                return answer
            await asyncio.sleep(_retry_after(answer) * self.dice.uniform(1.0, 1.5))
        raise AssertionError  # the count has no end


def word_of(answer: Answer) -> str:
    """The word of a problem: `/problems/<word>`."""
    try:
        return str(answer.json()["type"]).rpartition("/")[2]
    except (ValueError, KeyError, TypeError):
        return str(answer.status)


def _retry_after(answer: Answer) -> float:
    return min(float(answer.header("retry-after") or 1.0), RETRY_AFTER_MAX_S)
