"""Every body that runs is paid: also one that raises, and one that runs past the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from aicache_tasks import CachedTask, CachePolicy, NotCached, annotate
from aicache_tasks.records import CallInfo
from aicache_tasks.runtime import runtime_of
from aicache_tasks.stores.base import Budget
from aicache_tasks.summary import SummaryRecord
from aicache_tasks.testing import EmbeddedServer
from aicache_tasks.work import CURRENT
from tests.reported import reader_of

Make = Callable[..., Celery]
PRICES = {"version": "7", "models": {"m-*": {"input": 2, "output": 8}}}
DURABLE = {"aicache_samples": "durable", "aicache_budget_ms": 5000, "aicache_connect_ms": 5000}
MICROS = 2 * 10 + 8
"""What a call of `tell` costs."""


def telling(app: Celery, **policy: Any) -> Any:
    """Return a task that takes tokens, and then raises what it is given, if anything."""

    @app.task(
        base=CachedTask, cache=CachePolicy(operation="tell", ignore=("error",), **policy), name="tell", shared=False
    )
    def tell(text: Any, error: BaseException | None = None) -> str:
        assert CURRENT.get() is not None
        annotate(model="m-1", usage={"input_tokens": 10, "output_tokens": 1})
        if error is not None:
            raise error
        return str(text)

    return tell


@pytest.fixture
def app(make: Make, valkey: EmbeddedServer) -> Celery:
    return make(aicache_url=valkey.url, aicache_prices=PRICES, **DURABLE)


def record_of(app: Celery, operation: str = "tell") -> SummaryRecord:
    return reader_of(app).live().totals[operation]


def spent(app: Celery) -> tuple[int, int, dict[tuple[str, str], int]]:
    """Return what the record says: millionths, tokens, and bodies by outcome and their calls' status."""
    record = record_of(app)
    bodies = {key[1:]: count for key, count in record.counts.items() if key[0] == "compute"}
    assert record.spent.compute_ns == record.steps["compute"].total
    assert record.steps["compute"].count == sum(bodies.values())
    return record.spent.cost_micros, record.spent.tokens.total(), bodies


