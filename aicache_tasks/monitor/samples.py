"""
Samples out of plain arguments.

In: durations in seconds, sizes in bytes, a time.   Out: a `Sample`.   Pure, but for `process_memory_mb`.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aicache_tasks.monitor.statistics import MIB
from aicache_tasks.records import HIT_STATUSES, Sample

_FAULT_REASONS = frozenset({"redis_error", "redis_connection_failed", "breaker_open"})


def duration_ns(seconds: float) -> int:
    """Return *seconds* in nanoseconds.

    Raises:
        ValueError: negative or not finite. A monotonic clock gives neither, so the caller used another.
    """
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"a duration must be 0 or more seconds, not {seconds!r}: measure it with time.perf_counter")
    return round(seconds * 1e9)


def key_sample(at: float, duration: float, text_length: int, operation: str, extra: Mapping[str, Any]) -> Sample:
    """Return the sample of one key."""
    return Sample(at, operation, "key", "success", "", duration_ns(duration), text_length, extra=extra)


def operation_sample(
    at: float, step: str, duration: float, cache_hit: bool, text_length: int, extra: Mapping[str, Any]
) -> Sample:
    """Return the sample of one get, set, delete … with status and reason from *extra* where they fit *cache_hit*."""
    status = _get_status(cache_hit, extra) if step == "get" else _set_status(cache_hit, extra)
    operation, reason = str(extra.get("operation_type", "")), str(extra.get("reason", ""))
    # The view takes extra over the fields, so extra may not contradict the status that was counted.
    agreed = {**extra, "status": status}
    return Sample(at, operation, step, status, reason, duration_ns(duration), text_length, extra=agreed)


def _get_status(cache_hit: bool, extra: Mapping[str, Any]) -> str:
    given = extra.get("status")
    if cache_hit:
        return given if given in HIT_STATUSES else "hit"
    if given and given not in HIT_STATUSES:
        return str(given)
    return "error" if extra.get("reason") in _FAULT_REASONS else "miss"


def _set_status(done: bool, extra: Mapping[str, Any]) -> str:
    return str(extra.get("status") or ("success" if done else "failed"))


def compression_sample(at: float, original_size: int, compressed_size: int, duration: float, operation: str) -> Sample:
    """Return the sample of one compression."""
    return Sample(
        at,
        operation,
        "compress",
        "success",
        "",
        duration_ns(duration),
        raw_bytes=original_size,
        stored_bytes=compressed_size,
    )


def memory_sample(
    at: float, memory_cache: tuple[int, int], redis: tuple[int, int], warning_bytes: int, additional: Mapping[str, Any]
) -> Sample:
    """Return the sample of one measurement; *memory_cache* and *redis* are bytes and entries."""
    size, entries = memory_cache[0] + redis[0], memory_cache[1] + redis[1]
    extra = {
        "total_cache_size_bytes": size,
        "cache_entry_count": entries,
        "avg_entry_size_bytes": size / entries if entries else 0.0,
        "memory_cache_size_bytes": memory_cache[0],
        "memory_cache_entry_count": memory_cache[1],
        "process_memory_mb": process_memory_mb(),
        "cache_utilization_percent": 100.0 * size / warning_bytes,
        "warning_threshold_reached": size >= warning_bytes,
        "additional_data": additional,
    }
    return Sample(at, "", "memory", "success", "", 0, extra=extra)


def invalidation_sample(
    at: float, pattern: str, keys: int | None, duration: float, kind: str, context: str, extra: Mapping[str, Any]
) -> Sample:
    """Return the sample of one invalidation."""
    known = {"pattern": pattern, "keys_invalidated": keys, "invalidation_type": kind, "operation_context": context}
    status, reason = str(extra.get("status", "")), str(extra.get("reason", ""))
    return Sample(at, "", "invalidate", status, reason, duration_ns(duration), extra={**extra, **known})


def process_memory_mb() -> float:
    """Return what this process holds in memory, in MiB; without ``/proc`` its peak, 0.0 if neither is known."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB
    except (OSError, ValueError, IndexError):
        return _peak_memory_mb()


def _peak_memory_mb() -> float:
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024
