"""Samples travel unchanged; what did not come from us is refused whole, quickly, whatever it is."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from aicache_tasks.batches import MAX_BATCH_BYTES, MAX_SAMPLES, VERSION, decode_batch, encode_batch
from aicache_tasks.errors import CorruptPayload, PayloadError, UnknownPayload
from aicache_tasks.records import Sample

PROCESS = bytes(range(16))
PLAIN, ZSTD = 0, 1
MOST = 2**53

texts = st.text(max_size=30)
counts = st.integers(0, MOST)
labels = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
samples = st.tuples(
    st.floats(0, 2**40), labels, labels, labels, labels, counts, counts, labels, *[counts] * 5, st.binary(max_size=60)
).map(lambda fields: Sample(*fields))


def a_hit(number: int = 0) -> Sample:
    return Sample(1.7e9, "shout", "get", "hit", "", 40_000 + number, 16_384, "large", 4100, 2000, 9_000, 8_000, 77, b"")


def sealed(body: Any, *, codec: int = PLAIN) -> bytes:
    raw = body if isinstance(body, bytes) else msgspec.msgpack.encode(body)
    return bytes((VERSION, codec)) + (zstandard.ZstdCompressor().compress(raw) if codec == ZSTD else raw)


def rows(given: Sequence[Sample]) -> list[tuple[Any, ...]]:
    return [sample[:-1] for sample in given]


BATCH = [PROCESS, 7, "celery@here", False, 0, rows([a_hit()])]
"""What the bytes of a batch say."""


def changed(at: int, value: Any) -> list[Any]:
    return [*BATCH[:at], value, *BATCH[at + 1 :]]


def with_field(name: str, value: Any) -> list[Any]:
    return changed(5, rows([a_hit()._replace(**{name: value})]))


class TestRoundTrip:
    @given(st.lists(samples, max_size=12), st.integers(1, MOST), st.booleans(), counts)
    @settings(max_examples=60, deadline=None, database=None)
    def test_a_batch_comes_out_as_it_went_in(self, given: list[Sample], number: int, last: bool, lost: int) -> None:
        batch = decode_batch(encode_batch(PROCESS, number, "celery@host", given, last=last, lost=lost))
        assert (batch.process, batch.number, batch.origin) == (PROCESS, number, "celery@host")
        assert (batch.last, batch.lost, batch.rows) == (last, lost, rows(given))

    def test_what_a_sample_keeps_for_its_process_stays_there(self) -> None:
        data = encode_batch(PROCESS, 1, "o", [a_hit()._replace(extra={"prompt": object()})])
        assert decode_batch(data).rows == rows([a_hit()])

    def test_a_batch_of_the_most_samples_is_short(self) -> None:
        data = encode_batch(PROCESS, 1, "celery@host", [a_hit(number) for number in range(MAX_SAMPLES)])
        assert len(decode_batch(data).rows) == MAX_SAMPLES
        assert len(data) < 20 * MAX_SAMPLES

    def test_a_batch_without_samples_may_be_a_process_last(self) -> None:
        batch = decode_batch(encode_batch(PROCESS, 3, "o", [], last=True, lost=5))
        assert (batch.rows, batch.last, batch.lost) == ([], True, 5)

    def test_equal_batches_are_equal_bytes(self) -> None:
        assert encode_batch(PROCESS, 1, "o", [a_hit()] * 50) == encode_batch(PROCESS, 1, "o", [a_hit()] * 50)

    def test_a_field_that_a_newer_version_added_at_the_end_does_not_matter(self) -> None:
        assert decode_batch(sealed([*BATCH, "new"])) == decode_batch(sealed(BATCH))


class TestOddSamples:
    @given(st.lists(texts, min_size=6, max_size=6))
    @settings(deadline=None, database=None)
    def test_a_name_may_be_any_text(self, given: list[str]) -> None:
        origin, operation, status, reason, tier, step = given
        sample = a_hit()._replace(operation=operation, status=status, reason=reason, text_tier=tier, step=step)
        batch = decode_batch(encode_batch(PROCESS, 1, origin, [sample, a_hit()]))
        assert batch.rows[1] == rows([a_hit()])[0]
        assert len(batch.rows[0][1]) == len(operation)

    def test_half_of_a_surrogate_pair_becomes_a_question_mark(self) -> None:
        odd = "a\ud800b"
        batch = decode_batch(encode_batch(PROCESS, 1, odd, [a_hit()._replace(operation=odd)]))
        assert (batch.origin, batch.rows[0][1]) == ("a?b", "a?b")

    @pytest.mark.parametrize("number", [2**64, 2**70, 10**400])
    def test_a_number_beyond_64_bits_is_the_most_there_is(self, number: int) -> None:
        batch = decode_batch(encode_batch(PROCESS, 1, "o", [a_hit()._replace(text_length=number), a_hit()]))
        assert [row[6] for row in batch.rows] == [MOST, 16_384]

    def test_a_name_may_be_of_a_kind_of_text(self) -> None:
        class Name(str):
            __slots__ = ()

        class Names(StrEnum):
            SHOUT = "shout"

        for name in (Name("shout"), Names.SHOUT):
            assert decode_batch(encode_batch(PROCESS, 1, "o", [a_hit()._replace(operation=name)])).rows[0][1] == "shout"


class TestHostileBytes:
    @given(st.binary(max_size=60), st.sampled_from([b"", b"\1\0", b"\1\1", b"\1\1\x28\xb5\x2f\xfd"]))
    @settings(max_examples=300, deadline=None, database=None)
    def test_bytes_of_any_kind_are_no_batch(self, data: bytes, start: bytes) -> None:
        with pytest.raises(PayloadError):
            decode_batch(start + data)

    @given(st.data(), st.integers(1, 5))
    @settings(max_examples=300, deadline=None, database=None)
    def test_a_changed_byte_gives_a_batch_or_is_refused(self, data: st.DataObject, times: int) -> None:
        raw = bytearray(sealed([*BATCH[:5], rows([a_hit(), a_hit()])]))
        for _ in range(times):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        try:
            batch = decode_batch(bytes(raw))
        except PayloadError:
            return
        assert all(0 <= number <= MOST for row in batch.rows for number in row if type(number) is int)
        assert all(math.isfinite(row[0]) for row in batch.rows)

    @pytest.mark.parametrize("codec", [PLAIN, ZSTD])
    def test_no_truncation_of_a_batch_is_one(self, codec: int) -> None:
        data = sealed(BATCH, codec=codec)
        for length in range(len(data)):
            with pytest.raises(PayloadError):
                decode_batch(data[:length])
        with pytest.raises(CorruptPayload):
            decode_batch(data + b"\0")

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(changed(0, b"short"), id="a process of five bytes"),
            pytest.param(changed(1, 0), id="number 0"),
            pytest.param(changed(1, -1), id="a negative number"),
            pytest.param(changed(1, 2**64 - 1), id="a number that leaves no other"),
            pytest.param(changed(2, b"\xff"), id="an origin that is no text"),
            pytest.param(changed(3, 1), id="last is no truth"),
            pytest.param(changed(4, -1), id="less than nothing lost"),
            pytest.param(changed(5, {}), id="no rows"),
            pytest.param(changed(5, [rows([a_hit()])[0][:-1]]), id="a shorter row"),
            pytest.param(changed(5, [(*rows([a_hit()])[0], 1)]), id="a longer row"),
            pytest.param(changed(5, rows([a_hit()] * (MAX_SAMPLES + 1))), id="too many samples"),
            pytest.param(with_field("at", math.nan), id="a time that is no number"),
            pytest.param(with_field("at", math.inf), id="never"),
            pytest.param(with_field("at", -1.0), id="before 1970"),
            pytest.param(with_field("duration_ns", -1), id="less than no time"),
            pytest.param(with_field("duration_ns", 1.5), id="half a nanosecond"),
            pytest.param(with_field("age_ms", MOST + 1), id="too old"),
            pytest.param(with_field("operation", None), id="no operation"),
            pytest.param(with_field("meta", "text"), id="metadata in text"),
            pytest.param(b"\x91" * 100_000, id="deep"),
            pytest.param(b"\xdd\xff\xff\xff\xff", id="four billion elements"),
            pytest.param([*BATCH[:5]], id="a part is missing"),
        ],
    )
    @pytest.mark.parametrize("codec", [PLAIN, ZSTD])
    def test_what_no_batch_holds_is_refused(self, body: Any, codec: int) -> None:
        with pytest.raises(CorruptPayload):
            decode_batch(sealed(body, codec=codec))

    def test_another_version_is_unknown_not_damaged(self) -> None:
        for data in (bytes((VERSION + 1, PLAIN)) + b"new", bytes((VERSION, 9)) + b"new"):
            with pytest.raises(UnknownPayload, match="batch version"):
                decode_batch(data)

    def test_a_bomb_is_not_inflated(self) -> None:
        bombs = [sealed(bytes(size), codec=ZSTD) for size in (MAX_BATCH_BYTES + 1, 300 * MAX_BATCH_BYTES)]
        streamed = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(300 * MAX_BATCH_BYTES))
        tracemalloc.start()
        began = time.thread_time()
        for data in (*bombs, bytes((VERSION, ZSTD)) + streamed, bytes((VERSION, PLAIN)) + bytes(MAX_BATCH_BYTES)):
            with pytest.raises(CorruptPayload):
                decode_batch(data)
        peak, took = tracemalloc.get_traced_memory()[1], time.thread_time() - began
        tracemalloc.stop()
        assert peak < 8 * 2**20
        assert took < 1.0

    def test_an_error_quotes_nothing_of_what_was_read(self) -> None:
        with pytest.raises(CorruptPayload) as caught:
            decode_batch(sealed(with_field("duration_ns", "a secret")))
        assert "secret" not in repr(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
