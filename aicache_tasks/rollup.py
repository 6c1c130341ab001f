"""
Samples to records.

In: batches, what was counted before, the time.   Out: what they add to which records.   Pure.

A batch whose number its process has reached before is a batch that was sent twice: it adds nothing. Samples count in
the window of their own time, however late they come; only windows that are no longer kept are left out. A sample from
a clock that runs ahead counts in the window of now.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from aicache_tasks.batches import Batch, Row
from aicache_tasks.codec import decode_meta
from aicache_tasks.errors import CorruptPayload
from aicache_tasks.records import HIT_STATUSES, EntryMeta
from aicache_tasks.summary import MAX_NAME_CHARS, OTHER, Ledger, SummaryRecord

WINDOWS_S: Final = {"minute": 60, "hour": 3600, "day": 86_400}
"""The lengths of the windows that records are kept for."""
WORKER_KEEP_S: Final = 3600
AHEAD_S: Final = 60
"""A clock that runs ahead by more is not believed."""

_LABEL_CHARS: Final = 64
NO_META: Final = EntryMeta()
_MICROS: Final = 1_000_000
_MOST: Final = 2**53


class Keep(NamedTuple):
    """How long records of each window are kept, seconds."""

    minute: float = 172_800.0
    hour: float = 5_184_000.0
    day: float = 63_072_000.0


KEEP: Final = Keep()
_Group = tuple[int, str, str, str, str, str]
"""Minute, operation, step, status, reason, tier."""


class Place(NamedTuple):
    """Which record: ``kind`` is ``minute``, ``hour``, ``day`` or ``total`` of an operation, or ``worker``."""

    kind: str
    name: str
    start: int


_LOST: Final = Place("total", "", 0)


class Fold:
    """What some batches add.

    Args:
        now_s: the server's time, seconds since the epoch.
        seen: the highest number counted so far of each process.
        operations: those that have records; an operation beyond *max_operations* counts under ``~other``.
        keep: how long records are kept.
        max_operations: how many operations may have records.
    """

    def __init__(
        self,
        now_s: float,
        seen: Mapping[bytes, int],
        operations: Iterable[str] = (),
        keep: Keep = KEEP,
        max_operations: int = 1000,
    ) -> None:
        self.seen, self.ended = dict(seen), set[bytes]()
        self.samples = self.batches = self.duplicates = self.lost = 0
        self._now_s, self._keep = now_s, keep
        self._operations, self._max_operations = set(operations), max_operations
        self._groups: defaultdict[str, defaultdict[_Group, list[Row]]] = defaultdict(lambda: defaultdict(list))

    def add(self, batch: Batch) -> None:
        """Count *batch*, unless it was counted before."""
        if batch.number <= self.seen.get(batch.process, 0):
            self.duplicates += 1
            return
        self.seen[batch.process] = batch.number
        if batch.last:
            self.ended.add(batch.process)
        self.batches += 1
        self.samples += len(batch.rows)
        self.lost += batch.lost
        groups = self._groups[batch.origin[:MAX_NAME_CHARS]]
        for row in batch.rows:
            groups[int(row[0]) // 60, row[1], row[2], row[3], row[4], row[7]].append(row)

    def deltas(self) -> dict[Place, SummaryRecord]:
        """Return what is added to each record."""
        found: dict[Place, SummaryRecord] = {}
        for origin, groups in self._groups.items():
            for (operation, minute), record in self._counted(groups).items():
                for place in self._places_of(origin, operation, minute):
                    found.setdefault(place, SummaryRecord(place.name, place.kind, place.start)).merge(record)
        if self.lost:
            found.setdefault(_LOST, SummaryRecord("", "total", 0)).lost += self.lost
        return found

    def _counted(self, groups: Mapping[_Group, list[Row]]) -> dict[tuple[str, int], SummaryRecord]:
        """Return one origin's records of minutes."""
        minutes: dict[tuple[str, int], SummaryRecord] = {}
        latest = int(self._now_s + AHEAD_S) // 60
        for (minute, operation, step, status, reason, tier), rows in groups.items():
            start = 60 * (minute if minute <= latest else int(self._now_s) // 60)
            name = self._known(operation[:MAX_NAME_CHARS])
            record = minutes.setdefault((name, start), SummaryRecord(name, "minute", start))
            _count(record, step, status, reason, tier, rows)
        return minutes

    def _places_of(self, origin: str, operation: str, minute: int) -> Iterator[Place]:
        yield Place("total", operation, 0)
        for kind, length in WINDOWS_S.items():
            start = minute - minute % length
            if start + length > self._now_s - getattr(self._keep, kind):
                yield Place(kind, operation, start)
        if minute + WINDOWS_S["minute"] > self._now_s - WORKER_KEEP_S:
            yield Place("worker", origin, minute)

    def _known(self, operation: str) -> str:
        if operation not in self._operations:
            if len(self._operations) >= self._max_operations:
                return OTHER
            self._operations.add(operation)
        return operation


def _count(record: SummaryRecord, step: str, status: str, reason: str, tier: str, rows: list[Row]) -> None:
    """Add *rows*, which agree in all that the other arguments say."""
    step, status, reason, tier = (label[:_LABEL_CHARS] for label in (step, status, reason, tier))
    *_, durations, _, _, raw, stored, key_ns, decode_ns, ages, metas = zip(*rows, strict=True)
    added = SummaryRecord(record.operation, "minute", record.start)
    added.counts[step, status, reason] = len(rows)
    _time(added, step, durations)
    if step == "get":
        added.tiers[tier] = len(rows)
        _time_bundled(added, "key", key_ns)
        _time_bundled(added, "decode", decode_ns)
        if status in HIT_STATUSES:
            added.served_bytes = sum(raw)
            added.ages.add(ages)
            _enter(added.saved, metas)
    elif step == "compute":
        _enter(added.spent, metas)
        added.spent.compute_ns = sum(durations)
    elif step == "set" and status == "success":
        added.raw_bytes, added.stored_bytes = sum(raw), sum(stored)
    elif step == "memory":
        added.memory_bytes = max(stored)
    record.merge(added)


def _time(record: SummaryRecord, step: str, durations: Iterable[int]) -> None:
    """Add the durations that are timings: what took no time, such as a bypass, is only counted."""
    timed = [duration for duration in durations if duration]
    if timed:
        record.step(step).add(timed)


def _time_bundled(record: SummaryRecord, step: str, durations: Sequence[int]) -> None:
    """Add a step that the samples of another bear."""
    _time(record, step, durations)
    if step in record.steps:
        record.counts[step, "success", ""] = record.steps[step].count


def _enter(ledger: Ledger, metas: Sequence[bytes]) -> None:
    """Add what each answer took; hits of one entry have the same bytes. What is no count is left out."""
    for data, times in Counter(metas).items():
        meta = _meta(data)
        if 0 < meta.compute_ns <= _MOST:
            ledger.compute_ns += times * meta.compute_ns
        if meta.cost is not None and 0 < meta.cost < _MOST / _MICROS:
            ledger.cost_micros += times * round(meta.cost * _MICROS)
        if meta.usage:
            for name, count in meta.usage.items():
                if 0 < count <= _MOST:
                    ledger.tokens[name[:_LABEL_CHARS]] += times * count


def _meta(data: bytes) -> EntryMeta:
    try:
        return decode_meta(data) if data else NO_META
    except CorruptPayload:  # somebody else's: the timing is sound
        return NO_META
