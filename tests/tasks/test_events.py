"""Which calls were answered from the cache, as monitors are told it; and no task's state changes by that."""

from __future__ import annotations

import ast
import logging
import os
import re
import signal
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.pool import EX_RECYCLE
from celery import Celery, states
from celery.events.event import Event
from celery.events.state import State
from flower.events import EventsState

from aicache_tasks import CachedTask, CachePolicy, installation
from aicache_tasks.calllog import CALLS
from aicache_tasks.events import DELAY_S, MOST_WAITING, CallEvents, Told, fields_of, type_of
from aicache_tasks.records import CallInfo
from aicache_tasks.redaction import REDACTED
from aicache_tasks.reports.flower import taskstate
from aicache_tasks.reports.flower.taskstate import guarded
from aicache_tasks.runtime import runtime_of
from aicache_tasks.testing import EmbeddedServer
from tests.cluster.nodes import WorkerProcess, wait_until
from tests.flower_process import FlowerProcess, conf_of_the_package, running
from tests.tasks.bench_tasks import LoneCelery
from tests.tasks.conftest import end
from tests.tasks.test_redaction import watching

MODULE = "tests.tasks.remote_worker"
TIMEOUT_S = 20
pytestmark = pytest.mark.timeout(180)  # two Flowers and a worker start
OURS = re.compile("task-cache-")
RETURNED = ("miss", "hit", "shown", "deep", "bypass", "slow", "retried")


class Watch(NamedTuple):
    """A worker that sends events, a Flower, one with the tab that started later, and every event since the start."""

    app: Celery
    worker: WorkerProcess
    flower: FlowerProcess
    tab: FlowerProcess
    events: list[dict[str, Any]]
    unknown: str
    """The call that ended just before the Flower with the tab was there."""

    def call(self, name: str, *args: Any, headers: Any = None, **kwargs: Any) -> str:
        """Call a task, wait for its end, and return its id."""
        result = self.send(name, *args, headers=headers, **kwargs)
        result.get(timeout=TIMEOUT_S, propagate=False)
        return str(result.id)

    def send(self, name: str, *args: Any, headers: Any = None, **kwargs: Any) -> Any:
        """Call a task and return its result."""
        return self.app.send_task(f"{MODULE}.{name}", args, kwargs, headers=headers)

    def of(self, task_id: str) -> list[str]:
        return [event["type"] for event in list(self.events) if event.get("uuid") == task_id]

    def told(self, task_id: str) -> dict[str, Any]:
        """Wait for the event that tells of a call."""
        found = lambda: [e for e in list(self.events) if e.get("uuid") == task_id and OURS.match(e["type"])]  # noqa: E731
        event: dict[str, Any] = wait_until(found, TIMEOUT_S, f"what is told of {task_id}: {self.of(task_id)}")[0]
        return event

    def shown(self, flower: FlowerProcess | None = None, **asked: str) -> dict[str, dict[str, Any]]:
        """Return the tasks that a Flower shows, by id."""
        found: dict[str, dict[str, Any]] = (flower or self.flower).get(f"/api/tasks?{urlencode(asked)}").json
        return found

    def once_it_is_watched(self) -> Self:
        """Wait until the Flower with the tab gets events."""
        with self.app.events.default_dispatcher(hostname="somebody@else") as dispatcher:

            def watches() -> bool:
                dispatcher.send("worker-heartbeat")
                return "somebody@else" in self.tab.get("/metrics").text

            wait_until(watches, TIMEOUT_S, "its receiver")
        return self

    def counted(self, kind: str, task: str = "shout", flower: FlowerProcess | None = None) -> float:
        """Return how many events of a task a Flower has counted."""
        found = re.findall(
            rf'^flower_events_total{{task="{MODULE}.{task}",type="{kind}",worker="{self.worker.hostname}"}} (.*)$',
            (flower or self.flower).get("/metrics").text,
            re.MULTILINE,
        )
        return float(found[0]) if found else 0.0


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    folder = tmp_path_factory.mktemp("events")
    (folder / "flowerconfig.py").write_text("")
    with EmbeddedServer() as queue, EmbeddedServer() as cache, queue.client() as client:
        urls = {"CELERY_BROKER_URL": queue.url, "CELERY_RESULT_BACKEND": queue.url, "AICACHE_URL": cache.url}
        start = partial(FlowerProcess, folder, environ=urls | {"FLOWER_UNAUTHENTICATED_API": "true"}, app=MODULE)
        flower = start(folder / "flowerconfig.py")
        worker = WorkerProcess(MODULE, *urls.values(), extra_args=["-E"], name="told").start()
        app = LoneCelery("caller", broker=queue.url, backend=queue.url, set_as_current=False)
        try:
            with watching(app) as events, running(flower), ExitStack() as stack:
                worker.ready()
                wait_until(lambda: client.scard("_kombu.binding.celeryev") == 2, TIMEOUT_S, "the receivers of events")
                with held_once_ended(app, worker, events) as unknown:
                    stack.enter_context(running(tab := start(conf_of_the_package())))
                    made = Watch(app, worker, flower, tab, events, unknown).once_it_is_watched()
                yield made
        finally:
            worker.close()
            end(app)


