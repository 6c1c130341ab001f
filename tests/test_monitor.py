"""Recording: what the arrays keep, what is counted, what is logged. The clock is wound by hand."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import time
from typing import Any

import pytest

from aicache_tasks.errors import SettingsError
from aicache_tasks.monitor import (
    OF_KEY,
    CachePerformanceMonitor,
    CompressionMetric,
    InvalidationMetric,
    MemoryUsageMetric,
    PerformanceMetric,
)
from aicache_tasks.records import Sample

NOON = 1_700_000_000.0
MIB = 2**20


class Clock:
    """Seconds since the epoch, moved by hand."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def monitor(clock: Clock) -> CachePerformanceMonitor:
    return CachePerformanceMonitor(clock=clock)


def get_sample(status: str, operation: str = "summarize", duration_ns: int = 1000, **fields: Any) -> Sample:
    return Sample(NOON, operation, "get", status, fields.pop("reason", ""), duration_ns, **fields)


RECORD_ONE = {
    "key_generation_times": lambda m, n: m.record_key_generation_time(0.001, n),
    "cache_operation_times": lambda m, n: m.record_cache_operation_time("get", 0.001, True, n),
    "compression_ratios": lambda m, n: m.record_compression_ratio(n + 1, 1, 0.001),
    "memory_usage_measurements": lambda m, n: m.record_memory_usage(redis_bytes=n),
    "invalidation_events": lambda m, n: m.record_invalidation_event("p", n, 0.001),
}
NUMBER_OF = {
    "key_generation_times": lambda metric: metric.text_length,
    "cache_operation_times": lambda metric: metric.text_length,
    "compression_ratios": lambda metric: metric.original_size - 1,
    "memory_usage_measurements": lambda metric: metric.total_cache_size_bytes,
    "invalidation_events": lambda metric: metric.keys_invalidated,
}
ARRAYS = sorted(RECORD_ONE)


def numbers(monitor: CachePerformanceMonitor, array: str) -> list[int]:
    return [NUMBER_OF[array](metric) for metric in getattr(monitor, array)]


class TestWhatTheArraysKeep:
    @pytest.mark.parametrize("array", ARRAYS)
    def test_a_sample_goes_when_it_is_exactly_as_old_as_the_retention(self, monitor, clock, array) -> None:
        RECORD_ONE[array](monitor, 7)
        clock.now = NOON + 3600 - 0.001
        assert numbers(monitor, array) == [7]
        clock.now = NOON + 3600
        assert numbers(monitor, array) == []

    @pytest.mark.parametrize("array", ARRAYS)
    def test_the_newest_1000_stay_in_their_order(self, monitor, array) -> None:
        for number in range(1005):
            RECORD_ONE[array](monitor, number)
        assert numbers(monitor, array) == list(range(5, 1005))

    @pytest.mark.parametrize("array", ARRAYS)
    def test_each_array_has_a_cap_of_its_own(self, clock, array) -> None:
        monitor = CachePerformanceMonitor(max_measurements=2, clock=clock)
        for name in ARRAYS:
            for number in range(3):
                RECORD_ONE[name](monitor, number)
        assert numbers(monitor, array) == [1, 2]

    def test_young_samples_show_although_older_ones_came_later(self, monitor, clock) -> None:
        monitor.record(get_sample("hit")._replace(at=NOON, text_length=1))
        monitor.record(get_sample("hit")._replace(at=NOON - 3000, text_length=2))
        clock.now = NOON + 700
        assert numbers(monitor, "cache_operation_times") == [1]

    def test_retention_may_be_a_fraction_of_an_hour(self, clock) -> None:
        monitor = CachePerformanceMonitor(0.5, clock=clock)
        monitor.record_key_generation_time(0.001, 1)
        clock.now += 1800
        assert monitor.key_generation_times == []

    @pytest.mark.parametrize("wrong", [{"retention_hours": 0}, {"retention_hours": -1}, {"max_measurements": 0}])
    def test_a_monitor_that_would_keep_nothing_is_refused(self, wrong) -> None:
        with pytest.raises(SettingsError, match="greater than 0"):
            CachePerformanceMonitor(**wrong)

    def test_an_array_is_a_list_of_its_own_each_time(self, monitor) -> None:
        monitor.record_key_generation_time(0.001, 1)
        monitor.key_generation_times.clear()
        assert len(monitor.key_generation_times) == 1

    def test_a_metric_cannot_be_changed(self, monitor) -> None:
        monitor.record_key_generation_time(0.001, 1)
        with pytest.raises(AttributeError):
            monitor.key_generation_times[0].duration = 5.0

    def test_what_the_caller_changes_later_does_not_show(self, monitor) -> None:
        given = {"text_tier": "small"}
        monitor.record_key_generation_time(0.001, 1, "qa", given)
        given["text_tier"] = "large"
        monitor.key_generation_times[0].additional_data["text_tier"] = "xlarge"
        assert monitor.key_generation_times[0].additional_data == {"text_tier": "small"}


