"""
Numbers and names as people read them.

In: nanoseconds, bytes, shares, labels from Redis.   Out: short text that no terminal takes for an order.   Pure.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

MAX_LABEL: Final = 48
"""The most columns that a label takes."""
NOTHING: Final = "-"
ALL: Final = "(all)"
"""Stands for the operation "", of what concerns all of them."""

_DANGEROUS: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories that are escaped: control, format (bidi, invisible), surrogate, private, unassigned, separators."""
_NO_WIDTH: Final = frozenset({"Mn", "Me"})
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_HEIGHTS: Final = "▁▂▃▄▅▆▇█"
_PLAIN_HEIGHTS: Final = "_.-=*#"
_BYTES: Final = ("B", "KB", "MB", "GB", "TB", "PB")
_LONG_S: Final = (("d", 86_400), ("h", 3600), ("min", 60))


def label(text: str, most: int = MAX_LABEL) -> str:
    """Return *text* on one line of *most* columns at most; what a terminal would act on is escaped.

    >>> label("a\\x1b[31m b\\u202e"), label("x" * 100, 5), label("")
    ('a\\\\x1b[31m b\\\\u202e', 'xxxx…', '(all)')
    """
    shown = "".join(map(_safe, text[: most + 1])) or ALL
    if width(shown) <= most and len(shown) <= 4 * most and len(text) <= most:
        return shown
    return cut(shown, most - 1) + "…"


def cut(text: str, columns: int) -> str:
    """Return the start of *text* that takes *columns* at most, and twice as many characters."""
    taken = 0
    for at, char in enumerate(text):
        taken += width(char)
        if taken > columns or at >= 2 * columns:
            return text[:at]
    return text


def width(text: str) -> int:
    """Return how many columns *text* takes.

    >>> width("abc"), width("数据"), width("e\\u0301")
    (3, 4, 1)
    """
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(char: str) -> int:
    if unicodedata.category(char) in _NO_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _safe(char: str) -> str:
    if char == "\\":
        return "\\\\"
    return char.encode("unicode_escape").decode() if unicodedata.category(char) in _DANGEROUS else char


def duration(ns: float | None) -> str:
    """Return nanoseconds in µs, ms, s, min, h or d.

    >>> [duration(ns) for ns in (0, 950, 42_000, 1_234_567, 2.5e9, 75e9, 9000e9, 5e14)]
    ['0', '0.95 µs', '42 µs', '1.23 ms', '2.5 s', '1 min 15 s', '2 h 30 min', '5 d 18 h']
    """
    if ns is None:
        return NOTHING
    if not ns:
        return "0"
    seconds = ns / 1e9
    if round(seconds) >= _LONG_S[-1][1]:
        return _long(round(seconds))
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= 0.9995 * size or unit == "µs":
            break
    return f"{_three(ns / size)} {unit}"


def _long(seconds: int) -> str:
    for (unit, size), (smaller, below) in zip(_LONG_S, (*_LONG_S[1:], ("s", 1)), strict=True):
        if seconds >= size:
            first, rest = seconds // size, seconds % size // below
            return f"{number(first)} {unit} {rest} {smaller}" if rest else f"{number(first)} {unit}"
    return f"{seconds} s"


def size(count: float | None) -> str:
    """Return bytes in B, KB, MB … (thousands).

    >>> size(999), size(1234), size(2.5e9)
    ('999 B', '1.23 KB', '2.5 GB')
    """
    if count is None:
        return NOTHING
    for unit in _BYTES:
        if count < 999.5 or unit == _BYTES[-1]:
            break
        count /= 1000
    return f"{_three(count)} {unit}"


def number(count: float | None) -> str:
    """Return a count; from ten million on in millions.

    >>> number(1234), number(12_345_678), number(None), number(0.25)
    ('1,234', '12.3 M', '-', '0.25')
    """
    if count is None:
        return NOTHING
    if abs(count) >= 1e7:
        return f"{_three(count / 1e6)} M" if abs(count) < 1e12 else f"{count:.3g}"
    return f"{count:,}" if isinstance(count, int) or count >= 1000 else _three(count)


