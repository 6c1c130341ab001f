"""
Keeps what is told of calls from changing what Flower shows of a task.

In: every event that Flower gets.   Out: the same for Flower's state, ``task-cache-…`` only once their task has ended.

An event that Flower does not know becomes the state of a task that has not ended for it, or that it does not know: it
started after the end of the task, has forgotten it, or the worker was too busy to say that it ended. Such an event is
counted at once, and kept until the end is told; where that never comes, until `MOST_KEPT` others are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from celery.states import FAILURE, SUCCESS
from flower.events import EventsState, State

OURS: Final = "task-cache-"
ENDED: Final = frozenset((SUCCESS, FAILURE))
"""The states that an event which Celery does not know leaves alone; it changes REVOKED."""
MOST_KEPT: Final = 10_000
"""The oldest go first."""

Event = dict[str, Any]


def keep_states() -> None:
    """Have the Flower of this process take such events only for tasks that have ended.

    Raises:
        AttributeError: it is another Flower.
    """
    EventsState.event = guarded(EventsState.event, OrderedDict())


def guarded(take: Callable[[Any, Event], None], kept: OrderedDict[str, Event]) -> Callable[[Any, Event], None]:
    """Return *take*, Flower's method for each event, with a guard; *kept* is what waits, by task."""

    @wraps(take)
    def event(state: Any, event: Event) -> None:
        task_id = event.get("uuid", "")
        is_ours = event["type"].startswith(OURS)
        if is_ours and not _has_ended(state, task_id):
            _keep(kept, event)
            _count(state, event)
            return
        take(state, event)
        if kept and not is_ours and task_id in kept and _has_ended(state, task_id):
            State.event(state, kept.pop(task_id))  # Celery's part: it is counted already
            state.search_engine.upsert(state.tasks[task_id])

    return event


def _has_ended(state: Any, task_id: str) -> bool:
    task = state.tasks.get(task_id)
    return task is not None and task.state in ENDED


def _keep(kept: OrderedDict[str, Event], event: Event) -> None:
    kept[event["uuid"]] = event
    kept.move_to_end(event["uuid"])
    if len(kept) > MOST_KEPT:
        kept.popitem(last=False)


def _count(state: Any, event: Event) -> None:
    worker, kind = event["hostname"], event["type"]
    state.counter[worker][kind] += 1
    known = state.tasks.get(event["uuid"])
    state.metrics.events.labels(worker, kind, event.get("name") or getattr(known, "name", None) or "").inc()
