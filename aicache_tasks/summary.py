"""
`SummaryRecord`: what one operation did in one window.

In: counts and distributions.   Out: the same merged, as bytes for Redis, as JSON for people.   Pure.

Merging is addition: an hour's record is the sum of its minutes', in any order. Every number is whole, so that sums stay
exact. Records come back from a server that others may write to: lengths, types and labels are checked.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from aicache_tasks.errors import CorruptPayload, UnknownPayload
from aicache_tasks.ledger import MAX_KINDS, MAX_NAMES, OTHER, Ledger, add, room, tally
from aicache_tasks.records import HIT_STATUSES
from aicache_tasks.sketch import MAX_BUCKETS, PER_OCTAVE, Distribution, PackedBuckets, pack_buckets

SCHEMA: Final = 2
"""Version of the JSON; docs/summary-record.schema.json describes it."""
FORMAT: Final = 1
"""Version of the bytes, which stays as long as an older version can read what a newer one writes."""
PERCENTILES: Final = (50, 90, 95, 99)
_OTHERS: Final = (OTHER, OTHER, "")
MAX_NAME_CHARS: Final = 200
MAX_RECORD_BYTES: Final = 2**20
AGES_PER_OCTAVE: Final = 8
_LEVEL: Final = 6
_WORDS: Final = (
    b"\x94\xaainvalidate\xa7success\xa0\x94\xa6memory\xa7success\xa0\x94\xa3set\xa7skipped\xa8store_if"
    b"\x94\xa3set\xa6failed\xabredis_error\x94\xa3get\xa5error\xb7redis_connection_failed\x94\xa3get\xacbreaker_open"
    b"\x94\xa3get\xa6bypass\xa0\x94\xa3get\xa7refresh\xa0\x94\xa3get\xa6joined\xa0\x94\xa3get\xa5stale\xa0\xa6medium"
    b"\xa6xlarge\x94\xa7compute\xa7success\xa0\x94\xa8compress\xa7success\xa0\x94\xa6decode\xa7success\xa0"
    b"\x94\xa3get\xa3hit\xa0\x94\xa3get\xa4miss\xa7expired\x94\xa3get\xa4miss\xabinvalidated"
    b"\x94\xa3get\xa4miss\xadkey_not_found\x94\xa3key\xa7success\xa0\x94\xa3set\xa7success\xa0"
    b"\x86\xa8compress\x95\xa7compute\x95\xa6decode\x95\xa3get\x95\xa3key\x95\xa3set\x95"
    b"\x83\xa5large\xa6medium\xa5small\x97\xce\x93\xcf\x00\x00\x82\xacinput_tokens\xcd\xadoutput_tokens\xcd"
    b"\x93\xcf\x00\x00\x82\xacinput_tokens\xcd\xadoutput_tokens\xcd\xce\x00"
)
"""What records usually say, in MessagePack, for zlib: it saves a third of a quiet minute. Part of the format."""
_HEAD: Final = b"aR" + bytes((FORMAT,))
_MOST: Final = 2**63 - 1

_Whole = Annotated[int, Meta(ge=0, le=_MOST)]
_Text = Annotated[str, Meta(max_length=4 * MAX_NAME_CHARS)]
_Names = Meta(max_length=MAX_NAMES + 1)


@dataclass(slots=True)
class SummaryRecord:
    """One operation in one window of time; see the module's text.

    ``operation`` is "" for what concerns all, such as the invalidation of a tag. ``start`` is in seconds since the
    epoch, ``resolution`` one of ``minute``, ``hour``, ``day``, ``total``, ``span``.

    >>> record = SummaryRecord("shout", "minute", 0)
    >>> record.counts["get", "hit", ""] += 3
    >>> record.counts["get", "miss", "key_not_found"] += 1
    >>> record.hits, record.lookups, record.hit_rate
    (3, 4, 0.75)
    """

    operation: str
    resolution: str
    start: int
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """How often each (step, status, reason) was."""
    steps: dict[str, Distribution] = field(default_factory=dict)
    """Durations of each step, ns."""
    ages: Distribution = field(default_factory=lambda: Distribution(per_octave=AGES_PER_OCTAVE))
    """Ages of the answers at their hits, ms; percentiles to 4.4 %."""
    tiers: Counter[str] = field(default_factory=Counter)
    """Look-ups by the text's tier."""
    raw_bytes: int = 0
    """Of the answers that were stored."""
    stored_bytes: int = 0
    served_bytes: int = 0
    """Raw bytes of the hits."""
    memory_bytes: int = 0
    """The largest size of the cache that was measured."""
    lost: int = 0
    """Samples that processes had no room for, or could not send."""
    undecodable: int = 0
    """Batches that a roll-up could not read and set aside."""
    damaged: int = 0
    """Records that could not be read: those that a roll-up set aside and began anew, and, as it is read, itself."""
    saved: Ledger = field(default_factory=Ledger)
    spent: Ledger = field(default_factory=Ledger)

    # What people ask for first.

    def of(self, step: str, *statuses: str) -> int:
        """Return how often *step* was, with one of *statuses* if any is given."""
        return sum(
            n for (name, status, _), n in self.counts.items() if name == step and status in (statuses or (status,))
        )

    @property
    def hits(self) -> int:
        """Look-ups that were answered: hit, stale or joined."""
        return self.of("get", *HIT_STATUSES)

    @property
    def misses(self) -> int:
        """Look-ups that found nothing."""
        return self.of("get", "miss")

    @property
    def lookups(self) -> int:
        """Hits and misses."""
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float | None:
        """hits / (hits + misses), None if there was neither."""
        return self.hits / self.lookups if self.lookups else None

    def percentile_ms(self, step: str, percent: float) -> float | None:
        """Return a percentile of a step's durations in ms, None if the step was not timed."""
        spread = self.steps.get(step)
        return None if spread is None or not spread.count else spread.percentile(percent) / 1e6

    # Adding.

    def count(self, step: str, status: str, reason: str, times: int) -> None:
        """Count that *step* was so *times*."""
        tally(self.counts, (step, status, reason), times, _OTHERS)

    def merge(self, other: SummaryRecord) -> None:
        """Add what *other* counted; its operation and window do not matter."""
        add(self.counts, other.counts, _OTHERS)
        for step, spread in other.steps.items():
            self.step(step).merge(spread)
        self.ages.merge(other.ages)
        add(self.tiers, other.tiers, OTHER)
        self.raw_bytes += other.raw_bytes
        self.stored_bytes += other.stored_bytes
        self.served_bytes += other.served_bytes
        self.memory_bytes = max(self.memory_bytes, other.memory_bytes)
        self.lost += other.lost
        self.undecodable += other.undecodable
        self.damaged += other.damaged
        self.saved.merge(other.saved)
        self.spent.merge(other.spent)

    def step(self, name: str) -> Distribution:
        """Return the durations of a step, made when first asked for."""
        return self.steps.setdefault(room(self.steps, name, OTHER), Distribution())

    # As bytes.

    def pack(self) -> bytes:
        """Return the record without its name and window, which its place in Redis says."""
        deflater = zlib.compressobj(_LEVEL, zdict=_WORDS)
        return _HEAD + deflater.compress(_encoder.encode(_packed(self))) + deflater.flush()

    @classmethod
    def unpack(cls, data: bytes, operation: str, resolution: str, start: int) -> SummaryRecord:
        """Return the record in *data*.

        Raises:
            UnknownPayload: made by another version.
            CorruptPayload: no record.
        """
        if len(data) < len(_HEAD) or data[:2] != _HEAD[:2]:
            raise CorruptPayload("no summary record")
        if data[2] != FORMAT:
            raise UnknownPayload(f"summary record of version {data[2]}, not {FORMAT}")
        try:
            return _unpacked(_decoder.decode(_inflated(data[3:])), operation, resolution, start)
        except (ValueError, RecursionError, zlib.error):  # its text may quote what was read
            raise CorruptPayload("no summary record") from None

    # As JSON.

    def as_json(self, *, sketches: bool = True) -> dict[str, Any]:
        """Return plain JSON data; *sketches* adds the buckets that percentiles come from."""
        return {
            "schema": SCHEMA,
            "operation": self.operation,
            "resolution": self.resolution,
            "start": datetime.fromtimestamp(self.start, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "hits": self.hits,
            "misses": self.misses,
            "hit_rate": self.hit_rate,
            "counts": _nested(self.counts),
            "steps": {step: _spread_json(spread, "ns", sketches) for step, spread in sorted(self.steps.items())},
            "age_at_hit": _spread_json(self.ages, "ms", sketches),
            "text_tiers": dict(sorted(self.tiers.items())),
            "bytes": {"raw": self.raw_bytes, "stored": self.stored_bytes, "served": self.served_bytes},
            "memory_bytes": self.memory_bytes,
            "lost_samples": self.lost,
            "undecodable_batches": self.undecodable,
            "damaged_records": self.damaged,
            "saved": self.saved.as_json(),
            "spent": self.spent.as_json(),
        }


def _nested(counts: Mapping[tuple[str, str, str], int]) -> dict[str, dict[str, dict[str, int]]]:
    nested: dict[str, dict[str, dict[str, int]]] = {}
    for (step, status, reason), count in sorted(counts.items()):
        nested.setdefault(step, {}).setdefault(status, {})[reason] = count
    return nested


def _spread_json(spread: Distribution, unit: str, sketch: bool) -> dict[str, Any]:
    figures = {
        "count": spread.count,
        f"sum_{unit}": spread.total,
        f"min_{unit}": spread.low,
        f"max_{unit}": spread.high,
        **{f"p{percent}_{unit}": spread.percentile(percent) for percent in PERCENTILES},
    }
    return figures | {"sketch": {str(b): n for b, n in sorted(spread.buckets.items())}} if sketch else figures


# The bytes. A newer version may add fields at the end.


class _Spread(msgspec.Struct, array_like=True):
    count: _Whole
    total: _Whole
    low: _Whole
    high: _Whole
    buckets: Annotated[int, Meta(ge=0, le=MAX_BUCKETS)]
    """How many of the record's gaps and counts are this one's."""


class _LedgerBytes(msgspec.Struct, array_like=True):
    compute_ns: _Whole
    tokens: Annotated[dict[_Text, _Whole], Meta(max_length=MAX_KINDS + 1)]
    cost_micros: _Whole
    """In all, which is what a version reads that does not know the next field."""
    costs: Annotated[dict[_Text, _Whole], _Names] = msgspec.field(default_factory=dict)
    unpriced: Annotated[dict[_Text, _Whole], _Names] = msgspec.field(default_factory=dict)


class _RecordBytes(msgspec.Struct, array_like=True):
    counts: Annotated[list[tuple[_Text, _Text, _Text, _Whole]], _Names]
    steps: Annotated[dict[_Text, _Spread], _Names]
    ages: _Spread
    tiers: Annotated[dict[_Text, _Whole], _Names]
    sizes: tuple[_Whole, _Whole, _Whole, _Whole, _Whole, _Whole, _Whole]
    saved: _LedgerBytes
    spent: _LedgerBytes
    gaps: bytes
    """Of all steps and then the ages, as `pack_buckets` makes them."""
    fills: bytes


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_RecordBytes)


