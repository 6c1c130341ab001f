"""Keys of calls: what differs, what is the same, what shows, what is refused, what it costs."""

from __future__ import annotations

import base64
import collections
import copy
import datetime as dt
import decimal
import hashlib
import itertools
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from aicache_tasks.canonical import encode_canonical, is_plain
from aicache_tasks.errors import KeyEncodingError, SettingsError
from aicache_tasks.keys import CacheKeyGenerator, operation_slug
from aicache_tasks.records import Sample
from tests.key_samples import Box, Color, Level, Message, Mode, OpenMessage, Pair, Point, Right, Shade, Text, Vector

ENTRY = re.compile(r"\{aicache:([0-3][0-9a-f])\}:v1:([A-Za-z0-9_.-]*(?:~[0-9a-f]{8})?):([0-9a-f]{40})")
SECRET = b"0123456789abcdef"
NAIVE = dt.datetime(2026, 1, 2)  # noqa: DTZ001
CANARY = "Jane Doe, born 1980"


class Sink:
    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def record(self, sample: Sample) -> None:
        self.samples.append(sample)


def key_of(*args: Any, **kwargs: Any) -> str:
    return CacheKeyGenerator().generate_cache_key(*args, **kwargs)


# What differs --------------------------------------------------------------------------------------------------------

DIFFERENT_CALLS = {
    "two questions whose md5 starts alike": [
        ("t", "qa", None, "What happens in case 3760?"),
        ("t", "qa", None, "What happens in case 51470?"),
    ],
    "separators in the text": [("a|b", "qa"), ("a:b", "qa"), ("a_b", "qa")],
    "types of an option": [("t", "qa", {"n": n}) for n in (1, "1", True, 1.0, decimal.Decimal(1), b"1", None, [1])],
    "an option that reads like two": [("t", "qa", {"a": "1&b=2"}), ("t", "qa", {"a": "1", "b": "2"})],
    "zeros": [("t", "qa", {"n": n}) for n in (0, 0.0, -0.0, False, "", "0", None)],
    "types of an option's name": [("t", "qa", {name: "x"}) for name in (1, "1", 1.5, None, "None", "null", b"1")],
    "a question and an option of that name": [
        ("t", "qa", {"question": "q"}),
        ("t", "qa", None, "q"),
        ("t", "qa", {}, None),
    ],
    "no question and an empty one": [("t", "qa", None, None), ("t", "qa", None, "")],
    "no text and an empty one": [(None, "qa"), ("", "qa"), ("None", "qa"), (b"", "qa")],
    "parts that join to the same": [("ab", "qa", None, "c"), ("a", "qa", None, "bc"), ("abc", "qa", None, "")],
    "operation and text": [("x", "ab"), ("bx", "a"), ("", "abx")],
    "Unicode forms": [
        ("é", "qa"),
        ("e\u0301", "qa"),
        ("x²", "qa"),
        ("x2", "qa"),
        ("\ud83d\ude00", "qa"),
        ("😀", "qa"),
        ("\ud83d", "qa"),
    ],
    "precision": [("t", "qa", {"n": n}) for n in (2**53, 2**53 + 1, float(2**53), 2**64, -(2**63) - 1, 10**5000)],
}


@pytest.mark.parametrize("calls", DIFFERENT_CALLS.values(), ids=DIFFERENT_CALLS)
def test_calls_that_differ_have_different_keys(calls: list[tuple[Any, ...]]) -> None:
    assert len({key_of(*call) for call in calls}) == len(calls)


@pytest.mark.parametrize("part", ["version", "tenant", "vary"])
def test_each_keyword_part_makes_a_key_of_its_own(part: str) -> None:
    values = [None, {}, {"model": "a"}, {"model": "b"}] if part == "vary" else [None, "", "1", "2"]
    assert len({key_of("t", "qa", **{part: value}) for value in values}) == 4


def test_the_same_value_in_another_part_is_another_call() -> None:
    calls = [{"version": "x"}, {"tenant": "x"}, {"vary": {"x": 1}}, {"options": {"x": 1}}, {"question": "x"}]
    assert len({key_of("t", "qa", **call) for call in calls}) == len(calls)


