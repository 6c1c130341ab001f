"""
By when an answer must be there.

In: the seconds that are configured, and the task that a worker runs here.   Out: a moment of `time.monotonic`; the
turns of a host's addresses until then.

An answer that comes after the task's soft time limit helps nobody, and the limit's exception tells less than an error
of ours: so the deadline is a little before it. In a task that asks for several answers one after the other (a batch)
the limit counts from the first of them.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from celery import current_app

_MARGIN: Final = 0.1
_MAX_MARGIN_S: Final = 2.0
_BEGAN: Final = "aicache_engine_began_s"


def deadline_within(timeout_s: float) -> float:
    """Return when to give up: *timeout_s* from now, or shortly before the soft time limit of the task that runs here.

    A limit that only ``celery worker --soft-time-limit`` sets cannot be seen from a task.
    """
    now = time.monotonic()
    task: Any = current_app.current_worker_task
    limit_s = None if task is None else soft_limit_s(task)
    if limit_s is None:
        return now + timeout_s
    began: float = vars(task.request).setdefault(_BEGAN, now)
    return min(now + timeout_s, began + limit_s - min(_MAX_MARGIN_S, _MARGIN * limit_s))


def soft_limit_s(task: Any) -> float | None:
    """Return the time limit of *task*'s current run in seconds: soft, or hard if there is no other; None if none."""
    hard, soft = task.request.timelimit or (None, None)
    conf = task.app.conf  # before Celery 5.7 its limits are the pool's, and no task has them
    soft = soft or task.soft_time_limit or conf.task_soft_time_limit
    found: float | None = soft or hard or task.time_limit or conf.task_time_limit
    return found


def addresses(host: str, port: int) -> list[str]:
    """Return the addresses of *host* in the order to try them.

    Raises:
        OSError: it has none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:  # a label is empty, or too long
        raise OSError("no name of a host") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def turns(given: Sequence[str], ends: float) -> Iterator[tuple[str, float]]:
    """Yield each address with its share of the seconds until *ends*: one that is silent leaves time for the rest.

    >>> [(address, round(share_s)) for address, share_s in turns(["a", "b"], time.monotonic() + 8)]
    [('a', 4), ('b', 8)]
    """
    for done, address in enumerate(given):
        left_s = ends - time.monotonic()
        if left_s <= 0:
            return
        yield address, left_s / (len(given) - done)