def _packed(record: SummaryRecord) -> _RecordBytes:
    steps = sorted(record.steps.items())
    spreads = [*(spread for _, spread in steps), record.ages]
    return _RecordBytes(
        [(*names, _bounded(count)) for names, count in sorted(record.counts.items())],
        {step: _packed_spread(spread) for step, spread in steps},
        _packed_spread(record.ages),
        {tier: _bounded(count) for tier, count in sorted(record.tiers.items())},
        (
            _bounded(record.raw_bytes),
            _bounded(record.stored_bytes),
            _bounded(record.served_bytes),
            _bounded(record.memory_bytes),
            _bounded(record.lost),
            _bounded(record.undecodable),
            _bounded(record.damaged),
        ),
        _packed_ledger(record.saved),
        _packed_ledger(record.spent),
        *pack_buckets(spread.buckets for spread in spreads),
    )


def _unpacked(held: _RecordBytes, operation: str, resolution: str, start: int) -> SummaryRecord:
    packed = PackedBuckets(held.gaps, held.fills)
    record = SummaryRecord(
        operation,
        resolution,
        start,
        Counter({(step, status, reason): count for step, status, reason, count in held.counts}),
        {step: _unpacked_spread(spread, packed) for step, spread in held.steps.items()},
        _unpacked_spread(held.ages, packed, AGES_PER_OCTAVE),
        Counter(held.tiers),
        *held.sizes,
        _unpacked_ledger(held.saved),
        _unpacked_ledger(held.spent),
    )
    packed.end()
    return record


