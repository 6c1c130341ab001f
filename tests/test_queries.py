"""Questions over the summary records, answered from real ones and compared with what a test knows."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from aicache_tasks.errors import SettingsError, StoreError, StoreUnavailable
from aicache_tasks.records import Sample
from aicache_tasks.reports import rows
from aicache_tasks.reports.queries import Reader, compare, top, total_of
from aicache_tasks.reports.spans import Cover, Span, cover, parse_moment, resolution_of, windows
from aicache_tasks.rollup import WINDOWS_S, Keep
from aicache_tasks.stores.base import Budget
from aicache_tasks.summary import SummaryRecord
from aicache_tasks.testing import EmbeddedServer
from tests.reported import calls, count_up, gets, make_app, reader_of, send

HOUR, DAY = 3600, 86_400
NOW = 1_700_000_000.0
KEEP = Keep()
spans = st.tuples(st.integers(0, 800 * DAY), st.integers(1, 100 * DAY)).map(
    lambda given: Span(NOW - given[0], NOW - given[0] + given[1])
)
keeps = st.builds(Keep, *[st.integers(60, 90 * DAY).map(float)] * 3)


def kept(kind: str, start: float, keep: Keep) -> bool:
    return start + WINDOWS_S[kind] > NOW - getattr(keep, kind)


class TestCover:
    @given(spans, keeps)
    def test_pieces_are_whole_windows_that_are_kept_one_after_the_other(self, span: Span, keep: Keep) -> None:
        pieces = cover(span, NOW, keep).pieces
        for piece in pieces:
            length = WINDOWS_S[piece.resolution]
            assert piece.start_s % length == piece.end_s % length == 0
            assert piece.start_s < piece.end_s
            assert kept(piece.resolution, piece.start_s, keep)
        assert [piece.end_s for piece in pieces[:-1]] == [piece.start_s for piece in pieces[1:]]

    @given(spans, keeps)
    def test_all_of_a_span_that_is_kept_is_covered_and_what_is_covered_is_said(self, span: Span, keep: Keep) -> None:
        found = cover(span, NOW, keep)
        oldest = min(NOW - kept_s for kept_s in keep)
        if not found.pieces:
            assert span.end_s <= oldest
            assert not found.span.length_s
            return
        assert found.span.start_s == found.pieces[0].start_s <= max(span.start_s, oldest)
        assert min(span.end_s, NOW) <= found.pieces[-1].end_s
        assert span.end_s <= found.span.end_s

    @given(spans.filter(lambda span: span.start_s > NOW - KEEP.day))
    def test_an_edge_goes_outward_by_less_than_one_of_the_finest_windows_kept(self, span: Span) -> None:
        found = cover(span, NOW, KEEP).span
        finest = next(kind for kind in WINDOWS_S if kept(kind, span.start_s // WINDOWS_S[kind] * WINDOWS_S[kind], KEEP))
        assert span.start_s - found.start_s < WINDOWS_S[finest]
        assert found.end_s - span.end_s < WINDOWS_S[finest]

    @given(spans)
    def test_few_reads_are_needed(self, span: Span) -> None:
        assert len(cover(span, NOW, KEEP).pieces) <= 5

    def test_what_is_older_than_all_records_is_left_out(self) -> None:
        found = cover(Span(0, NOW), NOW, KEEP)
        assert found.span.start_s == pytest.approx(NOW - KEEP.day, abs=DAY)
        assert cover(Span(0, 10 * DAY), NOW, KEEP) == Cover([], Span(10 * DAY, 10 * DAY))

    def test_windows_of_one_length_are_cut_to_what_is_kept(self) -> None:
        found = windows(Span(NOW - 3 * DAY, NOW), "minute", NOW, KEEP)
        assert found.span.start_s == pytest.approx(NOW - 2 * DAY, abs=60)
        assert windows(Span(NOW - 9 * DAY, NOW - 8 * DAY), "minute", NOW, KEEP).pieces == []

    def test_the_windows_that_show_a_span_are_kept(self) -> None:
        week_ago = Span(NOW - 7 * DAY, NOW - 7 * DAY + HOUR)
        assert resolution_of(week_ago, NOW, KEEP) == "hour"
        assert resolution_of(Span(NOW - 300 * DAY, NOW), NOW, KEEP) == "day"


class TestMoments:
    @pytest.mark.parametrize(
        ("text", "moment"),
        [
            ("now", NOW),
            ("6h", NOW - 6 * HOUR),
            (" 2d12h ", NOW - 60 * HOUR),
            ("2023-11-14", 1_699_920_000),
            ("2023-11-14T22:13:20", NOW),
            ("2023-11-14 22:13:20Z", NOW),
            ("2023-11-15T00:13:20+02:00", NOW),
        ],
    )
    def test_ages_and_iso_times_in_utc(self, text: str, moment: float) -> None:
        assert parse_moment(text, NOW, name="--since") == moment

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "6",
            "20231114",
            "yesterday",
            "nan",
            "inf",
            "-6h",
            "6 h ago",
            "2023-13-01",
            "1e99",
            "9" * 99,
            "0000-01-01",
        ],
    )
    def test_anything_else_is_an_error_that_names_the_option(self, text: str) -> None:
        with pytest.raises(SettingsError, match=r"--since: .* is no time"):
            parse_moment(text, NOW, name="--since")

    @pytest.mark.parametrize("text", ["100000d", "36501d", "6000w"])
    def test_a_duration_that_is_too_long_is_said_to_be_out_of_range(self, text: str) -> None:
        with pytest.raises(SettingsError, match=rf"--since: '{text}' is out of range: a hundred years"):
            parse_moment(text, NOW, name="--since")
        assert parse_moment("36500d", NOW, name="--since") == NOW - 36_500 * DAY


class Shop(NamedTuple):
    app: Celery
    reader: Reader
    samples: list[Sample]
    now_s: float


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    """Records of 600 calls of three operations: half of them in the last two days, the others in 70."""
    rng, now_s = random.Random(7), time.time()
    times = [now_s - 60 - rng.random() * (2 * DAY if number % 2 else 70 * DAY) for number in range(600)]
    with EmbeddedServer() as server:
        app = make_app(server.url)
        samples = calls(600, times, ["shout", "whisper", "hum"])
        count_up(app, samples)
        yield Shop(app, reader_of(app), samples, now_s)


def within(samples: list[Sample], span: Span, operation: str = "") -> list[Sample]:
    return [s for s in samples if span.start_s <= s.at < span.end_s and operation in ("", s.operation)]


class TestSpans:
    @pytest.mark.parametrize("ages", [(1, 0), (25, 0), (30, 5), (47, 46), (100, 3), (24 * 20, 30), (24 * 66, 24 * 62)])
    def test_a_span_counts_each_sample_of_what_it_covers_once(self, shop: Shop, ages: tuple[int, int]) -> None:
        """Minutes, hours, days: whichever windows it is put together from."""
        span = Span(shop.now_s - ages[0] * HOUR - 1234, shop.now_s - ages[1] * HOUR - 77)
        merged = shop.reader.merge(span)
        for name in ("shout", "whisper", "hum"):
            truth = gets(within(shop.samples, merged.cover.span, name))
            record = merged.records.get(name) or SummaryRecord(name, "span", 0)
            assert (record.lookups, record.hits) == (len(truth), len(gets(truth, "hit")))
            assert record.saved.compute_ns == 3_000_000_000 * record.hits
        assert sum(r.lookups for r in merged.records.values()) > 0

    def test_its_percentiles_are_those_of_all_its_samples(self, shop: Shop) -> None:
        merged = shop.reader.merge(Span(shop.now_s - 40 * DAY, shop.now_s + 1), ["shout"])
        took = sorted(s.duration_ns for s in gets(within(shop.samples, merged.cover.span, "shout")))
        for percent in (50, 90, 95, 99):
            exact = took[-(-percent * len(took) // 100) - 1]
            assert merged.records["shout"].percentile_ms("get", percent) == pytest.approx(exact / 1e6, rel=0.01)

    def test_only_the_operations_that_are_asked_for_are_there(self, shop: Shop) -> None:
        merged = shop.reader.merge(Span(0, shop.now_s), ["whisper", "unheard"])
        assert list(merged.records) == ["whisper"]

    @pytest.mark.parametrize("resolution", ["minute", "hour", "day"])
    def test_windows_one_by_one_are_the_same_samples(self, shop: Shop, resolution: str) -> None:
        span = Span(shop.now_s - 30 * HOUR, shop.now_s)
        records = list(shop.reader.each(span, resolution))
        truth = within(shop.samples, shop.reader.windows(span, resolution).span)
        assert {r.resolution for r in records} == {resolution}
        assert sum(r.lookups for r in records) == len(gets(truth))
        assert [(r.operation, r.start) for r in records] == sorted({(r.operation, r.start) for r in records})

    def test_hours_are_the_sum_of_their_minutes(self, shop: Shop) -> None:
        span = Span(shop.now_s // HOUR * HOUR - 40 * HOUR, shop.now_s // HOUR * HOUR)
        for hour in shop.reader.each(span, "hour", ["hum"]):
            minutes = total_of(shop.reader.each(Span(hour.start, hour.start + HOUR), "minute", ["hum"]), "hum")
            assert rows.figures_json(minutes) == rows.figures_json(hour)


class TestComparing:
    @pytest.mark.parametrize("hours", [3, 24, 24 * 25])
    def test_a_span_and_the_one_before_share_no_sample_and_miss_none(self, shop: Shop, hours: int) -> None:
        span = Span(shop.now_s - hours * HOUR, shop.now_s)
        now, before = shop.reader.before_and_now(span, hours * HOUR)
        both = Span(before.cover.span.start_s, now.cover.span.end_s)
        assert before.cover.span.end_s == now.cover.span.start_s
        counted = total_of([*now.records.values(), *before.records.values()]).lookups
        assert counted == len(gets(within(shop.samples, both)))

    def test_both_are_of_whole_minutes_and_as_long_as_each_other(self, shop: Shop) -> None:
        """Two minutes against one would look like growth."""
        for seconds in (60, 90, 61.5, 3600, 7 * HOUR + 1):
            now, before = shop.reader.before_and_now(Span(shop.now_s - seconds, shop.now_s), seconds)
            assert now.cover.span.length_s == before.cover.span.length_s >= seconds // 60 * 60

    def test_spans_that_would_overlap_are_refused(self, shop: Shop) -> None:
        with pytest.raises(SettingsError, match="--compare"):
            shop.reader.before_and_now(Span(shop.now_s - 2 * HOUR, shop.now_s), HOUR)

    def test_figures_have_a_ratio_and_a_difference_where_there_is_something_to_compare(self) -> None:
        now, before, nothing = (SummaryRecord("shout", "span", 0) for _ in range(3))
        now.counts["get", "hit", ""], before.counts["get", "hit", ""] = 9, 1
        now.counts["get", "miss", "expired"] = before.counts["get", "miss", "expired"] = 1
        now.step("get").add([1_000_000] * 10)
        before.step("get").add([4_000_000] * 2)
        changes = {change.name: change for change in compare(now, before)}
        assert (changes["lookups"].ratio, changes["lookups"].difference) == (5.0, 8)
        assert changes["hit_rate"].difference == pytest.approx(0.4)
        assert changes["get_p95_ms"].ratio == pytest.approx(0.25, rel=0.02)
        assert changes["compute_p95_ms"].ratio is None
        assert all(change.ratio is None for change in compare(now, nothing))

    def test_the_top_operations_are_in_order_and_those_with_nothing_are_left_out(self) -> None:
        records = {name: SummaryRecord(name, "span", 0) for name in ("b", "a", "most", "none")}
        for name, saved in (("a", 2), ("b", 2), ("most", 5)):
            records[name].saved.compute_ns = saved * 10**9
        assert [(r.operation, value) for r, value in top(records.values(), "saved")] == [
            ("most", 5),
            ("a", 2),
            ("b", 2),
        ]
        assert len(top(records.values(), "saved", 1)) == 1


class TestRows:
    def test_what_rows_tell_apart_sums_to_all(self, shop: Shop) -> None:
        records = list(shop.reader.each(Span(0, shop.now_s), "day"))
        everything = total_of(records)
        for asked in (["operation"], ["window"], ["operation", "window"]):
            found = rows.figures(records, rows.dimensions(asked))
            assert rows.figures_json(total_of(found.values())) == rows.figures_json(everything)

    def test_rows_by_step_have_the_step_s_durations(self, shop: Shop) -> None:
        records = list(shop.reader.merge(Span(0, shop.now_s)).records.values())
        found = rows.timings(records, rows.dimensions(["operation", "step"]))
        computed = [s.duration_ns for s in shop.samples if (s.operation, s.step) == ("hum", "compute")]
        assert found["hum", "compute"].total == sum(computed)
        assert {step for _, step in found} == {"get", "key", "compute", "set"}

    def test_rows_by_reason_have_shares_of_their_step(self, shop: Shop) -> None:
        records = list(shop.reader.merge(Span(0, shop.now_s)).records.values())
        found = rows.counts(records, rows.dimensions(["reason"]))
        hits, all_gets = len(gets(shop.samples, "hit")), len(gets(shop.samples))
        assert found["get", "hit", ""] == (hits, all_gets)
        assert found["get", "miss", "key_not_found"].share == pytest.approx(1 - hits / all_gets)
        assert found["compute", "miss", ""].share == 1


class TestLive:
    def test_totals_are_what_is_rolled_up_and_what_waits(self, valkey: EmbeddedServer) -> None:
        app, now_s = make_app(valkey.url), time.time()
        before, after = calls(90, [now_s - 90], ["shout"]), calls(40, [now_s - 90, now_s - 5], ["shout"], seed=2)
        elsewhere = calls(5, [now_s - 5], ["shout", "whisper"], seed=3)
        count_up(app, before)
        send(app, after)
        send(app, elsewhere, "producer@there")
        live = reader_of(app).live()
        assert total_of(live.totals.values()).lookups == 135
        assert live.backlog.entries == 2
        assert live.waiting.samples == len(after + elsewhere)
        assert {name: total_of(of).lookups for name, of in live.workers.items()} == {
            "celery@here": 130,
            "producer@there": 5,
        }
        assert live.store is not None
        shown = live.workers
        reader_of(app).summaries.roll_up()
        assert shown == reader_of(app).live().workers, "the roll-up changes nothing of it"

    def test_the_switch_is_shown_and_one_that_cannot_be_read_is_on(
        self, valkey: EmbeddedServer, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reader = reader_of(make_app(valkey.url))
        mode = reader.summaries.parts.mode
        assert not reader.live().is_switched_off
        mode.switch(off=True, budget=Budget(5))
        assert reader.live().is_switched_off
        client.delete(mode.key(0))
        client.hset(mode.key(0), "another", "type")
        assert not reader.live().is_switched_off

        def refuse(budget: Budget) -> bytes | None:
            raise StoreUnavailable("ConnectionError")

        monkeypatch.setattr(mode, "read", refuse)
        assert not reader.live().is_switched_off

    def test_a_roll_up_in_between_counts_no_worker_twice(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        send(app, calls(50, [time.time()], ["shout"]))
        workers = reader_of(app).live(lambda _done, _of: reader_of(app).summaries.roll_up()).workers
        assert {name: total_of(of).lookups for name, of in workers.items()} == {"celery@here": 50}

    def test_a_roll_up_in_between_neither_adds_nor_loses(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        send(app, calls(50, [time.time()], ["shout"]))
        rolled: list[Any] = []

        def meanwhile(_done: int, _of: int) -> None:
            if not rolled:
                rolled.append(reader_of(app).summaries.roll_up())

        assert reader_of(app).live(meanwhile).totals["shout"].lookups == 50
        assert rolled[0].batches == 1


class TestBrokenRecords:
    def test_a_record_that_cannot_be_read_hides_no_other_and_counts_itself(
        self, valkey: EmbeddedServer, client: Any
    ) -> None:
        app, now_s = make_app(valkey.url), time.time()
        count_up(app, calls(30, [now_s - 3 * HOUR, now_s - HOUR], ["shout"]))
        key = reader_of(app).summaries.keys.records("shout", "hour")
        client.hset(key, str(int(now_s - 3 * HOUR) // HOUR * HOUR), b"\x00junk")
        records = list(reader_of(app).each(Span(now_s - 5 * HOUR, now_s), "hour"))
        assert [(record.lookups, record.damaged) for record in records] == [(0, 1), (15, 0)]

    def test_a_key_of_another_type_is_an_error_that_says_so(self, valkey: EmbeddedServer, client: Any) -> None:
        app, now_s = make_app(valkey.url), time.time()
        count_up(app, calls(3, [now_s], ["shout"]))
        key = reader_of(app).summaries.keys.records("shout", "minute")
        client.delete(key)
        client.set(key, "x")
        with pytest.raises(StoreError, match="WRONGTYPE"):
            list(reader_of(app).each(Span(now_s - HOUR, now_s), "minute"))
