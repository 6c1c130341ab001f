"""
One log record per call of a task, at DEBUG.

In: how a call went.   Out: a record of the logger ``aicache_tasks.calls``; all of it is in its ``aicache`` attribute.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from aicache_tasks.records import CallInfo

CALLS: Final = logging.getLogger("aicache_tasks.calls")


def log_call(info: CallInfo, task_name: str, request: Any) -> None:
    """Log how a call went. Names, sizes and times: no argument and no answer, whatever the policy shows elsewhere."""
    if not CALLS.isEnabledFor(logging.DEBUG):
        return
    said = {"task": task_name, "task_id": getattr(request, "id", None), **info._asdict()}
    stored = f"{info.set_status} {info.set_reason}".rstrip()
    text = "aicache.call %s of %r in %s: key %.3f ms, get %.3f ms, compute %.3f ms, set %.3f ms %s"
    status, times = f"{info.status} {info.reason}".rstrip(), (info.key_ms, info.get_ms, info.compute_ms, info.set_ms)
    CALLS.debug(text, status, info.operation, task_name, *times, stored, extra={"aicache": said})
