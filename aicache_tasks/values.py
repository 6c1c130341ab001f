"""
Values: what can be stored, and how it looks in MessagePack.

In: a Python value.   Out: MessagePack, and from that an equal value of equal types.   Pure.

What MessagePack lacks are extension types, numbered in docs/architecture.md ("Frame header"). Only exact types are
taken: a subclass would come back as its base class. Nothing here can name a class or call one, so hostile bytes
cost a bounded amount of memory and end in `CorruptPayload`.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from itertools import chain
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec.msgpack import Ext, encode

from aicache_tasks.bounds import MAX_VALUES, check_counts
from aicache_tasks.errors import CorruptPayload, NotStorable

MAX_DEPTH: Final = 100
"""Containers inside one another; deeper values would come near Python's own limit in whoever reads them."""

MAX_INT_BYTES: Final = 1786
"""Longer ints have more digits (4300) than Python turns into text."""

MAX_EXPONENT: Final = 6144
"""As in decimal128: ``int(Decimal("1e999999999"))`` would fill the memory of whoever calls it."""

MAX_DECIMAL_CHARS: Final = 4300
"""Characters of a Decimal, for the same reason as `MAX_INT_BYTES`."""

_SCAN_FROM_BYTES: Final = 64 * 1024
"""Shorter bodies cannot grow to more than a few MiB, and are not scanned."""

_PATH_CHARS: Final = 200
_COMPLEX: Final = struct.Struct(">dd")


def dump(value: Any, max_bytes: int) -> bytes:
    """Return *value* as MessagePack.

    Args:
        value: None, bool, int, float, str, bytes, list, dict, tuple, set, frozenset, datetime, date, time, timedelta,
            Decimal, UUID or complex, nested at will; exactly these types.
        max_bytes: the longest result.

    Raises:
        NotStorable: ``not_roundtrip`` with the path and type that is to blame; ``too_large``.

    >>> load(dump({"items": [1, (2, 3)]}, 1000))
    {'items': [1, (2, 3)]}
    """
    raw = _encode(value, max_bytes)
    if len(raw) > max_bytes:
        raise NotStorable("too_large", f"{len(raw)} bytes, the limit is {max_bytes}")
    if not _comes_back(value, raw):
        raise NotStorable("not_roundtrip", "result: does not decode to an equal value")
    return raw


def _encode(value: Any, max_bytes: int) -> bytes:
    try:
        return encode(_Wire(max_bytes).convert(value, 0))
    except _Refused as refused:
        raise NotStorable("not_roundtrip", f"result{refused.path[:_PATH_CHARS]}: {refused.kind}") from None
    except RuntimeError:  # RecursionError near the end of the caller's stack, or a set that grows meanwhile
        raise NotStorable("not_roundtrip", "result: too deep, or changed while it was read") from None


def _comes_back(value: Any, raw: bytes) -> bool:
    try:
        return same(value, load(raw))
    except (CorruptPayload, RuntimeError):
        return False


def load(raw: bytes | memoryview) -> Any:
    """Return the value in *raw*: a new object at every call.

    Raises:
        CorruptPayload: anything at all is wrong with the bytes.
    """
    if len(raw) >= _SCAN_FROM_BYTES:
        check_counts(raw)
    try:
        return _DECODER.decode(raw)
    except (ValueError, TypeError, ArithmeticError, RecursionError, struct.error):
        raise CorruptPayload("the body is no value") from None


class _Refused(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, kind: str) -> None:
        self.kind, self.path = kind, ""


