"""What is invalidated is out of force when the call returns, and cannot come back."""

from __future__ import annotations

import time
from typing import Any

import pytest

from aicache_tasks import AIResponseCache, CachePolicy
from aicache_tasks.errors import StoreError, StoreUnavailable
from aicache_tasks.policy import PolicyRegistry
from aicache_tasks.testing import EmbeddedServer
from tests.caches import TEXT, Clock, gets, live_cache, looked_up, wound_cache


def put(cache: AIResponseCache, operation: str, answer: Any, number: int = 0, **given: Any) -> None:
    cache.cache_response(TEXT, operation, {"n": number}, answer, **given)


def get(cache: AIResponseCache, operation: str, number: int = 0, **given: Any) -> Any:
    return cache.get_cached_response(TEXT, operation, {"n": number}, **given)


@pytest.fixture
def cache(valkey: EmbeddedServer) -> AIResponseCache:
    return live_cache(valkey.url)


class TestOneCall:
    def test_it_says_whether_there_was_an_entry(self, cache: AIResponseCache) -> None:
        """C14: exact for a call."""
        put(cache, "qa", "one")
        put(cache, "qa", "two", 2)
        assert cache.invalidate(TEXT, "qa", {"n": 0}) is True
        assert cache.invalidate(TEXT, "qa", {"n": 0}) is False
        assert get(cache, "qa") is None
        assert gets(cache)[-1].additional_data["reason"] == "invalidated"
        assert get(cache, "qa", 2) == "two"
        assert [event.keys_invalidated for event in cache.monitor.invalidation_events] == [1, 0]

    def test_an_entry_out_of_force_already_does_not_count(self, cache: AIResponseCache) -> None:
        put(cache, "qa", "one")
        cache.invalidate_by_operation("qa")
        assert cache.invalidate(TEXT, "qa", {"n": 0}) is False

    def test_a_body_that_began_before_it_does_not_bring_the_answer_back(self, cache: AIResponseCache) -> None:
        """A publish never replaces a tombstone that its look-up did not see."""
        running = looked_up(cache, "qa")
        cache.invalidate(TEXT, "qa", {"n": 0})
        cache.publish(running, "computed before")
        assert (running.set_status, running.set_reason) == ("skipped", "invalidated")
        assert get(cache, "qa") is None

    def test_a_body_that_began_before_it_does_not_replace_a_newer_answer(self, cache: AIResponseCache) -> None:
        """The new answer carries the fence of the tombstone that it replaced."""
        slow = looked_up(cache, "qa")
        cache.invalidate(TEXT, "qa", {"n": 0})
        cache.publish(looked_up(cache, "qa"), "new")
        cache.publish(slow, "computed before")
        assert (slow.set_status, slow.set_reason) == ("skipped", "invalidated")
        assert get(cache, "qa") == "new"

    def test_a_refresh_after_it_replaces_the_newer_answer(self, cache: AIResponseCache) -> None:
        cache.invalidate(TEXT, "qa", {"n": 0})
        put(cache, "qa", "new")
        put(cache, "qa", "newer")
        assert get(cache, "qa") == "newer"

    def test_a_body_that_begins_after_it_is_stored(self, cache: AIResponseCache) -> None:
        put(cache, "qa", "old")
        cache.invalidate(TEXT, "qa", {"n": 0})
        running = looked_up(cache, "qa")
        cache.publish(running, "new")
        assert get(cache, "qa") == "new"

    def test_the_tombstone_lives_as_long_as_the_entry_could_have(self, cache: AIResponseCache, client: Any) -> None:
        put(cache, "qa", "one", ttl=90_000.0)
        cache.invalidate(TEXT, "qa", {"n": 0})
        key = cache.generate_cache_key(TEXT, "qa", {"n": 0})
        assert client.pttl(key) > 89_000_000
        assert client.strlen(key) == 12

    def test_a_store_that_is_away_is_an_error_and_a_failed_event(self, refused_url: str) -> None:
        """C14: the caller must know that the answer is still there."""
        cache = live_cache(refused_url)
        with pytest.raises(StoreUnavailable):
            cache.invalidate(TEXT, "qa", {"n": 0})
        (event,) = cache.monitor.invalidation_events
        assert (event.keys_invalidated, event.additional_data["status"]) == (0, "failed")
        assert event.additional_data["reason"] == "redis_connection_failed"


