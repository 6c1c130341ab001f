"""
``summaries``: what was so in a span of time.

In: a span, what to tell apart, or a span before to compare with.   Out: a table, or JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from aicache_tasks.errors import SettingsError
from aicache_tasks.reports import rows
from aicache_tasks.reports.commands.base import as_json as json_option
from aicache_tasks.reports.commands.base import (
    command,
    echo_json,
    length_of,
    nothing_yet,
    reader_of,
    screen_of,
    span_of,
    spanned,
    wanted,
)
from aicache_tasks.reports.queries import Change, Merged, Reader, compare, total_of
from aicache_tasks.reports.rows import Group
from aicache_tasks.reports.spans import Cover, Span
from aicache_tasks.reports.tables import Screen
from aicache_tasks.reports.views import (
    changes_by_operation,
    changes_table,
    figures_table,
    rows_by_operation,
    rows_table,
    trouble_lines,
)
from aicache_tasks.reports.wording import iso, moment
from aicache_tasks.rollup import WINDOWS_S
from aicache_tasks.summary import SummaryRecord

SINCE: Final = "24h"
AUTO: Final = "auto"
MAX_TREND: Final = 2000
"""How many windows a sparkline is made of at most."""


if TYPE_CHECKING:
    _Names = click.ParamType[tuple[str, ...]]
else:  # of an older click it takes no type
    _Names = click.ParamType


class Dimensions(_Names):
    """Names of `rows.DIMENSIONS` with commas between them."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the names in *value*, with those that must come along."""
        if isinstance(value, tuple):
            return value
        names = [name.strip() for name in value.split(",")]
        for name in names:
            if name not in rows.DIMENSIONS:
                self.fail(f"{name[:40]!r} is not one of {', '.join(rows.DIMENSIONS)}", param, ctx)
        return rows.dimensions(names)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Return the names that may come next."""
        from click.shell_completion import CompletionItem

        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(before + comma + name) for name in rows.DIMENSIONS if name.startswith(last)]


@command
@spanned(f"{SINCE}, or as long as --compare says")
@click.option(
    "--by",
    type=Dimensions(),
    metavar="NAMES",
    default="operation",
    show_default=True,
    help=f"What to tell apart, with commas between: {', '.join(rows.DIMENSIONS)}.",
)
@click.option(
    "--resolution",
    type=click.Choice([*WINDOWS_S, AUTO]),
    help="A row for each minute, hour or day; auto takes what fits the span.",
)
@click.option("--compare", "before", metavar="TIME", help="Compare with the span so long before, such as 24h or 7d.")
@json_option
def summaries(
    ctx: click.Context,
    since: str | None,
    until: str,
    operations: tuple[str, ...],
    by: tuple[str, ...],
    resolution: str | None,
    before: str | None,
    as_json: bool,
) -> None:
    """Show what was so in a span of time.

    All times are UTC. A span is counted in whole days, hours and minutes; where records of minutes are no longer kept
    it goes outward to the hour, then to the day, and the title says what is really covered.
    """
    reader = reader_of(ctx)
    span, names = span_of(reader, since or before or SINCE, until), wanted(operations)
    if before is not None:
        if resolution or by != ("operation",):
            raise SettingsError("--compare: goes with neither --by nor --resolution")
        _compare(ctx, reader, span, length_of(before, "--compare"), names, as_json)
        return
    if resolution or "window" in by:
        by, kind = rows.dimensions(["window", *by]), resolution or AUTO
        kind = reader.resolution_of(span) if kind == AUTO else kind
        covered, records = reader.windows(span, kind), list(reader.each(span, kind, names))
    else:
        covered, found = reader.merge(span, names)
        records, kind = list(found.values()), "span"
    if as_json:
        data = {"resolution": kind, "by": list(by), "rows": rows.as_json(rows.rows_of(records, by), by)}
        echo_json(span_json(span, covered, reader.settings.currency) | data)
    elif not records:
        nothing_yet(ctx, reader)
    else:
        _show(screen_of(ctx), reader, covered, records, by)


def _show(
    screen: Screen, reader: Reader, covered: Cover, records: Sequence[SummaryRecord], by: tuple[str, ...]
) -> None:
    title, found, currency = title_of(covered.span), rows.rows_of(records, by), reader.settings.currency
    if by == ("operation",):
        named = rows_by_operation(row for row in found.values() if isinstance(row, SummaryRecord))
        trends = _trends(reader, covered.span, [group[0] for group in named])
        screen.table(figures_table(named, by, title=title, trends=trends, currency=currency, plain=screen.plain_marks))
    else:
        screen.table(rows_table(found, by, title=title, currency=currency, plain=screen.plain_marks))
    for line in trouble_lines(total_of(records)):
        screen.line(line, "warning")


def _trends(reader: Reader, span: Span, operations: Sequence[str]) -> dict[Group, list[float]]:
    """Return the look-ups of each operation in each window."""
    kind = reader.resolution_of(span)
    pieces = reader.windows(span, kind).pieces
    if not pieces:
        return {}
    (piece,), length = pieces, WINDOWS_S[kind]
    count = (piece.end_s - piece.start_s) // length
    if count > MAX_TREND:
        return {}
    found: dict[Group, list[float]] = {(name,): [0.0] * count for name in operations}
    for record in reader.each(span, kind, operations):
        found[record.operation,][(record.start - piece.start_s) // length] += record.lookups
    return found


def title_of(span: Span) -> str:
    """Return what a span covers, for the title of a table.

    >>> title_of(Span(0, 3600))
    '1970-01-01 00:00 to 01:00 UTC'
    """
    start, end = moment(span.start_s), moment(span.end_s)
    return f"{start} to {end.removeprefix(start[:11])} UTC"


def span_json(span: Span, covered: Cover, currency: str) -> dict[str, Any]:
    return {
        "since": iso(span.start_s),
        "until": iso(span.end_s),
        "covers": {"since": iso(covered.span.start_s), "until": iso(covered.span.end_s)},
        "currency": currency,
    }


# Compare.


def _compare(
    ctx: click.Context, reader: Reader, span: Span, back_s: float, names: tuple[str, ...] | None, as_json: bool
) -> None:
    now, before = reader.before_and_now(span, back_s, names)
    operations = sorted({*now.records, *before.records})
    changes = {name: compare(_record(now, name), _record(before, name)) for name in operations}
    overall = compare(total_of(now.records.values()), total_of(before.records.values()))
    if as_json:
        data = _compared_json(before, changes, overall)
        echo_json(span_json(span, now.cover, reader.settings.currency) | data)
        return
    if not changes:
        nothing_yet(ctx, reader)
    screen, title = screen_of(ctx), f"{title_of(now.cover.span)}, before: {title_of(before.cover.span)}"
    screen.table(changes_table(overall, title=title, currency=reader.settings.currency))
    if len(changes) > 1:
        screen.line()
        screen.table(changes_by_operation(changes, title=""))


def _record(merged: Merged, name: str) -> SummaryRecord:
    return merged.records.get(name) or SummaryRecord(name, "span", 0)


def _compared_json(
    before: Merged, changes: Mapping[str, Sequence[Change]], overall: Sequence[Change]
) -> dict[str, Any]:
    covers = {"since": iso(before.cover.span.start_s), "until": iso(before.cover.span.end_s)}
    rows_ = [{"operation": name, "figures": _changes_json(of)} for name, of in changes.items()]
    return {"before": covers, "all": _changes_json(overall), "rows": rows_}


def _changes_json(changes: Sequence[Change]) -> dict[str, Any]:
    return {
        change.name: {
            "before": change.before,
            "now": change.now,
            "ratio": change.ratio,
            "difference": change.difference,
        }
        for change in changes
    }