class TestHowSamplesShow:
    def test_the_metrics_have_the_known_field_names(self) -> None:
        timing = ("duration", "text_length", "timestamp", "operation_type", "additional_data")
        sizes = ("original_size", "compressed_size", "compression_ratio", "compression_time", "timestamp")
        assert PerformanceMetric._fields == timing
        assert CompressionMetric._fields == (*sizes, "operation_type")
        assert MemoryUsageMetric._fields == (
            "total_cache_size_bytes",
            "cache_entry_count",
            "avg_entry_size_bytes",
            "memory_cache_size_bytes",
            "memory_cache_entry_count",
            "process_memory_mb",
            "timestamp",
            "cache_utilization_percent",
            "warning_threshold_reached",
            "additional_data",
        )
        assert InvalidationMetric._fields == (
            "pattern",
            "keys_invalidated",
            "duration",
            "timestamp",
            "invalidation_type",
            "operation_context",
            "additional_data",
        )

    def test_a_key_sample(self, monitor) -> None:
        extra = {"text_tier": "large", "has_options": True, "has_question": False}
        monitor.record(Sample(NOON, "qa", "key", "success", "", 2_000_000, 1200, "medium", extra=extra))
        assert monitor.key_generation_times == [PerformanceMetric(0.002, 1200, NOON, "qa", extra)]
        assert monitor.cache_operation_times == []

    def test_a_get_sample(self, monitor) -> None:
        extra = {"cache_tier": "redis", "populated_memory_cache": True}
        monitor.record(Sample(NOON, "qa", "get", "hit", "", 1_500_000, 900, "medium", 4000, 2000, extra=extra))
        data = {
            "operation_type": "qa",
            "status": "hit",
            "text_tier": "medium",
            "response_size": 4000,
            "cache_data_size": 2000,
            **extra,
        }
        assert monitor.cache_operation_times == [PerformanceMetric(0.0015, 900, NOON, "get", data)]

    def test_a_miss_says_why(self, monitor) -> None:
        monitor.record(get_sample("miss", reason="key_not_found", extra={"cache_tier": "redis"}))
        assert monitor.cache_operation_times[0].additional_data == {
            "operation_type": "summarize",
            "status": "miss",
            "reason": "key_not_found",
            "cache_tier": "redis",
        }

    def test_a_successful_set_sample(self, monitor) -> None:
        extra = {"compression_used": True, "compression_time": 0.0004, "ttl": 7200.0}
        monitor.record(Sample(NOON, "summarize", "set", "success", "", 900_000, 5000, "large", 2010, 64, extra=extra))
        (metric,) = monitor.cache_operation_times
        assert (metric.operation_type, metric.text_length, metric.duration) == ("set", 5000, 0.0009)
        assert metric.additional_data == {
            "operation_type": "summarize",
            "status": "success",
            "text_tier": "large",
            "response_size": 2010,
            "cache_data_size": 64,
            **extra,
        }
        assert metric.duration >= metric.additional_data["compression_time"]

    def test_a_failed_set_sample(self, monitor) -> None:
        failed = Sample(NOON, "qa", "set", "failed", "redis_error", 1000, extra={"error": "OutOfMemoryError OOM"})
        monitor.record(failed)
        assert monitor.cache_operation_times[0].additional_data == {
            "operation_type": "qa",
            "status": "failed",
            "reason": "redis_error",
            "error": "OutOfMemoryError OOM",
        }

    def test_a_compress_sample(self, monitor) -> None:
        monitor.record(Sample(NOON, "qa", "compress", "success", "", 500_000, 1, "small", 1000, 250))
        assert monitor.compression_ratios == [CompressionMetric(1000, 250, 0.25, 0.0005, NOON, "qa")]

    def test_an_invalidate_sample(self, monitor) -> None:
        extra = {
            "pattern": "op:qa",
            "keys_invalidated": None,
            "invalidation_type": "manual",
            "operation_context": "operation_specific_qa",
            "search_pattern": "op:qa",
        }
        monitor.record(Sample(NOON, "qa", "invalidate", "failed", "redis_error", 3_000_000, extra=extra))
        data = {"status": "failed", "reason": "redis_error", "search_pattern": "op:qa"}
        context = "operation_specific_qa"
        expected = InvalidationMetric("op:qa", None, 0.003, NOON, "manual", context, data)
        assert monitor.invalidation_events == [expected]

    def test_a_get_that_bears_its_key_and_its_decoding_shows_as_each(self, monitor) -> None:
        of_key = {"has_options": True, "has_question": False, "size_class": "small"}
        extra = {"cache_tier": "redis", OF_KEY: of_key}
        bundled = Sample(
            NOON, "qa", "get", "hit", "", 1_500_000, 900, "medium", 4000, 2000, 70_000, 30_000, 5, b"m", extra
        )
        monitor.record(bundled)
        key_data = {"text_tier": "medium", **of_key}
        assert monitor.key_generation_times == [PerformanceMetric(7e-05, 900, NOON, "qa", key_data)]
        (operation,) = monitor.cache_operation_times
        assert (operation.duration, operation.additional_data["cache_tier"]) == (0.0015, "redis")
        assert operation.additional_data.keys() == {
            *("operation_type", "status", "text_tier", "response_size", "cache_data_size", "cache_tier")
        }
        figures = {step: stats["max_duration"] for step, stats in monitor.get_step_stats().items()}
        assert figures == {"get": 0.0015, "key": 7e-05, "decode": 3e-05}
        assert (monitor.total_operations, monitor.cache_hits) == (1, 1)

    def test_a_get_that_bears_neither_shows_as_itself_only(self, monitor) -> None:
        monitor.record(get_sample("bypass"))
        assert monitor.key_generation_times == []
        assert set(monitor.get_step_stats()) == {"get"}

    def test_keys_alone_and_keys_of_look_ups_share_one_cap_in_their_order(self, clock) -> None:
        monitor = CachePerformanceMonitor(max_measurements=3, clock=clock)
        for number in range(1, 6):
            if number % 2:
                monitor.record(get_sample("hit", key_ns=1000, text_length=number))
            else:
                monitor.record_key_generation_time(0.001, number)
        assert numbers(monitor, "key_generation_times") == [3, 4, 5]

    @pytest.mark.parametrize("step", ["decode", "compute"])
    def test_other_steps_show_in_no_array_but_have_figures(self, monitor, step) -> None:
        monitor.record(Sample(NOON, "qa", step, "hit", "", 2_000_000_000))
        assert all(getattr(monitor, array) == [] for array in ARRAYS)
        assert monitor.get_step_stats()[step]["p99_duration"] == 2.0
        assert monitor.total_operations == 0

    def test_figures_of_each_step_by_its_name(self, monitor) -> None:
        for name in ARRAYS:
            RECORD_ONE[name](monitor, 1)
        monitor.record_cache_operation_time("set", 0.004, True)
        stats = monitor.get_step_stats()
        assert set(stats) == {"key", "get", "set", "compress", "invalidate"}
        assert stats["set"]["avg_duration"] == 0.004