class TestPastTheCache:
    def test_a_call_that_asked_for_it(self, app: Celery) -> None:
        tell = telling(app)
        tell.with_cache(bypass=True)("a")
        last: CallInfo = tell.cache.last
        assert (last.status, last.reason, last.set_status) == ("bypass", "requested", "")
        assert last.compute_ms > 0
        assert spent(app) == (MICROS, 11, {("success", "bypass"): 1})
        assert record_of(app).counts["get", "bypass", "requested"] == 1

    @pytest.mark.parametrize(
        ("policy", "text", "reason"),
        [
            ({}, object(), "KeyEncodingError"),
            ({"vary": lambda call: 1 // 0}, "a", "ZeroDivisionError"),
            ({"tenant": lambda call: call["nobody"]}, "a", "KeyError"),
        ],
    )
    def test_a_call_that_cannot_be_keyed_says_what_kind_of_problem_it_is(
        self, make: Make, valkey: EmbeddedServer, policy: dict[str, Any], text: Any, reason: str
    ) -> None:
        app = make(aicache_url=valkey.url, aicache_prices=PRICES, **DURABLE, aicache_strict=False)
        tell = telling(app, **policy)
        assert tell(text) == str(text)
        last: CallInfo = tell.cache.last
        assert (last.status, last.reason) == ("bypass", reason)
        assert spent(app) == (MICROS, 11, {("success", "bypass"): 1})
        assert record_of(app).counts["get", "bypass", reason] == 1

    def test_a_cache_that_operators_switched_off(self, app: Celery) -> None:
        tell = telling(app)
        runtime_of(app).cache.parts.mode.switch(off=True, budget=Budget(5))
        for text in "ab":  # the first call reads the switch, the second knows it
            tell(text)
            assert tell.cache.last.status == "disabled"
            assert tell.cache.last.compute_ms > 0
        assert spent(app) == (2 * MICROS, 22, {("success", "disabled"): 2})

    def test_a_cache_that_is_entirely_off_needs_no_server_and_records_nothing(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AICACHE_DISABLED", "1")
        app = make(aicache_url=None, aicache_prices=PRICES)
        tell = telling(app)
        assert tell("a") == "a"
        assert (tell.cache.last.status, tell.cache.last.compute_ms > 0) == ("disabled", True)
        with pytest.raises(KeyError):
            tell("a", KeyError("b"))
        assert (tell.cache.last.status, tell.cache.last.compute_ms > 0) == ("disabled", True)
        assert runtime_of(app)._cache is None

    def test_a_call_that_may_not_compute_takes_nothing(self, app: Celery) -> None:
        tell = telling(app)
        with pytest.raises(NotCached):
            tell.with_cache(only_if_cached=True)("a")
        assert tell.cache.last.compute_ms == 0
        assert record_of(app).spent.compute_ns == 0


class TestBodiesThatRaise:
    @pytest.mark.parametrize(
        "error", [ValueError("a"), Retry("a"), Ignore(), Reject("a"), SoftTimeLimitExceeded(), SystemExit(1)]
    )
    @pytest.mark.parametrize(
        ("directives", "status"), [({}, "miss"), ({"bypass": True}, "bypass"), ({"refresh": True}, "refresh")]
    )
    def test_are_paid_for_what_they_took_until_then(
        self, app: Celery, error: BaseException, directives: dict[str, bool], status: str
    ) -> None:
        tell = telling(app)
        with pytest.raises(type(error)):
            tell.with_cache(**directives)("a", error)
        assert (tell.cache.last.status, tell.cache.last.compute_ms > 0) == (status, True)
        assert spent(app) == (MICROS, 11, {("failed", status): 1})

    def test_a_failure_is_no_answer_and_no_success(self, app: Celery) -> None:
        @app.task(base=CachedTask, cache=CachePolicy(operation="tell"), name="fails", shared=False)
        def fails() -> None:
            annotate(model="m-1", usage={"input_tokens": 10})
            annotate(usage={"output_tokens": 1})
            raise LookupError

        for _ in range(2):
            with pytest.raises(LookupError):
                fails()
        assert (fails.cache.last.status, fails.cache.last.set_reason) == ("miss", "body_failed")
        assert fails.cache.last.compute_ms > 0
        assert spent(app) == (2 * MICROS, 22, {("failed", "miss"): 2})
        assert record_of(app).hits == 0


class TestBodiesWithinBodies:
    def test_each_takes_its_own_tokens_and_money_and_the_time_that_passes(self, app: Celery) -> None:
        tell = telling(app)

        @app.task(base=CachedTask, cache=CachePolicy(operation="outer"), name="outer", shared=False)
        def outer(text: str) -> str:
            annotate(model="m-2", usage={"input_tokens": 100})
            told: str = tell(text)
            tell.with_cache(bypass=True)(text)
            annotate(usage={"output_tokens": 5})
            return told

        outer("a")
        assert spent(app) == (2 * MICROS, 22, {("success", "miss"): 1, ("success", "bypass"): 1})
        record = record_of(app, "outer")
        assert (record.spent.cost_micros, record.spent.tokens.total()) == (240, 105)
        assert record.spent.compute_ns > record_of(app).spent.compute_ns

    def test_a_hit_saves_what_its_own_body_cost(self, app: Celery) -> None:
        tell = telling(app)
        tell("a"), tell("a"), tell("a")
        record = record_of(app)
        assert (record.saved.costs, record.spent.costs) == ({"7": 2 * MICROS}, {"7": MICROS})


class TestWhatABodySays:
    def test_counts_until_it_ends_for_its_entry_as_for_the_records(self, app: Celery) -> None:
        """A thread that outlives the body may still speak while its answer is being stored."""
        contexts: list[Context] = []

        def late(_: str) -> bool:
            contexts.pop().run(annotate, model="m-2", usage={"input_tokens": 1000}, cost=9)
            return True

        @app.task(base=CachedTask, cache=CachePolicy(operation="says", store_if=late), name="says", shared=False)
        def says(text: str) -> str:
            annotate(model="m-1", usage={"input_tokens": 10, "output_tokens": 1})
            contexts.append(copy_context())
            return text

        says("a"), says("a")
        record, entry = record_of(app, "says"), says.cache.peek("a")
        assert record.spent.tokens == record.saved.tokens == entry.usage == {"input_tokens": 10, "output_tokens": 1}
        assert record.spent.costs == record.saved.costs == {"7": MICROS}
        assert entry.model == "m-1"

    @pytest.mark.parametrize(
        ("model", "usage"),
        [
            (type("Name", (str,), {})("m-1"), {}),
            ("m-\ud800", {"in\ud800_tokens": 3}),
            ("m-" + "x" * 100_000, {"x" * 100_000: 3}),
            ("m-1", {f"k{i}_tokens": 1 for i in range(5000)}),
            ("m-1", {"k": 2**53 - 1}),
            ("m-" + "\U0001d11e" * 200, {f"{i:02}" + "\U0001d11e" * 64: 2**53 - 1 for i in range(99)}),
        ],
        ids=["of-another-type", "half-a-pair", "long", "many", "high", "all-there-is-room-for"],
    )
    def test_keeps_no_answer_from_being_stored_nor_counted(
        self, app: Celery, model: str, usage: dict[str, int]
    ) -> None:
        @app.task(base=CachedTask, cache=CachePolicy(operation="says"), name="says", shared=False)
        def says(text: str) -> str:
            annotate(model=model, usage={"input_tokens": 10, "output_tokens": 1})
            for _ in range(2100 if len(usage) == 1 else 3):  # past 2**64
                annotate(usage=usage)
            return text

        says("a"), says("a")
        last: CallInfo = says.cache.last
        assert last.status == "hit"
        record = record_of(app, "says")
        assert record.spent.costs == record.saved.costs == {"7": MICROS}
        assert record.spent.tokens["input_tokens"] == 10


class TestTellingOfIt:
    @pytest.fixture
    def said(self, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
        with caplog.at_level(logging.DEBUG, logger="aicache_tasks.calls"):
            yield lambda: [r.getMessage() for r in caplog.records if r.name == "aicache_tasks.calls"]

    def test_the_log_has_the_reason_and_the_body_s_time(self, app: Celery, said: Callable[[], list[str]]) -> None:
        tell = telling(app)
        tell.with_cache(bypass=True)("canary")
        tell("canary")
        asked, missed = said()
        assert asked.startswith("aicache.call bypass requested of 'tell' in tell: ")
        assert missed.startswith("aicache.call miss key_not_found of 'tell' in tell: ")
        assert "compute 0.000 ms" not in asked + missed
        assert "canary" not in asked + missed

    def test_the_log_says_why_an_answer_was_not_stored(self, app: Celery, said: Callable[[], list[str]]) -> None:
        @app.task(base=CachedTask, cache=CachePolicy(operation="no", store_if=lambda _: False), name="no", shared=False)
        def refused(text: str) -> str:
            return text

        refused("a")
        (line,) = said()
        assert line.endswith(" ms skipped store_if")

    def test_a_model_without_a_price_is_warned_of_once(self, app: Celery, caplog: pytest.LogCaptureFixture) -> None:
        @app.task(base=CachedTask, cache=CachePolicy(operation="else"), name="else", shared=False)
        def elsewhere(text: str) -> None:
            annotate(model="m2", usage={"input_tokens": 3})

        for text in "abc":
            elsewhere(text)
        lines = [r.getMessage() for r in caplog.records if "aicache.prices" in r.getMessage()]
        (line,) = lines
        took = "answers of model 'm2' took tokens ('input_tokens')"
        assert line == f"aicache.prices 7: {took} that have no price in aicache_prices['models']"
        record = record_of(app, "else")
        assert (record.spent.unpriced, record.spent.cost_micros) == ({"m2": 3}, 0)

    def test_records_name_the_model_without_a_price_whichever_answered_last(self, app: Celery) -> None:
        @app.task(base=CachedTask, cache=CachePolicy(operation="else"), name="else", shared=False)
        def elsewhere(text: str) -> None:
            annotate(model="m2", usage={"input_tokens": 3})
            annotate(model="m1", usage={"input_tokens": 3})

        elsewhere("a")
        elsewhere.with_cache(bypass=True)("a")
        assert record_of(app, "else").spent.unpriced == {"m2": 2}
        entry = elsewhere.cache.peek("a")
        assert entry is not None
        assert entry.model == "m1"

    def test_many_models_and_kinds_fill_neither_the_log_nor_the_room_for_errors(
        self, app: Celery, caplog: pytest.LogCaptureFixture
    ) -> None:
        @app.task(base=CachedTask, cache=CachePolicy(operation="else"), name="else", shared=False)
        def elsewhere(text: str) -> None:
            annotate(model=f"model {text}", usage={f"{'k' * 50}{i}_tokens": 1 for i in range(60)})

        for at in range(120):
            elsewhere.with_cache(bypass=True)(str(at))
        lines = [r.getMessage() for r in caplog.records if "aicache.prices" in r.getMessage()]
        assert len(lines) == 100
        assert max(map(len, lines)) < 500
        assert not runtime_of(app).cache.parts.errors.logged
        assert record_of(app, "else").spent.unpriced.total() == 120

    def test_without_prices_nobody_is_warned(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        telling(make())("a")
        assert not [r for r in caplog.records if "aicache.prices" in r.getMessage()]
