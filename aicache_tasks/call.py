"""
The state of one call on its way through the cache.

In: the key, the policy's answers, the caller's directives.   Out: a `CallInfo` at the end.   Holds no argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from aicache_tasks.codec import decode_meta
from aicache_tasks.errors import StoreReason
from aicache_tasks.keys import CacheKey
from aicache_tasks.policy import NO_DIRECTIVES, Directives
from aicache_tasks.records import HIT_STATUSES, NO_EXTRA, CallInfo, EntryMeta, Sample
from aicache_tasks.stores.base import NO_FENCE, Budget
from aicache_tasks.work import Work


class Rules(NamedTuple):
    """What the policy and the settings say about storing an answer of one operation."""

    ttl_s: float
    jitter: float = 0.0
    store_if: Callable[[Any], Any] | None = None
    validate: Callable[[Any], Any] | None = None
    local: bool = True


class Call:
    """One look-up and the store that may follow it.

    Args:
        key: of the call.
        tags: to invalidate by.
        rules: of the operation.
        directives: of the caller.
        budget: the store time that it may spend.
    """

    # Defaults of the class: a hit sets half of them, and a slot cannot have one.
    tokens: tuple[bytes, ...] | None = None
    seen = NO_FENCE
    status, reason, source = "miss", "", ""
    set_status = set_reason = ""
    key_ns = get_ns = decode_ns = set_ns = 0
    raw_bytes = stored_bytes = 0
    age_ms = 0
    meta_bytes = b""  # of the entry that was hit
    asked_s = 0.0  # monotonic, before the tokens were read: until when L1 may trust them counts from here
    held: tuple[StoreReason, str] | None = None  # reason and detail of the fault that leaves no tokens
    kept = False
    work: Work | None = None
    """What its body took, if it ran."""

    def __init__(
        self,
        key: CacheKey,
        tags: tuple[str, ...],
        rules: Rules,
        budget: Budget,
        directives: Directives = NO_DIRECTIVES,
    ) -> None:
        self.key, self.tags, self.rules = key, tags, rules
        self.budget, self.directives = budget, directives

    def missed(self, reason: str) -> None:
        """Say why there is no answer; a refresh keeps its own word."""
        self.reason = reason
        self.status = "refresh" if self.directives.refresh else "miss"

    def sample(
        self, at_s: float, step: str, status: str, reason: str, duration_ns: int, extra: Mapping[str, Any] = NO_EXTRA
    ) -> Sample:
        """Return the timing of one step of this call."""
        key, raw, stored = self.key, self.raw_bytes, self.stored_bytes
        what = key.text_length, key.text_tier, raw, stored
        return Sample(at_s, key.operation, step, status, reason, duration_ns, *what, extra=extra)

    @property
    def age_s(self) -> float:
        """How old the answer is, seconds; 0.0 of what is no hit."""
        return self.age_ms / 1000

    def lookup_sample(self, at_s: float, extra: Mapping[str, Any] = NO_EXTRA) -> Sample:
        """Return the timing of the look-up, which bears those of its key and of decoding."""
        key = self.key
        fields = (
            at_s,
            key.operation,
            "get",
            self.status,
            self.reason,
            self.get_ns,
            key.text_length,
            key.text_tier,
            self.raw_bytes,
            self.stored_bytes,
            self.key_ns,
            self.decode_ns,
            self.age_ms,
            self.meta_bytes,
            extra,
        )
        return tuple.__new__(Sample, fields)  # what a hit pays for: the constructor takes half as long again

    def meta(self) -> EntryMeta:
        """Return what the frame will say about its body."""
        length = self.key.text_length
        return EntryMeta(text_length=length) if self.work is None else self.work.meta(length)

    def took(self) -> EntryMeta:
        """Return what the answer took: as the entry says that was hit, or as its body did."""
        return decode_meta(self.meta_bytes) if self.status in HIT_STATUSES and self.meta_bytes else self.meta()

    def info(self) -> CallInfo:
        """Return how the call went."""
        return CallInfo(
            self.status,
            self.reason,
            self.key.operation,
            self.key.redis_key,
            self.key_ns / 1e6,
            self.get_ns / 1e6,
            0.0 if self.work is None else self.work.compute_ns / 1e6,
            self.set_ns / 1e6,
            self.raw_bytes,
            self.stored_bytes,
            self.set_status,
            self.set_reason,
            self.age_s,
            self.source,
        )
