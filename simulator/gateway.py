"""The intents and refunds of the simulated gateway, and every step they may take.

It is a model in memory: it ends with its process, and a shop that comes back to it finds nothing of what it was told.
Names, states and errors are Stripe's (docs.stripe.com/api/payment_intents, api/refunds), as far as a shop uses them
that sets funds aside first.
"""

import itertools
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from simulator.errors import Refused, missing, unknown_method
from simulator.methods import METHODS, Method

AMOUNT_MAX = 99_999_999
"""What Stripe takes at once, in most currencies."""
AUTHORISED_S = 7 * 24 * 3600
"""How long an amount stays set aside."""
METADATA_MAX = 50

Status = Literal["requires_confirmation", "requires_action", "requires_payment_method", "requires_capture", "succeeded",
                 "canceled"]  # fmt: skip

Params = Mapping[str, str]
"""What a form said, one text a name; names in brackets as they came."""

CREATE_PARAMS = frozenset(
    {"amount", "currency", "capture_method", "confirm", "payment_method", "return_url", "error_on_requires_action",
     "description"}
)  # fmt: skip


@dataclass(slots=True)
class Intent:
    """One PaymentIntent and its charge."""

    id: str
    charge_id: str
    created: int
    amount: int
    currency: str
    metadata: dict[str, str]
    payment_method: str
    return_url: str | None
    action_address: str
    status: Status = "requires_confirmation"
    capturable: int = 0
    received: int = 0
    refunded: int = 0
    charged: bool = False
    canceled_at: int | None = None
    error: dict[str, Any] | None = None
    refunds: list["Refund"] = field(default_factory=list)

    @property
    def method(self) -> Method:
        """How its card behaves."""
        return METHODS[self.payment_method]

    @property
    def payment_id(self) -> str | None:
        """The shop's id of the payment, if it says one."""
        return self.metadata.get("payment_id")


@dataclass(slots=True)
class Refund:
    """Money on its way back."""

    id: str
    created: int
    amount: int
    intent: Intent
    status: Literal["succeeded", "pending", "failed"]


Tell = Callable[[str, Intent, dict[str, Any]], None]
"""Called with the type of an event, the intent it belongs to, and the object as it stands now."""


