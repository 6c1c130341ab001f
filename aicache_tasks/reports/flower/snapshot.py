"""
What the tab shows, as JSON data.

In: a `Reader`, what is asked for, what is so now.   Out: one document: figures, windows for the plots, workers, store.

Figures are the records' own, as ``celery aicache … --json`` has them, with the sums of tokens. Every label comes
twice: as it is, to ask with, and as it may be shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from aicache_tasks.alerts import AlertState, current
from aicache_tasks.beat import late_s, since_asked_s
from aicache_tasks.prices import tokens_in
from aicache_tasks.reports.flower.states import OK
from aicache_tasks.reports.queries import ALL, Live, Reader, top, total_of
from aicache_tasks.reports.rows import figures, figures_json
from aicache_tasks.reports.spans import Span
from aicache_tasks.reports.views import minutely
from aicache_tasks.reports.wording import iso, label
from aicache_tasks.rollup import WINDOWS_S
from aicache_tasks.settings import Settings, mask_url
from aicache_tasks.stores.base import StoreInfo
from aicache_tasks.summary import SummaryRecord

SCHEMA: Final = 1
"""Version of the document."""
SPANS: Final[Mapping[str, float]] = {"1h": 3600.0, "24h": 86_400.0, "30d": 2_592_000.0}
ALL_TIME: Final = "all"
"""The span of the totals since the first timing; its windows are those of the last of `SPANS`."""
DEFAULT_SPAN: Final = "24h"
STATUSES: Final = ("hit", "stale", "joined", "miss", "refresh", "bypass", "error", "disabled")
STEPS: Final = ("key", "get", "decode", "compute", "compress", "set")
MOST_OPERATIONS: Final = 200
"""Operations that are listed: those with the most look-ups."""
MOST_WORKERS: Final = 200
TOP: Final = 5
TOPS: Final = ("saved", "cost", "slow", "compute")
_WORTH: Final = ("operation", "label", "hits", "saved", "steps", "tokens")


class Asked(NamedTuple):
    """What one viewer looks at."""

    span: str = DEFAULT_SPAN
    """One of `SPANS`, or `ALL_TIME`."""
    operation: str | None = None
    """Only this one's plots, cards and steps; None for all."""
    between: Span | None = None
    """From when to when, in the place of what ``span`` names."""


class Now(NamedTuple):
    """What does not depend on the span."""

    live: Live
    alerts: list[AlertState]
    asked_s: float | None
    """How long ago a roll-up was asked for."""


def now_of(reader: Reader) -> Now:
    """Read what is so now.

    Raises:
        StoreError: the server does not answer.
    """
    return Now(reader.live(), current(reader.summaries), since_asked_s(reader.summaries))


def document(reader: Reader, asked: Asked, now: Now) -> dict[str, Any]:
    """Return what a viewer who *asked* is shown.

    Raises:
        StoreError: the server does not answer.
    """
    covered, records = _records(reader, asked, now)
    chosen = records if asked.operation is None else _only(records, asked.operation)
    listed = _by_lookups(records)
    return {
        "schema": SCHEMA,
        "state": state_of(now, reader.settings),
        "at": iso(now.live.at_s),
        "at_s": now.live.at_s,
        "place": place_of(reader.settings),
        "span": {"name": asked.span, "start_s": covered.start_s, "end_s": covered.end_s},
        "operation": asked.operation,
        "currency": label(reader.settings.currency) if reader.settings.currency else "",
        "names": [_named(name) for name in _names(listed, _by_lookups(now.live.totals), asked)],
        "total": figures_of(total_of(chosen.values())),
        "all_time": figures_of(total_of(_chosen(now.live.totals, asked).values())),
        "operations": [_figures(records[name]) for name in _shown(listed)],
        "operations_in_all": len(listed),
        "ever": [_worth(now.live.totals[name]) for name in _shown(listed) if name and name in now.live.totals],
        "top": {by: _ranked(records.values(), by) for by in TOPS},
        "windows": _windows(reader, asked, now.live.at_s),
        **_now_json(now, reader.settings),
    }


def figures_of(record: SummaryRecord) -> dict[str, Any]:
    """Return the figures of *record*, and how many tokens were saved and spent, of all kinds that add up."""
    tokens = {"saved": tokens_in(record.saved.tokens), "spent": tokens_in(record.spent.tokens)}
    return figures_json(record) | {"tokens": tokens}


def state_of(now: Now, settings: Settings) -> str:
    """Return ``empty`` (nothing is recorded), ``stale`` (no roll-up for long), ``waiting`` (none yet), or ``ok``."""
    live = now.live
    if not live.totals:
        return "empty"
    if live.backlog.age_s > late_s(settings.rollup_period_s):
        return "stale"
    is_all_waiting = total_of(live.totals.values()).counts == total_of(live.waiting.totals.values()).counts
    return "waiting" if is_all_waiting else OK


def place_of(settings: Settings) -> dict[str, str]:
    """Return where the records lie; passwords are masked."""
    return {"url": label(mask_url(settings.url or ""), 200), "namespace": settings.namespace}


def _records(reader: Reader, asked: Asked, now: Now) -> tuple[Span, dict[str, SummaryRecord]]:
    if asked.span == ALL_TIME:
        return Span(0.0, now.live.at_s), now.live.totals
    merged = reader.merge(_span(asked, now.live.at_s))
    return merged.cover.span, merged.records


