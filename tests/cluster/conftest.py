"""
pytest-celery's `celery_setup` over processes: two workers, a broker, a results server and a cache server.

In: nothing, or ``AICACHE_TEST_CONTAINERS=1``.   Out: `celery_setup`, `cache_server`, `workers`, `notes`.

The nodes live for the session, since two workers take seconds to start; the fixtures of each test hand them out and
start again what the test before it ended. With ``AICACHE_TEST_CONTAINERS=1`` the servers are pytest-celery's Redis
containers, at fixed ports so that they keep their addresses over a restart; workers stay processes, because their
pool children are killed one by one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from celery.contrib.testing.app import setup_default_app
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryTestWorker,
    CeleryWorkerCluster,
    RedisContainer,
)
from pytest_docker_tools import container, fxtr

from aicache_tasks import install
from aicache_tasks.testing import EmbeddedServer
from tests.cluster.cluster_tasks import CONFIG
from tests.cluster.nodes import ServerNode, WorkerNode

# Not for doctests: importing the app makes it current, and tasks imported under a second name are other tasks.
collect_ignore = ["cluster_app.py", "cluster_tasks.py", "nodes.py"]
APP = "tests.cluster.cluster_app"
IN_CONTAINERS = os.environ.get("AICACHE_TEST_CONTAINERS") == "1"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ports() -> Any:
    return pytest.fixture(scope="session")(lambda: {"6379/tcp": _free_port()})


def _redis_container(ports: str, **config: str) -> Any:
    return container(
        image=RedisContainer.image(),
        ports=fxtr(ports),
        command=RedisContainer.command(*(word for name, value in config.items() for word in (f"--{name}", value))),
        wrapper_class=RedisContainer,
        scope="session",
    )


def _node(name: str, **config: str) -> Any:
    @pytest.fixture(scope="session", name=f"{name}_node")
    def node(request: pytest.FixtureRequest) -> Iterator[Any]:
        if IN_CONTAINERS:
            yield request.getfixturevalue(f"{name}_container")
            return
        with EmbeddedServer(config=config) as server:
            yield ServerNode(name, server)

    return node


BROKER = {"appendonly": "yes"}  # keeps its queues over a restart
CACHE = {"maxmemory": "64mb", "maxmemory-policy": "volatile-lfu"}  # empty after a restart
broker_ports, results_ports, cache_ports = _ports(), _ports(), _ports()
broker_container = _redis_container("broker_ports", **BROKER)
results_container = _redis_container("results_ports")
cache_container = _redis_container("cache_ports", **CACHE)
broker_node = _node("broker", **BROKER)
results_node = _node("results")
cache_node = _node("cache", **CACHE)


@pytest.fixture(scope="session")
def worker_nodes(broker_node: Any, results_node: Any, cache_node: Any) -> Iterator[list[WorkerNode]]:
    """Two workers with two children each; both take calls from ``celery``, each from a queue of its own name.

    The second one replaces a child after ten calls.
    """
    nodes_of = {"broker_url": broker_node, "backend_url": results_node, "cache_url": cache_node}
    servers = {name: node.celeryconfig["host_url"] for name, node in nodes_of.items()}
    steady = WorkerNode(APP, **servers, name="steady", queue="steady")
    recycling = WorkerNode(APP, **servers, name="recycling", queue="recycling", extra_args=["--max-tasks-per-child=10"])
    nodes = [steady.start(), recycling.start()]
    yield nodes
    for node in nodes:
        node.close()


@pytest.fixture
def celery_broker_cluster(broker_node: Any) -> CeleryBrokerCluster:
    if broker_node.status != "running":
        broker_node.restart()
    return CeleryBrokerCluster(CeleryTestBroker(broker_node))


@pytest.fixture
def celery_backend_cluster(results_node: Any) -> CeleryBackendCluster:
    return CeleryBackendCluster(CeleryTestBackend(results_node))


@pytest.fixture
def cache_server(cache_node: Any) -> CeleryTestBackend:
    """The cache's server as a node: `kill` and `restart`."""
    if cache_node.status != "running":
        cache_node.restart()
    return CeleryTestBackend(cache_node)


@pytest.fixture
def celery_worker_cluster(
    worker_nodes: list[WorkerNode],
    celery_broker_cluster: CeleryBrokerCluster,
    cache_server: CeleryTestBackend,
    celery_setup_app: Celery,
) -> CeleryWorkerCluster:
    for node in worker_nodes:
        node.start()
    for node in worker_nodes:
        node.ready()
    return CeleryWorkerCluster(*(CeleryTestWorker(node, celery_setup_app) for node in worker_nodes))


@pytest.fixture
def celery_setup_app(
    celery_setup_config: dict[str, Any], celery_setup_name: str, cache_server: CeleryTestBackend
) -> Iterator[Celery]:
    """The caller's side: configured as the workers are, the current app for the time of the test."""
    app = Celery(celery_setup_name, set_as_current=False)
    app.conf.update(CONFIG, **celery_setup_config, aicache_url=cache_server.config()["host_url"])
    app.conf.result_backend_thread_safe = True  # one subscription for all threads, closed below
    install(app)
    with setup_default_app(app):
        app.set_current()
        yield app
        app.backend.result_consumer.stop()
        # A failed test's traceback keeps its results: they must not unsubscribe from a server that is gone by then.
        app.backend.remove_pending_result = lambda result: result


@pytest.fixture
def workers(celery_setup: Any) -> list[WorkerNode]:
    """The processes behind `celery_setup.worker_cluster`: the steady one and the recycling one."""
    return [worker.container for worker in celery_setup.worker_cluster]


@pytest.fixture
def notes(celery_setup: Any) -> Iterator[redis.Redis]:
    """A client of the server where bodies note that they ran."""
    with redis.Redis.from_url(celery_setup.backend.config()["host_url"], decode_responses=True) as client:
        client.delete("bodies", "gate")
        yield client
