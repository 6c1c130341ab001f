"""
The outbox: who sends which batch when.

In: samples.   Out: batches, acknowledged one after the other.

A signal handler may raise between any two calls in here, or record a sample and look up. So a claim ends by itself,
what moves samples from the buffer to a batch is straight-line code with no call, which CPython does not interrupt, and
who finds that it is its own thread that is choosing or settling a batch leaves that alone.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, cast

from aicache_tasks.batches import MAX_SAMPLES, PROCESS_BYTES, encode_batch
from aicache_tasks.errors import NotStorable, StoreError, StoreRefused, StoreUnavailable
from aicache_tasks.outbox.background import FLUSH_S, WAITING, begin_thread, watch
from aicache_tasks.outbox.batch import Claim, Outcome, Pending, is_done
from aicache_tasks.records import Sample
from aicache_tasks.samplekeys import SampleKeys
from aicache_tasks.settings import Settings
from aicache_tasks.stores.base import REFUSED, Budget, Carrier, Receipt, Shipment
from aicache_tasks.stores.guard import BudgetSpent, Guard

log = logging.getLogger("aicache_tasks.samples")

SHIP_S: Final = 1.0
"""Store time of a batch that nobody waits for."""
FLUSH_AWAY_S: Final = 0.5
"""How long an ending process tries to send what waits if its store is known to be away."""
TELL_S: Final = 0.2
"""How long of that it tries to say that it ends, and what it gives up."""
CLAIM_S: Final = 10.0
"""How much longer than a call's budget its claim on the batch may last, if nobody ends it."""
MAX_DELAY_S: Final = 30.0
"""The longest pause after a refusal."""
DOUBT_S: Final = 86_400.0
"""How long a batch that may have arrived is sent again: the roll-up remembers its number for longer."""

_NEVER: Final = math.inf
_GRACE: Final = 0.25
"""The thread waits so much longer than look-ups do, in parts of `aicache_ship_after_s`."""
_IDLE_S: Final = 60.0
_RETRY_S: Final = 0.05
_FULL: Final = "the inbox is full: is the roll-up running?"


