"""
The samples that wait, and the one batch that is on its way.

In: samples, claims on the next batch, and what became of it.   Out: batches with rising numbers; what was lost.

A signal handler may raise between any two calls in here, or record a sample and look up. So a claim ends by itself,
what moves samples from the buffer to a batch is straight-line code with no call, which CPython does not interrupt, and
who finds that it is its own thread that is choosing or settling a batch leaves that alone.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from time import monotonic
from typing import Final

from aicache_tasks.batches import MAX_SAMPLES, PROCESS_BYTES, encode_batch
from aicache_tasks.errors import NotStorable, StoreError, StoreUnavailable
from aicache_tasks.outbox.background import WAITING
from aicache_tasks.outbox.batch import Claim, Outcome, Pending, is_done
from aicache_tasks.records import Sample
from aicache_tasks.samplekeys import SampleKeys
from aicache_tasks.settings import Settings
from aicache_tasks.stores.base import Budget, Shipment
from aicache_tasks.stores.guard import BudgetSpent

log = logging.getLogger("aicache_tasks.samples")

CLAIM_S: Final = 10.0
"""How much longer than a call's budget its claim on the batch may last, if nobody ends it."""
MAX_DELAY_S: Final = 30.0
"""The longest pause after a refusal."""
DOUBT_S: Final = 86_400.0
"""How long a batch that may have arrived is sent again: the roll-up remembers its number for longer."""
NEVER: Final = math.inf
_FULL: Final = "the inbox is full: is the roll-up running?"