def _packed_spread(spread: Distribution) -> _Spread:
    return _Spread(spread.count, _bounded(spread.total), spread.low, spread.high, len(spread.buckets))


def _unpacked_spread(held: _Spread, packed: PackedBuckets, per_octave: int = PER_OCTAVE) -> Distribution:
    buckets = packed.take(held.buckets)
    if buckets.total() != held.count:
        raise CorruptPayload("buckets of a summary record")
    return Distribution(held.count, held.total, held.low, held.high, buckets, per_octave)


def _packed_ledger(ledger: Ledger) -> _LedgerBytes:
    tokens, costs, unpriced = (_packed_names(names) for names in (ledger.tokens, ledger.costs, ledger.unpriced))
    return _LedgerBytes(_bounded(ledger.compute_ns), tokens, _bounded(ledger.cost_micros), costs, unpriced)


def _packed_names(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: _bounded(count) for name, count in sorted(counts.items())}


def _unpacked_ledger(held: _LedgerBytes) -> Ledger:
    ledger = Ledger(held.compute_ns, Counter(held.tokens), Counter(held.costs), Counter(held.unpriced))
    if (said := held.cost_micros - ledger.cost_micros) > 0:  # an older version's, which knows of no prices
        ledger.pay("", said)
    return ledger


def _bounded(number: int) -> int:
    """Return *number*, or the most that fits: what somebody else wrote must not stop the sums."""
    return min(number, _MOST)


def _inflated(body: bytes) -> bytes:
    inflater = zlib.decompressobj(zdict=_WORDS)
    raw = inflater.decompress(body, MAX_RECORD_BYTES)
    if not inflater.eof or inflater.unused_data:
        raise CorruptPayload("length of a summary record")
    return raw
