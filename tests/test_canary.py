"""A prompt and its answer, sent every way there is, and looked for everywhere that people look."""

from __future__ import annotations

import base64
import itertools
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from celery import Celery, chain, chord, group
from celery.bin.base import CLIContext
from click.testing import CliRunner

from aicache_tasks import install
from aicache_tasks.errors import KeyEncodingError, StoreError
from aicache_tasks.reports.cli import COMMANDS, aicache
from aicache_tasks.runtime import reset_runtime, runtime_of
from aicache_tasks.summaries import Summaries
from aicache_tasks.testing import EmbeddedServer
from tests import canary_worker
from tests.cluster.nodes import WorkerProcess, wait_until
from tests.flower_process import FlowerProcess, conf_of_the_package, running
from tests.tasks.test_redaction import watching

MODULE = "tests.canary_worker"
TIMEOUT_S = 20
CANARY = f"canary{uuid.uuid4().hex}"
INSPECT = (
    "active", "reserved", "scheduled", "revoked", "stats", "conf", "registered", "active_queues", "report",
    "cache_stats", "cache_policy",
)  # fmt: skip
PAGES = ("/", "/workers", "/tasks", "/broker", "/aicache", "/metrics", "/api/tasks", "/api/workers?refresh=1",
         "/api/queues/length", "/api/task/types", "/api/aicache?span=1h", "/api/aicache?span=all")  # fmt: skip
DOWNLOADS = re.compile(r'href="([^"]*(?:csv|json)[^"]*)"')


class Aviary(NamedTuple):
    """A worker, a Flower, every event, and the callers' applications."""

    app: Celery
    bare: Celery
    worker: WorkerProcess
    flower: FlowerProcess
    cache: EmbeddedServer
    queue: EmbeddedServer
    events: list[dict[str, Any]]
    folder: Path

    def task(self, name: str) -> Any:
        return self.app.tasks[f"{MODULE}.{name}"]

    def end_of(self, *results: Any) -> list[Any]:
        return [result.get(timeout=TIMEOUT_S, propagate=False) for result in results]

    def inspect(self, command: str, **arguments: Any) -> Any:
        return self.app.control.broadcast(command, arguments, reply=True, timeout=TIMEOUT_S, limit=1)

    def run(self, *arguments: str) -> str:
        done = CliRunner().invoke(aicache, list(arguments), obj=CLIContext(self.app, no_color=True, workdir=None))
        assert done.exit_code in (0, 1, 3), (arguments, done.output, done.exception)
        return done.output


@pytest.fixture(scope="module")
def aviary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aviary]:
    folder = tmp_path_factory.mktemp("canary")
    with EmbeddedServer() as queue, EmbeddedServer() as cache:
        urls = {"CELERY_BROKER_URL": queue.url, "CELERY_RESULT_BACKEND": queue.url, "AICACHE_URL": cache.url}
        environ = urls | {"FLOWER_UNAUTHENTICATED_API": "true"}
        flower = FlowerProcess(folder, conf_of_the_package(), environ=environ, app=MODULE)
        worker = WorkerProcess(MODULE, *urls.values(), concurrency=4, extra_args=["-E"], name="canary").start()
        app, bare = canary_worker.app, Celery("bare", set_as_current=False)
        config = {"broker_url": queue.url, "result_backend": queue.url}
        app.conf.update(config, aicache_url=cache.url)
        bare.conf.update(config)
        reset_runtime(app)
        try:
            with watching(app) as events, running(flower):
                worker.ready()
                yield Aviary(app, bare, worker, flower, cache, queue, events, folder)
        finally:
            worker.close()
            runtime_of(app).close()
            for each in (app, bare):
                each.AsyncResult.__del__ = lambda self: None
                each.close()


@pytest.fixture(scope="module")
def flown(aviary: Aviary) -> Iterator[Aviary]:
    """Send the canary every way; two calls still run and one waits for its time meanwhile."""
    task, numbers = aviary.task, itertools.count()
    text = lambda: f"{CANARY} {next(numbers)}"  # noqa: E731
    answer = task("answer")
    again = text()
    for send in (
        lambda: answer.delay(again), lambda: answer.delay(again),
        lambda: aviary.app.send_task(f"{MODULE}.answer", (text(),), {"extra": text(), CANARY: 1}),
        lambda: aviary.bare.send_task(f"{MODULE}.answer", kwargs={"text": text()}),
        lambda: answer.with_cache(bypass=True).delay(text()),
        lambda: answer.with_cache(only_if_cached=True).delay(text()),
        lambda: answer.with_cache(refresh=True).delay(again), lambda: task("retries").delay(text()),
        lambda: task("fails").delay(text()), lambda: chain(task("retries").s(text()), answer.s())(),
        lambda: group([answer.s(text()), answer.s(text())])().results[1],
        lambda: chord([answer.s(text()), task("retries").s(text())], answer.si(text()))(),
        lambda: answer.map([text()]).delay(),
        *(lambda name=name: task(name).delay(text()) for name in ("varies", "tenants", "validates", "stores_if")),
    ):  # fmt: skip
        aviary.end_of(send())
    damage(aviary)
    aviary.end_of(answer.delay(again), answer.delay(again))
    later = answer.apply_async((text(),), countdown=300)
    held = [task("waits").delay(text(), "gate") for _ in range(2)]
    summaries = Summaries(runtime_of(aviary.app).cache.parts)
    wait_until(lambda: not summaries.backlog().entries or summaries.roll_up(), TIMEOUT_S, "a roll-up")
    told = {"task-cache-hit", "task-cache-miss", "task-cache-bypass", "task-cache-refresh"}
    wait_until(lambda: told <= {event["type"] for event in list(aviary.events)}, TIMEOUT_S, "what is told of calls")
    for command in ("active", "scheduled"):
        wait_until(lambda command=command: MODULE in repr(aviary.inspect(command)), TIMEOUT_S, f"{command} tasks")
    yield aviary
    later.revoke()
    with aviary.queue.client() as client:
        client.rpush("gate", 1, 1)
    assert all(map(found_in, aviary.end_of(*held))), "they waited until now"


