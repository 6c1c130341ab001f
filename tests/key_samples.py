"""Values of every type that a key may hold, near misses of them, and an oracle that says which are equal."""

from __future__ import annotations

import dataclasses
import enum
import math
import struct
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID

import attrs
import numpy as np
import pydantic
from hypothesis import strategies as st


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Shade(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mode(enum.StrEnum):
    FAST = "fast"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Text(str):
    __slots__ = ()


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Point:
    x: Any
    y: Any


@dataclasses.dataclass
class Vector:
    x: Any
    y: Any


@attrs.define
class Box:
    content: Any


class Message(pydantic.BaseModel):
    role: str
    content: Any = None


class OpenMessage(pydantic.BaseModel, extra="allow"):
    role: str


def typed_equal(a: Any, b: Any) -> bool:
    """Equal in type and value, but for list = tuple = namedtuple, set = frozenset, and the two kinds of dict."""
    if _family(a) is not _family(b):
        return False
    compare = next((test for kinds, test in _TESTS if isinstance(a, kinds)), None)
    return bool(compare(a, b) if compare else a == b)


def _family(value: Any) -> type:
    kind = type(value)
    if kind in (list, tuple, Pair):
        return list
    if kind in (set, frozenset):
        return set
    return dict if kind in (dict, OrderedDict, defaultdict) else kind


def _same_items(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Equal as collections without an order, counting repeats (two NaNs may both be in a set)."""
    left = list(b)
    for item in a:
        found = next((i for i, other in enumerate(left) if typed_equal(item, other)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _same_float(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))


def _same_clock(a: Any, b: Any) -> bool:
    same = a.replace(tzinfo=None) == b.replace(tzinfo=None) and a.utcoffset() == b.utcoffset()
    return same and (a.tzinfo is not None or a.fold == b.fold)


_TESTS: list[tuple[Any, Callable[[Any, Any], bool]]] = [
    ((np.generic, np.ndarray), lambda a, b: a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()),
    (enum.Enum, lambda a, b: a is b),
    ((list, tuple), lambda a, b: len(a) == len(b) and all(map(typed_equal, a, b))),
    (dict, lambda a, b: _same_items(list(a.items()), list(b.items()))),
    ((set, frozenset), lambda a, b: _same_items(list(a), list(b))),
    (float, _same_float),
    (complex, lambda a, b: _same_float(a.real, b.real) and _same_float(a.imag, b.imag)),
    (Decimal, lambda a, b: a.as_tuple() == b.as_tuple()),
    ((datetime, time), _same_clock),
    (PurePath, lambda a, b: str(a) == str(b)),
    (memoryview, lambda a, b: (a.format, a.shape, a.tobytes()) == (b.format, b.shape, b.tobytes())),
    (Point, lambda a, b: typed_equal([a.x, a.y], [b.x, b.y])),
    (Vector, lambda a, b: typed_equal([a.x, a.y], [b.x, b.y])),
    (Box, lambda a, b: typed_equal(a.content, b.content)),
    (Message, lambda a, b: typed_equal([a.role, a.content], [b.role, b.content])),
    (OpenMessage, lambda a, b: typed_equal([a.role, a.model_extra], [b.role, b.model_extra])),
]

_NANS = [
    struct.unpack(">d", bytes.fromhex(bits))[0] for bits in ("7ff8000000000000", "fff8000000000000", "7ff8000000000001")
]
_ZONES = st.sampled_from([None, UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))])
_TEXT = st.text(max_size=8) | st.sampled_from(
    ["1", "true", "null", "a|b", "é", "e\u0301", "\ud800", "\ud83d\ude00", "😀"]
)
_INTS = (
    st.integers(-3, 3)
    | st.integers()
    | st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**40, 2**53 + 1])
)
_FLOATS = st.floats() | st.sampled_from([0.0, -0.0, 1.0, *_NANS, 2.0**53])
_SCALARS = st.none() | st.booleans() | _INTS | _FLOATS | _TEXT | st.binary(max_size=8)
_DATETIMES = st.datetimes(timezones=_ZONES) | st.datetimes().map(lambda d: d.replace(fold=1))
_TIMES = st.times() | st.times(timezones=st.just(UTC))
_NUMPY = st.builds(
    lambda dtype, n: dtype(n),
    st.sampled_from([np.int8, np.int64, np.uint8, np.float64, np.bool_, np.str_]),
    st.integers(0, 3),
)
_HASHABLE_LEAVES = (
    _SCALARS
    | st.decimals().filter(lambda d: not d.is_snan())
    | st.sampled_from([Decimal("1.0"), Decimal("1.00"), Decimal("NaN12"), Decimal("-Infinity")])
    | _DATETIMES
    | st.dates()
    | _TIMES
    | st.timedeltas()
    | st.uuids()
    | st.sampled_from([*Color, *Shade, *Level, *Mode, *Right, Right.READ | Right.WRITE])
    | _TEXT.map(lambda t: PurePosixPath(t.replace("\0", "")))
    | st.complex_numbers()
)
_ARRAYS = st.builds(
    lambda items, dtype, column: (
        np.array(items, dtype=dtype).reshape(-1, 1) if column else np.array(items, dtype=dtype)
    ),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(["int8", "int64", ">i4", "float32"]),
    st.booleans(),
)
_LEAVES = (
    _HASHABLE_LEAVES
    | _NUMPY  # not among keys: Python fails to compare some of them with a Decimal
    | st.sampled_from([Decimal("sNaN")])
    | _ARRAYS
    | st.binary(max_size=4).map(bytearray)
    | st.binary(max_size=4).map(memoryview)
)


def _hashables() -> st.SearchStrategy[Any]:
    return _HASHABLE_LEAVES | st.tuples(_HASHABLE_LEAVES, _HASHABLE_LEAVES) | st.frozensets(_SCALARS, max_size=2)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(_TEXT, inner, max_size=3),
        st.dictionaries(_hashables(), inner, max_size=3),
        st.dictionaries(_TEXT, inner, max_size=2).map(OrderedDict),
        st.sets(_hashables(), max_size=3),
        st.frozensets(_hashables(), max_size=3),
        st.builds(Pair, inner, inner),
        st.builds(Point, inner, inner),
        st.builds(Vector, inner, inner),
        st.builds(Box, inner),
        st.builds(Message, role=st.text(max_size=3), content=inner),
        st.builds(OpenMessage, role=st.text(max_size=3), note=inner),
    )


VALUES = st.recursive(_LEAVES, _containers, max_leaves=6)
_JSON_LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8)
)
PLAIN_VALUES = st.recursive(
    _JSON_LEAVES | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)

MESSAGE_VALUES = st.recursive(
    _JSON_LEAVES
    | st.binary(max_size=8)
    | st.decimals()
    | _DATETIMES
    | st.dates()
    | _TIMES
    | st.uuids()
    | st.sampled_from([*Level, *Mode])
    | _FLOATS,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.builds(Pair, inner, inner)
        | st.dictionaries(_SCALARS, inner, max_size=3)
        | st.dictionaries(st.sampled_from(["__type__", "__value__"]), inner, max_size=2)
    ),
    max_leaves=6,
)
"""Values that JSON or MessagePack deliver, often changed."""


def neighbours(value: Any) -> list[Any]:
    """What *value* is easily taken for, and what equals it."""
    kind = type(value)
    try:
        found = [*_NEIGHBOURS[kind](value)] if kind in _NEIGHBOURS else []
    except (ArithmeticError, ValueError):
        found = []  # at the end of its type's range
    return [*found, [value], None]


def _of_int(value: int) -> list[Any]:
    return [
        value + 1,
        -value,
        bool(value),
        Decimal(value),
        bytes(f"{value}", "ascii"),
        *([float(value)] if abs(value) < 2**60 else []),
    ]


def _of_float(value: float) -> list[Any]:
    whole = [int(value)] if math.isfinite(value) else []
    return [
        -value,
        Decimal(value),
        complex(value, 0),
        np.float64(value),
        math.nextafter(value, math.inf),
        *whole,
        *_NANS,
    ]


def _of_text(value: str) -> list[Any]:
    return [
        value + "\0",
        value + " ",
        value.upper(),
        value.encode("utf-8", "surrogatepass"),
        [*value],
        PurePosixPath("x" + value[:1]),
    ]


def _of_list(value: Sequence[Any]) -> list[Any]:
    pair = [Pair(*value)] if len(value) == 2 else []
    return [list(value), tuple(value), [*value, None], [*value[::-1]], [*value[1:]], [value[:1], value[1:]], *pair]


def _of_dict(value: dict[Any, Any]) -> list[Any]:
    turned = dict(reversed(value.items()))
    return [
        turned,
        OrderedDict(turned),
        defaultdict(None, value),
        [*value.items()],
        {**value, "": None},
        {str(k): v for k, v in value.items()},
    ]


def _of_set(value: set[Any] | frozenset[Any]) -> list[Any]:
    return [set(value), frozenset(value), list(value), {*value, None}, set(map(str, value))]


def _of_datetime(value: datetime) -> list[Any]:
    aware = value.replace(year=max(2, min(value.year, 9998)), tzinfo=value.tzinfo or UTC)
    return [
        value.replace(tzinfo=UTC),
        aware.astimezone(timezone(timedelta(hours=1))),
        value.replace(fold=1 - value.fold),
        value.date(),
        value.isoformat(),
        value + timedelta(microseconds=1) if value.year < 9999 else None,
    ]


def _of_open_message(value: OpenMessage) -> list[Any]:
    note = (value.model_extra or {}).get("note")
    role = value.role
    return [
        OpenMessage(role=role),
        OpenMessage(role=role, other=note),
        OpenMessage(role=role, note=note),
        Message(role=role),
    ]


_NEIGHBOURS: dict[type, Callable[[Any], Sequence[Any]]] = {
    type(None): lambda _: ["None", "null", 0, False, "", [], {}, b""],
    bool: lambda v: [not v, int(v), float(v), str(v).lower(), np.bool_(v)],
    int: _of_int,
    float: _of_float,
    complex: lambda v: [-v, v.real, v.conjugate()],
    str: _of_text,
    bytes: lambda v: [bytearray(v), memoryview(v), v.decode("latin-1"), v + b"\0", [*v]],
    bytearray: lambda v: [bytes(v), memoryview(bytes(v)), bytearray(v)],
    memoryview: lambda v: [bytes(v), memoryview(bytes(v)), v.cast("b")],
    list: _of_list,
    tuple: _of_list,
    Pair: _of_list,
    dict: _of_dict,
    OrderedDict: _of_dict,
    set: _of_set,
    frozenset: _of_set,
    Decimal: lambda v: [
        -v.copy_abs(),
        Decimal(v.as_tuple()),
        *([v.scaleb(1), float(v)] if v.is_finite() and abs(v.adjusted()) < 200 else []),
    ],
    datetime: _of_datetime,
    date: lambda v: [datetime(v.year, v.month, v.day), v.isoformat(), date(v.year, v.month, 1)],  # noqa: DTZ001
    time: lambda v: [
        v.replace(tzinfo=UTC),
        v.replace(fold=1),
        v.replace(tzinfo=timezone(timedelta(hours=1))),
        v.isoformat(),
    ],
    timedelta: lambda v: [v.total_seconds(), -v if abs(v.days) < 10**6 else None, timedelta(v.days)],
    UUID: lambda v: [v.hex, v.int, v.bytes, UUID(v.hex)],
    PurePosixPath: lambda v: [PureWindowsPath(str(v)), PurePosixPath(str(v)), v / "x"],
    Color: lambda v: [v.value, v.name, Shade.RED, Level.LOW, Color.RED],
    Level: lambda v: [int(v), Color.RED, Level.LOW, "LOW"],
    Mode: lambda v: ["fast", Mode.FAST],
    Right: lambda v: [v.value, Right.READ, Right.READ | Right.WRITE],
    Point: lambda v: [Vector(v.x, v.y), Point(v.y, v.x), {"x": v.x, "y": v.y}, (v.x, v.y), Point(v.x, v.y)],
    Vector: lambda v: [Point(v.x, v.y), Vector(v.y, v.x)],
    Box: lambda v: [Box([v.content]), {"content": v.content}, v.content, Box(v.content)],
    Message: lambda v: [
        Message(role=v.role),
        OpenMessage(role=v.role),
        OpenMessage(role=v.role, content=v.content),
        v.model_copy(),
    ],
    OpenMessage: _of_open_message,
    np.ndarray: lambda v: [
        v.tolist(),
        v.copy(),
        v.astype("int64"),
        v.reshape(1, -1),
        v.tobytes(),
        v.astype(v.dtype.newbyteorder()),
    ],
    np.int64: lambda v: [int(v), np.int8(v), np.array(v), np.uint8(v)],
    np.float64: lambda v: [float(v), np.int64(v), np.float32(v)],
    np.bool_: lambda v: [bool(v), np.int8(v)],
    np.str_: lambda v: [str(v), np.bytes_(v.encode())],
}


@st.composite
def near_misses(draw: st.DrawFn) -> tuple[Any, Any]:
    """A value, and the same value with one part of it changed for something near it."""
    value = draw(VALUES)
    return value, _changed(draw, value)


def _changed(draw: st.DrawFn, value: Any) -> Any:
    kind = type(value)
    descend = kind in _REBUILD and len(value) > 0 and draw(st.booleans())
    if not descend:
        return draw(st.sampled_from(neighbours(value)))
    parts = [*value.items()] if isinstance(value, dict) else [*value]
    at = draw(st.integers(0, len(parts) - 1))
    if isinstance(value, dict):
        parts[at] = (parts[at][0], _changed(draw, parts[at][1]))
    else:
        parts[at] = _changed(draw, parts[at])
    return _REBUILD[kind](parts)


_REBUILD: dict[type, Callable[[Any], Any]] = {
    list: list,
    tuple: tuple,
    dict: dict,
    OrderedDict: OrderedDict,
    Pair: lambda parts: Pair(*parts),
}
