"""Figures and advice: every key set by equality, every figure by hand."""

from __future__ import annotations

import json
import statistics
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicache_tasks.monitor import CachePerformanceMonitor
from aicache_tasks.monitor.statistics import percentile
from aicache_tasks.records import Sample

NOON = 1_700_000_000.0
MIB = 2**20

HEAD = {
    "timestamp",
    "retention_hours",
    "cache_hit_rate",
    "total_cache_operations",
    "cache_hits",
    "cache_misses",
}
DURATIONS = {
    "total_operations",
    "avg_duration",
    "median_duration",
    "max_duration",
    "min_duration",
    "p50_duration",
    "p95_duration",
    "p99_duration",
}


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


class TestHead:
    def test_an_unused_monitor_has_no_sections(self, monitor) -> None:
        assert monitor.get_performance_stats() == {
            "timestamp": "2023-11-14T22:13:20+00:00",
            "retention_hours": 1,
            "cache_hit_rate": 0.0,
            "total_cache_operations": 0,
            "cache_hits": 0,
            "cache_misses": 0,
        }

    @pytest.mark.parametrize(
        ("section", "record"),
        [
            ("key_generation", lambda m: m.record_key_generation_time(0.001, 1)),
            ("cache_operations", lambda m: m.record_cache_operation_time("get", 0.001, True)),
            ("compression", lambda m: m.record_compression_ratio(2, 1, 0.001)),
            ("memory_usage", lambda m: m.record_memory_usage(redis_bytes=1)),
            ("invalidation", lambda m: m.record_invalidation_event("p", 1, 0.001)),
        ],
    )
    def test_a_section_is_there_once_its_array_has_something(self, monitor, clock, section, record) -> None:
        record(monitor)
        assert set(monitor.get_performance_stats()) == HEAD | {section}
        json.dumps(monitor.get_performance_stats(), allow_nan=False)
        clock.now += 3600
        assert set(monitor.get_performance_stats()) == HEAD


class TestTimings:
    def test_key_generation(self, monitor) -> None:
        for duration, length in ((0.001, 10), (0.002, 20), (0.003, 30), (0.2, 1000)):
            monitor.record_key_generation_time(duration, length)
        section = monitor.get_performance_stats()["key_generation"]
        assert set(section) == DURATIONS | {"avg_text_length", "max_text_length", "slow_operations"}
        assert section == {
            "total_operations": 4,
            "avg_duration": pytest.approx(0.0515),
            "median_duration": 0.0025,
            "max_duration": 0.2,
            "min_duration": 0.001,
            "p50_duration": 0.002,
            "p95_duration": 0.2,
            "p99_duration": 0.2,
            "avg_text_length": 265,
            "max_text_length": 1000,
            "slow_operations": 1,
        }

    def test_cache_operations(self, monitor) -> None:
        for operation, duration in (("get", 0.001), ("get", 0.003), ("set", 0.06), ("delete", 0.002)):
            monitor.record_cache_operation_time(operation, duration, True)
        section = monitor.get_performance_stats()["cache_operations"]
        assert set(section) == DURATIONS | {"slow_operations", "by_operation_type", "hit_rate_by_operation"}
        assert section["total_operations"] == 4
        assert section["slow_operations"] == 1
        assert section["by_operation_type"] == {
            "get": {"count": 2, "avg_duration": 0.002, "max_duration": 0.003},
            "set": {"count": 1, "avg_duration": 0.06, "max_duration": 0.06},
            "delete": {"count": 1, "avg_duration": 0.002, "max_duration": 0.002},
        }

    def test_one_slow_call_in_a_hundred_shows_in_p99_and_the_maximum(self, monitor) -> None:
        for number in range(200):
            monitor.record_cache_operation_time("get", 5.0 if number % 100 == 99 else 0.001, True)
        section = monitor.get_performance_stats()["cache_operations"]
        assert (section["p50_duration"], section["p95_duration"], section["p99_duration"]) == (0.001, 0.001, 0.001)
        monitor.record_cache_operation_time("get", 5.0, True)
        assert monitor.get_performance_stats()["cache_operations"]["p99_duration"] == 5.0

    def test_totals_of_a_section_are_of_its_window(self, clock) -> None:
        monitor = CachePerformanceMonitor(max_measurements=10, clock=clock)
        for _ in range(100):
            monitor.record_cache_operation_time("get", 0.001, True)
        stats = monitor.get_performance_stats()
        assert (stats["total_cache_operations"], stats["cache_operations"]["total_operations"]) == (100, 10)

    def test_hit_rate_by_operation_leaves_out_what_was_no_look_up(self, monitor) -> None:
        looks = [("qa", "hit"), ("qa", "miss"), ("qa", "error"), ("qa", "refresh"), ("summarize", "stale")]
        looks += [("summarize", "joined"), ("sentiment", "miss"), ("questions", "bypass")]
        for operation, status in looks:
            monitor.record(Sample(NOON, operation, "get", status, "", 1000))
        monitor.record(Sample(NOON, "questions", "set", "hit", "", 1000))
        section = monitor.get_performance_stats()["cache_operations"]
        assert section["hit_rate_by_operation"] == {"qa": 50.0, "summarize": 100.0, "sentiment": 0.0}

    def test_averages_are_the_means_of_the_arrays(self, monitor) -> None:
        for number in range(50):
            monitor.record_key_generation_time(number / 7000, number)
            monitor.record_cache_operation_time("set", number / 3000, True)
        stats = monitor.get_performance_stats()
        for section, array in (
            ("key_generation", monitor.key_generation_times),
            ("cache_operations", monitor.cache_operation_times),
        ):
            durations = [metric.duration for metric in array]
            assert stats[section]["avg_duration"] == pytest.approx(statistics.mean(durations))
            assert stats[section]["median_duration"] == statistics.median(durations)

    @given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([50, 90, 95, 99, 100]))
    def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(self, values, percent) -> None:
        ordered = sorted(values)
        found = percentile(ordered, percent)
        assert sum(value <= found for value in values) * 100 >= percent * len(values)
        assert all(sum(v <= value for v in values) * 100 < percent * len(values) for value in values if value < found)