class SampleQueue:
    """The samples of this process that the inbox has not acknowledged. Thread-safe.

    Args:
        settings: how long samples wait, how many may, and how much the inbox may hold.
        origin: names this process to who reads the samples.
    """

    def __init__(self, settings: Settings, origin: Callable[[], str]) -> None:
        self._origin, self._keys = origin, SampleKeys(settings.namespace)
        self._after_s, self._cap_bytes = settings.ship_after_s, settings.inbox_bytes
        self._claim_s = (settings.budget_ms + settings.connect_ms) / 1000 + CLAIM_S
        self._start()

    def _start(self) -> None:
        WAITING.discard(self)
        self._process = os.urandom(PROCESS_BYTES)
        # Re-entrant: a signal handler or finalizer that records while its thread is in here must not wait for itself.
        # It may see what is half done; so it keeps off while `_is_busy`, which nobody else sees set.
        self._lock, self._is_busy = threading.RLock(), False
        self._freed = threading.Condition(self._lock)
        self._samples: list[Sample] = []
        self._batch: Pending | None = None
        self._claimed: Claim | None = None
        self._number = self._last = self._gone = self._untold = 0
        self._due_s, self._not_before_s, self._delay_s = NEVER, 0.0, 0.0
        self._alarm = MAX_SAMPLES
        self._trouble, self._is_losing = "", False
        self._has_lost = False
        self.lost = self.refused = self.shipped = 0

    @property
    def waiting(self) -> int:
        """How many samples the inbox has not acknowledged."""
        count = len(self._samples)  # first: a thread may move them into the batch meanwhile
        batch = self._batch
        return count + (len(batch.samples) if batch is not None else 0)

    # One batch at a time.

    def _claim(self, *, last: bool = False, anyway: bool = False) -> Claim | None:
        """Return the right to send the batch that is next, None if there is none, another has it, or it must wait.

        If it is the *last* and nothing waits, it is an empty one.
        """
        now_s = monotonic()
        with self._lock:
            if self._is_busy or (self._claimed is not None and now_s < self._claimed.until_s):
                return None
            if now_s < self._not_before_s and not anyway:
                return None
            self._is_busy = True
            try:
                batch = self._current(now_s, last=last)
                if batch is None or not self._encoded(batch, last=last):
                    return None
                assert batch.data is not None
                shipment = Shipment(self._keys.inbox, self._keys.state, batch.data, self._cap_bytes)
                claim = self._claimed = Claim(batch, shipment, now_s + self._claim_s)
            finally:
                self._is_busy = False
        return claim

    def _current(self, now_s: float, *, last: bool) -> Pending | None:
        """Return the batch that was begun, or begin one."""
        batch = self._batch
        if batch is not None and batch.doubtful_s is not None and now_s - batch.doubtful_s > DOUBT_S:
            self._give_up(batch)  # the roll-up may soon have forgotten its number
            batch = None
        if batch is not None or not (self._samples or last):
            return batch
        samples, size = self._samples, min(len(self._samples), MAX_SAMPLES)
        batch, after_s = Pending(self._number + 1, self._untold), now_s + self._after_s
        # No call from here: an exception out of a signal handler, or another thread, comes before or after all of it.
        batch.samples = samples[:size]
        self._batch, self._number, self._untold, self._gone = batch, batch.number, 0, self._gone + size
        del samples[:size]
        self._due_s = after_s if samples else NEVER
        self._alarm = max(len(samples), MAX_SAMPLES)
        return batch

    def _encoded(self, batch: Pending, *, last: bool) -> bool:
        """Make the bytes of *batch* if it has none yet; return whether there are any."""
        while batch.data is None:
            what = self._process, batch.number, self._origin(), batch.samples
            batch.is_last = last and not self._samples
            try:
                batch.data = encode_batch(*what, last=batch.is_last, lost=batch.lost)
            except NotStorable as refusal:
                if len(batch.samples) == 1:
                    return self._cannot_be_sent(batch, refusal)
                self._halve(batch)
            except (TypeError, ValueError) as error:
                return self._cannot_be_sent(batch, error)
        return True

    def _halve(self, batch: Pending) -> None:
        """Put half of the samples of *batch* back: their names or metadata are too long for one batch."""
        now_s, size = monotonic(), len(batch.samples) // 2
        rest, gone = batch.samples[size:], self._gone - len(batch.samples) + size
        # No call from here, as in `_current`.
        self._samples[:0] = rest
        self._gone, self._due_s = gone, now_s
        del batch.samples[size:]

    def _cannot_be_sent(self, batch: Pending, error: Exception) -> bool:
        log.error("aicache.samples: %s in a batch; it is dropped", type(error).__name__)
        self._give_up(batch)
        return False

    def _settle(self, claim: Claim, outcome: Outcome) -> None:
        """Take what became of a batch, and let the next one have its turn."""
        trouble = self._trouble
        with self._lock:
            self._is_busy = True
            try:
                if self._claimed is claim:
                    self._claimed = None
                    self._freed.notify_all()
                if claim.batch is self._batch:  # else whoever took over has settled it
                    trouble = self._judge(claim.batch, outcome)
            finally:
                self._is_busy = False
        self._tell(trouble)

    def _judge(self, batch: Pending, outcome: Outcome) -> str:
        """Note what became of *batch*; return what is wrong, "" if nothing is."""
        now_s = monotonic()
        if is_done(outcome):
            self.shipped += len(batch.samples)
            after_s = now_s + self._after_s
            self._last = batch.number if batch.is_last else self._last
            self._batch = None
            self._due_s = after_s if self._samples else NEVER
            self._rest()
            self._delay_s = self._not_before_s = 0.0
            self._is_losing = False
            return ""
        self._due_s = now_s
        if isinstance(outcome, int):
            self.refused += 1
            self._pause(now_s)
            return _FULL
        if not isinstance(outcome, StoreError):
            batch.doubtful_s = batch.doubtful_s or now_s
            return self._trouble
        if isinstance(outcome, BudgetSpent):
            return self._trouble
        if isinstance(outcome, StoreUnavailable):
            batch.doubtful_s = batch.doubtful_s or now_s
        elif outcome.reason != "breaker_open":
            self._pause(now_s)
        return outcome.detail

    def _pause(self, now_s: float) -> None:
        """Leave a store that refuses alone, for twice as long as the last time."""
        self._delay_s = min(max(self._delay_s * 2, self._after_s), MAX_DELAY_S)
        self._not_before_s = now_s + self._delay_s

    def _tell(self, trouble: str) -> None:
        """Log a change between sending and not sending, once."""
        before, self._trouble = self._trouble, trouble
        if trouble and not before:
            log.warning("aicache.samples: timings wait in this process: %s", trouble)
        elif before and not trouble:
            log.info("aicache.samples: timings are sent again")

    # Counting.

    def _added(self) -> int:
        with self._lock:
            return self._gone + len(self._samples)

    def _settled(self) -> int:
        with self._lock:
            return self._gone - (len(self._batch.samples) if self._batch is not None else 0)

    def _await_turn(self, budget: Budget) -> bool:
        """Wait until whoever is sending has finished; return False if it is not a sender that is waited for."""
        with self._freed:
            if self._is_busy:
                return False
            if self._claimed is None:
                return monotonic() >= self._not_before_s
            budget.begin()
            try:
                self._freed.wait(budget.deadline - time.perf_counter())
            finally:
                budget.finish()
        return True

    # What is lost.

    def _drop(self, count: int) -> None:
        """Drop the oldest samples."""
        lost, gone, untold = self.lost + count, self._gone + count, self._untold + count
        self.lost, self._gone, self._untold = lost, gone, untold
        del self._samples[:count]

    def _give_up(self, batch: Pending) -> None:
        """Count the samples of *batch* as lost: it may not be sent again, or cannot be."""
        count = len(batch.samples)
        lost, untold = self.lost + count, self._untold + count + (batch.lost if batch.doubtful_s is None else 0)
        self.lost, self._untold, self._batch = lost, untold, None
        self._rest()

    def _abandon(self) -> None:
        with self._lock:
            if self._is_busy:
                return
            self._is_busy = True
            try:
                count, batch = self.waiting, self._batch
                if batch is not None:
                    self._give_up(batch)
                self._drop(len(self._samples))
                self._rest()
            finally:
                self._is_busy = False
        if not self._has_lost:
            self._has_lost, why = True, self._trouble or "no time left"
            log.warning("aicache.samples: %d timings of this process are lost as it ends: %s", count, why)

    def _rest(self) -> None:
        """If nothing waits, let the next sample say that something does, and this go with its cache."""
        if not self._samples and self._batch is None:
            self._due_s = NEVER
            WAITING.discard(self)
