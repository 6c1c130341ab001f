"""
Keep prompts and answers out of what Celery shows of a task: events, Flower, ``inspect``, logs.

In: a task with a policy, or a message sent by name.   Out: the same with ``<redacted>`` where its arguments would show.
"""

from __future__ import annotations

from typing import Any, Final

from celery import Task
from celery.worker.request import Request
from kombu.utils.imports import symbol_by_name

REDACTED: Final = "<redacted>"
REQUEST: Final = "aicache_tasks.redaction:RedactedRequest"
CANVAS: Final = frozenset(
    f"celery.{name}" for name in ("accumulate", "chain", "chord", "chord_unlock", "chunks", "group", "map", "starmap")
)
"""Celery's own tasks that are given other tasks' arguments or answers."""


class RedactedRequest(Request):
    """A worker's request that shows no arguments, whoever sent the message."""

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args, **kwargs)
        self._argsrepr = self._kwargsrepr = REDACTED
        headers = self._request_dict  # type: ignore[attr-defined] # not in the stubs
        headers["argsrepr"] = headers["kwargsrepr"] = REDACTED

    def info(self, safe: bool = False) -> Any:
        """Return what ``inspect`` shows of the call; the arguments themselves, which it shows by default, never."""
        return super().info(safe=True)


def redacted_request(given: Any) -> Any:
    """Return a ``Task.Request`` that hides arguments and is otherwise *given*, a class or its ``module:name``."""
    if given == Task.Request:
        return REQUEST
    base = symbol_by_name(given)
    return given if issubclass(base, RedactedRequest) else type(base.__name__, (RedactedRequest, base), {})


def redacted_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a send with the arguments' representations replaced."""
    return {**options, "argsrepr": REDACTED, "kwargsrepr": REDACTED}


def redact_sends(app: Any) -> None:
    """Make ``app.send_task`` hide the arguments of tasks that have a policy, and of tasks that *app* does not know.

    A producer that sends by name often has no copy of the task, so that it cannot tell whether there is a policy.
    """
    send = app.send_task
    if getattr(send, "_aicache", False):
        return

    def send_task(name: str, *args: Any, **options: Any) -> Any:
        return send(name, *args, **(redacted_options(options) if _hides(app, name) else options))

    send_task._aicache = True  # type: ignore[attr-defined] # marks the wrapper, so that installing twice wraps once
    app.send_task = send_task


def _hides(app: Any, name: str) -> bool:
    if name in CANVAS:
        redact_canvas(app)
    task = app._tasks.get(name)  # `app.tasks` finalizes the app, which a send by name does not need
    return task is None or hides_arguments(task)


def redact_canvas(app: Any) -> None:
    """Let Celery's own tasks in *app* that carry other tasks' arguments hide theirs, if any task hides its own."""
    tasks = app._tasks
    shown = [tasks[name] for name in CANVAS if name in tasks and not hides_arguments(tasks[name])]
    if shown and any(map(hides_arguments, list(tasks.values()))):
        for task in shown:
            task.redact_arguments, task.resultrepr_maxsize = True, 0
            task.Request = redacted_request(task.Request)


def hides_arguments(task: Any) -> bool:
    """Say whether the arguments and results of a task (or a class) are hidden: it or its policy says so."""
    policy = getattr(task, "cache_policy", None)
    return bool(getattr(task, "redact_arguments", False) or (policy is not None and policy.redact))
