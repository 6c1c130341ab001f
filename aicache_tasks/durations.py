"""
Durations as people write them.

In: seconds or "90s", "2h5m", "1d".   Out: seconds as float.   Pure.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Final

from aicache_tasks.errors import SettingsError

Duration = int | float | str | timedelta

MAX_DURATION_S: Final = 100 * 365 * 86400.0
"""A hundred years; far longer ones overflow the clocks of servers and drivers."""

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_NUMBER = r"\d+(?:\.\d+)?"
_PART = re.compile(rf"({_NUMBER})(ms|[smhdw])")
_TEXT = re.compile(rf"(?:{_NUMBER}(?:ms|[smhdw]))+")
_MAX_TEXT = 64
_MAX_SHOWN = 40


def parse_duration(given: Duration, *, name: str) -> float:
    """Return *given* as seconds.

    Args:
        given: seconds, a `timedelta`, or text such as ``"90s"``, ``"2h5m"``, ``"1d"``, of 64 characters at most.
        name: the setting it came from, for the error.

    Raises:
        SettingsError: not a duration, negative, or over `MAX_DURATION_S`.

    >>> parse_duration("2h5m", name="ttl")
    7500.0
    >>> parse_duration(90, name="ttl")
    90.0
    """
    seconds = seconds_in(given)
    if seconds is None or math.isnan(seconds):
        raise SettingsError(
            f"{name}: {shorten(given)} is not a duration; write seconds or text such as '90s', '2h5m', '1d'"
        )
    if seconds < 0:
        raise SettingsError(f"{name}: {shorten(given)} is negative; a duration is 0 or more")
    if seconds > MAX_DURATION_S:
        raise SettingsError(f"{name}: longer than a hundred years")
    return seconds


def show_duration(seconds: float) -> str:
    """Return seconds as people write them, for tables and errors.

    >>> [show_duration(seconds) for seconds in (5_184_000, 7500, 90, 1, 0.25, 0)]
    ['60d', '2h5m', '1m30s', '1s', '0.25s', '0s']
    """
    if not seconds or not float(seconds).is_integer():
        return f"{seconds:g}s"
    shown, rest = "", int(seconds)
    for unit in "dhms":
        count, rest = divmod(rest, int(_UNIT_S[unit]))
        shown += f"{count}{unit}" if count else ""
    return shown


def shorten(given: object) -> str:
    """Return ``repr(given)``, cut to 40 characters, for an error.

    >>> shorten("90s"), len(shorten("x" * 1000)), shorten(10**5000)
    ("'90s'", 40, 'a very large int')
    """
    try:
        shown = repr(given[:_MAX_SHOWN] if isinstance(given, (str, bytes)) else given)
    except (ValueError, RecursionError):  # an int of more than 4,300 digits, deep nesting
        return f"a very large {type(given).__name__}"
    return shown if len(shown) <= _MAX_SHOWN else shown[: _MAX_SHOWN - 1] + "…"


def seconds_in(given: object) -> float | None:
    """Return *given* as seconds, whatever they are; None if it is no duration.

    >>> seconds_in("100000d"), seconds_in("soon")
    (8640000000.0, None)
    """
    if isinstance(given, timedelta):
        return given.total_seconds()
    if isinstance(given, bool):
        return None
    if isinstance(given, (int, float)):
        return float(max(min(given, 2 * MAX_DURATION_S), -1))  # an int may be too large for a float
    return _parse_text(given) if isinstance(given, str) and len(given) <= _MAX_TEXT else None


def _parse_text(text: str) -> float | None:
    text = text.strip().lower()
    try:
        return float(text)
    except ValueError:
        pass
    if not _TEXT.fullmatch(text):
        return None
    return sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))
