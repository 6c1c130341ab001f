"""
Events: tells Flower and other monitors which calls were answered from the cache.

In: how a worker's call went, and later the end of its task.   Out: an event ``task-cache-hit``, ``task-cache-miss`` …
of it, `DELAY_S` after that end.

A monitor takes an event that it does not know for the state of the task, unless the task has ended before. So nothing
is told of a call that raised, and of others only when their task has ended: after its result is stored and its handlers
have run, which may take as long as they like. The delay is for the worker to say so. The event says how it went in
``kwargs``, which monitors show and search, and in ``cache`` and ``operation``; a thread sends it.

A monitor that was not told of the end takes the event for the state all the same: one that started in those two
seconds, or whose worker was too busy to tell. A Flower with the tab does not (``reports/flower/taskstate.py``).
"""

from __future__ import annotations

import ast
import logging
import random
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from aicache_tasks.records import HIT_STATUSES, CallInfo
from aicache_tasks.redaction import REDACTED

log = logging.getLogger("aicache_tasks")

DELAY_S: Final = 2.0
"""How much later than its task's end an event is sent."""
LEAST_DELAY_S: Final = 0.1
"""The same in a pool's process that ends because it has done its number of tasks."""
MOST_WAITING: Final = 10_000
"""The oldest go first."""
_AT_ONCE: Final = 500
_END_S: Final = 1.0
_ENDS: Final = ("SUCCESS", "FAILURE")
_NOTED: Final = "_aicache_told"
"""Where a request keeps what is to be told of it: it goes when the request goes."""


class Told(NamedTuple):
    """A call that is to be told of."""

    at_s: float
    """When its task ended, seconds since the epoch."""
    task_id: str
    worker: str
    status: str
    operation: str
    shown: str | None
    """The keyword arguments as Celery shows them, None where they are hidden."""
    task: str = ""
    """The task's name."""


