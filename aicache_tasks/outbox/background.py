"""
The thread that sends what no look-up carried, and the end of the process.

In: an outbox.   Out: its batches, sent in time.

The thread holds its outbox only while it works, so that a cache which is dropped takes its thread with it; but not
before what it recorded is sent.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import queue
import threading
import weakref
from collections.abc import Callable
from multiprocessing import util
from time import monotonic
from typing import Final, Protocol

FLUSH_S: Final = 2.0
"""How long an ending process tries to send what waits."""


class Sends(Protocol):
    """What is asked of an outbox here."""

    def tick(self) -> float:
        """Send what is overdue; return for how many seconds there is nothing to do."""

    def flush(self, seconds: float, *, last: bool) -> bool:
        """Send what waits."""

    def after_fork(self) -> None:
        """In a forked child: start empty."""


WAITING: Final[set[Sends]] = set()
"""Outboxes in which samples wait. They stay if their cache is dropped meanwhile."""

_LAST_OF_ALL: Final = -100
"""Priority among what a process of `multiprocessing` does at its end: after its own pools, queues and managers."""
_OUTBOXES: Final[weakref.WeakSet[Sends]] = weakref.WeakSet()


def begin_thread(outbox: Sends, wake: queue.SimpleQueue[None]) -> bool:
    """Start the thread of *outbox*, which items of *wake* wake; return False if the process may have no more threads.

    A `SimpleQueue`, since it may be put into from where any lock may be held: the collection of garbage, or a signal.
    """
    outbox_of = weakref.ref(outbox, lambda _: wake.put(None))
    try:
        threading.Thread(target=_run, args=(outbox_of, wake), name="aicache-samples", daemon=True).start()
    except RuntimeError:  # also while the interpreter ends
        return False
    return True


def _run(outbox_of: Callable[[], Sends | None], wake: queue.SimpleQueue[None]) -> None:
    while (outbox := outbox_of()) is not None:
        wait_s = outbox.tick()
        del outbox
        with contextlib.suppress(queue.Empty):
            wake.get(timeout=wait_s)


def watch(outbox: Sends) -> None:
    """Have what waits in *outbox* sent when the process ends, and forgotten in a child that is forked."""
    _OUTBOXES.add(outbox)
    _watch_process()


def flush_all(seconds: float = FLUSH_S, *, last: bool = False) -> None:
    """Send what waits in this process, in *seconds* for all of it; see `Outbox.flush`."""
    ends_s = monotonic() + seconds
    for outbox in list(_OUTBOXES):
        outbox.flush(max(ends_s - monotonic(), 0.0), last=last)


@functools.cache
def _watch_process() -> None:
    os.register_at_fork(after_in_child=_after_fork)
    atexit.register(flush_all, last=True)
    # A child of `multiprocessing` ends without `atexit`. It drops the finalizers of its parent and then calls this.
    util.register_after_fork(_OUTBOXES, _flush_at_the_end_of_a_child)
    _flush_at_the_end_of_a_child(_OUTBOXES)


def _flush_at_the_end_of_a_child(_: object) -> None:
    util.Finalize(None, flush_all, kwargs={"last": True}, exitpriority=_LAST_OF_ALL)


def _after_fork() -> None:
    for outbox in list(_OUTBOXES):
        outbox.after_fork()