def test_a_number_and_its_text_are_different_versions() -> None:
    assert key_of("t", "qa", version=1) != key_of("t", "qa", version="1")


@pytest.mark.parametrize(
    "values",
    [
        [Color.RED, Shade.RED, Level.LOW, 1, "RED", Color.BLUE],
        [Mode.FAST, "fast", "FAST"],
        [Right.READ, Right.WRITE, Right.READ | Right.WRITE, Right(0), 1, 3],
        [Point(1, 2), Vector(1, 2), Point(2, 1), {"x": 1, "y": 2}, (1, 2), Point(1, 2.0)],
        [Box(1), Box("1"), Box([1]), {"content": 1}],
        [
            Message(role="a"),
            Message(role="b"),
            OpenMessage(role="a"),
            OpenMessage(role="a", content=None),
            {"role": "a", "content": None},
        ],
        [OpenMessage(role="a", copy="x"), OpenMessage(role="a", copy="y")],
        [b"a", bytearray(b"a"), memoryview(b"a"), memoryview(b"a").cast("b"), "a", "b'a'"],
        [NAIVE, NAIVE.replace(fold=1), NAIVE.replace(tzinfo=dt.UTC), NAIVE.date(), NAIVE.isoformat()],
        [dt.time(1), dt.time(1, fold=1), dt.time(1, tzinfo=dt.UTC), dt.timedelta(hours=1), 3600],
        [PurePosixPath("a"), PureWindowsPath("a"), Path("a"), "a"],
        [uuid.UUID(int=1), uuid.UUID(int=2), str(uuid.UUID(int=1)), 1],
        [np.int64(1), np.int8(1), np.float64(1), 1, 1.0, np.array(1), np.array([1]), np.array([[1]]), [1]],
        [
            np.datetime64("2026-01-01"),
            np.datetime64("2026-01-01", "s"),
            np.timedelta64(1, "s"),
            np.str_("a"),
            np.bytes_(b"a"),
        ],
        [{1}, [1], (1, 1), {1: None}, {(1,)}, {frozenset({1})}],
        [[1, [2]], [[1], 2], [1, 2], [[1, 2]], [], [[]], None],
        [np.float32(0), np.int32(0), np.uint32(0), np.zeros(1, "i4"), np.zeros(1, ">i4"), np.zeros(1, "f4")],
        [["a", "b"], ["asb"], ["ab"], ["ab", ""], ["a", "b", ""], [["a"], "b"], [["a", "b"]], {"a": "b"}],
        [complex(1, 0), 1.0, complex(0, 1), complex(1, -0.0)],
        [decimal.Decimal(n) for n in ("1", "1.0", "1.00", "10", "1E1", "0", "-0", "0.0", "1E400")],
        [decimal.Decimal(n) for n in ("NaN", "sNaN", "NaN1", "-NaN", "Infinity", "-Infinity")],
    ],
    ids=lambda values: f"{type(values[0]).__name__} {values[0]!r}",
)
def test_values_that_differ_in_type_or_content_have_different_encodings(values: list[Any]) -> None:
    for wrap in (lambda value: value, lambda value: {0: value}):  # the second is never plain
        encodings = [encode_canonical(wrap(value)) for value in values]
        assert [(i, j) for i, j in itertools.combinations(range(len(values)), 2) if encodings[i] == encodings[j]] == []


def test_a_secret_changes_the_digest_but_not_what_the_key_shows() -> None:
    keys = [CacheKeyGenerator(secret=secret).key("t", "qa", None) for secret in (None, SECRET, SECRET[::-1])]
    assert len({key.digest for key in keys}) == 3
    assert all(ENTRY.fullmatch(key.redis_key) for key in keys)


def test_a_secret_changes_the_digests_of_tags() -> None:
    assert len({CacheKeyGenerator(secret=secret).tag_id("user-1") for secret in (None, SECRET, SECRET[::-1])}) == 3


