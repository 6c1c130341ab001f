"""However a worker ends, the inbox holds the samples of the calls that it ran: none is lost, none is there twice."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from celery import Celery
from celery.app.defaults import NAMESPACES
from celery.result import AsyncResult

from aicache_tasks.testing import EmbeddedServer
from tests.cluster.nodes import WorkerProcess, wait_until
from tests.inbox import batches, rows
from tests.tasks.test_redaction import watching

FEW, SOME = 12, 24
ONLY_AT_THE_END = {"AICACHE_SHIP_EVERY": "256", "AICACHE_SHIP_AFTER_S": "600"}
"""No look-up carries and no thread sends: what arrives was sent by an exit hook."""
SHIP_EVERY = 128
A_CALL = 3
"""Samples of a call that misses: look-up, body, store."""
POOLS = ("prefork", "threads", "solo", "gevent", "eventlet")
SIGNALS = (signal.SIGTERM, signal.SIGQUIT)
soak = pytest.mark.soak
STARTS = [pytest.param("fork", marks=soak), *(["spawn"] if "pool_start_method" in NAMESPACES["worker"] else [])]
"""Celery 5.6 has forks alone."""


class Site:
    """Servers, a caller's app and one worker."""

    def __init__(self, queue: EmbeddedServer, cache: EmbeddedServer) -> None:
        self.queue, self.cache = queue, cache
        self.app = Celery("caller", broker=queue.url, backend=queue.url, set_as_current=False)
        self.app.AsyncResult.__del__ = lambda self: None  # must not unsubscribe from a server that is gone
        self.client = cache.client()
        self.worker: WorkerProcess

    def start(self, pool: str, *arguments: str, concurrency: int = 2, env: Mapping[str, str] = ONLY_AT_THE_END) -> None:
        urls = (self.queue.url, self.queue.url, self.cache.url)
        given = {"extra_args": arguments, "env": {**env, "C_FORCE_ROOT": "1"}, "concurrency": concurrency}
        self.worker = WorkerProcess("tests.exits.exit_app", *urls, pool=pool, **given).start()
        self.worker.ready()

    def send(self, count: int) -> list[AsyncResult[Any]]:
        """Send calls whose texts have 1 to *count* characters."""
        return [self.app.send_task("shout", ("x" * length,)) for length in range(1, count + 1)]

    def call(self, count: int) -> None:
        """Have each of the calls answered."""
        for length, result in enumerate(self.send(count), 1):
            assert result.get(timeout=30) == "X" * length

    def found(self) -> Counter[tuple[str, str, int]]:
        """Return how often each step, status and text length counts."""
        return Counter((row[2], row[3], row[6]) for row in rows(batches(self.client)))

    def close(self) -> None:
        self.worker.close()
        self.client.close()
        self.app.close()


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    with EmbeddedServer() as queue, EmbeddedServer() as cache:
        yield queue, cache


@pytest.fixture
def site(servers: tuple[EmbeddedServer, EmbeddedServer]) -> Iterator[Site]:
    for server in servers:
        with server.client() as client:
            client.flushall()
    made = Site(*servers)
    yield made
    made.close()


def left_by(count: int) -> Counter[tuple[str, str, int]]:
    """Return what *count* calls leave that were made twice: a miss and a hit each."""
    kinds = (("get", "miss"), ("compute", "success"), ("set", "success"), ("get", "hit"))
    return Counter((*kind, length) for kind in kinds for length in range(1, count + 1))


def runs(pool: str, number: int) -> Any:
    quick = (pool, number) in {("prefork", signal.SIGTERM), ("threads", signal.SIGQUIT)}
    marks = () if quick else (soak,)
    return pytest.param(pool, number, id=f"{pool}-{signal.Signals(number).name}", marks=marks)


@pytest.mark.parametrize(("pool", "number"), [runs(pool, number) for pool in POOLS for number in SIGNALS])
def test_a_worker_that_is_told_to_end_sends_all_that_waits(site: Site, pool: str, number: int) -> None:
    count = 4 if pool == "eventlet" else FEW  # whose client waits half a second for each answer
    site.start(pool, concurrency=1 if pool == "solo" else 2)
    site.call(count)
    site.call(count)
    assert batches(site.client) == [], "a sample was sent before the end: the test shows nothing"
    site.worker.kill(number)
    assert site.found() == left_by(count)
    assert "lost as it ends" not in site.worker.logs()
    assert {batch.origin for batch in batches(site.client)} == {site.worker.hostname}


