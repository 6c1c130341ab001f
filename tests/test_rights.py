"""The rights that the documents name are enough, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import NoPermissionError

from aicache_tasks import AIResponseCache, alerts
from aicache_tasks.errors import StoreError
from aicache_tasks.reports.doctor import Case, examine
from aicache_tasks.reports.prometheus import RecordsCollector
from aicache_tasks.reports.spans import Span
from aicache_tasks.summaries import Summaries
from aicache_tasks.testing import EmbeddedServer
from tests.caches import live_cache
from tests.reported import calls, count_up, make_app, reader_of, send
from tests.rights import add_user, lines, url_for_a_store

DOCUMENT = Path(__file__).parent.parent / "docs" / "deployment.md"
ROLES = ["aicache-worker", "aicache-observer", "aicache-admin"]
SCAN = "look through all keys"
NOT_THEIRS = {
    "all keys": ("KEYS", "*"),
    "erase all": ("FLUSHALL",),
    "read the configuration": ("CONFIG", "GET", "*"),
    "change the configuration": ("CONFIG", "SET", "maxmemory", "1mb"),
    "read users": ("ACL", "LIST"),
    "another's key": ("MGET", "celery-task-meta-1"),
    "another namespace": ("MGET", "{other:s}:inbox"),
    "a namespace that begins like it": ("MGET", "{aicache2:s}:inbox"),
    "stop it": ("SHUTDOWN", "NOSAVE"),
    "watch others": ("MONITOR",),
    "see other clients": ("CLIENT", "LIST"),
    "copy a key": ("DUMP", "{aicache:s}:inbox"),
    SCAN: ("SCAN", "0"),
}

Login = Callable[..., str]


@pytest.fixture
def login(each_server: EmbeddedServer) -> Iterator[Login]:
    """Return a function that makes a user with a role's rights and returns the URL with its login."""
    made = []
    with each_server.client() as client:
        client.script_flush()

        def log_in(role: str) -> str:
            made.append(name := f"limited-{role}")
            add_user(client, name, role)
            return f"redis://{name}:any@127.0.0.1:{each_server.port}/0"

        yield log_in
        client.execute_command("ACL", "DELUSER", "nobody", *made)


@pytest.fixture
def limited(login: Login, each_server: EmbeddedServer) -> Iterator[Callable[[str], AIResponseCache]]:
    """Return a function that makes a cache with a role's rights; nothing is in the server yet, no script either."""
    made = []
    with each_server.client() as client:
        client.zadd("{aicache:s}:ends", {b"a process that ended": 1})

    def cache_of(role: str) -> AIResponseCache:
        made.append(cache := live_cache(login(role), {"aicache_memory_warning_bytes": 1}, ship=True))
        return cache

    yield cache_of
    for cache in made:
        cache.close()


def use_all(cache: AIResponseCache) -> None:
    """Do what workers, producers and the roll-up do; raise what the server refuses."""
    cache.cache_response("t", "shout", {}, "T", tags=["a"])
    cache.cache_response("u", "shout", {}, "U", tags=["a"], ttl="2h")
    assert cache.get_cached_response("t", "shout", {}, tags=["a"]) == "T"
    assert cache.invalidate("t", "shout", {}) is True
    cache.invalidate_by_tag("a")
    assert cache.get_cache_stats()["redis"]["status"] == "connected"
    assert cache.parts.outbox is not None
    assert cache.parts.outbox.flush(20.0)
    summaries = Summaries(cache.parts)
    assert summaries.roll_up().samples > 0
    assert [change.alert for change in alerts.changes(summaries)] == ["memory"]
    assert summaries.totals()["shout"].hits == 1
    assert len(summaries.workers()) == 1


def test_a_worker_may_do_what_workers_producers_and_the_rollup_do(limited: Callable[[str], AIResponseCache]) -> None:
    use_all(limited("aicache-worker"))


def test_an_operator_may_purge_too(limited: Callable[[str], AIResponseCache]) -> None:
    cache = limited("aicache-admin")
    use_all(cache)
    assert cache.purge() > 0


def test_a_worker_may_not_purge(limited: Callable[[str], AIResponseCache]) -> None:
    cache = limited("aicache-worker")
    cache.cache_response("t", "shout", {}, "T")
    with pytest.raises(StoreError, match="NOPERM"):
        cache.purge()
    assert cache.parts.outbox is not None
    cache.parts.outbox.flush(20.0)


def test_what_is_refused_costs_a_figure_and_no_answer(login: Login, each_server: EmbeddedServer) -> None:
    url = login("aicache-worker")
    with each_server.client() as client:
        client.execute_command("ACL", "SETUSER", "limited-aicache-worker", "-info", "-dbsize")
    cache = live_cache(url, {"aicache_memory_warning_bytes": 1}, ship=True)
    cache.cache_response("t", "shout", {}, "T")
    assert cache.get_cached_response("t", "shout", {}) == "T"
    assert cache.parts.outbox is not None
    assert cache.parts.outbox.flush(20.0)
    summaries = Summaries(cache.parts)
    assert summaries.roll_up().samples > 0
    assert list(alerts.changes(summaries)) == []
    assert cache.get_cache_stats()["redis"]["status"] != "connected"
    cache.close()


