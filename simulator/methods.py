"""What each payment method does: the id that a shop sends decides how the card behaves.

Those without a word of ours in their name are Stripe's own test methods (docs.stripe.com/testing).
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from simulator.switches import Fault

Telling = Literal["once", "twice", "late", "reversed", "forged", "first", "never"]
"""How webhooks about an intent are sent: twice the same; after a while; a later one before an earlier one; under a
wrong secret; before the request that caused them is answered; or not at all."""


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """How a card behaves; without fields it pays."""

    decline_code: str | None = None
    # The code of the error, where it is not the usual one of a decline.
    code: str = "card_declined"
    # The buyer must act first: "abandoned" ones never do, whatever their page is told, "declined" ones are declined by
    # their bank afterwards, and "late" ones are heard by their bank even once the shop has cancelled.
    action: Literal["none", "required", "abandoned", "declined", "late"] = "none"
    # What happens to the request that pays with it; all of these do what is asked, so a repeat of its key is answered.
    fault: Fault | None = None
    capture_refused: bool = False
    refund: Literal["at_once", "pending", "fails", "refused"] = "at_once"
    telling: Telling = "once"


METHODS: Mapping[str, Method] = {
    **{f"pm_card_{brand}": Method() for brand in ("visa", "visa_debit", "mastercard", "amex", "jcb", "unionpay", "kr")},
    "pm_card_chargeDeclined": Method(decline_code="generic_decline"),
    "pm_card_visa_chargeDeclined": Method(decline_code="generic_decline"),
    "pm_card_insufficientFunds": Method(decline_code="insufficient_funds"),
    "pm_card_visa_chargeDeclinedInsufficientFunds": Method(decline_code="insufficient_funds"),
    "pm_card_visa_chargeDeclinedLostCard": Method(decline_code="lost_card"),
    "pm_card_visa_chargeDeclinedStolenCard": Method(decline_code="stolen_card"),
    "pm_card_chargeDeclinedExpiredCard": Method(decline_code="expired_card", code="expired_card"),
    "pm_card_chargeDeclinedIncorrectCvc": Method(decline_code="incorrect_cvc", code="incorrect_cvc"),
    "pm_card_chargeDeclinedProcessingError": Method(decline_code="processing_error", code="processing_error"),
    "pm_card_threeDSecure2Required": Method(action="required"),
    "pm_card_authenticationRequired": Method(action="required"),
    "pm_card_pendingRefund": Method(refund="pending"),
    "pm_card_refundFail": Method(refund="fails"),
    "pm_action_required": Method(action="required"),
    "pm_action_abandoned": Method(action="abandoned"),
    "pm_action_declined": Method(action="declined"),
    "pm_action_late": Method(action="late"),
    "pm_slow": Method(fault="slow"),
    "pm_timeout_after_success": Method(fault="silent_after"),
    "pm_500_then_replay": Method(fault="error_after"),
    "pm_500_kept": Method(fault="error_kept"),
    "pm_capture_refused": Method(capture_refused=True),
    "pm_refund_refused": Method(refund="refused"),
    "pm_webhook_duplicate": Method(telling="twice"),
    "pm_webhook_late": Method(telling="late"),
    "pm_webhook_out_of_order": Method(telling="reversed"),
    "pm_webhook_forged": Method(telling="forged"),
    "pm_webhook_first": Method(telling="first"),
    "pm_webhook_never": Method(telling="never"),
}
