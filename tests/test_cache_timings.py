"""What each look-up and each store leaves in the arrays."""

from __future__ import annotations

import re
import signal
import time
from typing import Any

import pytest

from aicache_tasks import CachePerformanceMonitor
from aicache_tasks.errors import StoreRefused, StoreUnavailable
from aicache_tasks.settings import Settings
from aicache_tasks.testing import EmbeddedServer
from tests.caches import ANSWER, STRICT, Clock, gets, lifetime_ms, live_cache, sets, wound_cache
from tests.faults import eventually

TEXT = "The harbour council met on Tuesday to decide about the ferry. " * 4


class TestStores:
    def test_a_successful_store_leaves_one_set_sample(self, valkey: EmbeddedServer) -> None:
        """S1, S6: everything that a reader of the arrays expects of a write."""
        cache = live_cache(valkey.url)
        cache.cache_response(TEXT, "summarize", {"max_length": 50}, ANSWER)
        (sample,) = sets(cache)
        assert (sample.operation_type, sample.text_length) == ("set", len(TEXT))
        assert sample.duration > 0
        data = sample.additional_data
        assert (data["operation_type"], data["status"], data["ttl"]) == ("summarize", "success", 7200.0)
        assert data["compression_used"] is False
        assert data["compression_time"] >= 0
        assert 0 < data["response_size"] < data["cache_data_size"]

    def test_the_ttl_in_the_sample_is_the_ttl_in_the_server(self, valkey: EmbeddedServer, client: Any) -> None:
        """S6."""
        cache, began_s = live_cache(valkey.url), time.time()
        cache.cache_response(TEXT, "qa", {}, ANSWER, "Who met?")
        least_ms, most_ms = lifetime_ms(client, cache.generate_cache_key(TEXT, "qa", {}, "Who met?"), began_s)
        assert least_ms - 500 < 1000 * sets(cache)[0].additional_data["ttl"] < most_ms + 500

    def test_a_refused_write_is_one_failed_sample_and_raises_nothing(self) -> None:
        """S2: the error is a class and a prefix."""
        clock = Clock()
        cache = wound_cache(clock)
        cache.get_cached_response(TEXT, "summarize", {})
        clock.store.fail = StoreRefused("OutOfMemoryError OOM", writes=True)
        cache.cache_response(TEXT, "summarize", {}, ANSWER)
        (sample,) = sets(cache)
        data = sample.additional_data
        assert (data["status"], data["reason"]) == ("failed", "redis_error")
        assert sample.duration > 0

    def test_a_real_out_of_memory_is_named_by_class_and_prefix(self, own_server: EmbeddedServer) -> None:
        """S2 on a server: reads go on, the write says what refused it, whether that was the entry or its tokens."""
        cache = live_cache(own_server.url, {"aicache_breaker_min_s": 0.001, "aicache_breaker_max_s": 0.001})
        cache.cache_response(TEXT, "summarize", {"n": 1}, ANSWER)
        with own_server.client() as admin:
            admin.config_set("maxmemory", "1")
        for number in (1, 2):
            eventually(lambda: cache.parts.store.writes.state != "open")
            cache.cache_response(TEXT, "summarize", {"n": number}, ANSWER)
            failed = sets(cache)[-1].additional_data
            assert (failed["status"], failed["reason"]) == ("failed", "redis_error")
            assert failed["error"] == "OutOfMemoryError OOM"
        assert cache.get_cached_response(TEXT, "summarize", {"n": 1}) == ANSWER

    def test_no_connection_is_one_failed_sample(self, refused_url: str) -> None:
        """S3, S8: it counts as an operation, not as a hit or a miss."""
        cache = live_cache(refused_url)
        cache.cache_response(TEXT, "summarize", {}, ANSWER)
        (sample,) = sets(cache)
        data = sample.additional_data
        assert (data["status"], data["reason"]) == ("failed", "redis_connection_failed")
        assert data["error"] == "ConnectionError"
        stats = cache.monitor.get_performance_stats()
        assert (stats["total_cache_operations"], stats["cache_hits"], stats["cache_misses"]) == (1, 0, 0)

    def test_a_compressed_answer_leaves_one_compression_sample(self, valkey: EmbeddedServer) -> None:
        """S4, S7: sizes in bytes, ratio at most 1, and the time apart from the whole."""
        cache = live_cache(valkey.url)
        cache.cache_response(TEXT, "summarize", {}, {"result": "A" * 2000})
        (compression,) = cache.monitor.compression_ratios
        assert compression.operation_type == "summarize"
        assert compression.original_size > compression.compressed_size > 0
        assert compression.compression_ratio <= 1.0
        assert 0 < compression.compression_time <= sets(cache)[0].duration

    def test_a_small_answer_leaves_no_compression_sample(self, valkey: EmbeddedServer) -> None:
        """S5."""
        cache = live_cache(valkey.url)
        cache.cache_response(TEXT, "sentiment", {}, {"sentiment": "neutral", "confidence": 0.5})
        assert cache.monitor.compression_ratios == []

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            ({"x": object()}, "not_roundtrip"),
            ({"x": signal.Signals.SIGINT}, "not_roundtrip"),
            ({"x": "a" * 5000}, "too_large"),
        ],
    )
    def test_an_answer_that_cannot_be_kept_is_skipped_with_its_reason(self, answer: Any, reason: str) -> None:
        """F16: never silently lost."""
        cache = wound_cache(Clock(), settings=live_settings(max_entry_bytes=4096))
        cache.cache_response(TEXT, "summarize", {}, answer)
        data = sets(cache)[0].additional_data
        assert (data["status"], data["reason"]) == ("skipped", reason)
        assert cache.get_cached_response(TEXT, "summarize", {}) is None