class TestCompression:
    def test_the_section(self, monitor) -> None:
        monitor.record_compression_ratio(1000, 250, 0.001, "qa")
        monitor.record_compression_ratio(3000, 1500, 0.003, "summarize")
        monitor.record_compression_ratio(0, 0, 0.002)
        assert monitor.get_performance_stats()["compression"] == {
            "total_operations": 3,
            "avg_compression_ratio": pytest.approx(1.75 / 3),
            "median_compression_ratio": 0.5,
            "best_compression_ratio": 0.25,
            "worst_compression_ratio": 1.0,
            "avg_compression_time": 0.002,
            "max_compression_time": 0.003,
            "total_bytes_processed": 4000,
            "total_bytes_saved": 2250,
            "overall_savings_percent": 56.25,
        }

    def test_savings_of_nothing_are_zero(self, monitor) -> None:
        monitor.record_compression_ratio(0, 0, 0.0)
        assert monitor.get_performance_stats()["compression"]["overall_savings_percent"] == 0.0


class TestMemory:
    def test_without_a_measurement_only_thresholds(self, monitor) -> None:
        assert monitor.get_memory_usage_stats() == {
            "no_measurements": True,
            "warning_threshold_mb": 50.0,
            "critical_threshold_mb": 100.0,
        }

    def test_the_section(self, monitor, clock) -> None:
        for mebibytes in (20, 30, 60):
            monitor.record_memory_usage(
                memory_cache_bytes=10 * MIB,
                memory_cache_entries=5,
                redis_bytes=mebibytes * MIB,
                redis_entries=mebibytes,
            )
            clock.now += 900
        section = monitor.get_performance_stats()["memory_usage"]
        assert section["current"].pop("process_memory_mb") > 0
        assert section == {
            "current": {
                "total_cache_size_mb": 70.0,
                "memory_cache_size_mb": 10.0,
                "cache_entry_count": 65,
                "memory_cache_entry_count": 5,
                "avg_entry_size_bytes": pytest.approx(70 * MIB / 65),
                "cache_utilization_percent": 140.0,
                "warning_threshold_reached": True,
            },
            "thresholds": {
                "warning_threshold_mb": 50.0,
                "critical_threshold_mb": 100.0,
                "warning_threshold_reached": True,
                "critical_threshold_reached": False,
            },
            "trends": {
                "total_measurements": 3,
                "avg_total_cache_size_mb": pytest.approx(140 / 3),
                "max_total_cache_size_mb": 70.0,
                "avg_memory_cache_size_mb": 10.0,
                "avg_entry_count": pytest.approx(125 / 3),
                "max_entry_count": 65,
                "growth_rate_mb_per_hour": 80.0,
            },
        }

    def test_trends_are_of_the_last_ten(self, monitor, clock) -> None:
        for mebibytes in (99, *range(10)):
            monitor.record_memory_usage(redis_bytes=mebibytes * MIB)
            clock.now += 10
        trends = monitor.get_memory_usage_stats()["trends"]
        assert (trends["total_measurements"], trends["max_total_cache_size_mb"]) == (11, 9.0)
        assert trends["growth_rate_mb_per_hour"] == pytest.approx(9 / 90 * 3600)

    def test_no_growth_rate_without_time_between(self, monitor) -> None:
        monitor.record_memory_usage(redis_bytes=1)
        assert "growth_rate_mb_per_hour" not in monitor.get_memory_usage_stats()["trends"]
        monitor.record_memory_usage(redis_bytes=2)
        assert "growth_rate_mb_per_hour" not in monitor.get_memory_usage_stats()["trends"]

    @pytest.mark.parametrize(
        ("size", "severities"),
        [(50 * MIB - 1, []), (50 * MIB, ["warning"]), (100 * MIB - 1, ["warning"]), (100 * MIB, ["critical"])],
    )
    def test_warnings_by_size(self, monitor, size, severities) -> None:
        monitor.record_memory_usage(redis_bytes=size)
        found = monitor.get_memory_warnings()
        assert [warning["severity"] for warning in found] == severities
        for warning in found:
            assert set(warning) == {"severity", "message", "recommendations"}
            assert f"{size / MIB:.1f} MiB" in warning["message"]
            assert warning["recommendations"]

    @pytest.mark.parametrize(("entries", "limit", "full"), [(90, 100, False), (91, 100, True), (91, 1000, False)])
    def test_a_memory_cache_over_nine_tenths_of_its_own_limit_is_told(self, monitor, entries, limit, full) -> None:
        monitor.record_memory_usage(memory_cache_entries=entries, memory_cache_entry_limit=limit)
        found = monitor.get_memory_warnings()
        assert [warning["severity"] for warning in found] == ["info"] * full
        assert all("91/100 entries" in warning["message"] for warning in found)

    def test_no_limit_no_guess(self, monitor) -> None:
        assert monitor.get_memory_warnings() == []
        monitor.record_memory_usage(memory_cache_entries=5000)
        assert monitor.get_memory_warnings() == []

    def test_the_latest_measurement_decides(self, monitor) -> None:
        monitor.record_memory_usage(redis_bytes=200 * MIB)
        monitor.record_memory_usage(redis_bytes=1 * MIB)
        assert monitor.get_memory_warnings() == []


