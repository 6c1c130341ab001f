"""
The roll-up as a task, and its place in beat's schedule.

In: an application.   Out: the task ``aicache_tasks.rollup``, the entry ``aicache-rollup``, the signal `alert_changed`.

Beat may send the task twice, late, or not at all: a roll-up counts all that waits by then, and each sample once.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from celery import Task, signals
from celery.utils.dispatch import Signal

from aicache_tasks import alerts
from aicache_tasks.errors import AICacheError, SettingsError
from aicache_tasks.runtime import read_settings, runtime_of
from aicache_tasks.settings import Settings
from aicache_tasks.summaries import Progress, RolledUp, Summaries

log = logging.getLogger("aicache_tasks")

TASK: Final = "aicache_tasks.rollup"
ENTRY: Final = "aicache-rollup"
LEAST_EXPIRES_S: Final = 600.0
EXPIRES_PERIODS: Final = 10
LATE_PERIODS: Final = 3
LEAST_LATE_S: Final = 180.0
_MAX_DIGITS: Final = 15
_ASKED: Final = "asked_s"
"""Field of the inbox's state: when beat, or somebody, last asked for a roll-up."""

alert_changed: Final = Signal(
    name="alert_changed",
    providing_args=["alert", "operation", "level", "before", "value", "threshold", "unit", "since"],
)
"""Sent once for each change of an alert's level, by the process that rolled up.

The sender is the application. The arguments are the fields of `aicache_tasks.alerts.AlertChange`: ``alert``
(``slow_key``, ``slow_operation``, ``invalidation_rate``, ``memory``, ``hit_rate``), ``operation`` ("" for what
concerns all), ``level`` and ``before`` (``normal``, ``warning``, ``critical``), ``value`` (None if there is nothing to
judge by) and ``threshold``, both in ``unit``, and ``since`` (seconds since the epoch). What a receiver raises is
logged by Celery and goes no further.
"""


class OurEntry(dict[str, Any]):
    """The entry in beat's schedule, told by its type from one that the user wrote."""


# To the schedule.


def add_rollup(app: Any) -> None:
    """Give *app* the task, and beat's schedule its entry. Calling it twice is calling it once."""
    app.on_after_finalize.connect(_prepare)
    if app.finalized:
        _prepare(app)
    signals.import_modules.connect(_before_modules)
    signals.beat_init.connect(_at_beat_s_start)


def _prepare(sender: Any, **_: Any) -> None:
    register(sender)
    schedule(sender)


def _before_modules(sender: Any, **_: Any) -> None:
    """See to the schedule once more: it may have been assigned after the application was finalized."""
    if _is_ours(sender):
        schedule(sender)


def _at_beat_s_start(sender: Any, **_: Any) -> None:
    """Add the entry to a scheduler that has read a schedule without it."""
    app = sender.app
    if not _is_ours(app):
        return
    if missing := _what_is_missing(app):
        log.warning("aicache: no roll-up is scheduled: %s", missing)
    before = app.conf.beat_schedule.get(ENTRY)
    schedule(app)
    entry = app.conf.beat_schedule.get(ENTRY)
    if entry is not None and entry != before:
        sender.scheduler.update_from_dict({ENTRY: entry})


def _what_is_missing(app: Any) -> str:
    """Return why there is no entry, if nobody asked for that; beat often lacks the workers' environment."""
    try:
        settings = read_settings(app)
    except SettingsError as error:
        return str(error)
    is_unwanted = settings.disabled or settings.samples == "off" or settings.rollup_period_s == 0
    if is_unwanted or _is_the_user_s(app.conf.beat_schedule.get(ENTRY)):
        return ""
    if settings.url is None:
        return "aicache_url is not set here; start beat with the AICACHE_URL, or the app.conf, that the workers have"
    if _is_in_memory(settings.url):
        return "aicache_url is memory://, which is each process's own; summary records need a Redis or Valkey server"
    return ""


def _is_ours(app: Any) -> bool:
    return app.finalized and TASK in app.tasks


def register(app: Any) -> None:
    """Give *app*, which is finalized, the task. Stock in all that matters: no policy, no retries, no result."""
    if TASK not in app.tasks:
        options = {"bind": True, "base": Task, "lazy": False, "shared": False, "ignore_result": True, "max_retries": 0}
        app.task(name=TASK, throws=(AICacheError,), **options)(_rollup)


