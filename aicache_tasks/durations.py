"""
Durations as people write them.

In: seconds or "90s", "2h5m", "1d".   Out: seconds as float.   Pure.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta

from aicache_tasks.errors import SettingsError

Duration = int | float | str | timedelta

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def parse_duration(given: Duration, *, name: str) -> float:
    """Return *given* as seconds.

    Args:
        given: seconds, a `timedelta`, or text such as ``"90s"``, ``"2h5m"``, ``"1d"``.
        name: the setting it came from, for the error.

    Raises:
        SettingsError: not a duration, negative, or not finite.

    >>> parse_duration("2h5m", name="ttl")
    7500.0
    >>> parse_duration(90, name="ttl")
    90.0
    """
    seconds = _seconds(given)
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        raise SettingsError(f"{name}: {given!r} is not a duration; write seconds or text such as '90s', '2h5m', '1d'")
    return seconds


def _seconds(given: object) -> float | None:
    if isinstance(given, timedelta):
        return given.total_seconds()
    if isinstance(given, bool):
        return None
    if isinstance(given, (int, float)):
        return float(given)
    return _parse_text(given) if isinstance(given, str) else None


def _parse_text(text: str) -> float | None:
    text = text.strip().lower()
    try:
        return float(text)
    except ValueError:
        pass
    if not text or _PART.sub("", text):
        return None
    return sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))