class CallEvents:
    """Sends events of calls from a thread of this process. Thread-safe; nothing here survives a fork but the settings.

    Args:
        app: the Celery application.
        part: of the calls that are told of; 1 for all.
    """

    def __init__(self, app: Any, part: float) -> None:
        self._app_of: Callable[[], Any] = weakref.ref(app)
        self._part, self._random = part, random.Random()  # noqa: S311 - a sample is no secret
        self._waiting: deque[Told] = deque(maxlen=MOST_WAITING)
        # Re-entrant: the handler of SIGTERM ends this, perhaps in the middle of `ended`.
        self._lock, self._wake, self._ending = threading.RLock(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._is_awake = self._is_failing = False  # the thread alone says that it is awake: others may not get to it
        self._delay_s = DELAY_S

    def note(self, request: Any, info: CallInfo, *, hidden: bool) -> None:
        """Take note of a call that has returned; it is told of once its task has ended. O(1), raises nothing.

        Args:
            request: the task's; one without an id, of an eager task, or of a retry at once, is not told of.
            info: how the call went.
            hidden: whether its arguments are.
        """
        if not request.id or request.is_eager or (self._part < 1 and self._random.random() >= self._part):
            return
        if request.retries and not request.eta:  # its worker may say that it succeeded before that it was retried
            return
        shown = None if hidden else request.kwargsrepr or ""
        name = getattr(request, "task", None) or ""
        vars(request)[_NOTED] = Told(0.0, request.id, request.hostname or "", info.status, info.operation, shown, name)

    def ended(self, request: Any, state: str | None) -> None:
        """Tell of the call of a task that has ended in *state*, if one was noted. O(1), sends nothing, raises nothing.

        Not of one that an exception is passing through (what a handler raised, the pool's own): it ends otherwise.
        """
        told = vars(request).pop(_NOTED, None)
        if told is None or state not in _ENDS or sys.exc_info()[0] is not None:
            return
        self._waiting.append(told._replace(at_s=time.time()))
        if not self._is_awake:
            self._attend()

    def end(self, *, tell: bool) -> None:
        """Stop; first *tell* of what waits, or drop it: a worker that has said good-bye would seem to be back."""
        if not tell:
            with self._lock:
                self._waiting.clear()
        self._delay_s = LEAST_DELAY_S
        self._ending.set()
        self._wake.set()
        if tell and self._thread is not None and self._thread.is_alive():
            self._thread.join(_END_S)

    def _attend(self) -> None:
        """Have a thread that is awake; where none can be had, the next call asks again."""
        if not self._wake.is_set():
            self._wake.set()
        with self._lock:
            if self._ending.is_set() or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = threading.Thread(target=self._run, name="aicache-events", daemon=True)
            with suppress(RuntimeError):  # no more threads, or the interpreter ends
                self._thread.start()

    # The thread.

    def _run(self) -> None:
        while self._await_one():
            self._send(self._due())

    def _await_one(self) -> bool:
        """Wait until the oldest is due; return False if there will be none."""
        while not self._waiting:
            if self._ending.is_set():
                return False
            self._is_awake = False
            if not self._waiting:  # else it came in between
                self._wake.wait()
            self._wake.clear()
        self._is_awake = True
        if (left_s := self._left_s()) and self._ending.wait(left_s):
            time.sleep(self._left_s())  # the delay is shorter now
        return True

    def _left_s(self) -> float:
        with self._lock:
            ended_s = self._waiting[0].at_s if self._waiting else 0.0
        return min(max(ended_s + self._delay_s - time.time(), 0.0), self._delay_s)

    def _due(self) -> list[Told]:
        due: list[Told] = []
        until_s = time.time() - self._delay_s
        with self._lock:
            while self._waiting and self._waiting[0].at_s <= until_s and len(due) < _AT_ONCE:
                due.append(self._waiting.popleft())
        return due

    def _send(self, told: list[Told]) -> None:
        app = self._app_of()
        if app is None or not told:
            return
        try:
            with app.events.default_dispatcher(hostname=told[0].worker) as dispatcher:
                for one in told:
                    dispatcher.send(type_of(one.status), uuid=one.task_id, timestamp=one.at_s, **fields_of(one))
            self._is_failing = False
        except Exception as error:  # noqa: BLE001 - each broker has its own errors; no task runs in this thread
            if not self._is_failing:
                self._is_failing = True
                log.warning("aicache: events of calls are lost: %s", type(error).__name__)


def type_of(status: str) -> str:
    """Return the event's type: a hit is a hit however it came about, and only a miss is a miss.

    >>> [type_of(status) for status in ("hit", "joined", "miss", "bypass")]
    ['task-cache-hit', 'task-cache-hit', 'task-cache-miss', 'task-cache-bypass']
    """
    return f"task-cache-{'hit' if status in HIT_STATUSES else status}"


def fields_of(told: Told) -> dict[str, Any]:
    """Return what the event says beside its type, task and time.

    >>> fields_of(Told(0.0, "id", "w@h", "hit", "shout", None))["kwargs"]
    "{'cache': 'hit', 'operation': 'shout', 'arguments': '<redacted>'}"

    An argument that has the name of one of ours is not shown: monitors are searched for ours. Arguments that a
    monitor could not read again, a date or what Celery cut, are shown as one text: else it could not search at all.

    >>> print(fields_of(Told(0.0, "id", "w@h", "hit", "shout", "{'x': inf}"))["kwargs"])
    {'cache': 'hit', 'operation': 'shout', 'arguments': "{'x': inf}"}
    """
    said = {"cache": told.status, "operation": told.operation}
    fields = said | ({"name": told.task} if told.task else {})
    shown = REDACTED if told.shown is None else told.shown
    arguments = None if told.shown is None else _mapping(told.shown)
    return fields | {"kwargs": repr(said | ({"arguments": shown} if arguments is None else arguments | said))}


def _mapping(shown: str) -> dict[str, Any] | None:
    """Return the keyword arguments in what Celery shows of them, None if they are not all there."""
    try:
        found = ast.literal_eval(shown or "{}")
        ast.literal_eval(repr(found))  # Celery cuts with `...`, which is a literal; its value's name is not
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