class Outbox:
    """The samples of this process that the inbox has not acknowledged. Thread-safe; a forked child starts empty.

    Args:
        store: takes the batches.
        settings: when a batch is due, how many samples may wait, how much the inbox may hold.
        origin: names this process to who reads the samples.
    """

    def __init__(self, store: Guard, settings: Settings, origin: Callable[[], str]) -> None:
        self._store, self._origin, self._keys = store, origin, SampleKeys(settings.namespace)
        self._every, self._after_s = settings.ship_every, settings.ship_after_s
        self._capacity, self._cap_bytes = settings.buffer_samples, settings.inbox_bytes
        self._claim_s = (settings.budget_ms + settings.connect_ms) / 1000 + CLAIM_S
        self.is_durable = settings.samples == "durable"
        self._start()
        watch(self)

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
        self._due_s, self._not_before_s, self._delay_s = _NEVER, 0.0, 0.0
        self._alarm = MAX_SAMPLES
        self._wake, self._is_asleep, self._has_thread = threading.Event(), False, False
        self._trouble, self._is_losing = "", False
        self._has_ended, self._has_lost, self._spare_s = False, False, FLUSH_AWAY_S
        self.lost = self.refused = self.shipped = 0

    def after_fork(self) -> None:
        """In a forked child: what waits is the parent's, and threads that are not here may have held the lock."""
        self._start()

    @property
    def waiting(self) -> int:
        """How many samples the inbox has not acknowledged."""
        batch = self._batch
        return len(self._samples) + (len(batch.samples) if batch is not None else 0)

    def add(self, sample: Sample) -> None:
        """Take *sample*. O(1), sends nothing, raises nothing."""
        samples = self._samples
        samples.append(sample)
        if self._due_s == _NEVER or len(samples) >= self._alarm:
            self._attend()

    # Who sends.

    def read(self, keys: Sequence[str], budget: Budget) -> list[bytes | None]:
        """Return what `Store.read` does; a batch that is due goes with it."""
        if len(self._samples) < self._every and monotonic() < self._due_s:
            return self._store.read(keys, budget)
        claim = None if self._store.writes.is_open else self._claim()
        if claim is None:
            return self._store.read(keys, budget)
        try:
            values, receipt = self._store.carry(keys, claim.shipment, budget)
        except BaseException as error:
            self._settle(claim, error)
            raise
        self._settle(claim, receipt)
        return values

    def relieve(self, budget: Budget) -> None:
        """Send a batch if many samples wait: for hits from memory, which have no look-up that could carry one."""
        if len(self._samples) >= MAX_SAMPLES and not self._store.writes.is_open and (claim := self._claim()):
            self._send(claim, budget)

    def acknowledge(self, budget: Budget) -> bool:
        """Return once all samples so far are acknowledged, or False: they wait, the store or *budget* is to blame."""
        target = self._added()
        while self._settled() < target:
            if not budget.left_s or self._store.writes.state == "open":
                return False
            if claim := self._claim():
                if not is_done(self._send(claim, budget)):
                    return False
            elif not self._await_turn(budget):
                return False
        return True

    def flush(self, seconds: float = FLUSH_S, *, last: bool = False) -> bool:
        """Send what waits, in *seconds* at most and whatever the breakers say; return whether all was acknowledged.

        Args:
            seconds: for all of it.
            last: the process is ending, which the roll-up is told. Samples that are left are given up, with one
                warning, and counted as lost if the server answers. What is recorded later is sent at once.
        """
        ends_s = monotonic() + (min(seconds, FLUSH_AWAY_S) if self._store.writes.is_open else seconds)
        while self.waiting and (left_s := ends_s - (TELL_S if last else 0.0) - monotonic()) > 0:
            claim = self._claim(last=last, anyway=True)
            outcome = self._send(claim, Budget(min(left_s, SHIP_S)), anyway=True) if claim is not None else None
            if outcome == REFUSED:
                break
            if not is_done(outcome):
                time.sleep(min(_RETRY_S, left_s))
        is_sent = not self.waiting
        if last:
            self._end(ends_s)
        return is_sent

    def _end(self, ends_s: float) -> None:
        """Give up what is left, and say so to the roll-up, or that no other batch follows."""
        is_first, self._has_ended = not self._has_ended, True
        if self.waiting:
            self._abandon()
        left_s = min(ends_s - monotonic(), TELL_S)
        is_news = self._untold or (is_first and self._number > self._last)
        if is_news and left_s > 0 and not self._store.reads.is_open and (claim := self._claim(last=True, anyway=True)):
            budget = Budget(left_s)
            outcome = self._send(claim, budget, anyway=True)
            if outcome == REFUSED or isinstance(outcome, StoreRefused):
                self._tell_lost(budget)

    def _tell_lost(self, budget: Budget) -> None:
        """Have the server count what is lost where the inbox takes no batch that would say it."""
        with self._lock:
            if self._batch is not None:
                self._give_up(self._batch)
            lost, self._untold = self._untold, 0
        if lost:
            with contextlib.suppress(StoreError):
                self._store.give_up(self._keys.state, lost, budget)

    def _send_late(self) -> None:
        """Send what is recorded after the last flush, such as by a function that `atexit` calls later."""
        began_s = monotonic()
        self.flush(self._spare_s, last=True)
        self._spare_s = max(self._spare_s - (monotonic() - began_s), 0.0)

    def tick(self) -> float:
        """Send what nothing carried in time; return for how many seconds there is nothing to do. The thread's part."""
        self._is_asleep = True
        if not self.waiting:
            return _IDLE_S
        self._is_asleep = False
        while self._is_overdue() and (claim := self._claim()):
            if not is_done(self._send(claim, Budget(SHIP_S))):
                break
        at_s = max(self._due_s + self._after_s * _GRACE, self._not_before_s)
        return max(min(at_s - monotonic(), self._after_s), self._after_s * _GRACE, _RETRY_S)

    def _is_overdue(self) -> bool:
        if self._store.writes.state == "open":
            return False
        return len(self._samples) >= MAX_SAMPLES or monotonic() >= self._due_s + self._after_s * _GRACE

    def _send(self, claim: Claim, budget: Budget, *, anyway: bool = False) -> Receipt:
        """Send a batch alone and return what became of it."""
        receipt: Receipt
        try:
            if anyway:
                receipt = self._store.operate(cast("Carrier", self._store.store).ship, budget, claim.shipment)
            else:
                receipt = self._store.ship(claim.shipment, budget)
        except StoreError as error:
            receipt = error
        except BaseException as error:
            self._settle(claim, error)
            raise
        self._settle(claim, receipt)
        return receipt

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
        self._due_s = after_s if samples else _NEVER
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
            self._due_s = after_s if self._samples else _NEVER
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

    # What does not fit.

    def _attend(self) -> None:
        """See to the first sample that waits, to 256 that nothing carried, and to those for which there is no room."""
        now_s = monotonic()
        with self._lock:
            waiting = len(self._samples)
            if self._due_s == _NEVER:
                self._due_s = now_s + self._after_s
                WAITING.add(self)
            if waiting >= self._alarm:
                self._alarm = waiting + MAX_SAMPLES
            is_over = waiting > self._capacity and not self._is_busy
            if is_over:
                self._drop(waiting - self._capacity + self._capacity // 64)
                self._alarm = self._capacity + 1
            self._alarm = min(self._alarm, self._capacity + 1)
        if is_over and not self._is_losing:
            self._is_losing = True
            log.warning("aicache.samples: over %d timings wait; the oldest are dropped and counted", self._capacity)
        if self._is_asleep or waiting >= MAX_SAMPLES:
            self._wake.set()
        if self._has_ended:
            self._send_late()
        elif not self._has_thread:
            self._has_thread = begin_thread(self, self._wake)

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
            self._due_s = _NEVER
            WAITING.discard(self)


@functools.cache
def producer_name() -> str:
    """Return what a process that is no worker's is called in the records."""
    return f"producer@{socket.gethostname()}"