class TestInvalidation:
    def test_without_an_event_only_thresholds(self, monitor) -> None:
        assert monitor.get_invalidation_frequency_stats() == {
            "no_invalidations": True,
            "total_invalidations": 0,
            "total_keys_invalidated": 0,
            "warning_threshold_per_hour": 50,
            "critical_threshold_per_hour": 100,
        }

    def test_the_section(self, monitor) -> None:
        monitor.record_invalidation_event("op:qa", 4, 0.001)
        monitor.record_invalidation_event("op:qa", 2, 0.003, "automatic")
        monitor.record_invalidation_event("tag:a", None, 0.002)
        assert monitor.get_performance_stats()["invalidation"] == {
            "total_invalidations": 3,
            "total_keys_invalidated": 6,
            "rates": {"last_hour": 3, "last_24_hours": 3, "window_hours": 1, "average_per_hour": 3.0},
            "thresholds": {"warning_per_hour": 50, "critical_per_hour": 100, "current_alert_level": "normal"},
            "patterns": {
                "most_common_patterns": {"op:qa": 2, "tag:a": 1},
                "invalidation_types": {"manual": 2, "automatic": 1},
            },
            "efficiency": {"avg_keys_per_invalidation": 3.0, "avg_duration": 0.002, "max_duration": 0.003},
        }

    def test_a_day_is_a_day_when_the_retention_reaches_so_far(self, clock) -> None:
        monitor = CachePerformanceMonitor(48, clock=clock)
        for hours in (30, 20, 1, 0.5):
            clock.now = NOON - hours * 3600
            monitor.record_invalidation_event("p", 1, 0.0)
        clock.now = NOON
        rates = monitor.get_invalidation_frequency_stats()["rates"]
        assert rates == {"last_hour": 1, "last_24_hours": 3, "window_hours": 24, "average_per_hour": 4 / 48}

    @pytest.mark.parametrize(("events", "level"), [(49, "normal"), (50, "warning"), (99, "warning"), (100, "critical")])
    def test_levels_by_rate(self, monitor, events, level) -> None:
        for _ in range(events):
            monitor.record_invalidation_event("p", 1, 0.0)
        assert monitor.get_invalidation_frequency_stats()["thresholds"]["current_alert_level"] == level

    def test_limits_can_be_given(self, clock) -> None:
        limits = {"invalidation_rate_warning_per_hour": 2, "invalidation_rate_critical_per_hour": 3}
        monitor = CachePerformanceMonitor(clock=clock, **limits)
        for level in ("normal", "warning", "critical"):
            monitor.record_invalidation_event("p", 1, 0.0)
            assert monitor.get_invalidation_frequency_stats()["thresholds"]["current_alert_level"] == level

    def test_patterns_are_the_top_ten_of_the_last_fifty(self, monitor) -> None:
        for _ in range(60):
            monitor.record_invalidation_event("old", 1, 9.0)
        for number in range(50):
            monitor.record_invalidation_event(f"p{number % 12:02}", 1, 0.5)
        section = monitor.get_invalidation_frequency_stats()
        patterns = section["patterns"]["most_common_patterns"]
        assert len(patterns) == 10
        assert "old" not in patterns
        assert list(patterns)[:2] == ["p00", "p01"]
        assert (patterns["p00"], patterns["p09"]) == (5, 4)
        assert section["efficiency"]["max_duration"] == 0.5

    def test_uncounted_and_failed_events_do_not_enter_the_average(self, monitor) -> None:
        monitor.record_invalidation_event("a", None, 0.0)
        assert monitor.get_invalidation_frequency_stats()["efficiency"]["avg_keys_per_invalidation"] is None
        monitor.record_invalidation_event("b", 6, 0.0)
        monitor.record_invalidation_event("c", 0, 0.0, additional_data={"status": "failed", "reason": "redis_error"})
        assert monitor.get_invalidation_frequency_stats()["efficiency"]["avg_keys_per_invalidation"] == 6.0


