"""
`install(app)`: what an application needs beside the task base class.

In: a Celery application.   Out: the same, with redacted sends, a roll-up in beat's schedule, settings checked at worker
start, and a warning when a task's body changed and its version did not.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from billiard.pool import EX_RECYCLE
from celery import bootsteps, signals

from aicache_tasks.beat import add_rollup, roll_up, since_asked_s
from aicache_tasks.errors import StoreError
from aicache_tasks.fallback import Fallback
from aicache_tasks.fingerprint import fingerprint
from aicache_tasks.invalidation import ADMIN_BUDGET_S
from aicache_tasks.outbox import flush_all
from aicache_tasks.policy import AUTO_VERSION
from aicache_tasks.redaction import redact_canvas, redact_sends
from aicache_tasks.remote import add_commands
from aicache_tasks.runtime import (
    Runtime,
    cached_tasks,
    end_events,
    hide_secrets,
    name_worker,
    runtime_of,
    useless_policies,
)
from aicache_tasks.stores.base import Budget
from aicache_tasks.summaries import Summaries

log = logging.getLogger("aicache_tasks")

FIXUP: Final = "aicache_tasks.installation:fixup"
TELLING_FIXUP: Final = "aicache_tasks.installation:telling_fixup"
"""In its place in a worker that sends events."""


def install(app: Any) -> Any:
    """Prepare *app* for cached tasks, and return it. Calling it twice is calling it once.

    Set ``app.conf.aicache_url`` before the first task runs. Settings are read then, or when a worker starts; a worker
    with a wrong setting does not start.

    >>> from celery import Celery
    >>> app = install(Celery("shop", broker="memory://"))
    """
    redact_sends(app)
    runtime_of(app).ships = True
    app.fixups = {*app.fixups, FIXUP}  # pickled with the application, for the processes of a pool that spawns
    app.on_after_finalize.connect(_redact_canvas)
    if app.finalized:
        redact_canvas(app)
    app.steps["worker"].add(AICacheStep)
    add_rollup(app)
    add_commands()
    signals.import_modules.connect(_hide_secrets)  # before `celery report` and workers show the configuration
    _watch_processes()
    return app


def fixup(app: Any) -> None:
    """Prepare a copy of an application that was given to `install`, which Celery calls this for while it makes it.

    A pool whose processes are spawned pickles the application: what `install` did to it does not travel, its name does.
    """
    after_init = app.on_init

    def on_init() -> None:
        del app.on_init
        after_init()
        install(app)

    app.on_init = on_init  # the signals of an application are made after its fixups


def telling_fixup(app: Any) -> None:
    """Do what `fixup` does, for a copy in a process of a worker that sends events: it tells of its calls too."""
    fixup(app)
    signals.worker_process_init.connect(lambda **_: runtime_of(app).send_events(), weak=False)
    signals.task_postrun.connect(_tell_of_end, weak=False)


def _watch_processes() -> None:
    """Have what waits sent when a process ends. Nothing is sent in ``worker_shutting_down``: a signal handler sends it.

    A prefork child ends with no other hook than ``worker_process_shutdown``; every other process with `atexit`.
    """
    signals.worker_process_init.connect(_name_worker)
    signals.worker_process_shutdown.connect(_send_the_last)
    signals.worker_shutdown.connect(_send_what_waits)
    signals.worker_shutting_down.connect(_tell_no_more)


def _name_worker(sender: Any = None, **_: Any) -> None:
    if isinstance(sender, str):
        name_worker(sender)


def _send_the_last(exitcode: int = 0, **_: Any) -> None:
    try:
        end_events(tell=exitcode == EX_RECYCLE)
    finally:
        flush_all(last=True)


def _send_what_waits(**_: Any) -> None:
    flush_all()


def _tell_no_more(**_: Any) -> None:
    end_events(tell=False)


def _tell_of_end(task: Any = None, state: str | None = None, **_: Any) -> None:
    """Sent when a task's result is stored and its handlers have run, whatever it was, with its request still on top."""
    events = runtime_of(task.app).events
    if events is not None:
        events.ended(task.request_stack.top, state)


