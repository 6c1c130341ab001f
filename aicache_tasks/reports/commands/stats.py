"""
``stats``: what is so now.

In: lifetime totals, what waits, the workers' last hour, the server.   Out: two tables and a few lines, or JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import click

from aicache_tasks.alerts import AlertState, current
from aicache_tasks.beat import late_s, since_asked_s
from aicache_tasks.reports import rows
from aicache_tasks.reports.commands.base import as_json as json_option
from aicache_tasks.reports.commands.base import command, echo_json, nothing_yet, place_of, reader_of, screen_of
from aicache_tasks.reports.queries import Live, Reader, total_of
from aicache_tasks.reports.tables import Screen
from aicache_tasks.reports.views import (
    alert_line,
    figures_table,
    price_lines,
    rows_by_operation,
    trouble_lines,
    workers_table,
)
from aicache_tasks.reports.wording import duration, iso, label, number, plural, size
from aicache_tasks.settings import Settings
from aicache_tasks.stores.base import StoreInfo
from aicache_tasks.summary import SummaryRecord

SWITCHED_OFF: Final = "the cache is switched off by cache_mode: every call runs its body"
SEE_ASIDE: Final = "of another version? see Entries set aside in docs/operations.md"


class Now(NamedTuple):
    """All that is shown."""

    live: Live
    alerts: list[AlertState]
    asked_s: float | None
    """How long ago a roll-up was asked for."""


@command
@json_option
def stats(ctx: click.Context, as_json: bool) -> None:
    """Show what the cache did so far.

    Each operation's figures since the first timing, each worker's of the last hour, what waits for the roll-up, alerts,
    and the server. What waits is counted too: the figures are those of now.
    """
    reader = reader_of(ctx)
    now = Now(reader.live(), current(reader.summaries), since_asked_s(reader.summaries))
    if as_json:
        echo_json(_as_json(now, reader.settings.currency))
        return
    if now.live.is_switched_off:
        screen_of(ctx).line(SWITCHED_OFF, "warning")
    if not now.live.totals:
        nothing_yet(ctx, reader)
    else:
        _show(screen_of(ctx), now, reader, place_of(ctx))


def _show(screen: Screen, now: Now, reader: Reader, place: str) -> None:
    live, plain = now.live, screen.plain_marks
    if named := rows_by_operation(live.totals.values()):
        screen.table(figures_table(named, ["operation"], currency=reader.settings.currency, plain=plain))
        screen.line()
    if live.workers:
        screen.table(workers_table(live.workers, live.at_s, plain=plain))
        screen.line()
    total = total_of(live.totals.values())
    for line in price_lines(total, reader.settings.currency):
        screen.line(line)
    for line in trouble_lines(total):
        screen.line(line, "warning")
    for line in _aside_lines(live):
        screen.line(line, "warning")
    for line in _lines(now, reader.settings):
        screen.line(line)
    for alert in now.alerts:
        screen.line(alert_line(alert), "warning")
    screen.line(f"{place}: {_server(live.store)}")


def _server(store: StoreInfo | None) -> str:
    if store is None:
        return "the server does not say how it is"
    policy = label(store.eviction_policy, 20)
    return f"version {label(store.version, 20)}, {number(store.keys)} keys, {size(store.memory_used_bytes)}, {policy}"


def _lines(now: Now, settings: Settings) -> Iterator[str]:
    backlog = now.live.backlog
    if backlog.entries:
        age = f", {duration(backlog.age_s * 1e9)} old," if backlog.age_s else ""
        yield f"{plural(backlog.entries, 'batch')} ({size(backlog.bytes)}){age} waiting for the roll-up, counted above"
    period_s = settings.rollup_period_s
    if now.asked_s is None:
        yield "nobody has asked for a roll-up yet: is beat running?"
    elif period_s and now.asked_s > late_s(period_s):
        yield f"the last roll-up was asked for {duration(now.asked_s * 1e9)} ago: is beat running?"


def _aside_lines(live: Live) -> Iterator[str]:
    """Yield which batches roll-ups could not read so far, and which the next one could not."""
    aside = _set_aside(live)
    if aside["batches"]:
        yield f"{plural(aside['batches'], 'batch')} that could not be read, set aside: {SEE_ASIDE}"
    if live.waiting.undecodable:
        yield f"{plural(live.waiting.undecodable, 'batch')} that cannot be read, and will be set aside: {SEE_ASIDE}"


def _set_aside(live: Live) -> dict[str, int]:
    total = total_of(live.totals.values())
    return {"batches": total.undecodable - live.waiting.undecodable, "records": total.damaged}


def _as_json(now: Now, currency: str) -> dict[str, Any]:
    live, backlog, store = now.live, now.live.backlog, now.live.store
    return {
        "at": iso(live.at_s),
        "currency": currency,
        "operations": [record.as_json(sketches=False) for record in live.totals.values()],
        "workers": [_worker_json(name, minutes) for name, minutes in live.workers.items()],
        "backlog": {
            "batches": backlog.entries,
            "bytes": backlog.bytes,
            "age_seconds": backlog.age_s,
            "samples": live.waiting.samples,
            "undecodable": live.waiting.undecodable,
        },
        "set_aside": _set_aside(live),
        "switched_off": live.is_switched_off,
        "rollup_asked_seconds_ago": now.asked_s,
        "store": store and store._asdict(),
        "alerts": [alert._asdict() | {"since": iso(alert.since)} for alert in now.alerts],
    }


def _worker_json(name: str, minutes: Sequence[SummaryRecord]) -> dict[str, Any]:
    return {"worker": name} | rows.figures_json(total_of(minutes))