class TestTokens:
    def test_an_operation_takes_no_other_with_it(self, cache: AIResponseCache) -> None:
        """F13: ``q`` touches neither ``qa`` nor ``questions``."""
        for operation in ("q", "qa", "questions"):
            put(cache, operation, operation)
        cache.invalidate_by_operation("q")
        assert [get(cache, operation) for operation in ("q", "qa", "questions")] == [None, "qa", "questions"]

    def test_a_pattern_matches_whole_names(self, cache: AIResponseCache) -> None:
        for operation in ("q", "qa", "questions"):
            put(cache, operation, operation)
        assert cache.invalidate_pattern("q") == ["q"]
        assert get(cache, "qa") == "qa"
        assert cache.invalidate_pattern("q*") == ["q", "qa", "questions"]
        assert get(cache, "qa") is get(cache, "questions") is None

    def test_a_pattern_is_no_redis_glob(self, cache: AIResponseCache) -> None:
        put(cache, "qa", "one")
        assert cache.invalidate_pattern("*:v1:*") == []
        assert get(cache, "qa") == "one"
        (event,) = cache.monitor.invalidation_events
        assert (event.keys_invalidated, event.additional_data["status"]) == (0, "success")
        assert event.additional_data["search_pattern"] == "*:v1:*"

    def test_everything_goes_at_once(self, cache: AIResponseCache) -> None:
        put(cache, "qa", "one")
        put(cache, "summarize", "two")
        cache.invalidate_all()
        assert get(cache, "qa") is get(cache, "summarize") is None

    def test_namespaces_do_not_touch_each_other(self, valkey: EmbeddedServer) -> None:
        one, two = (live_cache(valkey.url, {"aicache_namespace": name}) for name in ("one", "two"))
        put(one, "qa", 1)
        put(two, "qa", 2)
        one.invalidate_namespace()
        assert (get(one, "qa"), get(two, "qa")) == (None, 2)
        assert two.purge() == 1
        assert one.purge() == 1

    def test_a_tag_takes_every_entry_that_carries_it(self, cache: AIResponseCache) -> None:
        put(cache, "qa", "one", 1, tags=["doc:7", "team:a"])
        put(cache, "summarize", "two", 2, tags=["doc:7"])
        put(cache, "qa", "three", 3, tags=["doc:8"])
        cache.invalidate_by_tag("doc:7")
        assert get(cache, "qa", 1, tags=["doc:7", "team:a"]) is None
        assert get(cache, "summarize", 2, tags=["doc:7"]) is None
        assert get(cache, "qa", 3, tags=["doc:8"]) == "three"

    def test_a_reader_that_names_no_tags_heeds_those_of_the_entry(self, cache: AIResponseCache) -> None:
        put(cache, "qa", "one", tags=["doc:7"])
        assert get(cache, "qa") == "one"
        cache.invalidate_by_tag("doc:7")
        assert get(cache, "qa") is None

    def test_tags_come_from_the_policy(self, valkey: EmbeddedServer) -> None:
        policies = PolicyRegistry()
        policies.register("t", "qa", CachePolicy(tags=("doc:{n}", "fixed")))
        cache = live_cache(valkey.url, policies=policies)
        put(cache, "qa", "one", 1)
        put(cache, "qa", "two", 2)
        cache.invalidate_by_tag("doc:1")
        assert (get(cache, "qa", 1), get(cache, "qa", 2)) == (None, "two")
        assert cache.invalidate_pattern("fix*") == ["fixed"]
        assert get(cache, "qa", 2) is None

    @pytest.mark.parametrize("how", ["operation", "tag", "all"])
    def test_a_body_that_began_before_it_is_refused_by_every_reader(self, cache: AIResponseCache, how: str) -> None:
        call = looked_up(cache, "qa", tags=["doc:7"])
        {
            "operation": lambda: cache.invalidate_by_operation("qa"),
            "tag": lambda: cache.invalidate_by_tag("doc:7"),
            "all": cache.invalidate_all,
        }[how]()
        cache.publish(call, "computed before")
        assert get(cache, "qa", tags=["doc:7"]) is None
        assert gets(cache)[-1].additional_data["reason"] == "invalidated"

    def test_evicted_tokens_bring_nothing_back(self, cache: AIResponseCache, client: Any) -> None:
        """Neither eviction nor a failover resurrects: an absent token is a miss."""
        put(cache, "qa", "one")
        for name in client.scan_iter("*:t:*"):
            client.delete(name)
        assert get(cache, "qa") is None
        assert get(cache, "qa") is None

    def test_a_tags_token_outlives_its_longest_entry(self, cache: AIResponseCache, client: Any) -> None:
        put(cache, "qa", "short", 1, tags=["doc:7"], ttl=10.0)
        put(cache, "qa", "long", 2, tags=["doc:7"], ttl=500_000.0)
        bucket_of = {cache.generate_cache_key(TEXT, "qa", {"n": n}).split(":v1:")[0]: n for n in (1, 2)}
        lives = {name.decode().split(":t:")[0]: client.pttl(name) for name in client.scan_iter("*:t:tag:*")}
        for place, number in bucket_of.items():
            assert lives[place] >= (10_000 if number == 1 else 499_000_000)
        assert all(client.pttl(name) == -1 for name in client.scan_iter("*:t:ns"))

    def test_a_token_is_not_counted(self, cache: AIResponseCache) -> None:
        """C14, C22: None where a token is replaced, and it enters no average."""
        put(cache, "qa", "one")
        cache.invalidate_by_operation("qa", "test run")
        cache.invalidate(TEXT, "qa", {"n": 0})
        first, second = cache.monitor.invalidation_events
        assert (first.keys_invalidated, first.operation_context) == (None, "test run")
        assert second.keys_invalidated == 0
        stats = cache.monitor.get_performance_stats()["invalidation"]
        assert stats["total_invalidations"] == 2

    def test_no_keys_and_no_scan_is_sent(self, own_server: EmbeddedServer) -> None:
        """F13: the cost does not grow with the entries."""
        cache = live_cache(own_server.url)
        for number in range(50):
            put(cache, "qa", "x", number, tags=["doc:7"])
        with own_server.client() as client:
            client.config_resetstat()
            cache.invalidate_by_tag("doc:7")
            cache.invalidate_by_operation("qa")
            cache.invalidate_pattern("*")
            cache.invalidate(TEXT, "qa", {"n": 1})
            cache.get_cache_stats()
            sent = client.info("commandstats")
        assert not {"cmdstat_keys", "cmdstat_scan", "cmdstat_flushdb", "cmdstat_flushall"} & sent.keys()

    @pytest.mark.parametrize("entries", [1, 200])
    def test_it_is_one_write_per_bucket_however_many_entries_there_are(
        self, own_server: EmbeddedServer, entries: int
    ) -> None:
        """And a look-up is one MGET, with tags or without."""
        cache = live_cache(own_server.url)
        for number in range(entries):
            put(cache, "qa", "x", number, tags=["doc:7"])
        with own_server.client() as client:
            for invalidate in (
                lambda: cache.invalidate_by_tag("doc:7"),
                lambda: cache.invalidate_by_operation("qa"),
                cache.invalidate_all,
            ):
                client.config_resetstat()
                invalidate()
                assert client.info("commandstats")["cmdstat_set"]["calls"] == 64
            put(cache, "qa", "x", tags=["doc:7"])
            client.config_resetstat()
            assert get(cache, "qa", tags=["doc:7"]) == "x"
            sent = client.info("commandstats")
        assert sent.keys() - {"cmdstat_config|resetstat"} == {"cmdstat_mget"}
        assert sent["cmdstat_mget"]["calls"] == 1

    def test_a_store_that_is_away_is_an_error(self, refused_url: str) -> None:
        cache = live_cache(refused_url)
        with pytest.raises(StoreError):
            cache.invalidate_all()
        assert cache.monitor.invalidation_events[0].additional_data["status"] == "failed"


