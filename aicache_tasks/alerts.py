"""
Alerts over all workers: when to speak of what the summary records show.

In: the records, the size of the cache's server.   Out: levels that do not flap; one log line for each change.

Each alert's state is a field of one hash in Redis, exchanged only if it is still what was read: of several roll-ups at
once one logs a change, and tells of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Literal, NamedTuple, cast

import msgspec
from msgspec import Meta

from aicache_tasks.errors import StoreError, UnknownPayload
from aicache_tasks.invalidation import ADMIN_BUDGET_S
from aicache_tasks.monitor.advice import shown
from aicache_tasks.monitor.alerts import HOLD, next_level
from aicache_tasks.monitor.statistics import Level
from aicache_tasks.settings import Settings
from aicache_tasks.stores.base import Budget
from aicache_tasks.summaries import Summaries
from aicache_tasks.summary import SummaryRecord

log = logging.getLogger("aicache_tasks.alerts")

Alert = Literal["slow_key", "slow_operation", "invalidation_rate", "memory", "hit_rate"]
UNITS: Final[Mapping[Alert, str]] = {
    "slow_key": "ms",
    "slow_operation": "ms",
    "invalidation_rate": "an hour",
    "memory": "bytes",
    "hit_rate": "hits / look-ups",
}
"""Every alert, with the unit of its values and thresholds."""
SLOW_PERCENT: Final = 95
"""The percentile that must be under the limit."""
LEAST_TIMINGS: Final = 20
"""Of a step in the window: with fewer the 95th percentile is the slowest of them, and says nothing of the others."""
WARNING_PART, CRITICAL_PART = 0.85, 0.95
"""Of the ``maxmemory`` of a server that refuses what has no room, where no limits are set. One that evicts may be
full."""
NEVER: Final = "noeviction"

_LOG_LEVELS: Final[Mapping[Level, int]] = {
    "normal": logging.INFO,
    "warning": logging.WARNING,
    "critical": logging.ERROR,
}
_BYTES: Final = ("B", "KB", "MB", "GB", "TB", "PB")
_HOUR_S: Final = 3600
_MINUTE_S: Final = 60
_MAX_STATE_BYTES: Final = 512


class AlertState(NamedTuple):
    """An alert that is not normal."""

    alert: str
    """One of `UNITS`."""
    operation: str
    """Of the policy; "" for what concerns all."""
    level: str
    """``warning`` or ``critical``."""
    value: float | None
    """As of the last roll-up."""
    threshold: float
    """Of the level."""
    unit: str
    since: float
    """When the level was reached, seconds since the epoch."""


class AlertChange(NamedTuple):
    """An alert that has another level than before; see `AlertState`."""

    alert: str
    operation: str
    level: str
    """``normal``, ``warning`` or ``critical``."""
    before: str
    """The level until now."""
    value: float | None
    """None if nothing is left to judge by: no look-up, or the alert was switched off."""
    threshold: float
    unit: str
    since: float


class _Held(msgspec.Struct, array_like=True, frozen=True):
    """An alert's state as it lies in Redis."""

    level: Level
    since: Annotated[float, Meta(ge=0, le=2**40)]
    value: float | None
    threshold: float


class _Reading(NamedTuple):
    """What an alert judges: ``floor`` alerts when the value is under ``warning``, the others from it on."""

    alert: Alert
    operation: str
    value: float | None
    warning: float
    critical: float = math.inf
    floor: bool = False


_NORMAL: Final = _Held("normal", 0.0, None, 0.0)
_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(_Held)


def changes(summaries: Summaries) -> Iterator[AlertChange]:
    """Judge the records as they are now; log and yield each alert whose level changed.

    An operation with a record that a newer version wrote keeps its levels; so does what adds up all operations.

    Raises:
        StoreError: the server went away. What was yielded is done, the rest is judged at the next time.
    """
    now_s = summaries.ask(summaries.inbox.head, 0).now_ms / 1000
    held = summaries.ask(summaries.inbox.hash, summaries.keys.alerts)
    for reading in _readings(summaries, now_s):
        data = held.get(_field(reading.alert, reading.operation).encode())
        before = _decoded(data)
        after = _judged(reading, before, now_s)
        if after == before or not _exchange(summaries, reading, data, after):
            continue
        if after.level != before.level:
            change = _change(reading, before, after)
            _log(change)
            yield change


