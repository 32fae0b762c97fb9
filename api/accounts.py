"""People sign up, sign in, and are forgotten; operators make accounts in bulk."""

from typing import Annotated

from msgspec import Meta

from api.answers import Answer, Document, answer
from api.bodies import whole
from api.callers import USER, operator
from api.clock import Time, rfc3339
from api.operations import Body, Request, Routes
from api.problems import NotSignedIn, Refused
from engine import accounts, carts, ids, waiting_lists
from engine.accounts import TOKEN_LIFETIME_S, Account, EmailTaken, User
from engine.balances import AMOUNT_MAX, charge_many
from engine.refusals import Busy, IdempotencyKeyReused

BEARER = "Bearer"

routes = Routes("People and money")

Email = Annotated[str, Meta(pattern=whole(r"[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+"), max_length=254)]
Password = Annotated[str, Meta(min_length=8, max_length=128)]
Name = Annotated[str, Meta(pattern=whole(r"[^\x00-\x1f\x7f]+"), max_length=100)]


class NewAccount(Body, frozen=True):
    """Who signs up."""

    email: Email
    password: Password
    name: Name


class NewAccountMade(Document, frozen=True):
    """The account."""

    user_id: str


class Credentials(Body, frozen=True):
    """Who signs in."""

    email: Annotated[str, Meta(pattern=whole(r"[^\x00]*"), max_length=254)]
    password: Annotated[str, Meta(max_length=128)]


class Session(Document, frozen=True):
    """A token that says who calls, for `Authorization: Bearer`."""

    access_token: str
    token_type: str
    expires_in: int


class Me(Document, frozen=True):
    """The account of whoever asks; name and e-mail are null once they are wiped."""

    user_id: str
    email: str | None
    name: str | None
    created_at: Time


class NewAccounts(Body, frozen=True):
    """How many accounts to make, and what each balance begins with."""

    count: Annotated[int, Meta(ge=1, le=10_000)]
    balance: Annotated[int, Meta(ge=0, le=AMOUNT_MAX)] = 0


class AccountWithToken(Document, frozen=True):
    """An account made in bulk, with the token it calls with."""

    user_id: str
    access_token: str


class AccountsMade(Document, frozen=True):
    """The accounts, in the order of their numbers."""

    items: list[AccountWithToken]
    expires_in: int


@routes.add(
    "POST", "/v1/accounts", {201: NewAccountMade}, keyed=True, refusals=(EmailTaken, IdempotencyKeyReused, Busy)
)
async def sign_up(request: Request, body: NewAccount) -> Answer:
    """Sign up with an e-mail and a password."""
    email = body.email.lower()
    made = await accounts.sign_up(
        request.house.postgres,
        request.house.passwords,
        # Nobody is signed in yet, so the e-mail is who calls.
        user_id=request.new_id(email),
        email=email,
        password=body.password,
        name=body.name,
    )
    if not isinstance(made, Account):
        raise Refused(made)
    return answer(NewAccountMade(user_id=made.user_id), 201, repeated=made.repeated)


@routes.add("POST", "/v1/sessions", {201: Session}, refusals=(NotSignedIn, Busy))
async def sign_in(request: Request, body: Credentials) -> Answer:
    """Sign in and get a token."""
    house = request.house
    # Lowered as it is where it is written: Postgres lowers other letters than Python does.
    email = body.email.lower()
    user_id = await accounts.sign_in(house.postgres, house.passwords, email=email, password=body.password)
    if isinstance(user_id, Busy):
        raise Refused(user_id)
    if user_id is None:
        raise Refused(NotSignedIn())
    token = house.user_tokens.sign(user_id, house.clock.now_ms)
    return answer(Session(access_token=token, token_type=BEARER, expires_in=TOKEN_LIFETIME_S), 201)


@routes.add("GET", "/v1/me", {200: Me}, caller=USER)
async def find_me(request: Request) -> Answer:
    """Who I am."""
    return _me(await accounts.find(request.house.postgres, request.caller_id))


@routes.add("DELETE", "/v1/me", {200: Me}, caller=USER)
async def wipe_me(request: Request) -> Answer:
    """Forget my name, my e-mail, my password and my cart; what I bought stays, and my tokens count no longer."""
    await waiting_lists.leave_all(request.house.postgres, request.caller_id)
    async with request.house.postgres.acquire() as connection, connection.transaction():
        wiped = await accounts.wipe(connection, request.caller_id)
        # After it: whoever fills the cart locks the account first, and finds it wiped.
        await carts.empty(connection, request.caller_id)
    request.house.user_tokens.wiped.add(request.caller_id)
    return _me(wiped)


def _me(user: User | None) -> Answer:
    if user is None:
        raise Refused(NotSignedIn())
    return answer(Me(user_id=user.user_id, email=user.email, name=user.name, created_at=rfc3339(user.created_at)))


@routes.add(
    "POST",
    "/v1/admin/accounts",
    {201: AccountsMade},
    caller=operator(accounts.ACCOUNTS),
    keyed=True,
    refusals=(IdempotencyKeyReused,),
)
async def create_many(request: Request, body: NewAccounts) -> Answer:
    """Make accounts with tokens: for a demonstration, a load test, or a shop with its own sign-in."""
    house = request.house
    first = request.new_id()
    user_ids = [ids.derive(first, str(number)) for number in range(body.count)]
    repeated = await accounts.create_many(
        house.postgres, user_ids=user_ids, fingerprint=ids.fingerprint(str(body.count), str(body.balance))
    )
    if isinstance(repeated, IdempotencyKeyReused):
        raise Refused(repeated)
    if body.balance:
        charges = {user_id: ids.derive("opening balance", user_id) for user_id in user_ids}
        await charge_many(house.postgres, charges=charges, amount=body.balance, reason="opening balance")
    now_ms = house.clock.now_ms
    items = [
        AccountWithToken(user_id=user_id, access_token=house.user_tokens.sign(user_id, now_ms)) for user_id in user_ids
    ]
    return answer(AccountsMade(items=items, expires_in=TOKEN_LIFETIME_S), 201, repeated=repeated)
