"""
Remote control: what ``celery inspect`` and ``celery control`` may ask of a worker.

In: a command.   Out: plain data or a sentence, within a second.

Commands run in the worker's main process, in its loop. Celery keeps them by name for the whole process, which is why
they ask the worker's own application for everything. What answers is loaded when it is first asked.
"""

from __future__ import annotations

from typing import Any, Final

from celery.worker.control import Panel

from aicache_tasks.errors import SettingsError, StoreError
from aicache_tasks.mode import EVERY_S
from aicache_tasks.outbox import flush_all
from aicache_tasks.runtime import cached_tasks, runtime_of
from aicache_tasks.stores.base import Budget

FLUSH_S: Final = 0.5
SWITCH_S: Final = 0.5
Answer = dict[str, Any]
_UNSURE: Final = (
    "may have taken effect all the same, for some or all calls: the cache's server did not confirm it. See what "
    "`mode` inspect cache_stats shows, and ask again until it is confirmed"
)
"""What a switch that nobody acknowledged is: a server may do late what it was asked in time."""


def add_commands() -> None:
    """Register the commands. Calling it twice is calling it once."""
    if "cache_stats" in Panel.data:
        return
    for function, kind, signature, args in _COMMANDS:
        named: Any = {"name": function.__name__, "type": kind, "signature": signature, "args": args}
        Panel.register(**named)(function)


def cache_stats(state: Any, operation: str | None = None, **_: Any) -> Answer:
    """Figures of the cache: all operations briefly, or one in full."""
    from aicache_tasks.reports import inspect

    return _answer(lambda: inspect.cache_stats(state.app, state.hostname, operation))


def cache_policy(state: Any, **_: Any) -> Answer:
    """Effective cache policy of each task."""
    from aicache_tasks.reports import inspect

    return _answer(lambda: inspect.cache_policy(state.app, cached_tasks(state.app)))


def cache_flush_timings(state: Any, **_: Any) -> Answer:
    """Send the timings that wait in the worker's main process."""
    return _answer(lambda: _flush(state.app))


def cache_mode(state: Any, mode: str = "", **_: Any) -> Answer:
    """Switch the cache of all workers and producers on or off."""
    return _answer(lambda: _switch(state.app, mode))


def _switch(app: Any, mode: str) -> Answer:
    if mode not in ("on", "off"):
        return {"error": "cache_mode takes on or off"}
    parts = runtime_of(app).cache.parts
    if not parts.store.ships:
        return {"error": "each process has a cache in its own memory, which cannot be switched from here"}
    try:
        parts.mode.switch(off=mode == "off", budget=Budget(SWITCH_S))
    except StoreError as error:
        return {"error": f"{error.detail}: {mode} {_UNSURE}"}
    return {"ok": f"{mode} requested: each process does it at its next call, {EVERY_S:g} s from now at the latest"}


def _flush(app: Any) -> Answer:
    parts = runtime_of(app).cache.parts
    outbox = parts.outbox
    if outbox is None:
        return {"error": "timings do not leave this worker: aicache_samples is off, or the cache is in memory"}
    flush_all(FLUSH_S)
    if outbox.waiting:
        return {"error": f"{outbox.waiting} timings wait: the cache's server does not take them"}
    return {"ok": f"sent; the pool's processes send theirs within {2 * parts.settings.ship_after_s:g} s by themselves"}


def _answer(ask: Any) -> Answer:
    """Return what *ask* returns; a worker whose settings are wrong says so."""
    try:
        answer: Answer = ask()
    except SettingsError as error:
        return {"error": str(error)}
    return answer


_COMMANDS: Final = (
    (cache_stats, "inspect", "[operation]", [("operation", str)]),
    (cache_policy, "inspect", None, None),
    (cache_flush_timings, "control", None, None),
    (cache_mode, "control", "on|off", [("mode", str)]),
)
