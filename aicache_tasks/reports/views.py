"""
Answers as tables.

In: rows of records, timings, counts, changes.   Out: `Table`.   Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from aicache_tasks.alerts import AlertState
from aicache_tasks.prices import tokens_in
from aicache_tasks.reports.queries import Change, total_of
from aicache_tasks.reports.rows import Counted, Group
from aicache_tasks.reports.tables import Column, Table
from aicache_tasks.reports.wording import (
    NOTHING,
    bar,
    duration,
    label,
    measured,
    moment,
    money,
    number,
    percent,
    plural,
    ratio,
    size,
    spark,
)
from aicache_tasks.sketch import Distribution
from aicache_tasks.summary import SummaryRecord

BAR_COLUMNS: Final = 8
TREND_COLUMNS: Final = 16
UNCOUNTED: Final = ("error", "bypass", "refresh", "disabled")
"""The statuses of calls that ran their body and count as no look-up, in the order of the columns."""
MOST_REASONS: Final = 4
_HOUR_MINUTES: Final = 60


def by_columns(by: Sequence[str]) -> list[Column]:
    """Return a column of names for each of what rows tell apart."""
    return [Column(name, "name") for name in by]


def by_cells(by: Sequence[str], group: Group) -> list[str]:
    """Return the names that a row has."""
    return [_window(name) if kind == "window" else _name(kind, name) for kind, name in zip(by, group, strict=True)]


def _name(kind: str, name: str) -> str:
    return label(name) if name or kind == "operation" else NOTHING


def _window(start: str) -> str:
    return moment(datetime.fromisoformat(start).timestamp())


def rows_by_operation(records: Iterable[SummaryRecord]) -> dict[Group, SummaryRecord]:
    """Return the rows of a table by operation; what concerns all has one if there were calls of it."""
    return {(record.operation,): record for record in records if record.operation or record.of("get")}


def figures_table(
    rows: Mapping[Group, SummaryRecord],
    by: Sequence[str],
    *,
    title: str = "",
    trends: Mapping[Group, Sequence[float]] | None = None,
    currency: str = "",
    plain: bool = False,
) -> Table:
    """Return what operations, or windows, did. Look-ups are hits and misses; the other calls have columns of their own.

    Args:
        rows: a record each.
        by: what they tell apart.
        title: above the table.
        trends: look-ups over time of each row, for a sparkline.
        currency: shown beside money.
        plain: marks in ASCII.
    """
    columns = [
        *by_columns(by),
        Column("look-ups"),
        Column("hit rate"),
        Column("", "mark", rank=2),
        Column("errors"),
        Column("bypassed", rank=3),
        Column("refreshed", rank=9),
        Column("switched off", rank=3),
        Column("saved", rank=1),
        Column("saved tokens", rank=7),
        Column("saved cost", rank=7),
        Column("spent cost", rank=9),
        Column("get p50", rank=6),
        Column("get p95", rank=4),
        Column("computed p50", rank=5),
        Column("stored", rank=8),
        Column("look-ups over time", "mark", rank=3),
    ]
    trends = trends or {}
    table = Table(title, columns)
    for group, record in rows.items():
        cells = _figures(record, currency, plain)
        table.rows.append([*by_cells(by, group), *cells, _trend(trends.get(group, ()), plain)])
    if len(rows) > 1:
        names = ["all", *([""] * len(by))][: len(by)]
        summed = [sum(values) for values in zip(*trends.values(), strict=False)]
        table.total = [*names, *_figures(total_of(rows.values()), currency, plain), _trend(summed, plain)]
    return _without_empty(table, len(by))


def _figures(record: SummaryRecord, currency: str, plain: bool) -> list[str]:
    saved, rate = record.saved, record.hit_rate
    return [
        number(record.lookups),
        percent(rate),
        "" if rate is None else bar(rate, BAR_COLUMNS, plain=plain),
        *(_times(record, status) for status in UNCOUNTED),
        duration(saved.compute_ns),
        number(tokens) if (tokens := tokens_in(saved.tokens)) else NOTHING,
        *(money(cost / 1e6, currency) if cost else NOTHING for cost in (saved.cost_micros, record.spent.cost_micros)),
        _ms(record.percentile_ms("get", 50)),
        _ms(record.percentile_ms("get", 95)),
        _ms(record.percentile_ms("compute", 50)),
        size(record.stored_bytes) if record.stored_bytes else NOTHING,
    ]


def _times(record: SummaryRecord, status: str) -> str:
    return number(times) if (times := record.of("get", status)) else NOTHING


def _trend(values: Sequence[float], plain: bool) -> str:
    return spark(values, TREND_COLUMNS, plain=plain)


def _without_empty(table: Table, names: int) -> Table:
    """Return *table* without the columns that say nothing in any row."""
    kept = [
        at
        for at in range(len(table.columns))
        if at < names + 2 or any(row[at] not in ("", NOTHING) for row in table.lines)
    ]
    total = [table.total[at] for at in kept] if table.total else None
    return Table(
        table.title, [table.columns[at] for at in kept], [[row[at] for at in kept] for row in table.rows], total
    )


def timings_table(rows: Mapping[Group, Distribution], by: Sequence[str], *, title: str = "") -> Table:
    """Return how long steps took."""
    heads = ["count", "mean", "p50", "p90", "p95", "p99", "max", "in all"]
    ranks = [0, 4, 0, 5, 0, 2, 1, 3]
    table = Table(title, [*by_columns(by), *(Column(head, rank=rank) for head, rank in zip(heads, ranks, strict=True))])
    for group, spread in rows.items():
        took = [spread.mean, *map(spread.percentile, (50, 90, 95, 99)), spread.high, spread.total]
        table.rows.append([*by_cells(by, group), number(spread.count), *map(duration, took)])
    return table


def counts_table(rows: Mapping[Group, Counted], by: Sequence[str], *, title: str = "", plain: bool = False) -> Table:
    """Return how often statuses and reasons were."""
    table = Table(title, [*by_columns(by), Column("count"), Column("of the step"), Column("", "mark", rank=1)])
    for group, row in rows.items():
        marks = bar(row.share, BAR_COLUMNS, plain=plain)
        table.rows.append([*by_cells(by, group), number(row.times), percent(row.share), marks])
    return table


def rows_table(
    rows: Mapping[Group, SummaryRecord | Distribution | Counted],
    by: Sequence[str],
    *,
    title: str,
    currency: str = "",
    plain: bool,
) -> Table:
    """Return the table of whatever `aicache_tasks.reports.rows.rows_of` gave."""
    if "status" in by:
        return counts_table(
            {g: row for g, row in rows.items() if isinstance(row, Counted)}, by, title=title, plain=plain
        )
    if "step" in by:
        return timings_table({g: row for g, row in rows.items() if isinstance(row, Distribution)}, by, title=title)
    records = {g: row for g, row in rows.items() if isinstance(row, SummaryRecord)}
    return figures_table(records, by, title=title, currency=currency, plain=plain)


_NAMES: Final = {
    "lookups": "look-ups",
    "hit_rate": "hit rate",
    "errors": "errors",
    "get_p50_ms": "get p50",
    "get_p95_ms": "get p95",
    "get_p99_ms": "get p99",
    "compute_p50_ms": "computed p50",
    "compute_p95_ms": "computed p95",
    "saved_seconds": "saved time",
    "saved_tokens": "saved tokens",
    "saved_cost": "saved cost",
    "spent_seconds": "computed time",
    "spent_cost": "spent cost",
    "stored_bytes": "stored",
}


def changes_table(changes: Iterable[Change], *, title: str, currency: str = "") -> Table:
    """Return two spans side by side."""
    table = Table(title, [Column("", "name"), Column("before"), Column("now"), Column("change")])
    for change in changes:
        if change.before or change.now:
            figures = [_figure(change.name, value, currency) for value in (change.before, change.now)]
            row = [*figures, change_of(change)]
            table.rows.append([_NAMES[change.name], *row])
    return table


def changes_by_operation(changes: Mapping[str, Sequence[Change]], *, title: str) -> Table:
    """Return each operation's main figures now, and how they changed."""
    shown = ("lookups", "hit_rate", "get_p95_ms", "saved_seconds")
    columns = [Column("operation", "name")]
    for rank, name in enumerate(shown):
        columns += [Column(_NAMES[name], rank=rank), Column("change", rank=rank)]
    table = Table(title, columns)
    for operation, of in changes.items():
        figures = {change.name: change for change in of}
        cells = [cell for name in shown for cell in (_figure(name, figures[name].now), change_of(figures[name]))]
        table.rows.append([label(operation), *cells])
    return table


