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
from aicache_tasks.ledger import OTHER, Ledger, tally
from aicache_tasks.records import HIT_STATUSES, EntryMeta
from aicache_tasks.summary import MAX_NAME_CHARS, SummaryRecord

WINDOWS_S: Final = {"minute": 60, "hour": 3600, "day": 86_400}
"""The lengths of the windows that records are kept for."""
WORKER_KEEP_S: Final = 3600
AHEAD_S: Final = 60
"""A clock that runs ahead by more is not believed."""

_ROWS_AT_ONCE: Final = 4096
"""How many rows are held before they are counted: what fits a core's cache is counted fastest."""
_LABEL_CHARS: Final = 64
_NO_META: Final = EntryMeta()
_MICROS: Final = 1_000_000
_MOST: Final = 2**53


class Keep(NamedTuple):
    """How long records of each window are kept, seconds."""

    minute: float = 172_800.0
    hour: float = 5_184_000.0
    day: float = 63_072_000.0


KEEP: Final = Keep()
_Kind = tuple[int, str, str, str, str, str]
"""Minute, operation, step, status, reason, tier."""


class Place(NamedTuple):
    """Which record: ``kind`` is ``minute``, ``hour``, ``day`` or ``total`` of an operation, or ``worker``."""

    kind: str
    name: str
    start: int


NOBODY: Final = Place("total", "", 0)
"""Where what is no operation's is counted: lost samples, batches and records that could not be read."""


class Names:
    """Names that may have records, as many as there is room for; the others share ``~other``.

    Args:
        known: those that have records.
        most: how many may have.

    >>> names = Names(["shout"], 2)
    >>> [names.place("whisper"), names.place("sing"), names.place("shout")]
    ['whisper', '~other', 'shout']
    """

    def __init__(self, known: Iterable[str], most: int) -> None:
        self._known, self._most = set(known), most

    def place(self, name: str) -> str:
        """Return the name under which *name* counts, from now on always the same."""
        name = name[:MAX_NAME_CHARS]
        if name not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(name)
        return name