def _span(asked: Asked, now_s: float) -> Span:
    if asked.between is not None:
        return asked.between
    length_s = SPANS.get(asked.span) or max(SPANS.values())
    return Span(now_s - length_s, now_s)


def _chosen(records: Mapping[str, SummaryRecord], asked: Asked) -> Mapping[str, SummaryRecord]:
    return records if asked.operation is None else _only(records, asked.operation)


def _only(records: Mapping[str, SummaryRecord], operation: str) -> dict[str, SummaryRecord]:
    return {operation: records[operation]} if operation in records else {}


def _named(name: str) -> dict[str, str]:
    return {"operation": name, "label": label(name)}


def _figures(record: SummaryRecord) -> dict[str, Any]:
    return _named(record.operation) | figures_of(record)


def _worth(record: SummaryRecord) -> dict[str, Any]:
    """Return what an operation's answers were good for, which people are told before they invalidate them."""
    return {name: value for name, value in _figures(record).items() if name in _WORTH}


def _by_lookups(records: Mapping[str, SummaryRecord]) -> list[SummaryRecord]:
    return sorted(records.values(), key=lambda record: (-record.lookups, record.operation))


def _names(listed: Sequence[SummaryRecord], ever: Sequence[SummaryRecord], asked: Asked) -> list[str]:
    """Return what can be chosen: what is listed, what would be of all time, and what is chosen."""
    return sorted({*_shown(listed), *_shown(ever), asked.operation or ""} - {""})


def _shown(listed: Sequence[SummaryRecord]) -> list[str]:
    return [record.operation for record in listed[:MOST_OPERATIONS]]


def _ranked(records: Iterable[SummaryRecord], by: str) -> list[dict[str, Any]]:
    return [_named(record.operation) | {"value": value} for record, value in top(records, by, TOP)]


# Windows, for the plots.


def _windows(reader: Reader, asked: Asked, now_s: float) -> dict[str, Any]:
    span = _span(asked, now_s)
    kind = reader.resolution_of(span)
    covered = reader.windows(span, kind).span
    names = None if asked.operation is None else [asked.operation]
    found = {record.start: record for record in figures(reader.each(span, kind, names), ["window"]).values()}
    starts = range(int(covered.start_s), int(covered.end_s), WINDOWS_S[kind])
    empty = SummaryRecord(ALL, kind, 0)
    return {
        "resolution": kind,
        "length_s": WINDOWS_S[kind],
        "each": [{"start_s": start} | _window(found.get(start, empty)) for start in starts],
    }


def _window(record: SummaryRecord) -> dict[str, Any]:
    return {
        "lookups": {status: n for status in STATUSES if (n := record.of("get", status))},
        "hit_rate": record.hit_rate,
        "p95_ms": {step: ms for step in STEPS if (ms := record.percentile_ms(step, 95)) is not None},
        "saved_s": record.saved.compute_ns / 1e9,
        "spent_s": record.spent.compute_ns / 1e9,
        "saved_cost": record.saved.cost_micros / 1e6,
        "spent_cost": record.spent.cost_micros / 1e6,
        "stored_bytes": record.stored_bytes,
        "served_bytes": record.served_bytes,
    }


# Now.


def _now_json(now: Now, settings: Settings) -> dict[str, Any]:
    live = now.live
    return {
        "workers": [_worker(name, minutes, live.at_s) for name, minutes in _busiest(live.workers)],
        "workers_in_all": len(live.workers),
        "alerts": [_alert(alert) for alert in now.alerts],
        "store": None if live.store is None else _store(live.store),
        "rollup": {
            "batches": live.backlog.entries,
            "bytes": live.backlog.bytes,
            "age_s": live.backlog.age_s,
            "samples": live.waiting.samples,
            "period_s": settings.rollup_period_s,
            "asked_s_ago": now.asked_s,
            "late": _is_late(now.asked_s, settings),
        },
        "switched_off": settings.disabled or live.is_switched_off,
        "switched_off_by": _switched_off_by(live, settings),
        "samples": settings.samples,
    }


def _switched_off_by(live: Live, settings: Settings) -> str | None:
    """Return what people can undo."""
    return "cache_mode" if live.is_switched_off else "aicache_disabled" if settings.disabled else None


def _is_late(asked_s: float | None, settings: Settings) -> bool:
    period_s = settings.rollup_period_s
    return bool(period_s) and (asked_s is None or asked_s > late_s(period_s))


def _busiest(workers: Mapping[str, Sequence[SummaryRecord]]) -> list[tuple[str, Sequence[SummaryRecord]]]:
    by_lookups = sorted(workers.items(), key=lambda worker: (-sum(minute.lookups for minute in worker[1]), worker[0]))
    return sorted(by_lookups[:MOST_WORKERS])


def _worker(name: str, minutes: Sequence[SummaryRecord], now_s: float) -> dict[str, Any]:
    total = total_of(minutes)
    return {"worker": name, "label": label(name), "trend": minutely(minutes, now_s)} | figures_of(total)


def _alert(alert: AlertState) -> dict[str, Any]:
    return alert._asdict() | {"label": label(alert.operation), "since": iso(alert.since)}


def _store(store: StoreInfo) -> dict[str, Any]:
    return store._asdict() | {"version": label(store.version, 20), "eviction_policy": label(store.eviction_policy, 20)}
