"""Roll-ups by real beats and workers: each call is counted once, whoever asks, however often."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aicache_tasks import install
from aicache_tasks.beat import TASK, since_asked_s
from aicache_tasks.runtime import runtime_of
from aicache_tasks.summaries import Summaries
from aicache_tasks.testing import EmbeddedServer
from tests.beats import BeatProcess
from tests.cluster.nodes import WorkerProcess, wait_until
from tests.tasks.bench_tasks import LoneCelery
from tests.tasks.conftest import end

APP = "tests.tasks.rollup_worker"
pytestmark = pytest.mark.timeout(180)
OFTEN = {"AICACHE_ROLLUP_PERIOD_S": "0.3"}
HASTY = {"FALLBACK_CHECK_S": "0.1", "FALLBACK_LATE_S": "1", "AICACHE_ROLLUP_PERIOD_S": "0.1"}


class Site:
    """Two servers, and the processes that a test starts on them."""

    def __init__(self, queue: EmbeddedServer, cache: EmbeddedServer, folder: Path) -> None:
        self.queue, self.cache, self._folder = queue, cache, folder
        self._urls = (queue.url, queue.url, cache.url)
        self.processes: list[WorkerProcess] = []
        self.app = LoneCelery("caller", broker=queue.url, backend=queue.url, set_as_current=False)
        self.app.conf.update(aicache_url=cache.url, aicache_budget_ms=5000, aicache_connect_ms=5000)
        install(self.app)
        self.summaries = Summaries(runtime_of(self.app).cache.parts)

    def worker(self, pool: str = "prefork", *more: str, **env: str) -> WorkerProcess:
        """Start a worker; `WorkerProcess.ready` waits for it."""
        concurrency = 1 if pool == "solo" else 2
        made = WorkerProcess(APP, *self._urls, pool, concurrency, more, env, name=f"w{len(self.processes)}").start()
        self.processes.append(made)
        return made

    def beat(self, *more: str, **env: str) -> BeatProcess:
        name = f"b{len(self.processes)}"
        made = BeatProcess(APP, *self._urls, folder=self._folder, extra_args=more, env=env, name=name).start()
        self.processes.append(made)
        return made

    def call(self, texts: list[str]) -> None:
        results = [self.app.send_task("echo", (text,)) for text in texts]
        assert [result.get(timeout=60) for result in results] == texts

    def counted(self) -> tuple[int, int, int]:
        """Return hits, misses and stored answers as the records have them."""
        total = self.summaries.totals().get("echo")
        return (total.hits, total.misses, total.of("set", "success")) if total else (0, 0, 0)

    def await_counted(self, hits: int, misses: int) -> None:
        wait_until(lambda: self.counted() == (hits, misses, misses), what=f"{hits} hits and {misses} misses")

    def await_waiting(self, lookups: int) -> None:
        """Return when that many look-ups wait in the inbox, and the stores that they led to."""

        def waits() -> bool:
            would = self.summaries.preview().totals.get("echo")
            return would is not None and would.lookups == lookups and would.of("set", "success") == would.misses

        wait_until(waits, what=f"{lookups} look-ups in the inbox")

    def close(self) -> None:
        for process in self.processes:
            process.close()
        runtime_of(self.app).close()
        end(self.app)


@pytest.fixture
def site(own_server: EmbeddedServer, tmp_path: Path) -> Iterator[Site]:
    with EmbeddedServer() as cache:
        made = Site(own_server, cache, tmp_path)
        try:
            yield made
        finally:
            made.close()


def texts(count: int, name: str = "text") -> list[str]:
    return [f"{name} {number}" for number in range(count)]


def test_a_beat_has_the_calls_of_a_worker_counted_while_they_come(site: Site) -> None:
    worker, beat = site.worker(AICACHE_SLOW_KEY_MS="0.001"), site.beat()
    worker.ready()
    beat.ready()
    site.call(texts(5))
    site.await_counted(0, 5)
    site.call(texts(20))
    site.await_counted(5, 20)
    wait_until(lambda: "heard slow_key warning" in worker.logs(), what="the signal")
    wait_until(lambda: "Task tick[" in worker.logs(), what="the user's own entry")
    assert "stand" not in worker.logs(), "a worker rolled up although beat did"


@pytest.mark.soak
def test_two_plain_beats_are_harmless(site: Site) -> None:
    workers = [site.worker(), site.worker()]
    beats = [site.beat(**OFTEN), site.beat(**OFTEN)]
    for process in (*workers, *beats):
        process.ready()
    for round_ in range(6):
        site.call(texts(20, f"round {round_}"))
    site.await_counted(0, 120)
    site.call(texts(20, "round 0"))
    site.await_counted(20, 120)
    settled(site)
    assert site.counted() == (20, 120, 120)


def settled(site: Site) -> None:
    """Let the beats ask a few more times: nothing may be counted again."""
    for _ in range(3):
        since_s = since_asked_s(site.summaries)
        assert since_s is not None
        asked_s = time.time() - since_s
        wait_until(lambda at=asked_s: time.time() - (since_asked_s(site.summaries) or 0) > at + 0.2, what="a roll-up")


@pytest.mark.soak
def test_a_roll_up_that_is_sent_again_and_again_counts_nothing_twice(site: Site) -> None:
    worker = site.worker()
    worker.ready()
    site.call(texts(30))
    site.await_waiting(30)
    results = [site.app.send_task(TASK) for _ in range(40)]
    ended = re.compile(rf"Task {re.escape(TASK)}\[\S+\] succeeded")
    wait_until(lambda: len(ended.findall(worker.logs())) == len(results), what="the end of each")
    site.await_counted(0, 30)
    site.call(texts(30))
    site.await_waiting(30)
    for result in results:  # the same messages, as after a lost acknowledgement
        site.app.send_task(TASK, task_id=result.id)
    site.await_counted(30, 30)


@pytest.mark.soak
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent", "eventlet"])
def test_a_worker_stands_in_for_a_beat_that_is_missing_and_stops_when_there_is_one(site: Site, pool: str) -> None:
    worker = site.worker(pool, **HASTY)
    worker.ready()
    site.call(texts(5))
    site.await_counted(0, 5)
    site.call(texts(5))
    site.await_counted(5, 5)
    assert worker.logs().count("beat is not rolling up") == 1
    site.beat(AICACHE_ROLLUP_PERIOD_S="0.2").ready()
    wait_until(lambda: "no longer stands in" in worker.logs(), what="the worker's notice")
    assert worker.logs().count("beat is not rolling up") == 1
    assert site.counted() == (5, 5, 5)
    worker.stop()
    assert worker.returncode == 0
    assert "Traceback" not in worker.logs(), worker.logs()


REDBEAT = ("--scheduler", "redbeat.RedBeatScheduler")


@pytest.mark.soak
def test_a_second_redbeat_takes_over_from_one_that_is_killed(site: Site) -> None:
    worker = site.worker()
    worker.ready()
    leader = site.beat(*REDBEAT, **OFTEN)
    wait_until(lambda: "Acquired lock" in leader.logs(), what="the lock")
    heir = site.beat(*REDBEAT, **OFTEN)
    heir.ready()
    site.call(texts(20))
    site.await_counted(0, 20)
    assert "Acquired lock" not in heir.logs()
    site.call(texts(30))
    os.kill(leader.pid, signal.SIGKILL)
    site.call(texts(40))
    wait_until(lambda: "Acquired lock" in heir.logs(), 30, "the heir's lock")
    site.await_counted(50, 40)
    site.call(texts(40))
    site.await_counted(90, 40)
    settled(site)
    assert site.counted() == (90, 40, 40)