class TestRecommendations:
    def issues(self, monitor: CachePerformanceMonitor) -> list[tuple[str, str]]:
        found = monitor.get_invalidation_recommendations()
        for recommendation in found:
            assert set(recommendation) == {"severity", "issue", "message", "suggestions"}
            assert recommendation["suggestions"]
        return [(recommendation["severity"], recommendation["issue"]) for recommendation in found]

    def test_nothing_happened_nothing_to_say(self, monitor) -> None:
        assert monitor.get_invalidation_recommendations() == []

    def test_few_events_of_many_patterns_with_some_keys_are_fine(self, monitor) -> None:
        for number in range(10):
            monitor.record_invalidation_event(f"p{number}", 1 + number * 20, 0.0)
        assert self.issues(monitor) == []

    @pytest.mark.parametrize(("events", "severity"), [(50, "warning"), (100, "critical")])
    def test_high_frequency(self, monitor, events, severity) -> None:
        for number in range(events):
            monitor.record_invalidation_event(f"p{number}", 1, 0.0)
        assert self.issues(monitor) == [(severity, "High invalidation frequency")]
        assert str(events) in monitor.get_invalidation_recommendations()[0]["message"]

    def test_a_dominant_pattern_is_more_than_half_of_the_recent_events(self, monitor) -> None:
        for pattern in ("a", "a", "b", "c"):
            monitor.record_invalidation_event(pattern, 1, 0.0)
        assert self.issues(monitor) == []
        monitor.record_invalidation_event("a", 1, 0.0)
        assert self.issues(monitor) == [("info", "Dominant invalidation pattern")]

    def test_a_dominant_pattern_is_seen_behind_a_long_history(self, monitor, clock) -> None:
        for number in range(200):
            monitor.record_invalidation_event(f"p{number}", 1, 0.0)
        for _ in range(30):
            monitor.record_invalidation_event("hot", 1, 0.0)
        assert ("info", "Dominant invalidation pattern") in self.issues(monitor)

    def test_a_pattern_is_shown_cut_and_escaped(self, monitor) -> None:
        monitor.record_invalidation_event("evil\n\x1b[2J" + "x" * 500, 1, 0.0)
        message = monitor.get_invalidation_recommendations()[0]["message"]
        assert "evil\\n\\x1b[2J" in message
        assert "\n" not in message
        assert len(message) < 150

    def test_low_efficiency(self, monitor) -> None:
        for number in range(4):
            monitor.record_invalidation_event(f"p{number}", int(number == 0), 0.0)
        assert self.issues(monitor) == [("info", "Low invalidation efficiency")]

    def test_high_impact(self, monitor) -> None:
        for number in range(4):
            monitor.record_invalidation_event(f"p{number}", 101, 0.0)
        assert self.issues(monitor) == [("warning", "High invalidation impact")]

    @pytest.mark.parametrize("keys", [1, 100])
    def test_the_borders_of_efficiency_are_fine(self, monitor, keys) -> None:
        for number in range(4):
            monitor.record_invalidation_event(f"p{number}", keys, 0.0)
        assert self.issues(monitor) == []

    def test_uncounted_keys_are_not_low_efficiency(self, monitor) -> None:
        for number in range(4):
            monitor.record_invalidation_event(f"p{number}", None, 0.0)
        assert self.issues(monitor) == []


