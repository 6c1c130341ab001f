"""
Questions over the summary records.

In: a span, operations, a resolution.   Out: records merged or one by one, two of them compared, the operations that
save most, what is so now. Reads only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from aicache_tasks.errors import SettingsError, StoreRefused
from aicache_tasks.invalidation import ADMIN_BUDGET_S
from aicache_tasks.parts import Parts
from aicache_tasks.prices import tokens_in
from aicache_tasks.recordstore import Backlog
from aicache_tasks.reports.spans import Cover, Span, cover, pieces_of, resolution_of, windows
from aicache_tasks.rollup import Keep
from aicache_tasks.stores.base import Budget, StoreInfo
from aicache_tasks.summaries import Progress, RolledUp, Summaries
from aicache_tasks.summary import SummaryRecord

ALL: Final = ""
"""The operation of a record that adds several."""
WINDOWS_AT_ONCE: Final = 240
"""How many records of an operation are in memory at once."""
_MINUTE_S: Final = 60
TRIES: Final = 5
"""How often `Reader.live` begins anew because a roll-up came between."""

TOPS: Final[Mapping[str, Callable[[SummaryRecord], float]]] = {
    "saved": lambda record: record.saved.compute_ns / 1e9,
    "cost": lambda record: record.saved.cost_micros / 1e6,
    "tokens": lambda record: tokens_in(record.saved.tokens),
    "lookups": lambda record: record.lookups,
    "misses": lambda record: record.misses,
    "slow": lambda record: record.percentile_ms("get", 95) or 0.0,
    "compute": lambda record: record.percentile_ms("compute", 95) or 0.0,
}
"""What operations can be ordered by: seconds, money and tokens saved, look-ups, misses, and p95 of look-ups and of
bodies in ms."""


class Merged(NamedTuple):
    """Each operation's record of a span."""

    cover: Cover
    records: dict[str, SummaryRecord]
    """By operation, in the order of their names; operations of which nothing was recorded are not there."""


class Change(NamedTuple):
    """One figure of two spans; None where there is none."""

    name: str
    before: float | None
    now: float | None

    @property
    def ratio(self) -> float | None:
        """now / before."""
        return None if self.now is None or not self.before else self.now / self.before

    @property
    def difference(self) -> float | None:
        """now - before."""
        return None if self.now is None or self.before is None else self.now - self.before


class Live(NamedTuple):
    """What is so now."""

    at_s: float
    totals: dict[str, SummaryRecord]
    """Since the first sample, with what waits in the inbox."""
    workers: dict[str, list[SummaryRecord]]
    """The minutes of the last hour of each worker and producer, with what waits in the inbox."""
    backlog: Backlog
    waiting: RolledUp
    """What the next roll-up would count."""
    store: StoreInfo | None
    """None if its user may not ask."""
    is_exact: bool = True
    """False if roll-ups counted all the while: some of what waited may be in neither part of the totals."""
    is_switched_off: bool = False
    """Whether ``cache_mode`` has switched the cache off."""


