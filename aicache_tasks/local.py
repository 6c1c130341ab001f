"""
L1: entries that this process keeps in memory.

In: a key and a `LocalEntry`.   Out: the same entry, until its end or until it has to make room.

It keeps bodies as inflated MessagePack, not values: each hit decodes its own object, so that a caller who changes a
result changes no other hit.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from aicache_tasks.frame import Opened

OVERHEAD_BYTES: Final = 900
"""What CPython takes to keep an entry beside its key, body, tags and metadata."""

TAG_OVERHEAD_BYTES: Final = 160
"""What CPython takes to keep a tag."""


class LocalEntry(NamedTuple):
    """An entry in memory. ``opened`` has no body; ``verified_s`` (monotonic) is when its tokens were last compared."""

    raw: bytes
    opened: Opened
    verified_s: float


class _Slot(NamedTuple):
    entry: LocalEntry
    end_s: float
    end_ms: int
    cost_bytes: int


def wall_clock_ms() -> int:
    """Return ms since the epoch."""
    return time.time_ns() // 1_000_000


class LocalCache:
    """Entries by key, bounded in number and in bytes; the least recently used goes first. Thread-safe.

    Args:
        max_entries: 0 keeps nothing.
        max_bytes: keys, bodies and overhead together.
        clock: a monotonic clock in seconds.
        now_ms: the wall clock in ms, which the frames' ends are told by.
    """

    def __init__(
        self,
        max_entries: int,
        max_bytes: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self.evictions = 0
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._clock, self._now_ms = clock, now_ms
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._bytes = 0
        # Re-entrant: a signal handler that looks up while its thread is in here must not wait for itself. It comes
        # between two calls, so that what keeps entries and their bytes in step has none.
        self._lock = threading.RLock()

    def get(self, key: str) -> LocalEntry | None:
        """Return the entry of *key*, None if there is none or its end has passed.

        The end is told by the wall clock and by the monotonic clock, whichever comes first, so that setting the wall
        clock back prolongs no entry.
        """
        with self._lock:
            slot = self._slots.get(key)
            if slot is None:
                return None
            if self._clock() < slot.end_s and self._now_ms() < slot.end_ms:
                if key in self._slots:
                    self._slots.move_to_end(key)
                return slot.entry
            self._remove(key)
            return None

    def put(self, key: str, entry: LocalEntry) -> None:
        """Keep *entry* in place of what *key* had; not if it is past its end or larger than the whole cache."""
        left_s = (entry.opened.expires_ms - self._now_ms()) / 1000
        slot = _Slot(entry, self._clock() + left_s, entry.opened.expires_ms, _cost_bytes(key, entry))
        with self._lock:
            self._remove(key)
            if left_s <= 0 or slot.cost_bytes > self._max_bytes or self._max_entries <= 0:
                return
            if key not in self._slots:
                self._slots[key] = slot
                self._bytes += slot.cost_bytes
            self._make_room()

    def drop(self, key: str) -> bool:
        """Forget *key*; return whether it was kept."""
        with self._lock:
            return self._remove(key)

    def clear(self) -> int:
        """Forget everything; return how many entries that were."""
        empty: OrderedDict[str, _Slot] = OrderedDict()
        with self._lock:
            dropped = len(self._slots)
            self._slots, self._bytes = empty, 0
            return dropped

    def after_fork(self) -> None:
        """In a forked child: forget everything, under a new lock.

        Another thread of the parent may have held the lock at the fork, in the middle of a change.
        """
        self._lock = threading.RLock()
        self._slots, self._bytes, self.evictions = OrderedDict(), 0, 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def bytes(self) -> int:
        """Bytes kept, overhead included."""
        return self._bytes

    @property
    def utilization(self) -> str:
        """Entries kept and their limit, such as ``3/100``."""
        return f"{len(self._slots)}/{self._max_entries}"

    def _remove(self, key: str) -> bool:
        slots = self._slots
        if key not in slots:
            return False
        self._bytes -= slots[key].cost_bytes
        del slots[key]
        return True

    def _make_room(self) -> None:
        while len(self._slots) > self._max_entries or self._bytes > self._max_bytes:
            for oldest in self._slots:
                self.evictions += self._remove(oldest)
                break


def _cost_bytes(key: str, entry: LocalEntry) -> int:
    tags = len(entry.opened.tokens.tags)
    return len(key) + len(entry.raw) + len(entry.opened.meta_bytes) + OVERHEAD_BYTES + tags * TAG_OVERHEAD_BYTES
