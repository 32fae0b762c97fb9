"""What the engine asks of a card gateway, whoever that is, and what it may answer.

Funds are set aside first (`authorise`) and taken last (`capture`); between the two they can be let go (`void`,
`cancel`). Amounts are integers of the currency's smallest unit. Ids of ours are 32 hex characters; a `ref` is the
gateway's own id of an authorisation. No card number ever comes here: a payment method is the gateway's id of one.

Every call that changes something carries a key, and the gateway answers a repeated key with what it answered first.
So an answer that was lost is asked for again under the same key, never under a new one:

- What is returned is known: it was done, or it is refused and will be for ever.
- `GatewayUnavailable`: certainly nothing was done. The same call may work soon.
- `GatewayUnknown`: nobody knows. The same key once more, then `query` or `find`.
"""

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

PAYMENT_METHOD_PATTERN = r"^(pm|card|src)_[A-Za-z0-9_]{1,120}$(?!\n)"
"""What the id of a payment method looks like. A card number does not, so that none is ever kept or sent on."""

IntentStatus = Literal["PROCESSING", "ACTION_REQUIRED", "AUTHORISED", "CAPTURED", "DECLINED", "CANCELLED"]


class GatewayFault(Exception):
    """The gateway gave no answer that could be acted on."""


class GatewayUnavailable(GatewayFault):
    """Certainly nothing was done: the gateway could not be reached, or turned us away before it began."""


class GatewayUnknown(GatewayFault):
    """Whether it was done is not known: no answer in time, a connection lost, or an error on the gateway's side."""


class Authorised(msgspec.Struct, frozen=True):
    """The amount is set aside on the card until it is captured or let go."""

    ref: str


class NeedsAction(msgspec.Struct, frozen=True):
    """The buyer must go to `url` first; nothing is set aside yet. They come back to the return address."""

    ref: str
    url: str


class Declined(msgspec.Struct, frozen=True):
    """Refused; nothing is set aside. `ref` is None where the gateway made nothing of it."""

    ref: str | None
    decline_code: str


class Captured(msgspec.Struct, frozen=True):
    """The amount is taken, by this call or by an earlier one."""


class CaptureRefused(msgspec.Struct, frozen=True):
    """The amount can never be taken: the authorisation lapsed, was let go, or the bank refuses."""

    reason: str


class Voided(msgspec.Struct, frozen=True):
    """Nothing is set aside any more."""


class AlreadyCaptured(msgspec.Struct, frozen=True):
    """The money is taken already; what is left is to refund it."""


class Cancelled(msgspec.Struct, frozen=True):
    """It will never be authorised any more, whatever the buyer still does; nothing is set aside."""


class RefundedBy(msgspec.Struct, frozen=True):
    """The amount goes back. While it is `pending` the gateway may still fail, which a webhook tells."""

    refund_ref: str
    pending: bool = False


class RefundRefused(msgspec.Struct, frozen=True):
    """The amount cannot go back to the card: more than was taken and not given back, or the bank refuses."""

    reason: str


class Intent(msgspec.Struct, frozen=True):
    """What stands at the gateway now; `payment_id` is ours, None where the gateway does not say."""

    ref: str
    status: IntentStatus
    amount: int
    captured: int
    refunded: int
    payment_id: str | None
    action_url: str | None = None
    decline_code: str | None = None

    def verdict(self) -> Authorised | NeedsAction | Declined:
        """What `authorise` would answer now; raises GatewayUnavailable while the gateway has not decided."""
        match self.status:
            case "AUTHORISED" | "CAPTURED":
                return Authorised(self.ref)
            case "ACTION_REQUIRED":
                return NeedsAction(self.ref, self.action_url or "")
            case "DECLINED":
                return Declined(self.ref, self.decline_code or "generic_decline")
            case "CANCELLED":
                return Declined(self.ref, "cancelled")
            case "PROCESSING":
                raise GatewayUnavailable("The gateway has not decided yet.")


class Event(msgspec.Struct, frozen=True):
    """Something the gateway tells unasked, its signature checked: a reason to look, never what to believe.

    `ref` is None where it is about no authorisation, `refund_ref` where it is about no refund.
    """

    event_id: str
    type: str
    ref: str | None
    refund_ref: str | None


class Gateway(Protocol):
    """A card gateway. Each call ends within a deadline and is sent once; repeating it is the caller's decision.

    All calls but `verify` raise GatewayUnavailable and GatewayUnknown.
    """

    async def authorise(
        self,
        *,
        payment_id: str,
        amount: int,
        currency: str,
        payment_method_id: str,
        return_url: str | None,
        metadata: Mapping[str, str],
    ) -> Authorised | NeedsAction | Declined:
        """Set an amount aside; `payment_id` is the key.

        Without a return address the buyer cannot act, and what would need it is Declined. Asked again, it answers what
        it answered first; what became of it since, `query` tells.
        """
        ...

    async def capture(self, ref: str, *, amount: int, key: str) -> Captured | CaptureRefused:
        """Take the amount, at most what is set aside; the rest is let go."""
        ...

    async def void(self, ref: str, *, key: str) -> Voided | AlreadyCaptured:
        """Let go what is set aside."""
        ...

    async def cancel(self, ref: str, *, key: str) -> Cancelled | Authorised | AlreadyCaptured:
        """End what the buyer has not finished. Only Cancelled means that no money can come any more."""
        ...

    async def refund(self, ref: str, *, amount: int, key: str) -> RefundedBy | RefundRefused:
        """Give back part or all of what was taken."""
        ...

    async def query_refund(self, refund_ref: str) -> RefundedBy | RefundRefused:
        """What became of a refund."""
        ...

    async def query(self, ref: str) -> Intent | None:
        """What stands at the gateway now, None for a reference it does not know."""
        ...

    async def find(self, payment_id: str) -> Intent | None:
        """Look for what became of an authorisation whose answer was lost, by our own id.

        None does not prove that there is nothing: gateways write their search later. Where that matters, `authorise`
        with the same key and the same arguments, and then cancel.
        """
        ...

    def verify(self, body: bytes, signature: str) -> Event | None:
        """Read what came as a webhook, None unless the gateway signed these very bytes within the last minutes."""
        ...


async def cancel(gateway: Gateway, ref: str, *, key: str) -> Cancelled | Authorised | AlreadyCaptured:
    """Cancel, or find that it is: a key may remember a fault for a day, so what was done under it is looked up."""
    try:
        return await gateway.cancel(ref, key=key)
    except GatewayUnknown:
        intent = await gateway.query(ref)
        if intent is None or intent.status != "CANCELLED":
            raise
        return Cancelled()


async def capture(gateway: Gateway, ref: str, *, amount: int, key: str) -> Captured | CaptureRefused:
    """Capture, or find that it is; as `cancel` does."""
    try:
        return await gateway.capture(ref, amount=amount, key=key)
    except GatewayUnknown:
        intent = await gateway.query(ref)
        if intent is None or intent.captured != amount:
            raise
        return Captured()
