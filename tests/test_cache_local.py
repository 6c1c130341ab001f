"""L1: fast, bounded, and never older than it says."""

from __future__ import annotations

import os
from typing import Any

import pytest

from aicache_tasks import AIResponseCache
from aicache_tasks.errors import StoreUnavailable
from aicache_tasks.testing import EmbeddedServer
from tests.caches import STRICT, TEXT, Clock, gets, live_cache, looked_up, wound_cache
from tests.faults import eventually


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> AIResponseCache:
    return wound_cache(clock, memory_cache_size=3)


def put(cache: AIResponseCache, answer: Any, number: int = 0) -> None:
    cache.cache_response(TEXT, "qa", {"n": number}, answer)


def get(cache: AIResponseCache, number: int = 0) -> Any:
    return cache.get_cached_response(TEXT, "qa", {"n": number})


def tier(cache: AIResponseCache) -> str:
    return str(gets(cache)[-1].additional_data["cache_tier"])


def test_a_hit_asks_no_server(own_server: EmbeddedServer) -> None:
    """C8: the server sees no command."""
    cache = live_cache(own_server.url, memory_cache_size=10, mono_s=lambda: 50.0)
    with own_server.client() as client:
        put(cache, "one")
        client.config_resetstat()
        assert get(cache) == "one"
        assert tier(cache) == "memory"
        assert "cmdstat_mget" not in client.info("commandstats")


def test_a_hit_in_the_server_fills_it(clock: Clock, cache: AIResponseCache) -> None:
    """C8."""
    put(cache, "one")
    cache.invalidate_memory_cache()
    get(cache)
    assert tier(cache) == "redis"
    get(cache)
    assert tier(cache) == "memory"


def test_only_the_tiers_that_are_set_are_kept(clock: Clock) -> None:
    """C8: small texts only, if the settings say so."""
    cache = wound_cache(clock, memory_cache_size=10, settings=STRICT.updated({"aicache_l1_tiers": "small"}))
    for text in ("short", "x" * 500):
        cache.cache_response(text, "qa", {}, "answer")
        cache.get_cached_response(text, "qa", {})
    assert [g.additional_data["cache_tier"] for g in gets(cache)] == ["memory", "redis"]


def test_the_least_recently_used_goes_first(cache: AIResponseCache) -> None:
    """C8: limit and order of eviction."""
    for number in (1, 2, 3):
        put(cache, number, number)
    get(cache, 1)
    put(cache, 4, 4)
    tiers = []
    for number in (1, 3, 4, 2):
        get(cache, number)
        tiers.append(tier(cache))
    assert tiers == ["memory", "memory", "memory", "redis"]


def test_after_a_second_the_server_is_asked_again(clock: Clock, cache: AIResponseCache) -> None:
    put(cache, "one")
    clock.wind(0.9)
    get(cache)
    assert tier(cache) == "memory"
    clock.wind(0.2)
    get(cache)
    assert tier(cache) == "redis"


def test_another_process_invalidates_within_a_second(clock: Clock, cache: AIResponseCache) -> None:
    """F7: a token or a tombstone that another process writes is seen when the second is over."""
    other = wound_cache(clock)
    put(cache, "one", 1)
    put(cache, "two", 2)
    other.invalidate_by_operation("qa")
    clock.wind(1.01)
    assert get(cache, 1) is None
    put(cache, "three", 3)
    other.invalidate(TEXT, "qa", {"n": 3})
    clock.wind(1.01)
    assert get(cache, 3) is None


def test_an_answer_that_was_invalidated_while_its_body_ran_is_not_kept(clock: Clock, cache: AIResponseCache) -> None:
    """F7: what L1 may trust counts from when the tokens were read, not from when the answer was stored."""
    other = wound_cache(clock)
    call = looked_up(cache, "qa")
    other.invalidate_by_operation("qa")
    clock.wind(10)
    cache.publish(call, "computed before")
    assert get(cache) is None


@pytest.mark.parametrize("how", ["call", "operation", "all", "overwrite"])
def test_this_process_sees_its_own_changes_at_once(cache: AIResponseCache, how: str) -> None:
    """F7."""
    put(cache, "one")
    {
        "call": lambda: cache.invalidate(TEXT, "qa", {"n": 0}),
        "operation": lambda: cache.invalidate_by_operation("qa"),
        "all": cache.invalidate_all,
        "overwrite": lambda: put(cache, "two"),
    }[how]()
    assert get(cache) == ("two" if how == "overwrite" else None)


def test_it_never_answers_past_the_entrys_own_end(clock: Clock, cache: AIResponseCache) -> None:
    """F7."""
    cache.cache_response(TEXT, "qa", {"n": 0}, "one", ttl=0.5)
    clock.wind(0.4)
    assert get(cache) == "one"
    clock.wind(0.2)
    assert get(cache) is None


def test_it_answers_one_more_second_while_the_server_is_away(clock: Clock, cache: AIResponseCache) -> None:
    put(cache, "one")
    clock.store.fail = StoreUnavailable("TimeoutError")
    clock.wind(1.5)
    assert get(cache) == "one"
    clock.wind(0.6)
    assert get(cache) is None
    assert gets(cache)[-1].additional_data["status"] == "error"


def test_it_is_off_unless_set(clock: Clock) -> None:
    cache = wound_cache(clock)
    put(cache, "one")
    get(cache)
    assert tier(cache) == "redis"
    assert cache.get_cache_stats()["memory"]["memory_cache_utilization"] == "0/0"


def test_a_child_forked_while_a_thread_holds_the_locks_goes_on(clock: Clock) -> None:
    """It starts with an empty L1 and no timings: they are the parent's."""
    cache = wound_cache(clock, memory_cache_size=3)
    put(cache, "one")
    assert cache.parts.local is not None
    with cache.parts.local._lock, cache.monitor._lock:
        child = os.fork()
        if child == 0:
            alone = cache.monitor.cache_operation_times == [] and len(cache.parts.local) == 0
            os._exit(0 if alone and get(cache) == "one" else 1)
        ended: list[int] = []
        eventually(lambda: _reaped(child, ended))
    assert ended == [0]


def _reaped(child: int, ended: list[int]) -> bool:
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        ended.append(os.waitstatus_to_exitcode(status))
    return bool(pid)
