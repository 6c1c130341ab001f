"""What each call of a task leaves in the inbox of the summary records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from aicache_tasks import AIResponseCache, CachedTask, CachePolicy, NotCached, annotate
from aicache_tasks.codec import decode_meta
from aicache_tasks.runtime import name_worker, runtime_of
from aicache_tasks.settings import Settings
from aicache_tasks.stores.memory import MemoryStore
from aicache_tasks.testing import EmbeddedServer
from tests.faults import free_port
from tests.inbox import batches, rows

Make = Callable[..., Celery]
PATIENT = {"aicache_budget_ms": 5000, "aicache_connect_ms": 5000}
DURABLE = {"aicache_samples": "durable", "aicache_ship_after_s": 600, **PATIENT}


def shouting(app: Celery) -> Any:
    """Return a task of *app* that fails for "fail" and is asked not to store for "quiet"."""

    @app.task(base=CachedTask, cache=CachePolicy(operation="shout", ttl="1h"), name="shout", shared=False)
    def shout(text: str) -> str:
        if text == "fail":
            raise KeyError(text)
        annotate(model="m-1", usage={"input_tokens": 7}, cost=0.25)
        return text.upper()

    return shout


def steps(client: Any) -> Counter[tuple[str, str, str]]:
    """Return how often each step, status and reason is in the inbox."""
    return Counter(row[2:5] for batch in batches(client) for row in batch.rows)


class TestDurable:
    """A call's samples are in the inbox when it returns."""

    @pytest.fixture
    def shout(self, make: Make, valkey: EmbeddedServer) -> Any:
        return shouting(make(aicache_url=valkey.url, **DURABLE))

    def test_a_miss_and_a_hit(self, shout: Any, client: Any) -> None:
        assert shout("a") == "A"
        missed = {
            ("get", "miss", "key_not_found"): 1,
            ("compute", "success", "miss"): 1,
            ("set", "success", ""): 1,
        }
        assert steps(client) == missed
        assert shout("a") == "A"
        assert steps(client) == missed | {("get", "hit", ""): 1}

    def test_a_hit_from_memory(self, make: Make, valkey: EmbeddedServer, client: Any) -> None:
        shout = shouting(make(aicache_url=valkey.url, aicache_l1_entries=10, **DURABLE))
        for _ in range(3):
            shout("a")
        assert shout.cache.last.source == "memory"
        assert steps(client)["get", "hit", ""] == 2

    def test_a_body_that_failed(self, shout: Any, client: Any) -> None:
        with pytest.raises(KeyError):
            shout("fail")
        assert steps(client) == {
            ("get", "miss", "key_not_found"): 1,
            ("compute", "failed", "miss"): 1,
            ("set", "skipped", "body_failed"): 1,
        }

    def test_a_call_that_goes_past_the_cache(self, shout: Any, client: Any) -> None:
        shout.with_cache(bypass=True)("a")
        with pytest.raises(AttributeError):
            shout(object())  # cannot be keyed
        assert steps(client) == {
            ("get", "bypass", "requested"): 1,
            ("compute", "success", "bypass"): 1,
            ("get", "bypass", "KeyEncodingError"): 1,
            ("compute", "failed", "bypass"): 1,
        }

    def test_a_call_that_may_not_compute(self, shout: Any, client: Any) -> None:
        with pytest.raises(NotCached):
            shout.with_cache(only_if_cached=True)("a")
        assert steps(client) == {("get", "miss", "key_not_found"): 1}

    def test_what_operators_ask_leaves_nothing_and_what_they_store_its_key(self, shout: Any, client: Any) -> None:
        shout.cache.set("B", "b")
        shout.cache.peek("b")
        shout.cache.key("b")
        shout.cache.explain("b")
        shout("b")
        assert steps(client) == {("key", "success", ""): 1, ("set", "success", ""): 1, ("get", "hit", ""): 1}

    def test_an_invalidated_call_leaves_its_invalidation_alone(self, shout: Any, client: Any) -> None:
        shout("a")
        before = steps(client)
        assert shout.cache.invalidate("a")
        shout("b")  # waits until what is before it has been sent
        assert steps(client) == before + before + Counter([("invalidate", "success", "")])

    def test_the_facade(self, valkey: EmbeddedServer, client: Any) -> None:
        cache = AIResponseCache(settings=Settings.from_mapping({"aicache_url": valkey.url, **DURABLE}), ship=True)
        cache.get_cached_response("t", "shout", {})
        cache.cache_response("t", "shout", {}, "T")
        cache.lookup("t", "shout", {})
        assert steps(client) == {
            ("get", "miss", "key_not_found"): 1,
            ("key", "success", ""): 1,
            ("set", "success", ""): 1,
            ("get", "hit", ""): 1,
        }
        cache.close()

    def test_a_store_that_is_away_delays_no_call_beyond_its_budget_and_fails_none(self, make: Make) -> None:
        settings = {**DURABLE, "aicache_budget_ms": 50, "aicache_connect_ms": 250}
        shout = shouting(make(aicache_url=f"redis://127.0.0.1:{free_port()}/0", **settings))
        assert [shout("a"), shout("a")] == ["A", "A"]
        assert shout.cache.last.status == "error"
        outbox = runtime_of(shout.app).cache.parts.outbox
        assert outbox is not None
        assert outbox.waiting == 6
        outbox.after_fork()


