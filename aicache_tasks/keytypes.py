"""
What each type looks like inside a tagged encoding: leaves as bytes, everything else taken apart into parts.

In: a value and its exact type.   Out: bytes, or `Opened`; `Refused` for a type that is not known.

Type tests use ``type(value)`` and the class's own namespace only, so that a proxy or a mock runs no code of its own.
numpy, pydantic and attrs are looked up among the loaded modules and never imported.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from uuid import UUID

DICTS: Final[frozenset[type]] = frozenset({dict, OrderedDict, defaultdict})
LISTS: Final[frozenset[type]] = frozenset({list, tuple})
SETS: Final[frozenset[type]] = frozenset({set, frozenset})

_MAX_SHOWN_NAME = 40
_MICROSECOND = timedelta(microseconds=1)
_NAN = struct.pack(">d", math.nan)
_NUMPY_KINDS = frozenset("biufcSUmM")
_NUMPY_PADDED = frozenset("gG")  # long doubles: some of their bytes are never written


class Refused(Exception):  # noqa: N818 - a verdict, never seen outside
    """Why a value has no encoding; becomes a `KeyEncodingError` where the path is known."""


Step = tuple[str, Any]
"""A step of a path from a container to a part of it: a kind and an index or key; shown only if an error needs it."""

_KEY_STEP: Step = (".<key>", None)
_ITEM_STEP: Step = ("{}", None)
_FIELD_STEP: Step = (".<field>", None)
_SAME_STEP: Step = ("", None)


def show_step(step: Step) -> str:
    """Return a step as an error shows it: a key of a mapping, which is data, by its type.

    >>> show_step(("index", 2)), show_step(("field", "image")), show_step(("item", "jane_doe"))
    ('[2]', '.image', '[<str>]')
    """
    kind, at = step
    if kind == "index":
        return f"[{at}]"
    if kind == "item":
        return f"[<{type(at).__name__}>]"
    return f".{at}" if kind == "field" else kind


def show_option(step: Step) -> str:
    """Return a step from the options to one of them, whose name is no data; one that is no name may be.

    >>> show_option(("item", "max_length")), show_option(("item", "Dear Ms Doe"))
    ('.max_length', '[<str>]')
    """
    kind, at = step
    is_name = type(at) is str and at.isascii() and at.isidentifier() and len(at) <= _MAX_SHOWN_NAME
    return f".{at}" if kind == "item" and is_name else show_step(step)


class Opened(NamedTuple):
    """A value taken apart: what its node starts with, and its parts. *pairs*: parts are key, value, key, value, …"""

    tag: bytes
    parts: Iterable[tuple[Step, Any]]
    head: bytes = b""
    pairs: bool = False
    unordered: bool = False


def node(tag: bytes, payload: bytes) -> bytes:
    """Return tag, length and payload."""
    return tag + len(payload).to_bytes(8, "big") + payload


def is_namedtuple(kind: type) -> bool:
    """Return whether *kind* is made by `collections.namedtuple` or a subclass of one."""
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def type_name(kind: type) -> str:
    """Return module and qualified name.

    >>> type_name(OrderedDict)
    'collections.OrderedDict'
    """
    return f"{kind.__module__}.{kind.__qualname__}"


def open_value(value: Any, kind: type) -> Opened:
    """Take *value*, which is no leaf, apart.

    Raises:
        Refused: no encoding is known for its type.
    """
    if kind in DICTS:
        return Opened(b"d", _dict_parts(value), pairs=True, unordered=True)
    if kind in LISTS:
        return Opened(b"l", _list_parts(value))
    if kind in SETS:
        return Opened(b"e", ((_ITEM_STEP, item) for item in value), unordered=True)
    if kind in registered:
        name, encode = registered[kind]
        return Opened(b"R", [(_SAME_STEP, encode(value))], _text_node(name))
    if is_namedtuple(kind):
        return Opened(b"l", _list_parts(value))
    return _named(value, kind) or _numpy(value, kind) or _object(value, kind)


def _dict_parts(value: dict[Any, Any]) -> Iterable[tuple[Step, Any]]:
    for key, part in value.items():
        yield _KEY_STEP, key
        yield ("item", key), part


def _list_parts(value: Sequence[Any]) -> Iterable[tuple[Step, Any]]:
    return ((("index", index), part) for index, part in enumerate(value))


def _named(value: Any, kind: type) -> Opened | None:
    """Enum members: the class and the member's name; combined flags have none that is unique, so their bits."""
    if issubclass(kind, Flag):
        return Opened(b"F", [(("field", "value"), value._value_)], _text_node(type_name(kind)))
    if issubclass(kind, Enum):
        return Opened(b"E", [], _text_node(type_name(kind)) + _text_node(value._name_))
    return None


