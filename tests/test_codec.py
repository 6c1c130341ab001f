"""Values and frames: what is stored comes back equal, what cannot is refused, the layout is the documented one."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import random
import string
import struct
import sys
import threading
import uuid
import zlib
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from aicache_tasks import frame
from aicache_tasks.codec import Codec, Frame, Opened, Tokens, make_tombstone, peek_header, tombstone_token
from aicache_tasks.errors import CorruptPayload, ForeignPayload, NotStorable, PayloadError, UnknownPayload
from aicache_tasks.records import EntryMeta
from aicache_tasks.stores import base
from aicache_tasks.values import MAX_DEPTH

DIGEST = bytes(range(32))
OTHER_DIGEST = bytes(range(1, 33))
TAGS = ((b"tag-digest-16-by", b"tagtoken"), (b"another-16-bytes", b"token-ab"))
TOKENS = Tokens(b"ns-token", b"op-token", TAGS)
META = EntryMeta("model-1", {"input_tokens": 12, "output_tokens": 3}, 0.25, 1_500_000, 99)
CODECS = ("none", "zlib", "zstd")
TEXT = "The cache keeps what the model said, and says it again. " * 80


def seal(codec: Codec, raw: bytes, *, tokens: Tokens = TOKENS, meta: EntryMeta = META) -> Frame:
    return codec.seal(raw, digest=DIGEST, tokens=tokens, created_ms=1000, fresh_ms=2000, expires_ms=3000, meta=meta)


def through(codec: Codec, value: Any) -> Any:
    return codec.load(codec.inflate(codec.open(seal(codec, codec.dump(value)).data, DIGEST)))


def shape(value: Any) -> Any:
    """A value as types and reprs all the way down: 1, True and 1.0 differ, and so do 0.0 and -0.0; NaN does not."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, [shape(item) for item in value]
    if kind in (set, frozenset):
        return kind, sorted(repr(shape(item)) for item in value)
    if kind is dict:
        return kind, [(shape(key), shape(item)) for key, item in value.items()]
    return kind, repr(value)


def forge(data: bytes, at: int, new: bytes) -> bytes:
    """Return a frame with other bytes at *at* and a checksum that fits them."""
    changed = bytearray(data)
    changed[at : at + len(new)] = new
    struct.pack_into(">I", changed, 98, zlib.crc32(changed[102:], zlib.crc32(changed[:98])))
    return bytes(changed)


def incompressible_text(length: int) -> str:
    pick = random.Random(7)
    return "".join(pick.choice(string.ascii_letters + string.digits + "+/") for _ in range(length))


class Colour(enum.IntEnum):
    RED = 1


class Word(enum.StrEnum):
    YES = "yes"


class Named(NamedTuple):
    text: str


class Sub(dict):  # type: ignore[type-arg]
    pass


@dataclasses.dataclass
class Answer:
    text: str


class Hooked:
    def __reduce__(self) -> Any:
        raise AssertionError("a codec has no business here")


STORABLE = [
    None,
    True,
    False,
    0,
    -1,
    2**63,
    2**64 - 1,
    2**64,
    -(2**63) - 1,
    10**4299,
    0.0,
    -0.0,
    1.0,
    float("inf"),
    float("nan"),
    5e-324,
    "",
    "text",
    "漢字 😀",
    "\ud800 alone",
    "\0",
    b"",
    b"\xff\x00",
    [],
    {},
    (),
    set(),
    frozenset(),
    [1, [2, (3, {4})]],
    {"b": 1, "a": {"ß": [None]}},
    {1: "int", "1": "str", None: 0, 2.5: 1, (1, "x"): {b"k": 1}},
    {"\udfff": 1},
    {float("nan"): float("nan")},
    {1, 2.5, "a", b"a", None, (1, 2), frozenset({1, (2,)})},
    frozenset({float("nan"), -0.0}),
    [True, 1, 1.0],
    (True, {1: (1.0,)}),
    {True},
    datetime(2024, 5, 6, 7, 8, 9, 123456),  # noqa: DTZ001 - naive ones are values too
    datetime(2024, 10, 27, 2, 30, fold=1),  # noqa: DTZ001
    datetime(2024, 5, 6, tzinfo=UTC),
    datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=timezone(timedelta(hours=1))),
    datetime(1, 1, 1, tzinfo=timezone(-timedelta(hours=23, minutes=59, seconds=1, microseconds=7), "odd")),
    datetime.max,  # noqa: DTZ901
    date(2024, 2, 29),
    date.min,
    time(23, 59, 59, 999999),
    time(1, fold=1, tzinfo=timezone(timedelta(minutes=-90))),
    timedelta(0),
    timedelta.min,
    timedelta(days=-1, microseconds=1),
    Decimal("1.00"),
    Decimal("-0"),
    Decimal("1E+3"),
    Decimal("NaN"),
    Decimal("sNaN7"),
    Decimal("-Infinity"),
    Decimal("9" * 34 + "E-6100"),
    uuid.UUID(int=5),
    complex(-0.0, float("nan")),
    complex(1, 2),
]

