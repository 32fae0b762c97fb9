"""The same commands on Valkey, on fakeredis and on a model in plain Python: any difference is a bug."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from engine import coupons, sales
from engine.coupons import CountedCoupons, CouponsGone, Issued, NotIssuing
from engine.refusals import Busy, NotFound
from engine.stores import embedded
from engine.stores.replies import Reply
from engine.stores.scripts import Argument
from tests.engine.coupon_sources import TERMS_TEXT, Source, open_source
from tests.engine.seat_sales import buyer
from tests.engine.two_stores import TwoStores, try_out

QUANTITY = 4
BACKLOG_MAX = 3
USERS = ("ann", "bob", "cat", "dan", "eve", "fay", "gil")
AHEAD_MS, PAST_MS = 4_000_000_000_000, 1_000_000_000_000
TIMES = {"at_ms", "id", "before", "holds", "now_ms"}


@dataclass
class Model:
    """What the script promises, without a store."""

    quantity: int = QUANTITY
    status: str = "ISSUING"
    opens_at_ms: int = 0
    closes_at_ms: int = 0
    version: int = 1
    outbox_n: int = 0
    persisted_n: int = 0
    issued: dict[str, int] = field(default_factory=dict)

    def issue(self, by: str) -> Reply:
        """Issue, or say why not."""
        if by in self.issued:
            return Issued(self.issued[by], 1)
        if self.status in {"DRAFT", "DELETED"}:
            return NotFound()
        if self.status in {"PAUSED", "CLOSED"}:
            return NotIssuing(self.status)
        if self.opens_at_ms == AHEAD_MS:
            return NotIssuing("NOT_STARTED", AHEAD_MS)
        if self.closes_at_ms == PAST_MS:
            return NotIssuing("ENDED")
        if len(self.issued) >= self.quantity:
            return CouponsGone()
        if self.outbox_n - self.persisted_n > BACKLOG_MAX:
            return Busy(1000)
        self.outbox_n += 1
        self.issued[by] = self.outbox_n
        return Issued(self.outbox_n, 0)


class Issues(TwoStores[Source]):
    """Users ask, operators change what there is, the worker comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    async def open(self, redis: Any, *, shebang: bool) -> Source:
        return await open_source(redis, QUANTITY, shebang=shebang, backlog_max=BACKLOG_MAX)

    def timeless(self, answer: Any) -> Any:
        if isinstance(answer, dict):
            return {name: self.timeless(value) for name, value in answer.items() if name not in TIMES}
        return [self.timeless(each) for each in answer] if isinstance(answer, list) else answer

    @rule(by=st.sampled_from(USERS))
    def issue(self, by: str) -> None:
        expected = self.model.issue(by)
        assert self.on_both(lambda source: source.issue(by)) == expected

    @rule(by=st.sampled_from(USERS), times=st.integers(2, 5))
    def ask_in_one_moment(self, by: str, times: int) -> None:
        expected = [self.model.issue(by) for _ in range(times)]

        async def all_at_once(source: Source) -> list[Reply]:
            asked = [source.issue(by) for _ in range(times)]
            return [await each for each in asked]

        assert self.on_both(all_at_once) == expected

    @rule(
        status=st.sampled_from(("ISSUING", "ISSUING", "SOLD_OUT", "PAUSED", "CLOSED", "DRAFT", "DELETED")),
        more=st.integers(0, 2),
        opens_at_ms=st.sampled_from((0, 0, PAST_MS, AHEAD_MS)),
        closes_at_ms=st.sampled_from((0, 0, AHEAD_MS, PAST_MS)),
        is_late=st.booleans(),
    )
    def configure(self, status: str, more: int, opens_at_ms: int, closes_at_ms: int, *, is_late: bool) -> None:
        """Send new terms, or ones that were overtaken and change nothing."""
        model = self.model
        version = model.version - 1 if is_late else model.version + 1
        terms: dict[str, Argument] = {"status": status, "quantity": model.quantity + more, "terms": TERMS_TEXT}
        terms |= {"opens_at_ms": opens_at_ms, "closes_at_ms": closes_at_ms}
        flat: list[Argument] = [value for pair in terms.items() for value in pair]
        if not is_late:
            model.version, model.status, model.quantity = version, status, model.quantity + more
            model.opens_at_ms, model.closes_at_ms = opens_at_ms, closes_at_ms
        told = self.on_both(
            lambda source: sales.ask(source.gate, source.sale, sales.CONFIGURE, version=version, terms=flat)
        )
        assert told == sales.Configured(model.version)

    @rule()
    def let_postgres_have_it_all(self) -> None:
        self.model.persisted_n = self.model.outbox_n
        self.on_both(lambda source: source.set(outbox_persisted_n=self.model.outbox_n))

    @invariant()
    def it_counts_what_the_model_counts(self) -> None:
        model = self.model
        behind = model.outbox_n - model.persisted_n
        counted = self.on_both(lambda source: sales.ask(source.gate, source.sale, coupons.COUNT))
        assert counted == CountedCoupons("open", model.version, model.quantity, len(model.issued), behind)

    @invariant()
    def both_stores_hold_the_same(self) -> None:
        async def contents(source: Source) -> dict[str, Any]:
            return {
                "sale": await source.fields("sale"),
                "issued": await source.issued(),
                "outbox": await source.entries("outbox"),
            }

        issued = self.on_both(contents)["issued"]
        assert issued == {buyer(name): str(n) for name, n in self.model.issued.items()}

    @invariant()
    def what_is_true_of_every_source_is_true(self) -> None:
        self.runner.run(self.valkey.check())


@pytest.mark.timeout(600)
def test_issues_behave_alike_on_valkey_on_fakeredis_and_in_the_model(valkey_server: embedded.Server) -> None:
    try_out(Issues, valkey_server, examples=60, steps=40)