def _numpy(value: Any, kind: type) -> Opened | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or not issubclass(kind, (numpy.generic, numpy.ndarray)):
        return None
    dtype = value.dtype
    if dtype.kind not in _NUMPY_KINDS or dtype.char in _NUMPY_PADDED:
        raise Refused(f"{type_name(kind)} of dtype kind {dtype.kind}{dtype.char}")
    if issubclass(kind, numpy.ndarray) and kind is not numpy.ndarray:
        raise Refused(type_name(kind))
    tag = b"a" if kind is numpy.ndarray else b"n"
    return Opened(tag, [], _text_node(dtype.str) + _integers(*value.shape) + node(b"b", value.tobytes()))


def _object(value: Any, kind: type) -> Opened:
    """Dataclasses, attrs classes and pydantic models: the class and the fields by name."""
    if issubclass(kind, _STATE_OF_ITS_OWN):
        raise Refused(type_name(kind))  # a subclass of str, dict, …: its fields are not all there is to it
    if "__dataclass_fields__" in vars(kind):
        return _fields(b"C", value, [field.name for field in dataclasses.fields(value)])
    if "__attrs_attrs__" in vars(kind):
        return _fields(b"A", value, [attribute.name for attribute in vars(kind)["__attrs_attrs__"]])
    model = getattr(sys.modules.get("pydantic.main"), "BaseModel", None)
    if model in kind.__mro__ and hasattr(kind, "model_fields"):
        return _fields(b"M", value, kind.model_fields, value.model_extra or {})
    raise Refused(type_name(kind))


def _fields(tag: bytes, value: Any, names: Iterable[str], extra: Mapping[str, Any] = MappingProxyType({})) -> Opened:
    parts: list[tuple[Step, Any]] = []
    for name, part in ({name: getattr(value, name) for name in names} | dict(extra)).items():
        parts += ((_FIELD_STEP, name), (("item" if name in extra else "field", name), part))
    return Opened(tag, parts, _text_node(type_name(type(value))), pairs=True, unordered=True)


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def _text_node(value: str) -> bytes:
    return node(b"s", _text(value))


def _integers(*numbers: int | None) -> bytes:
    return node(b"I", b",".join(b"%d" % number if number is not None else b"-" for number in numbers))


def _integer(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _float(value: float) -> bytes:
    return struct.pack(">d", value) if value == value else _NAN


def _memory(value: memoryview) -> bytes:
    return _text_node(value.format) + _integers(*(value.shape or ())) + value.tobytes()


def _decimal(value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    return f"{sign},{exponent},".encode() + bytes(digits)


def _offset(value: datetime | time) -> int | None:
    """Microseconds east of UTC, None without a zone."""
    if value.tzinfo is None:
        return None
    offset = value.utcoffset()
    if offset is None:
        raise Refused(f"{type_name(type(value))} with a zone that gives no offset")
    return offset // _MICROSECOND


def _clock(value: datetime | time) -> tuple[int | None, ...]:
    """The wall clock and the offset; without an offset ``fold`` tells apart what the offset would."""
    offset = _offset(value)
    fold = value.fold if offset is None else None
    return value.hour, value.minute, value.second, value.microsecond, fold, offset


def _datetime(value: datetime) -> bytes:
    return _integers(value.year, value.month, value.day, *_clock(value))


def _path_text(value: PurePath) -> bytes:
    return _text_node(type(value).__name__) + _text(str(value))


LEAVES: Final[dict[type, tuple[bytes, Callable[[Any], bytes]]]] = {
    type(None): (b"0", lambda _: b""),
    bool: (b"?", lambda value: b"\x01" if value else b"\x00"),
    int: (b"i", _integer),
    float: (b"f", _float),
    complex: (b"c", lambda value: _float(value.real) + _float(value.imag)),
    str: (b"s", _text),
    bytes: (b"b", bytes),
    bytearray: (b"y", bytes),
    memoryview: (b"m", _memory),
    Decimal: (b"D", _decimal),
    datetime: (b"t", _datetime),
    date: (b"j", lambda value: _integers(value.year, value.month, value.day)),
    time: (b"k", lambda value: _integers(*_clock(value))),
    timedelta: (b"h", lambda value: _integers(value.days, value.seconds, value.microseconds)),
    UUID: (b"u", lambda value: value.bytes),
    **dict.fromkeys((PurePosixPath, PosixPath, PureWindowsPath, WindowsPath), (b"p", _path_text)),
}

_STATE_OF_ITS_OWN: Final = (int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, Decimal,
                            date, time, timedelta, UUID, PurePath)  # fmt: skip

registered: Final[dict[type, tuple[str, Callable[[Any], Any]]]] = {}