NOT_STORABLE = [
    (Colour.RED, "Colour"),
    (Word.YES, "Word"),
    (np.float64(1.5), "float64"),
    (np.array([1.0]), "ndarray"),
    (OrderedDict(a=1), "OrderedDict"),
    (Named("x"), "Named"),
    (namedtuple("Point", "x")(1), "Point"),  # noqa: PYI024
    (Answer("x"), "Answer"),
    (Sub(), "Sub"),
    (bytearray(b"x"), "bytearray"),
    (memoryview(b"x"), "memoryview"),
    (object(), "object"),
    (Hooked(), "Hooked"),
    (Hooked, "type"),
    (len, "builtin_function_or_method"),
    (ValueError("x"), "ValueError"),
    (range(3), "range"),
    (datetime(2024, 5, 6, tzinfo=ZoneInfo("UTC")), "time zone ZoneInfo"),
    (10**4301, "int"),
    (Decimal("1E+999999"), "Decimal"),
    (Decimal("1E-999999"), "Decimal"),
    (Decimal("1" * 5000), "Decimal"),
]

text = st.text(st.characters(exclude_categories=()), max_size=8)
zones = st.none() | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | text
    | st.binary(max_size=8)
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.times(timezones=zones)
    | st.timedeltas()
    | st.decimals().filter(lambda number: abs(number.adjusted()) < 1000 if number.is_finite() else True)
    | st.uuids()
    | st.complex_numbers()
)
hashable = st.recursive(
    leaves.filter(lambda leaf: not (isinstance(leaf, Decimal) and leaf.is_snan())),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
storable = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(hashable, max_size=4)
        | st.dictionaries(text, inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
    ),
    max_leaves=12,
)


