"""
Stores: where frames and tokens lie.

In: a URL.   Out: a `Store`. redis is imported only when a URL asks for it.
"""

from __future__ import annotations

import logging
from typing import Final

from aicache_tasks.errors import StoreUnavailable
from aicache_tasks.stores.base import Store

__all__ = ["open_store"]

LOGGER: Final = logging.getLogger("aicache_tasks.store")


def open_store(url: str, *, connect_s: float = 0.25) -> Store:
    """Return the store behind *url*; nothing is connected yet. Without redis-py it is one that is always away.

    Args:
        url: ``redis://``, ``rediss://``, ``unix://``, ``redis+socket://``, or ``memory://`` for this process only.
        connect_s: what a process's first connection may take, seconds.

    Raises:
        SettingsError: the URL cannot be parsed.
    """
    if url.startswith("memory://"):
        from aicache_tasks.stores.memory import MemoryStore

        return MemoryStore()
    try:
        from aicache_tasks.stores.redis import RedisStore
    except ModuleNotFoundError as missing:
        return _without(missing)
    return RedisStore(url, connect_s=connect_s)


def _without(missing: ModuleNotFoundError) -> Store:
    """Return a store that is always away, if it is redis-py that is *missing*: tasks run as if the server were down."""
    from aicache_tasks.stores.memory import MemoryStore

    if (missing.name or "").partition(".")[0] != "redis":
        raise missing
    LOGGER.warning("cache store: redis-py is not installed, so that nothing is cached")
    away = MemoryStore()
    away.fail = StoreUnavailable("ModuleNotFoundError redis")
    return away
