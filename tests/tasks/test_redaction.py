"""No prompt and no answer where Celery shows tasks, and no password where it shows its configuration."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from celery import Celery, chord, group
from celery.signals import before_task_publish, import_modules

from aicache_tasks import CachedTask, install
from aicache_tasks.redaction import CANVAS, REDACTED, REQUEST, hides_arguments
from aicache_tasks.testing import EmbeddedServer
from tests.cluster.nodes import ROOT, WorkerProcess, wait_until
from tests.tasks.bench_tasks import LoneCelery

PASSWORD = "tell-nobody"
MODULE = "tests.tasks.redaction_worker"
TIMEOUT_S = 15


class Watch(NamedTuple):
    """A worker, the caller's app, and every event since the start."""

    app: Celery
    worker: WorkerProcess
    cache: EmbeddedServer
    events: list[dict[str, Any]]
    producer: Celery
    bare: Celery

    def inspect(self) -> Any:
        return self.app.control.inspect([self.worker.hostname], timeout=TIMEOUT_S)

    def of(self, result: Any, kind: str) -> dict[str, Any]:
        """Wait for the event of a kind that tells of *result*."""
        found = lambda: [e for e in list(self.events) if e["type"] == kind and e.get("uuid") == result.id]  # noqa: E731
        event: dict[str, Any] = wait_until(found, TIMEOUT_S, f"{kind} of {result.id}")[0]
        return event


@pytest.fixture(scope="module")
def cache_url() -> Iterator[tuple[EmbeddedServer, str]]:
    with EmbeddedServer() as cache:
        with cache.client() as client:
            client.config_set("requirepass", PASSWORD)
        yield cache, cache.url.replace("redis://", f"redis://:{PASSWORD}@")


@pytest.fixture(scope="module")
def watch(cache_url: tuple[EmbeddedServer, str]) -> Iterator[Watch]:
    cache, url = cache_url
    with EmbeddedServer() as queue, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_URL_WITH_PASSWORD", url)
        app = importlib.import_module(MODULE).app
        urls = {"broker_url": queue.url, "result_backend": queue.url}
        app.conf.update(urls)
        producer = install(Celery("producer", set_as_current=False))
        bare = Celery("bare", set_as_current=False)
        producer.conf.update(urls, task_send_sent_event=True)
        bare.conf.update(urls)
        worker = WorkerProcess(MODULE, queue.url, queue.url, concurrency=1, extra_args=["-E"]).start()
        with watching(app) as events:
            worker.ready()
            yield Watch(app, worker, cache, events, producer, bare)
            worker.close()
        for each in (app, producer, bare):
            each.AsyncResult.__del__ = lambda self: None
            each.close()


class watching:  # noqa: N801 - a context manager
    """Collects every event that goes over the broker of *app*."""

    def __init__(self, app: Celery) -> None:
        self._app, self.events = app, []
        self._connection = app.connection_for_read()
        self._receiver = app.events.Receiver(self._connection, handlers={"*": self.events.append})
        self._thread = threading.Thread(target=self._receiver.capture, kwargs={"limit": None, "wakeup": False})

    def __enter__(self) -> list[dict[str, Any]]:
        self._thread.start()
        wait_until(lambda: self._consuming(), TIMEOUT_S, "the events' queue")
        return self.events

    def __exit__(self, *error: object) -> None:
        self._receiver.should_stop = True
        self._thread.join(TIMEOUT_S)
        self._connection.release()

    def _consuming(self) -> bool:
        with self._app.connection_for_write() as connection:
            return bool(connection.default_channel.client.exists("_kombu.binding.celeryev"))


@pytest.fixture
def canary() -> str:
    return f"canary {uuid.uuid4().hex}"


def shows(watch: Watch, canary: str) -> list[str]:
    """Return the places where *canary* can be seen, in any case."""
    places: dict[str, Any] = {f"event {e['type']}": e for e in list(watch.events)}
    for event in list(watch.events):
        if canary.lower() in repr(event).lower():
            places[f"event {event['type']}"] = event
    places["worker log"] = watch.worker.logs()
    with watch.cache.client(password=PASSWORD) as client:
        places["cache keys"] = list(client.scan_iter(count=1000))
    inspect = watch.inspect()
    places |= {"active": inspect.active(), "reserved": inspect.reserved(), "stats": inspect.stats()}
    return [place for place, shown in places.items() if canary.lower() in repr(shown).lower()]


