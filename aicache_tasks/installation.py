"""
`install(app)`: what an application needs beside the task base class.

In: a Celery application.   Out: the same, with redacted sends, settings checked at worker start, and a warning when a
task's body changed and its version did not.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps, signals

from aicache_tasks.errors import StoreError
from aicache_tasks.fingerprint import fingerprint
from aicache_tasks.invalidation import ADMIN_BUDGET_S
from aicache_tasks.policy import AUTO_VERSION, CachePolicy
from aicache_tasks.redaction import redact_canvas, redact_sends
from aicache_tasks.runtime import Runtime, hide_secrets, runtime_of
from aicache_tasks.stores.base import Budget

log = logging.getLogger("aicache_tasks")


def install(app: Any) -> Any:
    """Prepare *app* for cached tasks, and return it. Calling it twice is calling it once.

    Set ``app.conf.aicache_url`` before the first task runs. Settings are read then, or when a worker starts; a worker
    with a wrong setting does not start.

    >>> from celery import Celery
    >>> app = install(Celery("shop", broker="memory://"))
    """
    redact_sends(app)
    app.on_after_finalize.connect(_redact_canvas)
    if app.finalized:
        redact_canvas(app)
    app.steps["worker"].add(AICacheStep)
    signals.import_modules.connect(_hide_secrets)  # before `celery report` and workers show the configuration
    return app


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
        redact_canvas(parent.app)  # for tasks that were made after the application was finalized
        warn_of_useless_policies(parent.app)
        self._in_use = bool(cached_tasks(parent.app)) and not runtime_of(parent.app).settings.disabled
        if self._in_use:
            for task in cached_tasks(parent.app):
                _ = task.cache.plan

    def start(self, parent: Any) -> None:
        """Compare the tasks' bodies with those that stored the answers in the cache."""
        if self._in_use:
            warn_of_changed_bodies(parent.app, runtime_of(parent.app))

    def stop(self, parent: Any) -> None:
        """Drop the main process's connections."""
        runtime_of(parent.app).close()


def cached_tasks(app: Any) -> list[Any]:
    """Return the tasks of *app* that have a policy, by name."""
    return [task for _, task in sorted(app.tasks.items()) if getattr(task, "cache_policy", None) is not None]


def warn_of_useless_policies(app: Any) -> None:
    """Log each task that was given a policy and does not have the base class that reads it."""
    for name, task in sorted(app.tasks.items()):
        if isinstance(getattr(task, "cache", None), CachePolicy):
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