class TestClassicNames:
    def test_a_key_keeps_exactly_the_data_given(self, monitor) -> None:
        monitor.record_key_generation_time(0.1, 12)
        assert monitor.key_generation_times == [PerformanceMetric(0.1, 12, NOON, "", {})]

    @pytest.mark.parametrize(
        ("operation", "cache_hit", "data", "status"),
        [
            ("get", True, None, "hit"),
            ("get", True, {"status": "stale"}, "stale"),
            ("get", True, {"status": "success"}, "hit"),
            ("get", False, None, "miss"),
            ("get", False, {"reason": "key_not_found"}, "miss"),
            ("get", False, {"reason": "redis_error"}, "error"),
            ("get", False, {"reason": "redis_connection_failed"}, "error"),
            ("get", False, {"status": "bypass"}, "bypass"),
            ("get", False, {"status": "hit"}, "miss"),
            ("set", True, None, "success"),
            ("set", False, None, "failed"),
            ("set", False, {"status": "skipped"}, "skipped"),
            ("delete", True, None, "success"),
        ],
    )
    def test_the_status_of_an_operation(self, monitor, operation, cache_hit, data, status) -> None:
        monitor.record_cache_operation_time(operation, 0.001, cache_hit, 5, data)
        (metric,) = monitor.cache_operation_times
        assert metric.operation_type == operation
        assert metric.additional_data == {**(data or {}), "status": status}
        assert monitor.cache_hits == (operation == "get" and cache_hit)
        assert monitor.cache_misses == (operation == "get" and status == "miss")

    def test_nothing_compressed_has_ratio_one(self, monitor) -> None:
        monitor.record_compression_ratio(0, 0, 0.0)
        assert monitor.compression_ratios[0].compression_ratio == 1.0

    def test_memory_adds_up_and_is_measured_against_the_warning(self, monitor) -> None:
        sizes = {
            "memory_cache_bytes": 5 * MIB,
            "memory_cache_entries": 10,
            "redis_bytes": 20 * MIB,
            "redis_entries": 40,
        }
        metric = monitor.record_memory_usage(**sizes, additional_data={"why": "test"})
        assert monitor.memory_usage_measurements == [metric]
        assert metric._replace(process_memory_mb=0.0) == MemoryUsageMetric(
            25 * MIB, 50, MIB / 2, 5 * MIB, 10, 0.0, NOON, 50.0, False, {"why": "test"}
        )

    def test_an_empty_cache_has_entries_of_no_size(self, monitor) -> None:
        assert monitor.record_memory_usage().avg_entry_size_bytes == 0.0

    @pytest.mark.usefixtures("steady_heap")
    def test_the_process_memory_is_that_of_this_process(self, monitor) -> None:
        before = monitor.record_memory_usage().process_memory_mb
        ballast = b"x" * (64 * MIB)
        after = monitor.record_memory_usage().process_memory_mb
        assert before > 5
        assert 50 < after - before < 80, len(ballast)

    def test_an_invalidation_counts_its_keys(self, monitor) -> None:
        monitor.record_invalidation_event("tag:a", 3, 0.25, additional_data={"status": "success"})
        monitor.record_invalidation_event("tag:b", None, 0.25, "automatic", "beat")
        assert (monitor.total_invalidations, monitor.total_keys_invalidated) == (2, 3)
        assert monitor.invalidation_events == [
            InvalidationMetric("tag:a", 3, 0.25, NOON, "manual", "", {"status": "success"}),
            InvalidationMetric("tag:b", None, 0.25, NOON, "automatic", "beat", {}),
        ]

    @pytest.mark.parametrize("wrong", [-2.0, -1e-9, float("nan"), float("inf")])
    def test_a_duration_no_monotonic_clock_gives_is_refused(self, monitor, wrong) -> None:
        calls = [
            lambda: monitor.record_key_generation_time(wrong, 1),
            lambda: monitor.record_cache_operation_time("get", wrong, True),
            lambda: monitor.record_compression_ratio(2, 1, wrong),
            lambda: monitor.record_invalidation_event("p", 1, wrong),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="perf_counter"):
                call()
        assert all(getattr(monitor, array) == [] for array in ARRAYS)
        assert (monitor.total_operations, monitor.total_invalidations) == (0, 0)


