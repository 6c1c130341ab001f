"""The switch: every process obeys it within a second, and asks for it no more often than that."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from aicache_tasks import MISS, AIResponseCache
from aicache_tasks.errors import StoreUnavailable
from aicache_tasks.mode import EVERY_S
from aicache_tasks.stores.base import Budget
from aicache_tasks.stores.memory import MemoryStore
from aicache_tasks.testing import EmbeddedServer
from tests.caches import ANSWER, STRICT, TEXT, Clock, gets, live_cache, looked_up, sets, wound_cache


class Watched(Clock):
    """Clocks, and a store that notes which keys are read together."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[str, ...]] = []
        reads, read = self.reads, self.store.read

        def noted(keys: Sequence[str], budget: Budget) -> list[bytes | None]:
            reads.append(tuple(key.partition("}:")[2].split(":")[1] for key in keys))
            return read(keys, budget)

        self.store.read = noted  # type: ignore[method-assign]

    @property
    def asked(self) -> int:
        """How often the switch was read."""
        return sum("mode" in read for read in self.reads)


@pytest.fixture
def clock() -> Watched:
    return Watched()


@pytest.fixture
def cache(clock: Watched) -> AIResponseCache:
    made = wound_cache(clock)
    made.cache_response(TEXT, "summarize", {}, ANSWER)
    clock.wind(EVERY_S)  # the write has read the switch
    clock.reads.clear()
    return made


def look_up(cache: AIResponseCache) -> str:
    """Look an answer up as a task does; return the call's status."""
    call = cache._call(TEXT, "summarize", {}, None, None, None, None)
    assert call is not None
    hit = cache.find(call)
    assert (hit is not MISS) == (call.status == "hit")
    return call.status


def switch(clock: Clock, *, off: bool) -> None:
    """Do what a worker of another process does."""
    wound_cache(clock).parts.mode.switch(off=off, budget=Budget(1))


def test_a_look_up_reads_the_switch_along_once_a_second(cache: AIResponseCache, clock: Watched) -> None:
    for _ in range(30):
        assert look_up(cache) == "hit"
        clock.wind(0.1)
    assert clock.asked == 3
    assert {len(read) for read in clock.reads} == {3, 4}, "never alone"
    assert len(clock.reads) == 30, "and never in a round trip of its own"


def test_each_look_up_obeys_within_a_second_and_none_that_is_off_reads_an_entry(
    cache: AIResponseCache, clock: Watched
) -> None:
    assert look_up(cache) == "hit"
    switch(clock, off=True)
    clock.wind(1)
    clock.reads.clear()
    statuses = []
    for _ in range(50):
        statuses.append(look_up(cache))
        clock.wind(0.1)
    assert set(statuses) == {"disabled"}
    assert [len(read) for read in clock.reads] == [4, *[1] * 4], "once a second, alone"
    switch(clock, off=False)
    clock.wind(1)
    assert look_up(cache) == "hit"


def test_what_is_off_is_counted_and_neither_hit_nor_miss(cache: AIResponseCache, clock: Watched) -> None:
    switch(clock, off=True)
    clock.wind(1)
    look_up(cache), look_up(cache)
    assert len(gets(cache)) == 2
    assert [m.additional_data["status"] for m in gets(cache)] == ["disabled", "disabled"]
    assert cache.get_cache_hit_ratio() == 0.0


def test_the_facade_finds_nothing_while_it_is_off(cache: AIResponseCache, clock: Watched) -> None:
    switch(clock, off=True)
    assert cache.get_cached_response(TEXT, "summarize", {}) is None
    assert cache.lookup(TEXT, "summarize", {}) is MISS
    switch(clock, off=False)
    clock.wind(1)
    assert cache.get_cached_response(TEXT, "summarize", {}) == ANSWER