def damage(aviary: Aviary) -> None:
    """Cut every entry short."""
    with aviary.cache.client() as client:
        for key in client.scan_iter("*:v1:*", count=1000):
            client.setrange(key, 40, b"\xff" * 30)


def found_in(shown: Any) -> bool:
    text = shown if isinstance(shown, str) else repr(shown)
    return CANARY in text.lower()


def test_the_canary_sings_where_it_may(flown: Aviary) -> None:
    """Else a search that finds nothing would prove nothing."""
    with flown.queue.client() as client:
        results = [client.get(key) for key in client.scan_iter("celery-task-meta-*", count=1000)]
    assert sum(map(found_in, [result.decode() for result in results])) > 10
    kinds = ("sent", "received", "succeeded", "retried", "failed", "cache-miss", "cache-hit")
    told = {f"task-{kind}" for kind in kinds}
    wait_until(lambda: told <= {event["type"] for event in list(flown.events)}, TIMEOUT_S, "an event of each kind")
    for said in (
        "aicache.corrupt",
        "aicache.bypass",
        "vary=, tenant= or tags=",
        "store_if= raised",
        "aicache.call hit",
    ):
        assert said in flown.worker.logs(), said


def test_not_in_events(flown: Aviary) -> None:
    assert [event["type"] for event in flown.events if found_in(event)] == []


def test_not_in_the_worker_s_log(flown: Aviary) -> None:
    assert [line for line in flown.worker.logs().splitlines() if found_in(line)] == []


@pytest.mark.parametrize("command", INSPECT)
def test_not_in_what_workers_answer(flown: Aviary, command: str) -> None:
    answer = flown.inspect(command)
    assert answer, command
    assert not found_in(answer)
    if command in ("active", "scheduled"):
        assert MODULE in repr(answer), "it did have something to show"


def test_not_in_an_inspected_task(flown: Aviary) -> None:
    ids = [event["uuid"] for event in flown.events if event["type"] == "task-received"]
    answer = flown.inspect("query_task", ids=ids)
    assert MODULE in repr(answer)
    assert not found_in(answer)


def test_not_in_flower(flown: Aviary) -> None:
    tasks = flown.flower.get("/api/tasks").json
    assert len(tasks) > 15
    pages = [*PAGES, f"/worker/{quote(flown.worker.hostname)}"]
    pages += [path for task_id in tasks for path in (f"/task/{task_id}", f"/api/task/info/{task_id}")]
    replies = {page: flown.flower.get(page) for page in pages}
    assert {page: reply.status for page, reply in replies.items() if reply.status != 200} == {}
    assert [page for page, reply in replies.items() if found_in(reply.text) or found_in(str(reply.headers))] == []
    assert "answer" in replies["/api/aicache?span=1h"].text, "the tab has its figures"
    assert "aicache_lookups_total" in replies["/metrics"].text


def test_not_in_redis_but_in_the_answers_themselves(flown: Aviary) -> None:
    with flown.cache.client() as client:
        keys = list(client.scan_iter(count=1000))
        assert not found_in(keys)
        shown = [key for key in keys if b":v1:" not in key and found_in(dump(client, key).decode("latin-1"))]
    assert len(keys) > 20
    assert shown == []


def dump(client: Any, key: bytes) -> bytes:
    kind = client.type(key)
    if kind == b"hash":
        return b" ".join(itertools.chain(*client.hgetall(key).items()))
    if kind == b"list":
        return b" ".join(client.lrange(key, 0, -1))
    if kind == b"zset":
        return b" ".join(client.zrange(key, 0, -1))
    return bytes(client.get(key))