class TestEvents:
    """C14: what each way leaves in the array of invalidations."""

    @pytest.mark.parametrize(
        ("how", "pattern", "context", "count"),
        [
            (lambda c: c.invalidate(TEXT, "qa", {"n": 0}), "call", "manual", 1),
            (lambda c: c.invalidate(TEXT, "qa", {"n": 9}), "call", "manual", 0),
            (lambda c: c.invalidate(TEXT, "qa", {"n": 0}, operation_context="tidy"), "call", "tidy", 1),
            (lambda c: c.invalidate_pattern("q*", "tidy"), "q*", "tidy", None),
            (lambda c: c.invalidate_pattern("nothing"), "nothing", "", 0),
            (lambda c: c.invalidate_by_operation("qa"), "op:qa", "operation_specific_qa", None),
            (lambda c: c.invalidate_by_operation("qa", "tidy"), "op:qa", "tidy", None),
            (lambda c: c.invalidate_by_tag("doc:7"), "tag", "tag", None),
            (lambda c: c.invalidate_all(), "", "manual_clear_all", None),
            (lambda c: c.invalidate_memory_cache(), "memory_cache", "memory_cache_clear", 1),
        ],
    )
    def test_each_is_one_event_with_its_context_and_duration(
        self, valkey: EmbeddedServer, how: Any, pattern: str, context: str, count: int | None
    ) -> None:
        cache = live_cache(valkey.url, memory_cache_size=10)
        put(cache, "qa", "one")
        how(cache)
        (event,) = cache.monitor.invalidation_events
        assert (event.pattern, event.operation_context, event.keys_invalidated) == (pattern, context, count)
        assert event.invalidation_type == ("memory" if pattern == "memory_cache" else "manual")
        assert (event.additional_data["status"], event.additional_data["search_pattern"]) == ("success", pattern)
        assert event.duration > 0

    @pytest.mark.parametrize(
        "how",
        [
            lambda c: c.invalidate_pattern("q*"),
            lambda c: c.invalidate_by_operation("qa"),
            lambda c: c.invalidate_by_tag("doc:7"),
            lambda c: c.purge(),
        ],
        ids=["pattern", "operation", "tag", "purge"],
    )
    def test_a_failure_is_one_event_with_no_keys(self, refused_url: str, how: Any) -> None:
        cache = live_cache(refused_url)
        with pytest.raises(StoreUnavailable):
            how(cache)
        (event,) = cache.monitor.invalidation_events
        data = event.additional_data
        assert (event.keys_invalidated, data["status"]) == (0, "failed")
        assert (data["reason"], data["error"]) == ("redis_connection_failed", "ConnectionError")


