"""Soft time limits in a prefork worker: in the body, and while the cache's server does not answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from aicache_tasks.testing import EmbeddedServer
from tests.cluster.nodes import WorkerProcess, wait_until
from tests.tasks.bench_tasks import counts, make_app
from tests.tasks.conftest import Bench, Servers, end

TIMEOUT_S = 15
TRIES = 3


@pytest.fixture(scope="module")
def limited() -> Iterator[Bench]:
    """A worker whose cache server may be paused: it is nobody else's."""
    with EmbeddedServer() as queue, EmbeddedServer() as cache:
        config = Servers(queue, cache).config(broker_db=0)
        urls = (config["broker_url"], config["result_backend"], config["aicache_url"])
        worker = WorkerProcess(
            "tests.tasks.bench_worker", *urls, concurrency=1, env={"C_FORCE_ROOT": "1", "AICACHE_BUDGET_MS": "1500"}
        ).start()
        app = make_app(**config)
        try:
            worker.ready()
            yield Bench("prefork", app, cache, worker)
        finally:
            worker.close()
            end(app)


@pytest.mark.parametrize("family", ["stock", "cached"])
def test_a_soft_limit_in_the_body_passes_untouched_and_nothing_is_stored(limited: Bench, family: str) -> None:
    tasks, client = getattr(limited.app, family), counts(limited.app.conf.result_backend)
    for limit_s in (0.3, 3, 9):  # a machine that stands still may not get to the body in time
        x = uuid.uuid4().hex
        result = tasks.sleeps.apply_async((x, 10), soft_time_limit=limit_s)
        with pytest.raises(SoftTimeLimitExceeded):
            result.get(timeout=TIMEOUT_S)
        if ran := client.get(f"runs:{family}:{x}"):
            break
    assert ran == "1"
    if family == "cached":
        assert tasks.sleeps.cache.peek(x, 10) is None


def test_a_soft_limit_during_a_slow_cache_call_is_raised_when_it_ends_and_no_body_runs(limited: Bench) -> None:
    x, task = uuid.uuid4().hex, limited.app.cached.sleeps
    for _ in range(TRIES):
        await_a_hit(limited)
        limited.cache.pause()
        try:
            began = time.monotonic()
            result = task.apply_async((x, 5), soft_time_limit=0.3)
            with pytest.raises(SoftTimeLimitExceeded):
                result.get(timeout=TIMEOUT_S)
            took_s = time.monotonic() - began
            assert counts(limited.app.conf.result_backend).get(f"runs:cached:{x}") is None
        finally:
            limited.cache.resume()
        if 1.0 < took_s < 4.0:  # else the limit may have come before the call, where the machine stood still
            break
    assert 1.0 < took_s < 4.0
    assert task.delay(x, 0).get(timeout=TIMEOUT_S) == x


def await_a_hit(limited: Bench) -> None:
    """Wait until the worker's process is connected, and asks the cache."""
    client = counts(limited.app.conf.result_backend)

    def hits() -> bool:
        result = limited.app.cached.sleeps.delay("warm", 0)
        result.get(timeout=TIMEOUT_S)
        wait_until(lambda: client.exists(f"status:{result.id}"), TIMEOUT_S, "status")
        return bool(client.lrange(f"status:{result.id}", 0, -1) == ["hit"])

    wait_until(hits, TIMEOUT_S, "a hit")