def change_of(change: Change) -> str:
    """Return a change as people say it: of a rate in points, else as a ratio."""
    if change.name != "hit_rate":
        return ratio(change.ratio)
    return NOTHING if change.difference is None else f"{100 * change.difference:+.1f} points"


def _figure(name: str, value: float | None, currency: str = "") -> str:
    if name == "hit_rate":
        return percent(value)
    if name.endswith("_ms"):
        return _ms(value)
    if name.endswith("_seconds"):
        return NOTHING if value is None else duration(value * 1e9)
    if name.endswith("_cost"):
        return money(value, currency)
    return size(value) if name.endswith("_bytes") else number(value)


def top_table(
    found: Sequence[tuple[SummaryRecord, float]], by: str, *, title: str, currency: str = "", plain: bool
) -> Table:
    """Return operations in the order of a figure."""
    heads = {"saved": "saved time", "cost": "saved cost", "tokens": "saved tokens", "lookups": "look-ups"}
    heads |= {"misses": "misses", "slow": "get p95", "compute": "computed p95"}
    columns = [Column("operation", "name"), Column(heads[by]), Column("", "mark", rank=1)]
    columns += [Column("look-ups", rank=2), Column("hit rate", rank=3)] if by != "lookups" else [Column("hit rate")]
    table, most = Table(title, columns), max((value for _, value in found), default=1.0)
    for record, value in found:
        rates = [number(record.lookups), percent(record.hit_rate)]
        marks = bar(value / most, 2 * BAR_COLUMNS, plain=plain)
        cells = [label(record.operation), _top(by, value, currency), marks]
        table.rows.append([*cells, *(rates[by == "lookups" :])])
    return table