def _redact_canvas(sender: Any, **_: Any) -> None:
    redact_canvas(sender)


def _hide_secrets(sender: Any, **_: Any) -> None:
    hide_secrets(sender)


class AICacheStep(bootsteps.StartStopStep):
    """Checks the settings and the policies before a worker takes tasks.

    Raises:
        SettingsError: a setting is wrong, a policy does not fit its task, or two tasks have one operation.
    """

    name = "aicache"

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        runtime_of(parent.app).worker = getattr(parent, "hostname", None) or ""
        redact_canvas(parent.app)  # for tasks that were made after the application was finalized
        warn_of_useless_policies(parent.app)
        self._fallback: Fallback | None = None
        self._in_use = bool(cached_tasks(parent.app)) and not runtime_of(parent.app).settings.disabled
        if self._in_use and getattr(parent, "task_events", False):
            runtime_of(parent.app).send_events()
            parent.app.fixups = {*parent.app.fixups, TELLING_FIXUP} - {FIXUP}
            signals.task_postrun.connect(_tell_of_end, weak=False)  # before any task is traced: else it goes unheard
        if self._in_use:
            for task in cached_tasks(parent.app):
                _ = task.cache.plan

    def start(self, parent: Any) -> None:
        """Compare the tasks' bodies with those that stored the answers, and look after the roll-up."""
        if self._in_use:
            warn_of_changed_bodies(parent.app, runtime_of(parent.app))
            self._fallback = start_fallback(parent.app)

    def info(self, parent: Any) -> Any:
        """Return what ``inspect stats`` and Flower's page of the worker show of the cache; in half a second at most."""
        if not self._in_use:
            return {}
        from aicache_tasks.reports import inspect

        return {"aicache": inspect.line(parent.app)}

    def stop(self, parent: Any) -> None:
        """Stop what runs in the main process, and drop its connections."""
        if self._fallback is not None:
            self._fallback.stop()
        runtime_of(parent.app).close()


def start_fallback(app: Any) -> Fallback | None:
    """Have this worker roll up where beat does not; nothing if its samples stay here."""
    runtime = runtime_of(app)
    if runtime.cache.parts.outbox is None:
        return None
    fallback = Fallback(
        Summaries(runtime.cache.parts),
        lambda progress: roll_up(app, asked=False, progress=progress),
        since_asked_s,
        runtime.settings.rollup_period_s,
    )
    fallback.start()
    return fallback


def warn_of_useless_policies(app: Any) -> None:
    """Log each task that was given a policy and does not have the base class that reads it."""
    for name in useless_policies(app):
        log.warning("aicache: task %r has cache= but is not cached: give it base=CachedTask too", name)


def warn_of_changed_bodies(app: Any, runtime: Runtime) -> list[str]:
    """Log each task whose body is not the one that this version's answers were first computed by; return their names.

    The first worker that starts with a version leaves the body's fingerprint in the store, where it stays until the
    version changes. A store that does not answer is no reason not to start.
    """
    changed: list[str] = []
    for task in cached_tasks(app):
        name, policy = task.name, task.cache_policy
        if policy.version == AUTO_VERSION:
            continue
        mine = fingerprint(task.run).encode()
        key = runtime.cache.keys.code_key(policy.operation or name, policy.version)
        try:
            first = runtime.cache.parts.store.ensure([key], [mine], [0], Budget(ADMIN_BUDGET_S))[0]
        except StoreError as error:
            log.warning("aicache: cannot compare task bodies with the cache: %s", error.detail)
            return changed
        if first != mine:
            changed.append(name)
            log.warning(
                "aicache: the body of task %r changed but its cache version %r did not, so that answers of the former "
                "body are still served; give it a new version=, or version='auto'",
                name,
                policy.version,
            )
    return changed
