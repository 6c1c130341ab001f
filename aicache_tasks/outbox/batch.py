"""
What is on its way: a batch, and the right to send it.

In: samples, and what became of them.   Out: whether they are done.   Pure.
"""

from __future__ import annotations

from aicache_tasks.records import Sample
from aicache_tasks.stores.base import REFUSED, Shipment

Outcome = int | BaseException
"""A `Receipt`, or what was raised instead of one."""


class Pending:
    """Samples under one number. ``data`` is made once; ``doubtful_s`` (monotonic) is when a reply was first lost."""

    __slots__ = ("data", "doubtful_s", "is_last", "lost", "number", "samples")

    def __init__(self, number: int, lost: int) -> None:
        self.number, self.lost = number, lost
        self.samples: list[Sample] = []
        self.data: bytes | None = None
        self.doubtful_s: float | None = None
        self.is_last = False


class Claim:
    """The right to send a batch, until a monotonic time."""

    __slots__ = ("batch", "shipment", "until_s")

    def __init__(self, batch: Pending, shipment: Shipment, until_s: float) -> None:
        self.batch, self.shipment, self.until_s = batch, shipment, until_s


def is_done(outcome: Outcome | None) -> bool:
    """Say whether the inbox acknowledged a batch."""
    return isinstance(outcome, int) and outcome != REFUSED
