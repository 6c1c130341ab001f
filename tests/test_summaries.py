"""The roll-up on a real server: what is counted is counted once, kept as long as it should be, and read as it was."""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import zstandard
from redis.crc import key_slot

from aicache_tasks import AIResponseCache
from aicache_tasks.batches import MAX_SAMPLES, decode_batch, encode_batch
from aicache_tasks.errors import SettingsError, StoreError, UnknownPayload
from aicache_tasks.ledger import OTHER
from aicache_tasks.records import Sample
from aicache_tasks.rollup import WINDOWS_S, WORKER_KEEP_S
from aicache_tasks.stores.base import Budget, Shipment
from aicache_tasks.stores.memory import MemoryStore
from aicache_tasks.summaries import ENDED_FOR_S, MAX_RECORDS, SEEN_FOR_S, RolledUp, Summaries
from aicache_tasks.summary import SummaryRecord
from aicache_tasks.testing import EmbeddedServer
from tests.caches import live_cache

ROOMY = 10**9
FIRST, SECOND = bytes(16), b"\1" * 16
LATE_S = 3600
"""How much longer records lie than they are kept."""
DAY_S = 86_400


def a_hit(at: float, operation: str = "shout", **changed: Any) -> Sample:
    hit = Sample(at, operation, "get", "hit", "", 50_000, 300, "small", 4100, 2000, 9_000, 8_000, 70)
    return hit._replace(**changed)


class Bench:
    """A cache on a server, its summaries, and a plain client that looks at what they did."""

    def __init__(self, server: EmbeddedServer, **settings: Any) -> None:
        self.server, self.client = server, server.client()
        self._settings = settings
        self.caches: list[AIResponseCache] = []
        self.summaries = self.another()
        self.keys = self.summaries.keys
        self.numbers: dict[bytes, int] = {}

    def another(self) -> Summaries:
        """Return what another process would roll up with."""
        self.caches.append(live_cache(self.server.url, self._settings))
        return Summaries(self.caches[-1].parts)

    def batch(self, samples: Sequence[Sample], process: bytes = FIRST, origin: str = "celery@a", **given: Any) -> bytes:
        number = self.numbers[process] = self.numbers.get(process, 0) + 1
        return encode_batch(process, number, origin, samples, **given)

    def ship(self, data: bytes) -> None:
        shipment = Shipment(self.keys.inbox, self.keys.state, data, ROOMY)
        assert self.caches[0].parts.store.ship(shipment, Budget(5)) > 0

    def put(self, *samples: Sample, **given: Any) -> bytes:
        """Ship a batch and return its bytes."""
        self.ship(data := self.batch(samples, **given))
        return data

    def all_of(self, resolution: str, operation: str = "shout") -> list[SummaryRecord]:
        return self.summaries.read(operation, resolution, 0, 2**31)

    def hits(self, operation: str = "shout") -> int:
        found = self.summaries.totals().get(operation)
        return found.hits if found else 0

    def everything(self) -> dict[bytes, Any]:
        """Return all that the server holds, in a form that can be compared."""
        return {key: self.client.dump(key) for key in self.client.scan_iter()}

    def close(self) -> None:
        self.client.close()
        for cache in self.caches:
            cache.close()


@pytest.fixture
def bench(valkey: EmbeddedServer) -> Iterator[Bench]:
    made = Bench(valkey)
    yield made
    made.close()


def now() -> float:
    return time.time()


def minute(at: float) -> int:
    return int(at) // 60 * 60


def merged(records: Sequence[SummaryRecord], like: SummaryRecord) -> SummaryRecord:
    total = SummaryRecord(like.operation, like.resolution, like.start)
    for record in records:
        total.merge(record)
    return total


def replaced(bench: Bench, name: str, before: Callable[[], object], *, once: bool = True) -> None:
    """Do *before* before a method of the inbox is called, the first time or each time."""
    real: Callable[..., Any] = getattr(bench.summaries.inbox, name)
    state = {"done": False}

    def call(*given: Any, **named: Any) -> Any:
        if not (once and state["done"]):
            state["done"] = True
            before()
        return real(*given, **named)

    setattr(bench.summaries.inbox, name, call)


