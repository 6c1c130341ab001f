"""
What travels between the modules: immutable records and the absent-value sentinel.

In: nothing.   Out: MISS, CacheEntry, CallInfo, Sample, SampleSink, EntryMeta, the status words.   Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

Step = Literal["key", "get", "decode", "compute", "compress", "set", "memory", "invalidate"]
CallStatus = Literal["hit", "stale", "miss", "refresh", "bypass", "joined", "error", "disabled"]
SetStatus = Literal["success", "failed", "skipped"]

HIT_STATUSES = frozenset({"hit", "stale", "joined"})
"""Statuses that count as a hit in ``hit_rate = hits / (hits + misses)``."""


class Miss(enum.Enum):
    """The type of `MISS`."""

    MISS = "miss"

    def __bool__(self) -> bool:
        return False


MISS = Miss.MISS
"""Returned by a look-up that found no entry, so that ``None`` can be cached."""

NO_EXTRA: Mapping[str, Any] = MappingProxyType({})


class Sample(NamedTuple):
    """One timed step of one call. Recording one is O(1); it holds no prompt and no answer.

    ``at`` is UTC seconds since the epoch, ``duration_ns`` comes from a monotonic clock.
    ``status`` of a ``get`` is one of `CallStatus`; of a ``set`` one of `SetStatus`.
    A ``get`` also bears what its key and decoding took (``key_ns``, ``decode_ns``; 0: not timed here), so that a hit
    is one sample of three steps; a hit the entry's age. ``meta`` of a hit and of a ``compute`` is an `EntryMeta` as
    frames have it. All but ``extra``, which stays in the process, is shipped.
    """

    at: float
    operation: str
    step: str
    status: str
    reason: str
    duration_ns: int
    text_length: int = 0
    text_tier: str = ""
    raw_bytes: int = 0
    stored_bytes: int = 0
    key_ns: int = 0
    decode_ns: int = 0
    age_ms: int = 0
    meta: bytes = b""
    extra: Mapping[str, Any] = NO_EXTRA


class SampleSink(Protocol):
    """What takes samples; `CachePerformanceMonitor` is one."""

    def record(self, sample: Sample) -> None:
        """Take *sample*. O(1); raises nothing."""


class EntryMeta(NamedTuple):
    """What a frame says about its body beside sizes and times.

    ``cost`` is in your currency, a whole number of millionths. ``prices`` is the version of ``aicache_prices`` that
    gave it, or that did not know the model if there is none; empty if the body said the cost, or nobody did.
    """

    model: str | None = None
    usage: Mapping[str, int] | None = None
    cost: float | None = None
    compute_ns: int = 0
    text_length: int = 0
    prices: str = ""


class CacheEntry(NamedTuple):
    """A stored answer. ``value`` is a fresh object: changing it changes no other hit.

    ``cost`` is what it cost when it was computed, by the ``prices`` of that version; empty: the body said it.
    """

    value: Any
    age_s: float
    ttl_s: float
    raw_bytes: int
    stored_bytes: int
    compute_s: float
    model: str | None
    usage: Mapping[str, int] | None
    cost: float | None
    key: str
    operation: str
    source: Literal["redis", "memory"]
    prices: str = ""


class CallInfo(NamedTuple):
    """How one call went: ``self.request.aicache`` in a body's task, ``task.cache.last`` after a direct call.

    ``compute_ms`` is what the body took, if it ran: also where nothing was looked up or stored, and where it raised.
    """

    status: str
    reason: str
    operation: str
    key: str
    key_ms: float = 0.0
    get_ms: float = 0.0
    compute_ms: float = 0.0
    set_ms: float = 0.0
    raw_bytes: int = 0
    stored_bytes: int = 0
    set_status: str = ""
    set_reason: str = ""
    age_s: float = 0.0
    source: str = ""
