"""
The page's tables as CSV.

In: a document.   Out: text that a spreadsheet opens, and of which it runs nothing.   Pure.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from aicache_tasks.reports.flower.snapshot import STATUSES, STEPS
from aicache_tasks.reports.wording import iso

FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the start of a formula."""
PERCENTILES: Final = ("p50", "p95", "p99")
NS_IN_MS: Final = 1e6

Row = list[Any]


def csv_of(document: Mapping[str, Any], table: str) -> str:
    """Return one of the document's tables, one of ``operations, steps, windows, workers``.

    >>> csv_of({"total": {"steps": {}}}, "steps").split()
    ['step,count,p50_ms,p95_ms,p99_ms,max_ms,total_ms']
    """
    out = io.StringIO()
    writer = csv.writer(out)
    for row in TABLES[table](document):
        writer.writerow([safe(cell) for cell in row])
    return out.getvalue()


def safe(cell: Any) -> Any:
    """Return *cell* as no spreadsheet takes it for a formula.

    >>> safe("=1+1"), safe("shout"), safe(-1), safe(None)
    ("'=1+1", 'shout', -1, '')
    """
    if cell is None:
        return ""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def _operations(document: Mapping[str, Any]) -> Iterator[Row]:
    yield ["operation", *_FIGURES]
    for row in document["operations"]:
        yield [row["label"], *_figures(row)]


def _workers(document: Mapping[str, Any]) -> Iterator[Row]:
    yield ["worker", *_FIGURES]
    for row in document["workers"]:
        yield [row["label"], *_figures(row)]


def _steps(document: Mapping[str, Any]) -> Iterator[Row]:
    yield ["step", "count", *(f"{name}_ms" for name in (*PERCENTILES, "max")), "total_ms"]
    for step, spread in _known(document["total"]["steps"]):
        timed = (spread[f"{name}_ns"] for name in (*PERCENTILES, "max", "sum"))
        yield [step, spread["count"], *(ns / NS_IN_MS for ns in timed)]


def _windows(document: Mapping[str, Any]) -> Iterator[Row]:
    plain = ("hit_rate", "saved_s", "spent_s", "saved_cost", "spent_cost", "stored_bytes", "served_bytes")
    yield ["start", *STATUSES, *plain, *(f"{step}_p95_ms" for step in STEPS)]
    for window in document["windows"]["each"]:
        counts = [window["lookups"].get(status, 0) for status in STATUSES]
        timed = [window["p95_ms"].get(step) for step in STEPS]
        yield [iso(window["start_s"]), *counts, *(window[name] for name in plain), *timed]


_FIGURES: Final = (
    "lookups",
    "hits",
    "misses",
    "hit_rate",
    "saved_seconds",
    "saved_tokens",
    "saved_cost",
    "spent_seconds",
    "spent_tokens",
    "spent_cost",
    "raw_bytes",
    "stored_bytes",
    "served_bytes",
    "errors",
    "disabled",
    *(f"{step}_{name}_ms" for step in STEPS for name in PERCENTILES),
)


def _figures(row: Mapping[str, Any]) -> Row:
    sizes, saved, spent, steps = row["bytes"], row["saved"], row["spent"], row["steps"]
    timed = [steps[s][f"{name}_ns"] / NS_IN_MS if s in steps else None for s in STEPS for name in PERCENTILES]
    return [
        row["hits"] + row["misses"],
        row["hits"],
        row["misses"],
        row["hit_rate"],
        saved["seconds"],
        row["tokens"]["saved"],
        saved["cost"],
        spent["seconds"],
        row["tokens"]["spent"],
        spent["cost"],
        sizes["raw"],
        sizes["stored"],
        sizes["served"],
        *(sum(row["counts"].get("get", {}).get(status, {}).values()) for status in ("error", "disabled")),
        *timed,
    ]


def _known(steps: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return [(step, steps[step]) for step in STEPS if step in steps]


TABLES: Final[Mapping[str, Callable[[Mapping[str, Any]], Iterator[Row]]]] = {
    "operations": _operations,
    "steps": _steps,
    "windows": _windows,
    "workers": _workers,
}