class TestLookups:
    """C10: each ends in exactly one sample."""

    def test_a_hit_in_the_server(self, valkey: EmbeddedServer) -> None:
        cache = live_cache(valkey.url)
        cache.cache_response(TEXT, "summarize", {}, ANSWER)
        assert cache.get_cached_response(TEXT, "summarize", {}) == ANSWER
        (sample,) = gets(cache)
        data = sample.additional_data
        assert (data["status"], data["cache_tier"]) == ("hit", "redis")
        assert data["populated_memory_cache"] is False
        assert data["text_tier"] == "small"

    def test_a_hit_in_memory_and_the_server_hit_that_fills_it(self) -> None:
        cache = wound_cache(Clock(), memory_cache_size=10)
        cache.cache_response(TEXT, "summarize", {}, ANSWER)
        cache.invalidate_memory_cache()
        cache.get_cached_response(TEXT, "summarize", {})
        cache.get_cached_response(TEXT, "summarize", {})
        first, second = gets(cache)
        assert first.additional_data["populated_memory_cache"] is True
        assert second.additional_data["cache_tier"] == "memory"

    def test_an_absent_key(self, valkey: EmbeddedServer) -> None:
        cache = live_cache(valkey.url)
        assert cache.get_cached_response(TEXT, "summarize", {}) is None
        (sample,) = gets(cache)
        data = sample.additional_data
        assert (data["status"], data["reason"], data["cache_tier"]) == ("miss", "key_not_found", "redis")

    def test_no_connection(self, refused_url: str) -> None:
        cache = live_cache(refused_url)
        assert cache.get_cached_response(TEXT, "summarize", {}) is None
        (sample,) = gets(cache)
        data = sample.additional_data
        assert (data["status"], data["reason"]) == ("error", "redis_connection_failed")
        assert data["cache_tier"] == "redis_unavailable"

    def test_an_error_of_the_server(self, own_server: EmbeddedServer) -> None:
        """The text of the error stays out: class and prefix only."""
        with own_server.client() as admin:
            admin.config_set("requirepass", "not-this-one")
        cache = live_cache(own_server.url)
        assert cache.get_cached_response(TEXT, "summarize", {}) is None
        data = gets(cache)[0].additional_data
        assert (data["status"], data["reason"]) == ("error", "redis_error")
        assert re.fullmatch(r"AuthenticationError( [A-Z]+)?", data["error"])  # redis-py 6 keeps no prefix

    def test_hit_rate_is_over_lookups_only(self, valkey: EmbeddedServer) -> None:
        """F4: a miss, a store and a hit are 50 %."""
        cache = live_cache(valkey.url)
        cache.get_cached_response(TEXT, "summarize", {})
        cache.cache_response(TEXT, "summarize", {}, ANSWER)
        cache.get_cached_response(TEXT, "summarize", {})
        assert cache.get_cache_hit_ratio() == 50.0

    def test_a_lookup_that_failed_is_neither_hit_nor_miss(self) -> None:
        clock = Clock()
        cache = wound_cache(clock)
        clock.store.fail = StoreUnavailable("TimeoutError")
        cache.get_cached_response(TEXT, "summarize", {})
        stats = cache.monitor.get_performance_stats()
        assert (stats["total_cache_operations"], stats["cache_hits"], stats["cache_misses"]) == (1, 0, 0)