def _top(by: str, value: float, currency: str) -> str:
    if by == "saved":
        return duration(value * 1e9)
    if by == "cost":
        return money(value, currency)
    return _ms(value) if by in ("slow", "compute") else number(value)


def workers_table(workers: Mapping[str, Sequence[SummaryRecord]], now_s: float, *, plain: bool) -> Table:
    """Return what each worker and producer did in the last hour."""
    columns = [
        Column("worker or producer", "name"),
        Column("look-ups"),
        Column("hit rate"),
        Column("errors"),
        Column("get p95", rank=2),
    ]
    columns += [Column("computed", rank=3), Column("the last hour", "mark", rank=1)]
    table = Table("", columns)
    for name, minutes in workers.items():
        total = total_of(minutes)
        cells = [number(total.lookups), percent(total.hit_rate), _times(total, "error")]
        cells += [_ms(total.percentile_ms("get", 95))]
        cells += [number(total.of("compute")), spark(minutely(minutes, now_s), TREND_COLUMNS, plain=plain)]
        table.rows.append([label(name), *cells])
    return _without_empty(table, 1)


def minutely(minutes: Iterable[SummaryRecord], now_s: float) -> list[float]:
    """Return the look-ups of each of the last 60 minutes."""
    counts, last = [0.0] * _HOUR_MINUTES, int(now_s // 60)
    for record in minutes:
        counts[min(max(record.start // 60 - last - 1, -_HOUR_MINUTES), -1)] += record.lookups
    return counts


def alert_line(alert: AlertState) -> str:
    """Return an alert as a line."""
    of = f" of {label(alert.operation)}" if alert.operation else ""
    value, threshold = measured(alert.value, alert.unit), measured(alert.threshold, alert.unit)
    return f"{alert.level}: {alert.alert}{of} is {value}, threshold {threshold}, since {moment(alert.since)} UTC"


def trouble_lines(total: SummaryRecord) -> Iterator[str]:
    """Yield a line for each thing that went wrong: what the hit rate hides."""
    if failed := total.of("get", "error"):
        why = _reasons(total, "get", "error")
        yield f"{plural(failed, 'look-up')} failed, and the bodies ran: {why}"
    if failed := total.of("set", "failed"):
        yield f"{plural(failed, 'answer')} could not be stored: {_reasons(total, 'set', 'failed')}"
    if total.spent.unpriced:
        answers = plural(total.spent.unpriced.total(), "answer")
        models = ", ".join(
            f"{label(name) if name else 'no model'} {number(n)}" for name, n in _most(total.spent.unpriced)
        )
        yield f"{answers} took tokens that have no price, and count as no cost; aicache_prices lacks: {models}"
    if total.lost:
        yield f"{plural(total.lost, 'timing')} lost: processes had no room for them, or could not send them"
    if total.damaged:
        yield f"{plural(total.damaged, 'record')} could not be read: see Entries set aside in docs/operations.md"


def price_lines(total: SummaryRecord, currency: str) -> Iterator[str]:
    """Yield what each version of the prices saved and spent, if prices had a part in it."""
    saved, spent = total.saved.costs, total.spent.costs
    for version in sorted({*saved, *spent}) if {*saved, *spent} - {""} else ():
        by = f"by prices {label(version)}" if version else "as bodies said"
        yield f"cost {by}: {money(saved[version] / 1e6, currency)} saved, {money(spent[version] / 1e6, currency)} spent"


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_REASONS]


def _reasons(total: SummaryRecord, step: str, status: str) -> str:
    """Return the reasons of a status, the most frequent first."""
    found = sorted(
        ((-count, reason) for (name, of, reason), count in total.counts.items() if (name, of) == (step, status)),
    )
    more = ["…"] if len(found) > MOST_REASONS else []
    return ", ".join([*(f"{label(reason)} {number(-count)}" for count, reason in found[:MOST_REASONS]), *more])


def _ms(value: float | None) -> str:
    return NOTHING if value is None else duration(value * 1e6)