class TestCounting:
    def test_miss_set_hit_is_fifty_percent(self, monitor) -> None:
        monitor.record_cache_operation_time("get", 0.001, False)
        monitor.record_cache_operation_time("set", 0.001, True)
        monitor.record_cache_operation_time("get", 0.001, True)
        assert monitor.hit_ratio() == 50.0
        assert monitor.get_performance_stats()["cache_hit_rate"] == 50.0

    @pytest.mark.parametrize(
        ("status", "hits", "misses"),
        [
            ("hit", 1, 0),
            ("stale", 1, 0),
            ("joined", 1, 0),
            ("miss", 0, 1),
            ("refresh", 0, 0),
            ("bypass", 0, 0),
            ("error", 0, 0),
            ("disabled", 0, 0),
        ],
    )
    def test_each_status_of_a_look_up(self, monitor, status, hits, misses) -> None:
        monitor.record(get_sample(status))
        assert (monitor.cache_hits, monitor.cache_misses, monitor.total_operations) == (hits, misses, 1)

    @pytest.mark.parametrize("status", ["success", "failed", "skipped"])
    def test_a_set_is_an_operation_but_no_look_up(self, monitor, status) -> None:
        monitor.record(get_sample(status)._replace(step="set"))
        assert (monitor.cache_hits, monitor.cache_misses, monitor.total_operations) == (0, 0, 1)

    def test_without_look_ups_the_ratio_is_zero(self, monitor) -> None:
        assert monitor.hit_ratio() == 0.0

    def test_counters_outlive_the_window(self, monitor, clock) -> None:
        monitor.record(get_sample("hit"))
        clock.now += 7200
        stats = monitor.get_performance_stats()
        assert (stats["cache_hits"], stats["total_cache_operations"]) == (1, 1)
        assert "cache_operations" not in stats

    def test_reset_clears_arrays_and_counters(self, monitor) -> None:
        for array in ARRAYS:
            RECORD_ONE[array](monitor, 3)
        monitor.record(Sample(NOON, "qa", "compute", "miss", "", 1))
        monitor.reset_stats()
        assert all(getattr(monitor, array) == [] for array in ARRAYS)
        assert monitor.get_step_stats() == {}
        counters = ("cache_hits", "cache_misses", "total_operations", "total_invalidations", "total_keys_invalidated")
        assert [getattr(monitor, name) for name in counters] == [0] * 5

    def test_a_wall_clock_set_back_gives_no_negative_figure(self, monitor, clock) -> None:
        started = time.perf_counter()
        monitor.record_cache_operation_time("get", time.perf_counter() - started, True)
        monitor.record_memory_usage(redis_bytes=MIB)
        clock.now -= 2
        monitor.record_cache_operation_time("get", time.perf_counter() - started, True)
        monitor.record_memory_usage(redis_bytes=2 * MIB)
        monitor.record_invalidation_event("p", 1, 0.0)
        stats = monitor.get_performance_stats()
        assert all(metric.duration >= 0 for metric in monitor.cache_operation_times)
        assert stats["cache_operations"]["min_duration"] >= 0
        assert stats["cache_operations"]["total_operations"] == 2
        assert "growth_rate_mb_per_hour" not in stats["memory_usage"]["trends"]


