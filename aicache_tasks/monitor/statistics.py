"""
Figures from the arrays.

In: lists of metrics, newest last.   Out: dicts of plain numbers.   Pure: no clock, no state.

Durations are seconds, sizes bytes unless a name ends in ``_mb`` (MiB), rates percent from 0 to 100. Percentiles are
nearest-rank: each is a duration that was measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any, Literal

from aicache_tasks.monitor.metrics import CompressionMetric, InvalidationMetric, MemoryUsageMetric, PerformanceMetric
from aicache_tasks.records import HIT_STATUSES

MIB = 2**20
RECENT_MEASUREMENTS = 10
RECENT_EVENTS = 50
TOP_PATTERNS = 10

Level = Literal["normal", "warning", "critical"]


def iso_utc(timestamp: float) -> str:
    """Return seconds since the epoch as an ISO 8601 time that names its zone.

    >>> iso_utc(0)
    '1970-01-01T00:00:00+00:00'
    """
    return datetime.fromtimestamp(timestamp, UTC).isoformat()


def mean(values: Sequence[float]) -> float:
    """Return the mean, 0.0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of values in rising order.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 50), percentile([1.0, 2.0, 3.0, 4.0], 99)
    (2.0, 4.0)
    """
    return ordered[max(math.ceil(percent * len(ordered) / 100), 1) - 1]


def hit_rate(hits: int, misses: int) -> float:
    """Return hits in percent of look-ups that a hit or a miss answered, 0.0 when there were none.

    >>> hit_rate(1, 1)
    50.0
    """
    return 100.0 * hits / (hits + misses) if hits + misses else 0.0


def duration_stats(durations: Iterable[float]) -> dict[str, Any]:
    """Return count, average, median, extremes and percentiles of at least one duration."""
    ordered = sorted(durations)
    return {
        "total_operations": len(ordered),
        "avg_duration": mean(ordered),
        "median_duration": median(ordered),
        "max_duration": ordered[-1],
        "min_duration": ordered[0],
        "p50_duration": percentile(ordered, 50),
        "p95_duration": percentile(ordered, 95),
        "p99_duration": percentile(ordered, 99),
    }


def key_generation_stats(times: Sequence[PerformanceMetric], slow_s: float) -> dict[str, Any]:
    """Return the ``key_generation`` section; *times* is not empty, longer than *slow_s* counts as slow."""
    lengths = [metric.text_length for metric in times]
    return duration_stats(metric.duration for metric in times) | {
        "avg_text_length": mean(lengths),
        "max_text_length": max(lengths),
        "slow_operations": sum(metric.duration > slow_s for metric in times),
    }


def cache_operation_stats(times: Sequence[PerformanceMetric], slow_s: float) -> dict[str, Any]:
    """Return the ``cache_operations`` section; *times* is not empty, longer than *slow_s* counts as slow."""
    by_type: dict[str, list[float]] = {}
    for metric in times:
        by_type.setdefault(metric.operation_type, []).append(metric.duration)
    return duration_stats(metric.duration for metric in times) | {
        "slow_operations": sum(metric.duration > slow_s for metric in times),
        "by_operation_type": {
            name: {"count": len(durations), "avg_duration": mean(durations), "max_duration": max(durations)}
            for name, durations in by_type.items()
        },
        "hit_rate_by_operation": hit_rate_by_operation(times),
    }


def hit_rate_by_operation(times: Iterable[PerformanceMetric]) -> dict[str, float]:
    """Return the hit rate of each AI operation that had a look-up with a hit or a miss."""
    counts: dict[str, list[int]] = {}
    for metric in times:
        status = metric.additional_data.get("status")
        if metric.operation_type == "get" and (status == "miss" or status in HIT_STATUSES):
            counts.setdefault(str(metric.additional_data.get("operation_type", "")), [0, 0])[status == "miss"] += 1
    return {operation: hit_rate(*both) for operation, both in counts.items()}


def compression_stats(metrics: Sequence[CompressionMetric]) -> dict[str, Any]:
    """Return the ``compression`` section; *metrics* is not empty."""
    ratios = [metric.compression_ratio for metric in metrics]
    times = [metric.compression_time for metric in metrics]
    original = sum(metric.original_size for metric in metrics)
    saved = original - sum(metric.compressed_size for metric in metrics)
    return {
        "total_operations": len(metrics),
        "avg_compression_ratio": mean(ratios),
        "median_compression_ratio": median(ratios),
        "best_compression_ratio": min(ratios),
        "worst_compression_ratio": max(ratios),
        "avg_compression_time": mean(times),
        "max_compression_time": max(times),
        "total_bytes_processed": original,
        "total_bytes_saved": saved,
        "overall_savings_percent": 100.0 * saved / original if original else 0.0,
    }


def memory_stats(metrics: Sequence[MemoryUsageMetric], warning_bytes: float, critical_bytes: float) -> dict[str, Any]:
    """Return the ``memory_usage`` section; of no measurement, only the thresholds."""
    limits = {"warning_threshold_mb": warning_bytes / MIB, "critical_threshold_mb": critical_bytes / MIB}
    if not metrics:
        return {"no_measurements": True, **limits}
    latest = metrics[-1]
    return {
        "current": _current_memory(latest),
        "thresholds": {
            **limits,
            "warning_threshold_reached": latest.warning_threshold_reached,
            "critical_threshold_reached": latest.total_cache_size_bytes >= critical_bytes,
        },
        "trends": {"total_measurements": len(metrics), **_memory_trends(metrics[-RECENT_MEASUREMENTS:])},
    }


def _current_memory(latest: MemoryUsageMetric) -> dict[str, Any]:
    return {
        "total_cache_size_mb": latest.total_cache_size_bytes / MIB,
        "memory_cache_size_mb": latest.memory_cache_size_bytes / MIB,
        "cache_entry_count": latest.cache_entry_count,
        "memory_cache_entry_count": latest.memory_cache_entry_count,
        "avg_entry_size_bytes": latest.avg_entry_size_bytes,
        "process_memory_mb": latest.process_memory_mb,
        "cache_utilization_percent": latest.cache_utilization_percent,
        "warning_threshold_reached": latest.warning_threshold_reached,
    }


def _memory_trends(recent: Sequence[MemoryUsageMetric]) -> dict[str, float]:
    sizes = [metric.total_cache_size_bytes / MIB for metric in recent]
    entries = [metric.cache_entry_count for metric in recent]
    trends = {
        "avg_total_cache_size_mb": mean(sizes),
        "max_total_cache_size_mb": max(sizes),
        "avg_memory_cache_size_mb": mean([metric.memory_cache_size_bytes / MIB for metric in recent]),
        "avg_entry_count": mean(entries),
        "max_entry_count": max(entries),
    }
    span_s = recent[-1].timestamp - recent[0].timestamp
    if span_s > 0:
        trends["growth_rate_mb_per_hour"] = (sizes[-1] - sizes[0]) / span_s * 3600
    return trends


def invalidation_stats(
    events: Sequence[InvalidationMetric],
    *,
    now: float,
    retention_hours: float,
    totals: tuple[int, int],
    warning_per_hour: float,
    critical_per_hour: float,
) -> dict[str, Any]:
    """Return the ``invalidation`` section; without events, only the thresholds.

    Args:
        events: the events retained. ``last_24_hours`` counts those of the last ``window_hours``, which is less than
            24 when the retention is.
        totals: invalidations and keys since the last reset.

    Rates and ``avg_keys_per_invalidation`` are of the events retained, patterns, types and durations of the newest 50.
    """
    if not events:
        return {
            "no_invalidations": True,
            "total_invalidations": 0,
            "total_keys_invalidated": 0,
            "warning_threshold_per_hour": warning_per_hour,
            "critical_threshold_per_hour": critical_per_hour,
        }
    last_hour = count_since(events, now - 3600)
    recent = events[-RECENT_EVENTS:]
    return {
        "total_invalidations": totals[0],
        "total_keys_invalidated": totals[1],
        "rates": {
            "last_hour": last_hour,
            "last_24_hours": count_since(events, now - 86400),
            "window_hours": min(retention_hours, 24),
            "average_per_hour": len(events) / retention_hours,
        },
        "thresholds": {
            "warning_per_hour": warning_per_hour,
            "critical_per_hour": critical_per_hour,
            "current_alert_level": level_of(last_hour, warning_per_hour, critical_per_hour),
        },
        "patterns": {
            "most_common_patterns": dict(Counter(event.pattern for event in recent).most_common(TOP_PATTERNS)),
            "invalidation_types": dict(Counter(event.invalidation_type for event in recent)),
        },
        "efficiency": {
            "avg_keys_per_invalidation": avg_keys(events),
            "avg_duration": mean([event.duration for event in recent]),
            "max_duration": max(event.duration for event in recent),
        },
    }


def count_since(events: Iterable[InvalidationMetric], cutoff: float) -> int:
    """Return how many events are later than *cutoff* (seconds since the epoch)."""
    return sum(event.timestamp > cutoff for event in events)


def avg_keys(events: Iterable[InvalidationMetric]) -> float | None:
    """Return the mean of keys per event that succeeded and was counted; None when there is none."""
    counted = [
        event.keys_invalidated
        for event in events
        if event.keys_invalidated is not None and event.additional_data.get("status") != "failed"
    ]
    return mean(counted) if counted else None


def level_of(value: float, warning: float, critical: float) -> Level:
    """Return how bad *value* is.

    >>> level_of(50, 50, 100), level_of(100, 50, 100)
    ('warning', 'critical')
    """
    if value >= critical:
        return "critical"
    return "warning" if value >= warning else "normal"
