"""
How each call went, told to the demo's client.

In: a task that ended, in a worker with `--include workers.demo_probe`.   Out: its `CallInfo`, in the client.

A task's result does not say whether it was cached, and should not. So the worker leaves the `CallInfo` of each call in
the result backend for a minute, under the task's id.
"""

from __future__ import annotations

import json
from typing import Any

from celery import Celery, Task
from celery.signals import task_postrun

from aicache_tasks.records import CallInfo

KEEP_S = 60


@task_postrun.connect
def leave(task_id: str, task: Task[Any, Any], **_: Any) -> None:
    """Leave how the call of *task_id* went."""
    info: CallInfo | None = getattr(task.request, "aicache", None)
    if info is None:
        return
    with _client(task.backend).pipeline() as pipeline:
        pipeline.rpush(_key(task_id), json.dumps(info))
        pipeline.expire(_key(task_id), KEEP_S)
        pipeline.execute()


def fetch(app: Celery, task_id: str, within_s: float) -> CallInfo | None:
    """Return how the call of *task_id* went, None if the worker did not say so *within_s* seconds."""
    found = _client(app.backend).blpop([_key(task_id)], timeout=within_s)
    return CallInfo(*json.loads(found[1])) if found else None


def _client(backend: Any) -> Any:
    """Return the redis-py client of a Redis result backend."""
    return backend.client


def _key(task_id: str) -> str:
    return f"demo:{task_id}"
