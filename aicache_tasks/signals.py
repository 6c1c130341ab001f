"""
Holds a soft time limit back while a cache call runs.

In: a call's start and end.   Out: the limit's exception at the end of the call instead of inside it; and which of the
exceptions that are caught are not ours to keep.

A worker's child enforces soft limits by a signal handler that raises. Raised between a request and its reply, that
would leave a connection with another call's answer in it. A signal mask does not help once another thread lives: the
kernel gives the signal to that thread, and Python still runs the handler in the main one. So the handler is wrapped.
"""

from __future__ import annotations

import importlib
import signal
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

Handler = Callable[[int, Any], Any]

# `signal.getsignal` looks its answer up in an enum: 2 µs against 20 ns.
_getsignal: Callable[[int], Any] = getattr(importlib.import_module("_signal"), "getsignal", signal.getsignal)

SOFT_LIMIT_SIGNAL: Final[int] = signal.SIGUSR1
"""What billiard sends to a child whose task is over its soft limit."""


class SoftLimitHold:
    """Notes a soft limit that arrives during a call, and lets it act when the call ends.

    Only the main thread's calls are held: Python runs signal handlers nowhere else. A hold ends by itself at the time
    given to `begin`, so that a call which was itself torn down cannot keep a limit back for ever.
    """

    def __init__(self) -> None:
        self.noted = 0
        self._until = 0.0
        self._waiting: tuple[Handler, int, Any] | None = None
        self._wrapper: Handler | None = None

    def begin(self, until: float) -> None:
        """Hold soft limits from now to `end`, or to *until* (a `time.perf_counter` value) at most."""
        if threading.current_thread() is not threading.main_thread():
            return
        if _getsignal(SOFT_LIMIT_SIGNAL) is not self._wrapper:
            self._wrap()
        self._until = until

    def end(self) -> None:
        """Stop holding; a soft limit that was noted acts now, which raises."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._until = 0.0
        if self._waiting is not None:
            handler, number, frame = self._waiting
            self._waiting = None
            handler(number, frame)

    def _wrap(self) -> None:
        original = _getsignal(SOFT_LIMIT_SIGNAL)
        if not callable(original):
            return  # no worker here: the signal would end the process, or nobody listens

        def hold_or_act(number: int, frame: Any) -> None:
            if time.perf_counter() >= self._until:
                original(number, frame)
                return
            self.noted += 1
            self._waiting = (original, number, frame)

        signal.signal(SOFT_LIMIT_SIGNAL, hold_or_act)
        self._wrapper = hold_or_act


SOFT_LIMITS: Final = SoftLimitHold()
"""The process's one hold: there is one handler for a signal."""


def steers(error: BaseException) -> bool:
    """Say whether *error* steers a task: never ours to keep.

    These are Celery's and billiard's own (Retry, Ignore, Reject, a soft time limit) and what a signal handler raised.
    """
    if any(kind.__module__.partition(".")[0] in ("celery", "billiard") for kind in type(error).__mro__):
        return True
    return raised_by_handler(error, within="aicache_tasks") is not None


def raised_by_handler(error: BaseException, *, within: str) -> BaseException | None:
    """Return what a signal handler raised, if that became *error*; None if *error* is a fault of its own.

    A handler's ``TimeoutError`` is one that socket code takes for its own.

    Args:
        error: what was caught.
        within: name of the package whose code may have caught the handler's exception and raised another.
    """
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()} - {None}
    suspect: BaseException | None = error
    while suspect is not None:
        if handlers.intersection(frame.f_code for frame, _ in traceback.walk_tb(suspect.__traceback__)):
            return suspect
        suspect = suspect.__context__
        if suspect is None or suspect.__traceback__ is None or not _is_in(suspect.__traceback__.tb_frame, within):
            return None  # the caller's own exception, which it was handling when it called
    return None


def _is_in(frame: FrameType, package: str) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == package
