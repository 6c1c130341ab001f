"""Soft time limits in a prefork worker: in the body, and while the cache's server does not answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from aicache_tasks.testing import EmbeddedServer
from tests.cluster.nodes import WorkerProcess
from tests.tasks.bench_tasks import counts, make_app
from tests.tasks.conftest import Bench, Servers, end

TIMEOUT_S = 15


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
    x, tasks = uuid.uuid4().hex, getattr(limited.app, family)
    result = tasks.sleeps.apply_async((x, 10), soft_time_limit=0.3)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=TIMEOUT_S)
    assert counts(limited.app.conf.result_backend).get(f"runs:{family}:{x}") == "1"
    if family == "cached":
        assert tasks.sleeps.cache.peek(x, 10) is None


def test_a_soft_limit_during_a_slow_cache_call_is_raised_when_it_ends_and_no_body_runs(limited: Bench) -> None:
    x, task = uuid.uuid4().hex, limited.app.cached.sleeps
    assert task.delay("warm", 0).get(timeout=TIMEOUT_S) == "warm"
    limited.cache.pause()
    try:
        began = time.monotonic()
        result = task.apply_async((x, 5), soft_time_limit=0.3)
        with pytest.raises(SoftTimeLimitExceeded):
            result.get(timeout=TIMEOUT_S)
        assert 1.0 < time.monotonic() - began < 4.0
        assert counts(limited.app.conf.result_backend).get(f"runs:cached:{x}") is None
    finally:
        limited.cache.resume()
    assert task.delay(x, 0).get(timeout=TIMEOUT_S) == x
