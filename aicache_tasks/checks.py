"""
What each setting's value may be.

In: a setting's name, and what was given for it.   Out: the value, or a `SettingsError` that names the setting.   Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from aicache_tasks.durations import parse_duration, shorten
from aicache_tasks.errors import SettingsError

OPERATION_TTLS_S: Final[Mapping[str, float]] = {
    "summarize": 7200.0,
    "sentiment": 86400.0,
    "key_points": 7200.0,
    "questions": 3600.0,
    "qa": 1800.0,
}
TEXT_TIERS: Final[Mapping[str, int]] = {"small": 500, "medium": 5000, "large": 50_000}
URL_SCHEMES: Final = ("redis", "rediss", "unix", "redis+socket", "memory")
LEAST_PERIOD_S: Final = 0.1
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}


def switch(name: str, given: Any) -> bool:
    """Return a bool, or what people write for one."""
    if isinstance(given, bool):
        return given
    word = given.strip().lower() if isinstance(given, str) else shorten(given)
    if word in _TRUE | _FALSE:
        return word in _TRUE
    raise SettingsError(f"{name}: {shorten(given)} is not a switch; write true or false")


def _number(name: str, given: Any, kind: Callable[[Any], Any], low: float, high: float) -> Any:
    try:
        if isinstance(given, bool):
            raise ValueError
        value = kind(given)
    except (TypeError, ValueError, OverflowError):
        raise SettingsError(f"{name}: {shorten(given)} is not a number from {plain(low)} to {plain(high)}") from None
    if not low <= value <= high:
        raise SettingsError(f"{name}: {shorten(value)} is outside {plain(low)} to {plain(high)}")
    return value


def plain(number: float) -> str:
    """Return *number* without an exponent, as it may be typed in again.

    >>> plain(10_000_000), plain(2.0**40), plain(0.5)
    ('10000000', '1099511627776', '0.5')
    """
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


def whole(low: int, high: int) -> Callable[[str, Any], int]:
    """Return a check for whole numbers in a range."""
    return lambda name, given: int(_number(name, given, _whole, low, high))


def _whole(given: Any) -> int:
    if isinstance(given, float) and not given.is_integer():
        raise ValueError
    return int(given)


def number(low: float, high: float) -> Callable[[str, Any], float]:
    """Return a check for numbers in a range."""
    return lambda name, given: float(_number(name, given, float, low, high))


def duration(name: str, given: Any) -> float:
    """Return seconds above 0; takes ``"2h5m"`` too."""
    seconds = parse_duration(given, name=name)
    if seconds == 0:
        raise SettingsError(f"{name}: must be longer than 0")
    return seconds


def duration_or_zero(name: str, given: Any) -> float:
    """Return seconds; takes ``"2h5m"`` too."""
    return parse_duration(given, name=name)


def period(name: str, given: Any) -> float:
    """Return seconds, 0 or `LEAST_PERIOD_S` at least; takes ``"2h5m"`` too."""
    seconds = duration_or_zero(name, given)
    if 0 < seconds < LEAST_PERIOD_S:
        raise SettingsError(f"{name}: {shorten(given)} is less than {LEAST_PERIOD_S:g} s; write 0 for never")
    return seconds


def label(name: str, given: Any) -> str:
    """Return a printable name, which may be empty."""
    if not isinstance(given, str) or len(given) > 255 or not given.isprintable():
        raise SettingsError(f"{name}: {shorten(given)} is not a name of up to 255 printable characters")
    return given


def choice(*allowed: str) -> Callable[[str, Any], str]:
    """Return a check for one of *allowed*."""

    def check(name: str, given: Any) -> str:
        if given not in allowed:
            raise SettingsError(f"{name}: {shorten(given)} is not one of {', '.join(allowed)}")
        return str(given)

    return check


def url(name: str, given: Any) -> str | None:
    """Return the URL of a server, None for none."""
    if given is None or given == "":
        return None
    if not isinstance(given, str) or _scheme(given) not in URL_SCHEMES:
        raise SettingsError(
            f"{name}: must be a URL that starts with one of {', '.join(s + '://' for s in URL_SCHEMES)}"
        )
    return given


def _scheme(url: str) -> str:
    try:
        return urlsplit(url).scheme
    except ValueError:  # such as a bracket that is not closed
        return ""


def namespace(name: str, given: Any) -> str:
    """Return what may begin a key."""
    if not isinstance(given, str) or not re.fullmatch(r"[A-Za-z0-9_.\-]{1,32}", given):
        raise SettingsError(f"{name}: {shorten(given)} must be 1 to 32 of A-Z a-z 0-9 _ . -")
    return given


def digest(name: str, given: Any) -> str:
    """Return any name that hashlib knows with a fixed digest of 128 bits at least."""
    try:
        size = hashlib.new(given).digest_size
    except (TypeError, ValueError):
        raise SettingsError(f"{name}: hashlib knows no {shorten(given)}") from None
    if size < 16:
        raise SettingsError(f"{name}: {shorten(given)} has no fixed digest of 128 bits or more")
    return str(given)


def secret(name: str, given: Any) -> bytes | None:
    """Return the bytes of a secret, None for none."""
    if given is None or given == "" or given == b"":
        return None
    secret = given.encode() if isinstance(given, str) else given
    if not isinstance(secret, bytes) or not 16 <= len(secret) <= 64:
        raise SettingsError(f"{name}: must be 16 to 64 bytes")
    return secret


def ttls(name: str, given: Any) -> Mapping[str, float]:
    """Return the lifetimes by operation."""
    if not isinstance(given, Mapping):
        raise SettingsError(f"{name}: must map an operation to a duration, such as {{'summarize': '2h'}}")
    return {**OPERATION_TTLS_S, **{str(op): duration(f"{name}[{shorten(op)}]", ttl) for op, ttl in given.items()}}


def tiers(name: str, given: Any) -> Mapping[str, int]:
    """Return the upper limits of the text tiers."""
    if not isinstance(given, Mapping) or list(given) != list(TEXT_TIERS):
        raise SettingsError(
            f"{name}: must give {', '.join(TEXT_TIERS)} in this order, each an upper limit in characters"
        )
    limits = [whole(1, 2**40)(f"{name}[{tier!r}]", limit) for tier, limit in given.items()]
    if sorted(set(limits)) != limits:
        raise SettingsError(f"{name}: the limits must rise")
    return dict(zip(given, limits, strict=True))


def tier_names(name: str, given: Any) -> tuple[str, ...]:
    """Return names of text tiers."""
    names = tuple(part.strip() for part in given.split(",")) if isinstance(given, str) else tuple(given)
    if unknown := set(names) - {*TEXT_TIERS, "xlarge"}:
        raise SettingsError(f"{name}: {sorted(unknown)} is not among {', '.join(TEXT_TIERS)}, xlarge")
    return names


def level(name: str, given: Any) -> int | None:
    """Return a compression level, None for the usual one."""
    return None if given is None or given == "" else int(_number(name, given, _whole, 1, 22))
