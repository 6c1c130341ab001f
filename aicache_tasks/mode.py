"""
The switch that operators throw: the cache of all processes on or off, without a deploy.

In: what lies under the switch's key.   Out: whether the cache is off, as this process last read it.

A look-up reads the key along with the entry's, once a second; so there is one in each bucket. While the cache is off a
process asks for it alone, when a call comes, once a second too. A server that does not answer changes nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final

from aicache_tasks.errors import StoreError
from aicache_tasks.keys import BUCKETS, CacheKeyGenerator
from aicache_tasks.stores.base import Budget
from aicache_tasks.stores.guard import Guard

log = logging.getLogger("aicache_tasks")

EVERY_S: Final = 1.0
"""How often a process reads the switch at most."""
OFF: Final = b"off"
ON: Final = b"on"
_ON_FOR_MS: Final = 60_000
"""No key is the same as on: where it was switched on the keys go after a while."""


class Mode:
    """The switch of one cache. Thread-safe: two threads may read it at once, and see the same.

    Args:
        keys: makes the switch's keys.
        store: where it lies.
        mono_s: monotonic clock, seconds.
    """

    def __init__(self, keys: CacheKeyGenerator, store: Guard, mono_s: Callable[[], float]) -> None:
        self._keys, self._store, self._mono_s = keys, store, mono_s
        self.is_off = False
        """Whether the cache was off when this process last looked."""
        self.due_s = -math.inf
        """From when on (monotonic) a look-up reads the switch along; at once while the cache is off."""
        self._again_s = -math.inf

    def key(self, bucket: int) -> str:
        """Return the key of the switch in *bucket*."""
        return self._keys.mode_key(bucket)

    def note(self, value: bytes | None, asked_s: float) -> None:
        """Take note of what lay under the key at *asked_s* (monotonic)."""
        was_off, self.is_off = self.is_off, value == OFF
        self._again_s = asked_s + EVERY_S
        self.due_s = -math.inf if self.is_off else self._again_s
        if self.is_off and not was_off:
            log.warning("aicache: the cache was switched off by cache_mode; every call runs its body")
        elif was_off and not self.is_off:
            log.info("aicache: the cache was switched on again")

    def is_still_off(self, budget: Budget) -> bool:
        """Return whether the cache is off, read anew if that was more than a second ago. Raises nothing."""
        asked_s = self._mono_s()
        if self.is_off and asked_s >= self._again_s:
            self._again_s = asked_s + EVERY_S  # other threads, and a server that does not answer, wait for the next
            try:
                self.note(self.read(budget), asked_s)
            except StoreError as error:
                log.debug("aicache: cannot read the switch: %s", error.detail)
        return self.is_off

    def read(self, budget: Budget) -> bytes | None:
        """Return what lies under the key now.

        Raises:
            StoreError: the server does not answer.
        """
        return self._store.read((self.key(0),), budget)[0]

    def seems_off(self, budget: Budget) -> bool:
        """Return whether the switch is off now, for who shows it; False if that cannot be read."""
        try:
            return self.read(budget) == OFF
        except StoreError as error:
            log.debug("aicache: cannot read the switch: %s", error.detail)
            return False

    def switch(self, *, off: bool, budget: Budget) -> None:
        """Ask all processes for it; each does it at its next call, at most a second later.

        Raises:
            StoreError: it could not be written, or not all of it: to be tried again.
        """
        value, ttl_ms = (OFF, 0) if off else (ON, _ON_FOR_MS)
        self._store.replace([(self.key(bucket), value, ttl_ms) for bucket in range(BUCKETS)], budget)
