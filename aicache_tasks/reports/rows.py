"""
Records in rows.

In: records, and what to tell apart.   Out: rows of figures, of timings, or of counts.   Pure.

What is told apart decides what a row can say: durations are kept by step, not by status.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from aicache_tasks.reports.wording import iso
from aicache_tasks.sketch import Distribution
from aicache_tasks.summary import PERCENTILES, SummaryRecord

_IDENTITY: Final = ("schema", "operation", "resolution", "start")

DIMENSIONS: Final = ("window", "operation", "step", "status", "reason")

Group = tuple[str, ...]
"""A value for each of what is told apart, in the order of `DIMENSIONS`."""


class Counted(NamedTuple):
    """How often, and of how many in the same step."""

    times: int
    of: int

    @property
    def share(self) -> float:
        """times / of."""
        return self.times / self.of if self.of else 0.0


def dimensions(asked: Iterable[str]) -> tuple[str, ...]:
    """Return *asked* in order, each once. A status is one of a step, a reason one of a status: they come along.

    >>> dimensions(["reason", "operation"])
    ('operation', 'step', 'status', 'reason')
    """
    wanted = set(asked)
    if "reason" in wanted:
        wanted.add("status")
    if "status" in wanted:
        wanted.add("step")
    return tuple(name for name in DIMENSIONS if name in wanted)


def figures(records: Iterable[SummaryRecord], by: Sequence[str]) -> dict[Group, SummaryRecord]:
    """Return one record for each window and operation that is told apart; *by* has no other."""
    found: dict[Group, SummaryRecord] = {}
    for record in records:
        group = _where(record, by)
        total = found.setdefault(group, SummaryRecord(record.operation, "span", record.start))
        total.merge(record)
    return dict(sorted(found.items()))


def timings(records: Iterable[SummaryRecord], by: Sequence[str]) -> dict[Group, Distribution]:
    """Return the durations, ns, of each step and what else is told apart; *by* ends with ``step``."""
    found: dict[Group, Distribution] = {}
    for record in records:
        for step, spread in record.steps.items():
            found.setdefault((*_where(record, by), step), Distribution()).merge(spread)
    return dict(sorted(found.items()))


def counts(records: Iterable[SummaryRecord], by: Sequence[str]) -> dict[Group, Counted]:
    """Return how often each status, or reason, was; *by* ends with ``status`` or ``reason``."""
    found, of = Counter[Group](), Counter[Group]()
    for record in records:
        where = _where(record, by)
        for names, count in record.counts.items():
            found[where + (names if "reason" in by else names[:2])] += count
            of[*where, names[0]] += count
    until = by.index("step") + 1
    return {group: Counted(count, of[group[:until]]) for group, count in sorted(found.items())}


def rows_of(
    records: Iterable[SummaryRecord], by: Sequence[str]
) -> Mapping[Group, SummaryRecord | Distribution | Counted]:
    """Return the rows that *by*, from `dimensions`, asks for."""
    make: Callable[..., Mapping[Group, Any]] = counts if "status" in by else timings if "step" in by else figures
    return make(records, by)


def as_json(rows: Mapping[Group, SummaryRecord | Distribution | Counted], by: Sequence[str]) -> list[dict[str, Any]]:
    """Return plain JSON data: of each row what it is of, and its figures as in a record."""
    return [dict(zip(by, group, strict=True)) | _row_json(row) for group, row in rows.items()]


def _row_json(row: SummaryRecord | Distribution | Counted) -> dict[str, Any]:
    if isinstance(row, Counted):
        return {"count": row.times, "share": row.share}
    if isinstance(row, Distribution):
        return dict(_spread_json(row))
    return figures_json(row)


def figures_json(record: SummaryRecord) -> dict[str, Any]:
    """Return plain JSON data of all but what *record* is of."""
    return {name: value for name, value in record.as_json(sketches=False).items() if name not in _IDENTITY}


def _spread_json(spread: Distribution) -> Iterator[tuple[str, float]]:
    yield from (("count", spread.count), ("sum_ns", spread.total), ("min_ns", spread.low), ("max_ns", spread.high))
    yield from ((f"p{percent}_ns", spread.percentile(percent)) for percent in PERCENTILES)


def _where(record: SummaryRecord, by: Sequence[str]) -> Group:
    known = {"window": iso(record.start), "operation": record.operation}
    return tuple(known[name] for name in by if name in known)
