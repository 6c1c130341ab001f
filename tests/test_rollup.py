"""What batches add to which records: in pure functions, with a clock of the test's own."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aicache_tasks.batches import MAX_SAMPLES, Batch, decode_batch, encode_batch
from aicache_tasks.codec import encode_meta
from aicache_tasks.ledger import OTHER
from aicache_tasks.records import EntryMeta, Sample
from aicache_tasks.rollup import NOBODY, WINDOWS_S, WORKER_KEEP_S, Fold, Keep, Names, Place
from aicache_tasks.sketch import Distribution
from aicache_tasks.summary import SummaryRecord

NOW_S = 1_700_000_000.0 // 86_400 * 86_400 + 5000.0  # 01:23:20
MINUTE = int(NOW_S) // 60 * 60
KEEP = Keep(minute=7200.0, hour=172_800.0, day=864_000.0)
FIRST, SECOND = bytes(16), b"\1" * 16
META = encode_meta(EntryMeta("m", {"input_tokens": 10, "output_tokens": 4}, 0.25, 2_000_000_000, 100))


def a_hit(at: float = NOW_S, operation: str = "shout", **changed: Any) -> Sample:
    hit = Sample(at, operation, "get", "hit", "", 50_000, 300, "small", 4100, 2000, 9_000, 8_000, 70, META)
    return hit._replace(**changed)


def batch_of(samples: Sequence[Sample], process: bytes = FIRST, number: int = 1, **given: Any) -> Batch:
    return decode_batch(encode_batch(process, number, given.pop("origin", "celery@a"), samples, **given))


def a_fold(
    now_s: float = NOW_S, seen: dict[bytes, int] | None = None, known: Sequence[str] = (), most: int = 9
) -> Fold:
    return Fold(now_s, seen or {}, Names(known, most), Names((), 9), KEEP)


def folded(*samples: Sample, now_s: float = NOW_S) -> dict[Place, SummaryRecord]:
    fold = a_fold(now_s)
    fold.add(batch_of(samples))
    return fold.deltas()


def total(deltas: dict[Place, SummaryRecord], operation: str = "shout") -> SummaryRecord:
    return deltas[Place("total", operation, 0)]


class TestPlaces:
    def test_a_sample_counts_in_its_minute_hour_and_day_in_the_totals_and_for_its_worker(self) -> None:
        hour, day = int(NOW_S) // 3600 * 3600, int(NOW_S) // 86_400 * 86_400
        deltas = folded(a_hit())
        assert set(deltas) == {
            Place("minute", "shout", MINUTE),
            Place("hour", "shout", hour),
            Place("day", "shout", day),
            Place("total", "shout", 0),
            Place("worker", "celery@a", MINUTE),
        }
        assert all(record.hits == 1 for record in deltas.values())

    @pytest.mark.parametrize(
        ("age_s", "kinds"),
        [
            (3000, {"minute", "hour", "day", "total", "worker"}),
            (4000, {"minute", "hour", "day", "total"}),
            (8000, {"hour", "day", "total"}),
            (200_000, {"day", "total"}),
            (1_000_000, {"total"}),
        ],
    )
    def test_a_late_sample_counts_wherever_records_of_its_time_are_kept(self, age_s: int, kinds: set[str]) -> None:
        at = NOW_S - age_s
        deltas = folded(a_hit(at))
        assert {place.kind for place in deltas} == kinds
        for kind, length in WINDOWS_S.items():
            assert {place.start for place in deltas if place.kind == kind} <= {int(at) // length * length}

    def test_a_window_is_kept_until_its_end_is_too_old(self) -> None:
        last_s = NOW_S - KEEP.minute
        first = int(last_s) // 60 * 60
        assert Place("minute", "shout", first) in folded(a_hit(first + 1.0))
        assert Place("minute", "shout", first - 60) not in folded(a_hit(first - 1.0))

    @pytest.mark.parametrize("ahead_s", [61, 3600, 10**9, 2**40 - NOW_S - 60])
    def test_a_clock_that_runs_far_ahead_counts_now(self, ahead_s: float) -> None:
        starts = {place.start for place in folded(a_hit(NOW_S + 60 + ahead_s)) if place.kind == "minute"}
        assert starts == {MINUTE}

    def test_a_clock_that_runs_a_little_ahead_is_believed(self) -> None:
        starts = {place.start for place in folded(a_hit(NOW_S + 50)) if place.kind == "minute"}
        assert starts == {int(NOW_S + 50) // 60 * 60}

    def test_an_operation_beyond_the_most_counts_with_the_others(self) -> None:
        fold = a_fold(known=["a", "b"], most=3)
        fold.add(batch_of([a_hit(operation=name) for name in ("a", "c", "d", "e", "b", "d")]))
        deltas = fold.deltas()
        assert {place.name: record.hits for place, record in deltas.items() if place.kind == "total"} == {
            "a": 1, "b": 1, "c": 1, OTHER: 3,
        }  # fmt: skip

    def test_a_worker_beyond_the_most_counts_with_the_others(self) -> None:
        fold = Fold(NOW_S, {}, Names((), 9), Names(["w0"], 2), KEEP)
        for number in range(5):
            fold.add(batch_of([a_hit()], bytes([number]) * 16, origin=f"w{number}"))
        workers = {place.name: record.hits for place, record in fold.deltas().items() if place.kind == "worker"}
        assert workers == {"w0": 1, "w1": 1, OTHER: 3}

    def test_a_workers_record_is_of_all_its_operations(self) -> None:
        deltas = folded(a_hit(operation="a"), a_hit(operation="b"))
        assert deltas[Place("worker", "celery@a", MINUTE)].hits == 2

    def test_long_names_are_cut(self) -> None:
        fold = a_fold()
        fold.add(batch_of([a_hit(operation="x" * 500, reason="y" * 500, text_tier="z" * 500)], origin="w" * 500))
        assert {len(place.name) for place in fold.deltas()} == {200}
        ((_, _, reason),) = [names for names in total(fold.deltas(), "x" * 200).counts if names[0] == "get"]
        assert len(reason) == 64


def test_calls_that_find_the_cache_switched_off_are_counted_and_time_no_look_up() -> None:
    off = a_hit(status="disabled", duration_ns=1_000_000_000, meta=b"", raw_bytes=0, age_ms=0)
    record = total(folded(a_hit(), off, off))
    assert (record.of("get", "disabled"), record.hit_rate) == (2, 1.0)
    assert (record.steps["get"].count, record.steps["get"].high) == (1, 50_000)


class TestFigures:
    def test_a_hit_is_three_steps_an_age_and_what_it_saved(self) -> None:
        record = total(folded(a_hit()))
        assert record.counts == {("get", "hit", ""): 1, ("key", "success", ""): 1, ("decode", "success", ""): 1}
        assert {step: spread.total for step, spread in record.steps.items()} == {
            "get": 50_000, "key": 9_000, "decode": 8_000,
        }  # fmt: skip
        assert (record.ages.total, record.tiers, record.served_bytes) == (70, {"small": 1}, 4100)
        assert (record.saved.compute_ns, record.saved.cost_micros) == (2_000_000_000, 250_000)
        assert record.saved.tokens == {"input_tokens": 10, "output_tokens": 4}
        assert record.raw_bytes == record.stored_bytes == record.spent.compute_ns == 0

    def test_a_miss_saves_nothing_and_has_no_age(self) -> None:
        record = total(folded(a_hit(status="miss", reason="expired", decode_ns=0)))
        assert record.counts == {("get", "miss", "expired"): 1, ("key", "success", ""): 1}
        assert record.ages.count == record.saved.compute_ns == record.served_bytes == 0
        assert not record.saved.tokens

    def test_a_body_spends_its_own_time_and_what_its_meta_says(self) -> None:
        body = Sample(NOW_S, "shout", "compute", "success", "", 3_000_000_000, meta=META)
        record = total(folded(body, body))
        assert (record.spent.compute_ns, record.spent.cost_micros) == (6_000_000_000, 500_000)
        assert record.spent.tokens == {"input_tokens": 20, "output_tokens": 8}
        assert record.steps["compute"].count == 2
        assert record.saved.compute_ns == 0

    def test_only_what_was_stored_has_stored_bytes(self) -> None:
        stored = Sample(NOW_S, "shout", "set", "success", "", 9, raw_bytes=4100, stored_bytes=2000)
        record = total(folded(stored, stored._replace(status="skipped"), stored._replace(status="failed")))
        assert (record.raw_bytes, record.stored_bytes) == (4100, 2000)
        assert record.of("set") == 3

    def test_memory_is_the_largest_that_was_measured(self) -> None:
        measured = Sample(NOW_S, "", "memory", "success", "", 0, stored_bytes=500)
        record = total(folded(measured, measured._replace(stored_bytes=900), measured._replace(stored_bytes=100)), "")
        assert (record.memory_bytes, record.of("memory")) == (900, 3)
        assert "memory" not in record.steps

    def test_what_took_no_time_is_counted_and_not_timed(self) -> None:
        record = total(folded(a_hit(status="bypass", duration_ns=0, key_ns=0, decode_ns=0, meta=b"")))
        assert record.counts == {("get", "bypass", ""): 1}
        assert not record.steps

    @pytest.mark.parametrize(
        "meta",
        [
            pytest.param(b"\xc1 none", id="no metadata"),
            pytest.param(b"\x95" + b"\xc0" * 4, id="a part is missing"),
            pytest.param(b"\x95\xc0\xc0\xcb\x7f\xf8" + bytes(6) + b"\x00\x00", id="a cost that is no number"),
            pytest.param(b"\x95\xc0\xc0\xcb\x7f\xf0" + bytes(6) + b"\x00\x00", id="an infinite cost"),
            pytest.param(b"\x95\xc0\xc0\xcb\xbf\xf0" + bytes(6) + b"\x00\x00", id="a negative cost"),
            pytest.param(b"\x95\xc0\x81\xa1t\xff\xc0\x00\x00", id="negative tokens"),
            pytest.param(b"\x95\xc0\xc0\xc0\xd3" + b"\xff" * 8 + b"\x00", id="negative computing"),
            pytest.param(b"\x95\xc0\x81\xa1t\xcf" + b"\xff" * 8 + b"\xc0\x00\x00", id="more tokens than there are"),
        ],
    )
    def test_metadata_that_says_nothing_sensible_leaves_the_timing(self, meta: bytes) -> None:
        record = total(folded(a_hit(meta=meta)))
        assert record.hits == 1
        assert (record.saved.compute_ns, record.saved.cost_micros, record.saved.tokens) == (0, 0, {})
        assert record.pack()

    def test_many_kinds_of_tokens_and_reasons_are_bounded(self) -> None:
        metas = [encode_meta(EntryMeta(usage={f"t{n}": 1})) for n in range(100)]
        record = total(folded(*(a_hit(meta=meta, reason=str(n)) for n, meta in enumerate(metas))))
        assert len(record.saved.tokens) == len(record.counts) == 65
        assert record.saved.tokens.total() == 100
        assert record.of("get") + record.counts[OTHER, OTHER, ""] >= 100


class TestBatches:
    def test_a_batch_that_came_twice_counts_once(self) -> None:
        fold = a_fold(seen={SECOND: 5})
        for number in (1, 1, 2, 2, 1):
            fold.add(batch_of([a_hit()], number=number))
        fold.add(batch_of([a_hit()], SECOND, 5))
        fold.add(batch_of([a_hit()], SECOND, 6))
        assert (fold.batches, fold.duplicates, fold.samples) == (3, 4, 3)
        assert fold.seen == {FIRST: 2, SECOND: 6}
        assert total(fold.deltas()).hits == 3

    def test_a_gap_in_the_numbers_is_no_reason_to_wait(self) -> None:
        fold = a_fold()
        for number in (1, 7, 9):
            fold.add(batch_of([a_hit()], number=number))
        assert (fold.batches, fold.seen[FIRST]) == (3, 9)

    def test_what_was_lost_is_in_the_totals_of_nobody(self) -> None:
        fold = a_fold()
        fold.add(batch_of([], lost=7))
        fold.add(batch_of([a_hit()], SECOND, lost=2))
        deltas = fold.deltas()
        assert fold.lost == deltas[Place("total", "", 0)].lost == 9
        assert total(deltas).lost == 0

    def test_what_is_no_batch_is_in_the_totals_of_nobody(self) -> None:
        fold = Fold(NOW_S, {}, Names((), 9), Names((), 9), KEEP, undecodable=3)
        fold.add(batch_of([a_hit()], lost=2))
        assert fold.deltas()[NOBODY] == SummaryRecord("", "total", 0, lost=2, undecodable=3)

    def test_a_process_last_batch_is_noted_and_counted(self) -> None:
        fold = a_fold()
        fold.add(batch_of([a_hit()], last=True))
        fold.add(batch_of([a_hit()], SECOND))
        assert fold.ended == {FIRST}
        assert fold.samples == 2

    def test_nothing_adds_nothing(self) -> None:
        assert a_fold().deltas() == {}

    def test_to_ask_twice_gives_the_same(self) -> None:
        fold = a_fold()
        fold.add(batch_of([a_hit()] * 5))
        assert fold.deltas() == fold.deltas()

    def test_more_rows_than_are_held_at_once_are_all_counted(self) -> None:
        fold, rng, count = a_fold(), random.Random(3), 60 * MAX_SAMPLES
        durations = [int(rng.lognormvariate(12, 1)) for _ in range(count)]
        for number in range(60):
            part = durations[number * MAX_SAMPLES : (number + 1) * MAX_SAMPLES]
            fold.add(batch_of([a_hit(duration_ns=took, key_ns=0) for took in part], number=number + 1))
        record, expected = total(fold.deltas()), Distribution()
        expected.add(durations)
        assert record.steps["get"] == expected
        assert record.saved.tokens["input_tokens"] == 10 * count


ats = st.floats(NOW_S - 20_000, NOW_S + 50)
some_samples = st.builds(
    a_hit,
    ats,
    st.sampled_from(["a", "b", "c"]),
    duration_ns=st.integers(0, 10**10),
    status=st.sampled_from(["hit", "miss", "error"]),
    age_ms=st.integers(0, 10**7),
)


@given(st.lists(st.lists(some_samples, min_size=1, max_size=8), min_size=1, max_size=8), st.randoms())
@settings(max_examples=60, deadline=None, database=None)
def test_however_samples_are_cut_into_batches_and_folds_the_records_are_equal(
    parts: list[list[Sample]], rng: random.Random
) -> None:
    whole = a_fold()
    for number, part in enumerate(parts):
        whole.add(batch_of(part, bytes([number]) * 16))
    pieces: dict[Place, SummaryRecord] = {}
    numbered = list(enumerate(parts))
    rng.shuffle(numbered)
    for number, part in numbered:
        fold = a_fold()
        fold.add(batch_of(part, bytes([number]) * 16))
        for place, record in fold.deltas().items():
            pieces.setdefault(place, SummaryRecord(place.name, place.kind, place.start)).merge(record)
    assert whole.deltas() == pieces


@given(st.lists(some_samples, min_size=1, max_size=60))
@settings(max_examples=60, deadline=None, database=None)
def test_hours_days_and_totals_are_the_merge_of_their_minutes(samples: list[Sample]) -> None:
    fold = Fold(NOW_S, {}, Names((), 9), Names((), 9), Keep(10**6, 10**7, 10**8))
    fold.add(batch_of(samples))
    deltas = fold.deltas()
    for place, record in deltas.items():
        length = {**WINDOWS_S, "total": math.inf}.get(place.kind)
        if length is not None:
            sum_of = SummaryRecord(place.name, place.kind, place.start)
            for minute, part in deltas.items():
                if minute.kind == "minute" and minute.name == place.name and 0 <= minute.start - place.start < length:
                    sum_of.merge(part)
            assert record == sum_of


def test_a_worker_is_shown_for_its_last_hour_only() -> None:
    starts = {
        place.start
        for at in range(int(NOW_S) - 7200, int(NOW_S), 60)
        for place in folded(a_hit(float(at)))
        if place.kind == "worker"
    }
    assert min(starts) > NOW_S - WORKER_KEEP_S - 60
    assert max(starts) >= MINUTE - 60
