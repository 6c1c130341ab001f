"""
The parts that one cache is made of, and the one place where our own bugs end.

In: settings and a store.   Out: `Parts`, shared by look-up, publish and invalidation.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from aicache_tasks.call import Call
from aicache_tasks.codec import Codec, encode_meta
from aicache_tasks.durations import shorten
from aicache_tasks.errors import KeyEncodingError
from aicache_tasks.keys import CacheKey, CacheKeyGenerator, key_sample
from aicache_tasks.local import LocalCache
from aicache_tasks.mode import Mode
from aicache_tasks.monitor import CachePerformanceMonitor
from aicache_tasks.monitor.statistics import MIB
from aicache_tasks.outbox import Outbox
from aicache_tasks.records import Sample
from aicache_tasks.settings import Settings
from aicache_tasks.signals import steers
from aicache_tasks.stores import open_store
from aicache_tasks.stores.base import Budget, Store
from aicache_tasks.stores.guard import Breaker, Guard
from aicache_tasks.work import Work

log = logging.getLogger("aicache_tasks")
_MAX_KINDS = 50
_MAX_OPERATIONS = 1000
_MAX_UNPRICED = 100
_MAX_SHOWN = 5


def wall_ms() -> int:
    """Return the wall clock in ms since the epoch."""
    return time.time_ns() // 1_000_000


def new_token() -> bytes:
    """Return 64 random bits."""
    return os.urandom(8)


class InternalErrors:
    """Logs each kind of our own bugs, bypasses and damaged entries once, and raises our bugs when strict.

    A kind is made of names, of no data; an operation has `_MAX_KINDS` at most, so that none silences the others.

    Args:
        strict: raise instead of logging.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.logged: set[str] = set()
        self._kinds: Counter[str | None] = Counter({None: 0})  # our own bugs are of no operation, and have room
        self._unpriced: set[tuple[str, str | None]] = set()

    def caught(self, error: Exception, where: str) -> None:
        """Log the class of *error*, since its text may quote an argument."""
        if self.strict or steers(error):
            raise error
        name = type(error).__name__
        if self._is_first(f"{where}:{name}"):
            extra = {"aicache": {"where": where, "error": name}}
            log.error("aicache.internal_error: %s in %s; not logged again", name, where, extra=extra)

    def hook_failed(self, hook: str, operation: str, error: Exception) -> None:
        """Warn of a policy's callable that raised, once for each operation, hook and class."""
        if steers(error):
            raise error
        name = type(error).__name__
        if self._is_first(f"{hook}:{operation}:{name}", operation):
            log.warning("aicache.policy %r: %s= raised %s", operation, hook, name)

    def damaged(self, operation: str) -> None:
        """Warn of an entry that is removed because it is damaged or no longer valid, once for each operation."""
        if self._is_first(f"corrupt:{operation}", operation):
            log.warning(
                "aicache.corrupt %r: an entry was removed", operation, extra={"aicache": {"operation": operation}}
            )

    def bypassed(self, operation: str, error: Exception) -> None:
        """Warn of a call that cannot be keyed, once for each operation, argument and type.

        *error* names a path, no value.

        What a policy's callable raises is a reason too; strict lets only what says "cannot be keyed" pass.
        """
        if steers(error) or (self.strict and not isinstance(error, (TypeError, ValueError))):
            raise error
        what = name = type(error).__name__
        why = f"{name} of vary=, tenant= or tags=, or a wrong argument"
        if isinstance(error, KeyEncodingError):
            what, why = f"{error.argument}:{error.kind}", str(error)
        if self._is_first(f"bypass:{operation}:{what}", operation):
            log.warning("aicache.bypass %r: %s", operation, why, extra={"aicache": {"operation": operation}})

    def unpriced(self, work: Work) -> None:
        """Warn of an answer whose tokens have no price: once for each model, of some models; records count them all."""
        known = work.prices, work.unpriced
        if known in self._unpriced or len(self._unpriced) >= _MAX_UNPRICED:
            return
        self._unpriced.add(known)
        model = "with no model (annotate(model=…))" if work.unpriced is None else f"of model {shorten(work.unpriced)}"
        text = "aicache.prices %s: answers %s took tokens (%s) that have no price in aicache_prices['models']"
        usage = [*map(shorten, (work.shares or {}).get(work.unpriced, ()))]
        kinds = ", ".join([*usage[:_MAX_SHOWN], "…"] if len(usage) > _MAX_SHOWN else usage)
        log.warning(text, work.prices, model, kinds, extra={"aicache": {"model": work.unpriced, "prices": work.prices}})

    def _is_first(self, kind: str, operation: Any = None) -> bool:
        name = None if operation is None else f"{operation}"  # may be anything, if that is what is wrong
        if kind in self.logged or self._kinds[name] >= _MAX_KINDS:
            return False
        if name not in self._kinds and len(self._kinds) > _MAX_OPERATIONS:
            return False
        self._kinds[name] += 1
        self.logged.add(kind)
        return True


def raise_what_steers(error: BaseException, handled: BaseException | None) -> None:
    """Raise what steers the task, if serializing it became *error*.

    Args:
        error: what was caught; kombu wraps whatever is raised inside it.
        handled: what the caller was handling before: not raised here.
    """
    steering: BaseException | None = None
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and link is not handled and id(link) not in seen:
        seen.add(id(link))
        steering = link if steers(link) else steering  # the innermost: a wrapper has its traceback
        link = link.__cause__ or link.__context__
    if steering is not None:
        raise steering