class TestValues:
    @pytest.mark.parametrize("value", STORABLE, ids=[f"{n}-{type(value).__name__}" for n, value in enumerate(STORABLE)])
    def test_comes_back_equal_with_equal_types(self, value: Any) -> None:
        assert shape(through(Codec(), value)) == shape(value)

    @settings(max_examples=400, deadline=None, database=None)
    @given(storable)
    def test_any_storable_value_comes_back_equal_with_equal_types(self, value: Any) -> None:
        assert shape(through(Codec(), value)) == shape(value)

    @pytest.mark.parametrize(
        ("value", "kind"), NOT_STORABLE, ids=[f"{n}-{kind}" for n, (_, kind) in enumerate(NOT_STORABLE)]
    )
    def test_what_would_come_back_as_something_else_is_refused_by_path_and_type(self, value: Any, kind: str) -> None:
        with pytest.raises(NotStorable) as caught:
            Codec().dump({"items": [1, 2, 3, value]})
        assert caught.value.reason == "not_roundtrip"
        assert caught.value.detail.startswith(f"result.items[3]: {kind}")

    def test_a_path_shows_no_key_that_may_be_text_of_the_answer(self) -> None:
        with pytest.raises(NotStorable) as caught:
            Codec().dump({"Dear Mr Smith": {("secret",): object()}})
        assert "Smith" not in str(caught.value)
        assert "secret" not in str(caught.value)

    def test_zone_names_survive(self) -> None:
        moment = datetime(2024, 5, 6, tzinfo=timezone(timedelta(hours=2), "CEST"))
        assert through(Codec(), moment).strftime("%H %z %Z") == "00 +0200 CEST"

    def test_the_order_of_a_dict_survives(self) -> None:
        assert list(through(Codec(), {"z": 1, "a": 2, "m": 3})) == ["z", "a", "m"]
        assert list(through(Codec(), {3: 1, 1: 2, 2: 3})) == [3, 1, 2]

    def test_equal_sets_have_equal_bodies(self) -> None:
        # 0 and 8 share a slot of a small set's table, so their order is the order of insertion.
        first, second = {0, 8}, {8, 0}
        assert list(first) != list(second)
        assert Codec().dump(first) == Codec().dump(second)

    def test_each_load_gives_a_fresh_object(self) -> None:
        codec = Codec()
        raw = codec.dump({"items": [1, 2], "seen": {1}})
        first = codec.load(raw)
        first["items"].append(3)
        first["seen"].add(2)
        assert codec.load(raw) == {"items": [1, 2], "seen": {1}}

    def test_a_value_that_contains_itself_is_refused(self) -> None:
        items: list[Any] = [1]
        items.append({"again": items})
        with pytest.raises(NotStorable, match="contains itself"):
            Codec().dump(items)

    @pytest.mark.parametrize(
        "wrap",
        [lambda v: [v], lambda v: (v,), lambda v: {"k": v}, lambda v: {1: v}],
        ids=["list", "tuple", "dict", "ints"],
    )
    def test_nesting_is_stored_up_to_the_limit_and_refused_beyond_it(self, wrap: Any) -> None:
        value: Any = None
        for _ in range(MAX_DEPTH):
            value = wrap(value)
        assert shape(through(Codec(), value)) == shape(value)
        with pytest.raises(NotStorable, match="too deep"):
            Codec().dump(wrap(value))

    def test_nesting_without_end_is_refused_without_a_recursion_error(self) -> None:
        value: Any = None
        for _ in range(100_000):
            value = [value]
        with pytest.raises(NotStorable, match="too deep"):
            Codec().dump(value)
        while value:  # taken apart by hand: freeing it whole would recurse in some Pythons
            value = value.pop()

    def test_a_caller_near_the_end_of_its_stack_gets_an_answer_or_a_refusal(self) -> None:
        value: Any = "x"
        for _ in range(50):
            value = [value]

        def dig(left: int) -> str:
            if left:
                return dig(left - 1)
            try:
                return str(Codec().load(Codec().dump(value)) == value)
            except NotStorable as refused:
                return refused.reason

        here = len(inspect.stack(context=0))
        outcomes = {dig(sys.getrecursionlimit() - here - room) for room in range(30, 260, 10)}
        assert outcomes == {"True", "not_roundtrip"}

    def test_a_dict_that_changes_while_it_is_read_is_stored_whole_or_refused(self) -> None:
        codec, value, done = Codec(), {f"k{n}": [n] for n in range(200)}, threading.Event()

        def change() -> None:
            n = 0
            while not done.is_set():
                value[f"new{n % 50}"] = [n]
                value.pop(f"new{(n + 25) % 50}", None)
                n += 1

        def kept_first(value: Any) -> str:
            try:
                return str(codec.load(codec.dump(value))["k0"])
            except NotStorable as refused:
                return refused.reason

        writer = threading.Thread(target=change)
        writer.start()
        try:
            outcomes = [kept_first(value) for _ in range(200)]
        finally:
            done.set()
            writer.join()
        assert set(outcomes) <= {"[0]", "not_roundtrip"}

    def test_plain_values_are_plain_messagepack(self) -> None:
        value = {"a": [1, -2, 2.5, "ü", None, True], "b": b"\x00"}
        assert msgpack.unpackb(Codec().dump(value)) == value

    def test_extension_types_have_the_documented_numbers(self) -> None:
        samples = [(), set(), frozenset(), 2**70, "\ud800", {1: 1}, datetime(1, 1, 1, tzinfo=UTC), date.max, time.max]
        samples += [timedelta.max, Decimal(1), uuid.UUID(int=1), 1j]
        codes = [msgpack.unpackb(Codec().dump(value)).code for value in samples]
        assert codes == list(range(1, 14))


