"""
Tell of one task's calls: the task itself, the log, monitors, traces.

In: how a call went, and the request that it was made in.   Out: ``task.cache.last`` and ``request.aicache``; a record
in the log (`calllog`); attributes of the task's span (`tracing`); an event, once the task has ended (`events`).
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aicache_tasks.calllog import CALLS, log_call
from aicache_tasks.records import CallInfo, EntryMeta
from aicache_tasks.redaction import hides_arguments
from aicache_tasks.signals import steers
from aicache_tasks.tracing import API, annotate_span

if TYPE_CHECKING:
    from aicache_tasks.runtime import Runtime

log = logging.getLogger("aicache_tasks")


class Telling:
    """Tells of the calls of one task.

    Args:
        task: a `CachedTask` with a policy.
        runtime: of its application; knows whether events are sent.
    """

    def __init__(self, task: Any, runtime: Runtime) -> None:
        self._task, self._runtime = task, runtime
        self._last = threading.local()
        self._is_failing = False

    @property
    def last(self) -> CallInfo | None:
        """How this thread's last call of the task went, None before the first."""
        return getattr(self._last, "info", None)

    def note(self, info: CallInfo, request: Any) -> None:
        """Say how the call goes, to its body and to who made it; *request* is None outside of a worker."""
        self._last.info = info
        if request is None:
            return
        request.aicache = info
        if request.headers is None:  # else a nested request takes its attributes for headers, and a retry sends them
            request.headers = {}

    def returned(self, info: CallInfo, request: Any, took: Callable[[], EntryMeta]) -> None:
        """Tell traces, logs and monitors of a call that has returned; *took* says what its answer took."""
        if request is not None and API in sys.modules:
            self._annotate(info, request, took)
        events = self._runtime.events
        if events is None and not CALLS.isEnabledFor(logging.DEBUG):
            return
        log_call(info, self._task.name, request)
        if events is not None and request is not None and _attempt(request) != getattr(self._last, "retried", None):
            events.note(request, info, hidden=hides_arguments(self._task))

    def raised(self, info: CallInfo, request: Any, took: Callable[[], EntryMeta] = EntryMeta) -> None:
        """Tell traces and logs of a call that raises; monitors hear from Celery how its task went on."""
        if request is not None and API in sys.modules:
            self._annotate(info, request, took)
        log_call(info, self._task.name, request)

    def retried(self) -> None:
        """Take note that the task is retried, whatever its body returns: its call is not over."""
        self._last.retried = _attempt(self._task.request)

    def _annotate(self, info: CallInfo, request: Any, took: Callable[[], EntryMeta]) -> None:
        if request.is_eager:  # as without a request: the span that is open may be somebody else's
            return
        try:
            annotate_span(info, took)
        except Exception as error:  # whatever somebody's exporter raises, the task returns
            if steers(error):
                raise
            if not self._is_failing:
                self._is_failing = True
                log.warning("aicache: spans of %r say nothing: %s", self._task.name, type(error).__name__)


def _attempt(request: Any) -> tuple[Any, Any]:
    return request.id, request.retries