class TestPurge:
    def test_it_erases_the_bytes_of_every_entry(self, cache: AIResponseCache, client: Any) -> None:
        """C14: the count is exact, tokens of other namespaces and foreign keys stay."""
        for number in range(120):
            put(cache, "qa", "x" * 50, number)
        put(cache, "summarize", "y")
        client.set("somebody-else", "stays")
        seen: list[int] = []
        assert cache.purge(dry_run=True) == 121
        assert cache.purge(progress=seen.append) == 121
        assert seen[-1] == 121
        assert list(client.scan_iter("*:v1:*")) == []
        assert client.get("somebody-else") == b"stays"
        assert cache.purge() == 0

    def test_it_erases_thousands_of_entries_in_memory_too(self) -> None:
        cache = live_cache("memory://")
        for number in range(3_000):
            cache.cache_response(f"text {number}", "qa", {}, {"answer": number})
        assert cache.purge(dry_run=True) == 3_000
        assert cache.purge() == 3_000
        assert cache.purge() == 0

    def test_it_can_take_one_operation(self, cache: AIResponseCache) -> None:
        put(cache, "qa", "one")
        put(cache, "q", "two")
        assert cache.purge("q") == 1
        assert (get(cache, "qa"), get(cache, "q")) == ("one", None)

    def test_a_body_that_began_before_it_cannot_bring_an_answer_back(self, cache: AIResponseCache) -> None:
        running = looked_up(cache, "qa")
        cache.purge()
        cache.publish(running, "computed before")
        assert get(cache, "qa") is None

    def test_it_is_rate_limited(self, cache: AIResponseCache, client: Any) -> None:
        with client.pipeline(transaction=False) as many:
            for number in range(3000):
                many.set(f"{{aicache:00}}:v1:qa:{number:040x}", b"x")
            many.execute()
        started = time.perf_counter()
        assert cache.purge(dry_run=True, keys_per_s=10_000) == 3000
        assert time.perf_counter() - started > 0.15


class TestMemory:
    def test_it_is_emptied_and_noted(self) -> None:
        """C14."""
        cache = wound_cache(Clock(), memory_cache_size=10)
        put(cache, "qa", "one")
        assert cache.invalidate_memory_cache() == 1
        (event,) = cache.monitor.invalidation_events
        assert (event.pattern, event.keys_invalidated, event.invalidation_type) == ("memory_cache", 1, "memory")
        assert event.additional_data["invalidation_target"] == "memory_cache_only"
        assert get(cache, "qa") == "one"
