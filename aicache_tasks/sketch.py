"""
How values are spread, in log-spaced buckets.

In: whole numbers (nanoseconds, milliseconds).   Out: count, sum, least, greatest, and percentiles to 1 %.   Pure.

The buckets are those of DDSketch (Masson, Rim, Lee: VLDB 2019) with 35 to an octave: what lies in one bucket is within
0.99 % of the bucket's value, whatever its size. Adding two of them is adding their counts, so that it does not matter
in how many pieces, or in which order, the values came.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import repeat
from operator import mul
from typing import Final

PER_OCTAVE: Final = 35
"""Buckets between a value and its double."""
MAX_BUCKET: Final = 64 * PER_OCTAVE
"""No value of 64 bits lies above it."""
_ZERO: Final = -1
_PARTS: Final = 10**6
"""Percentiles are told apart to a millionth of a percent."""


def value_of(bucket: int, per_octave: int = PER_OCTAVE) -> float:
    """Return the value that is within 0.99 % of all values of *bucket*; bucket -1 is that of 0.

    >>> round(value_of(348))
    994
    """
    if bucket < 0:
        return 0.0
    low, high = 2 ** (bucket / per_octave), 2 ** ((bucket + 1) / per_octave)
    return 2 * low * high / (low + high)


@dataclass(slots=True)
class Distribution:
    """Values of one kind: exact ``count``, ``total``, ``low`` and ``high``; the rest to 1 %.

    >>> spread = Distribution()
    >>> spread.add([100, 200, 300, 400])
    >>> spread.count, spread.total, spread.low, spread.high, round(spread.percentile(50))
    (4, 1000, 100, 400, 200)
    """

    count: int = 0
    total: int = 0
    low: int = 0
    high: int = 0
    buckets: Counter[int] = field(default_factory=Counter)
    per_octave: int = PER_OCTAVE
    """Fewer take less room and are less exact: 8 are within 4.4 %."""

    def add(self, values: Iterable[int]) -> None:
        """Count each of *values*: whole numbers from 0 to 2**64.

        Raises:
            ValueError: one is negative; none is counted.
        """
        given = list(values)
        if not given:
            return
        if (low := min(given)) < 0:
            raise ValueError(f"values must be 0 or more, not {low}")
        # All in C: each value as a number of octaves, times buckets to an octave, cut to a whole number, counted.
        positive = filter(None, given)
        self.buckets.update(map(int, map(mul, map(math.log2, positive), repeat(self.per_octave))))
        if not low:
            self.buckets[_ZERO] += given.count(0)
        self._widen(low, max(given))
        self.count += len(given)
        self.total += sum(given)

    def merge(self, other: Distribution) -> None:
        """Add what *other* counted.

        Raises:
            ValueError: its buckets are of another width.
        """
        if self.per_octave != other.per_octave:
            raise ValueError(f"buckets of {other.per_octave} to an octave do not fit those of {self.per_octave}")
        if not other.count:
            return
        self._widen(other.low, other.high)
        self.count += other.count
        self.total += other.total
        self.buckets.update(other.buckets)

    def _widen(self, low: int, high: int) -> None:
        self.low = min(self.low, low) if self.count else low
        self.high = max(self.high, high)

    def percentile(self, percent: float) -> float:
        """Return the value that *percent* of the values do not exceed (nearest rank), 0.0 if there are none.

        Raises:
            ValueError: *percent* is not above 0 and at most 100.
        """
        if not 0 < percent <= 100:
            raise ValueError(f"percent must be above 0 and at most 100, not {percent!r}")
        rank = -(-self.count * round(percent * _PARTS) // (100 * _PARTS))  # in whole numbers: 99.9 % of 10**9 is exact
        for bucket, count in sorted(self.buckets.items()):
            rank -= count
            if rank <= 0:
                return float(min(max(value_of(bucket, self.per_octave), self.low), self.high))
        return float(self.high)

    @property
    def mean(self) -> float:
        """The mean, exact; 0.0 if there are no values."""
        return self.total / self.count if self.count else 0.0
