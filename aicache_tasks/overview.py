"""
What the server, L1 and the monitor say, in one dict.

In: the parts of a cache.   Out: ``{"redis": …, "memory": …, "performance": …}``. Never raises for the store.
"""

from __future__ import annotations

from typing import Any

from aicache_tasks.errors import StoreError
from aicache_tasks.invalidation import ADMIN_BUDGET_S
from aicache_tasks.monitor import MemoryUsageMetric
from aicache_tasks.parts import Parts
from aicache_tasks.records import Sample
from aicache_tasks.stores.base import Budget


def overview(parts: Parts) -> dict[str, Any]:
    """Return the statistics of a cache, and take one memory measurement if its server answers."""
    redis, memory = _server(parts), _memory(parts)
    if redis["status"] == "connected":
        measured = parts.monitor.record_memory_usage(
            redis_bytes=redis["memory_used_bytes"],
            redis_entries=redis["keys"],
            memory_cache_bytes=0 if parts.local is None else parts.local.bytes,
            memory_cache_entries=memory["memory_cache_entries"],
            memory_cache_entry_limit=parts.settings.l1_entries,
        )
        parts.samples.ship(memory_sample(measured))
    return {"redis": redis, "memory": memory, "performance": parts.monitor.get_performance_stats()}


def memory_sample(measured: MemoryUsageMetric) -> Sample:
    """Return a measurement that the monitor has as what is shipped of it: its time and its size."""
    return Sample(
        measured.timestamp, "", "memory", "success", "", 0, stored_bytes=round(measured.total_cache_size_bytes)
    )


def _memory(parts: Parts) -> dict[str, Any]:
    entries, limit = 0 if parts.local is None else len(parts.local), parts.settings.l1_entries
    return {
        "memory_cache_entries": entries,
        "memory_cache_size_limit": limit,
        "memory_cache_utilization": f"{entries}/{limit}",
    }


def _server(parts: Parts) -> dict[str, Any]:
    try:
        info = parts.store.info(Budget(ADMIN_BUDGET_S))
    except StoreError as error:
        if error.reason == "redis_error":
            return {"status": "error", "error": error.detail}
        return {"status": "unavailable", "keys": 0}
    return {
        "status": "connected",
        "keys": info.keys,
        "memory_used": f"{info.memory_used_bytes / 2**20:.2f}M",
        "memory_used_bytes": info.memory_used_bytes,
        "connected_clients": info.connected_clients,
    }