def current(summaries: Summaries) -> list[AlertState]:
    """Return the alerts that are not normal, as of the last roll-up, by name and operation.

    Raises:
        StoreError: the server does not answer.
    """
    found = []
    for field, data in sorted(summaries.ask(summaries.inbox.hash, summaries.keys.alerts).items()):
        alert, _, operation = field.decode("utf-8", "replace").partition(":")
        held = _decoded(data)
        if alert in UNITS and held.level != "normal":
            unit = UNITS[cast("Alert", alert)]
            found.append(AlertState(alert, operation, held.level, held.value, held.threshold, unit, held.since))
    return found


# What is judged.


def _readings(summaries: Summaries, now_s: float) -> Iterator[_Reading]:
    settings, events, unread = summaries.parts.settings, 0, list[UnknownPayload]()
    for operation, total in summaries.totals(unread).items():
        try:
            span = _span(summaries, operation, settings.alert_window_s, now_s)
            events += _invalidations(summaries, operation, now_s) if total.of("invalidate") else 0
        except UnknownPayload as error:
            unread.append(error)
        else:
            yield from _readings_of(span, settings)
    if unread:
        log.warning("aicache: operations that are not judged: %d, nor invalidations; %s", len(unread), unread[0])
    else:
        warning, critical = settings.invalidations_warning_per_hour, settings.invalidations_critical_per_hour
        yield _Reading("invalidation_rate", "", events, warning, critical)
    yield from _memory(summaries)


def _readings_of(span: SummaryRecord, settings: Settings) -> Iterator[_Reading]:
    """Yield what one operation's alerts judge: the part of its records that the window covers."""
    name = span.operation
    yield from _slow("slow_key", span, settings.slow_key_ms, "key")
    yield from _slow("slow_operation", span, settings.slow_operation_ms, "get", "set")
    if settings.hit_rate_floor == 0 or not span.lookups:
        yield _Reading("hit_rate", name, None, settings.hit_rate_floor, floor=True)
    elif span.lookups >= settings.hit_rate_min_lookups:  # fewer leave the level as it is
        yield _Reading("hit_rate", name, span.hit_rate, settings.hit_rate_floor, floor=True)


def _slow(alert: Alert, span: SummaryRecord, limit_ms: float, *steps: str) -> Iterator[_Reading]:
    """Yield the largest of the steps' percentiles, ms; None if none of them was timed. Few leave the level as it is."""
    timed = {step: spread.count for step in steps if (spread := span.steps.get(step)) and spread.count}
    found = [span.percentile_ms(step, SLOW_PERCENT) for step, count in timed.items() if count >= LEAST_TIMINGS]
    slowest = max((value for value in found if value is not None), default=None)
    if slowest is not None or not timed:
        yield _Reading(alert, span.operation, slowest, limit_ms)