class TestSlowOperations:
    def test_an_unused_monitor_has_three_empty_lists(self, monitor) -> None:
        empty = {"key_generation": [], "cache_operations": [], "compression": []}
        assert monitor.get_recent_slow_operations() == empty

    def test_what_took_more_than_twice_the_mean(self, monitor) -> None:
        for duration in (0.001, 0.001, 0.001, 0.009):
            monitor.record_key_generation_time(duration, 7, "qa")
            monitor.record_cache_operation_time("set", duration, True, 8)
            monitor.record_compression_ratio(1000, 100, duration, "qa")
        when = "2023-11-14T22:13:20+00:00"
        timing = {"duration": 0.009, "timestamp": when, "times_slower": pytest.approx(3.0)}
        assert monitor.get_recent_slow_operations() == {
            "key_generation": [{**timing, "text_length": 7, "operation_type": "qa"}],
            "cache_operations": [{**timing, "text_length": 8, "operation_type": "set"}],
            "compression": [
                {
                    "compression_time": 0.009,
                    "original_size": 1000,
                    "compression_ratio": 0.1,
                    "operation_type": "qa",
                    "timestamp": when,
                    "times_slower": pytest.approx(3.0),
                }
            ],
        }
        assert datetime.fromisoformat(when).timestamp() == NOON

    def test_exactly_the_multiple_is_not_slow(self, monitor) -> None:
        for duration in (0.0, 0.0, 0.0, 4.0):
            monitor.record_key_generation_time(duration, 7)
        assert monitor.get_recent_slow_operations(4.0)["key_generation"] == []
        assert len(monitor.get_recent_slow_operations(3.9)["key_generation"]) == 1

    def test_durations_of_zero_divide_nothing(self, monitor) -> None:
        monitor.record_key_generation_time(0.0, 7)
        assert monitor.get_recent_slow_operations(0.0)["key_generation"] == []
        assert monitor.get_recent_slow_operations(-1.0)["key_generation"] == []