@contextmanager
def held_once_ended(app: Celery, worker: WorkerProcess, events: list[dict[str, Any]]) -> Iterator[str]:
    """Call a task, wait for its end, and hold up what is told of it; yield its id."""
    children = worker.child_pids()
    try:
        yield wait_until(lambda: ended_and_held(app, children, events), TIMEOUT_S, "a call that is not told of yet")
    finally:
        for child in children:
            os.kill(child, signal.SIGCONT)


def ended_and_held(app: Celery, children: list[int], events: list[dict[str, Any]]) -> str:
    """Call a task, and freeze *children* once it has ended; return its id, "" if it was told of before that."""
    task_id = str(app.send_task(f"{MODULE}.figures", (f"before Flower {uuid.uuid4()}",)).id)
    of = lambda: [event["type"] for event in list(events) if event.get("uuid") == task_id]  # noqa: E731
    for child in children:
        os.kill(child, signal.SIGCONT)
    wait_until(lambda: "task-succeeded" in of(), TIMEOUT_S, "the end")
    for child in children:
        os.kill(child, signal.SIGSTOP)
    return task_id if of()[-1] == "task-succeeded" else ""


@pytest.fixture(scope="module")
def calls(watch: Watch, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Call tasks that end in each way; return their ids once all is told."""
    slow_gate = tmp_path_factory.mktemp("gate") / "open"
    slow = watch.send("slow_end", str(slow_gate))
    made = {"slow": slow.id, "late": late(watch, tmp_path_factory.mktemp("gate") / "open")}
    slow_gate.touch()  # `late` kept the worker from telling of any end
    made |= {"miss": watch.call("shout", "text"), "hit": watch.call("shout", "text")}
    made["shown"] = watch.call("opened", "text", size=2)
    made["deep"] = watch.call("opened", "text", size=[{"a": [{"b": 1}]}])
    made["bypass"] = watch.call("shout", "text", headers={"aicache_directives": {"bypass": True}})
    again = {f"retried {number}": watch.send("again", f"text {number}") for number in range(4)}
    sent = again | {"retried": watch.send("again", "text"), "at once": watch.send("again", "text", countdown=0)}
    sent |= {name: watch.send(task, "text") for name, task in (("failed", "fails"), ("twice", "twice"), ("plain",) * 2)}
    for result in (slow, *sent.values()):
        result.get(timeout=TIMEOUT_S, propagate=False)
    made |= {name: str(result.id) for name, result in sent.items()}
    gate = tmp_path_factory.mktemp("gate") / "open"
    last = [str(watch.send("gated", str(gate)).id) for _ in range(2)]  # one in each of the two processes
    for task_id in last:
        wait_until(lambda task_id=task_id: "task-started" in watch.of(task_id), TIMEOUT_S, "the last calls")
    gate.touch()
    for task_id in (*(made[name] for name in (*RETURNED, *again)), *last):
        watch.told(task_id)
    for flower in (watch.flower, watch.tab):  # so that both have all that came before, too
        count = partial(watch.counted, "task-cache-miss", "gated", flower)
        wait_until(lambda count=count: count() == 3, TIMEOUT_S, "what Flower is told")
    return made


def late(watch: Watch, gate: Path) -> str:
    """Call a task whose worker is held up as it ends, until more than what is told of the call has come."""
    task_id = str(watch.send("gated", str(gate)).id)
    wait_until(lambda: "task-started" in watch.of(task_id), TIMEOUT_S, "the start")
    os.kill(watch.worker.pid, signal.SIGSTOP)
    try:
        gate.touch()
        watch.told(task_id)
        count = partial(watch.counted, "task-cache-miss", "gated")
        wait_until(lambda: count() == count(flower=watch.tab) == 1, TIMEOUT_S, "both Flowers")
        states_shown = [watch.shown(flower)[task_id]["state"] for flower in (watch.flower, watch.tab)]
    finally:
        os.kill(watch.worker.pid, signal.SIGCONT)
    assert watch.of(task_id)[-1] == "task-cache-miss"
    assert states_shown == ["CACHE-MISS", "STARTED"], "the tab keeps it until the end is told"
    wait_until(lambda: "task-succeeded" in watch.of(task_id), TIMEOUT_S, "the end")
    return task_id


def test_a_flower_with_the_tab_shows_no_call_before_its_task_s_end_is_told(watch: Watch, calls: dict[str, str]) -> None:
    """The wrong state of one without, see `late`, is mended by the end."""
    for flower in (watch.flower, watch.tab):
        wait_until(
            lambda flower=flower: calls["late"] in watch.shown(flower, search="kwargs:cache=miss", state="SUCCESS"),
            TIMEOUT_S,
            "the end",
        )
        assert calls["hit"] in watch.shown(flower, search="kwargs:cache=hit", state="SUCCESS")


def test_a_flower_with_the_tab_that_starts_after_a_task_s_end_counts_what_is_told_of_it_and_shows_no_task(
    watch: Watch, calls: dict[str, str]
) -> None:
    told = watch.told(watch.unknown)
    assert told["name"] == f"{MODULE}.figures"
    wait_until(lambda: watch.counted(told["type"], "figures", watch.tab) == 1, TIMEOUT_S, "the count")
    shown = watch.shown(watch.tab)
    assert watch.unknown not in shown
    assert calls["miss"] in shown
    assert {task["state"] for task in shown.values()} <= {"SUCCESS", "FAILURE", "RETRY"}


def test_a_call_is_told_of_once_after_its_task_has_ended(watch: Watch, calls: dict[str, str]) -> None:
    for name in RETURNED:
        types = watch.of(calls[name])
        assert types[-1] == f"task-cache-{name if name in ('hit', 'bypass') else 'miss'}"
        assert types[-2] == "task-succeeded"
        assert sum(map(bool, map(OURS.match, types))) == 1
    assert watch.of(calls["failed"])[-1] == "task-failed"
    for name in ("failed", "plain", "at once"):
        assert not any(map(OURS.match, watch.of(calls[name]))), name


def test_a_body_that_retries_and_returns_all_the_same_is_told_of_only_when_it_is_over(
    watch: Watch, calls: dict[str, str]
) -> None:
    types = watch.of(calls["twice"])
    assert types.count("task-succeeded") == 2
    ours = [number for number, kind in enumerate(types) if OURS.match(kind)]
    assert [types[:number].count("task-succeeded") for number in ours] == [2]


def test_an_event_says_how_it_went_and_hides_what_is_hidden(watch: Watch, calls: dict[str, str]) -> None:
    hit, shown = watch.told(calls["hit"]), watch.told(calls["shown"])
    assert hit["kwargs"] == "{'cache': 'hit', 'operation': 'shout', 'arguments': '<redacted>'}"
    assert shown["kwargs"] == "{'cache': 'miss', 'operation': 'open', 'size': 2}"
    assert (hit["cache"], hit["operation"], hit["hostname"]) == ("hit", "shout", watch.worker.hostname)
    assert "runtime" not in hit


def test_no_task_has_another_state_or_order_for_its_events(watch: Watch, calls: dict[str, str]) -> None:
    events = [event | {"local_received": event["timestamp"]} for event in list(watch.events)]
    ours, theirs = State(), State()
    for event in events:
        ours.event(dict(event))
        if not OURS.match(event["type"]):
            theirs.event(dict(event))
        shown = [task.state for task_id, task in ours.itertasks() if task_id != calls["late"]]
        assert not any("CACHE" in state for state in shown), watch.of(event["uuid"])
    assert {i: task.state for i, task in ours.itertasks()} == {i: task.state for i, task in theirs.itertasks()}
    assert {ours.tasks[calls[name]].state for name in RETURNED} == {"SUCCESS"}


def test_flower_s_filters_and_search_find_hits(watch: Watch, calls: dict[str, str]) -> None:
    ids = {calls[name] for name in RETURNED}
    wait_until(lambda: calls["hit"] in watch.shown(search="kwargs:cache=hit"), TIMEOUT_S, "Flower's events")
    assert ids <= set(watch.shown(state="SUCCESS"))
    assert {calls["failed"]} == set(watch.shown(state="FAILURE"))
    assert {task["state"] for task in watch.shown().values()} <= {"SUCCESS", "FAILURE", "RETRY"}
    assert set(watch.shown(search="kwargs:cache=hit")) == {calls["hit"]}
    assert {calls["miss"], calls["shown"], calls["retried"]} <= set(watch.shown(search="kwargs:cache=miss"))
    assert calls["shown"] in watch.shown(search="kwargs:size=2")
    assert set(watch.shown(search="kwargs:operation=open")) == {calls["shown"], calls["deep"]}
    page = watch.flower.get(f"/task/{calls['hit']}").text
    assert "&#x27;cache&#x27;: &#x27;hit&#x27;" in page or "&#39;cache&#39;: &#39;hit&#39;" in page
    assert "SUCCESS" in page


def test_flower_counts_hits_and_misses(watch: Watch, calls: dict[str, str]) -> None:
    kinds = ("task-cache-miss", "task-cache-hit", "task-cache-bypass")
    for flower in (watch.flower, watch.tab):
        wait_until(lambda flower=flower: [watch.counted(kind, flower=flower) for kind in kinds] == [1, 1, 1], TIMEOUT_S)
        assert watch.counted("task-succeeded", flower=flower) == 3


def test_flower_s_page_of_a_worker_has_the_cache_s_line(watch: Watch, calls: dict[str, str]) -> None:
    wait_until(lambda: line_in_flower(watch), TIMEOUT_S, "the line")
    page = watch.flower.get(f"/worker/{watch.worker.hostname}").text
    assert "aicache" in page
    assert "hit rate" in page


def line_in_flower(watch: Watch) -> bool:
    """Ask Flower, whose workers have a second for their answers, for the line."""
    reply = watch.flower.get(f"/api/workers?{urlencode({'refresh': 1, 'workername': watch.worker.hostname})}")
    workers = reply.json if reply.status == 200 else {}
    return "hits" in workers.get(watch.worker.hostname, {}).get("stats", {}).get("aicache", {})


@pytest.mark.soak
def test_no_state_changes_while_a_result_waits_for_its_backend_nor_where_a_task_is_terminated_as_it_ends(
    tmp_path: Path,
) -> None:
    with EmbeddedServer() as queue, EmbeddedServer() as backend, EmbeddedServer() as cache:
        worker = WorkerProcess(MODULE, queue.url, backend.url, cache.url, extra_args=["-E"], name="late").start()
        app = LoneCelery("caller", broker=queue.url, backend=backend.url, set_as_current=False)
        try:
            worker.ready()
            with watching(app) as events:

                def types(task_id: str) -> list[str]:
                    return [event["type"] for event in list(events) if event.get("uuid") == task_id]

                def sent_and_started(name: str, text: str) -> str:
                    task_id = str(app.send_task(f"{MODULE}.{name}", (text,)).id)
                    wait_until(lambda: "task-started" in types(task_id), TIMEOUT_S)
                    return task_id

                app.send_task(f"{MODULE}.shout", ("warm",)).get(timeout=TIMEOUT_S)
                backend.pause()
                try:
                    kept = sent_and_started("shout", "text")
                    time.sleep(DELAY_S + 1.5)
                    assert types(kept)[-1] == "task-started"
                finally:
                    backend.resume()
                wait_until(lambda: len(types(kept)) == 4, TIMEOUT_S)
                assert types(kept)[-2:] == ["task-succeeded", "task-cache-miss"]
                gone = sent_and_started("slow_end", str(tmp_path / "is never open"))
                time.sleep(0.5)  # the body has returned
                app.control.revoke(gone, terminate=True)
                wait_until(lambda: "task-revoked" in types(gone), TIMEOUT_S)
                time.sleep(DELAY_S + 1.5)
                assert types(gone)[-1] == "task-revoked"
                assert not any(map(OURS.match, types(gone)))
        finally:
            backend.resume()
            worker.close()
            end(app)


# What a monitor makes of an event, whatever state it has for the task.

ENDS = {"succeeded": states.SUCCESS, "failed": states.FAILURE}
LATER = {"received": states.RECEIVED, "started": states.STARTED, "retried": states.RETRY, "revoked": states.REVOKED}


def sent(kind: str, clock: int, **more: Any) -> Event:
    return Event(kind, hostname="w@h", uuid="id", clock=clock, pid=1, utcoffset=0, local_received=100.0 + clock, **more)


@pytest.mark.parametrize("ended", ENDS)
@pytest.mark.parametrize("status", ["hit", "miss", "refresh", "bypass", "error", "disabled", "joined", "stale"])
def test_a_task_that_has_ended_keeps_its_state_and_gets_the_fields(ended: str, status: str) -> None:
    state = State()
    for clock, kind in enumerate(("task-received", "task-started", f"task-{ended}")):
        state.event(sent(kind, clock, name="shout", args=REDACTED, kwargs=REDACTED, timestamp=100.0 + clock))
    told = Told(101.5, "id", "w@h", status, "shout", None)
    state.event(sent(type_of(status), 9, timestamp=told.at_s, **fields_of(told)))
    task = state.tasks["id"]
    assert (task.state, task.name, task.args) == (ENDS[ended], "shout", REDACTED)
    assert task.kwargs.startswith(f"{{'cache': '{status}'")
    assert getattr(task, ended) == 102.0


@pytest.mark.parametrize("before", LATER)
def test_an_event_that_comes_too_soon_is_mended_by_the_next(before: str) -> None:
    """Why nothing is told before a task has ended: and what happens if its worker was too busy to say so."""
    state = State()
    state.event(sent(f"task-{before}", 0, name="shout", timestamp=100.0))
    state.event(sent("task-cache-hit", 1, timestamp=101.0))
    state.event(sent("task-succeeded", 2, timestamp=102.0))
    assert state.tasks["id"].state == states.SUCCESS


def test_what_is_told_of_a_task_that_a_monitor_does_not_know_is_taken_for_its_state() -> None:
    """What `aicache_tasks.reports.flower.taskstate` is for."""
    state = State()
    state.event(sent("task-cache-hit", 1, timestamp=101.0))
    assert state.tasks["id"].state == "CACHE-HIT"


# What the tab's Flower makes of it.


class Shown:
    """Flower's state with the guard of the tab."""

    def __init__(self) -> None:
        class Guarded(EventsState):  # type: ignore[misc]
            pass

        self.kept: OrderedDict[str, Any] = OrderedDict()
        Guarded.event = guarded(EventsState.event, self.kept)
        self.state, self._clock = Guarded(max_tasks_in_memory=100), 0

    def gets(self, kind: str, task_id: str = "id", **more: Any) -> str | None:
        """Take an event; return the task's state."""
        self._clock += 1
        self.state.event(sent(kind, self._clock, timestamp=100.0 + self._clock, **more) | {"uuid": task_id})
        task = self.state.tasks.get(task_id)
        return None if task is None else task.state

    def once_it_is_watched(self) -> Self:
        """Wait until the Flower with the tab gets events."""
        self.tab.wait()
        with self.app.events.default_dispatcher(hostname="somebody@else") as dispatcher:

            def watches() -> bool:
                dispatcher.send("worker-heartbeat")
                return "somebody@else" in self.tab.get("/metrics").text

            wait_until(watches, TIMEOUT_S, "its receiver")
        return self

    def counted(self, kind: str) -> int:
        return int(self.state.counter["w@h"][kind])


TOLD = {"kwargs": "{'cache': 'hit'}", "cache": "hit", "name": "shout"}


@pytest.mark.parametrize("before", [(), ("received",), ("received", "started"), ("received", "started", "retried")])
@pytest.mark.parametrize(("end", "state"), ENDS.items())
def test_the_tab_s_flower_keeps_what_is_told_until_the_task_has_ended(
    before: tuple[str, ...], end: str, state: str
) -> None:
    shown = Shown()
    known = [shown.gets(f"task-{kind}", name="shout", kwargs=REDACTED) for kind in before]
    assert shown.gets("task-cache-hit", **TOLD) == (known[-1] if known else None)
    assert shown.counted("task-cache-hit") == 1
    assert shown.gets(f"task-{end}", name="shout") == state
    assert shown.state.tasks["id"].kwargs == TOLD["kwargs"]
    assert shown.counted("task-cache-hit") == 1
    assert not shown.kept


def test_the_tab_s_flower_shows_nothing_of_a_task_that_was_revoked() -> None:
    shown = Shown()
    shown.gets("task-revoked", name="shout")
    assert shown.gets("task-cache-hit", **TOLD) == states.REVOKED


def test_what_the_tab_s_flower_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taskstate, "MOST_KEPT", 3)
    shown = Shown()
    for number in range(5):
        shown.gets("task-cache-hit", f"id {number}", **TOLD)
    assert list(shown.kept) == ["id 2", "id 3", "id 4"]
    assert not shown.state.tasks