class Interrupted(CachePerformanceMonitor):
    """Lets another thread run between the reading and the writing of a counter."""

    @property
    def cache_hits(self) -> int:
        hits = self._hits
        time.sleep(0)
        return hits

    @cache_hits.setter
    def cache_hits(self, hits: int) -> None:
        self._hits = hits


class TestThreadsForksAndSpeed:
    def test_eight_threads_lose_nothing(self) -> None:
        monitor = Interrupted(max_measurements=10_000)
        start, sample = threading.Barrier(8), get_sample("hit")._replace(at=time.time())

        def work() -> None:
            start.wait()
            for number in range(400):
                monitor.record(sample)
                monitor.record_key_generation_time(0.001, 1)
                monitor.record_invalidation_event("p", 2, 0.001)
                if number % 100 == 0:
                    monitor.get_performance_stats()

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (monitor.cache_hits, monitor.total_operations) == (3200, 3200)
        assert (monitor.total_invalidations, monitor.total_keys_invalidated) == (3200, 6400)
        assert len(monitor.cache_operation_times) == len(monitor.key_generation_times) == 3200

    def test_a_signal_handler_may_record_while_its_thread_records(self, monitor) -> None:
        def handler(*_: object) -> None:
            monitor.record(get_sample("miss"))

        before = signal.signal(signal.SIGVTALRM, handler)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0005, 0.0005)
        try:
            while monitor.cache_misses < 50:
                monitor.record(get_sample("hit"))
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
        assert monitor.cache_hits > 0

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
    def test_a_child_starts_empty_although_the_lock_was_held_when_it_was_forked(self) -> None:
        monitor = CachePerformanceMonitor()
        RECORD_ONE["cache_operation_times"](monitor, 1)
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            with monitor._lock:
                held.set()
                release.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)
            monitor.reset_stats()
            empty = monitor.total_operations == 0 and monitor.cache_operation_times == []
            monitor.record(get_sample("hit"))
            os._exit(0 if empty and monitor.total_operations == 1 else 1)
        release.set()
        thread.join()
        assert os.waitpid(child, 0)[1] == 0
        assert monitor.total_operations == 1

    @pytest.mark.parametrize("step", ["key", "get"])
    def test_recording_takes_under_5_microseconds_and_does_not_grow(self, step) -> None:
        sample = get_sample("hit")._replace(step=step)
        empty = min(_seconds_per_record(sample, history=0) for _ in range(9))
        full = min(_seconds_per_record(sample, history=20_000) for _ in range(9))
        assert full < 5e-6
        assert full < 3 * empty


