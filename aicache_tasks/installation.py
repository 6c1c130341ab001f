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
from aicache_tasks.policy import AUTO_VERSION
from aicache_tasks.redaction import redact_sends
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
    app.steps["worker"].add(AICacheStep)
    signals.import_modules.connect(_hide_secrets)  # before `celery report` and workers show the configuration
    return app


def _hide_secrets(sender: Any, **_: Any) -> None:
    hide_secrets(sender)


class AICacheStep(bootsteps.StartStopStep):
    """Checks the settings before a worker takes tasks."""

    name = "aicache"

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        runtime = runtime_of(parent.app)
        if runtime.policies.operations() and not runtime.settings.disabled:
            _ = runtime.cache

    def start(self, parent: Any) -> None:
        """Compare the tasks' bodies with those that stored the answers in the cache."""
        runtime = runtime_of(parent.app)
        if runtime.policies.operations() and not runtime.settings.disabled:
            warn_of_changed_bodies(parent.app, runtime)

    def stop(self, parent: Any) -> None:
        """Drop the main process's connections."""
        runtime_of(parent.app).close()


def warn_of_changed_bodies(app: Any, runtime: Runtime) -> list[str]:
    """Log each task whose body is not the one that this version's answers were first computed by; return their names.

    The first worker that starts with a version leaves the body's fingerprint in the store, where it stays until the
    version changes. A store that does not answer is no reason not to start.
    """
    changed: list[str] = []
    for name, task in sorted(app.tasks.items()):
        policy = getattr(task, "cache_policy", None)
        if policy is None or policy.version == AUTO_VERSION:
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