def test_not_in_what_the_command_shows(flown: Aviary) -> None:
    """Tags of a call that somebody explains are made of what he types: this task has none."""
    name, *call = f"{MODULE}.validates", "--args", json.dumps([f"{CANARY} 0"])
    html, lines = flown.folder / "report.html", flown.folder / "records.jsonl"
    outputs = {
        "stats": flown.run("stats"), "stats --json": flown.run("stats", "--json"),
        "summaries": flown.run("summaries", "--since", "1h", "--json"), "top": flown.run("top", "--by", "lookups"),
        "rollup": flown.run("rollup", "--dry-run"), "purge": flown.run("purge"),
        "peek": flown.run("peek", name, *call), "explain": flown.run("explain", name, *call),
        "export": flown.run("export", "--output", str(lines)), "doctor": flown.run("doctor"),
        "report": flown.run("report", "--html", str(html)),
        "invalidate": flown.run("invalidate", name, "--args", json.dumps([f"{CANARY} none"]), "--yes"),
    }  # fmt: skip
    assert set(COMMANDS) - {key.split()[0] for key in outputs} == {"metrics"}, "Flower's /metrics has the same"
    assert [name for name, text in outputs.items() if found_in(text)] == []
    assert MODULE in html.read_text()
    assert MODULE in lines.read_text()
    assert not found_in(html.read_text())
    assert not found_in(lines.read_text())


def upper(text: str, options: Any = None) -> str:
    return text.upper()


def test_not_in_errors(flown: Aviary, refused_url: str, caplog: pytest.LogCaptureFixture) -> None:
    app = install(Celery("errors", broker="memory://", backend="cache+memory://", set_as_current=False))
    app.conf.update(aicache_url=refused_url, aicache_samples="off")
    task = app.task(base=canary_worker.CachedTask, cache=canary_worker.POLICY, name="err", shared=False)(upper)
    with pytest.raises(StoreError) as unanswered:
        task.cache.invalidate(CANARY)
    with pytest.raises(KeyEncodingError) as unkeyed:
        task.cache.key(CANARY, options={"deep": [{f"Dear {CANARY}": object()}]})
    assert task(CANARY) == CANARY.upper()
    for error in (unanswered.value, unkeyed.value):
        assert not found_in(f"{error} {error!r} {error.__cause__!r}")
    assert not found_in(caplog.text)
    app.close()


# What Celery itself shows, as docs/operations.md lists it. If one of these fails, Celery has mended it: say so there.


def exposed(flown: Aviary, name: str) -> str:
    """Send a canary of its own to a task whose exception quotes it, and return it once the task has failed."""
    own = f"{CANARY[::-1]}-{name}"
    result = flown.task("quotes").delay(own)
    assert own in str(result.get(timeout=TIMEOUT_S, propagate=False))
    told = lambda: [e for e in list(flown.events) if e["type"] == "task-failed" and own in repr(e)]  # noqa: E731
    wait_until(told, TIMEOUT_S, "the event of a failed task")
    return own


def test_celery_shows_the_exception_of_a_body_that_quotes_its_text(flown: Aviary) -> None:
    own = exposed(flown, "log")
    wait_until(lambda: own in flown.worker.logs(), TIMEOUT_S)


def test_celery_keeps_answers_in_its_result_backend_and_flower_s_api_fetches_them(flown: Aviary) -> None:
    result = flown.task("answer").delay(f"{CANARY[::-1]} result")
    flown.end_of(result)
    assert CANARY[::-1].upper() in flown.flower.get(f"/api/task/result/{result.id}").text


def test_celery_keeps_texts_in_its_messages(flown: Aviary) -> None:
    flown.app.send_task(f"{MODULE}.answer", (f"{CANARY[::-1]} waits",), queue="nobody's")
    with flown.queue.client() as client:
        (message,) = client.lrange("nobody's", 0, -1)
    headers, body = json.loads(message)["headers"], base64.b64decode(json.loads(message)["body"]).decode()
    assert CANARY[::-1] in body
    assert CANARY[::-1] not in repr(headers)


def test_celery_shows_the_sends_of_a_producer_without_install(flown: Aviary) -> None:
    flown.bare.conf.task_send_sent_event = True
    result = flown.bare.send_task(f"{MODULE}.answer", (f"{CANARY[::-1]} bare",))
    flown.end_of(result)
    sent = lambda: [e for e in list(flown.events) if e["type"] == "task-sent" and e["uuid"] == result.id]  # noqa: E731
    assert CANARY[::-1] in wait_until(sent, TIMEOUT_S)[0]["args"]


def test_celery_shows_the_message_of_a_task_that_its_worker_does_not_know(flown: Aviary) -> None:
    flown.app.send_task("nobody knows me", (f"{CANARY[::-1]} unknown",))
    wait_until(lambda: f"{CANARY[::-1]} unknown" in flown.worker.logs(), TIMEOUT_S)


def test_celery_shows_the_message_of_a_serializer_that_its_worker_does_not_accept(flown: Aviary) -> None:
    flown.task("answer").apply_async((f"{CANARY[::-1]} pickled",), serializer="pickle")
    wait_until(lambda: f"{CANARY[::-1]} pickled" in flown.worker.logs(), TIMEOUT_S)


def test_celery_s_own_debug_log_shows_messages(flown: Aviary) -> None:
    program = (
        "import logging, celery.concurrency.base as base; logging.basicConfig(level='DEBUG');"
        f"base.logger.setLevel('DEBUG'); pool = base.BasePool(); pool._does_debug = True;"
        f"pool.on_apply = lambda *a, **k: None; pool.apply_async(print, ('{CANARY}',))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert CANARY in done.stderr
