"""
What is on its way: a batch, and the right to send it.

In: samples.   Out: how many of them make a batch.   Pure.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Final

from aicache_tasks.batches import MAX_BATCH_BYTES, MAX_SAMPLES
from aicache_tasks.records import Sample
from aicache_tasks.stores.base import REFUSED, Shipment

Outcome = int | BaseException
"""A `Receipt`, or what was raised instead of one."""

ROW_BYTES: Final = 250
"""What a sample takes in a batch beside its operation and metadata, at most."""

_OPERATION: Final = itemgetter(Sample._fields.index("operation"))
_META: Final = itemgetter(Sample._fields.index("meta"))


class Pending:
    """Samples under one number. ``data`` is made once; ``doubtful_s`` (monotonic) is when a reply was first lost."""

    __slots__ = ("data", "doubtful_s", "lost", "number", "samples")

    def __init__(self, number: int, lost: int) -> None:
        self.number, self.lost = number, lost
        self.samples: list[Sample] = []
        self.data: bytes | None = None
        self.doubtful_s: float | None = None


class Claim:
    """The right to send a batch, until a monotonic time."""

    __slots__ = ("batch", "shipment", "until_s")

    def __init__(self, batch: Pending, shipment: Shipment, until_s: float) -> None:
        self.batch, self.shipment, self.until_s = batch, shipment, until_s


def is_done(outcome: Outcome | None) -> bool:
    """Say whether the inbox acknowledged a batch."""
    return isinstance(outcome, int) and outcome != REFUSED


def fitting(samples: list[Sample]) -> int:
    """Return how many of the oldest samples make a batch: 256 unless their names or metadata are long.

    >>> fitting([Sample(1.0, "shout", "get", "hit", "", 40_000)] * 300)
    256
    """
    size = MAX_SAMPLES
    while size > 1:
        first = samples[:size]
        variable = sum(map(len, map(_META, first))) + 4 * sum(map(len, map(_OPERATION, first)))
        if variable + len(first) * ROW_BYTES < MAX_BATCH_BYTES:
            return len(first)
        size //= 2
    return size