def _seconds_per_record(sample: Sample, history: int) -> float:
    monitor = CachePerformanceMonitor()
    for _ in range(history):
        monitor.record(sample)
    started = time.perf_counter()
    for _ in range(500):
        monitor.record(sample)
    return (time.perf_counter() - started) / 500


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="aicache_tasks.monitor")
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in log.records]


class TestSlowWarnings:
    def test_nothing_is_logged_at_the_limits(self, monitor, log) -> None:
        monitor.record_key_generation_time(0.1, 1)
        monitor.record_cache_operation_time("set", 0.05, True)
        monitor.record(Sample(NOON, "qa", "compute", "miss", "", 60 * 10**9))
        assert lines(log) == []

    def test_a_slow_key_is_warned_of_with_its_figures(self, monitor, log) -> None:
        monitor.record_key_generation_time(0.101, 5000, "qa")
        ((level, text),) = lines(log)
        assert level == "WARNING"
        assert "key generation: 0.101 s, limit 0.100 s" in text
        assert "'qa'" in text
        assert "5000 characters" in text

    def test_a_slow_key_is_warned_of_with_its_look_up(self, monitor, log) -> None:
        monitor.record(get_sample("miss", "qa", key_ns=250_000_000, text_length=5000))
        ((level, text),) = lines(log)
        assert level == "WARNING"
        assert "Slow key generation: 0.250 s, limit 0.100 s (operation 'qa', step 'key', 5000 characters" in text

    def test_one_warning_a_minute_of_each_kind_that_counts_those_held_back(self, monitor, clock, log) -> None:
        for _ in range(5):
            monitor.record_cache_operation_time("get", 0.06, True)
            monitor.record_key_generation_time(0.2, 1)
        assert [text.split(":")[0] for _, text in lines(log)] == ["Slow cache operation", "Slow key generation"]
        clock.now += 60
        monitor.record_cache_operation_time("set", 0.06, True)
        assert len(lines(log)) == 3
        assert "4 more since the last warning" in lines(log)[-1][1]
        assert monitor.get_performance_stats()["cache_operations"]["slow_operations"] == 6

    def test_a_wall_clock_set_back_does_not_silence_it(self, monitor, clock, log) -> None:
        monitor.record_cache_operation_time("get", 0.06, True)
        clock.now -= 86400
        monitor.record_cache_operation_time("get", 0.06, True)
        assert len(lines(log)) == 2

    def test_limits_can_be_given(self, clock, log) -> None:
        monitor = CachePerformanceMonitor(clock=clock, key_generation_threshold=1.0, cache_operation_threshold=0.001)
        monitor.record_key_generation_time(0.5, 1)
        monitor.record_cache_operation_time("get", 0.002, True)
        assert [text.split(":")[0] for _, text in lines(log)] == ["Slow cache operation"]
        assert monitor.get_performance_stats()["key_generation"]["slow_operations"] == 0

    def test_log_lines_hold_names_cut_and_escaped_and_no_data(self, monitor, log) -> None:
        secret = "the prompt"
        monitor.record_key_generation_time(1.0, 1, "evil\nname" + "x" * 500, {"note": secret})
        monitor.record_cache_operation_time("get", 1.0, False, 1, {"error": secret, "operation_type": "a\x1b[2J"})
        for _ in range(100):
            monitor.record_invalidation_event(secret, 1, 0.0, operation_context=secret)
        for level, text in lines(log):
            assert level in {"WARNING", "ERROR"}
            assert not re.search(r"[\x00-\x1f]", text)
            assert secret not in text
            assert len(text) < 250
        assert len(lines(log)) == 4