def _rollup(self: Any) -> dict[str, int]:
    """Roll the samples of all workers up into summary records; return what was counted."""
    done = roll_up(self.app)
    names = ("samples", "batches", "duplicates", "undecodable", "damaged", "lost", "commits", "conflicts", "waiting")
    return {name: getattr(done, name) for name in names}


def schedule(app: Any) -> None:
    """Make the entry of `ENTRY` in beat's schedule what the settings say, unless the user wrote one of that name."""
    entries = app.conf.beat_schedule
    present = entries.get(ENTRY)
    if _is_the_user_s(present):
        return
    try:
        entry = _rollup_entry(read_settings(app))
    except SettingsError:  # a worker's start says it, and beat's
        entry = None
    if entry is not None:
        entries[ENTRY] = entry
    elif present is not None:
        del entries[ENTRY]


def _is_the_user_s(entry: Any) -> bool:
    return entry is not None and not isinstance(entry, OurEntry)


def _is_in_memory(url: str) -> bool:
    return urlsplit(url).scheme == "memory"


def _rollup_entry(settings: Settings) -> OurEntry | None:
    """Return the entry, None if there is nothing to roll up or the user wants none."""
    has_records = settings.url is not None and not _is_in_memory(settings.url) and settings.samples != "off"
    if not has_records or settings.rollup_period_s == 0:
        return None
    return OurEntry(task=TASK, schedule=timedelta(seconds=settings.rollup_period_s), options=_options(settings))


def _options(settings: Settings) -> dict[str, Any]:
    """Return the options of the send. A queue that is named wins over routes, whatever exchange these name."""
    period_s = settings.rollup_period_s
    expires_s = settings.rollup_expires_s or max(EXPIRES_PERIODS * period_s, LEAST_EXPIRES_S)
    queue = settings.rollup_queue
    return {"expires": expires_s} | ({"queue": queue, "exchange": "", "routing_key": queue} if queue else {})


# The roll-up.


def roll_up(app: Any, *, asked: bool = True, progress: Progress | None = None) -> RolledUp:
    """Roll up all that waits, then look at the alerts; stop when another roll-up is at work.

    Args:
        app: whose samples.
        asked: False if nobody asked for it, and a worker does it because nobody did.
        progress: see `Summaries.roll_up`.

    Raises:
        SettingsError: the cache is in memory, or a setting is wrong.
        StoreError: the server went away; what was counted is counted, the rest waits.
    """
    summaries = Summaries(runtime_of(app).cache.parts)
    done = summaries.roll_up(yields=True, progress=progress)
    _tell_of_what_was_set_aside(done)
    if asked:
        _note_that_it_was_asked_for(summaries)
    for change in alerts.changes(summaries):
        alert_changed.send(sender=app, **change._asdict())
    return done


def _tell_of_what_was_set_aside(done: RolledUp) -> None:
    if done.undecodable:
        log.warning(
            "aicache: batches of timings that could not be read: %d, set aside. Workers of another version sent them, "
            "or they are damaged; see 'Entries set aside' in docs/operations.md",
            done.undecodable,
        )
    if done.damaged:
        log.warning(
            "aicache: summary records that could not be read: %d, set aside and begun anew. Their figures are missing "
            "from now on; see 'Entries set aside' in docs/operations.md",
            done.damaged,
        )


def _note_that_it_was_asked_for(summaries: Summaries) -> None:
    ((held,),) = summaries.ask(summaries.inbox.fetch, [(summaries.keys.state, [_ASKED])])
    now_s = summaries.ask(summaries.inbox.head, 0).now_ms // 1000
    summaries.ask(summaries.inbox.swap, summaries.keys.state, _ASKED, held, b"%d" % now_s)


def late_s(period_s: float) -> float:
    """Return after how long beat, which should ask every *period_s*, is taken to be away.

    >>> late_s(5), late_s(600)
    (180.0, 1800)
    """
    return max(LATE_PERIODS * period_s, LEAST_LATE_S)


def since_asked_s(summaries: Summaries) -> float | None:
    """Return how long ago a roll-up was last asked for, by beat or a user; None if it never was."""
    ((held,),) = summaries.ask(summaries.inbox.fetch, [(summaries.keys.state, [_ASKED])])
    if held is None or not held.isdigit() or len(held) > _MAX_DIGITS:
        return None
    return max(summaries.ask(summaries.inbox.head, 0).now_ms / 1000 - int(held), 0.0)
