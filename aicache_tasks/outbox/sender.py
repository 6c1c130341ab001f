"""
The outbox: who sends which batch when.

In: samples.   Out: batches, acknowledged one after the other.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import socket
import time
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, cast

from aicache_tasks.batches import MAX_SAMPLES
from aicache_tasks.errors import StoreError, StoreRefused
from aicache_tasks.outbox.background import FLUSH_S, WAITING, begin_thread, watch
from aicache_tasks.outbox.batch import Claim, is_done
from aicache_tasks.outbox.queue import NEVER, SampleQueue
from aicache_tasks.records import Sample
from aicache_tasks.settings import Settings
from aicache_tasks.stores.base import REFUSED, Budget, Carrier, Receipt
from aicache_tasks.stores.guard import Guard

log = logging.getLogger("aicache_tasks.samples")

SHIP_S: Final = 1.0
"""Store time of a batch that nobody waits for."""
FLUSH_AWAY_S: Final = 0.5
"""How long an ending process tries to send what waits if its store is known to be away."""
TELL_S: Final = 0.2
"""How long of that it tries to say that it ends, and what it gives up."""

_GRACE: Final = 0.25
"""The thread waits so much longer than look-ups do, in parts of `aicache_ship_after_s`."""
_IDLE_S: Final = 60.0
_RETRY_S: Final = 0.05


class Outbox(SampleQueue):
    """A queue of samples, and who sends them. Thread-safe; a forked child starts empty.

    Args:
        store: takes the batches.
        settings: when a batch is due, how many samples may wait, how much the inbox may hold.
        origin: names this process to who reads the samples.
    """

    def __init__(self, store: Guard, settings: Settings, origin: Callable[[], str]) -> None:
        super().__init__(settings, origin)
        self._store = store
        self._every, self._capacity = settings.ship_every, settings.buffer_samples
        self.is_durable = settings.samples == "durable"
        watch(self)

    def _start(self) -> None:
        super()._start()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # not of [None]: gevent 25.4.1's takes none
        self._is_asleep, self._has_thread = False, False
        self._has_ended, self._spare_s = False, FLUSH_AWAY_S

    def after_fork(self) -> None:
        """In a forked child: what waits is the parent's, and threads that are not here may have held the lock."""
        self._start()

    def add(self, sample: Sample) -> None:
        """Take *sample*. O(1), sends nothing, raises nothing."""
        samples = self._samples
        samples.append(sample)
        if self._due_s == NEVER or len(samples) >= self._alarm:
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

    def _attend(self) -> None:
        """See to the first sample that waits, to 256 that nothing carried, and to those for which there is no room."""
        now_s = monotonic()
        with self._lock:
            waiting = len(self._samples)
            if self._due_s == NEVER:
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
            self._wake.put(None)
        if self._has_ended:
            self._send_late()
        elif not self._has_thread:
            self._wake = queue.SimpleQueue()  # anew: gevent may have replaced it, and threads, since the last
            self._has_thread = begin_thread(self, self._wake)


@functools.cache
def producer_name() -> str:
    """Return what a process that is no worker's is called in the records."""
    return f"producer@{socket.gethostname()}"