class _Wire:
    """One conversion: counts what the result will hold at least, so that shared references cannot blow it up."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._values = 0

    def convert(self, value: Any, depth: int) -> Any:
        """Return *value* in types that msgspec encodes as they are."""
        self._count(value)
        kind = type(value)
        if kind is str:
            return value if _is_utf8(value) else Ext(5, value.encode("utf-8", "surrogatepass"))
        if kind is dict:
            return self._dict(value, depth)
        if kind is list:
            return self._items(value, depth)
        if kind in _CONTAINERS:
            return self._container(_CONTAINERS[kind], value, depth)
        if kind in _LEAVES:
            return _LEAVES[kind](value)
        raise _Refused(kind.__name__)

    def _count(self, value: Any) -> None:
        self._values += 1
        self._bytes += len(value) if type(value) in (str, bytes) else 1
        if self._bytes > self._max_bytes:
            raise NotStorable("too_large", f"more than {self._max_bytes} bytes")
        if self._values > MAX_VALUES:
            raise NotStorable("too_large", f"more than {MAX_VALUES} values")

    def _items(self, values: Iterable[Any], depth: int, step: Callable[[int], str] = "[{}]".format) -> list[Any]:
        if depth >= MAX_DEPTH:
            raise _Refused("too deep, or it contains itself")
        wire: list[Any] = []
        try:
            for value in values:
                wire.append(self.convert(value, depth + 1))  # noqa: PERF401 - its length tells where a refusal was
        except _Refused as refused:
            refused.path = step(len(wire)) + refused.path
            raise
        return wire

    def _dict(self, value: dict[Any, Any], depth: int) -> Any:
        pairs = list(value.items())  # another thread may change the dict meanwhile
        if not all(type(key) is str and _is_utf8(key) for key, _ in pairs):
            return Ext(6, encode(self._items(chain.from_iterable(pairs), depth, "{{{}}}".format)))
        for key, _ in pairs:
            self._count(key)
        items = self._items((item for _, item in pairs), depth, lambda at: _step(pairs[at][0]))
        return {key: item for (key, _), item in zip(pairs, items, strict=True)}

    def _container(self, code: int, value: Any, depth: int) -> Ext:
        items = self._items(value, depth)
        if code == _TUPLE:
            return Ext(code, encode(items))
        return Ext(code, encode([msgspec.Raw(item) for item in sorted(map(encode, items))]))


def _step(key: str) -> str:
    # Keys of a result may be text of the answer: only what looks like a field's name is shown.
    return f".{key}" if key.isascii() and key.isidentifier() and len(key) <= 32 else "[…]"


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _int(number: int) -> int | Ext:
    if -(2**63) <= number < 2**64:
        return number
    size = number.bit_length() // 8 + 1
    if size > MAX_INT_BYTES:
        raise _Refused("int of more than 4300 digits")
    return Ext(4, number.to_bytes(size, "big", signed=True))


def _datetime(moment: datetime) -> Ext:
    zone = _zone(moment.tzinfo)
    day = [moment.year, moment.month, moment.day]
    return Ext(7, encode([*day, moment.hour, moment.minute, moment.second, moment.microsecond, moment.fold, *zone]))


def _date(day: date) -> Ext:
    return Ext(8, encode([day.year, day.month, day.day]))


def _time(clock: time) -> Ext:
    zone = _zone(clock.tzinfo)
    return Ext(9, encode([clock.hour, clock.minute, clock.second, clock.microsecond, clock.fold, *zone]))


def _zone(zone: tzinfo | None) -> list[Any]:
    """Offset in microseconds and name; a name of None is the one that Python makes from the offset."""
    if zone is None:
        return [None, None]
    if type(zone) is not timezone:
        raise _Refused(f"time zone {type(zone).__name__}")
    offset = zone.utcoffset(None)
    name = zone.tzname(None)
    if not _is_utf8(name):
        raise _Refused("time zone")
    return [offset // timedelta(microseconds=1), None if name == timezone(offset).tzname(None) else name]


def _timedelta(span: timedelta) -> Ext:
    return Ext(10, encode([span.days, span.seconds, span.microseconds]))


def _decimal(number: Decimal) -> Ext:
    text = str(number)
    if len(text) > MAX_DECIMAL_CHARS or not _is_small(number):
        raise _Refused("Decimal beyond decimal128")
    return Ext(11, text.encode())


def _is_small(number: Decimal) -> bool:
    exponent = number.as_tuple().exponent
    return not isinstance(exponent, int) or abs(exponent) <= MAX_EXPONENT


def _plain(value: Any) -> Any:
    return value


_TUPLE: Final = 1
_CONTAINERS: Final[dict[type, int]] = {tuple: _TUPLE, set: 2, frozenset: 3}
_LEAVES: Final[dict[type, Callable[[Any], Any]]] = {
    type(None): _plain,
    bool: _plain,
    int: _int,
    float: _plain,
    bytes: _plain,
    datetime: _datetime,
    date: _date,
    time: _time,
    timedelta: _timedelta,
    Decimal: _decimal,
    UUID: lambda value: Ext(12, value.bytes),
    complex: lambda value: Ext(13, _COMPLEX.pack(value.real, value.imag)),
}


def _hook(code: int, data: memoryview) -> Any:
    build = _BUILDERS.get(code)
    if build is None:
        raise ValueError
    return build(data)


def _list(data: memoryview) -> list[Any]:
    items = _DECODER.decode(data)
    if type(items) is not list:
        raise ValueError
    return items


def _to_int(data: memoryview) -> int:
    if len(data) > MAX_INT_BYTES:
        raise ValueError
    return int.from_bytes(data, "big", signed=True)


def _to_dict(data: memoryview) -> dict[Any, Any]:
    parts = _list(data)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _to_zone(offset_us: int | None, name: str | None) -> timezone | None:
    if offset_us is None:
        return None
    offset = timedelta(microseconds=offset_us)
    return timezone(offset) if name is None else timezone(offset, name)


def _to_datetime(data: memoryview) -> datetime:
    year, month, day, hour, minute, second, microsecond, fold, offset_us, name = _list(data)
    zone = _to_zone(offset_us, name)
    return datetime(year, month, day, hour, minute, second, microsecond, zone, fold=fold)


def _to_date(data: memoryview) -> date:
    year, month, day = _list(data)
    return date(year, month, day)


def _to_time(data: memoryview) -> time:
    hour, minute, second, microsecond, fold, offset_us, name = _list(data)
    return time(hour, minute, second, microsecond, _to_zone(offset_us, name), fold=fold)


def _to_timedelta(data: memoryview) -> timedelta:
    days, seconds, microseconds = _list(data)
    return timedelta(days, seconds, microseconds)


def _to_decimal(data: memoryview) -> Decimal:
    if len(data) > MAX_DECIMAL_CHARS:
        raise ValueError
    number = Decimal(str(data, "ascii"))
    if not _is_small(number):
        raise ValueError
    return number


_BUILDERS: Final[dict[int, Callable[[memoryview], Any]]] = {
    1: lambda data: tuple(_list(data)),
    2: lambda data: set(_list(data)),
    3: lambda data: frozenset(_list(data)),
    4: _to_int,
    5: lambda data: str(data, "utf-8", "surrogatepass"),
    6: _to_dict,
    7: _to_datetime,
    8: _to_date,
    9: _to_time,
    10: _to_timedelta,
    11: _to_decimal,
    12: lambda data: UUID(bytes=bytes(data)),
    13: lambda data: complex(*_COMPLEX.unpack(data)),
}
_DECODER: Final = msgspec.msgpack.Decoder(ext_hook=_hook)


def same(a: Any, b: Any) -> bool:
    """Return whether two values of storable types are equal, types included, all the way down.

    NaN equals NaN, 0.0 does not equal -0.0, and the items of a dict come in the same order.

    >>> same([1, (2,)], [1, (2,)]), same(1, True), same((1,), [1])
    (True, False, False)
    """
    kind = type(a)
    if kind is not type(b):
        return False
    if kind in (list, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if kind is dict:
        return len(a) == len(b) and all(map(same, a, b)) and all(map(same, a.values(), b.values()))
    return _SAME[kind](a, b) if kind in _SAME else bool(a == b)


def _same_floats(a: float, b: float) -> bool:
    return (a == b and math.copysign(1.0, a) == math.copysign(1.0, b)) or (a != a and b != b)


def _same_complex(a: complex, b: complex) -> bool:
    return _same_floats(a.real, b.real) and _same_floats(a.imag, b.imag)


def _same_clocks(a: Any, b: Any) -> bool:
    # Moments compare equal across zones, and whatever their fold says.
    parts = [(t.replace(tzinfo=None), t.fold, t.tzinfo, t.tzname()) for t in (a, b)]
    return parts[0] == parts[1]


def _same_decimals(a: Decimal, b: Decimal) -> bool:
    return a.as_tuple() == b.as_tuple()


def _same_sets(a: Any, b: Any) -> bool:
    # 1 equals True in a set, so the items are compared as they are stored; sets are stored sorted.
    return len(a) == len(b) and _encode(a, sys.maxsize) == _encode(b, sys.maxsize)


_SAME: Final[dict[type, Callable[[Any, Any], bool]]] = {
    float: _same_floats,
    complex: _same_complex,
    datetime: _same_clocks,
    time: _same_clocks,
    Decimal: _same_decimals,
    set: _same_sets,
    frozenset: _same_sets,
}