class TestAlerts:
    def test_memory_is_logged_on_change_only_and_with_hysteresis(self, monitor, log) -> None:
        steps = [
            (49, None),
            (50, "WARNING"),
            (80, None),
            (46, None),
            (99, None),
            (100, "ERROR"),
            (300, None),
            (91, None),
            (89, "WARNING"),
            (99, None),
            (45, None),
            (44, "INFO"),
            (10, None),
            (150, "ERROR"),
            (1, "INFO"),
        ]
        for size, expected in steps:
            log.clear()
            monitor.record_memory_usage(redis_bytes=size * MIB)
            assert [level for level, _ in lines(log)] == ([expected] if expected else []), size

    def test_the_invalidation_rate_is_logged_on_change_only(self, monitor, clock, log) -> None:
        said: dict[int, str] = {}
        for number in range(1, 151):
            log.clear()
            clock.now += 1
            monitor.record_invalidation_event("p", 1, 0.0)
            for level, _ in lines(log):
                said[number] = level
        assert said == {50: "WARNING", 100: "ERROR"}

    def test_the_invalidation_rate_comes_down_at_the_next_look(self, monitor, clock, log) -> None:
        for _ in range(100):
            monitor.record_invalidation_event("p", 1, 0.0)
        log.clear()
        clock.now += 3600
        monitor.get_performance_stats()
        monitor.get_performance_stats()
        ((level, text),) = lines(log)
        assert level == "INFO"
        assert "normal, was critical: 0 in the last hour" in text

    def test_the_rate_has_hysteresis(self, monitor, clock, log) -> None:
        for number in range(50):
            monitor.record_invalidation_event("p", 1, 0.0)
            clock.now += number >= 4
        log.clear()
        clock.now = NOON + 3600
        monitor.get_performance_stats()  # 45 are left: 90 % of 50
        assert lines(log) == []
        clock.now += 1
        monitor.get_performance_stats()
        assert [level for level, _ in lines(log)] == ["INFO"]

    def test_reset_forgets_the_levels(self, monitor, log) -> None:
        monitor.record_memory_usage(redis_bytes=60 * MIB)
        monitor.reset_stats()
        monitor.record_memory_usage(redis_bytes=60 * MIB)
        assert [level for level, _ in lines(log)] == ["WARNING", "WARNING"]


class TestExport:
    def test_export_has_arrays_counters_and_a_time_with_a_zone(self, monitor) -> None:
        for array in ARRAYS:
            RECORD_ONE[array](monitor, 3)
        exported = monitor.export_metrics()
        counters = {"cache_hits", "cache_misses", "total_operations", "total_invalidations", "total_keys_invalidated"}
        assert set(exported) == {*ARRAYS, *counters, "export_timestamp"}
        assert exported["export_timestamp"] == "2023-11-14T22:13:20+00:00"
        assert exported["total_keys_invalidated"] == 3
        for array in ARRAYS:
            assert exported[array] == [metric._asdict() for metric in getattr(monitor, array)]

    def test_export_is_json_whatever_the_data_holds(self, monitor) -> None:
        loop: dict[str, Any] = {}
        loop["self"] = loop
        odd = {"nan": float("nan"), "body": b"secret", "tiers": ("a", {"b"}), 3: object(), "loop": loop}
        monitor.record_cache_operation_time("get", 0.001, True, 1, odd)
        text = json.dumps(monitor.export_metrics(), allow_nan=False)
        data = json.loads(text)["cache_operation_times"][0]["additional_data"]
        assert data["nan"] is None
        assert data["body"] == "<bytes>"
        assert data["tiers"] == ["a", ["b"]]
        assert data["3"] == "<object>"
        assert "secret" not in text

    def test_the_summary_has_counters_and_the_mean_of_the_last_ten(self, monitor) -> None:
        assert monitor.performance_summary() == {
            "hit_ratio": 0.0,
            "total_operations": 0,
            "cache_hits": 0,
            "cache_misses": 0,
            "recent_avg_key_generation_time": 0.0,
            "recent_avg_cache_operation_time": 0.0,
            "total_invalidations": 0,
            "total_keys_invalidated": 0,
        }
        for number in range(20):
            monitor.record_key_generation_time(number / 1000, 1)
            monitor.record_cache_operation_time("get", number / 100_000, number % 4 == 0)
        monitor.record_invalidation_event("p", 4, 0.0)
        monitor.record_memory_usage(redis_bytes=MIB)
        summary = monitor.performance_summary()
        memory = summary.pop("memory_usage")
        assert memory["current"]["total_cache_size_mb"] == 1.0
        assert summary == {
            "hit_ratio": 25.0,
            "total_operations": 20,
            "cache_hits": 5,
            "cache_misses": 15,
            "recent_avg_key_generation_time": pytest.approx(0.0145),
            "recent_avg_cache_operation_time": pytest.approx(0.000145),
            "total_invalidations": 1,
            "total_keys_invalidated": 4,
        }
