"""
When to speak: levels that do not flap, warnings that do not flood.

In: values, times, thresholds.   Out: at most one log line each. No line holds more than numbers and operation names.
Locks are re-entrant: a signal handler that records may run while its thread is in here.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from typing import Final

from aicache_tasks.monitor.advice import shown
from aicache_tasks.monitor.statistics import MIB, Level, level_of
from aicache_tasks.records import Sample

logger = logging.getLogger("aicache_tasks.monitor")

HOLD: Final = 0.9
"""A level is left when the value falls under this part of its threshold."""

QUIET_S: Final = 60.0
"""Slow operations of one kind are logged once in this time."""

_RATE_EVENTS: Final = 10_000
_HOUR_S: Final = 3600.0
_LOG_LEVELS: Final[Mapping[Level, int]] = {
    "normal": logging.INFO,
    "warning": logging.WARNING,
    "critical": logging.ERROR,
}


def next_level(level: Level, value: float, warning: float, critical: float) -> Level:
    """Return the level after *value*: up at a threshold, down only below 90 % of it.

    >>> next_level("normal", 95, 50, 100), next_level("critical", 95, 50, 100), next_level("critical", 89, 50, 100)
    ('warning', 'critical', 'warning')
    """
    if level == "critical" and value >= HOLD * critical:
        return "critical"
    reached = level_of(value, warning, critical)
    if reached == "normal" and level != "normal" and value >= HOLD * warning:
        return "warning"
    return reached


class MemoryAlert:
    """Logs when the cache's size changes its level. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.level: Level = "normal"

    def update(self, size_bytes: float, warning: float, critical: float) -> None:
        """Take a new size; thresholds in bytes."""
        with self._lock:
            before, self.level = self.level, next_level(self.level, size_bytes, warning, critical)
            level = self.level
        if level != before:
            text = "Cache size is %s, was %s: %.1f MiB (warning from %.1f, critical from %.1f)"
            logger.log(_LOG_LEVELS[level], text, level, before, size_bytes / MIB, warning / MIB, critical / MIB)


class RateAlert:
    """Counts the events of the last hour, up to 10,000, and logs when their number changes its level. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._times: deque[float] = deque(maxlen=_RATE_EVENTS)
        self.level: Level = "normal"

    def add(self, at: float, warning: float, critical: float) -> None:
        """Note an event at *at* (seconds since the epoch)."""
        with self._lock:
            self._times.append(at)
        self.check(at, warning, critical)

    def check(self, now: float, warning: float, critical: float) -> None:
        """Forget what is older than an hour; each event is forgotten once, so this is O(1) on average."""
        with self._lock:
            while self._times and self._times[0] <= now - _HOUR_S:
                self._times.popleft()
            count = len(self._times)
            before, self.level = self.level, next_level(self.level, count, warning, critical)
            level = self.level
        if level != before:
            text = "Invalidation rate is %s, was %s: %d in the last hour (warning from %s, critical from %s)"
            logger.log(_LOG_LEVELS[level], text, level, before, count, warning, critical)


class SlowAlert:
    """Logs one slow operation in a minute and says how many it kept to itself. Thread-safe."""

    def __init__(self, what: str) -> None:
        self._lock = threading.RLock()
        self._what = what
        self._last: float | None = None
        self._held = 0

    def warn(self, sample: Sample, limit_s: float, now: float) -> None:
        """Take an operation that was slower than *limit_s* at *now* (seconds since the epoch)."""
        with self._lock:
            # A wall clock that was set back must not silence the warnings until it has caught up.
            if self._last is not None and 0 <= now - self._last < QUIET_S:
                self._held += 1
                return
            held, self._held, self._last = self._held, 0, now
        text = "Slow %s: %.3f s, limit %.3f s (operation %s, step %s, %d characters; %d more since the last warning)"
        name, step = shown(sample.operation), shown(sample.step)
        logger.warning(text, self._what, sample.duration_ns / 1e9, limit_s, name, step, sample.text_length, held)
