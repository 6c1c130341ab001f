"""
What the arrays hold: views of samples.

In: a `Sample`.   Out: a metric with durations in seconds, or plain JSON data.   Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from aicache_tasks.records import NO_EXTRA, Sample

_INVALIDATION_FIELDS = frozenset({"pattern", "keys_invalidated", "invalidation_type", "operation_context"})
_MAX_DEPTH = 4

OF_KEY: Final = "key"
"""Name in ``extra`` of a look-up's sample: what it says of its key. Shows with the keys only."""


class PerformanceMetric(NamedTuple):
    """One timed key or cache operation: ``duration`` in seconds, ``timestamp`` in seconds since the epoch."""

    duration: float
    text_length: int
    timestamp: float
    operation_type: str = ""
    additional_data: Mapping[str, Any] = NO_EXTRA


class CompressionMetric(NamedTuple):
    """One compression: sizes in bytes, the ratio is compressed / original, ``compression_time`` in seconds."""

    original_size: int
    compressed_size: int
    compression_ratio: float
    compression_time: float
    timestamp: float
    operation_type: str = ""


class MemoryUsageMetric(NamedTuple):
    """One measurement of what the cache takes up: totals are Redis and this process's memory cache together."""

    total_cache_size_bytes: int
    cache_entry_count: int
    avg_entry_size_bytes: float
    memory_cache_size_bytes: int
    memory_cache_entry_count: int
    process_memory_mb: float
    timestamp: float
    cache_utilization_percent: float
    warning_threshold_reached: bool = False
    additional_data: Mapping[str, Any] = NO_EXTRA


class InvalidationMetric(NamedTuple):
    """One invalidation; ``keys_invalidated`` is None where it costs no look at the keys, and so nobody counted."""

    pattern: str
    keys_invalidated: int | None
    duration: float
    timestamp: float
    invalidation_type: str = ""
    operation_context: str = ""
    additional_data: Mapping[str, Any] = NO_EXTRA


Metric = PerformanceMetric | CompressionMetric | MemoryUsageMetric | InvalidationMetric


def took_ns(sample: Sample, step: str) -> int:
    """Return what *step* took: a ``get`` bears the times of its key and of decoding.

    >>> took_ns(Sample(0.0, "qa", "get", "hit", "", 70_000, key_ns=12_000), "key")
    12000
    """
    if sample.step == step:
        return sample.duration_ns
    return sample.key_ns if step == "key" else sample.decode_ns


def key_metric(sample: Sample) -> PerformanceMetric:
    """Return the view of a ``key`` sample, or of what a ``get`` bears of its key."""
    extra = sample.extra if sample.step == "key" else sample.extra.get(OF_KEY, NO_EXTRA)
    data = _present(text_tier=sample.text_tier) | dict(extra)
    return PerformanceMetric(took_ns(sample, "key") / 1e9, sample.text_length, sample.at, sample.operation, data)


def operation_metric(sample: Sample) -> PerformanceMetric:
    """Return the view of a ``get``, a ``set`` or another cache operation.

    >>> operation_metric(Sample(0.0, "qa", "get", "miss", "expired", 1_500_000)).additional_data
    {'operation_type': 'qa', 'status': 'miss', 'reason': 'expired'}
    """
    data = _present(
        operation_type=sample.operation,
        status=sample.status,
        reason=sample.reason,
        text_tier=sample.text_tier,
        response_size=sample.raw_bytes,
        cache_data_size=sample.stored_bytes,
    )
    data |= {name: value for name, value in sample.extra.items() if name != OF_KEY or not sample.key_ns}
    return PerformanceMetric(sample.duration_ns / 1e9, sample.text_length, sample.at, sample.step, data)


def compression_metric(sample: Sample) -> CompressionMetric:
    """Return the view of a ``compress`` sample; the ratio of nothing is 1.0."""
    ratio = sample.stored_bytes / sample.raw_bytes if sample.raw_bytes else 1.0
    return CompressionMetric(
        sample.raw_bytes, sample.stored_bytes, ratio, sample.duration_ns / 1e9, sample.at, sample.operation
    )


def memory_metric(sample: Sample) -> MemoryUsageMetric:
    """Return the view of a ``memory`` sample."""
    extra = sample.extra
    return MemoryUsageMetric(
        total_cache_size_bytes=extra.get("total_cache_size_bytes", 0),
        cache_entry_count=extra.get("cache_entry_count", 0),
        avg_entry_size_bytes=extra.get("avg_entry_size_bytes", 0.0),
        memory_cache_size_bytes=extra.get("memory_cache_size_bytes", 0),
        memory_cache_entry_count=extra.get("memory_cache_entry_count", 0),
        process_memory_mb=extra.get("process_memory_mb", 0.0),
        timestamp=sample.at,
        cache_utilization_percent=extra.get("cache_utilization_percent", 0.0),
        warning_threshold_reached=extra.get("warning_threshold_reached", False),
        additional_data=extra.get("additional_data", NO_EXTRA),
    )


def invalidation_metric(sample: Sample) -> InvalidationMetric:
    """Return the view of an ``invalidate`` sample."""
    extra = sample.extra
    rest = {name: value for name, value in extra.items() if name not in _INVALIDATION_FIELDS}
    return InvalidationMetric(
        pattern=str(extra.get("pattern", "")),
        keys_invalidated=extra.get("keys_invalidated"),
        duration=sample.duration_ns / 1e9,
        timestamp=sample.at,
        invalidation_type=extra.get("invalidation_type", ""),
        operation_context=extra.get("operation_context", ""),
        additional_data=_present(status=sample.status, reason=sample.reason) | rest,
    )


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def json_safe(value: Any, depth: int = 0) -> Any:
    """Return *value* as plain JSON data: what JSON has no form for shows as its type, NaN and infinity as None.

    >>> json_safe({"ttl": 60, "tiers": ("small",), "body": b"..."})
    {'ttl': 60, 'tiers': ['small'], 'body': '<bytes>'}
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        return {str(name): json_safe(item, depth + 1) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)) and depth < _MAX_DEPTH:
        return [json_safe(item, depth + 1) for item in value]
    return f"<{type(value).__name__}>"
