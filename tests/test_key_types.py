"""docs/key-types.md holds what the code does: its table is made here, and compared.

``AICACHE_REGENERATE=1`` writes the table anew.
"""

from __future__ import annotations

import collections
import os
import pathlib
import re
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from aicache_tasks.canonical import encode_canonical
from aicache_tasks.keytypes import DICTS, LEAVES, LISTS, SETS
from tests.key_delivery import NOT_DELIVERED, SERIALIZERS, deliver, send
from tests.key_samples import Box, Color, Level, Message, Mode, Pair, Point, Right, Vector

PAGE = Path(__file__).parent.parent / "docs" / "key-types.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
NAMES = {
    "np": np,
    "Decimal": Decimal,
    "datetime": datetime,
    "date": date,
    "time": time,
    "timedelta": timedelta,
    "UTC": UTC,
    "UUID": uuid.UUID,
    "OrderedDict": collections.OrderedDict,
    "PurePosixPath": pathlib.PurePosixPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
    "Color": Color,
    "Level": Level,
    "Mode": Mode,
    "Right": Right,
    "Pair": Pair,
    "Point": Point,
    "Vector": Vector,
    "Box": Box,
    "Message": Message,
    "nan": float("nan"),
    "CET": timezone(timedelta(hours=1)),
}


class Row(NamedTuple):
    kind: str
    keyed_as: str
    value: str
    other: str  # an expression whose key differs


ROWS = [
    Row("`None`", "itself", "None", '"None"'),
    Row("`bool`", "itself", "True", "1"),
    Row("`int`", "itself, of any size", "1", "1.0"),
    Row("`int` over 64 bits", "itself", "2**64", "float(2**64)"),
    Row("`float`", "its bits", "0.0", "-0.0"),
    Row("`float` NaN", "one NaN, whatever its bits", "nan", '"nan"'),
    Row("`complex`", "both floats", "1j", "1"),
    Row("`str`", "itself, not normalised", '"\\u00e9"', '"e\\u0301"'),
    Row("`str` with a lone surrogate", "itself", '"\\ud800"', '"?"'),
    Row("`bytes`", "itself", 'b"a"', '"a"'),
    Row("`bytearray`", "itself", 'bytearray(b"a")', 'b"a"'),
    Row("`memoryview`", "format, shape and bytes", 'memoryview(b"a")', 'b"a"'),
    Row("`list`", "its items", "[1, 2]", "[2, 1]"),
    Row("`tuple`", "a list", "(1, 2)", "{1, 2}"),
    Row("`namedtuple`", "a list: the name does not count", "Pair(1, 2)", "Pair(2, 1)"),
    Row("`dict`", "its items in any order", '{"a": 1}', '{"a": "1"}'),
    Row("`dict` with other keys", "its items in any order", '{1: "a"}', '{"1": "a"}'),
    Row("`OrderedDict`, `defaultdict`", "a dict: the order does not count", "OrderedDict(a=1)", '[("a", 1)]'),
    Row("`set`", "its items in any order", "{1, 2}", "[1, 2]"),
    Row("`frozenset`", "a set", "frozenset({1})", "(1,)"),
    Row("`Decimal`", "sign, digits and exponent", 'Decimal("1.0")', 'Decimal("1.00")'),
    Row(
        "`datetime` without a zone", "wall clock and `fold`", "datetime(2026, 1, 1)", "datetime(2026, 1, 1, tzinfo=UTC)"
    ),
    Row(
        "`datetime` with a zone",
        "wall clock and offset from UTC",
        "datetime(2026, 1, 1, 11, tzinfo=UTC)",
        "datetime(2026, 1, 1, 12, tzinfo=CET)",
    ),
    Row("`date`", "itself", "date(2026, 1, 1)", "datetime(2026, 1, 1)"),
    Row("`time`", "clock and `fold`, or clock and offset", "time(1)", "time(1, tzinfo=UTC)"),
    Row("`timedelta`", "itself", "timedelta(hours=1)", "3600"),
    Row("`UUID`", "its 16 bytes", "UUID(int=1)", "str(UUID(int=1))"),
    Row("`Path`", "class and text", 'PurePosixPath("a")', 'PureWindowsPath("a")'),
    Row("`Enum`", "class and member name", "Color.RED", "1"),
    Row("`IntEnum`", "class and member name", "Level.LOW", "1"),
    Row("`StrEnum`", "class and member name", "Mode.FAST", '"fast"'),
    Row("`Flag`", "class and value", "Right.READ | Right.WRITE", "Right.READ"),
    Row("dataclass", "class and fields", "Point(1, 2)", "Vector(1, 2)"),
    Row("attrs class", "class and fields", "Box(1)", "Box('1')"),
    Row("pydantic model", "class, fields and extra fields", 'Message(role="a")', '{"role": "a", "content": None}'),
    Row("numpy scalar", "dtype and bytes", "np.int64(1)", "1"),
    Row("numpy array", "dtype, shape and bytes", "np.array([1])", "[1]"),
]


def value_of(expression: str) -> Any:
    return eval(expression, {**NAMES})


def delivered_as(serializer: str, value: Any) -> str:
    try:
        delivered = deliver(serializer, send(serializer, value))
    except NOT_DELIVERED:
        return "not delivered"
    if isinstance(delivered, dict):
        return f"`{type(delivered).__name__}`, keys `{type(next(iter(delivered))).__name__}`"
    return "itself" if type(delivered).__module__ == Point.__module__ else f"`{type(delivered).__name__}`"


def table() -> str:
    ways_head = " | ".join(f"under {serializer}" for serializer in SERIALIZERS)
    lines = [f"| type | keyed as | {ways_head} | for example |", "|---|---|---|---|---|---|"]
    for row in ROWS:
        ways = [delivered_as(serializer, value_of(row.value)) for serializer in SERIALIZERS]
        example = f"`{row.value}` is not `{row.other}`".replace("|", "\\|")
        lines.append("| " + " | ".join([row.kind, row.keyed_as, *ways, example]) + " |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.kind)
def test_the_example_of_another_key_has_another_key(row: Row) -> None:
    assert encode_canonical(value_of(row.value)) == encode_canonical(value_of(row.value))
    assert encode_canonical(value_of(row.value)) != encode_canonical(value_of(row.other))


def test_the_table_of_types_is_what_the_code_does() -> None:
    head, _, rest = PAGE.read_text().partition(BEGIN)
    written, _, tail = rest.partition(END)
    if os.environ.get("AICACHE_REGENERATE") == "1":
        PAGE.write_text(f"{head}{BEGIN}{table()}{END}{tail}")
        written = table()
    assert written == table(), "run this test with AICACHE_REGENERATE=1 and read what changed"


def test_every_type_with_an_encoding_of_its_own_is_in_the_table() -> None:
    shown = set(re.findall(r"\w+", table()))
    named = {kind.__name__ for kind in {*LEAVES, *DICTS, *LISTS, *SETS}} - {"NoneType"}
    assert {re.sub(r"^(Pure)?(Posix|Windows)Path$", "Path", name) for name in named} <= shown
