"""
`AIResponseCache`: the order of the steps.

In: text, operation, options, question.   Out: a stored answer, or None. Works with no Celery app.

Look-up, publish and invalidation each have a file of their own; this one binds them to an identity: it turns a call
into a `Call` with the help of the policy that is registered for the operation.
"""

from __future__ import annotations

import functools
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter_ns
from typing import Any, Final, Literal

from aicache_tasks.call import Call, Rules
from aicache_tasks.durations import Duration
from aicache_tasks.errors import StoreError
from aicache_tasks.identity import Identities
from aicache_tasks.invalidation import Invalidator
from aicache_tasks.lookup import Hit, Lookup, entry_of
from aicache_tasks.monitor import CachePerformanceMonitor
from aicache_tasks.outbox import producer_name
from aicache_tasks.overview import overview
from aicache_tasks.parts import make_parts, wall_ms
from aicache_tasks.policy import CachePolicy, PolicyRegistry, directives_from
from aicache_tasks.publish import Publisher
from aicache_tasks.records import MISS, CacheEntry, Miss
from aicache_tasks.settings import Settings
from aicache_tasks.stores.base import Store
from aicache_tasks.work import Work


class AIResponseCache:
    """A compressed, timed cache of AI answers on Redis or Valkey.

    Neither look-ups nor stores raise for the server: a server that is down is a miss and an answer that is not kept.

    Args:
        redis_url: server of the cache; None takes the one in *settings*.
        default_ttl: seconds that an answer lives if neither a policy nor *operation_ttls* says.
        text_hash_threshold: characters from which a text is of size class ``large`` in key timings.
        hash_algorithm: name of a digest that hashlib knows, or its constructor, such as ``hashlib.sha256``.
        compression_threshold: bytes up to which bodies are stored as they are.
        compression_level: of zstd or zlib; None is their usual one.
        text_size_tiers: upper limits in characters, ``{"small": 500, "medium": 5000, "large": 50000}``.
        memory_cache_size: entries kept in this process's memory; 0 is off.
        performance_monitor: takes the timings; one is made if None.
        operation_ttls: seconds by operation.
        store: a store instead of *redis_url*.
        settings: everything else; the arguments above win over it.
        policies: registry of the operations' policies.
        now_ms: wall clock, ms since the epoch.
        mono_s: monotonic clock, seconds.
        ship: send the timings to the summary records, unless ``aicache_samples`` is off or the store takes none.
        origin: names this process in the records; by default ``producer@`` and the host's name.

    Raises:
        SettingsError: a value is not allowed, or there is no server.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        default_ttl: float | None = None,
        text_hash_threshold: int | None = None,
        hash_algorithm: str | Callable[[], Any] | None = None,
        compression_threshold: int | None = None,
        compression_level: int | None = None,
        text_size_tiers: Mapping[str, int] | None = None,
        memory_cache_size: int | None = None,
        performance_monitor: CachePerformanceMonitor | None = None,
        *,
        operation_ttls: Mapping[str, float] | None = None,
        store: Store | None = None,
        settings: Settings | None = None,
        policies: PolicyRegistry | None = None,
        now_ms: Callable[[], int] = wall_ms,
        mono_s: Callable[[], float] = time.monotonic,
        ship: bool = False,
        origin: Callable[[], str] | None = None,
    ) -> None:
        given = {
            "aicache_url": redis_url,
            "aicache_ttl": default_ttl,
            "aicache_text_hash_threshold": text_hash_threshold,
            "aicache_hash": hash_algorithm().name if callable(hash_algorithm) else hash_algorithm,
            "aicache_compression_threshold_bytes": compression_threshold,
            "aicache_compression_level": compression_level,
            "aicache_text_tiers": text_size_tiers,
            "aicache_l1_entries": memory_cache_size,
            "aicache_ttls": operation_ttls,
        }
        self.settings = (settings or Settings()).updated({k: v for k, v in given.items() if v is not None})
        self.policies = policies or PolicyRegistry()
        self.parts = make_parts(
            self.settings, store, performance_monitor, now_ms, mono_s, (origin or producer_name) if ship else None
        )
        self.samples, self._outbox = self.parts.samples, self.parts.outbox
        self.monitor, self.keys = self.parts.monitor, self.parts.keys
        self._lookup, self._publisher = Lookup(self.parts), Publisher(self.parts)
        self._identities = Identities(self.settings, self.policies, self.keys)
        self._invalidator = Invalidator(self.parts, self._identities.longest_ttl_s)
        _watch_forks()
        _CACHES.add(self)

    # The two steps that tasks use.

    def find(self, call: Call, *, quiet: bool = False) -> Hit | Miss:
        """Look for the answer of *call*; its status, reason and tokens are then set. A *quiet* look is not timed."""
        try:
            return self._lookup.find(call, quiet=quiet)
        except Exception as error:  # noqa: BLE001 - a bug of ours must not fail a task
            self.parts.errors.caught(error, "lookup")
            call.status, call.reason = "error", "internal_error"
            if not quiet:
                self.samples.record(call.lookup_sample(self.parts.now_ms() / 1000))
            return MISS

    def publish(self, call: Call, value: Any) -> None:
        """Store *value* as the answer of *call*, if the rules allow."""
        try:
            self._publisher.publish(call, value)
        except Exception as error:  # noqa: BLE001 - a bug of ours, or of store_if, must not fail a task
            self.parts.errors.caught(error, "publish")
            call.set_status, call.set_reason = "failed", "internal_error"
            self.samples.noted(call.key.operation, "set", call.set_status, call.set_reason)

    def skip(self, call: Call, reason: str) -> None:
        """Note that the answer of *call* was not stored."""
        self._publisher.skip(call, reason)

    def computed(self, call: Call, work: Work) -> None:
        """Note what the body of *call* took, and what it cost."""
        call.work = work
        self._computed(call.key.operation, call.status, work, call)

    def computed_past(self, operation: str, status: str, work: Work) -> None:
        """Note the same of a body that ran without a look-up."""
        self._computed(operation, status, work, None)
        self.samples.acknowledge(self.parts.budget())

    def _computed(self, operation: str, status: str, work: Work, call: Call | None) -> None:
        try:
            if not work.price(self.settings.prices):
                self.parts.errors.unpriced(work)
            self.samples.computed(operation, work, status, call)
        except Exception as error:  # noqa: BLE001 - a bug of ours must not fail a task
            self.parts.errors.caught(error, "computed")

    def bypassed(self, operation: str, error: Exception | None = None) -> str:
        """Count a call that went past the cache: it was asked to, or *error* says why it cannot be keyed.

        Return why: ``requested``, or the class of the error.
        """
        if error is not None:
            self.parts.errors.bypassed(operation, error)
        reason = "requested" if error is None else type(error).__name__
        self.passed_over(operation, "bypass", reason)
        return reason

    def passed_over(self, operation: str, status: str, reason: str = "") -> None:
        """Count a call that is not looked up."""
        self.samples.noted(operation, "get", status, reason)
        self.samples.acknowledge(self.parts.budget())

    def rules(self, operation: str, policy: CachePolicy) -> Rules:
        """Return what *policy* and the settings say about storing answers of *operation*."""
        return self._identities.rules(operation, policy)

    # The façade.

    def generate_cache_key(
        self,
        text: Any,
        operation: str,
        options: Mapping[str, Any] | None = None,
        question: str | None = None,
        *,
        version: str | int | None = None,
        tenant: str | None = None,
        vary: Any = None,
    ) -> str:
        """Return the whole Redis key of a call; raises `KeyEncodingError` as `CacheKeyGenerator` does."""
        known, started = self._identities.of(operation), perf_counter_ns()
        key = self._identities.key(known, text, operation, options, question, version, tenant, vary)
        self.samples.keyed(key, perf_counter_ns() - started)
        return key.redis_key

    def get_cached_response(
        self,
        text: Any,
        operation: str,
        options: Mapping[str, Any] | None = None,
        question: str | None = None,
        *,
        version: str | int | None = None,
        tenant: str | None = None,
        tags: Sequence[str] | None = None,
    ) -> Any:
        """Return the stored answer, None if there is none. `lookup` tells a stored None from none."""
        call = self._call(text, operation, options, question, version, tenant, tags)
        if call is None:
            return None
        hit = self.find(call)
        if self.samples.are_durable:
            self.samples.acknowledge(call.budget)
        return None if hit is MISS else hit.value

    def lookup(
        self,
        text: Any,
        operation: str,
        options: Mapping[str, Any] | None = None,
        question: str | None = None,
        *,
        version: str | int | None = None,
        tenant: str | None = None,
        tags: Sequence[str] | None = None,
        max_age: Duration | None = None,
    ) -> CacheEntry | Miss:
        """Return the entry, or MISS.

        Args:
            text: usually a str; it, *operation*, *options* and *question* say which call is meant.
            operation: the cache identity of the task.
            options: the other arguments.
            question: None is not the same as an empty question.
            version: of the prompt or the code; by default that of the operation's policy, as *tenant* and *tags*.
            tenant: whose answer it is.
            tags: names that it can be invalidated by.
            max_age: refuse older entries; seconds or ``"10m"``.

        Raises:
            DirectiveError: *max_age* is not a duration.
        """
        directives = directives_from({"max_age": max_age, "only_if_cached": True})
        call = self._call(text, operation, options, question, version, tenant, tags)
        if call is None:
            return MISS
        call.directives = directives
        hit = self.find(call)
        self.samples.acknowledge(call.budget)
        return MISS if hit is MISS else self.entry(call, hit)

    def cache_response(
        self,
        text: Any,
        operation: str,
        options: Mapping[str, Any] | None,
        response: Any,
        question: str | None = None,
        *,
        version: str | int | None = None,
        tenant: str | None = None,
        tags: Sequence[str] | None = None,
        ttl: Duration | None = None,
    ) -> None:
        """Store *response*; it can be read when this returns.

        Args:
            ttl: lifetime of this entry, seconds or ``"2h"``; the others are as for `lookup`.

        Raises:
            DirectiveError: *ttl* is not a lifetime.
        """
        directives = directives_from({"ttl": ttl})
        call = self._call(text, operation, options, question, version, tenant, tags, step="set")
        if call is None:
            return
        call.directives = directives
        self.store_now(call, response)
        self.samples.acknowledge(call.budget)

    def store_now(self, call: Call, value: Any) -> None:
        """Store *value* with no look-up before it: whatever was invalidated until now does not count.

        Nothing is stored while the cache is switched off.
        """
        try:
            self._lookup.prepare(call)
        except StoreError as error:
            call.held = error.reason, error.detail
        except Exception as error:  # noqa: BLE001 - a bug of ours must not fail a task
            self.parts.errors.caught(error, "prepare")
        if call.status == "disabled":
            self.skip(call, "disabled")
        else:
            self.publish(call, value)

    def entry(self, call: Call, hit: Hit) -> CacheEntry:
        """Return *hit* as people see it."""
        return entry_of(call, hit, self.parts.now_ms())

    # Invalidation.

    def invalidate(
        self,
        text: Any,
        operation: str,
        options: Mapping[str, Any] | None = None,
        question: str | None = None,
        *,
        version: str | int | None = None,
        tenant: str | None = None,
        operation_context: str = "manual",
    ) -> bool:
        """Take one answer out of force; return whether there was one. Raises `StoreError` if it could not be done."""
        call = self._call(text, operation, options, question, version, tenant, None, step="invalidate")
        return call is not None and self._invalidator.call(call, operation_context)

    def invalidate_call(self, call: Call, operation_context: str = "manual") -> bool:
        """Take the answer of *call* out of force; return whether there was one."""
        return self._invalidator.call(call, operation_context)

    def invalidate_pattern(self, pattern: str, operation_context: str = "") -> list[str]:
        """Take every operation and tag out of force that the shell-style *pattern* matches whole; return their names.

        It is matched against registered operations and against tags that policies name or that this process has used,
        never against Redis keys: ``q`` does not match ``qa``, ``q*`` does.
        """
        operations, tags = self._identities.used(), self._identities.used_tags()
        return self._invalidator.pattern(pattern, operations, tags, operation_context)

    def invalidate_by_operation(self, operation: str, operation_context: str = "") -> None:
        """Take every answer of *operation* out of force, in one write per bucket."""
        self._invalidator.operation(operation, operation_context or f"operation_specific_{operation}")

    def invalidate_by_tag(self, tag: str, operation_context: str = "") -> None:
        """Take every answer that carries *tag* out of force, in one write per bucket."""
        self._invalidator.tag(tag, operation_context or "tag")

    def invalidate_all(self, operation_context: str = "manual_clear_all") -> None:
        """Take every answer of the namespace out of force, in one write per bucket."""
        self._invalidator.everything(operation_context)

    invalidate_namespace = invalidate_all

    def invalidate_memory_cache(self, operation_context: str = "memory_cache_clear") -> int:
        """Empty this process's L1; return how many entries went."""
        return self._invalidator.memory(operation_context)

    def purge(
        self,
        operation: str | None = None,
        *,
        dry_run: bool = False,
        keys_per_s: float = 20_000.0,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """Erase entries' bytes with SCAN and UNLINK; return how many keys went, or would go with *dry_run*."""
        return self._invalidator.purge(operation, dry_run=dry_run, keys_per_s=keys_per_s, progress=progress)

    # Statistics.

    def get_cache_stats(self) -> dict[str, Any]:
        """Return what the server, L1 and the monitor say; takes one memory measurement."""
        return overview(self.parts)

    def get_cache_hit_ratio(self) -> float:
        """Return hits per 100 look-ups that hit or missed, 0.0 before the first."""
        return self.monitor.hit_ratio()

    def get_performance_summary(self) -> dict[str, Any]:
        """Return the few figures that people ask for first."""
        return self.monitor.performance_summary()

    def reset_performance_stats(self) -> None:
        """Forget every timing and counter of this process."""
        self.monitor.reset_stats()

    def close(self) -> None:
        """Send the timings that wait, if they are shipped, and drop this process's connections."""
        if self._outbox is not None:
            self._outbox.flush()
        self.parts.store.close()

    # From an identity to a call.

    def _call(
        self,
        text: Any,
        operation: str,
        options: Mapping[str, Any] | None,
        question: str | None,
        version: str | int | None,
        tenant: str | None,
        tags: Sequence[str] | None,
        *,
        step: Literal["get", "set", "invalidate"] = "get",
    ) -> Call | None:
        """Return the call, or None if its arguments cannot be keyed: then it has no entry."""
        known = self._identities.of(operation)
        try:
            names = self._identities.tags(known, text, operation, options, question, tags)
            started = perf_counter_ns()
            key = self._identities.key(known, text, operation, options, question, version, tenant)
        except Exception as error:  # noqa: BLE001 - whatever vary=, tenant= or tags= raise, nobody fails
            self.parts.errors.bypassed(operation, error)
            if step != "invalidate":
                said = ("bypass", type(error).__name__) if step == "get" else ("skipped", "bypass")
                self.samples.noted(operation, step, *said)
                self.samples.acknowledge(self.parts.budget())
            return None
        call = Call(key, names, known.rules, self.parts.budget())
        call.key_ns = perf_counter_ns() - started
        if step != "get":
            self.samples.keyed(key, call.key_ns)
        return call

    def after_fork(self) -> None:
        """In a forked child: the timings are the parent's, and threads that are not here may have held the locks."""
        self.monitor.reset_stats()
        if self.parts.local is not None:
            self.parts.local.after_fork()

    def used(self, tags: Iterable[str]) -> None:
        """Remember *tags* for `invalidate_pattern`, up to a bound."""
        self._identities.remember(tags)


_CACHES: Final[weakref.WeakSet[AIResponseCache]] = weakref.WeakSet()


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    for cache in list(_CACHES):
        cache.after_fork()