class Gateway:
    """Every intent of one process. Nothing here waits, so each step is whole."""

    def __init__(self, now: Callable[[], float], tell: Tell, later: Callable[[Callable[[], None]], None]) -> None:
        self._now = now
        self._tell = tell
        self._later = later
        self._intents: dict[str, Intent] = {}
        self._refunds: dict[str, Refund] = {}

    # What a shop asks.

    def create(self, params: Params, address: str) -> Intent:
        """Make an intent, and confirm it if that is asked, too; the buyer finds its page below `address`."""
        _refuse_unknown(params, CREATE_PARAMS, lists=("payment_method_types", "metadata", "expand"))
        amount = _amount(params, "amount")
        currency = params.get("currency", "")
        if not re.fullmatch(r"[a-z]{3}", currency):
            raise Refused(400, "A currency is three lowercase letters.", param="currency")
        if params.get("capture_method") != "manual":
            raise Refused(400, "This gateway knows capture_method=manual alone.", param="capture_method")
        return_url = params.get("return_url")
        if return_url is not None and not re.fullmatch(r"https?://[^\s\"'<>]{1,2000}", return_url):
            raise Refused(400, "Not a valid URL.", code="url_invalid", param="return_url")
        payment_method = params.get("payment_method", "")
        if payment_method not in METHODS:
            raise unknown_method()
        number = secrets.token_hex(12)
        intent = Intent(
            id=f"pi_{number}",
            charge_id=f"ch_{number}",
            created=int(self._now()),
            amount=amount,
            currency=currency,
            metadata=_metadata(params),
            payment_method=payment_method,
            return_url=return_url,
            action_address=f"{address}/pi_{number}",
        )
        self._intents[intent.id] = intent
        if params.get("confirm") == "true":
            self._confirm(intent, can_act=params.get("error_on_requires_action") != "true")
        return intent

    def confirm(self, intent_id: str, params: Params) -> Intent:
        """Confirm an intent that was made without, or try again after a decline."""
        _refuse_unknown(params, {"payment_method", "return_url"}, lists=("expand",))
        intent = self.find(intent_id)
        payment_method = params.get("payment_method", intent.payment_method)
        if payment_method not in METHODS:
            raise unknown_method()
        if intent.status not in {"requires_confirmation", "requires_payment_method"}:
            raise self._unexpected(intent, "confirm")
        intent.payment_method = payment_method
        intent.return_url = params.get("return_url", intent.return_url)
        self._confirm(intent, can_act=True)
        return intent

    def capture(self, intent_id: str, params: Params) -> Intent:
        """Take what is set aside, or a part of it and let the rest go."""
        _refuse_unknown(params, {"amount_to_capture"}, lists=("expand",))
        intent = self.find(intent_id)
        amount = _amount(params, "amount_to_capture") if "amount_to_capture" in params else intent.capturable
        if intent.status == "requires_capture" and self._now() >= intent.created + AUTHORISED_S:
            self._end(intent)
            raise Refused(400, "The authorisation has lapsed.", code="charge_expired_for_capture", began=True)
        if intent.status != "requires_capture":
            raise self._unexpected(intent, "capture")
        if amount > intent.capturable:
            raise Refused(
                400, "More than is set aside.", code="amount_too_large", param="amount_to_capture", began=True
            )
        if intent.method.capture_refused:
            raise self._declined(intent, "card_declined", "do_not_honor")
        intent.status, intent.received, intent.capturable = "succeeded", amount, 0
        self._tell("payment_intent.succeeded", intent, self.shape(intent))
        return intent

    def cancel(self, intent_id: str, params: Params) -> Intent:
        """End an intent and let go what is set aside."""
        _refuse_unknown(params, {"cancellation_reason"}, lists=("expand",))
        intent = self.find(intent_id)
        if intent.status in {"succeeded", "canceled"}:
            raise self._unexpected(intent, "cancel")
        self._end(intent)
        return intent

    def refund(self, params: Params) -> Refund:
        """Give back what was taken, or a part of it."""
        _refuse_unknown(params, {"payment_intent", "amount", "reason"}, lists=("metadata", "expand"))
        intent = self.find(params.get("payment_intent", ""), param="payment_intent")
        left = intent.received - intent.refunded
        amount = _amount(params, "amount") if "amount" in params else left
        if intent.status != "succeeded":
            raise self._unexpected(intent, "refund")
        if left == 0:
            raise Refused(400, "It is refunded already.", code="charge_already_refunded", began=True)
        if amount > left:
            raise Refused(400, "Refund amount is greater than unrefunded amount on charge.", param="amount", began=True)
        behaves = intent.method.refund
        if behaves == "refused":
            raise Refused(400, "The bank takes no refund.", code="charge_not_refundable", began=True)
        refund = Refund(
            id=f"re_{secrets.token_hex(12)}",
            created=int(self._now()),
            amount=amount,
            intent=intent,
            status="pending" if behaves == "pending" else "succeeded",
        )
        self._refunds[refund.id] = refund
        intent.refunds.append(refund)
        intent.refunded += amount
        self._tell("refund.created", intent, self.shape_refund(refund))
        if behaves != "at_once":
            self._later(lambda: self._settle(refund))
        return refund

    def find(self, intent_id: str, *, param: str = "intent") -> Intent:
        """The intent of this id; raises Refused if there is none."""
        intent = self._intents.get(intent_id)
        if intent is None:
            raise missing("payment_intent", param)
        return intent

    def find_refund(self, refund_id: str) -> Refund:
        """The refund of this id; raises Refused if there is none."""
        refund = self._refunds.get(refund_id)
        if refund is None:
            raise missing("refund", "refund")
        return refund

    def search(self, name: str, value: str, limit: int) -> list[Intent]:
        """The intents whose metadata have this, newest first."""
        found = []
        for intent in reversed(self._intents.values()):
            if intent.metadata.get(name) == value:
                found.append(intent)
                if len(found) == limit:
                    break
        return found

    def after(self, intent_id: str | None, limit: int) -> list[Intent]:
        """The intents made after this one, or all, oldest first; at most `limit`."""
        intents: Iterator[Intent] = iter(self._intents.values())
        if intent_id is not None:
            last = self.find(intent_id, param="after")
            intents = itertools.dropwhile(lambda intent: intent is not last, intents)
            next(intents)
        return list(itertools.islice(intents, limit))

    # What a buyer does.

    def act(self, intent: Intent, *, approved: bool) -> None:
        """Let the buyer approve or fail; whoever already did, or is one who never does, changes nothing."""
        is_late = intent.status == "canceled" and intent.method.action == "late" and not intent.charged
        if not is_late and (intent.status != "requires_action" or intent.method.action == "abandoned"):
            return
        if not approved:
            self._fail(intent, "invalid_request_error", "payment_intent_authentication_failure", None)
        elif intent.method.action == "declined":
            self._fail(intent, "card_error", "card_declined", "generic_decline")
        else:
            self._authorise(intent)

    # How each of them looks on the wire.

    def shape(self, intent: Intent, *, expanded: bool = False) -> dict[str, Any]:
        """An intent as Stripe tells it; `expanded` tells its charge, too."""
        charge: Any = intent.charge_id if intent.charged else None
        if charge and expanded:
            charge = {
                "id": intent.charge_id,
                "object": "charge",
                "amount": intent.amount,
                "amount_captured": intent.received,
                "amount_refunded": intent.refunded,
                "captured": intent.status == "succeeded",
                "currency": intent.currency,
                "payment_intent": intent.id,
                "refunded": intent.received > 0 and intent.refunded == intent.received,
            }
        action = None
        if intent.status == "requires_action":
            # Without an address to come back to there is nowhere to send the buyer.
            action = {"type": "use_stripe_sdk", "use_stripe_sdk": {}}
            if intent.return_url:
                redirect = {"return_url": intent.return_url, "url": intent.action_address}
                action = {"type": "redirect_to_url", "redirect_to_url": redirect}
        return {
            "id": intent.id,
            "object": "payment_intent",
            "amount": intent.amount,
            "amount_capturable": intent.capturable,
            "amount_received": intent.received,
            "canceled_at": intent.canceled_at,
            "cancellation_reason": None,
            "capture_method": "manual",
            "confirmation_method": "automatic",
            "created": intent.created,
            "currency": intent.currency,
            "last_payment_error": intent.error,
            "latest_charge": charge,
            "livemode": False,
            "metadata": intent.metadata,
            "next_action": action,
            "payment_method": None if intent.status == "requires_payment_method" else intent.payment_method,
            "payment_method_types": ["card"],
            "status": intent.status,
        }

    def shape_refund(self, refund: Refund) -> dict[str, Any]:
        """A refund as Stripe tells it."""
        return {
            "id": refund.id,
            "object": "refund",
            "amount": refund.amount,
            "charge": refund.intent.charge_id,
            "created": refund.created,
            "currency": refund.intent.currency,
            "failure_reason": "expired_or_canceled_card" if refund.status == "failed" else None,
            "metadata": {},
            "payment_intent": refund.intent.id,
            "status": refund.status,
        }

    # The steps.

    def _confirm(self, intent: Intent, *, can_act: bool) -> None:
        method = intent.method
        intent.error = None
        if method.decline_code:
            raise self._declined(intent, method.code, method.decline_code, ends=True)
        if method.action != "none":
            if not can_act:
                raise self._declined(intent, "authentication_required", "authentication_required", ends=True)
            intent.status = "requires_action"
            self._tell("payment_intent.requires_action", intent, self.shape(intent))
            return
        self._authorise(intent)

    def _authorise(self, intent: Intent) -> None:
        intent.status, intent.capturable, intent.charged = "requires_capture", intent.amount, True
        intent.canceled_at = None
        self._tell("payment_intent.amount_capturable_updated", intent, self.shape(intent))

    def _fail(self, intent: Intent, kind: str, code: str, decline_code: str | None) -> None:
        intent.status = "requires_payment_method"
        intent.error = {"type": kind, "code": code, "message": "The payment failed."}
        if decline_code:
            intent.error["decline_code"] = decline_code
        self._tell("payment_intent.payment_failed", intent, self.shape(intent))

    def _declined(self, intent: Intent, code: str, decline_code: str, *, ends: bool = False) -> Refused:
        if ends:
            self._fail(intent, "card_error", code, decline_code)
        return Refused(
            402,
            "Your card was declined.",
            kind="card_error",
            code=code,
            decline_code=decline_code,
            began=True,
            payment_intent=self.shape(intent),
        )

    def _end(self, intent: Intent) -> None:
        intent.status, intent.capturable, intent.canceled_at = "canceled", 0, int(self._now())
        self._tell("payment_intent.canceled", intent, self.shape(intent))

    def _settle(self, refund: Refund) -> None:
        if refund.intent.method.refund == "pending":
            refund.status = "succeeded"
            self._tell("refund.updated", refund.intent, self.shape_refund(refund))
        else:
            refund.status = "failed"
            refund.intent.refunded -= refund.amount
            self._tell("refund.failed", refund.intent, self.shape_refund(refund))

    def _unexpected(self, intent: Intent, verb: str) -> Refused:
        return Refused(
            400,
            f"You cannot {verb} this PaymentIntent because it has a status of {intent.status}.",
            code="payment_intent_unexpected_state",
            began=True,
            payment_intent=self.shape(intent),
        )


def _refuse_unknown(params: Params, known: frozenset[str] | set[str], *, lists: tuple[str, ...]) -> None:
    for name in params:
        if name not in known and name.partition("[")[0] not in lists:
            raise Refused(400, "Received unknown parameter.", code="parameter_unknown", param=name[:64])


def _amount(params: Params, name: str) -> int:
    text = params.get(name, "")
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) == 0:
        raise Refused(400, "Invalid positive integer.", code="parameter_invalid_integer", param=name)
    if int(text) > AMOUNT_MAX:
        raise Refused(400, "The amount is too large.", code="amount_too_large", param=name)
    return int(text)


def _metadata(params: Params) -> dict[str, str]:
    metadata = {name[9:-1]: text for name, text in params.items() if name.startswith("metadata[")}
    if len(metadata) > METADATA_MAX or any(len(name) > 40 or len(text) > 500 for name, text in metadata.items()):
        raise Refused(400, "Metadata have at most 50 names of 40 and texts of 500 characters.", param="metadata")
    return metadata