WAYS = {
    "delay": lambda watch, name, *args: watch.app.tasks[f"{MODULE}.{name}"].delay(*args),
    "signature": lambda watch, name, *args: watch.app.tasks[f"{MODULE}.{name}"].s(*args).apply_async(),
    "send_task": lambda watch, name, *args: watch.app.send_task(f"{MODULE}.{name}", args),
    "send_task, tasks unknown": lambda watch, name, *args: watch.producer.send_task(f"{MODULE}.{name}", args),
    "signature, tasks unknown": lambda watch, name, *args: watch.producer.signature(f"{MODULE}.{name}", args).delay(),
    "send_task, no install": lambda watch, name, *args: watch.bare.send_task(f"{MODULE}.{name}", args),
}


@pytest.mark.parametrize("way", WAYS)
def test_prompts_and_answers_show_nowhere(watch: Watch, canary: str, way: str) -> None:
    """F3"""
    for expected in ("miss", "hit"):
        result = WAYS[way](watch, "hidden", canary)
        assert result.get(timeout=TIMEOUT_S) == {"answer": canary.upper()}, expected
        received = watch.of(result, "task-received")
        assert (received["args"], received["kwargs"]) == (REDACTED, REDACTED)
        watch.of(result, "task-succeeded")
        if "no install" not in way:
            assert watch.of(result, "task-sent")["args"] == REDACTED
    assert shows(watch, canary) == []


CANVAS_WAYS = {
    "map": lambda task, text: task.map([text]).delay(),
    "starmap": lambda task, text: task.starmap([(text,)]).delay(),
    "chunks": lambda task, text: task.chunks([(text,)], 1)().results[0],
    "chunks, its task": lambda task, text: task.app.send_task("celery.chunks", (task.s(), [[(text,)]], 1)),
    "accumulate": lambda task, text: task.app.send_task("celery.accumulate", (text,)),
    "group": lambda task, text: group([task.s(text)])().results[0],
    "chord": lambda task, text: chord([task.s(text)], task.si(text))(),
    "chord_unlock": lambda task, text: task.app.send_task("celery.chord_unlock", ("id", task.si(text)), {"result": []}),
}


@pytest.mark.parametrize("way", CANVAS_WAYS)
def test_celery_s_own_tasks_show_no_prompt_that_they_carry(watch: Watch, canary: str, way: str) -> None:
    """F3"""
    result = CANVAS_WAYS[way](watch.app.tasks[f"{MODULE}.hidden"], canary)
    for kind in ("task-sent", "task-received"):
        event = watch.of(result, kind)
        assert (event["args"], event["kwargs"]) == (REDACTED, REDACTED)
    watch.of(result, "task-succeeded")
    assert shows(watch, canary) == []


def test_retries_and_failures_show_no_prompt(watch: Watch, canary: str) -> None:
    """F3"""
    retried = watch.app.tasks[f"{MODULE}.hidden_retry"].delay(canary)
    assert retried.get(timeout=TIMEOUT_S) == canary.upper()
    failed = watch.bare.send_task(f"{MODULE}.hidden_failure", (canary,))
    assert isinstance(failed.get(timeout=TIMEOUT_S, propagate=False), ValueError)
    watch.of(retried, "task-retried"), watch.of(retried, "task-succeeded"), watch.of(failed, "task-failed")
    assert shows(watch, canary) == []


def test_waiting_and_running_tasks_show_no_prompt_to_inspect(watch: Watch, canary: str) -> None:
    """F3"""
    gate = uuid.uuid4().hex
    call = ((canary,), {"gate": gate})
    results = [app.send_task(f"{MODULE}.hidden", *call) for app in (watch.app, watch.bare)]
    client = watch.app.backend.client
    wait_until(lambda: client.exists(f"{gate}:entered"), TIMEOUT_S, "the first body")
    inspect = watch.inspect()
    wait_until(lambda: sum(map(len, inspect.reserved().values())) == 1, TIMEOUT_S, "the second task")
    assert sum(map(len, inspect.active().values())) == 1
    assert shows(watch, canary) == []
    client.rpush(gate, 1, 1)
    assert [result.get(timeout=TIMEOUT_S) for result in results] == [{"answer": canary.upper()}] * 2


@pytest.mark.parametrize("name", ["shown", "plain"])
def test_a_task_that_does_not_redact_shows_what_a_stock_task_shows(watch: Watch, canary: str, name: str) -> None:
    result = watch.app.tasks[f"{MODULE}.{name}"].delay(canary)
    result.get(timeout=TIMEOUT_S)
    assert canary in watch.of(result, "task-sent")["args"]
    assert canary in watch.of(result, "task-received")["args"]
    assert canary.upper() in watch.of(result, "task-succeeded")["result"]
    assert "worker log" in shows(watch, canary)


