"""One sale on Valkey and on fakeredis, driven by Hypothesis: what both do must be alike, step by step."""

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Generic, TypeVar

import fakeredis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from engine.stores import embedded
from engine.stores.connections import open_redis
from tests.engine.stored_sales import StoredSale

S = TypeVar("S", bound=StoredSale)


class TwoStores(RuleBasedStateMachine, Generic[S]):
    """A sale in two stores; whoever derives from it says how it is opened, and adds a model and the rules."""

    url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.valkey, self.fake = self.runner.run(self._open())

    @abstractmethod
    async def open(self, redis: Any, *, shebang: bool) -> S:
        """Write the sale into one store."""

    @abstractmethod
    def timeless(self, answer: Any) -> Any:
        """An answer without what tells a time: in that alone may the stores differ."""

    async def _open(self) -> tuple[S, S]:
        fake = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer(server_type="valkey"))
        return await self.open(open_redis(self.url), shebang=True), await self.open(fake, shebang=False)

    def teardown(self) -> None:
        """Leave nothing in the store that is shared."""
        self.runner.run(self._close())
        self.runner.close()

    async def _close(self) -> None:
        await self.valkey.redis.flushall()
        await self.valkey.redis.aclose()
        await self.fake.redis.aclose()

    def on_both(self, act: Callable[[S], Coroutine[Any, Any, Any]]) -> Any:
        """Do the same on both stores; Valkey's answer, which must be the same word with the same fields."""
        on_valkey = self.runner.run(act(self.valkey))
        on_fake = self.runner.run(act(self.fake))
        assert self.timeless(on_valkey) == self.timeless(on_fake)
        return on_valkey


def try_out(machine: type[TwoStores[Any]], server: embedded.Server, *, examples: int, steps: int) -> None:
    """Let Hypothesis look for steps after which the stores or the model differ."""
    machine.url = server.url  # Hypothesis makes machines itself, without arguments
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            print_blob=True,
        ),
    )
