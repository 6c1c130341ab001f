"""
The timings of this process, in bounded arrays.

In: one `Sample` per timed step.   Out: the five arrays, statistics, warnings.   Nothing leaves the process from here.

How a `Sample` shows in the arrays (durations become seconds; empty fields are left out; ``extra`` wins over a field):

``key`` in ``key_generation_times``
    ``operation_type`` is the AI operation, ``additional_data`` is ``text_tier`` and ``extra``: ``has_options``,
    ``has_question``, and ``text_tier`` again where the size class of the key differs from the tier of the cache.
``get``, ``set``, ``delete`` and any step not named here in ``cache_operation_times``
    ``operation_type`` is the step. ``additional_data`` is ``operation_type`` (the AI operation), ``status``,
    ``reason``, ``text_tier``, ``raw_bytes`` as ``response_size``, ``stored_bytes`` as ``cache_data_size``, and
    ``extra``: for a get ``cache_tier`` (``redis``, ``memory``, ``redis_unavailable``) and ``populated_memory_cache``;
    for a set ``compression_used``, ``compression_time`` (seconds), ``ttl`` (seconds) and ``error``.
``compress`` in ``compression_ratios``
    ``raw_bytes`` is ``original_size``, ``stored_bytes`` is ``compressed_size``.
``memory`` in ``memory_usage_measurements``
    ``extra`` holds the fields of `MemoryUsageMetric`; ``record_memory_usage`` makes such a sample.
``invalidate`` in ``invalidation_events``
    ``extra`` holds ``pattern``, ``keys_invalidated`` (None: not known), ``invalidation_type``, ``operation_context``;
    what else it holds is ``additional_data``, with ``status`` and ``reason``.
``decode``, ``compute``
    kept in windows of their own, seen in ``get_step_stats`` only.

A ``get`` with ``key_ns`` also shows in ``key_generation_times``, with what ``extra`` says under `OF_KEY`, which shows
there only; one with ``decode_ns`` among the figures of ``decode``.
"""

from aicache_tasks.monitor.metrics import (
    OF_KEY,
    CompressionMetric,
    InvalidationMetric,
    MemoryUsageMetric,
    PerformanceMetric,
)
from aicache_tasks.monitor.recorder import CachePerformanceMonitor

__all__ = [
    "OF_KEY",
    "CachePerformanceMonitor",
    "CompressionMetric",
    "InvalidationMetric",
    "MemoryUsageMetric",
    "PerformanceMetric",
]
