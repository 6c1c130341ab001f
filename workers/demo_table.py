"""
What the demo shows.

In: the measured calls of two runs.   Out: a table, one row an operation, and whether the second run was as it must be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from rich.table import Table

from aicache_tasks.records import CallInfo

COLUMNS = (
    ("operation", "left"),
    ("first run", "right"),
    ("second run", "right"),
    ("faster", "right"),
    ("body", "right"),
    ("key", "right"),
    ("get, miss", "right"),
    ("set", "right"),
    ("get, hit", "right"),
    ("bytes, stored", "right"),
    ("status", "left"),
)
NOTES = (
    "first run, second run: from sending a task to having its result, through the broker, the worker and back.",
    "body: what the engine took. key, get, set: what the cache took in the worker. All are means, in ms.",
)


class Measured(NamedTuple):
    """One call as its caller saw it (``seconds``, ``value``) and as its worker did (``info``)."""

    operation: str
    article: str
    seconds: float
    value: Any
    info: CallInfo


def faults(first: Sequence[Measured], second: Sequence[Measured]) -> list[str]:
    """Return what is wrong with the second run: a call that was no hit, or whose answer differs.

    >>> info = CallInfo("miss", "key_not_found", "qa", "k")
    >>> faults([Measured("qa", "a", 1.0, "yes", info)], [Measured("qa", "a", 1.0, "no", info)])
    ['qa of a: miss (key_not_found), not hit', 'qa of a: another answer than in the first run']
    """
    found = []
    for before, after in zip(first, second, strict=True):
        name = f"{after.operation} of {after.article}"
        if after.info.status != "hit":
            found.append(f"{name}: {after.info.status} ({after.info.reason}), not hit")
        if after.value != before.value:
            found.append(f"{name}: another answer than in the first run")
    return found


def table(first: Sequence[Measured], second: Sequence[Measured]) -> Table:
    """Return the table of both runs."""
    shown = Table(title="Five operations over five articles, twice", title_justify="left", caption_justify="left")
    shown.caption = "\n".join(NOTES)
    for heading, justify in COLUMNS:
        shown.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=True)
    for operation in dict.fromkeys(call.operation for call in first):
        shown.add_row(*row(operation, *([c for c in run if c.operation == operation] for run in (first, second))))
    return shown


def row(operation: str, first: Sequence[Measured], second: Sequence[Measured]) -> tuple[str, ...]:
    """Return the cells of one operation, in the order of `COLUMNS`; times are means in ms.

    >>> miss = CallInfo("miss", "key_not_found", "qa", "k", 0.02, 0.4, 20.0, 0.6, 1200, 500)
    >>> hit = CallInfo("hit", "", "qa", "k", 0.02, 0.3)
    >>> row("qa", [Measured("qa", "a", 0.03, "yes", miss)], [Measured("qa", "a", 0.01, "yes", hit)])
    ('qa', '30.0', '10.0', '3.0 x', '20.0', '0.02', '0.40', '0.60', '0.30', '1200 → 500', '1 miss → 1 hit')
    """
    before, after = (fmean(call.seconds for call in run) * 1000 for run in (first, second))
    infos = [call.info for call in first]
    raw, stored = _mean(infos, lambda info: info.raw_bytes), _mean(infos, lambda info: info.stored_bytes)
    return (
        operation,
        f"{before:.1f}",
        f"{after:.1f}",
        f"{before / after:.1f} x",
        f"{_mean(infos, lambda info: info.compute_ms):.1f}",
        f"{_mean(infos, lambda info: info.key_ms):.2f}",
        f"{_mean(infos, lambda info: info.get_ms):.2f}",
        f"{_mean(infos, lambda info: info.set_ms):.2f}",
        f"{_mean([call.info for call in second], lambda info: info.get_ms):.2f}",
        f"{raw:.0f} → {stored:.0f}",
        f"{_statuses(first)} → {_statuses(second)}",
    )


def _mean(infos: Sequence[CallInfo], of: Callable[[CallInfo], float]) -> float:
    return fmean(map(of, infos))


def _statuses(run: Sequence[Measured]) -> str:
    counted = Counter(call.info.status for call in run)
    return ", ".join(f"{count} {status}" for status, count in counted.most_common())
