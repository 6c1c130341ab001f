"""
What the demo shows.

In: the measured calls of two runs.   Out: two tables, a row for each operation; what is wrong, if anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from aicache_tasks.records import CallInfo

CALLER = ("operation", "first run", "second run", "faster", "status")
WORKER = ("operation", "body", "key", "get, miss", "set", "get, hit", "answer", "entry")
CALLER_NOTE = "Medians of {count} articles, from sending a task to having its result."
WORKER_NOTE = (
    "Medians of {count} articles. The engine; then in ms the cache's key, look-up and store; then in bytes the answer, "
    "and its entry as stored, with header and metadata. Answers of over 1000 bytes are compressed; smaller ones only "
    "gain the header."
)


class Measured(NamedTuple):
    """One call as its caller saw it (``seconds``, ``value``) and as its worker did (``info``).

    ``kept`` is False if the engine's reply could not be used; ``value`` then says why.
    """

    operation: str
    article: str
    seconds: float
    value: Any
    info: CallInfo
    kept: bool = True


def faults(first: Sequence[Measured], second: Sequence[Measured]) -> list[str]:
    """Return what is wrong with the second run: a call that was no hit, or whose answer differs.

    >>> info = CallInfo("miss", "key_not_found", "qa", "k")
    >>> faults([Measured("qa", "a", 1.0, "yes", info)], [Measured("qa", "a", 1.0, "no", info)])
    ['qa of a: miss (key_not_found), not hit', 'qa of a: another answer than in the first run']
    """
    operations = dict.fromkeys(call.operation for call in first)
    none = [name for name in operations if not any(call.kept for call in first if call.operation == name)]
    found = [f"{name}: no reply that could be used" for name in none]
    for before, after in zip(first, second, strict=True):
        name = f"{after.operation} of {after.article}"
        if before.kept and after.info.status != "hit":
            found.append(f"{name}: {after.info.status} ({after.info.reason}), not hit")
        if before.kept and after.value != before.value:
            found.append(f"{name}: another answer than in the first run")
    return found


def not_kept(first: Sequence[Measured]) -> list[str]:
    """Return a line for each reply that could not be used.

    >>> info = CallInfo("miss", "key_not_found", "qa", "k")
    >>> not_kept([Measured("qa", "a", 1.0, "qa: finish reason length", info, kept=False)])
    ['not kept, as the reply could not be used: qa of a (finish reason length)']
    """
    return [
        f"not kept, as the reply could not be used: {call.operation} of {call.article} "
        f"({str(call.value).removeprefix(f'{call.operation}: ')})"
        for call in first
        if not call.kept
    ]


def saved(first: Sequence[Measured], second: Sequence[Measured]) -> str:
    """Return what the second run was spared.

    >>> info = CallInfo("miss", "key_not_found", "qa", "k")
    >>> saved([Measured("qa", "a", 2.5, "yes", info)], [Measured("qa", "a", 0.004, "yes", info)])
    'The second run took 4.0 ms instead of 2.50 s: 2.50 s saved.'
    """
    before, after = (sum(call.seconds for call in run) for run in (first, second))
    return f"The second run took {duration(after)} instead of {duration(before)}: {duration(before - after)} saved."


def duration(seconds: float) -> str:
    """Return *seconds* in the unit that suits.

    >>> [duration(seconds) for seconds in (0.0042, 0.9996, 12.345)]
    ['4.2 ms', '1.00 s', '12.35 s']
    """
    return f"{1000 * seconds:.1f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def tables(first: Sequence[Measured], second: Sequence[Measured]) -> list[Table]:
    """Return what the caller saw and what it cost in the worker."""
    count = len({call.article for call in first})
    seen = _table("What the caller saw", CALLER, CALLER_NOTE.format(count=count))
    cost = _table("What it took in the worker", WORKER, WORKER_NOTE.format(count=count))
    for operation in dict.fromkeys(call.operation for call in first):
        runs = [[call for call in run if call.operation == operation] for run in (first, second)]
        seen.add_row(operation, *caller_row(*runs))
        cost.add_row(operation, *worker_row(*([call.info for call in run] for run in runs)))
    return [seen, cost]


def caller_row(first: Sequence[Measured], second: Sequence[Measured]) -> tuple[str, ...]:
    """Return the cells of one operation after its name.

    >>> miss, hit = (CallInfo(status, "", "qa", "k") for status in ("miss", "hit"))
    >>> caller_row([Measured("qa", "a", 0.03, "yes", miss)], [Measured("qa", "a", 0.01, "yes", hit)])
    ('30.0 ms', '10.0 ms', '3.0 x', '1 miss → 1 hit')
    """
    before, after = (median(call.seconds for call in run) for run in (first, second))
    return duration(before), duration(after), f"{before / after:.1f} x", f"{_statuses(first)} → {_statuses(second)}"


def worker_row(first: Sequence[CallInfo], second: Sequence[CallInfo]) -> tuple[str, ...]:
    """Return the cells of one operation after its name.

    >>> miss = CallInfo("miss", "key_not_found", "qa", "k", 0.02, 0.4, 20.0, 0.6, 1200, 500)
    >>> worker_row([miss], [CallInfo("hit", "", "qa", "k", 0.02, 0.3)])
    ('20.0 ms', '0.02', '0.40', '0.60', '0.30', '1200', '500')
    """
    return (
        duration(median(info.compute_ms for info in first) / 1000),
        f"{median(info.key_ms for info in first):.2f}",
        f"{median(info.get_ms for info in first):.2f}",
        f"{median(info.set_ms for info in first):.2f}",
        f"{median(info.get_ms for info in second):.2f}",
        f"{median(info.raw_bytes for info in first):.0f}",
        f"{median(info.stored_bytes for info in first):.0f}",
    )


def _table(title: str, headings: Sequence[str], note: str) -> Table:
    made = Table(title=title, caption=note, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    for heading in headings:
        made.add_column(heading, justify="left" if heading in {"operation", "status"} else "right", no_wrap=True)
    return made


def _statuses(run: Sequence[Measured]) -> str:
    counted = Counter(call.info.status for call in run)
    return ", ".join(f"{count} {status}" for status, count in counted.most_common())
