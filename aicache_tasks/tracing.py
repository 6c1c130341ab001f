"""
Tell OpenTelemetry how a task's call went, as attributes of the span that is open.

In: how a call went, and what its answer took.   Out: attributes ``aicache.…`` of the current span; no span of our own,
no argument and no answer.

Nothing of OpenTelemetry is imported here: a process in which nobody else has imported it has no span.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

from aicache_tasks.prices import tokens_in
from aicache_tasks.records import HIT_STATUSES, CallInfo, EntryMeta

API: Final = "opentelemetry.trace"


def annotate_span(info: CallInfo, took: Callable[[], EntryMeta]) -> None:
    """Say on the current span how a call went; nothing if there is none that is recorded, or `API` is not loaded.

    Args:
        info: how it went.
        took: returns what the answer took when it was computed; asked only if somebody listens.
    """
    current = getattr(sys.modules.get(API), "get_current_span", None)
    if current is None:  # it may be half imported
        return
    span = current()
    if span.is_recording():
        span.set_attributes(attributes_of(info, took()))


def attributes_of(info: CallInfo, took: EntryMeta) -> dict[str, str | int | float]:
    """Return the attributes: times in ms or s as their names say, sizes in bytes, cost in your currency.

    >>> info = CallInfo("hit", "", "shout", "key", key_ms=0.5, get_ms=0.25, source="redis", age_s=60.0)
    >>> attributes_of(info, EntryMeta(usage={"input_tokens": 8, "output_tokens": 2}, compute_ns=1_500_000_000))
    ... # doctest: +NORMALIZE_WHITESPACE
    {'aicache.status': 'hit', 'aicache.operation': 'shout', 'aicache.key_ms': 0.5, 'aicache.get_ms': 0.25,
     'aicache.source': 'redis', 'aicache.age_s': 60.0, 'aicache.saved_s': 1.5, 'aicache.saved_tokens': 10}
    """
    is_hit = info.status in HIT_STATUSES
    ledger = "saved" if is_hit else "spent"
    said: dict[str, Any] = {
        "status": info.status,
        "reason": info.reason,
        "operation": info.operation,
        "key_ms": info.key_ms,
        "get_ms": info.get_ms,
        "compute_ms": info.compute_ms,
        "set_ms": info.set_ms,
        "set_status": info.set_status,
        "set_reason": info.set_reason,
        "raw_bytes": info.raw_bytes,
        "stored_bytes": info.stored_bytes,
        "source": info.source,
        "age_s": info.age_s,
        "saved_s": took.compute_ns / 1e9 if is_hit else 0,
        f"{ledger}_tokens": tokens_in(took.usage),
        f"{ledger}_cost": took.cost,
    }
    return {f"aicache.{name}": value for name, value in said.items() if value}
