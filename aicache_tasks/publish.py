"""
Store an answer: checks, body, frame, one script call.

In: a `Call` whose look-up missed, and the result of its body.   Out: nothing but the call's set status, and one `set`
sample. Never raises for the store.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from time import perf_counter_ns
from typing import Any

from aicache_tasks.call import Call
from aicache_tasks.codec import Frame, Tokens
from aicache_tasks.errors import NotStorable, StoreError
from aicache_tasks.local import LocalEntry
from aicache_tasks.lookup import is_valid
from aicache_tasks.parts import Parts
from aicache_tasks.records import NO_EXTRA


class _Skipped(Exception):  # noqa: N818 - never leaves this module
    """An answer that is not stored; its reason."""


class Publisher:
    """Stores answers.

    Args:
        parts: of the cache.
        rng: source of the jitter.
    """

    def __init__(self, parts: Parts, rng: random.Random | None = None) -> None:
        self._parts, self._rng = parts, rng or random.Random()  # noqa: S311 - jitter is no secret

    def publish(self, call: Call, value: Any) -> None:
        """Store *value* as the answer of *call*, unless a rule or the caller is against it."""
        started = perf_counter_ns()
        extra: Mapping[str, Any] = NO_EXTRA
        try:
            extra = self._store(call, value)
            call.set_status = "success"
        except _Skipped as skipped:
            call.set_status, call.set_reason = "skipped", str(skipped)
        except NotStorable as refusal:
            call.set_status, call.set_reason = "skipped", refusal.reason
            extra = {"detail": refusal.detail}
        except StoreError as error:
            call.set_status, call.set_reason = "failed", error.reason
            extra = {"error": error.detail}
        call.set_ns = perf_counter_ns() - started
        self._record(call, extra)

    def skip(self, call: Call, reason: str) -> None:
        """Note that nothing was stored, such as for a body that failed."""
        call.set_status, call.set_reason = "skipped", reason
        self._record(call, NO_EXTRA)

    def _store(self, call: Call, value: Any) -> Mapping[str, Any]:
        self._check(call, value)
        if call.tokens is None:  # without the tokens of before the body, no invalidation could be told from none
            raise _unfenced(call)
        raw = self._parts.codec.dump(value)
        ttl_ms = self._ttl_ms(call)
        frame, entry = self._seal(call, raw, ttl_ms)
        tag_keys = self._parts.keys.token_keys(call.key.bucket, call.key.operation, call.tags)[2:]
        key = call.key.redis_key
        if not self._parts.store.publish(key, frame.data, ttl_ms, call.seen, tag_keys, call.budget):
            raise _Skipped("invalidated")
        if entry is not None and self._parts.local is not None:
            self._parts.local.put(key, entry)
        return {
            "compression_used": frame.compressed,
            "compression_time": frame.compress_ns / 1e9,
            "ttl": ttl_ms / 1000,
        }

    def _check(self, call: Call, value: Any) -> None:
        if call.directives.no_store or (call.work is not None and call.work.no_store):
            raise _Skipped("no_store")
        if not self._may_store(call, value):
            raise _Skipped("store_if")
        if not is_valid(self._parts.errors, call, value):
            raise _Skipped("validate")

    def _may_store(self, call: Call, value: Any) -> bool:
        if call.rules.store_if is None:
            return True
        try:
            return bool(call.rules.store_if(value))
        except Exception as error:  # noqa: BLE001 - the user's code must not fail a paid answer
            self._parts.errors.hook_failed("store_if", call.key.operation, error)
            return False

    def _seal(self, call: Call, raw: bytes, ttl_ms: int) -> tuple[Frame, LocalEntry | None]:
        assert call.tokens is not None
        namespace, operation, *tags = call.tokens
        tokens = Tokens(namespace, operation, tuple(zip(map(self._parts.keys.tag_id, call.tags), tags, strict=True)))
        now_ms = self._parts.now_ms()
        frame = self._parts.codec.seal(
            raw,
            digest=call.key.digest,
            tokens=tokens,
            created_ms=now_ms,
            fresh_ms=now_ms + ttl_ms,
            expires_ms=now_ms + ttl_ms,
            meta=call.meta(),
            fence=call.seen,
        )
        call.raw_bytes, call.stored_bytes = frame.raw_bytes, frame.stored_bytes
        if frame.compressed:
            self._parts.samples.record(call.sample(now_ms / 1000, "compress", "success", "", frame.compress_ns))
        return frame, self._local_entry(call, frame, raw)

    def _local_entry(self, call: Call, frame: Frame, raw: bytes) -> LocalEntry | None:
        if self._parts.local is None or not call.rules.local:
            return None
        if call.key.text_tier not in self._parts.settings.l1_tiers:
            return None
        opened = self._parts.codec.open(frame.data, call.key.digest)
        return LocalEntry(raw, opened._replace(body=b""), call.asked_s)

    def _ttl_ms(self, call: Call) -> int:
        ttl_s = call.directives.ttl_s or call.rules.ttl_s
        if call.rules.jitter:
            ttl_s *= 1 - self._rng.random() * call.rules.jitter
        return max(int(ttl_s * 1000), 1)

    def _record(self, call: Call, extra: Mapping[str, Any]) -> None:
        now_s = self._parts.now_ms() / 1000
        self._parts.samples.record(call.sample(now_s, "set", call.set_status, call.set_reason, call.set_ns, extra))


def _unfenced(call: Call) -> StoreError:
    reason, detail = call.held or (call.reason or "redis_error", "no tokens")
    error = StoreError(detail)
    error.reason = reason  # type: ignore[assignment] # or `internal_error`, of a look-up that broke
    return error
