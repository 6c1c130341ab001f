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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, repeat
from operator import mul
from typing import Final

from aicache_tasks.errors import CorruptPayload

PER_OCTAVE: Final = 35
"""Buckets between a value and its double."""
MAX_BUCKET: Final = 64 * PER_OCTAVE
"""No value of 64 bits lies above it."""
MAX_BUCKETS: Final = MAX_BUCKET + 2
"""How many there are, with the one of 0."""
_ZERO: Final = -1
_BEFORE_FIRST: Final = -2
_SEVEN_BITS: Final = 0x7F
_MORE: Final = 0x80
_MAX_SHIFT: Final = 63
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


# As bytes: short where buckets lie side by side and hold about the same.


def pack_buckets(spreads: Iterable[Counter[int]]) -> tuple[bytes, bytes]:
    """Return the buckets of some distributions in two strings of LEB128 numbers.

    The first has, for each bucket that is not empty, how many empty ones lie before it; the second how much more it
    holds than the one before, with the sign in the lowest bit.
    """
    gaps, fills = list[int](), list[int]()
    for buckets in spreads:
        last, held = _BEFORE_FIRST, 0
        for bucket, count in sorted(buckets.items()):
            gaps.append(bucket - last - 1)
            fills.append(2 * (count - held) if count >= held else 2 * (held - count) - 1)
            last, held = bucket, count
    return _leb128(gaps), _leb128(fills)


class PackedBuckets:
    """Takes the distributions out again, in order. What it reads may be anybody's.

    Args:
        gaps: as `pack_buckets` makes them.
        fills: the same.
    """

    def __init__(self, gaps: bytes, fills: bytes) -> None:
        self._gaps, self._fills = _from_leb128(gaps), _from_leb128(fills)

    def take(self, size: int) -> Counter[int]:
        """Return the next distribution, of *size* buckets.

        Raises:
            CorruptPayload: there are fewer, or one is not possible.
        """
        buckets, bucket, count = Counter[int](), _BEFORE_FIRST, 0
        for gap, fill in zip(islice(self._gaps, size), islice(self._fills, size), strict=False):
            bucket += gap + 1
            count += -(fill + 1) // 2 if fill % 2 else fill // 2
            buckets[bucket] = count
        if len(buckets) != size or bucket > MAX_BUCKET or min(buckets.values(), default=1) < 1:
            raise CorruptPayload("buckets of a summary record")
        return buckets

    def end(self) -> None:
        """Check that all was taken.

        Raises:
            CorruptPayload: there is more.
        """
        if next(self._gaps, None) is not None or next(self._fills, None) is not None:
            raise CorruptPayload("more buckets than a summary record has")


def _leb128(numbers: Iterable[int]) -> bytes:
    """Return *numbers* with seven bits to a byte, the high bit set in all but the last of each."""
    out = bytearray()
    for number in numbers:
        while number > _SEVEN_BITS:
            out.append(number & _SEVEN_BITS | _MORE)
            number >>= 7  # noqa: PLW2901 - what is left of it
        out.append(number)
    return bytes(out)


def _from_leb128(data: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        if shift > _MAX_SHIFT:  # a number of megabytes would take for ever
            raise CorruptPayload("a number of a summary record")
        number |= (byte & _SEVEN_BITS) << shift
        shift += 7
        if byte < _MORE:
            yield number
            number = shift = 0