class TestWhatIsShipped:
    def test_a_hit_bears_its_key_its_decoding_its_age_and_what_the_answer_took(
        self, make: Make, valkey: EmbeddedServer, client: Any
    ) -> None:
        shout = shouting(make(aicache_url=valkey.url, **DURABLE))
        shout("a")
        shout("a")
        rows = {row[2:4]: row for batch in batches(client) for row in batch.rows}
        at, operation, *_, took_ns, length, tier, raw, stored, key_ns, decode_ns, age_ms, meta = rows["get", "hit"]
        assert at > 1.7e9
        assert (operation, length, tier, raw) == ("shout", 1, "small", 2)
        assert min(took_ns, stored, key_ns, decode_ns) > 0
        assert took_ns > decode_ns
        assert 0 <= age_ms < 60_000
        computed = decode_meta(rows["compute", "success"][13])
        assert (computed.model, computed.usage, computed.cost) == ("m-1", {"input_tokens": 7}, 0.25)
        assert computed.compute_ns == rows["compute", "success"][5]
        assert decode_meta(meta) == computed
        assert rows["get", "miss"][11:] == (0, 0, b"")
        assert rows["get", "miss"][10] > 0

    def test_each_key_counts_once_in_the_arrays_and_in_the_inbox(
        self, make: Make, valkey: EmbeddedServer, client: Any
    ) -> None:
        shout = shouting(make(aicache_url=valkey.url, **DURABLE))
        for text in "aabb":
            shout(text)
        shout.cache.peek("a")
        monitor = runtime_of(shout.app).cache.monitor
        assert len(monitor.key_generation_times) == 4
        assert shout.cache.invalidate("a")
        shout("c")
        rows = [row for batch in batches(client) for row in batch.rows]
        assert sum(row[2] == "key" or row[10] > 0 for row in rows) == 5
        assert len(monitor.key_generation_times) == 5

    def test_the_cache_s_size(self, valkey: EmbeddedServer, client: Any) -> None:
        cache = AIResponseCache(settings=Settings.from_mapping({"aicache_url": valkey.url, **PATIENT}), ship=True)
        cache.get_cache_stats()
        assert cache.parts.outbox is not None
        assert cache.parts.outbox.flush(30)
        (row,) = rows(batches(client))
        assert row[1:3] == ("", "memory")
        assert row[9] == cache.monitor.memory_usage_measurements[0].total_cache_size_bytes > 100_000


class TestWhoShips:
    def outbox(self, app: Celery) -> Any:
        return runtime_of(app).cache.parts.outbox

    def test_an_application_that_is_installed(self, make: Make, valkey: EmbeddedServer) -> None:
        assert self.outbox(make(aicache_url=valkey.url)) is not None

    def test_not_one_whose_samples_are_off(self, make: Make, valkey: EmbeddedServer) -> None:
        assert self.outbox(make(aicache_url=valkey.url, aicache_samples="off")) is None

    def test_not_one_whose_store_takes_none(self, make: Make) -> None:
        assert self.outbox(make()) is None

    def test_not_one_that_is_not_installed(self, valkey: EmbeddedServer) -> None:
        app = Celery("t", broker="memory://", set_as_current=False)
        app.conf.aicache_url = valkey.url
        assert self.outbox(app) is None

    def test_a_facade_only_if_asked(self, valkey: EmbeddedServer) -> None:
        assert AIResponseCache(valkey.url).parts.outbox is None
        assert AIResponseCache(valkey.url, ship=True).parts.outbox is not None
        assert AIResponseCache(store=MemoryStore(), ship=True).parts.outbox is None

    def test_a_worker_s_samples_have_its_name(self, make: Make, valkey: EmbeddedServer) -> None:
        app = make(aicache_url=valkey.url)
        assert runtime_of(app)._origin().startswith("producer@")
        (step,) = [step for step in app.steps["worker"] if step.name == "aicache"]
        step(SimpleNamespace(app=app, steps=[], hostname="celery@one"))
        name_worker("celery@two")  # what a child is told that inherited none
        assert runtime_of(app)._origin() == "celery@one"

    def test_settings_give_the_monitor_its_limits(self, make: Make) -> None:
        limits = {
            "aicache_slow_key_ms": 7,
            "aicache_slow_operation_ms": 8,
            "aicache_invalidations_warning_per_hour": 9,
            "aicache_invalidations_critical_per_hour": 10,
        }
        monitor = runtime_of(make(**limits)).cache.monitor
        assert (monitor.key_generation_threshold, monitor.cache_operation_threshold) == (0.007, 0.008)
        per_hour = monitor.invalidation_rate_warning_per_hour, monitor.invalidation_rate_critical_per_hour
        assert per_hour == (9, 10)