def _span(summaries: Summaries, operation: str, seconds: float, now_s: float) -> SummaryRecord:
    """Return an operation's last *seconds*, from the start of their first minute on."""
    span = SummaryRecord(operation, "span", int(now_s - seconds) // _MINUTE_S * _MINUTE_S)
    for record in summaries.read(operation, "minute", span.start, now_s + _MINUTE_S):
        span.merge(record)
    return span


def _invalidations(summaries: Summaries, operation: str, now_s: float) -> int:
    """Return how many there were in the last hour, counted in whole minutes."""
    minutes = summaries.read(operation, "minute", now_s - _HOUR_S, now_s + _MINUTE_S)
    return sum(record.of("invalidate") for record in minutes)


def _memory(summaries: Summaries) -> Iterator[_Reading]:
    """Yield the size of the whole server; nothing if it does not say."""
    parts = summaries.parts
    try:
        info = parts.store.info(Budget(ADMIN_BUDGET_S))
    except StoreError as error:
        log.debug("the server does not say what it holds: %s", error.detail)
        return
    refuses_at = info.memory_limit_bytes if info.eviction_policy == NEVER else 0
    warning, critical = _memory_limits(parts.settings, refuses_at)
    size = info.memory_used_bytes if math.isfinite(warning) else None
    yield _Reading("memory", "", size, warning if size is not None else 0.0, critical)


def _memory_limits(settings: Settings, limit: int) -> tuple[float, float]:
    """Return from what size on to warn, and when it is critical; infinite where neither settings nor server say.

    >>> _memory_limits(Settings(), 1000), _memory_limits(Settings(), 0)
    ((850.0, 950.0), (inf, inf))
    >>> _memory_limits(Settings(memory_warning_bytes=990), 1000), _memory_limits(Settings(memory_critical_bytes=9), 0)
    ((990, 990), (9, 9))
    """
    warning, critical = settings.memory_warning_bytes, settings.memory_critical_bytes
    usual = WARNING_PART * limit or math.inf, CRITICAL_PART * limit or math.inf
    if warning and not critical:
        return warning, max(warning, usual[1])
    if critical and not warning:
        return min(critical, usual[0]), critical
    return (warning, critical) if warning else usual


# How it is judged.


def _judged(reading: _Reading, before: _Held, now_s: float) -> _Held:
    """Return the state after *reading*. While all is normal it stays as it is, so that nothing is written."""
    level = _level_after(reading, before.level)
    if level == "normal" and before.level == "normal":
        return before
    since = before.since if level == before.level else now_s
    return _Held(level, since, reading.value, reading.critical if level == "critical" else reading.warning)


def _level_after(reading: _Reading, level: Level) -> Level:
    if reading.value is None:
        return "normal"
    if reading.floor:
        return next_level_under(level, reading.value, reading.warning)
    return next_level(level, reading.value, reading.warning, reading.critical)


def next_level_under(level: Level, value: float, floor: float) -> Level:
    """Return the level after *value*, a part of 1: down under the floor, up again only clearly above it.

    Clearly is by a tenth, of the floor or of what is missing to 1, whichever is less.

    >>> next_level_under("normal", 0.49, 0.5), next_level_under("warning", 0.54, 0.5)
    ('warning', 'warning')
    >>> next_level_under("warning", 0.56, 0.5), next_level_under("normal", 0.51, 0.5), next_level_under("warning", 1, 1)
    ('normal', 'normal', 'normal')
    """
    if value < floor:
        return "warning"
    clear = min(floor / HOLD, 1 - HOLD * (1 - floor))
    return "warning" if level != "normal" and value < clear else "normal"


def _change(reading: _Reading, before: _Held, after: _Held) -> AlertChange:
    return AlertChange(
        alert=reading.alert,
        operation=reading.operation,
        level=after.level,
        before=before.level,
        value=after.value,
        threshold=after.threshold,
        unit=UNITS[reading.alert],
        since=after.since,
    )


def _log(change: AlertChange) -> None:
    of = f" of {shown(change.operation)}" if change.operation else ""
    value, threshold = (_readable(number, change.unit) for number in (change.value, change.threshold))
    text = "aicache.alert %s%s is %s, was %s: %s (threshold %s)"
    extra = {"aicache": change._asdict() | {"operation": shown(change.operation)}}
    level = _LOG_LEVELS[cast("Level", change.level)]
    log.log(level, text, change.alert, of, change.level, change.before, value, threshold, extra=extra)


def _readable(value: float | None, unit: str) -> str:
    """Return a value for people.

    >>> [_readable(*given) for given in ((151.4, "ms"), (0.04, "ms"), (4321.9, "ms"), (60, "an hour"), (None, "ms"))]
    ['151 ms', '0.04 ms', '4,322 ms', '60 an hour', 'no figures']
    >>> [_readable(count, "bytes") for count in (1000, 1_731_880, 52_428_800)], _readable(0.876, "hits / look-ups")
    (['1 KB', '1.732 MB', '52.43 MB'], '87.6 %')
    """
    if value is None:
        return "no figures"
    if unit == "bytes":
        thousands = min((len(f"{value:.0f}") - 1) // 3, len(_BYTES) - 1)
        return f"{value / 1000**thousands:.4g} {_BYTES[thousands]}"
    if unit == "hits / look-ups":
        return f"{100 * value:.4g} %"
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


# Its state in Redis.


def _field(alert: str, operation: str) -> str:
    return f"{alert}:{operation}"


def _exchange(summaries: Summaries, reading: _Reading, data: bytes | None, after: _Held) -> bool:
    """Put *after* in the place of *data*; return False if another roll-up was first."""
    field = _field(reading.alert, reading.operation)
    return summaries.ask(summaries.inbox.swap, summaries.keys.alerts, field, data, _encoder.encode(after))


def _decoded(data: bytes | None) -> _Held:
    """Return the state in *data*; normal if there is none that can be read."""
    if data is None or len(data) > _MAX_STATE_BYTES:
        return _NORMAL
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return _NORMAL