class Samples:
    """Where each sample goes: into the monitor's arrays, and to the outbox if there is one. A `SampleSink`.

    Args:
        monitor: of this process.
        outbox: None if samples do not leave it.
        now_ms: wall clock, ms since the epoch.
    """

    def __init__(
        self, monitor: CachePerformanceMonitor, outbox: Outbox | None, now_ms: Callable[[], int] = wall_ms
    ) -> None:
        self._monitor, self._outbox, self._now_ms = monitor, outbox, now_ms
        self.are_durable = outbox is not None and outbox.is_durable

    def record(self, sample: Sample) -> None:
        """Take *sample*. O(1); raises nothing."""
        self._monitor.record(sample)
        if self._outbox is not None:
            self._outbox.add(sample)

    def ship(self, sample: Sample) -> None:
        """Take *sample*, whose measurement the monitor has already."""
        if self._outbox is not None:
            self._outbox.add(sample)

    def keyed(self, key: CacheKey, took_ns: int) -> None:
        """Note what *key* took, if no look-up follows that would say it."""
        self.record(key_sample(key, self._now_ms() / 1000, took_ns))

    def computed(self, operation: str, work: Work, why: str, call: Call | None = None) -> None:
        """Note what a body of *operation* took; *why* it ran is its call's status, *call* None if it had no look-up."""
        at_s, took = self._now_ms() / 1000, work.compute_ns
        if call is None:
            sample, meta = Sample(at_s, operation, "compute", work.outcome, why, took), work.meta()
        else:
            sample, meta = call.sample(at_s, "compute", work.outcome, why, took), call.meta()
        if work.is_unpriced:
            meta = meta._replace(model=work.unpriced)  # records count the answer under it, whatever answered last
        self.record(sample._replace(meta=encode_meta(meta)))

    def noted(self, operation: str, step: str, status: str, reason: str) -> None:
        """Note a step that took no time; *operation* may be anything, if that is why."""
        name = operation if type(operation) is str else str(operation)
        self.record(Sample(self._now_ms() / 1000, name, step, status, reason, 0))

    def acknowledge(self, budget: Budget) -> None:
        """If samples are durable, wait until those so far are in the inbox, or *budget* is spent."""
        if self._outbox is not None and self.are_durable:
            self._outbox.acknowledge(budget)


class Parts(NamedTuple):
    """What look-up, publish and invalidation share."""

    settings: Settings
    keys: CacheKeyGenerator
    codec: Codec
    store: Guard
    local: LocalCache | None
    monitor: CachePerformanceMonitor
    samples: Samples
    outbox: Outbox | None
    errors: InternalErrors
    mode: Mode
    now_ms: Callable[[], int] = wall_ms
    mono_s: Callable[[], float] = time.monotonic

    def budget(self) -> Budget:
        """Return a new budget for one call."""
        return Budget(self.settings.budget_ms / 1000)


def make_parts(
    settings: Settings,
    store: Store | None,
    monitor: CachePerformanceMonitor | None,
    now_ms: Callable[[], int],
    mono_s: Callable[[], float],
    origin: Callable[[], str] | None = None,
) -> Parts:
    """Return the parts of a cache.

    Args:
        settings: checked.
        store: None takes the server that *settings* names.
        monitor: takes the timings; one is made if None.
        now_ms: wall clock, ms since the epoch.
        mono_s: monotonic clock, seconds.
        origin: names this process to who reads its samples; None keeps them here.

    Raises:
        SettingsError: there is no server.
    """
    monitor = monitor if monitor is not None else _monitor(settings, now_ms)
    local = LocalCache(settings.l1_entries, settings.l1_bytes, clock=mono_s, now_ms=now_ms)
    store = store if store is not None else open_store(settings.require_url(), connect_s=settings.connect_ms / 1000)
    guard = Guard(
        store,
        reads=Breaker("reads", settings.breaker_min_s, settings.breaker_max_s),
        writes=Breaker("writes", settings.breaker_min_s, settings.breaker_max_s),
    )
    ships = settings.samples != "off" and guard.ships
    outbox = Outbox(guard, settings, origin) if ships and origin is not None else None
    samples = Samples(monitor, outbox, now_ms)
    keys = CacheKeyGenerator(
        settings.text_hash_threshold,
        settings.hash,
        samples,
        namespace=settings.namespace,
        secret=settings.secret,
        text_size_tiers=settings.text_tiers,
    )
    return Parts(
        settings=settings,
        keys=keys,
        codec=Codec(
            compression=settings.compression,
            level=settings.compression_level,
            threshold_bytes=settings.compression_threshold_bytes,
            max_entry_bytes=settings.max_entry_bytes,
        ),
        store=guard,
        local=local if settings.l1_entries else None,
        monitor=monitor,
        samples=samples,
        outbox=outbox,
        errors=InternalErrors(strict=settings.strict),
        mode=Mode(keys, guard, mono_s),
        now_ms=now_ms,
        mono_s=mono_s,
    )


def _memory_limits(settings: Settings) -> tuple[int, int]:
    """Return the limits of a process's own figures, which knows of no ``maxmemory``."""
    warning = settings.memory_warning_bytes or min(50 * MIB, settings.memory_critical_bytes or 50 * MIB)
    return warning, settings.memory_critical_bytes or max(100 * MIB, warning)


def _monitor(settings: Settings, now_ms: Callable[[], int]) -> CachePerformanceMonitor:
    return CachePerformanceMonitor(
        settings.retention_s / 3600,
        settings.max_measurements,
        *_memory_limits(settings),
        clock=lambda: now_ms() / 1000,
        key_generation_threshold=settings.slow_key_ms / 1000,
        cache_operation_threshold=settings.slow_operation_ms / 1000,
        invalidation_rate_warning_per_hour=settings.invalidations_warning_per_hour,
        invalidation_rate_critical_per_hour=settings.invalidations_critical_per_hour,
    )
