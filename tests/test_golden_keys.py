"""Keys written down once: none may ever change by accident."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import uuid
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest

from aicache_tasks.keys import CacheKeyGenerator
from tests.key_samples import Box, Color, Level, Message, Mode, OpenMessage, Pair, Point, Right, Vector

SECRET = b"0123456789abcdef"
NAIVE = dt.datetime(2026, 1, 2)  # noqa: DTZ001


GOLDEN = Path(__file__).parent / "data" / "golden_keys.json"
CALLS: dict[str, dict[str, Any]] = {
    "text only": {"text": "The quick brown fox."},
    "no text": {"text": None},
    "empty text": {"text": ""},
    "unicode": {"text": "Zürich — 東京 — 🙂"},
    "decomposed": {"text": "Zu\u0308rich"},
    "lone surrogate": {"text": "\ud800"},
    "bytes as text": {"text": b"\x00\xff"},
    "messages as text": {"text": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
    "long text": {"text": "word " * 20_000},
    "summarize": {"operation": "summarize", "options": {"max_length": 100}},
    "sentiment": {"operation": "sentiment", "options": {}},
    "key points": {"operation": "key_points", "options": {"max_points": 5}},
    "questions": {"operation": "questions", "options": {"num_questions": 5}},
    "qa": {"operation": "qa", "question": "Who jumps?"},
    "empty question": {"operation": "qa", "question": ""},
    "dotted operation": {"operation": "shop.tasks.summarize-2"},
    "changed operation": {"operation": "shop:summarize me"},
    "long operation": {"operation": "o" * 100},
    "empty operation": {"operation": ""},
    "version": {"version": "prompt-3"},
    "numbered version": {"version": 3},
    "tenant": {"tenant": "acme"},
    "vary": {"vary": {"model": "m-1", "temperature": 0.2}},
    "everything": {
        "operation": "qa",
        "question": "Why?",
        "version": "2",
        "tenant": "acme",
        "vary": {"m": 1},
        "options": {"a": [1, 2.5, None, True, "x"]},
    },
    "nested options": {"options": {"b": {"d": [1, {"e": None}], "c": False}, "a": "z"}},
    "plain numbers": {"options": {"n": [0, -1, 127, 128, 65_536, 2**63, -(2**63), 2**64 - 1, 0.0, -0.0, 1.5, 1e300]}},
    "big numbers": {"options": {"n": [2**64, -(2**63) - 1, 10**40]}},
    "nan and infinity": {"options": {"n": [float("nan"), float("inf"), -float("inf")]}},
    "mixed keys": {"options": {1: "a", "1": "b", None: "c", 2.5: "e", (1, "x"): "f", b"k": "g"}},
    "set": {"options": {"s": {3, 1, 2, "a", None}}},
    "bytearray and memory": {"options": {"a": bytearray(b"ab"), "m": memoryview(b"ab")}},
    "decimal": {
        "options": {"d": [decimal.Decimal(d) for d in ("1.0", "1.00", "-0", "NaN", "sNaN", "-Infinity", "1E+400")]}
    },
    "complex": {"options": {"c": 1.5 - 2j}},
    "naive time": {"options": {"t": [NAIVE.replace(hour=3, microsecond=6), NAIVE.replace(fold=1)]}},
    "aware time": {
        "options": {
            "t": [
                dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC),
                dt.datetime(2026, 1, 2, 3, tzinfo=dt.timezone(dt.timedelta(hours=-5))),
            ]
        }
    },
    "date, time, delta": {
        "options": {
            "d": dt.date(2026, 1, 2),
            "t": dt.time(3, 4, 5, 6),
            "u": dt.time(3, tzinfo=dt.UTC),
            "l": dt.timedelta(-1, 2, 3),
        }
    },
    "uuid": {"options": {"u": uuid.UUID("12345678-1234-5678-1234-567812345678")}},
    "paths": {"options": {"p": [PurePosixPath("/a/b"), PureWindowsPath("C:/a")]}},
    "enums": {"options": {"e": [Color.RED, Level.LOW, Mode.FAST, Right.READ, Right.READ | Right.WRITE]}},
    "dataclass": {"options": {"p": Point(1, Vector("a", None))}},
    "attrs class": {"options": {"b": Box({"k": 1})}},
    "pydantic model": {"options": {"m": [Message(role="user", content="Hi"), OpenMessage(role="user", note=1)]}},
    "numpy": {
        "options": {
            "n": [
                np.int64(1),
                np.float32(0.5),
                np.bool_(True),
                np.str_("a"),
                np.array([[1, 2]], dtype="<i4"),
                np.datetime64("2026-01-02"),
            ]
        }
    },
    "namedtuple": {"options": {"p": Pair(1, {2})}},
    "secret": {"secret": SECRET},
    "namespace": {"namespace": "shop.eu-1"},
    "md5": {"hash_algorithm": "md5"},
    "sha512": {"hash_algorithm": "sha512"},
}
OF_THE_GENERATOR = {"secret", "namespace", "hash_algorithm"}


def golden_key(call: dict[str, Any]) -> dict[str, str]:
    keys = CacheKeyGenerator(**{name: value for name, value in call.items() if name in OF_THE_GENERATOR})
    arguments = {"text": "t", "operation": "summarize", "options": None}
    arguments |= {name: value for name, value in call.items() if name not in OF_THE_GENERATOR}
    made = keys.key(**arguments)
    return {"key": made.redis_key, "digest": made.digest.hex()}


@pytest.mark.parametrize("name", CALLS)
def test_keys_never_change(name: str) -> None:
    """Each call has exactly the key that it had when it was written down.

    A key that changes empties the cache of everyone who upgrades, and two versions running side by side share
    nothing. If it must change, the schema number in the key format changes with it (``v1`` in the key,
    ``aicache:1:`` in the digest, docs/architecture.md), and then this file is written anew.
    """
    assert golden_key(CALLS[name]) == json.loads(GOLDEN.read_text())[name]


def test_every_golden_key_is_tried() -> None:
    assert json.loads(GOLDEN.read_text()).keys() == CALLS.keys()
    assert len({call["key"] for call in json.loads(GOLDEN.read_text()).values()}) == len(CALLS) >= 40


def test_tag_ids_never_change() -> None:
    assert CacheKeyGenerator().tag_id("user-1").hex() == "0515dafcf5c558a326e156d49909e57e"
    assert CacheKeyGenerator(secret=SECRET).tag_id("user-1").hex() == "32ed8b05a35ac1855923da4f5d1d0a8c"
