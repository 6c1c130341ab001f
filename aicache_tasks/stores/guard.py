"""
The guard in front of a store: tasks ask it only while it answers.

In: any `Store`.   Out: the same calls; for tasks `BreakerOpen` at once while the store is known to be away.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

from aicache_tasks.errors import BreakerOpen, StoreError, StoreScope, StoreUnavailable
from aicache_tasks.signals import SOFT_LIMITS, SoftLimitHold
from aicache_tasks.stores.base import REFUSED, Budget, Carrier, Receipt, Shipment, Store, StoreInfo, Tombstoned

LOGGER: Final = logging.getLogger("aicache_tasks.store")
JITTER: Final = 0.2
PROBE_S: Final = 1.0
"""How long a probe may take before another caller may probe."""
HOLD_MARGIN_S: Final = 1.0
"""How much longer than its budget a call may hold a soft limit: a first connection has a budget of its own."""

_RANDOM: Final = random.SystemRandom()
"""Not the module's own generator, which an application may have seeded: threads of ours would move it on."""

T = TypeVar("T")


class BudgetSpent(StoreUnavailable):
    """The task call has no store time left. Not a fault of the store: no breaker opens."""

    scope: StoreScope = "none"

    def __init__(self) -> None:
        super().__init__("budget spent")


class Breaker:
    """Closed, open or half-open; thread-safe.

    The first fault opens it for *min_s*, each failed probe doubles that up to *max_s*, 20 % jitter. A success closes.

    Args:
        name: ``reads`` or ``writes``, for the log.
        min_s: how long it is open after the first fault, seconds.
        max_s: the longest time between two probes, seconds.
        clock: a monotonic clock, seconds.
        rng: returns a number from 0 to 1, for the jitter.
    """

    def __init__(
        self,
        name: str,
        min_s: float = 1.0,
        max_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        rng: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self.name = name
        self.opened = self.closed = self.rejected = 0
        self.is_open = False
        self._min_s, self._max_s, self._clock, self._rng = min_s, max_s, clock, rng
        self._delay_s = self._until_s = 0.0
        self._prober: tuple[int, int] | None = None
        self._locks: dict[int, threading.RLock] = {}

    @property
    def state(self) -> str:
        """``closed``, ``open``, or ``half-open`` once the next call may probe."""
        if not self.is_open:
            return "closed"
        return "open" if self._clock() < self._until_s else "half-open"

    def allows(self) -> bool:
        """Return whether to call the store; while half-open, one caller of the process may at a time."""
        if not self.is_open or self._claim_probe():
            return True
        self.rejected += 1
        return False

    def succeeded(self) -> bool:
        """A call got its reply: close. Return whether it was open."""
        if not self.is_open:
            return False
        with self._lock():
            was_open, self.is_open = self.is_open, False
            self._delay_s, self._prober = 0.0, None
            self.closed += was_open
        if was_open:
            LOGGER.info("cache store: %s resumed", self.name)
        return was_open

    def failed(self, detail: str, *, also_open: bool = False) -> bool:
        """A call met a fault: open, or stay open for twice as long. Return whether that changed anything.

        Args:
            detail: of a `StoreError`, for the log.
            also_open: count it while open too; otherwise only the probe's fault counts then, because calls that began
                before the breaker opened say nothing new.
        """
        with self._lock():
            me, now_s, spread = _me(), self._clock(), 1 + JITTER * (2 * self._rng() - 1)
            # No call from here: a signal handler that asks the store changes this before or after all of it.
            was_open = self.is_open
            if was_open and not also_open and self._prober != me:
                return False
            delay_s = self._delay_s * 2 or self._min_s
            self._delay_s = delay_s if delay_s < self._max_s else self._max_s  # noqa: FURB136 - would be a call
            self._until_s = now_s + self._delay_s * spread
            self.is_open, self._prober = True, None
            self.opened += not was_open
        if not was_open:
            LOGGER.warning("cache store: %s stopped: %s", self.name, detail)
        return True

    def probe_soon(self) -> None:
        """Let the next caller probe: a probe was interrupted, or the store answers again for another reason."""
        self._until_s = self._clock()

    def offer_probe(self) -> None:
        """Let a call that is made in any case be the probe, if one is due."""
        if self.is_open:
            self._claim_probe()

    def was_probed_here(self) -> bool:
        """Return whether this thread holds the probe."""
        return self.is_open and self._prober == _me()

    def _claim_probe(self) -> bool:
        if self._clock() < self._until_s:
            return False
        with self._lock():
            me, now_s = _me(), self._clock()
            # No call from here, as in `failed`.
            if now_s < self._until_s:
                return False
            self._prober = me
            delay_s = self._delay_s if self._delay_s > PROBE_S else PROBE_S  # noqa: FURB136 - would be a call
            self._until_s = now_s + delay_s  # also if the prober never comes back
            return True

    def _lock(self) -> threading.RLock:
        """Return this process's lock: one that was held at a fork stays held.

        Re-entrant: a signal handler that asks the store while its thread is in here must not wait for itself.
        """
        return self._locks.setdefault(os.getpid(), threading.RLock())


def _me() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


class Guard:
    """The calls of a `Store` and a `Carrier`, with breakers, a running budget, and soft limits held back.

    Args:
        store: what is guarded.
        reads: breaker of `read`, `carry`, `scan` and `info`.
        writes: breaker of all other calls.
        hold: holds soft time limits during a call.

    The calls of a task (`read`, `ensure`, `publish`, `discard`, `carry`, `ship`) raise `BreakerOpen` while their
    breaker is open. Those of an operator (`bury`, `replace`, `scan`, `unlink`, `info`, `give_up`, `operate`) are tried
    all the same: an invalidation must not be refused for what a task met a while ago. All raise `BudgetSpent` when the
    budget has nothing left, and what the store raises. All teach the breakers: a success closes the call's own, a fault
    of scope ``all`` opens both, one of scope ``writes`` only that of writes. An exception that is not a `StoreError`
    passes untouched and opens none.
    """

    def __init__(self, store: Store, *, reads: Breaker, writes: Breaker, hold: SoftLimitHold = SOFT_LIMITS) -> None:
        self.store, self.reads, self.writes = store, reads, writes
        self._hold = hold

    def read(self, keys: Sequence[str], budget: Budget) -> list[bytes | None]:
        """See `Store.read`."""
        return self._call(self.reads, self.store.read, budget, keys)

    def ensure(
        self, keys: Sequence[str], values: Sequence[bytes], ttl_ms: Sequence[int], budget: Budget
    ) -> list[bytes]:
        """See `Store.ensure`."""
        return self._call(self.writes, self.store.ensure, budget, keys, values, ttl_ms)

    def publish(
        self, key: str, frame: bytes, ttl_ms: int, seen: bytes, tag_keys: Sequence[str], budget: Budget
    ) -> bool:
        """See `Store.publish`."""
        return self._call(self.writes, self.store.publish, budget, key, frame, ttl_ms, seen, tag_keys)

    def bury(self, key: str, tombstone: bytes, ttl_ms: int, token_keys: Sequence[str], budget: Budget) -> Tombstoned:
        """See `Store.bury`."""
        return self._insist(self.writes, self.store.bury, budget, key, tombstone, ttl_ms, token_keys)

    def discard(self, key: str, value: bytes, budget: Budget) -> bool:
        """See `Store.discard`."""
        return self._call(self.writes, self.store.discard, budget, key, value)

    def replace(self, values: Sequence[tuple[str, bytes, int]], budget: Budget) -> None:
        """See `Store.replace`."""
        self._insist(self.writes, self.store.replace, budget, values)

    def scan(self, prefix: str, cursor: int, count: int, budget: Budget) -> tuple[int, list[str]]:
        """See `Store.scan`."""
        return self._insist(self.reads, self.store.scan, budget, prefix, cursor, count)

    def unlink(self, keys: Sequence[str], budget: Budget) -> int:
        """See `Store.unlink`."""
        return self._insist(self.writes, self.store.unlink, budget, keys)

    def info(self, budget: Budget) -> StoreInfo:
        """See `Store.info`."""
        return self._insist(self.reads, self.store.info, budget)

    @property
    def ships(self) -> bool:
        """Whether the store takes samples: whether there is `carry` and `ship`."""
        return isinstance(self.store, Carrier)

    def carry(self, keys: Sequence[str], shipment: Shipment, budget: Budget) -> tuple[list[bytes | None], Receipt]:
        """See `Carrier.carry`: a call of reads, whose receipt teaches writes. Not for when those are known to fail."""
        values, receipt = self._call(self.reads, cast("Carrier", self.store).carry, budget, keys, shipment)
        if isinstance(receipt, StoreError):
            self._learn(receipt, self.writes)
        elif receipt != REFUSED:  # for which nothing was written
            self._answered(self.writes)
        return values, receipt

    def ship(self, shipment: Shipment, budget: Budget) -> int:
        """See `Carrier.ship`."""
        return self._call(self.writes, cast("Carrier", self.store).ship, budget, shipment)

    def give_up(self, state_key: str, count: int, budget: Budget) -> int:
        """See `Carrier.give_up`."""
        return self._insist(self.writes, cast("Carrier", self.store).give_up, budget, state_key, count)

    def operate(self, ask: Callable[..., T], budget: Budget, *given: Any, writes: bool = True) -> T:
        """Return ``ask(*given, budget)``, an operator's call beyond those of a `Store`: tried all the same, and taught.

        Args:
            ask: takes *given* and then a running budget; raises a `StoreError` for a fault of the store.
            budget: not yet running.
            given: what *ask* is given.
            writes: whether a reply shows that the store takes writes; otherwise that it can be read.
        """
        return self._insist(self.writes if writes else self.reads, ask, budget, *given)

    def close(self) -> None:
        """See `Store.close`."""
        self.store.close()

    def _call(self, breaker: Breaker, ask: Callable[..., T], budget: Budget, *given: Any) -> T:
        if budget.left_s and not breaker.allows():
            raise BreakerOpen(f"{breaker.name} breaker open")
        return self._try(breaker, ask, budget, *given)

    def _insist(self, breaker: Breaker, ask: Callable[..., T], budget: Budget, *given: Any) -> T:
        """Ask whatever the breaker says: an operator waits for this. It is the probe, if one is due."""
        breaker.offer_probe()
        return self._try(breaker, ask, budget, *given)

    def _try(self, breaker: Breaker, ask: Callable[..., T], budget: Budget, *given: Any) -> T:
        if not budget.left_s:
            raise BudgetSpent
        budget.begin()
        self._hold.begin(budget.deadline + HOLD_MARGIN_S)
        try:
            answer = ask(*given, budget)
            self._answered(breaker)
        except StoreError as error:
            self._learn(error, breaker)
            raise
        except BaseException:
            if breaker.was_probed_here():
                breaker.probe_soon()
            raise
        finally:
            budget.finish()
            self._hold.end()
        return answer

    def _answered(self, breaker: Breaker) -> None:
        if breaker.is_open and breaker.succeeded() and breaker is self.reads:
            self.writes.probe_soon()

    def _learn(self, error: StoreError, breaker: Breaker) -> None:
        if error.scope == "all":
            other = self.writes if breaker is self.reads else self.reads
            if breaker.failed(error.detail):
                other.failed(error.detail, also_open=True)
        elif error.scope == "writes":
            self.writes.failed(error.detail)
        else:
            self._answered(breaker)
