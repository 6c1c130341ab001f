"""
The store's twin in this process's memory, for tests and for `memory://`.

In: what `Store` takes.   Out: what `Store` promises. The clock is wound by hand: add to ``now_s``.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from aicache_tasks.errors import StoreError
from aicache_tasks.stores.base import MAGIC, TOKEN_BYTES, Budget, StoreInfo, Tombstoned

HEAD_BYTES = 4096
FENCED_BYTES = 4 + TOKEN_BYTES
_FOR_EVER = float("inf")


class MemoryStore:
    """A `Store` of one process; thread-safe.

    Args:
        clock: seconds; ``now_s`` is added to it, so that a test moves time by ``store.now_s += 60``.
            A clock that stands still is ``lambda: 0.0``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.now_s = 0.0
        self.fail: StoreError | None = None
        self._held: dict[str, tuple[bytes, float]] = {}
        self._locks: dict[int, threading.RLock] = {}

    def read(self, keys: Sequence[str], budget: Budget) -> list[bytes | None]:
        """See `Store.read`."""
        with self._at_work():
            return [self._get(key) for key in keys]

    def ensure(
        self, keys: Sequence[str], values: Sequence[bytes], ttl_ms: Sequence[int], budget: Budget
    ) -> list[bytes]:
        """See `Store.ensure`."""
        with self._at_work():
            return [self._ensure(key, value, ttl) for key, value, ttl in zip(keys, values, ttl_ms, strict=True)]

    def publish(
        self, key: str, frame: bytes, ttl_ms: int, seen: bytes, tag_keys: Sequence[str], budget: Budget
    ) -> bool:
        """See `Store.publish`."""
        with self._at_work():
            if _fence_of(self._get(key)) not in (None, seen):
                return False
            self._set(key, frame, ttl_ms)
            for tag_key in tag_keys:
                self._raise_ttl(tag_key, ttl_ms)
            return True

    def bury(self, key: str, tombstone: bytes, ttl_ms: int, token_keys: Sequence[str], budget: Budget) -> Tombstoned:
        """See `Store.bury`."""
        with self._at_work():
            held = self._get(key)
            ends_s = self._held[key][1] if held is not None else 0.0
            self._held[key] = (tombstone, max(ends_s, self._now_s() + ttl_ms / 1000))
            return Tombstoned(None if held is None else held[:HEAD_BYTES], [self._get(k) for k in token_keys])

    def discard(self, key: str, value: bytes, budget: Budget) -> bool:
        """See `Store.discard`."""
        with self._at_work():
            return self._get(key) == value and self._held.pop(key, None) is not None

    def replace(self, values: Sequence[tuple[str, bytes, int]], budget: Budget) -> None:
        """See `Store.replace`."""
        with self._at_work():
            for key, value, ttl_ms in values:
                self._set(key, value, ttl_ms)

    def scan(self, prefix: str, cursor: int, count: int, budget: Budget) -> tuple[int, list[str]]:
        """See `Store.scan`. All keys at once: a place among keys would move when some of them go."""
        with self._at_work():
            return 0, [key for key in list(self._held) if key.startswith(prefix) and self._get(key) is not None]

    def unlink(self, keys: Sequence[str], budget: Budget) -> int:
        """See `Store.unlink`."""
        with self._at_work():
            return sum(self._get(key) is not None and self._held.pop(key, None) is not None for key in keys)

    def info(self, budget: Budget) -> StoreInfo:
        """See `Store.info`."""
        with self._at_work():
            used_bytes = sum(len(key) + len(value) for key, (value, _) in self._held.items())
            return StoreInfo("memory", len(self._held), used_bytes, connected_clients=1, eviction_policy="")

    def close(self) -> None:
        """See `Store.close`: there is nothing to drop."""

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        if self.fail is not None:
            raise self.fail
        # One that was held at a fork stays held. Re-entrant for signal handlers, as in `Breaker`.
        with self._locks.setdefault(os.getpid(), threading.RLock()):
            yield

    def _now_s(self) -> float:
        return self._clock() + self.now_s

    def _get(self, key: str) -> bytes | None:
        value, ends_s = self._held.get(key, (None, _FOR_EVER))
        if ends_s <= self._now_s():
            del self._held[key]
            return None
        return value

    def _set(self, key: str, value: bytes, ttl_ms: int) -> None:
        self._held[key] = (value, self._now_s() + ttl_ms / 1000 if ttl_ms else _FOR_EVER)

    def _ensure(self, key: str, value: bytes, ttl_ms: int) -> bytes:
        held = self._get(key)
        if held is None:
            self._set(key, held := value, ttl_ms)
        return held

    def _raise_ttl(self, key: str, ttl_ms: int) -> None:
        held = self._get(key)
        if held is not None:
            self._held[key] = (held, max(self._held[key][1], self._now_s() + ttl_ms / 1000))


def _fence_of(frame: bytes | None) -> bytes | None:
    if frame is None or len(frame) < FENCED_BYTES or frame[:2] != MAGIC:
        return None
    return frame[4:FENCED_BYTES]