@pytest.mark.parametrize("method", STARTS)
def test_a_child_has_all_that_the_application_was_given_however_it_is_started(site: Site, method: str) -> None:
    site.start("prefork", "-E", env={**ONLY_AT_THE_END, "START_METHOD": method})
    with watching(site.app) as events:
        site.call(FEW)
        site.call(FEW)
        told = lambda: Counter(event["type"] for event in list(events) if "cache" in event["type"])  # noqa: E731
        wait_until(lambda: told() == {"task-cache-miss": FEW, "task-cache-hit": FEW}, 40, "what is told of calls")
    site.app.send_task("relay", ("a secret",)).get(timeout=30)
    with site.queue.client() as client:
        (message,) = client.lrange("elsewhere", 0, -1)
    assert json.loads(message)["headers"]["argsrepr"] == "<redacted>"
    rollup = site.app.send_task("aicache_tasks.rollup", ignore_result=False)
    assert rollup.get(timeout=30)["samples"] == 0
    site.worker.stop()
    assert site.found() == left_by(FEW)
    assert {batch.origin for batch in batches(site.client)} == {site.worker.hostname}
    assert ("SpawnPoolWorker-1" in site.worker.logs()) == (method == "spawn")


@soak
@pytest.mark.parametrize(
    ("arguments", "count"), [(("--max-tasks-per-child", "5"), SOME), (("--max-memory-per-child", "1000"), FEW)]
)
def test_a_child_that_is_replaced_sends_all_that_waits(site: Site, arguments: tuple[str, str], count: int) -> None:
    site.start("prefork", *arguments)
    site.call(count)
    site.call(count)
    site.worker.stop()
    assert site.found() == left_by(count)
    assert len({batch.process for batch in batches(site.client)}) >= 2 * count / 5


@soak
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_that_is_told_to_end_while_calls_run_loses_none_that_ended(site: Site, pool: str) -> None:
    site.start(pool, env={"SLOW_FROM": "70"})  # else they might all have ended by the time that it is told to
    results = site.send(300)
    wait_until(lambda: results[60].ready(), 30.0, "some calls")
    site.worker.stop()
    ended = [length for length, result in enumerate(results, 1) if result.state == "SUCCESS"]
    assert 60 < len(ended) < 300
    kinds = (("get", "miss"), ("compute", "success"), ("set", "success"))
    assert site.found() == Counter((*kind, length) for kind in kinds for length in ended)


@soak
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_sigkill_loses_less_than_a_batch_and_a_call_of_each_process(site: Site, pool: str) -> None:
    site.start(pool, env={"AICACHE_SHIP_AFTER_S": "600"})
    processes = 2 if pool == "prefork" else 1
    site.call(200)
    site.worker.kill()
    found = site.found()
    assert set(found.values()) == {1}
    assert found.total() > 200 * A_CALL - processes * (SHIP_EVERY + A_CALL)


@soak
def test_a_store_that_is_away_delays_the_end_by_two_seconds_and_says_what_is_lost(site: Site) -> None:
    site.start("threads")
    site.call(FEW)
    site.cache.kill()
    try:
        site.worker.kill(signal.SIGTERM, timeout_s=20.0)
    finally:
        site.cache.start()
    assert site.worker.logs().count(f"{A_CALL * FEW} timings of this process are lost as it ends") == 1


def test_durable_samples_of_calls_that_returned_outlive_a_child_that_is_killed(site: Site) -> None:
    site.start("prefork", env={"AICACHE_SAMPLES": "durable", "AICACHE_SHIP_AFTER_S": "600"})
    results = site.send(60)
    wait_until(lambda: results[20].ready(), 30.0, "some calls")
    os.kill(site.worker.child_pids()[0], signal.SIGKILL)
    # Seconds pass until Celery notes that the child's call is lost: it is not waited for.
    wait_until(lambda: sum(result.ready() for result in results) >= 57, 30.0, "the other calls")
    returned = [length for length, result in enumerate(results, 1) if result.state == "SUCCESS"]
    assert len(returned) >= 55
    site.worker.kill()
    found = site.found()
    assert set(found.values()) == {1}
    for kind in (("get", "miss"), ("compute", "success"), ("set", "success")):
        assert [length for length in returned if not found[*kind, length]] == []
