"""The worker's own roll-up, in this process and on a real server."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aicache_tasks import StoreError
from aicache_tasks.fallback import Fallback, Stopping
from aicache_tasks.records import Sample
from aicache_tasks.summaries import Progress, Summaries
from aicache_tasks.testing import EmbeddedServer
from tests.caches import live_cache
from tests.faults import eventually


class Desk:
    """A worker's fallback, with samples that have waited for as long as a test says."""

    def __init__(self, url: str, client: Any) -> None:
        self.client, self.cache = client, live_cache(url, ship=True)
        self.summaries = Summaries(self.cache.parts)
        self.asked_ago_s: float | None = None
        self.rolled = 0
        self.fallback = self.make()

    def make(self, period_s: float = 60.0) -> Fallback:
        return Fallback(self.summaries, self.roll_up, lambda _: self.asked_ago_s, period_s)

    def roll_up(self, progress: Progress) -> None:
        self.rolled += self.summaries.roll_up(progress=progress).samples

    def wait(self, for_s: float) -> None:
        """Have a sample wait since *for_s* ago."""
        self.cache.parts.samples.ship(Sample(time.time(), "shout", "get", "hit", "", 1000))
        assert self.cache.parts.outbox is not None
        assert self.cache.parts.outbox.flush(20)
        self.client.hset(self.summaries.keys.state, "since_ms", int((time.time() - for_s) * 1000))


@pytest.fixture
def desk(valkey: EmbeddedServer, client: Any, caplog: pytest.LogCaptureFixture) -> Iterator[Desk]:
    caplog.set_level(logging.INFO, "aicache_tasks")
    made = Desk(valkey.url, client)
    yield made
    made.fallback.stop()
    made.cache.close()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage().split(":")[1].strip()[:22] for record in caplog.records if record.name == "aicache_tasks"
    ]


def test_it_leaves_to_beat_what_has_not_waited_for_five_minutes(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.fallback.check()
    desk.wait(280)
    desk.fallback.check()
    assert (desk.rolled, lines(caplog)) == (0, [])


def test_it_rolls_up_what_has_and_says_so_once_until_beat_is_back(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        desk.wait(310)
        desk.fallback.check()
    assert desk.rolled == 3
    assert lines(caplog) == ["beat is not rolling up"]
    desk.fallback.check()
    desk.asked_ago_s = 301.0
    desk.fallback.check()
    assert desk.fallback.stands_in, "nobody has asked since"
    desk.asked_ago_s = 3.0
    desk.fallback.check()
    desk.fallback.check()
    assert not desk.fallback.stands_in
    assert lines(caplog) == ["beat is not rolling up", "roll-ups are asked for"]


@pytest.mark.parametrize(("period_s", "rolled"), [(0.0, 1), (60.0, 1), (100.0, 1), (200.0, 0)])
def test_a_rarer_schedule_has_three_periods(desk: Desk, period_s: float, rolled: int) -> None:
    desk.wait(400)
    desk.make(period_s).check()
    assert desk.rolled == rolled


def test_its_thread_looks_from_time_to_time_and_outlives_faults_of_the_store(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fallback, "check_s", 0.02)
    looked = threading.Event()
    ask: Callable[[], Any] = desk.summaries.backlog
    faults = iter([StoreError("away"), StoreError("away")])

    def backlog() -> Any:
        for fault in faults:
            raise fault
        looked.set()
        return ask()

    monkeypatch.setattr(desk.summaries, "backlog", backlog)
    desk.wait(310)
    desk.fallback.start()
    assert looked.wait(20)
    eventually(lambda: desk.rolled == 1)


def test_stopping_it_ends_a_roll_up_after_the_piece_that_it_is_at(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aicache_tasks.summaries.PIECE_BYTES", 1)
    for _ in range(5):
        desk.wait(310)
    pieces = []

    def roll_up(progress: Progress) -> None:
        def tell(done: int, of: int) -> None:
            pieces.append(done)
            if done == 2:
                desk.fallback.stop()
            progress(done, of)

        desk.summaries.roll_up(progress=tell)

    desk.fallback = Fallback(desk.summaries, roll_up, lambda _: None, 60.0)
    with pytest.raises(Stopping):
        desk.fallback.check()
    assert pieces == [1, 2]
    assert (desk.summaries.totals()["shout"].hits, desk.summaries.backlog().entries) == (2, 3)


def test_it_leaves_the_application_s_generator_of_random_numbers_alone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fallback, "check_s", 0.001)
    looks = threading.Semaphore(0)
    monkeypatch.setattr(desk.fallback, "check", looks.release)
    before = random.getstate()
    desk.fallback.start()
    for _ in range(3):
        assert looks.acquire(timeout=20)
    assert random.getstate() == before


def test_its_thread_ends_when_it_is_stopped(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fallback, "check_s", 600.0)
    before = set(threading.enumerate())
    desk.fallback.start()
    (thread,) = [each for each in set(threading.enumerate()) - before if each.name == "aicache-fallback"]
    desk.fallback.stop()
    assert not thread.is_alive()


def test_a_fallback_that_was_not_started_can_be_stopped(desk: Desk) -> None:
    desk.fallback.stop()