def test_the_facade_stores_nothing_while_it_is_off(cache: AIResponseCache, clock: Watched) -> None:
    switch(clock, off=True)
    for _ in range(2):
        cache.cache_response("another text", "summarize", {}, ANSWER)
    skipped = [m.additional_data for m in sets(cache)][-2:]
    assert [(one["status"], one["reason"]) for one in skipped] == [("skipped", "disabled")] * 2
    switch(clock, off=False)
    clock.wind(1)
    assert cache.lookup("another text", "summarize", {}) is MISS
    cache.cache_response("another text", "summarize", {}, ANSWER)
    assert cache.get_cached_response("another text", "summarize", {}) == ANSWER


def test_an_operator_sees_what_is_there_while_it_is_off(cache: AIResponseCache, clock: Watched) -> None:
    switch(clock, off=True)
    clock.wind(1)
    for _ in range(2):
        call = cache._call(TEXT, "summarize", {}, None, None, None, None)
        assert call is not None
        assert cache.find(call, quiet=True) is not MISS
    assert look_up(cache) == "disabled"


def test_a_process_s_memory_answers_for_no_more_than_another_second(clock: Watched) -> None:
    cache = wound_cache(clock, memory_cache_size=10)
    cache.cache_response(TEXT, "summarize", {}, ANSWER)
    assert look_up(cache) == "hit"
    clock.wind(0.9)
    switch(clock, off=True)
    statuses = []
    for _ in range(40):
        clock.wind(0.1)
        statuses.append(look_up(cache))
    assert set(statuses[19:]) == {"disabled"}


def test_a_store_that_does_not_answer_changes_nothing(cache: AIResponseCache, clock: Watched) -> None:
    switch(clock, off=True)
    clock.wind(1)
    assert look_up(cache) == "disabled"
    clock.store.fail = StoreUnavailable("ConnectionError")
    clock.wind(2)
    assert look_up(cache) == "disabled"
    with pytest.raises(StoreUnavailable):
        cache.parts.mode.switch(off=False, budget=Budget(1))


def test_whatever_else_lies_there_means_on(cache: AIResponseCache, clock: Watched) -> None:
    for value in (b"", b"OFF", b"on", b"\xff" * 1000):
        clock.store.replace([(cache.parts.mode.key(bucket), value, 0) for bucket in range(64)], Budget(1))
        clock.wind(1)
        assert look_up(cache) == "hit"


def test_a_change_is_logged_once_by_each_process(
    cache: AIResponseCache, clock: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aicache_tasks")
    for off in (True, False):
        switch(clock, off=off)
        for _ in range(5):
            clock.wind(1)
            look_up(cache)
    said = [(r.levelname, r.getMessage()) for r in caplog.records if "slow" not in r.getMessage().lower()]
    assert said == [
        ("WARNING", "aicache: the cache was switched off by cache_mode; every call runs its body"),
        ("INFO", "aicache: the cache was switched on again"),
    ]


def test_it_lies_in_every_bucket_of_a_real_server_and_goes_when_it_is_on(each_server: EmbeddedServer) -> None:
    cache = live_cache(each_server.url)
    cache.parts.mode.switch(off=True, budget=Budget(5))
    with each_server.client() as client:
        keys = sorted(client.scan_iter("*:t:mode", count=1000))
        assert len(keys) == 64
        assert {client.ttl(key) for key in keys} == {-1}, "what is off stays off"
        assert look_up(cache) == "disabled"
        cache.parts.mode.switch(off=False, budget=Budget(5))
        assert all(0 < client.ttl(key) <= 60 for key in keys)
    cache.close()


def test_it_erases_nothing_and_no_purge_takes_it(clock: Clock) -> None:
    cache = wound_cache(clock)
    cache.cache_response(TEXT, "summarize", {}, ANSWER)
    switch(clock, off=True)
    assert cache.purge() == 1
    clock.wind(1)
    assert look_up(cache) == "disabled"


def test_two_namespaces_have_a_switch_each() -> None:
    clock, store = Clock(), MemoryStore(lambda: 0.0)
    clock.store = store
    other = wound_cache(clock, settings=STRICT.updated({"aicache_namespace": "other"}))
    switch(clock, off=True)
    assert looked_up(other, "summarize").status == "miss"
    assert STRICT.namespace != "other"
