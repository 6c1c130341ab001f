"""
Does the cache's server answer now, and is the cache switched off?

In: an application.   Out: a `Beat`, at most a second old, within `WAIT_S` whatever the server does.

Figures may be some seconds old; whether there is a server may not. A thread reads one key, so that nobody waits longer
than told; a server that was asked and has not answered is one that does not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from aicache_tasks.errors import AICacheError, StoreError
from aicache_tasks.mode import OFF
from aicache_tasks.parts import Parts
from aicache_tasks.stores.base import Budget

WAIT_S: Final = 0.3
"""How long the server has for an answer."""
GOOD_S: Final = 1.0
"""How long an answer is good for whoever else asks."""


class Beat(NamedTuple):
    """What was found."""

    fault: str
    """Why the server does not answer; empty if it does."""
    is_off: bool | None = None
    """Whether ``cache_mode`` has switched the cache off; None if that is not known."""


class Pulse:
    """Feels for the server when somebody asks. Thread-safe.

    Args:
        feel: asks the server whether the cache is off; raises `AICacheError`.
        clock: monotonic, seconds.
    """

    def __init__(self, feel: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._feel, self._clock = feel, clock
        self._lock, self._done = threading.Lock(), threading.Event()
        self._is_feeling = False
        self._began_s = self._felt_s = -GOOD_S
        self._beat = Beat("not asked yet")

    def begin(self) -> None:
        """Have a thread ask, unless one does or the last answer is still good. Does not wait."""
        with self._lock:
            if self._is_feeling or self._clock() - self._felt_s < GOOD_S:
                return
            self._is_feeling, self._began_s = True, self._clock()
            self._done.clear()
        try:
            threading.Thread(target=self._work, name="aicache-pulse", daemon=True).start()
        except RuntimeError as error:  # no more threads, or the interpreter ends
            self._end(Beat(f"cannot be asked: {error}"))

    def get(self, limit_s: float = WAIT_S) -> Beat:
        """Return what the server answered; *limit_s* after it was asked without an answer, that it has not."""
        self.begin()
        if self._done.wait(limit_s):
            return self._beat
        return Beat(f"no answer in {self._clock() - self._began_s:.1f} s")

    def _work(self) -> None:
        beat = Beat("internal error")
        try:
            beat = Beat("", self._feel())
        except StoreError as error:
            beat = Beat(error.detail)
        except AICacheError as error:
            beat = Beat(str(error))
        finally:
            self._end(beat)

    def _end(self, beat: Beat) -> None:
        with self._lock:
            self._beat, self._felt_s, self._is_feeling = beat, self._clock(), False
            self._done.set()


def pulse_of(parts_of: Callable[[], Parts]) -> Pulse:
    """Return a pulse of the server of *parts_of*, asked whatever its breakers say."""

    def feel() -> bool:
        parts = parts_of()
        store: Any = parts.store.store
        found = parts.store.operate(store.read, Budget(WAIT_S), (parts.mode.key(0),), writes=False)
        return bool(found[0] == OFF)

    return Pulse(feel)