# The thread.


class Dispatcher:
    """Takes events as Celery's does, of an application that is none."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, str, dict[str, Any]]] = []
        self.error: Exception | None = None
        self.events = SimpleNamespace(default_dispatcher=lambda hostname: self)

    def __enter__(self) -> Self:
        if self.error is not None:
            raise self.error
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def send(self, kind: str, **fields: Any) -> None:
        self.sent.append((time.time(), kind, fields))


@pytest.mark.parametrize(("task_events", "part", "tells"), [(True, 1, True), (False, 1, False), (True, 0, False)])
def test_only_a_worker_that_sends_events_tells_of_calls(
    make: Callable[..., Celery], task_events: bool, part: float, tells: bool
) -> None:
    app = make(aicache_event_sample=part)
    app.task(base=CachedTask, cache=CachePolicy(operation="tells"), name="tells")(upper)
    (step,) = [step for step in app.steps["worker"] if step.name == "aicache"]
    step(SimpleNamespace(app=app, steps=[], task_events=task_events))
    assert (runtime_of(app).events is not None) == tells


def request(number: int = 0, **more: Any) -> Any:
    given = {"id": f"id {number}", "hostname": "w@h", "is_eager": False, "kwargsrepr": "{}", "retries": 0, "eta": None}
    return SimpleNamespace(**given | more)


def tell_of(events: CallEvents, request: Any) -> None:
    """Do what a hidden call does, and then Celery at the end of its task."""
    events.note(request, info(), hidden=True)
    events.ended(request, states.SUCCESS)


def info(status: str = "hit") -> CallInfo:
    return CallInfo(status, "", "shout", "key")


def test_events_go_in_order_and_not_before_their_delay() -> None:
    app = Dispatcher()
    events = CallEvents(app, 1.0)
    assert events._delay_s == DELAY_S
    events._delay_s = 0.3
    for number in range(50):
        tell_of(events, request(number))
    wait_until(lambda: len(app.sent) == 50, TIMEOUT_S)
    assert [fields["uuid"] for _, _, fields in app.sent] == [f"id {number}" for number in range(50)]
    assert all(at_s - fields["timestamp"] >= 0.3 for at_s, _, fields in app.sent)
    events.end(tell=True)


def test_calls_of_nobody_are_not_told_of() -> None:
    events = CallEvents(Dispatcher(), 1.0)
    tell_of(events, request(id=None))
    tell_of(events, request(is_eager=True))
    tell_of(events, request(retries=1))
    assert not events._waiting


def test_nothing_is_told_before_its_task_has_ended() -> None:
    events = CallEvents(Dispatcher(), 1.0)
    events._attend = lambda: None  # type: ignore[method-assign]
    slow = request()
    events.note(slow, info(), hidden=True)
    assert not events._waiting
    began_s = time.time()
    events.ended(slow, states.SUCCESS)
    assert [told.at_s >= began_s for told in events._waiting] == [True]
    events.ended(slow, states.SUCCESS)
    assert len(events._waiting) == 1, "once"


@pytest.mark.parametrize("state", [states.RETRY, "IGNORED", states.REJECTED, None])
def test_a_task_that_has_not_ended_is_not_told_of(state: str | None) -> None:
    events = CallEvents(Dispatcher(), 1.0)
    one = request()
    events.note(one, info(), hidden=True)
    events.ended(one, state)
    assert not events._waiting


def test_a_task_that_its_handler_takes_down_is_not_told_of() -> None:
    events = CallEvents(Dispatcher(), 1.0)
    one = request()
    events.note(one, info(), hidden=True)
    with pytest.raises(SystemExit):
        try:
            raise SystemExit
        finally:
            events.ended(one, states.SUCCESS)  # as Celery sends its signal
    assert not events._waiting


def test_a_part_of_the_calls_is_told_of() -> None:
    events = CallEvents(Dispatcher(), 0.25)
    events._attend = lambda: None  # type: ignore[method-assign] # no thread: nothing goes
    for _ in range(4000):
        tell_of(events, request())
    assert 800 < len(events._waiting) < 1200


def test_what_waits_is_bounded() -> None:
    events = CallEvents(Dispatcher(), 1.0)
    events._attend = lambda: None  # type: ignore[method-assign]
    for number in range(MOST_WAITING + 10):
        tell_of(events, request(number))
    assert len(events._waiting) == MOST_WAITING
    assert events._waiting[0].task_id == "id 10"


@pytest.mark.parametrize("tell", [True, False])
def test_a_process_that_ends_tells_at_once_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tell: bool) -> None:
    monkeypatch.setattr("aicache_tasks.events._END_S", float(TIMEOUT_S))
    app = Dispatcher()
    events = CallEvents(app, 1.0)
    events._delay_s = 600.0
    for number in range(3):
        tell_of(events, request(number))
    began_s = time.monotonic()
    events.end(tell=tell)
    assert time.monotonic() - began_s < TIMEOUT_S
    assert len(app.sent) == (3 if tell else 0)
    assert events._thread is not None
    events._thread.join(TIMEOUT_S)
    assert not events._thread.is_alive()


def refused(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def limited_before(thread: threading.Thread) -> None:
    raise SoftTimeLimitExceeded


def limited_after(thread: threading.Thread, start: Callable[[Any], None] = threading.Thread.start) -> None:
    start(thread)
    raise SoftTimeLimitExceeded


@pytest.mark.parametrize("start", [refused, limited_before, limited_after])
def test_a_process_that_could_not_start_its_thread_for_once_tells_of_all_calls_with_the_next(
    monkeypatch: pytest.MonkeyPatch, start: Callable[..., None]
) -> None:
    app = Dispatcher()
    events = CallEvents(app, 1.0)
    events._delay_s = 0.05
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with nullcontext() if start is refused else pytest.raises(SoftTimeLimitExceeded):
            tell_of(events, request(0))
    tell_of(events, request(1))
    wait_until(lambda: len(app.sent) == 2, TIMEOUT_S)
    events.end(tell=True)


def test_a_soft_limit_that_ends_the_waking_of_the_thread_leaves_it_to_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = Dispatcher()
    events = CallEvents(app, 1.0)
    events._delay_s = 0.05
    with monkeypatch.context() as patch:
        patch.setattr(events._wake, "set", partial(limited_before, threading.current_thread()))
        with pytest.raises(SoftTimeLimitExceeded):
            tell_of(events, request(0))
    tell_of(events, request(1))
    wait_until(lambda: len(app.sent) == 2, TIMEOUT_S)
    events.end(tell=True)


def test_a_child_that_is_recycled_sends_its_samples_whatever_becomes_of_its_events(
    make: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, flushed = runtime_of(make()), []
    runtime.send_events()
    assert runtime.events is not None
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        tell_of(runtime.events, request())
    monkeypatch.setattr(installation, "flush_all", lambda **how: flushed.append(how))
    installation._send_the_last(EX_RECYCLE)
    monkeypatch.setattr(runtime.events, "end", lambda *, tell: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        installation._send_the_last(EX_RECYCLE)
    assert flushed == [{"last": True}] * 2


def test_a_worker_that_has_said_good_bye_tells_of_no_call() -> None:
    events = CallEvents(Dispatcher(), 1.0)
    events.end(tell=False)
    tell_of(events, request())
    assert events._thread is None


def test_a_broker_that_is_away_is_warned_of_once_and_used_again(caplog: pytest.LogCaptureFixture) -> None:
    app = Dispatcher()
    app.error = ConnectionError("canary")
    events = CallEvents(app, 1.0)
    events._delay_s = 0.05
    for number in range(3):
        tell_of(events, request(number))
        wait_until(lambda: not events._waiting, TIMEOUT_S)
        time.sleep(0.06)
    app.error = None
    tell_of(events, request(9))
    wait_until(lambda: app.sent, TIMEOUT_S)
    assert [record.getMessage() for record in caplog.records] == ["aicache: events of calls are lost: ConnectionError"]
    events.end(tell=True)


def test_many_threads_lose_no_event() -> None:
    app = Dispatcher()
    events = CallEvents(app, 1.0)
    events._delay_s = 0.01

    def add(first: int) -> None:
        for number in range(first, first + 500):
            tell_of(events, request(number))
            if number % 50 == 0:
                time.sleep(0.02)  # so that the thread falls asleep in between

    threads = [threading.Thread(target=add, args=(first,)) for first in range(0, 2000, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(app.sent) == 2000, TIMEOUT_S)
    assert len({fields["uuid"] for _, _, fields in app.sent}) == 2000
    events.end(tell=True)


UNREADABLE = [
    "{{}}",
    "{[]: 1}",
    "{'text': 'x...",
    "{'a': object()}",
    "[1]",
    "{...}",
    "(" * 5000,
    "{'when': datetime.datetime(2026, 1, 1, 0, 0), 'price': Decimal('1.5')}",
    "{'x': inf}",
    "{'x': 1e999}",
    "{'messages': [{'role': 'user', 'content': [...]}]}",
]


@pytest.mark.parametrize("shown", UNREADABLE)
def test_arguments_that_nobody_could_read_again_are_shown_as_a_text(shown: str) -> None:
    told = fields_of(Told(0.0, "id", "w@h", "hit", "shout", shown))["kwargs"]
    assert ast.literal_eval(told) == {"cache": "hit", "operation": "shout", "arguments": shown}, "as Flower reads it"


def test_a_task_s_own_argument_does_not_cover_what_is_told() -> None:
    told = fields_of(Told(0.0, "id", "w@h", "hit", "shout", "{'cache': 'mine', 'size': 2}"))
    assert told["kwargs"] == "{'cache': 'hit', 'operation': 'shout', 'size': 2}"


# The log.


@pytest.fixture
def shout(make: Callable[..., Celery]) -> Any:
    return make().task(base=CachedTask, cache=CachePolicy(operation="log-shout"), name="log-shout")(upper)


def upper(text: str) -> str:
    if text == "fail":
        raise ValueError("fails")
    return text.upper()


def test_each_call_is_one_record_at_debug(shout: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, CALLS.name)
    shout("canary"), shout("canary"), shout.with_cache(bypass=True)("canary")
    with pytest.raises(ValueError, match="fails"):
        shout("fail")
    with pytest.raises(Exception, match="no entry"):
        shout.with_cache(only_if_cached=True)("none")
    shout.apply(("canary",), task_id="my id")
    said = [record.aicache for record in caplog.records if record.name == CALLS.name]  # type: ignore[attr-defined]
    assert [(one["status"], one["set_status"], one["set_reason"]) for one in said] == [
        ("miss", "success", ""),
        ("hit", "", ""),
        ("bypass", "", ""),
        ("miss", "skipped", "body_failed"),
        ("miss", "", ""),
        ("hit", "", ""),
    ]
    assert {one["task"] for one in said} == {"log-shout"}
    assert said[-1]["task_id"] == "my id"
    assert said[0]["compute_ms"] > 0
    assert "canary" not in caplog.text.lower() + repr(said).lower()


def test_no_call_is_logged_above_debug(shout: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, CALLS.name)
    shout("a"), shout("a")
    assert [record for record in caplog.records if record.name == CALLS.name] == []
