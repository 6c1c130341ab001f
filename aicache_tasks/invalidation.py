"""
Take answers out of force: one call by a tombstone, everything else by a new token in each bucket.

In: a call, an operation, a tag, a pattern.   Out: exact counts where they are free, None where they would take a scan.

No command here lists keys but `Invalidator.purge`, which erases bytes with SCAN and UNLINK.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter_ns
from typing import Any, Final

from aicache_tasks.call import Call
from aicache_tasks.codec import Opened, make_tombstone, peek_header
from aicache_tasks.errors import PayloadError, StoreError
from aicache_tasks.parts import Parts, new_token
from aicache_tasks.policy import matching
from aicache_tasks.records import Sample
from aicache_tasks.stores.base import Budget, Tombstoned

BUCKETS: Final = 64
ADMIN_BUDGET_S: Final = 5.0
"""Store time of one administrative step; people wait for it, tasks do not."""


class Invalidator:
    """Invalidates and purges.

    Args:
        parts: of the cache.
        longest_ttl_s: the longest that an entry of an operation, or of any (None), may live.
    """

    def __init__(self, parts: Parts, longest_ttl_s: Callable[[str | None], float]) -> None:
        self._parts, self._longest_ttl_s = parts, longest_ttl_s

    def call(self, call: Call, context: str) -> bool:
        """Bury the entry of *call*; return whether one was in force."""
        started = perf_counter_ns()
        key, token = call.key, new_token()
        self._forget(key.redis_key)
        ttl_ms = int(max(call.rules.ttl_s, self._longest_ttl_s(key.operation)) * 1000)
        token_keys = self._parts.keys.token_keys(key.bucket, key.operation, call.tags)
        try:
            found = self._parts.store.bury(
                key.redis_key, make_tombstone(token), ttl_ms, token_keys, Budget(ADMIN_BUDGET_S)
            )
        except StoreError as error:
            self._record("call", 0, started, key.operation, context, error=error)
            raise
        went = self._was_in_force(call, found)
        self._record("call", int(went), started, key.operation, context)
        return went

    def operation(self, operation: str, context: str) -> None:
        """Replace the operation's token in every bucket."""
        self._renew((operation,), (), f"op:{operation}", context, operation)

    def tag(self, tag: str, context: str) -> None:
        """Replace the tag's token in every bucket."""
        self._renew((), (tag,), "tag", context, "")

    def everything(self, context: str) -> None:
        """Replace the namespace's token in every bucket."""
        self._renew((), (), "", context, "", namespace=True)

    def pattern(self, pattern: str, operations: Iterable[str], tags: Iterable[str], context: str) -> list[str]:
        """Replace the tokens of the operations and tags that *pattern* matches whole; return those names."""
        found, found_tags = matching(pattern, operations), matching(pattern, tags)
        self._renew(found, found_tags, pattern, context, "")
        return sorted({*found, *found_tags})

    def memory(self, context: str) -> int:
        """Empty L1; return how many entries went."""
        started = perf_counter_ns()
        went = self._parts.local.clear() if self._parts.local is not None else 0
        self._record("memory_cache", went, started, "", context, kind="memory", invalidation_target="memory_cache_only")
        return went

    def purge(
        self,
        operation: str | None = None,
        *,
        dry_run: bool = False,
        keys_per_s: float = 20_000.0,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """Erase the bytes of every entry, or of one operation's; return how many keys went (or would go).

        Args:
            operation: only this one's entries.
            dry_run: count, remove nothing.
            keys_per_s: scan no faster than this.
            progress: called with the count so far.

        Raises:
            StoreError: the store went away; what was erased is erased.
        """
        started, count = perf_counter_ns(), 0
        if not dry_run:  # first out of force, so that no body that runs now can bring one back
            self.operation(operation, "purge") if operation is not None else self.everything("purge")
        seen: set[str] = set()
        for keys in self._scan(operation, keys_per_s):
            if dry_run:  # SCAN may show a key twice; UNLINK counts it once by itself
                seen.update(keys)
            count = len(seen) if dry_run else count + self._parts.store.unlink(keys, Budget(ADMIN_BUDGET_S))
            if progress is not None:
                progress(count)
        if not dry_run:
            self._record("purge", count, started, operation or "", "purge")
        return count

    def _scan(self, operation: str | None, keys_per_s: float) -> Iterator[list[str]]:
        """Yield batches of entry keys, at most *keys_per_s* keys looked at in a second."""
        cursor = -1
        while cursor != 0:
            tick = time.monotonic()
            prefix = self._parts.keys.key_prefix
            cursor, found = self._parts.store.scan(prefix, max(cursor, 0), 1000, Budget(ADMIN_BUDGET_S))
            if entries := [key for key in found if self._parts.keys.is_entry_key(key, operation)]:
                yield entries
            if cursor != 0:
                time.sleep(max(0.0, len(found) / keys_per_s - (time.monotonic() - tick)))

    def _renew(
        self,
        operations: Iterable[str],
        tags: Iterable[str],
        pattern: str,
        context: str,
        operation: str,
        *,
        namespace: bool = False,
    ) -> None:
        started, writes = perf_counter_ns(), list(self._writes(list(operations), list(tags), namespace))
        if self._parts.local is not None:
            self._parts.local.clear()
        try:
            if writes:
                self._parts.store.replace(writes, Budget(ADMIN_BUDGET_S))
        except StoreError as error:
            self._record(pattern, 0, started, operation, context, error=error)
            raise
        self._record(pattern, None if writes else 0, started, operation, context)

    def _writes(self, operations: list[str], tags: list[str], namespace: bool) -> Iterator[tuple[str, bytes, int]]:
        keys = self._parts.keys
        tag_ttl_ms = int(self._longest_ttl_s(None) * 1000)
        for bucket in range(BUCKETS):
            if namespace:
                yield keys.namespace_key(bucket), new_token(), 0
            for operation in operations:
                yield keys.operation_key(bucket, operation), new_token(), 0
            for tag in tags:
                yield keys.tag_key(bucket, keys.tag_id(tag)), new_token(), tag_ttl_ms

    def _was_in_force(self, call: Call, found: Tombstoned) -> bool:
        opened = self._peek(call, found.head)
        if opened is None or opened.expires_ms <= self._parts.now_ms():
            return False
        held = opened.tokens
        known = dict(zip(map(self._parts.keys.tag_id, call.tags), found.tokens[2:], strict=True))
        tags_hold = all(known.get(tag, token) == token for tag, token in held.tags)
        return (held.namespace, held.operation) == (found.tokens[0], found.tokens[1]) and tags_hold

    def _peek(self, call: Call, head: bytes | None) -> Opened | None:
        try:
            return None if head is None else peek_header(head, call.key.digest)
        except PayloadError:
            return None

    def _forget(self, redis_key: str) -> None:
        if self._parts.local is not None:
            self._parts.local.drop(redis_key)

    def _record(
        self,
        pattern: str,
        count: int | None,
        started_ns: int,
        operation: str,
        context: str,
        *,
        kind: str = "manual",
        error: StoreError | None = None,
        **more: Any,
    ) -> None:
        extra = {
            "pattern": pattern,
            "keys_invalidated": count,
            "invalidation_type": kind,
            "operation_context": context,
            "search_pattern": pattern,
            **more,
        }
        if error is not None:
            extra["error"] = error.detail
        status, reason = ("failed", error.reason) if error else ("success", "")
        now_s = self._parts.now_ms() / 1000
        self._parts.samples.record(
            Sample(now_s, operation, "invalidate", status, reason, perf_counter_ns() - started_ns, extra=extra)
        )
