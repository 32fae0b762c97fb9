"""What the gateway says no with: status, type and code as Stripe's errors have them (docs.stripe.com/api/errors)."""

from typing import Any


class Refused(Exception):
    """A request that is answered with an error. What began is remembered by its key, also when it was refused."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        began: bool = False,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.began = began
        said = {"type": kind, "code": code, "message": message, "param": param, **more}
        self.body: dict[str, Any] = {"error": {name: value for name, value in said.items() if value is not None}}


def missing(what: str, param: str) -> Refused:
    """Say that there is no such thing. Its name is not repeated: it may be a card number sent by mistake."""
    return Refused(404, f"No such {what}.", code="resource_missing", param=param)


def unknown_method() -> Refused:
    """Say that no payment method has this id."""
    return Refused(400, "No such PaymentMethod.", code="resource_missing", param="payment_method")


def went_wrong() -> Refused:
    """Say that something failed here, and nothing of what."""
    return Refused(500, "An error occurred on our side.", kind="api_error")


def too_many() -> Refused:
    """Turn a request away before it begins."""
    return Refused(429, "Too many requests. Back off.", code="rate_limit")
