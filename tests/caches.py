"""Caches for tests: on a real server, or in memory with clocks that are wound by hand."""

from __future__ import annotations

import time
from typing import Any

from aicache_tasks import AIResponseCache
from aicache_tasks.call import Call
from aicache_tasks.outbox import background
from aicache_tasks.settings import Settings
from aicache_tasks.stores.memory import MemoryStore

PATIENT = {"aicache_budget_ms": 5000, "aicache_connect_ms": 5000}
"""For tests of what is answered, not of how soon."""
STRICT = Settings.from_mapping({"aicache_strict": True, **PATIENT})
DEFAULT_BUDGETS = {"aicache_budget_ms": 50, "aicache_connect_ms": 250}
TEXT = "A text about ferries."
ANSWER = {"operation": "summarize", "success": True, "result": "A summary of the text.", "metadata": {"word_count": 5}}


class Clock:
    """A wall clock, a monotonic clock and a store's clock that move together."""

    def __init__(self) -> None:
        self.store = MemoryStore(lambda: 0.0)
        self.wall_ms = 1_700_000_000_000
        self.mono_s = 50.0

    def wind(self, seconds: float) -> None:
        self.store.now_s += seconds
        self.wall_ms += int(seconds * 1000)
        self.mono_s += seconds


def wound_cache(clock: Clock, **given: Any) -> AIResponseCache:
    """Return a cache in memory that lives by *clock*."""
    return AIResponseCache(
        store=clock.store,
        settings=given.pop("settings", STRICT),
        now_ms=lambda: clock.wall_ms,
        mono_s=lambda: clock.mono_s,
        **given,
    )


def live_cache(url: str, settings: dict[str, Any] | None = None, **given: Any) -> AIResponseCache:
    """Return a cache on a real server, with time enough for a busy machine unless *settings* says otherwise."""
    return AIResponseCache(url, settings=STRICT.updated({**PATIENT, **(settings or {})}), **given)


def gets(cache: AIResponseCache) -> list[Any]:
    """Return the timings of look-ups, oldest first."""
    return [m for m in cache.monitor.cache_operation_times if m.operation_type == "get"]


def sets(cache: AIResponseCache) -> list[Any]:
    """Return the timings of stores, oldest first."""
    return [m for m in cache.monitor.cache_operation_times if m.operation_type == "set"]


def looked_up(cache: AIResponseCache, operation: str, number: int = 0, tags: list[str] | None = None) -> Call:
    """Return a call whose look-up missed: its body would run now."""
    call = cache._call(TEXT, operation, {"n": number}, None, None, None, tags)
    assert call is not None
    assert not cache.find(call)
    return call


def lifetime_ms(client: Any, key: str, stored_from_s: float) -> tuple[float, float]:
    """Return the least and the most ms for which *key* was stored, at some time since *stored_from_s* (epoch)."""
    ends_ms = client.pexpiretime(key)
    return ends_ms - 1000 * time.time(), ends_ms - 1000 * stored_from_s


def forget_samples(within_s: float = 2.0) -> None:
    """Drop what waits here: caches of earlier tests would send it to a server that a later test has emptied.

    What a thread is sending at this moment arrives first.
    """
    deadline = time.monotonic() + within_s
    for outbox in list(background._OUTBOXES):
        while getattr(outbox, "_claimed", None) is not None and time.monotonic() < deadline:
            time.sleep(0.002)
        outbox.after_fork()