class Reader:
    """Asks one cache's records.

    Args:
        parts: of the cache.
        now_s: the clock, seconds since the epoch.

    Raises:
        SettingsError: the cache is in memory: there are no records.
    """

    def __init__(self, parts: Parts, now_s: Callable[[], float] = time.time) -> None:
        self.summaries = Summaries(parts)
        self.now_s = now_s
        self.settings = settings = parts.settings
        self.keep = Keep(settings.keep_minutes_s, settings.keep_hours_s, settings.keep_days_s)
        self._store, self._mode = parts.store, parts.mode

    def merge(self, span: Span, operations: Iterable[str] | None = None) -> Merged:
        """Return the record of each operation over *span*, in as few reads as its cover has pieces.

        Args:
            span: from when to when.
            operations: by default all.
        """
        covered = cover(span, self.now_s(), self.keep)
        merged = {name: self._merged(covered, name) for name in self._names(operations)}
        return Merged(covered, {name: record for name, record in merged.items() if not _is_empty(record)})

    def before_and_now(
        self, span: Span, back_s: float, operations: Iterable[str] | None = None
    ) -> tuple[Merged, Merged]:
        """Return `merge` of *span*, and of the span as long that was *back_s* seconds before.

        Both are of whole minutes, so that they are as long as each other: the minute that has just begun is in neither.

        Raises:
            SettingsError: the two would overlap, or are shorter than a minute.
        """
        if back_s < span.length_s:
            raise SettingsError("--compare: must be as long as the span at least")
        if span.length_s < _MINUTE_S:
            raise SettingsError("--compare: must be a minute at least")
        span = Span(span.start_s // _MINUTE_S * _MINUTE_S, span.end_s // _MINUTE_S * _MINUTE_S)
        back_s = -(-back_s // _MINUTE_S) * _MINUTE_S
        now = self.merge(span, operations)
        # Where minutes are no longer kept the later span may begin before it was asked to: nothing counts in both.
        end_s = min(span.end_s - back_s, now.cover.span.start_s)
        return now, self.merge(Span(span.start_s - back_s, end_s), operations)

    def _merged(self, covered: Cover, operation: str) -> SummaryRecord:
        total = SummaryRecord(operation, "span", int(covered.span.start_s))
        for record in self._records(covered, operation):
            total.merge(record)
        return total

    def each(self, span: Span, resolution: str, operations: Iterable[str] | None = None) -> Iterator[SummaryRecord]:
        """Yield the records of the windows of *resolution* that *span* touches, as far as they are kept."""
        found = self.windows(span, resolution)
        for name in self._names(operations):
            yield from self._records(found, name)

    def windows(self, span: Span, resolution: str) -> Cover:
        """Return what `each` covers."""
        return windows(span, resolution, self.now_s(), self.keep)

    def resolution_of(self, span: Span) -> str:
        """Return the windows that show *span* best."""
        return resolution_of(span, self.now_s(), self.keep)

    def live(self, progress: Progress | None = None) -> Live:
        """Return lifetime totals with what waits, the workers' last hour, the backlog and the server's state."""
        for _ in range(TRIES):
            before, workers = self.summaries.totals(), self.summaries.workers()
            waiting = self.summaries.preview(progress=progress)
            if is_exact := self.summaries.totals() == before:  # else a roll-up may have counted what was waiting
                break
        return Live(
            self.now_s(),
            _added(before, waiting.totals),
            _with_waiting(workers, waiting.workers),
            self.summaries.backlog(),
            waiting,
            self.server(),
            is_exact,
            self._mode.seems_off(Budget(ADMIN_BUDGET_S)),
        )

    def server(self) -> StoreInfo | None:
        """Return what the server says about itself, None if its user may not ask."""
        try:
            return self._store.info(Budget(ADMIN_BUDGET_S))
        except StoreRefused:
            return None

    def _names(self, operations: Iterable[str] | None) -> Sequence[str]:
        return self.summaries.operations() if operations is None else sorted(set(operations))

    def _records(self, covered: Cover, operation: str) -> Iterator[SummaryRecord]:
        for piece in covered.pieces:
            for part in pieces_of(piece, WINDOWS_AT_ONCE):
                yield from self.summaries.read(operation, part.resolution, part.start_s, part.end_s)


def total_of(records: Iterable[SummaryRecord], operation: str = ALL) -> SummaryRecord:
    """Return the sum of *records*."""
    total = SummaryRecord(operation, "span", 0)
    for record in records:
        total.merge(record)
    return total


def compare(now: SummaryRecord, before: SummaryRecord) -> list[Change]:
    """Return the figures of two records side by side.

    >>> busy, idle = SummaryRecord("shout", "span", 0), SummaryRecord("shout", "span", 0)
    >>> busy.counts["get", "hit", ""], idle.counts["get", "hit", ""] = 30, 10
    >>> compare(busy, idle)[0].ratio
    3.0
    """
    return [Change(name, figure(before), figure(now)) for name, figure in FIGURES.items()]


FIGURES: Final[Mapping[str, Callable[[SummaryRecord], float | None]]] = {
    "lookups": lambda record: record.lookups,
    "hit_rate": lambda record: record.hit_rate,
    "errors": lambda record: record.of("get", "error"),
    "get_p50_ms": lambda record: record.percentile_ms("get", 50),
    "get_p95_ms": lambda record: record.percentile_ms("get", 95),
    "get_p99_ms": lambda record: record.percentile_ms("get", 99),
    "compute_p50_ms": lambda record: record.percentile_ms("compute", 50),
    "compute_p95_ms": lambda record: record.percentile_ms("compute", 95),
    "saved_seconds": TOPS["saved"],
    "saved_tokens": TOPS["tokens"],
    "saved_cost": TOPS["cost"],
    "spent_seconds": lambda record: record.spent.compute_ns / 1e9,
    "spent_cost": lambda record: record.spent.cost_micros / 1e6,
    "stored_bytes": lambda record: record.stored_bytes,
}
"""What `compare` puts side by side."""


def top(records: Iterable[SummaryRecord], by: str, most: int = 10) -> list[tuple[SummaryRecord, float]]:
    """Return the *most* operations with the highest figure *by*, one of `TOPS`; those of 0 are left out."""
    figured = [(record, TOPS[by](record)) for record in records]
    return sorted((pair for pair in figured if pair[1]), key=lambda pair: (-pair[1], pair[0].operation))[:most]


def _added(totals: Mapping[str, SummaryRecord], more: Mapping[str, SummaryRecord]) -> dict[str, SummaryRecord]:
    added: dict[str, SummaryRecord] = {}
    for name in sorted({*totals, *more}):
        added[name] = SummaryRecord(name, "total", 0)
        for records in (totals, more):
            if name in records:
                added[name].merge(records[name])
    return added


def _with_waiting(
    workers: Mapping[str, Iterable[SummaryRecord]], waiting: Mapping[str, Mapping[int, SummaryRecord]]
) -> dict[str, list[SummaryRecord]]:
    """Return the minutes of each worker, with those that wait added."""
    added: dict[str, list[SummaryRecord]] = {}
    for name in sorted({*workers, *waiting}):
        minutes: dict[int, SummaryRecord] = {minute.start: minute for minute in workers.get(name, ())}
        for start, more in waiting.get(name, {}).items():
            minutes.setdefault(start, SummaryRecord(name, "minute", start)).merge(more)
        added[name] = [minutes[start] for start in sorted(minutes)]
    return added


def _is_empty(record: SummaryRecord) -> bool:
    return not (record.counts or record.lost or record.damaged)
