"""The whole application over real stores, called in-process; every answer is held against the OpenAPI document."""

from collections.abc import AsyncIterator

import httpx
import pytest

from api.app import create_app
from api.face import Face
from api.house import House, open_house
from engine.installation import prepare_database
from engine.settings import Settings
from tests.api.calling import ADMIN_KEY, Contract, Person, Show, Worker, put_on


@pytest.fixture(scope="session")
def contract() -> Contract:
    """The OpenAPI document of the application."""
    return Contract()


@pytest.fixture
async def settings(redis_url: str, postgres_url: str) -> Settings:
    """An installation that is prepared; hashing is cheap in it."""
    settings = Settings(
        redis_url=redis_url,
        postgres_url=postgres_url,
        admin_key=ADMIN_KEY,
        password_memory_kib=8,
        password_passes=1,
        workers=1,
        cors_origins=("https://shop.example",),
    )
    assert await prepare_database(settings) is None
    return settings


@pytest.fixture
async def house(settings: Settings) -> AsyncIterator[House]:
    """What the handlers share."""
    async with open_house(settings) as house:
        yield house


@pytest.fixture
def app(settings: Settings, house: House) -> Face:
    """The application, as it is once it has started."""
    face = create_app(settings)
    face.house = house
    return face


@pytest.fixture
async def http(app: Face, contract: Contract) -> AsyncIterator[httpx.AsyncClient]:
    """A client that nobody signed in to."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app),  # type: ignore[arg-type]  # both are ASGI, typed by different names
        base_url="http://lastseat.test",
        event_hooks={"response": [contract.check]},
    ) as client:
        yield client


@pytest.fixture
def operator(http: httpx.AsyncClient) -> Person:
    """An operator who may do everything."""
    return Person(http, "", ADMIN_KEY)


@pytest.fixture
async def people(operator: Person) -> list[Person]:
    """Three people with 100,000 each."""
    answered = await operator.post("/v1/admin/accounts", {"count": 3, "balance": 100_000})
    assert answered.status_code == 201, answered.text
    return [Person(operator.http, item["user_id"], item["access_token"]) for item in answered.json()["items"]]


@pytest.fixture
async def show(operator: Person) -> Show:
    """A hall of ten seats, A-1-1 to A-2-5, at 1,000 each; at most four a buyer."""
    return await put_on(operator, per_buyer_max=4)


@pytest.fixture
def worker(house: House) -> Worker:
    """A worker that drains when it is told."""
    return Worker(house)
