"""People who came too late and wait for seats that come back; and people who give theirs back.

Pairs wait first, then who is alone, each kind one more than seats come back for: the first of each lets the offer go,
so that it goes to the next.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from loadtests.crowd import LATE, Buyer, Crowd, Gone, Habit, Person, Purchase, Reservation, word_of

EACH_MAX = 4
"""Pairs and single seats that come back, at most."""
ASK_EVERY_S = 0.5
PATIENCE_S = 60.0

BOUGHT, LET_GO, IN_VAIN = "bought what came back", "let an offer go", "waited in vain"


class Entry(msgspec.Struct):
    """A place in the waiting list."""

    entry_id: str
    status: str
    reservation_id: str | None = None


class Entries(msgspec.Struct):
    """What somebody waits for."""

    items: list[Entry]


class Line(msgspec.Struct):
    """A seat of a reservation."""

    seat_no: str


class Offer(Reservation):
    """A reservation with its seats."""

    seats: list[Line]


class Latecomer(Buyer):
    """Somebody who waits for seats that come back, and keeps what they get."""

    entry_id = ""

    def __init__(self, crowd: Crowd, person: Person, dice: random.Random) -> None:
        super().__init__(crowd, person, dice)
        self.free_share = 0.0

    async def wait_for(self, quantity: int) -> None:
        """Stand in the waiting list."""
        self.tally.endings[LATE] -= 1
        path = f"/v1/schedules/{self.crowd.schedule_id}/waiting-list"
        joined = await self._write("wait", "POST", path, self._user, {"quantity": quantity})
        if joined.status != 201:
            raise Gone(f"refused: {word_of(joined)}")
        self.entry_id = msgspec.json.decode(joined.body, type=Entry).entry_id
        self.tally.stages["waited"] += 1

    async def take(self, *, lets_go: bool) -> None:
        """Wait for the offer, and pay it or let it go; always ends with Gone."""
        entry = await self._offered()
        if entry is None:
            await self._ask("wait no more", "DELETE", f"/v1/waiting-list/{self.entry_id}", self._user)
            raise Gone(IN_VAIN)
        self.tally.stages["offered"] += 1
        if lets_go:
            await self._ask("wait no more", "DELETE", f"/v1/waiting-list/{self.entry_id}", self._user)
            raise Gone(LET_GO)
        path = f"/v1/reservations/{entry.reservation_id}"
        answer = await self._ask("offer", "GET", path, self._user)
        offer = msgspec.json.decode(answer.body, type=Offer)
        await self._buy(offer, [line.seat_no for line in offer.seats], BOUGHT)

    async def _offered(self) -> Entry | None:
        for _ in range(int(PATIENCE_S / ASK_EVERY_S)):
            await asyncio.sleep(ASK_EVERY_S)
            answer = await self._ask("my list", "GET", "/v1/waiting-list", self._user)
            [entry, *_] = msgspec.json.decode(answer.body, type=Entries).items
            if entry.status != "WAITING":
                return entry
        return None


class Seller(Buyer):
    """Somebody who gives back all they bought."""

    async def sell(self, purchase: Purchase) -> None:
        """Cancel what was bought."""
        answer = await self._write("cancel", "POST", f"{purchase.path}/cancellations", self._user, {})
        if answer.status == 201:
            self.tally.stages["sold"] -= len(purchase.seat_nos)
            self.tally.stages["given back"] += len(purchase.seat_nos)


async def come(crowd: Crowd, *, seed: int) -> None:
    """Let some who came too late wait for what some who bought give back; the crowd's tally counts them too."""
    wanted = [each for each in crowd.purchases if not _is_accessible(crowd, each)]
    pairs = [each for each in wanted if _is_pair(crowd, each)][:EACH_MAX]
    alone = [each for each in wanted if len(each.seat_nos) == 1][:EACH_MAX]
    people = iter([person for person in crowd.late if person.habit is not Habit.POOR])
    dice = random.Random(seed)
    waiting: list[tuple[Latecomer, int, bool]] = []
    for sellers, quantity in ((pairs, 2), (alone, 1)):
        for at in range(len(sellers) + 1 if sellers else 0):
            person = next(people, None)
            if person is not None:
                latecomer = Latecomer(crowd, replace(person, habit=Habit.BUYS), dice)
                if await crowd.count(latecomer.wait_for(quantity), person):
                    waiting.append((latecomer, quantity, at == 0))
    sold = [*pairs[: _served(waiting, 2)], *alone[: _served(waiting, 1)]]
    await asyncio.gather(*[Seller(crowd, each.person, dice).sell(each) for each in sold])
    await asyncio.gather(*[crowd.count(each.take(lets_go=lets_go), each.person) for each, _, lets_go in waiting])


def _served(waiting: Sequence[tuple[Latecomer, int, bool]], quantity: int) -> int:
    """How many seats or pairs are bought again: the first of a kind lets go."""
    return max(0, sum(each == quantity for _, each, _ in waiting) - 1)


def _is_accessible(crowd: Crowd, purchase: Purchase) -> bool:
    """Whether seats of it are accessible: nobody is offered those who did not ask for them, and nobody here does."""
    return any(crowd.hall[seat_no].accessible for seat_no in purchase.seat_nos)


def _is_pair(crowd: Crowd, purchase: Purchase) -> bool:
    seats = sorted(crowd.hall[seat_no].number for seat_no in purchase.seat_nos)
    rows = {(crowd.hall[seat_no].section, crowd.hall[seat_no].row) for seat_no in purchase.seat_nos}
    return len(seats) == 2 and len(rows) == 1 and seats[1] - seats[0] == 1
