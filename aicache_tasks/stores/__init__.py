"""
Stores: where frames and tokens lie.

In: a URL.   Out: a `Store`. redis is imported only when a URL asks for it.
"""

from __future__ import annotations

from aicache_tasks.stores.base import Store

__all__ = ["open_store"]


def open_store(url: str, *, connect_s: float = 0.25) -> Store:
    """Return the store behind *url*; nothing is connected yet.

    Args:
        url: ``redis://``, ``rediss://``, ``unix://``, ``redis+socket://``, or ``memory://`` for this process only.
        connect_s: what a process's first connection may take, seconds.

    Raises:
        SettingsError: the URL cannot be parsed.
    """
    if url.startswith("memory://"):
        from aicache_tasks.stores.memory import MemoryStore

        return MemoryStore()
    from aicache_tasks.stores.redis import RedisStore

    return RedisStore(url, connect_s=connect_s)
