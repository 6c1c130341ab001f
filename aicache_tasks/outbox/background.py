"""
The thread that sends what no look-up carried, and the end of the process.

In: an outbox.   Out: its batches, sent in time.

The thread holds its outbox only while it works, so that a cache which is dropped takes its thread with it.
"""

from __future__ import annotations

import atexit
import functools
import threading
import weakref
from collections.abc import Callable
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


_OUTBOXES: Final[weakref.WeakSet[Sends]] = weakref.WeakSet()


def begin_thread(outbox: Sends, wake: threading.Event) -> bool:
    """Start the thread of *outbox*, which *wake* wakes; return False if the process may have no more threads."""
    try:
        threading.Thread(target=_run, args=(weakref.ref(outbox), wake), name="aicache-samples", daemon=True).start()
    except RuntimeError:  # also while the interpreter ends
        return False
    return True


def _run(outbox_of: Callable[[], Sends | None], wake: threading.Event) -> None:
    while (outbox := outbox_of()) is not None:
        wake.clear()
        wait_s = outbox.tick()
        del outbox
        wake.wait(wait_s)


def flush_at_exit(outbox: Sends) -> None:
    """Have what waits in *outbox* sent when the process ends, by `atexit` or by a worker's own hooks."""
    _OUTBOXES.add(outbox)
    _watch_exit()


def flush_all(seconds: float = FLUSH_S, *, last: bool = False) -> None:
    """Send what waits in this process, in *seconds* for all of it; see `Outbox.flush`."""
    ends_s = monotonic() + seconds
    for outbox in list(_OUTBOXES):
        outbox.flush(max(ends_s - monotonic(), 0.0), last=last)


@functools.cache
def _watch_exit() -> None:
    atexit.register(flush_all, last=True)