class TestKeys:
    def test_each_key_is_timed_once_with_its_flags(self, valkey: EmbeddedServer) -> None:
        """S9."""
        cache = live_cache(valkey.url)
        cache.generate_cache_key(TEXT, "summarize", {"n": 1})
        cache.generate_cache_key("word " * 300, "qa", {}, "Who?")
        one, two = cache.monitor.key_generation_times
        assert (one.operation_type, one.text_length, two.text_length) == ("summarize", len(TEXT), 1500)
        assert one.additional_data["has_options"] is True
        assert one.additional_data["has_question"] is False
        assert (two.additional_data["has_options"], two.additional_data["has_question"]) == (False, True)
        assert (one.additional_data["text_tier"], two.additional_data["text_tier"]) == ("small", "medium")
        assert min(one.duration, two.duration) > 0

    @pytest.mark.parametrize(("length", "size_class"), [(1000, "small"), (1001, "large")])
    def test_the_size_class_border_is_inclusive(self, length: int, size_class: str) -> None:
        """C2."""
        cache = wound_cache(Clock())
        cache.generate_cache_key("x" * length, "summarize")
        assert cache.monitor.key_generation_times[0].additional_data["size_class"] == size_class

    def test_a_monitor_that_is_given_is_the_one_used(self) -> None:
        """F17: also by the key generator."""
        clock = Clock()
        monitor = CachePerformanceMonitor(clock=lambda: clock.wall_ms / 1000)
        cache = wound_cache(clock, performance_monitor=monitor)
        cache.get_cached_response(TEXT, "summarize", {})
        assert cache.monitor is monitor
        assert len(monitor.key_generation_times) == len(monitor.cache_operation_times) == 1

    def test_a_clock_that_steps_back_makes_no_negative_duration(self) -> None:
        """F9."""
        clock = Clock()
        cache = wound_cache(clock)
        cache.get_cached_response(TEXT, "summarize", {})
        clock.wall_ms -= 2000
        cache.cache_response(TEXT, "summarize", {}, ANSWER)
        cache.get_cached_response(TEXT, "summarize", {})
        assert all(m.duration > 0 for m in cache.monitor.cache_operation_times)


class TestStatistics:
    def test_the_average_is_the_mean_of_the_samples(self, valkey: EmbeddedServer) -> None:
        """S10: within one process."""
        cache = live_cache(valkey.url)
        for number in range(7):
            cache.cache_response(TEXT, "summarize", {"n": number}, ANSWER)
        durations = [m.duration for m in cache.monitor.cache_operation_times]
        stats = cache.monitor.get_performance_stats()["cache_operations"]
        assert stats["avg_duration"] == pytest.approx(sum(durations) / len(durations))

    def test_stats_of_a_server_that_answers(self, own_server: EmbeddedServer) -> None:
        """C15."""
        cache = live_cache(own_server.url, memory_cache_size=20)
        cache.cache_response(TEXT, "summarize", {}, ANSWER)
        stats = cache.get_cache_stats()
        assert stats.keys() == {"redis", "memory", "performance"}
        assert stats["redis"].keys() == {"status", "keys", "memory_used", "memory_used_bytes", "connected_clients"}
        assert stats["redis"]["status"] == "connected"
        assert stats["redis"]["keys"] == 3
        assert stats["memory"] == {
            "memory_cache_entries": 1,
            "memory_cache_size_limit": 20,
            "memory_cache_utilization": "1/20",
        }
        assert cache.monitor.memory_usage_measurements[-1].cache_entry_count == 4

    def test_stats_of_a_server_that_is_away(self, refused_url: str) -> None:
        """C15."""
        assert live_cache(refused_url).get_cache_stats()["redis"] == {"status": "unavailable", "keys": 0}

    def test_stats_of_a_server_that_refuses(self, own_server: EmbeddedServer) -> None:
        """C15."""
        with own_server.client() as admin:
            admin.config_set("requirepass", "not-this-one")
        redis = live_cache(own_server.url).get_cache_stats()["redis"]
        assert redis["status"] == "error"
        assert redis["error"].startswith("AuthenticationError")

    def test_summary_and_reset(self, valkey: EmbeddedServer) -> None:
        """C24, C23."""
        cache = live_cache(valkey.url)
        cache.get_cached_response(TEXT, "summarize", {})
        summary = cache.get_performance_summary()
        assert (summary["hit_ratio"], summary["cache_misses"], summary["total_operations"]) == (0.0, 1, 1)
        cache.reset_performance_stats()
        assert cache.get_performance_summary()["total_operations"] == 0
        assert cache.monitor.cache_operation_times == []


def live_settings(**given: Any) -> Settings:
    return STRICT.updated({f"aicache_{name}": value for name, value in given.items()})