class Fold:
    """What some batches add.

    Args:
        now_s: the server's time, seconds since the epoch.
        seen: the highest number counted so far of each process.
        operations: those that may have records.
        workers: the same of workers and producers.
        keep: how long records are kept.
        undecodable: how many entries beside the batches are none.
    """

    def __init__(
        self,
        now_s: float,
        seen: Mapping[bytes, int],
        operations: Names,
        workers: Names,
        keep: Keep = KEEP,
        undecodable: int = 0,
    ) -> None:
        self.seen, self.ended = dict(seen), set[bytes]()
        self.samples = self.batches = self.duplicates = self.lost = 0
        self._now_s, self._keep, self._operations, self._workers = now_s, keep, operations, workers
        self.undecodable, self._held = undecodable, 0
        self._rows: defaultdict[str, defaultdict[_Kind, list[Row]]] = defaultdict(lambda: defaultdict(list))
        self._minutes: dict[tuple[str, str, int], SummaryRecord] = {}

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
        rows = self._rows[batch.origin]
        for row in batch.rows:
            rows[int(row[0]) // 60, row[1], row[2], row[3], row[4], row[7]].append(row)
        self._held += len(batch.rows)
        if self._held >= _ROWS_AT_ONCE:
            self._count_held()

    def deltas(self) -> dict[Place, SummaryRecord]:
        """Return what is added to each record."""
        self._count_held()
        found: dict[Place, SummaryRecord] = {}
        for (worker, operation, start), record in self._minutes.items():
            for place in self._places_of(worker, operation, start):
                found.setdefault(place, SummaryRecord(place.name, place.kind, place.start)).merge(record)
        if self.lost or self.undecodable:
            record = found.setdefault(NOBODY, SummaryRecord("", "total", 0))
            record.lost += self.lost
            record.undecodable += self.undecodable
        return found

    def _count_held(self) -> None:
        """Count the rows that are held in the records of their minutes."""
        latest = int(self._now_s + AHEAD_S) // 60
        for origin, kinds in self._rows.items():
            worker = self._workers.place(origin)
            for (minute, operation, step, status, reason, tier), rows in kinds.items():
                start = 60 * (minute if minute <= latest else int(self._now_s) // 60)
                name = self._operations.place(operation)
                record = self._minutes.setdefault((worker, name, start), SummaryRecord(name, "minute", start))
                _count(record, step[:_LABEL_CHARS], status[:_LABEL_CHARS], reason[:_LABEL_CHARS], rows)
                if step == "get":
                    tally(record.tiers, tier[:_LABEL_CHARS], len(rows), OTHER)
        self._rows.clear()
        self._held = 0

    def _places_of(self, worker: str, operation: str, minute: int) -> Iterator[Place]:
        yield Place("total", operation, 0)
        for kind, length in WINDOWS_S.items():
            start = minute - minute % length
            if start + length > self._now_s - getattr(self._keep, kind):
                yield Place(kind, operation, start)
        if minute + WINDOWS_S["minute"] > self._now_s - WORKER_KEEP_S:
            yield Place("worker", worker, minute)


def _count(record: SummaryRecord, step: str, status: str, reason: str, rows: list[Row]) -> None:
    """Add *rows*, which agree in all that the other arguments say."""
    *_, durations, _, _, raw, stored, key_ns, decode_ns, ages, metas = zip(*rows, strict=True)
    record.count(step, status, reason, len(rows))
    if status != "disabled":  # what it took to see that the cache is switched off is no look-up
        _time(record, step, durations)
    if step == "get":
        _time_bundled(record, "key", key_ns)
        _time_bundled(record, "decode", decode_ns)
        if status in HIT_STATUSES:
            record.served_bytes += sum(raw)
            record.ages.add(ages)
            record.saved.compute_ns += _enter(record.saved, metas)
    elif step == "compute":
        _enter(record.spent, metas)
        record.spent.compute_ns += sum(durations)
    elif step == "set" and status == "success":
        record.raw_bytes += sum(raw)
        record.stored_bytes += sum(stored)
    elif step == "memory":
        record.memory_bytes = max(record.memory_bytes, *stored)


def _time(record: SummaryRecord, step: str, durations: Iterable[int]) -> None:
    """Add the durations that are timings: what took no time, such as a bypass, is only counted."""
    timed = [duration for duration in durations if duration]
    if timed:
        record.step(step).add(timed)


def _time_bundled(record: SummaryRecord, step: str, durations: Sequence[int]) -> None:
    """Add a step that the samples of another bear."""
    if timed := len(durations) - durations.count(0):
        record.count(step, "success", "", timed)
        _time(record, step, durations)


def _enter(ledger: Ledger, metas: Sequence[bytes]) -> int:
    """Add tokens and cost of each answer; return how long it took to compute them, ns. What is no count is left out.

    Hits of one entry have the same bytes.
    """
    compute_ns = 0
    for data, times in Counter(metas).items():
        meta = _meta(data)
        if 0 < meta.compute_ns <= _MOST:
            compute_ns += times * meta.compute_ns
        if meta.cost is not None:
            if 0 < meta.cost < _MOST / _MICROS:
                ledger.pay(meta.prices[:_LABEL_CHARS], times * round(meta.cost * _MICROS))
        elif meta.prices:
            ledger.miss_price((meta.model or "")[:_LABEL_CHARS], times)
        for name, tokens in (meta.usage or {}).items():
            if 0 < tokens <= _MOST:
                ledger.count(name[:_LABEL_CHARS], times * tokens)
    return compute_ns


def _meta(data: bytes) -> EntryMeta:
    try:
        return decode_meta(data) if data else _NO_META
    except CorruptPayload:  # somebody else's: the timing is sound
        return _NO_META