def test_no_password_shows_in_the_worker_s_configuration_or_log(watch: Watch, canary: str) -> None:
    assert watch.app.tasks[f"{MODULE}.hidden"].delay(canary).get(timeout=TIMEOUT_S)
    with watch.cache.client(password=PASSWORD) as client:
        assert client.dbsize() > 0, "the worker used the cache with its password"
    inspect = watch.inspect()
    for with_defaults in (False, True):
        (conf,) = inspect.conf(with_defaults=with_defaults).values()
        assert conf["aicache_url"].startswith("redis://:********@127.0.0.1:")
        assert conf["redbeat_redis_url"] == conf["aicache_url"]
        assert PASSWORD not in repr(conf)
        assert "the secret of the keys" not in repr(conf)
    assert PASSWORD not in repr(inspect.stats()) + watch.worker.logs()


def test_no_password_shows_in_a_report(cache_url: tuple[EmbeddedServer, str]) -> None:
    environ = {**os.environ, "CACHE_URL_WITH_PASSWORD": cache_url[1], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", MODULE, "report"],
        env=environ, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert "aicache_url: 'redis://:********@" in done.stdout
    assert PASSWORD not in done.stdout + done.stderr
    assert "the secret of the keys" not in done.stdout + done.stderr


def test_an_address_that_celery_does_not_know_is_masked_where_it_is_shown_and_nowhere_else(
    lone: Callable[..., Celery],
) -> None:
    app = install(lone())
    app.conf.update(redbeat_redis_url=f"redis://celery:{PASSWORD}@broker:6379/0", aicache_url="memory://")
    import_modules.send(sender=app)
    assert app.conf.table()["redbeat_redis_url"] == "redis://celery:********@broker:6379/0"
    assert PASSWORD not in app.bugreport() + app.conf.humanize(with_defaults=True)
    assert app.conf.redbeat_redis_url == app.conf.table(censored=False)["redbeat_redis_url"]
    assert PASSWORD in app.conf.redbeat_redis_url
    assert not [name for name in app.conf if name == "table"]


def headers_of(send: Callable[[], Any]) -> list[str]:
    """Return how the arguments of what *send* sends look in the messages' headers."""
    seen: list[str] = []

    def note(headers: dict[str, Any], **_: Any) -> None:
        seen.append(headers["argsrepr"] + headers["kwargsrepr"])

    before_task_publish.connect(note, weak=False)
    try:
        send()
    finally:
        before_task_publish.disconnect(note)
    return seen


@pytest.fixture
def lone() -> Iterator[Callable[..., Celery]]:
    """Return a function that makes an application with no task but Celery's own."""
    apps: list[Celery] = []

    def make_one(**options: Any) -> Celery:
        app = LoneCelery("lone", broker="memory://", set_as_current=False, **options)
        for name in [name for name in app.tasks if not name.startswith("celery.")] if not options else []:
            del app.tasks[name]  # other tests' shared tasks
        apps.append(app)
        return app

    yield make_one
    for app in apps:
        app.close()


def test_the_canvas_tasks_hide_their_arguments_as_soon_as_a_task_does(lone: Callable[..., Celery], canary: str) -> None:
    app = install(lone())
    shown = app.task(base=CachedTask, cache={"redact": False}, name="shown")(body)
    assert canary in headers_of(lambda: shown.map([canary]).delay())[0]
    hides = app.task(base=CachedTask, cache={}, name="hides")(body)
    assert headers_of(lambda: hides.map([canary]).delay()) == [REDACTED * 2]
    for name in CANVAS:
        task = app.tasks[name]
        assert (task.redact_arguments, task.resultrepr_maxsize, task.Request) == (True, 0, REQUEST)
    assert not hides_arguments(app.tasks["celery.backend_cleanup"])


@pytest.mark.parametrize("finalized", ["before install", "after install"])
def test_the_canvas_tasks_hide_their_arguments_when_the_application_is_finalized(finalized: str) -> None:
    app = LoneCelery("final", broker="memory://", set_as_current=False)
    app.task(base=CachedTask, cache={}, name="hides")(body)
    if finalized == "before install":
        app.finalize()
    install(app)
    app.finalize()
    assert all(hides_arguments(app.tasks[name]) for name in CANVAS)
    app.close()


def test_a_send_by_name_does_not_finalize_the_application(lone: Callable[..., Celery], canary: str) -> None:
    app = install(lone(autofinalize=False))
    assert headers_of(lambda: app.send_task("of another process", (canary,))) == [REDACTED * 2]
    assert not app.finalized


def test_installing_twice_wraps_once() -> None:
    app = install(Celery("twice", set_as_current=False))
    once = app.send_task
    assert install(app).send_task is once


def test_a_task_s_own_sends_are_redacted_without_install(lone: Callable[..., Celery], canary: str) -> None:
    task = lone().task(base=CachedTask, cache={}, name="no-install")(body)
    assert headers_of(lambda: task.delay(canary)) == [REDACTED * 2]
    assert headers_of(lambda: task.s(text=canary).apply_async(argsrepr=canary)) == [REDACTED * 2]


def body(text: str) -> str:
    return text