class TestCounting:
    def test_hours_days_and_totals_equal_the_merge_of_their_minutes(self, bench: Bench) -> None:
        rng, at = random.Random(5), now()
        for _ in range(40):
            bench.put(*(a_hit(at - rng.random() * 100_000, duration_ns=rng.randrange(1, 10**9)) for _ in range(50)))
        assert bench.summaries.roll_up().samples == 2000
        minutes = bench.all_of("minute")
        assert len(minutes) > 500
        for resolution, length in WINDOWS_S.items():
            longer = bench.all_of(resolution)
            for record in longer:
                parts = [part for part in minutes if record.start <= part.start < record.start + length]
                assert merged(parts, record) == record
            assert sum(record.hits for record in longer) == 2000
        (total,) = bench.summaries.totals().values()
        assert merged(minutes, total) == total

    def test_many_roll_ups_come_to_what_one_does(self, bench: Bench, own_server: EmbeddedServer) -> None:
        other, at = Bench(own_server), now()
        batches = [bench.batch([a_hit(at - n * 40, duration_ns=n + 1) for _ in range(3)]) for n in range(30)]
        for data in batches:
            bench.ship(data)
            bench.summaries.roll_up()
            other.ship(data)
        other.summaries.roll_up()
        for resolution in WINDOWS_S:
            assert bench.all_of(resolution) == other.all_of(resolution)
        assert bench.summaries.totals() == other.summaries.totals()
        other.close()

    @pytest.mark.parametrize("age_s", [90, 4000, 40 * 3600, 5 * DAY_S])
    def test_a_late_sample_is_added_to_windows_that_were_rolled_up(self, bench: Bench, age_s: int) -> None:
        at = now() - age_s
        for count in (1, 2, 3):
            bench.put(a_hit(at))
            bench.summaries.roll_up()
            windows = [bench.summaries.read("shout", kind, at - DAY_S, now() + 60) for kind in WINDOWS_S]
            assert [record.hits for found in windows for record in found] == [count] * (3 if age_s < 2 * DAY_S else 2)

    def test_a_clock_that_runs_ahead_counts_now(self, bench: Bench) -> None:
        bench.put(a_hit(now() + 10 * DAY_S))
        bench.summaries.roll_up()
        (record,) = bench.all_of("minute")
        assert abs(record.start - now()) < 120

    def test_a_batch_that_arrives_again_counts_once_whenever_it_does(self, bench: Bench) -> None:
        first, second = bench.put(a_hit(now())), bench.put(a_hit(now()))
        bench.ship(second)
        bench.ship(first)
        done = bench.summaries.roll_up()
        assert (done.samples, done.batches, done.duplicates) == (2, 2, 2)
        for data in (first, second):
            bench.ship(data)
        done = bench.summaries.roll_up()
        assert (done.samples, done.duplicates) == (0, 2)
        assert bench.hits() == 2

    def test_a_gap_in_the_numbers_is_no_reason_to_wait(self, bench: Bench) -> None:
        bench.put(a_hit(now()))
        lost = bench.batch([a_hit(now())])
        bench.put(a_hit(now()))
        assert bench.summaries.roll_up().samples == 2
        bench.ship(lost)  # it was overtaken: one sender sends in order, so this is a copy
        assert bench.summaries.roll_up().duplicates == 1

    def test_what_was_lost_is_in_the_totals(self, bench: Bench) -> None:
        bench.put(a_hit(now()), lost=4)
        bench.put(lost=3)
        assert bench.summaries.roll_up().lost == 7
        assert bench.summaries.totals()[""].lost == 7
        assert "" in bench.summaries.operations()

    @pytest.mark.parametrize("with_samples", [False, True])
    def test_what_processes_gave_up_at_their_end_is_counted_once(self, bench: Bench, with_samples: bool) -> None:
        bench.client.hset(bench.keys.state, "lost", 7)
        if with_samples:
            bench.put(a_hit(now()), lost=4)
        expected = 11 if with_samples else 7
        assert bench.summaries.preview().lost == expected
        assert bench.summaries.roll_up().lost == expected
        assert bench.summaries.roll_up().lost == 0
        assert bench.summaries.totals()[""].lost == expected
        assert bench.hits() == with_samples

    @pytest.mark.parametrize("lost", ["many", "-3", "9" * 19, "9" * 400, ""])
    def test_a_number_of_lost_samples_that_is_none_stops_nothing(self, bench: Bench, lost: str) -> None:
        bench.client.hset(bench.keys.state, "lost", lost)
        bench.put(a_hit(now()))
        assert bench.summaries.roll_up().samples == 1
        assert bench.summaries.roll_up().lost == 0

    def test_beyond_the_most_operations_the_rest_share_one(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("aicache_tasks.summaries.MAX_OPERATIONS", 3)
        for name in "abcde":
            bench.put(a_hit(now(), name))
            bench.summaries.roll_up()
        bench.put(a_hit(now(), "a"))
        bench.summaries.roll_up()
        found = {name: record.hits for name, record in bench.summaries.totals().items()}
        assert found == {"a": 2, "b": 1, "c": 1, OTHER: 2}

    def test_beyond_the_most_workers_the_rest_share_one(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("aicache_tasks.summaries.MAX_WORKERS", 2)
        for number in range(5):
            bench.put(a_hit(now()), process=bytes([number]) * 16, origin=f"w{number}")
            bench.summaries.roll_up()
        found = {name: sum(record.hits for record in records) for name, records in bench.summaries.workers().items()}
        assert found == {"w0": 1, "w1": 1, OTHER: 3}

    def test_names_of_any_kind_are_read_back(self, bench: Bench) -> None:
        names = ["ünïcode ☃", "a b/c{d}", "x" * 200, "*?[]", "line\nbreak", "~", "-"]
        for name in names:
            bench.put(a_hit(now(), name), origin=name)
        bench.summaries.roll_up()
        assert set(bench.summaries.operations()) == set(names) == set(bench.summaries.workers())
        for name in names:
            assert [record.hits for record in bench.all_of("minute", name)] == [1]

    def test_a_cache_in_memory_has_no_summaries(self) -> None:
        with pytest.raises(SettingsError, match="need a Redis or Valkey server"):
            Summaries(AIResponseCache(store=MemoryStore(lambda: 0.0)).parts)


class TestPieces:
    def test_a_piece_that_is_too_large_for_one_commit_is_cut(self, bench: Bench) -> None:
        at = now()
        for _ in range(5):
            bench.put(*(a_hit(at, f"op{n}") for n in range(MAX_RECORDS // 8)))
            bench.put(*(a_hit(now() - 60 * n) for n in range(MAX_SAMPLES)))
        written: list[int] = []
        real = bench.summaries.inbox.commit
        bench.summaries.inbox.commit = lambda commit, budget: (  # type: ignore[method-assign]
            written.append(len(commit.values)) or real(commit, budget)
        )
        done = bench.summaries.roll_up()
        assert done.samples == 5 * (MAX_RECORDS // 8 + MAX_SAMPLES)
        assert done.commits > 1
        assert max(written) <= MAX_RECORDS + 10
        assert sum(record.hits for record in bench.summaries.totals().values()) == done.samples

    def test_late_samples_of_many_minutes_fill_commits_and_are_not_read_again_and_again(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rng, at, entries, read = random.Random(3), now(), 120, list[bytes]()
        for _ in range(entries):
            bench.put(*(a_hit(at - rng.random() * 72_000, f"op{rng.randrange(5)}") for _ in range(32)))
        monkeypatch.setattr(
            "aicache_tasks.summaries.decode_batch", lambda data: read.append(data) or decode_batch(data)
        )
        done = bench.summaries.roll_up()
        assert (done.samples, done.batches) == (32 * entries, entries)
        assert done.commits <= 12
        assert len(read) < 2.5 * entries

    def test_a_single_batch_of_too_many_records_goes_by_itself(self, bench: Bench) -> None:
        for _ in range(2):
            bench.put(*(a_hit(now(), f"op{n}") for n in range(MAX_SAMPLES)))
        done = bench.summaries.roll_up()
        assert (done.samples, done.commits) == (2 * MAX_SAMPLES, 2)
        assert len(bench.summaries.operations()) == MAX_SAMPLES

    def test_what_comes_while_it_works_waits_for_the_next(self, bench: Bench) -> None:
        bench.put(a_hit(now()))
        replaced(bench, "commit", lambda: bench.put(a_hit(now())), once=False)
        done = bench.summaries.roll_up()
        assert done.waiting >= 1
        assert done.samples < 5

    def test_progress_is_told_to_the_end(self, bench: Bench) -> None:
        for _ in range(4):
            bench.put(*(a_hit(now(), f"op{n}") for n in range(200)))
        told: list[tuple[int, int]] = []
        bench.summaries.roll_up(progress=lambda done, of: told.append((done, of)))
        assert told[-1] == (4, 4)
        assert len(told) > 1
        assert told == sorted(told)

    def test_one_that_yields_stops_when_another_is_at_work(self, bench: Bench) -> None:
        bench.put(a_hit(now()))
        bench.summaries.roll_up()
        bench.put(a_hit(now()))
        other = bench.another()
        replaced(bench, "commit", lambda: other.roll_up())
        done = bench.summaries.roll_up(yields=True)
        assert (done.samples, done.conflicts, done.commits) == (0, 1, 0)
        assert bench.hits() == 2

    def test_one_that_was_overtaken_goes_on_with_the_rest(self, bench: Bench) -> None:
        bench.put(a_hit(now()))
        bench.summaries.roll_up()
        for _ in range(3):
            bench.put(a_hit(now()))
        other = bench.another()

        def overtake() -> None:
            other.roll_up()
            bench.put(a_hit(now()))

        replaced(bench, "commit", overtake)
        done = bench.summaries.roll_up()
        assert (done.samples, done.conflicts) == (1, 1)
        assert bench.hits() == 5


class TestDamage:
    @pytest.mark.parametrize("entry", [b"", b"\1", os.urandom(300), b"\x09\0 newer", b"\1\0" + b"\x91" * 50])
    def test_an_entry_that_does_not_decode_is_set_aside_and_blocks_nothing(self, bench: Bench, entry: bytes) -> None:
        bench.put(a_hit(now()))
        bench.client.rpush(bench.keys.inbox, entry)
        bench.put(a_hit(now()))
        done = bench.summaries.roll_up()
        assert (done.samples, done.undecodable, done.waiting) == (2, 1, 0)
        assert bench.summaries.ask(bench.summaries.inbox.aside, 10) == [entry]
        assert bench.client.llen(bench.keys.inbox) == 0
        assert bench.summaries.totals()[""].undecodable == 1

    def test_what_was_set_aside_stays_in_the_totals(self, bench: Bench) -> None:
        for count in (2, 0, 3):
            bench.put(a_hit(now()))
            for _ in range(count):
                bench.client.rpush(bench.keys.inbox, b"nonsense")
            would = bench.summaries.preview()
            assert would.undecodable == count
            assert bench.summaries.roll_up().totals == would.totals
        assert (bench.summaries.totals()[""].undecodable, bench.hits()) == (5, 3)

    def test_a_commit_that_was_refused_counts_nothing_aside(self, bench: Bench) -> None:
        bench.put(a_hit(now()))
        bench.summaries.roll_up()
        bench.client.rpush(bench.keys.inbox, b"nonsense")
        bench.client.hset(bench.keys.records("shout", "day"), str(int(now()) // DAY_S * DAY_S), b"damaged")
        bench.put(a_hit(now()))
        other = bench.another()
        replaced(bench, "commit", lambda: other.roll_up())
        assert bench.summaries.roll_up().conflicts == 1
        total = bench.summaries.totals()[""]
        assert (total.undecodable, total.damaged, bench.client.llen(bench.keys.aside)) == (1, 1, 2)

    def test_an_inbox_of_nothing_else_is_emptied(self, bench: Bench) -> None:
        bench.client.rpush(bench.keys.inbox, *(os.urandom(50) for _ in range(500)))
        done = bench.summaries.roll_up()
        assert (done.samples, done.undecodable) == (0, 500)
        assert bench.client.llen(bench.keys.inbox) == 0
        assert bench.client.llen(bench.keys.aside) <= 100

    def test_a_long_entry_is_kept_in_part(self, bench: Bench) -> None:
        bench.client.rpush(bench.keys.inbox, b"x" * 3_000_000)
        assert bench.summaries.roll_up().undecodable == 1
        (kept,) = bench.client.lrange(bench.keys.aside, 0, -1)
        assert len(kept) == 65_536

    def test_a_damaged_record_is_kept_aside_and_begun_anew(self, bench: Bench) -> None:
        bench.put(a_hit(now()))
        bench.summaries.roll_up()
        bench.client.hset(bench.keys.totals, "shout", b"damaged")
        bench.put(a_hit(now()))
        done = bench.summaries.roll_up()
        assert (done.samples, done.damaged) == (1, 1)
        assert bench.hits() == 1
        assert sum(record.hits for record in bench.all_of("day")) == 2
        assert bench.client.lrange(bench.keys.aside, 0, -1) == [b"damaged"]
        assert bench.summaries.totals()[""].damaged == 1

    @pytest.mark.parametrize("lost", [0, 4])
    def test_damaged_totals_of_nobody_are_counted_too(self, bench: Bench, lost: int) -> None:
        bench.put(a_hit(now()), lost=1)
        bench.summaries.roll_up()
        bench.client.hset(bench.keys.totals, mapping={"": b"damaged", "shout": b"damaged"})
        bench.put(a_hit(now()), lost=lost)
        assert bench.summaries.roll_up().damaged == 2
        total = bench.summaries.totals()[""]
        assert (total.damaged, total.lost) == (2, lost)
        assert bench.client.lrange(bench.keys.aside, 0, -1) == [b"damaged"] * 2

    def test_a_record_of_a_newer_version_stops_the_roll_up_and_loses_nothing(self, bench: Bench) -> None:
        bench.put(a_hit(now()))
        bench.summaries.roll_up()
        key = bench.keys.records("shout", "day")
        ((field, data),) = bench.client.hgetall(key).items()
        newer = data[:2] + b"\x02" + data[3:]
        bench.client.hset(key, field, newer)
        bench.put(a_hit(now()), a_hit(now(), "other"))
        before = bench.everything()
        with pytest.raises(UnknownPayload, match="version 2, not 1"):
            bench.summaries.roll_up()
        assert bench.everything() == before
        bench.client.hset(key, field, data)
        assert bench.summaries.roll_up().samples == 2
        assert bench.all_of("day")[0].hits == 2

    def test_a_damaged_record_is_read_as_an_empty_one_that_counts_it(self, bench: Bench) -> None:
        bench.put(a_hit(now()), a_hit(now(), "other"))
        bench.summaries.roll_up()
        bench.client.hset(bench.keys.totals, "shout", b"damaged")
        bench.client.hset(bench.keys.records("other", "minute"), str(minute(now() - 60)), b"damaged")
        found = bench.summaries.totals()
        assert {name: (record.hits, record.damaged) for name, record in found.items()} == {
            "other": (1, 0),
            "shout": (0, 1),
        }
        assert sorted((record.hits, record.damaged) for record in bench.all_of("minute", "other")) == [(0, 1), (1, 0)]

    @pytest.mark.parametrize("planted", [b"", b"never", b"-5", b"9" * 5000, b"\xff", "٣".encode()])
    def test_times_that_somebody_planted_stop_nothing(self, bench: Bench, planted: bytes) -> None:
        marks = {f"swept_{kind}": planted for kind in (*WINDOWS_S, "worker")}
        bench.client.hset(bench.keys.state, mapping={**marks, "bytes": planted, "since_ms": planted})
        bench.client.hset(bench.keys.workers, "ghost", planted)
        bench.client.hset(bench.keys.seen, FIRST, planted)
        bench.put(a_hit(now()))
        assert bench.summaries.backlog().entries == 1
        assert bench.summaries.roll_up().samples == 1
        assert list(bench.summaries.workers()) == ["celery@a"]

    @pytest.mark.parametrize(
        "name", ["inbox", "state", "seen", "ends", "aside", "totals", "workers", "minute", "hour", "day", "worker"]
    )
    def test_a_key_of_another_type_is_put_out_of_the_way(self, bench: Bench, name: str) -> None:
        own = {kind: bench.keys.records("shout", kind) for kind in ("minute", "hour", "day")}
        own["worker"] = bench.keys.worker("celery@a")
        key = own.get(name) or getattr(bench.keys, name)
        if name in ("inbox", "state"):  # then nothing could be put in
            bench.client.sadd(key, "text")
            assert bench.summaries.roll_up().samples == 0
            bench.put(a_hit(now()), origin="celery@a")
        else:
            bench.put(a_hit(now()), origin="celery@a")
            bench.client.sadd(key, "text")
        assert bench.summaries.roll_up().samples == 1
        assert bench.client.smembers(f"{key}:aside") == {b"text"}
        assert bench.hits() == 1

    def test_an_operation_is_not_taken_for_what_concerns_all(self, bench: Bench) -> None:
        bench.put(a_hit(now(), "-"), a_hit(now(), ""), a_hit(now(), "-"))
        bench.summaries.roll_up()
        assert [sum(r.hits for r in bench.all_of("minute", name)) for name in ("-", "")] == [2, 1]

    def test_what_inflates_to_much_is_read_in_pieces(self, bench: Bench) -> None:
        data = b"\x01\x01" + zstandard.compress(bytes(2**20))
        bench.client.rpush(bench.keys.inbox, *[data] * 200)
        tracemalloc.start()
        assert bench.summaries.roll_up().undecodable == 200
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 48 * 2**20

    @pytest.mark.parametrize("held", ["0", "1", "9" * 19, "many"])
    def test_a_state_that_lies_about_the_size_changes_nothing(self, bench: Bench, held: str) -> None:
        for _ in range(300):
            bench.put(a_hit(now()))
        bench.client.hset(bench.keys.state, "bytes", held)
        bench.put(a_hit(now()))
        assert bench.summaries.roll_up().samples == 301
        assert bench.summaries.backlog() == (0, 0, 0.0)

    def test_to_read_does_not_say_that_the_server_takes_writes(self, bench: Bench) -> None:
        guard = bench.summaries.parts.store
        guard.writes.failed("OutOfMemoryError OOM")
        bench.summaries.backlog()
        bench.summaries.totals()
        assert guard.writes.is_open
        bench.summaries.roll_up()
        assert not guard.writes.is_open

    def test_after_a_clock_was_put_back_what_waits_is_taken_for_old(self, bench: Bench) -> None:
        bench.put(a_hit(now()))
        bench.client.hset(bench.keys.state, "since_ms", int(now() * 1000) + 86_400_000)
        assert bench.summaries.backlog().age_s == pytest.approx(86_400, abs=60)

    def test_names_that_are_no_text_are_forgotten_too(self, bench: Bench) -> None:
        bench.client.hset(bench.keys.workers, mapping={b"\xff\xfe": 5, b"\xff": b"text"})
        bench.put(a_hit(now()), origin="celery@a")
        bench.summaries.roll_up()
        assert bench.client.hkeys(bench.keys.workers) == [b"celery@a"]


class TestServerTrouble:
    def test_what_was_flushed_in_the_middle_is_not_counted_and_what_came_then_is(self, bench: Bench) -> None:
        for first_ever in (True, False):
            bench.client.flushall()
            if not first_ever:
                bench.put(a_hit(now()))
                bench.summaries.roll_up()
            for _ in range(3):
                bench.put(a_hit(now(), "flushed"))

            def flush() -> None:
                bench.client.flushall()
                for _ in range(5):
                    bench.put(a_hit(now(), "after"))

            bench.summaries = bench.another()
            replaced(bench, "fetch", flush)
            bench.summaries.roll_up()
            bench.summaries.roll_up()
            assert {name: record.hits for name, record in bench.summaries.totals().items()} == {"after": 5}

    @pytest.mark.parametrize("step", ["seen", "fetch", "commit", "sweep", "hash"])
    def test_a_server_that_restarts_empty_at_any_step_counts_what_it_gets_from_then_on(
        self, own_server: EmbeddedServer, step: str
    ) -> None:
        bench = Bench(own_server)
        bench.put(a_hit(now(), "before"))
        bench.summaries.roll_up()
        bench.put(a_hit(now(), "before"))
        replaced(bench, step, own_server.restart)
        for _ in range(3):
            try:
                bench.summaries.roll_up()
            except StoreError:
                continue
        for _ in range(4):
            bench.put(a_hit(now(), "after"))
        assert bench.summaries.roll_up().samples == 4
        assert bench.hits("after") == 4
        assert bench.hits("before") in (0, 2)
        bench.close()

    def test_a_commit_whose_reply_is_lost_is_not_done_again(self, bench: Bench) -> None:
        for _ in range(3):
            bench.put(a_hit(now()))
        real = bench.summaries.inbox.commit
        calls: list[int] = []

        def lose(commit: Any, budget: Budget) -> bool:
            applied = real(commit, budget)
            calls.append(commit.entries)
            if commit.entries and len([n for n in calls if n]) == 1:
                raise StoreError("the reply was lost")
            return applied

        bench.summaries.inbox.commit = lose  # type: ignore[method-assign]
        with pytest.raises(StoreError):
            bench.summaries.roll_up()
        assert bench.summaries.roll_up().samples == 0
        assert bench.hits() == 3


class TestRetention:
    def plant(self, bench: Bench, resolution: str, starts: Sequence[int], operation: str = "shout") -> None:
        record = SummaryRecord(operation, resolution, 0)
        record.count("get", "hit", "", 1)
        bench.client.hset(bench.keys.records(operation, resolution), mapping={str(s): record.pack() for s in starts})

    def starts(self, bench: Bench, resolution: str) -> list[int]:
        return sorted(map(int, bench.client.hkeys(bench.keys.records("shout", resolution))))

    @pytest.mark.parametrize(
        ("resolution", "keep_s"), [("minute", 2 * DAY_S), ("hour", 60 * DAY_S), ("day", 730 * DAY_S)]
    )
    def test_windows_go_when_they_are_no_longer_kept(self, bench: Bench, resolution: str, keep_s: int) -> None:
        length = WINDOWS_S[resolution]
        bench.put(a_hit(now()))
        bench.summaries.roll_up()
        bench.client.hdel(bench.keys.records("shout", resolution), *self.starts(bench, resolution))
        end_s = int(now() - keep_s - LATE_S) // length * length
        gone = [end_s - length * n for n in range(1, 700)]
        kept = [end_s + length * n for n in range(2, 50)]
        self.plant(bench, resolution, gone + kept)
        bench.client.hset(bench.keys.state, f"swept_{resolution}", min(gone))
        bench.summaries.roll_up()
        assert self.starts(bench, resolution) == kept

    def test_a_long_absence_is_swept_in_several_turns(self, bench: Bench) -> None:
        bench.put(a_hit(now()))
        bench.summaries.roll_up()
        end_s = minute(now() - 2 * DAY_S - LATE_S)
        first = end_s - 60 * 12_000
        self.plant(bench, "minute", [first, first + 60 * 6000, end_s - 60])
        bench.client.hset(bench.keys.state, "swept_minute", first)
        left = []
        for _ in range(3):
            bench.summaries.roll_up()
            left.append(len(self.starts(bench, "minute")))
        assert left == [3, 2, 1]

    def test_a_clock_that_was_put_back_leaves_nothing_behind(self, bench: Bench) -> None:
        bench.put(a_hit(now()))
        bench.summaries.roll_up()
        ahead = minute(now() + 90 * DAY_S)
        bench.client.hset(bench.keys.state, "swept_minute", ahead)
        bench.summaries.roll_up()
        swept = int(bench.client.hget(bench.keys.state, "swept_minute"))
        assert abs(swept - (now() - 2 * DAY_S - LATE_S)) < 180

    def test_how_long_records_are_kept_can_be_set(self, own_server: EmbeddedServer) -> None:
        bench = Bench(own_server, aicache_keep_minutes_s="1h", aicache_keep_hours_s="1d", aicache_keep_days_s="30d")
        for age_s in (60, 2 * 3600, 5 * DAY_S, 100 * DAY_S):
            bench.put(a_hit(now() - age_s))
        bench.summaries.roll_up()
        assert [len(bench.all_of(kind)) for kind in ("minute", "hour")] == [1, 2]
        assert len(bench.summaries.read("shout", "day", 0, 2**31)) in (2, 3)  # two hours ago may be yesterday
        assert bench.hits() == 4
        bench.close()

    def test_a_second_sweep_has_nothing_to_do(self, bench: Bench) -> None:
        bench.put(a_hit(now()))
        bench.summaries.roll_up()
        bench.summaries.roll_up()
        before = bench.everything()
        bench.client.config_resetstat()
        bench.summaries.roll_up()
        after = bench.everything()
        changed = {key for key in before if before[key] != after.get(key)}
        assert changed <= {bench.keys.state.encode()}  # a minute may have begun

    def test_numbers_of_processes_are_forgotten_when_they_may_be(self, bench: Bench) -> None:
        bench.put(a_hit(now()), process=FIRST, last=True)
        bench.put(a_hit(now()), process=SECOND)
        bench.summaries.roll_up()
        ends = dict(bench.client.zrange(bench.keys.ends, 0, -1, withscores=True))
        assert ends[FIRST] == pytest.approx(now() + ENDED_FOR_S, abs=60)
        assert ends[SECOND] == pytest.approx(now() + SEEN_FOR_S, abs=60)
        bench.client.zadd(bench.keys.ends, {FIRST: now() - 5})
        for number in range(1200):
            bench.client.hset(bench.keys.seen, number.to_bytes(16, "big"), 1)
            bench.client.zadd(bench.keys.ends, {number.to_bytes(16, "big"): 5})
        bench.summaries.roll_up()
        assert list(bench.client.hkeys(bench.keys.seen)) == [SECOND]
        assert bench.client.zcard(bench.keys.ends) == 1

    def test_no_key_has_a_ttl(self, bench: Bench) -> None:
        bench.put(a_hit(now()))
        bench.client.rpush(bench.keys.inbox, b"none")
        bench.summaries.roll_up()
        bench.put(a_hit(now()))
        assert {bench.client.ttl(key) for key in bench.client.scan_iter()} == {-1}


class TestWorkers:
    def test_each_worker_has_the_minutes_of_its_last_hour(self, bench: Bench) -> None:
        for age_s, origin in ((30, "celery@a"), (600, "celery@a"), (600, "celery@b"), (5000, "celery@b")):
            bench.put(a_hit(now() - age_s), a_hit(now() - age_s, "other"), origin=origin)
        bench.summaries.roll_up()
        found = {name: [record.hits for record in records] for name, records in bench.summaries.workers().items()}
        assert found == {"celery@a": [2, 2], "celery@b": [2]}

    def test_the_older_minutes_of_a_worker_that_goes_on_are_removed(self, bench: Bench) -> None:
        bench.put(a_hit(now()))
        bench.summaries.roll_up()
        key, record = bench.keys.worker("celery@a"), SummaryRecord("celery@a", "minute", 0)
        old = minute(now() - WORKER_KEEP_S - LATE_S)
        bench.client.hset(key, mapping={str(old - 60 * n): record.pack() for n in range(1, 3000)})
        bench.client.hset(bench.keys.state, "swept_worker", old - 60 * 3000)
        bench.summaries.roll_up()
        assert bench.client.hlen(key) == 1

    def test_a_worker_that_is_gone_is_forgotten(self, bench: Bench) -> None:
        bench.put(a_hit(now()), origin="celery@gone")
        bench.put(a_hit(now()), origin="celery@here", process=SECOND)
        bench.summaries.roll_up()
        bench.client.hset(bench.keys.workers, "celery@gone", int(now() - WORKER_KEEP_S - 65))
        assert list(bench.summaries.workers()) == ["celery@here"]
        bench.client.hset(bench.keys.workers, "celery@gone", int(now() - WORKER_KEEP_S - LATE_S - 5))
        bench.summaries.roll_up()
        assert bench.client.hkeys(bench.keys.workers) == [b"celery@here"]
        assert not bench.client.exists(bench.keys.worker("celery@gone"))


class TestPreview:
    def test_it_changes_nothing_and_says_what_the_roll_up_then_does(self, bench: Bench) -> None:
        bench.put(a_hit(now()))
        bench.summaries.roll_up()
        for number in range(20):
            data = bench.put(*(a_hit(now(), f"op{n % 40}", duration_ns=n + 1) for n in range(250)), lost=number)
            bench.ship(data)
            bench.client.rpush(bench.keys.inbox, os.urandom(9))
        before = bench.everything()
        would = bench.summaries.preview()
        assert bench.everything() == before
        does = bench.summaries.roll_up()
        for name in ("samples", "batches", "duplicates", "undecodable", "lost", "totals"):
            assert getattr(would, name) == getattr(does, name), name
        assert (would.samples, would.duplicates, would.undecodable, would.waiting) == (5000, 20, 20, 60)

    def test_of_nothing_is_nothing(self, bench: Bench) -> None:
        assert bench.summaries.preview() == RolledUp()
        assert bench.everything() == {}

    def test_progress_is_told_to_the_end(self, bench: Bench) -> None:
        for _ in range(4):
            bench.put(*(a_hit(now(), f"op{n}") for n in range(250)))
        told: list[tuple[int, int]] = []
        bench.summaries.preview(progress=lambda done, of: told.append((done, of)))
        assert told[-1] == (4, 4)


class TestReading:
    def test_windows_begin_in_the_span_that_was_asked_for(self, bench: Bench) -> None:
        start = minute(now() - 3600)
        for number in range(10):
            bench.put(a_hit(start + 60.0 * number))
        bench.summaries.roll_up()

        def read(begin_s: float, end_s: float) -> list[int]:
            return [(record.start - start) // 60 for record in bench.summaries.read("shout", "minute", begin_s, end_s)]

        assert read(start + 120, start + 300) == [2, 3, 4]
        assert read(start + 120.5, start + 300.5) == [3, 4, 5]
        assert read(start - 1, start + 1) == [0]
        assert read(start + 300, start + 300) == read(start + 300, start + 120) == []
        assert read(0, 60) == []

    def test_windows_without_samples_are_not_there(self, bench: Bench) -> None:
        bench.put(a_hit(now() - 1200), a_hit(now() - 120))
        bench.summaries.roll_up()
        assert len(bench.summaries.read("shout", "minute", now() - 3600, now())) == 2
        assert bench.summaries.read("nobody", "minute", now() - 3600, now()) == []

    def test_the_backlog_says_how_much_waits_and_for_how_long(self, bench: Bench) -> None:
        assert bench.summaries.backlog() == (0, 0, 0.0)
        sizes = [len(bench.put(a_hit(now()))) for _ in range(3)]
        bench.client.hset(bench.keys.state, "since_ms", int(now() * 1000) - 90_000)
        entries, held, age_s = bench.summaries.backlog()
        assert (entries, held) == (3, sum(sizes))
        assert age_s == pytest.approx(90, abs=5)
        bench.summaries.roll_up()
        assert bench.summaries.backlog() == (0, 0, 0.0)

    def test_all_keys_lie_in_one_slot_of_a_cluster(self, bench: Bench) -> None:
        for name in ("shout", "", "ünïcode ☃", "{other}", "x" * 300):
            bench.put(a_hit(now(), name), origin=name)
        bench.client.rpush(bench.keys.inbox, b"none")
        bench.summaries.roll_up()
        bench.put(a_hit(now()))
        keys = set(bench.client.scan_iter())
        assert len(keys) > 20
        assert len({key_slot(key) for key in keys}) == 1
