"""
What to look at: slow operations, memory warnings, recommendations on invalidation.

In: the arrays and the thresholds.   Out: lists of dicts for people.   Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aicache_tasks.monitor.metrics import CompressionMetric, MemoryUsageMetric, PerformanceMetric
from aicache_tasks.monitor.statistics import MIB, iso_utc, level_of, mean

SHOWN_CHARS = 64
_FULL_PERCENT = 90
_FEW_KEYS, _MANY_KEYS = 1.0, 100.0


def shown(name: str) -> str:
    """Return *name* cut and escaped, fit for a message or a log line.

    >>> shown("a\\nb")
    "'a\\\\nb'"
    """
    return repr(name[:SHOWN_CHARS])


def slow_timings(times: Sequence[PerformanceMetric], multiplier: float) -> list[dict[str, Any]]:
    """Return those longer than *multiplier* times the mean of *times*, in their order."""
    average = mean([metric.duration for metric in times])
    return [
        {
            "duration": metric.duration,
            "text_length": metric.text_length,
            "operation_type": metric.operation_type,
            "timestamp": iso_utc(metric.timestamp),
            "times_slower": metric.duration / average,
        }
        for metric in times
        if metric.duration > average * multiplier and average
    ]


def slow_compressions(metrics: Sequence[CompressionMetric], multiplier: float) -> list[dict[str, Any]]:
    """Return those that took longer than *multiplier* times the mean of *metrics*, in their order."""
    average = mean([metric.compression_time for metric in metrics])
    return [
        {
            "compression_time": metric.compression_time,
            "original_size": metric.original_size,
            "compression_ratio": metric.compression_ratio,
            "operation_type": metric.operation_type,
            "timestamp": iso_utc(metric.timestamp),
            "times_slower": metric.compression_time / average,
        }
        for metric in metrics
        if metric.compression_time > average * multiplier and average
    ]


def memory_warnings(latest: MemoryUsageMetric, warning_bytes: float, critical_bytes: float) -> list[dict[str, Any]]:
    """Return ``{severity, message, recommendations}`` for each thing that the latest measurement shows."""
    size = f"The cache takes {latest.total_cache_size_bytes / MIB:.1f} MiB"
    level = level_of(latest.total_cache_size_bytes, warning_bytes, critical_bytes)
    found: list[dict[str, Any]] = []
    if level == "critical":
        found.append(_critical_memory(f"{size}; critical is {critical_bytes / MIB:.1f} MiB"))
    elif level == "warning":
        found.append(_high_memory(f"{size}; a warning is given from {warning_bytes / MIB:.1f} MiB"))
    return found + _full_memory_cache(latest)


def _critical_memory(message: str) -> dict[str, Any]:
    return {
        "severity": "critical",
        "message": message,
        "recommendations": [
            "Shorten the lifetimes of the operations with the largest answers",
            "Set an eviction policy on the cache's server, such as volatile-lfu",
            "Check which answers are large, and lower the largest size that is stored",
            "Give the cache's server more memory",
        ],
    }


def _high_memory(message: str) -> dict[str, Any]:
    return {
        "severity": "warning",
        "message": message,
        "recommendations": [
            "Watch the growth rate",
            "Look for arguments that make keys differ without need, and ignore them",
            "Lower the number of entries that each process keeps in memory",
        ],
    }


def _full_memory_cache(latest: MemoryUsageMetric) -> list[dict[str, Any]]:
    limit = latest.additional_data.get("memory_cache_entry_limit", 0)
    if not limit or latest.memory_cache_entry_count * 100 <= limit * _FULL_PERCENT:
        return []
    used = f"{latest.memory_cache_entry_count}/{limit} entries"
    return [
        {
            "severity": "info",
            "message": f"The memory cache is {latest.memory_cache_entry_count * 100 / limit:.1f} % full ({used})",
            "recommendations": [
                "Nothing needs doing: the least recently used entries make room",
                "Raise the number of entries if hits from memory are worth it",
            ],
        }
    ]


def invalidation_recommendations(stats: dict[str, Any]) -> list[dict[str, Any]]:
    """Return ``{severity, issue, message, suggestions}`` for each thing that the ``invalidation`` section shows."""
    return _frequency_advice(stats) + _pattern_advice(stats) + _efficiency_advice(stats)


def _frequency_advice(stats: dict[str, Any]) -> list[dict[str, Any]]:
    level = stats["thresholds"]["current_alert_level"]
    if level == "normal":
        return []
    suggestions = [
        "Check what triggers the invalidations, and whether each is needed",
        "Invalidate single calls or tags rather than whole operations",
        "Raise the version of a policy when its prompt changes, instead of invalidating often",
        "Shorten lifetimes where answers go stale by age alone",
    ]
    message = f"{stats['rates']['last_hour']} invalidations in the last hour"
    return [_recommendation(level, "High invalidation frequency", message, suggestions)]


def _pattern_advice(stats: dict[str, Any]) -> list[dict[str, Any]]:
    recent = sum(stats["patterns"]["invalidation_types"].values())
    pattern, count = next(iter(stats["patterns"]["most_common_patterns"].items()))
    if count * 2 <= recent:
        return []
    suggestions = [
        "Look at what invalidates this pattern, and whether it can be narrower",
        "Give the data behind it a tag of its own",
        "Shorten its lifetime if it is invalidated on a schedule",
    ]
    message = f"Pattern {shown(pattern)} is {count} of the last {recent} invalidations"
    return [_recommendation("info", "Dominant invalidation pattern", message, suggestions)]


def _efficiency_advice(stats: dict[str, Any]) -> list[dict[str, Any]]:
    keys = stats["efficiency"]["avg_keys_per_invalidation"]
    if keys is None or _FEW_KEYS <= keys <= _MANY_KEYS:
        return []
    message = f"{keys:.1f} keys per invalidation on average"
    if keys < _FEW_KEYS:
        few = ["Many invalidations find nothing: check the names they use", "Skip those whose entries have expired"]
        return [_recommendation("info", "Low invalidation efficiency", message, few)]
    many = [
        "Each invalidation clears many entries, which are then paid for again",
        "Use tags or single calls to keep the entries that are still right",
    ]
    return [_recommendation("warning", "High invalidation impact", message, many)]


def _recommendation(severity: str, issue: str, message: str, suggestions: list[str]) -> dict[str, Any]:
    return {"severity": severity, "issue": issue, "message": message, "suggestions": suggestions}
