"""
The worker's own roll-up, for when beat is missing.

In: how long samples have waited.   Out: late records instead of none.

A thread of each worker's main process looks at the inbox from time to time. While beat does its work that is all.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import ClassVar, Final

from aicache_tasks.errors import AICacheError
from aicache_tasks.summaries import Progress, Summaries

log = logging.getLogger("aicache_tasks")

JITTER: Final = 0.2
"""Part of that time by which workers differ."""
LATE_PERIODS: Final = 3
"""How many periods of beat's schedule samples may wait, if that is longer than `Fallback.late_s`."""
STOP_S: Final = 5.0
"""How long a stopping worker waits for the piece that its roll-up is at."""

_RANDOM: Final = random.SystemRandom()
"""Not the module's own generator, which an application may have seeded: this thread would move it on."""


class Stopping(Exception):  # noqa: N818 - names an event
    """The worker stops: the roll-up ends after the piece that it has committed."""


class Fallback:
    """Rolls up while nobody else does. One to a worker's main process.

    Args:
        summaries: whose inbox is looked at.
        roll_up: counts what waits.
        since_asked_s: how long ago a roll-up was last asked for, None for never.
        period_s: how often beat should ask.
    """

    check_s: ClassVar[float] = 60.0
    """How often to look."""
    late_s: ClassVar[float] = 300.0
    """How long samples may wait."""

    def __init__(
        self,
        summaries: Summaries,
        roll_up: Callable[[Progress], object],
        since_asked_s: Callable[[Summaries], float | None],
        period_s: float,
    ) -> None:
        self._summaries, self._roll_up, self._since_asked_s = summaries, roll_up, since_asked_s
        self._patience_s = max(self.late_s, LATE_PERIODS * period_s)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.stands_in = False
        """Whether this worker rolls up because nobody else does."""

    def start(self) -> None:
        """Look from now on, in a thread: the worker's loop waits for nothing here."""
        self._thread = threading.Thread(target=self._watch, name="aicache-fallback", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; a roll-up that is under way ends with the piece that it is at."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _watch(self) -> None:
        while not self._stop.wait(self.check_s * _RANDOM.uniform(1 - JITTER, 1 + JITTER)):
            try:
                self.check()
            except Stopping:
                return
            except AICacheError as error:  # the store is away: its own log line says so
                log.debug("aicache: cannot look at the inbox: %s", error)
            except Exception as error:  # noqa: BLE001 - a bug of ours must not end the thread
                self._summaries.parts.errors.caught(error, "fallback")

    def check(self) -> None:
        """Roll up if samples have waited for too long; log when that begins, and when it is no longer needed.

        Raises:
            Stopping: `stop` was called meanwhile.
            StoreError: the server went away.
        """
        waited_s = self._summaries.backlog().age_s
        if waited_s > self._patience_s:
            self._tell(waited_s)
            self._roll_up(self._stop_if_asked)
        elif self.stands_in and self._is_asked_for():
            self.stands_in = False
            log.info("aicache: roll-ups are asked for again; this worker no longer stands in")

    def _is_asked_for(self) -> bool:
        since_s = self._since_asked_s(self._summaries)
        return since_s is not None and since_s < self._patience_s

    def _tell(self, waited_s: float) -> None:
        if not self.stands_in:
            self.stands_in = True
            log.warning(
                "aicache: beat is not rolling up: timings have waited for %.0f s. Is there a beat, and does a worker "
                "take the roll-up's queue? This worker rolls up meanwhile",
                waited_s,
            )

    def _stop_if_asked(self, done: int, of: int) -> None:
        if self._stop.is_set():
            raise Stopping
