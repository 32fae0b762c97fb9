"""Webhooks: what is told of every change, signed as Stripe signs (docs.stripe.com/webhooks/signatures)."""

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec

from simulator.methods import Telling

logger = logging.getLogger(__name__)

SENDERS = 16
ANSWER_WITHIN_S = 10.0
TRIES = 6
KEPT = 1000


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One try to tell one event; `status` is None where nobody answered."""

    event_id: str
    type: str
    payment_intent: str
    attempt: int
    status: int | None


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """An event on its way."""

    event_id: str
    type: str
    payment_intent: str
    body: bytes
    forged: bool = False
    attempt: int = 1


def sign(body: bytes, secret: str, at: int) -> str:
    """The header that proves who wrote a body, and when."""
    signature = hmac.new(secret.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={signature}"


class Webhooks:
    """Tells events to one address, a few at a time, and again a while later to whoever does not answer with 2xx."""

    def __init__(self, url: str | None, secret: str, now: Callable[[], float], *, later_s: float) -> None:
        self._url = url
        self._secret = secret
        self._now = now
        self._later_s = later_s
        self._queue: asyncio.Queue[Letter] = asyncio.Queue()
        self._held: dict[str, Letter] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._senders: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None
        self._counts: Counter[str] = Counter()
        self._told: deque[Delivery] = deque(maxlen=KEPT)

    async def start(self) -> None:
        """Begin to send."""
        if self._url is None:
            return
        timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
        self._session = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        self._senders = [asyncio.create_task(self._send_all()) for _ in range(SENDERS)]

    async def stop(self) -> None:
        """Stop sending; what was not told never is."""
        for timer in self._timers:
            timer.cancel()
        for sender in self._senders:
            sender.cancel()
        await asyncio.gather(*self._senders, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def tell(self, type_: str, payment_intent: str, subject: dict[str, Any], telling: Telling) -> Letter | None:
        """Send an event in the way that its payment method asks for; answers one that must be told first."""
        if self._url is None or telling == "never":
            return None
        event_id = f"evt_{secrets.token_hex(12)}"
        event = {
            "id": event_id,
            "object": "event",
            "created": int(self._now()),
            "data": {"object": subject},
            "livemode": False,
            "pending_webhooks": 1,
            "type": type_,
        }
        body = msgspec.json.encode(event)
        letter = Letter(event_id=event_id, type=type_, payment_intent=payment_intent, body=body)
        match telling:
            case "twice":
                self._queue.put_nowait(letter)
                self._queue.put_nowait(letter)
            case "late":
                self._after(self._later_s, letter)
            case "forged":
                self._queue.put_nowait(msgspec.structs.replace(letter, forged=True))
            case "reversed":
                self._reverse(letter)
            case "first":
                return letter
            case _:
                self._queue.put_nowait(letter)
        return None

    async def deliver(self, letter: Letter) -> None:
        """Tell an event now, and again later if nobody takes it."""
        secret = secrets.token_hex(16) if letter.forged else self._secret
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": sign(letter.body, secret, int(self._now())),
        }
        status = None
        try:
            assert self._session is not None  # noqa: S101 - only senders call this, and they start after it
            async with self._session.post(str(self._url), data=letter.body, headers=headers) as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError) as fault:
            logger.debug("The webhook %s was not taken: %r", letter.event_id, fault)
        self._told.append(
            Delivery(
                event_id=letter.event_id,
                type=letter.type,
                payment_intent=letter.payment_intent,
                attempt=letter.attempt,
                status=status,
            )
        )
        if status is not None and 200 <= status < 300:
            self._counts["taken"] += 1
        elif letter.attempt == TRIES or letter.forged:
            self._counts["given_up"] += 1
        else:
            self._counts["repeated"] += 1
            wait_s = self._later_s * 2 ** (letter.attempt - 1)
            self._after(wait_s, msgspec.structs.replace(letter, attempt=letter.attempt + 1))

    def report(self) -> dict[str, Any]:
        """What was told and taken, with the last tries."""
        waiting = self._queue.qsize() + len(self._timers) + len(self._held)
        counts = {name: self._counts[name] for name in ("taken", "repeated", "given_up")}
        return {"waiting": waiting, **counts, "last": list(self._told)}

    async def _send_all(self) -> None:
        while True:
            await self.deliver(await self._queue.get())

    def _reverse(self, letter: Letter) -> None:
        """Hold the first event of an intent back until a later one was sent, or nothing more comes."""
        held = self._held.pop(letter.payment_intent, None)
        if held is None:
            self._held[letter.payment_intent] = letter
            self._at(self._later_s, lambda: self._let_go(letter))
            return
        self._queue.put_nowait(letter)
        self._after(self._later_s / 4, held)

    def _let_go(self, letter: Letter) -> None:
        if self._held.get(letter.payment_intent) is letter:
            del self._held[letter.payment_intent]
            self._queue.put_nowait(letter)

    def _after(self, wait_s: float, letter: Letter) -> None:
        self._at(wait_s, lambda: self._queue.put_nowait(letter))

    def _at(self, wait_s: float, act: Callable[[], None]) -> None:
        def ring() -> None:
            self._timers.discard(timer)
            act()

        timer = asyncio.get_running_loop().call_later(wait_s, ring)
        self._timers.add(timer)