def plural(count: int, thing: str) -> str:
    """Return how many things.

    >>> plural(1, "batch"), plural(2, "batch"), plural(1000, "record")
    ('1 batch', '2 batches', '1,000 records')
    """
    end = "" if count == 1 else "es" if thing.endswith("ch") else "s"
    return f"{number(count)} {thing}{end}"


def money(amount: float | None, currency: str = "") -> str:
    """Return an amount of your currency.

    >>> money(12.5), money(0.00213), money(0, "USD")
    ('12.50', '0.0021', '0.00 USD')
    """
    if amount is None:
        return NOTHING
    shown = f"{amount:,.2f}" if amount >= 0.995 or not amount else f"{amount:.2g}"
    return f"{shown} {label(currency)}" if currency else shown


def percent(share: float | None) -> str:
    """Return a share in percent; only all is 100 %, only nothing 0 %.

    >>> percent(0.8764), percent(0.9999), percent(0.0001), percent(1), percent(None)
    ('87.6 %', '>99.9 %', '<0.1 %', '100 %', '-')
    """
    if share is None:
        return NOTHING
    if 0 < share < 0.001:
        return "<0.1 %"
    shown = _three(100 * share)
    return ">99.9 %" if shown == "100" and share < 1 else f"{shown} %"


def measured(value: float | None, unit: str) -> str:
    """Return a value in one of the units that alerts have.

    >>> [measured(value, unit) for value, unit in ((151.4, "ms"), (1_731_880, "bytes"), (0.4, "hits / look-ups"))]
    ['151 ms', '1.73 MB', '40 %']
    >>> measured(60, "an hour")
    '60 an hour'
    """
    if value is None:
        return NOTHING
    if unit == "ms":
        return duration(value * 1e6)
    if unit == "bytes":
        return size(value)
    return percent(value) if unit == "hits / look-ups" else f"{number(value)} {unit}"


def ratio(times: float | None) -> str:
    """Return how many times as much.

    >>> ratio(1.5), ratio(0.041), ratio(None)
    ('×1.5', '×0.04', '-')
    """
    return NOTHING if times is None else f"×{times:.2g}" if 0.1 <= times < 10 else f"×{_three(round(times, 2))}"


def iso(at_s: float) -> str:
    """Return a time as JSON has it.

    >>> iso(0)
    '1970-01-01T00:00:00Z'
    """
    return _utc(at_s).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(at_s: float) -> str:
    """Return a time as tables have it, UTC.

    >>> moment(0)
    '1970-01-01 00:00'
    """
    return _utc(at_s).strftime("%Y-%m-%d %H:%M")


def _utc(at_s: float) -> datetime:
    return datetime.fromtimestamp(min(max(at_s, 0), 2**37), UTC)


def bar(share: float, columns: int = 10, *, plain: bool = False) -> str:
    """Return a bar of up to *columns*.

    >>> bar(0.55, 4), bar(0.55, 4, plain=True)
    ('██▎', '##')
    """
    eighths = round(8 * columns * min(max(share, 0.0), 1.0))
    if plain:
        return "#" * round(eighths / 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip() or ("▏" if share > 0 else "")


def spark(values: Sequence[float], columns: int = 16, *, plain: bool = False) -> str:
    """Return *values* as a line of *columns* at most, from 0 to the highest; neighbours are added where they are many.

    >>> spark([0, 1, 2, 4]), spark([0, 1, 2, 4], plain=True), spark([])
    ('▁▃▅█', '_.-#', '')
    """
    if not values:
        return ""
    each = -(-len(values) // columns)
    sums = [sum(values[start : start + each]) for start in range(0, len(values), each)]
    heights, most = _PLAIN_HEIGHTS if plain else _HEIGHTS, max(sums) or 1
    return "".join(heights[round(value / most * (len(heights) - 1))] for value in sums)


def _three(value: float) -> str:
    """Return three digits of *value*, without a tail of zeros."""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    shown = f"{value:,.{digits}f}"
    return shown.rstrip("0").rstrip(".") if digits else shown