class TestSizes:
    def test_a_value_over_the_limit_is_refused_and_one_at_it_is_stored(self) -> None:
        codec = Codec(max_entry_bytes=1000)
        assert len(codec.dump("x" * 997)) == 1000
        with pytest.raises(NotStorable) as caught:
            codec.dump("x" * 998)
        assert caught.value.reason == "too_large"

    @pytest.mark.parametrize(
        "wrap",
        [lambda v: [v] * 10, lambda v: (v,) * 10, lambda v: {str(n): v for n in range(10)}],
        ids=["list", "tuple", "dict"],
    )
    def test_shared_references_cannot_blow_a_value_up(self, wrap: Any) -> None:
        value: Any = "ha"
        for _ in range(30):
            value = wrap(value)
        with pytest.raises(NotStorable) as caught:
            Codec().dump(value)
        assert caught.value.reason == "too_large"

    def test_compressed_results_count_bytes_and_shrink(self) -> None:
        codec = Codec()
        sealed = seal(codec, codec.dump("A" * 2000))
        assert sealed.compressed
        assert sealed.raw_bytes == 2003
        assert sealed.stored_bytes == len(sealed.data) < sealed.raw_bytes
        assert sealed.compress_ns > 0

    def test_small_results_are_not_compressed(self) -> None:
        codec = Codec()
        sealed = seal(codec, codec.dump({"sentiment": "positive", "confidence": 0.9}))
        assert (sealed.compressed, sealed.compress_ns) == (False, 0)

    @pytest.mark.parametrize("compression", ["zlib", "zstd"])
    @pytest.mark.parametrize(
        "value",
        ["B" * 974, [1 / (n + 3) for n in range(90)], "".join(chr(0x4E00 + n * 7 % 20000) for n in range(2000))],
        ids=["974 characters", "90 floats", "2000 CJK characters"],
    )
    def test_sizes_are_bytes_and_the_flag_is_the_header(self, compression: str, value: Any) -> None:
        codec = Codec(compression=compression)
        raw = codec.dump(value)
        sealed = seal(codec, raw)
        header_codec = sealed.data[12]
        assert sealed.raw_bytes == len(raw) == struct.unpack_from(">I", sealed.data, 20)[0]
        assert sealed.compressed == (header_codec != 0)
        assert not sealed.compressed or sealed.stored_bytes / sealed.raw_bytes <= 1
        assert sealed.compressed or sealed.data.endswith(raw)
        assert shape(codec.load(codec.inflate(codec.open(sealed.data, DIGEST)))) == shape(value)

    @pytest.mark.parametrize("compression", ["zlib", "zstd"])
    def test_what_does_not_shrink_is_stored_as_it_is(self, compression: str) -> None:
        codec = Codec(compression=compression)
        raw = codec.dump(random.Random(5).randbytes(5000))
        sealed = seal(codec, raw)
        assert not sealed.compressed
        assert sealed.data.endswith(raw)

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.sampled_from(CODECS), st.integers(0, 2500), st.integers(1, 40), st.integers(0, 2000))
    def test_a_compressed_frame_is_never_longer_than_its_body(
        self, compression: str, length: int, variety: int, threshold: int
    ) -> None:
        codec = Codec(compression=compression, threshold_bytes=threshold)
        pick = random.Random(length)
        raw = codec.dump(bytes(pick.randrange(256) % (variety * 6 + 1) for _ in range(length)))
        sealed = seal(codec, raw)
        assert codec.inflate(codec.open(sealed.data, DIGEST)) == raw
        assert sealed.compressed <= (sealed.stored_bytes < sealed.raw_bytes)
        assert sealed.compressed <= (sealed.raw_bytes > threshold)

    @pytest.mark.parametrize("compression", ["zlib", "zstd"])
    def test_a_higher_level_is_no_larger_and_a_huge_threshold_compresses_nothing(self, compression: str) -> None:
        raw = Codec().dump(incompressible_text(300) + TEXT)
        quick, thorough = (seal(Codec(compression=compression, level=level), raw) for level in (1, 9))
        assert thorough.stored_bytes <= quick.stored_bytes
        assert not seal(Codec(compression=compression, threshold_bytes=2**31), raw).compressed

    def test_the_threshold_is_the_longest_body_that_is_stored_as_it_is(self) -> None:
        codec = Codec(threshold_bytes=1000)
        assert not seal(codec, codec.dump("a" * 997)).compressed
        assert seal(codec, codec.dump("a" * 998)).compressed

    @pytest.mark.parametrize("compression", CODECS)
    @pytest.mark.parametrize("length", [2_000, 100_000, 1_000_000])
    def test_long_results_come_back_as_stored(self, compression: str, length: int) -> None:
        value = {"text": (TEXT * (length // len(TEXT) + 1))[:length]}
        assert through(Codec(compression=compression), value) == value

    def test_every_codec_is_read_whatever_is_written(self) -> None:
        raw = Codec().dump(TEXT)
        for compression in CODECS:
            data = seal(Codec(compression=compression), raw).data
            assert Codec(compression="none").inflate(Codec(compression="none").open(data, DIGEST)) == raw

    def test_levels_beyond_nine_are_taken_as_nine_by_zlib(self) -> None:
        raw = Codec().dump(TEXT)
        assert seal(Codec(compression="zlib", level=22), raw).data == seal(Codec(compression="zlib", level=9), raw).data


class TestFrame:
    def test_the_layout_is_the_documented_one(self) -> None:
        codec = Codec()
        raw = codec.dump("hello")
        data = seal(codec, raw).data
        meta = msgpack.packb(["model-1", {"input_tokens": 12, "output_tokens": 3}, 0.25, 1_500_000, 99])
        assert data[:12] == b"\xa1\xca\x01\x01" + bytes(8)
        assert tuple(data[12:16]) == (0, 1, 0, 2)
        assert struct.unpack_from(">IIQQQ", data, 16) == (0, len(raw), 1000, 2000, 3000)
        assert data[48:80] == DIGEST
        assert data[80:96] == b"ns-token" + b"op-token"
        assert struct.unpack_from(">H", data, 96)[0] == len(meta)
        assert struct.unpack_from(">I", data, 98)[0] == zlib.crc32(data[:98] + data[102:])
        assert data[102:] == b"".join(part for tag in TAGS for part in tag) + meta + raw

    def test_a_frame_of_version_1_reads_the_same_for_ever(self) -> None:
        data = bytes.fromhex(
            "a1ca0101000000000000000000010000000000000000000600000000000003e800000000000007d00000000000000bb8"
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f6e732d746f6b656e6f702d746f6b656e"
            "0006eb60f8b095c0c0c00000a568656c6c6f"
        )
        codec = Codec()
        made = seal(codec, codec.dump("hello"), tokens=Tokens(b"ns-token", b"op-token"), meta=EntryMeta()).data
        assert made.hex() == data.hex()
        assert codec.load(codec.inflate(codec.open(data, DIGEST))) == "hello"

    def test_opening_gives_back_what_was_sealed(self) -> None:
        codec = Codec()
        raw = codec.dump(TEXT)
        sealed = seal(codec, raw)
        opened = codec.open(sealed.data, DIGEST)
        assert opened[:7] == (TOKENS, 1000, 2000, 3000, len(raw), sealed.stored_bytes, 2)
        assert codec.meta(opened) == META
        assert codec.inflate(opened) == raw

    def test_bodies_are_standard_zstd_and_zlib(self) -> None:
        raw = Codec().dump(TEXT)
        for compression, inflate in (("zstd", zstandard.decompress), ("zlib", zlib.decompress)):
            codec = Codec(compression=compression)
            assert inflate(bytes(codec.open(seal(codec, raw).data, DIGEST).body)) == raw

    def test_the_frame_of_another_key_is_foreign(self) -> None:
        codec = Codec()
        data = seal(codec, codec.dump(1)).data
        with pytest.raises(ForeignPayload):
            codec.open(data, OTHER_DIGEST)
        with pytest.raises(ForeignPayload):
            peek_header(data, OTHER_DIGEST)

    @pytest.mark.parametrize("size", [16, 20, 48, 64])
    def test_digests_of_other_lengths_are_padded_or_cut(self, size: int) -> None:
        codec, digest = Codec(), bytes(range(1, size + 1))
        data = codec.seal(
            codec.dump(1), digest=digest, tokens=TOKENS, created_ms=0, fresh_ms=1, expires_ms=1, meta=META
        ).data
        assert codec.open(data, digest).tokens == TOKENS
        with pytest.raises(ForeignPayload):
            codec.open(data, bytes([255]) + digest[1:])

    @pytest.mark.parametrize(
        ("at", "new"),
        [(2, b"\x02"), (2, b"\x00"), (12, b"\x03"), (12, b"\xff"), (13, b"\x02"), (16, b"\0\0\0\x07")],
        ids=["version 2", "version 0", "codec 3", "codec 255", "body format 2", "dictionary 7"],
    )
    def test_frames_of_another_deployment_are_unknown(self, at: int, new: bytes) -> None:
        codec = Codec()
        with pytest.raises(UnknownPayload):
            codec.open(forge(seal(codec, codec.dump(TEXT)).data, at, new), DIGEST)

    def test_a_sealed_frame_is_unknown_and_one_with_a_checksum_is_corrupt(self) -> None:
        data = bytearray(seal(Codec(), Codec().dump(TEXT)).data)
        data[14] = 1
        with pytest.raises(CorruptPayload):
            Codec().open(bytes(data), DIGEST)
        data[98:102] = bytes(4)
        with pytest.raises(UnknownPayload):
            Codec().open(bytes(data), DIGEST)

    def test_a_frame_of_a_later_version_is_unknown_whatever_its_length(self) -> None:
        with pytest.raises(UnknownPayload):
            Codec().open(b"\xa1\xca\x09\x01" + bytes(8), DIGEST)

    def test_lengths_beyond_the_limit_are_refused_before_anything_is_made(self) -> None:
        data = seal(Codec(), Codec().dump(TEXT)).data
        with pytest.raises(CorruptPayload, match="limit"):
            Codec(max_entry_bytes=1000).open(data, DIGEST)
        with pytest.raises(CorruptPayload, match="limit"):
            Codec(max_entry_bytes=1000).open(bytes(80_000), DIGEST)

    @pytest.mark.parametrize("compression", CODECS)
    @pytest.mark.parametrize("change", [-1, 1, 1000])
    def test_a_body_of_another_length_than_stated_is_corrupt(self, compression: str, change: int) -> None:
        codec = Codec(compression=compression)
        raw = codec.dump(TEXT)
        opened = codec.open(forge(seal(codec, raw).data, 20, struct.pack(">I", len(raw) + change)), DIGEST)
        with pytest.raises(CorruptPayload):
            codec.inflate(opened)

    @pytest.mark.parametrize("compression", ["zlib", "zstd"])
    def test_bytes_after_the_end_of_the_body_are_corrupt(self, compression: str) -> None:
        codec = Codec(compression=compression)
        opened = codec.open(seal(codec, codec.dump(TEXT)).data, DIGEST)
        body = bytes(opened.body)
        for bad in (body + b"x", body + body, body + b"\x50\x2a\x4d\x18\x01\x00\x00\x00x", body[:-1], b""):
            with pytest.raises(CorruptPayload):
                codec.inflate(opened._replace(body=bad))

    def test_more_tags_or_metadata_than_the_header_counts_are_refused(self) -> None:
        codec, raw = Codec(), Codec().dump(1)
        tags = tuple((n.to_bytes(16, "big"), bytes(8)) for n in range(256))
        full = seal(codec, raw, tokens=Tokens(bytes(8), bytes(8), tags[:255])).data
        assert codec.open(full, DIGEST).tokens.tags == tags[:255]
        with pytest.raises(NotStorable, match="256 tags"):
            seal(codec, raw, tokens=Tokens(bytes(8), bytes(8), tags))
        with pytest.raises(NotStorable, match="metadata"):
            seal(codec, raw, meta=EntryMeta(model="m" * 70_000))

    def test_a_body_over_the_limit_is_not_sealed(self) -> None:
        with pytest.raises(NotStorable, match="too_large"):
            seal(Codec(max_entry_bytes=100), bytes(101))

    @pytest.mark.parametrize(
        "meta",
        [EntryMeta(), META, EntryMeta(cost=3), EntryMeta(usage={}), EntryMeta(model="m", compute_ns=2**60, prices="2")],
    )
    def test_metadata_comes_back(self, meta: EntryMeta) -> None:
        codec = Codec()
        assert codec.meta(codec.open(seal(codec, codec.dump(1), meta=meta).data, DIGEST)) == meta

    @pytest.mark.parametrize(
        "meta",
        [EntryMeta(model="\ud800"), EntryMeta(usage={"a": 2**70}), EntryMeta(usage={"a": "b"}), EntryMeta(model=7)],  # type: ignore[dict-item,arg-type]
    )
    def test_metadata_that_would_not_come_back_is_refused(self, meta: EntryMeta) -> None:
        with pytest.raises(NotStorable, match="metadata"):
            seal(Codec(), Codec().dump(1), meta=meta)

    @pytest.mark.parametrize("data", [b"", b"\xc1", msgpack.packb({}), msgpack.packb([1]), msgpack.packb(["m"]) + b"x"])
    def test_metadata_of_another_form_is_corrupt(self, data: bytes) -> None:
        opened = Codec().open(seal(Codec(), Codec().dump(1)).data, DIGEST)
        with pytest.raises(CorruptPayload):
            Codec().meta(opened._replace(meta_bytes=data))

    def test_metadata_may_have_grown_at_the_end(self) -> None:
        opened = Codec().open(seal(Codec(), Codec().dump(1)).data, DIGEST)
        grown = msgpack.packb(["m", None, None, 5, 6, "", "from a later version"])
        assert Codec().meta(opened._replace(meta_bytes=grown)) == EntryMeta("m", None, None, 5, 6)

    def test_threads_share_a_codec(self) -> None:
        codec, wrong = Codec(), []

        def work(seed: int) -> None:
            for n in range(150):
                value = {"text": f"{seed} {n} " + TEXT[: 500 * (seed + 1)]}
                if through(codec, value) != value:
                    wrong.append((seed, n))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


class TestTombstones:
    def test_a_tombstone_is_the_first_twelve_bytes(self) -> None:
        assert make_tombstone(b"12345678") == b"\xa1\xca\x01\x0212345678"

    def test_tombstones_of_any_version_and_length_give_their_token(self) -> None:
        assert tombstone_token(make_tombstone(b"12345678")) == b"12345678"
        assert tombstone_token(b"\xa1\xca\x63\x0212345678 and more") == b"12345678"

    @pytest.mark.parametrize(
        "data", [b"", b"\xa1\xca\x01\x02", b"\xa1\xca\x01\x021234567", b"\xa1\xcb\x01\x0212345678"]
    )
    def test_other_bytes_are_no_tombstone(self, data: bytes) -> None:
        assert tombstone_token(data) is None

    def test_an_entry_is_no_tombstone_and_a_tombstone_no_entry(self) -> None:
        assert tombstone_token(seal(Codec(), Codec().dump(1)).data) is None
        with pytest.raises(CorruptPayload):
            Codec().open(make_tombstone(b"12345678"), DIGEST)
        with pytest.raises(CorruptPayload):
            peek_header(make_tombstone(b"12345678"), DIGEST)

    def test_the_stores_know_the_same_twelve_bytes(self) -> None:
        named = (base.MAGIC, base.ENTRY_KIND, base.TOMBSTONE_KIND, base.TOKEN_BYTES)
        assert named == (frame.MAGIC, frame.ENTRY_KIND, frame.TOMBSTONE_KIND, frame.TOKEN_BYTES)


class TestPeek:
    def test_the_start_of_a_frame_says_what_opening_the_frame_says(self) -> None:
        codec = Codec(compression="none")
        data = seal(codec, codec.dump(incompressible_text(20_000))).data
        whole, peeked = codec.open(data, DIGEST), peek_header(data[:4096], DIGEST)
        assert peeked == whole._replace(body=b"", stored_bytes=4096)
        assert isinstance(peeked, Opened)

    def test_a_start_without_all_tags_is_refused(self) -> None:
        data = seal(Codec(), Codec().dump(1)).data
        for size in range(102 + 2 * 24):
            with pytest.raises(PayloadError):
                peek_header(data[:size], DIGEST)
        assert peek_header(data[: 102 + 2 * 24], DIGEST).tokens == TOKENS