@pytest.mark.parametrize(("place", "right"), [("/1", "+select"), ("/0?client_name=web", "+client|setname")])
def test_a_url_that_says_more_takes_one_right_more(
    place: str, right: str, login: Login, each_server: EmbeddedServer
) -> None:
    url = login("aicache-worker").removesuffix("/0") + place
    assert not answers(url)
    with each_server.client() as client:
        client.execute_command("ACL", "SETUSER", "limited-aicache-worker", right)
    assert answers(url)
    assert f"`{right}`" in DOCUMENT.read_text()


def answers(url: str) -> bool:
    """Return whether a cache at *url* has what it stored."""
    cache = live_cache(url)
    cache.cache_response("t", "shout", {}, "T")
    answer = cache.get_cached_response("t", "shout", {})
    cache.close()
    return bool(answer == "T")


@pytest.fixture
def observed(login: Login, each_server: EmbeddedServer) -> Any:
    """An application with records, seen by one who may only look."""
    writer = make_app(each_server.url)
    now = reader_of(writer).now_s()
    count_up(writer, calls(60, [now - 90, now], ["shout", "condense"]))
    send(writer, calls(6, [now], ["shout"]))
    return make_app(login("aicache-observer"))


def test_an_observer_sees_all_figures(observed: Any) -> None:
    reader = reader_of(observed)
    live = reader.live()
    assert live.store is not None
    assert live.backlog.entries == 1
    assert {name for name in live.totals if name} == {"shout", "condense"}
    assert reader.merge(Span(reader.now_s() - 600, reader.now_s())).records
    up = {m.name: m for m in RecordsCollector(lambda: reader).collect()}["aicache_up"]
    assert up.samples[0].value == 1


def test_an_observer_reads_no_answer_and_writes_nothing(
    login: Login, each_server: EmbeddedServer, limited: Callable[[str], AIResponseCache]
) -> None:
    limited("aicache-worker").cache_response("t", "shout", {}, "T")
    with each_server.client() as client:
        (entry,) = [key for key in client.keys("{aicache:*") if b":v1:" in key]
    with EmbeddedServerClient(login("aicache-observer")) as observer:
        for refused in (("MGET", entry), ("SET", "{aicache:s}:x", "x"), ("UNLINK", entry), ("EVAL", "return 1", 0)):
            with pytest.raises(NoPermissionError):
                observer.execute_command(*refused)


class EmbeddedServerClient:
    """A plain client of a URL; a context manager."""

    def __init__(self, url: str) -> None:
        import redis

        self._client = redis.Redis.from_url(url, protocol=2)

    def __enter__(self) -> Any:
        return self._client

    def __exit__(self, *_: object) -> None:
        self._client.close()


FORBIDDEN = [(role, what) for role in ROLES for what in NOT_THEIRS if (role, what) != ("aicache-admin", SCAN)]
"""An operator's purge finds keys by SCAN."""


@pytest.mark.parametrize(("role", "what"), FORBIDDEN)
def test_none_of_them_may(role: str, what: str, login: Login) -> None:
    with EmbeddedServerClient(login(role)) as client, pytest.raises(NoPermissionError):
        client.execute_command(*NOT_THEIRS[what])


@pytest.mark.parametrize("words", [("MULTI",), ("PUBLISH", "x", "y"), ("SCRIPT", "LOAD", "return 1"), ("PING",)])
def test_a_store_under_test_lacks_what_celery_may_on_the_same_server(words: Any, each_server: EmbeddedServer) -> None:
    with EmbeddedServerClient(url_for_a_store(each_server)) as client, pytest.raises(NoPermissionError):
        client.execute_command(*words)


@pytest.mark.parametrize("role", ROLES)
def test_the_doctor_raises_no_false_alarm_for(
    role: str, login: Login, each_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aicache_tasks.reports.doctor.case.WORKERS_S", 0.05)
    plain = make_app(each_server.url)
    count_up(plain, calls(4, [reader_of(plain).now_s()], ["shout"]))
    assert worse(alarms(login(role)), alarms(each_server.url)) == []


def alarms(url: str) -> dict[str, str]:
    """Return what the doctor finds of each check that is not ok."""
    app = make_app(url)
    return {each.check: each.what for each in examine(Case(app, reader_of(app))) if each.level != "ok"}


def worse(under: dict[str, str], plain: dict[str, str]) -> list[str]:
    """Return what is found under a role only."""
    return [f"{check}: {what}" for check, what in under.items() if check not in plain]


def test_the_guide_says_the_same() -> None:
    said = DOCUMENT.read_text()
    for name, rules in lines().items():
        assert " ".join(["user", name, *rules]) in said