def test_a_namespace_is_in_the_digest_and_in_front() -> None:
    ours, theirs = CacheKeyGenerator().key("t", "qa", None), CacheKeyGenerator(namespace="shop").key("t", "qa", None)
    assert ours.digest != theirs.digest
    assert theirs.redis_key.startswith("{shop:")


# What is the same ----------------------------------------------------------------------------------------------------

TAGGED = {"when": {1: dt.date(2026, 1, 1)}}
SAME_OPTIONS = {
    "order of a dict": [{"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}],
    "order of a tagged dict": [{1: "a", "b": 2, None: 3}, {None: 3, "b": 2, 1: "a"}],
    "list and tuple": [{"a": [1, (2, [3])]}, {"a": (1, [2, (3,)])}],
    "list and tuple, tagged": [{"a": [1, (2, [3])], **TAGGED}, {"a": (1, [2, (3,)]), **TAGGED}],
    "namedtuple": [{"a": Pair(1, 2)}, {"a": [1, 2]}],
    "namedtuple, tagged": [{"a": Pair(1, 2), **TAGGED}, {"a": (1, 2), **TAGGED}],
    "set and frozenset": [{"a": {1, "b", None}}, {"a": frozenset([None, "b", 1])}],
    "ordered and default dict": [
        {"a": 1, "b": 2},
        collections.OrderedDict(b=2, a=1),
        collections.defaultdict(list, a=1, b=2),
    ],
    "ordered dict, tagged": [{1: 1, 2: 2}, collections.OrderedDict({2: 2, 1: 1})],
    "every NaN": [
        {"a": float("nan")},
        {"a": -float("nan")},
        {"a": np.frombuffer(bytes.fromhex("010000000000f87f")).item()},
    ],
    "nothing and an empty dict": [None, {}],
    "equal pydantic models": [{"a": Message(role="x")}, {"a": Message(role="x", content=None)}],
}


@pytest.mark.parametrize("options", SAME_OPTIONS.values(), ids=SAME_OPTIONS)
def test_options_that_are_the_same_have_the_same_key(options: list[Any]) -> None:
    assert len({key_of("t", "qa", option) for option in options}) == 1


@pytest.mark.parametrize("text", ["", "a", "é", "日本語", "🙂" * 10, "\ud800", "a\0b", None])
def test_any_text_has_a_key_and_keeps_it(text: str | None) -> None:
    options = {"none": None, "nested": {"deep": [{"x": None}]}}
    assert key_of(text, "qa", options) == key_of(text, "qa", copy.deepcopy(options))


@pytest.mark.parametrize("text", [b"bytes", 7, ["a", "b"], {"role": "user"}, Message(role="user"), dt.date(2026, 1, 1)])
def test_a_text_of_another_type_is_keyed_too(text: Any) -> None:
    assert ENTRY.fullmatch(key_of(text, "qa"))


def test_an_equal_string_enum_names_the_same_operation() -> None:
    assert key_of("t", Mode.FAST) == key_of("t", "fast")


def test_the_zone_of_a_time_counts_by_its_offset_only() -> None:
    paris = dt.datetime(2026, 1, 1, 12, tzinfo=ZoneInfo("Europe/Paris"))
    fixed = dt.datetime(2026, 1, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    utc = dt.datetime(2026, 1, 1, 11, tzinfo=dt.UTC)
    assert encode_canonical(paris) == encode_canonical(fixed) != encode_canonical(utc)


def test_the_hour_that_a_clock_shows_twice_is_told_apart() -> None:
    first, second = (dt.datetime(2026, 10, 25, 2, 30, fold=fold, tzinfo=ZoneInfo("Europe/Paris")) for fold in (0, 1))
    assert encode_canonical(first) != encode_canonical(second)


def test_a_decimal_does_not_depend_on_the_decimal_context() -> None:
    expected = encode_canonical(decimal.Decimal("1E+400"))
    with decimal.localcontext(decimal.Context(prec=3, capitals=0)):
        assert encode_canonical(decimal.Decimal("1E+400")) == expected


def test_threads_make_the_same_keys() -> None:
    keys, made = CacheKeyGenerator(), []
    threads = [
        threading.Thread(
            target=lambda: made.append([keys.generate_cache_key(f"t{n}", "qa", TAGGED) for n in range(500)])
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [made[0]] * 4


# What shows ----------------------------------------------------------------------------------------------------------

OPERATIONS = [
    "summarize",
    "shop.tasks.qa-2",
    "a:b",
    "a b",
    "",
    "résumé",
    "日本語",
    "x" * 64,
    "x" * 65,
    "x" * 1000,
    "é" * 1000,
    "{a}*?[b]\n",
    "\ud800",
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=ascii)
@pytest.mark.parametrize("namespace", ["aicache", "n" * 32])
def test_a_key_is_short_and_of_the_documented_form(operation: str, namespace: str) -> None:
    keys = CacheKeyGenerator(namespace=namespace)
    made = keys.key("some text " * 5000, operation, {"a": 1}, "question", tenant="t" * 500)
    assert len(made.redis_key.encode()) < 200
    match = ENTRY.fullmatch(made.redis_key.replace(namespace, "aicache", 1))
    assert match
    assert (int(match[1], 16), match[2], match[3]) == (made.bucket, operation_slug(operation), made.digest[:20].hex())
    assert made.bucket == made.digest[0] & 63
    assert all(
        len(key.encode()) < 200 and key.startswith(f"{{{namespace}:{match[1]}}}:t:")
        for key in keys.token_keys(made.bucket, operation, ["tag", "é" * 500])
    )


@pytest.mark.parametrize("given", [{}, {"options": {}}, {"question": ""}, {"options": {"a": 1}, "question": "why?"}])
def test_a_key_has_the_same_form_whatever_the_call_has(given: dict[str, Any]) -> None:
    assert ENTRY.fullmatch(key_of("t", "qa", **given))


@pytest.mark.parametrize("name", ["summarize", "a.b-c_D9", "x" * 64])
def test_an_operation_of_allowed_characters_shows_as_it_is(name: str) -> None:
    assert operation_slug(name) == name


ALIKE = [
    ("a:b", "a/b", "a_b", "a b"),
    ("x" * 64, "x" * 65, "x" * 66),
    ("é", "è", "_"),
    ("", "~", "_~"),
    ("qa", "q", "qa "),
]


@pytest.mark.parametrize("operations", ALIKE, ids=ascii)
def test_operations_that_would_show_alike_have_other_keys_and_other_tokens(operations: tuple[str, ...]) -> None:
    keys = CacheKeyGenerator()
    assert len({operation_slug(operation) for operation in operations}) == len(operations)
    assert len({keys.generate_cache_key("t", operation) for operation in operations}) == len(operations)
    assert len({keys.token_keys(5, operation)[1] for operation in operations}) == len(operations)


def test_no_key_holds_text_question_option_tenant_or_tag() -> None:
    keys = CacheKeyGenerator()
    made = keys.key(CANARY, "qa", {CANARY: CANARY}, CANARY, version=CANARY, tenant=CANARY, vary={"v": CANARY})
    shown = "\n".join((made.redis_key, *keys.token_keys(made.bucket, "qa", [CANARY])))
    forms = [CANARY, CANARY.encode().hex(), base64.b64encode(CANARY.encode()).decode(), "Jane", "options", "question"]
    assert [form for form in forms if form.lower() in shown.lower()] == []


def test_token_keys_are_namespace_operation_and_tags_in_the_order_given() -> None:
    keys = CacheKeyGenerator()
    a, b = keys.tag_id("a").hex(), keys.tag_id("b").hex()
    assert len(keys.tag_id("a")) == 16
    head = ("{aicache:3f}:t:ns", "{aicache:3f}:t:op:qa")
    assert keys.token_keys(63, "qa") == head
    assert keys.token_keys(63, "qa", ["b", "a"]) == (*head, f"{{aicache:3f}}:t:tag:{b}", f"{{aicache:3f}}:t:tag:{a}")
    parts = keys.namespace_key(63), keys.operation_key(63, "qa"), keys.tag_key(63, keys.tag_id("a"))
    assert keys.token_keys(63, "qa", ["a"]) == parts


def test_an_entry_is_known_by_its_key_and_a_token_is_not() -> None:
    keys = CacheKeyGenerator()
    entry = keys.key("t", "qa", None)
    assert entry.redis_key.startswith(keys.key_prefix)
    assert keys.is_entry_key(entry.redis_key)
    assert keys.is_entry_key(entry.redis_key, "qa")
    assert not keys.is_entry_key(entry.redis_key, "q")
    assert not any(map(keys.is_entry_key, keys.token_keys(entry.bucket, "qa", ["t"])))
    assert not CacheKeyGenerator(namespace="aic").is_entry_key(entry.redis_key)


# Settings of a generator ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"), [("md5", 16), ("sha1", 20), ("sha256", 32), ("sha512", 64), ("blake2b", 64), ("sha512_256", 32)]
)
def test_any_hash_of_128_bits_or_more_makes_keys_of_its_own(name: str, size: int) -> None:
    made = CacheKeyGenerator(hash_algorithm=name).key("t", "qa", None)
    assert made.redis_key.rpartition(":")[2] == made.digest[: min(size, 20)].hex()
    assert len(made.digest) == 32
    assert made.digest[size:] == bytes(max(0, 32 - size))
    assert made.digest != CacheKeyGenerator(hash_algorithm="sha384").key("t", "qa", None).digest


def test_a_hash_may_be_given_as_its_constructor() -> None:
    assert CacheKeyGenerator(1000, hashlib.sha1).key("t", "qa", {}) == CacheKeyGenerator(1000, "sha1").key(
        "t", "qa", {}
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"hash_algorithm": "shake_128"},
        {"hash_algorithm": "nonsense"},
        {"hash_algorithm": 7},
        {"hash_algorithm": lambda data: hashlib.blake2b(data, digest_size=8)},
        {"namespace": ""},
        {"namespace": "a b"},
        {"namespace": "x" * 33},
        {"namespace": "a\n"},
        {"secret": b"short"},
        {"secret": b"x" * 65},
        {"secret": "0123456789abcdef"},
        {"text_size_tiers": {"small": 1}},
        {"text_size_tiers": {"small": 10, "medium": 5, "large": 20}},
        {"text_size_tiers": {"small": 1, "medium": 2, "large": "3"}},
        {"text_size_tiers": 7},
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_an_error_that_names_it(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        CacheKeyGenerator(**wrong)


@pytest.mark.parametrize(
    ("length", "tier"),
    [
        (0, "small"),
        (499, "small"),
        (500, "medium"),
        (4999, "medium"),
        (5000, "large"),
        (49_999, "large"),
        (50_000, "xlarge"),
    ],
)
def test_text_tiers_end_before_their_limits(length: int, tier: str) -> None:
    keys = CacheKeyGenerator()
    assert keys.text_tier("é" * length) == keys.key("é" * length, "qa", None).text_tier == tier


def test_text_tiers_can_be_set() -> None:
    keys = CacheKeyGenerator(text_size_tiers={"small": 1, "medium": 2, "large": 3})
    assert [keys.text_tier("x" * n) for n in range(4)] == ["small", "medium", "large", "xlarge"]


def test_no_text_is_small() -> None:
    assert CacheKeyGenerator().text_tier(None) == "small"


@pytest.mark.parametrize("wrong", [7, b"bytes", ["a"]])
def test_the_tier_of_something_else_is_a_clear_error(wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"text must be a str, not {type(wrong).__name__}"):
        CacheKeyGenerator().text_tier(wrong)


def test_an_operation_or_tag_that_is_no_text_is_a_clear_error() -> None:
    with pytest.raises(TypeError, match="operation must be a str, not int"):
        key_of("t", 7)
    with pytest.raises(TypeError, match="tag must be a str, not NoneType"):
        CacheKeyGenerator().token_keys(0, "qa", [None])  # type: ignore[list-item]


# Timing --------------------------------------------------------------------------------------------------------------


def test_each_key_is_one_timing_with_what_the_call_had() -> None:
    sink = Sink()
    keys = CacheKeyGenerator(performance_monitor=sink)
    before = time.time()
    keys.generate_cache_key("x" * 1000, "qa", {"a": 1}, "why?")
    keys.key("x" * 1001, "summarize", {}, None)
    first, second = sink.samples
    assert (first.operation, first.step, first.text_length, first.text_tier) == ("qa", "key", 1000, "medium")
    assert first.extra == {"has_options": True, "has_question": True, "size_class": "small"}
    assert second.extra == {"has_options": False, "has_question": False, "size_class": "large"}
    assert all(sample.duration_ns > 0 and before <= sample.at <= time.time() for sample in sink.samples)
    assert CANARY not in repr(sink.samples)


@pytest.mark.parametrize(
    ("options", "question", "length"), [*itertools.product([None, {"a": 1}, {1: 2}], [None, "", "q"], [10, 1001])]
)
def test_a_timing_says_which_parts_there_were(options: Any, question: str | None, length: int) -> None:
    sink = Sink()
    CacheKeyGenerator(performance_monitor=sink).key("x" * length, "qa", options, question)
    size = "large" if length > 1000 else "small"
    assert sink.samples[0].extra == {
        "has_options": bool(options),
        "has_question": question is not None,
        "size_class": size,
    }


def test_a_call_without_a_key_has_no_timing() -> None:
    sink = Sink()
    with pytest.raises(KeyEncodingError):
        CacheKeyGenerator(performance_monitor=sink).key("t", "qa", {"a": object()})
    assert sink.samples == []


def test_timings_share_their_extras() -> None:
    sink = Sink()
    keys = CacheKeyGenerator(performance_monitor=sink)
    keys.key("a", "qa", {"a": 1})
    keys.key("b", "qa", {"b": 1})
    assert sink.samples[0].extra is sink.samples[1].extra


def cpu_s(run: Callable[[], object]) -> float:
    """What *run* takes of this thread's time; other work on the machine does not count."""
    started = time.thread_time()
    run()
    return time.thread_time() - started


@pytest.mark.parametrize("letter", ["x", "é"])
def test_the_key_of_a_megabyte_costs_little_more_than_its_hash(letter: str) -> None:
    text, keys = letter * (1_000_000 // len(letter.encode())), CacheKeyGenerator()
    rounds = [
        (cpu_s(lambda: hashlib.sha256(text.encode())), cpu_s(lambda: keys.key(text, "summarize", {"max_length": 100})))
        for _ in range(40)
    ]
    hashed, keyed = map(min, zip(*rounds, strict=True))
    assert keyed <= 1.5 * hashed


# What the rest of the library relies on ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [None, True, 1, 1.5, "é", b"x", [1, (2,)], {"a": [{"b": None}]}, Pair(1, 2)], ids=repr
)
def test_plain_types_are_plain(value: Any) -> None:
    assert is_plain(value)
    assert encode_canonical(value)[:1] == b"P"


@pytest.mark.parametrize(
    "value",
    [
        {1: 2},
        {"a": {1}},
        float("nan"),
        [float("nan")],
        Level.LOW,
        Mode.FAST,
        bytearray(),
        Text(),
        np.float64(1),
        {Text("a"): 1},
    ],
    ids=repr,
)
def test_other_types_are_not_plain(value: Any) -> None:
    assert not is_plain(value)


def test_making_keys_imports_no_library_that_the_values_may_come_from() -> None:
    program = (
        "import sys; from aicache_tasks.keys import CacheKeyGenerator as G; G().key('t', 'qa', {'a': {1}});"
        "from aicache_tasks.errors import KeyEncodingError\n"
        "try: G().key('t', 'qa', {'a': object()})\n"
        "except KeyEncodingError: pass\n"
        "print(sorted({'numpy', 'pydantic', 'attrs', 'attr', 'celery', 'redis', 'kombu'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
