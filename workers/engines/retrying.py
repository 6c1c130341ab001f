"""
When a failed request is sent again.

In: an attempt, the retries left and a deadline.   Out: what an attempt returned, or the `EngineError` of the last one.

Waits are full-jitter exponential back-off (Marc Brooker, "Exponential Backoff and Jitter", 2015), or what the server's
``Retry-After`` says (RFC 9110 §10.2.3). A wait that would pass the deadline is not begun.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from workers.engines.base import EngineError

FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 8.0
LONGEST_ASKED_S: Final = 31_536_000.0
"""A year: an error holds no endless number, which JSON has not."""
_Answer = TypeVar("_Answer")


class AttemptFailed(Exception):  # noqa: N818 - read as a noun in handlers
    """An attempt failed; does not leave the engine.

    Args:
        error: what the caller gets if it is the last attempt.
        again: whether another attempt may do better.
        wait_s: seconds that the server asks to wait, if it does.
    """

    def __init__(self, error: EngineError, *, again: bool = False, wait_s: float | None = None) -> None:
        super().__init__(error)
        self.error, self.again, self.wait_s = error, again, wait_s


def with_retries(attempt: Callable[[], _Answer], retries: int, deadline: float) -> _Answer:
    """Return what *attempt* returns, called up to ``retries + 1`` times until *deadline* (`time.monotonic`).

    Raises:
        EngineError: the last attempt's.
    """
    for done in range(retries + 1):
        try:
            return attempt()
        except AttemptFailed as failed:
            wait_s = backoff_s(done) if failed.wait_s is None else failed.wait_s
            if done == retries or not failed.again or wait_s >= deadline - time.monotonic():
                raise failed.error from None
            time.sleep(wait_s)
    raise AssertionError("the loop returns or raises")


def backoff_s(done: int) -> float:
    """Return seconds to wait after *done* + 1 attempts: anything from 0 to a bound that doubles."""
    return random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**done))  # noqa: S311 - no secret


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that ``Retry-After-Ms`` or ``Retry-After`` asks to wait, at most a year, None if unreadable.

    Args:
        headers: of the reply, names in small letters.
        now: seconds since the epoch, for a date.

    >>> retry_after_s({"retry-after": "2"}, 0)
    2.0
    >>> retry_after_s({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, 48)
    12.0
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            found = float(headers.get(name, "")) * unit_s
        except ValueError:
            continue
        if found >= 0:  # not a NaN either
            return min(found, LONGEST_ASKED_S)
    try:
        found = parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(0.0, found), LONGEST_ASKED_S)
