"""For the session: a prefork worker and one with threads, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from celery import Celery

from aicache_tasks.runtime import runtime_of
from aicache_tasks.testing import EmbeddedServer
from tests.caches import PATIENT
from tests.cluster.nodes import WorkerProcess, wait_until
from tests.tasks.bench_tasks import LoneCelery, make_app

collect_ignore = ["bench_worker.py", "redaction_worker.py"]  # for workers: importing one makes an app


class Bench(NamedTuple):
    """A running worker and its caller's app."""

    pool: str
    app: Celery
    cache: EmbeddedServer
    worker: WorkerProcess


class Servers(NamedTuple):
    """The broker and result server, and the cache's."""

    queue: EmbeddedServer
    cache: EmbeddedServer

    def config(self, broker_db: int) -> dict[str, str]:
        queue = self.queue.url.removesuffix("0")
        return {
            "broker_url": f"{queue}{broker_db}",
            "result_backend": f"{queue}{broker_db + 1}",
            "aicache_url": self.cache.url,
        }


def end(app: Celery) -> None:
    """Close *app*; results that a failed test's traceback keeps must not unsubscribe from a server that is gone."""
    app.AsyncResult.__del__ = lambda self: None  # a class of this app alone
    runtime_of(app).close()  # its timings are sent while there is a server
    app.close()


def answering(app: Celery, *workers: WorkerProcess) -> None:
    """Wait until *workers* answer: one that says that it is ready listens to questions only a moment later."""
    names = sorted(worker.hostname for worker in workers)
    # A reply that comes after its question's end would be taken for one to the next: so these have time.
    wait_until(lambda: len(app.control.ping(names, timeout=5)) == len(names), what=f"answers of {names}")


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with EmbeddedServer() as queue, EmbeddedServer() as cache:
        yield Servers(queue, cache)


def running(servers: Servers, pool: str, broker_db: int) -> Iterator[Bench]:
    """Start a worker process with *pool*, and yield it with its caller's app."""
    config = servers.config(broker_db)
    urls = (config["broker_url"], config["result_backend"], config["aicache_url"])
    root = {"C_FORCE_ROOT": "1"}  # for pickle
    worker = WorkerProcess("tests.tasks.bench_worker", *urls, pool=pool, concurrency=3, env=root).start()
    app = make_app(**config)
    try:
        worker.ready()
        yield Bench(pool, app, servers.cache, worker)
    finally:
        worker.close()
        end(app)


@pytest.fixture(scope="session")
def prefork(servers: Servers) -> Iterator[Bench]:
    yield from running(servers, "prefork", broker_db=0)


@pytest.fixture(scope="session")
def threads(servers: Servers) -> Iterator[Bench]:
    yield from running(servers, "threads", broker_db=2)


@pytest.fixture(params=["prefork", "threads"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """Each kind of worker in turn."""
    found: Bench = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Return a function that makes an app with a cache in memory and no worker; it ends with the test."""
    apps: list[Celery] = []

    def make_one(**config: Any) -> Celery:
        from aicache_tasks import install

        defaults = {
            "broker_url": "memory://",
            "result_backend": "cache+memory://",
            "aicache_url": "memory://",
            "aicache_strict": True,
            **PATIENT,  # also in memory: a process that stands still has spent its budget
        }
        app = LoneCelery(f"t{len(apps)}", set_as_current=False)
        app.conf.update({**defaults, **config})
        apps.append(install(app))
        return app

    yield make_one
    for app in apps:
        app.close()
