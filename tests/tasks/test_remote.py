"""What workers answer, and do, when they are asked from afar."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from celery import Celery

from aicache_tasks import CachedTask, CachePolicy, install
from aicache_tasks.errors import StoreUnavailable
from aicache_tasks.mode import EVERY_S
from aicache_tasks.recordstore import Backlog
from aicache_tasks.reports.inspect import LIMIT_S, Snapshot, snapshot_of
from aicache_tasks.reports.pulse import Beat, Pulse
from aicache_tasks.reports.queries import Live, Reader, total_of
from aicache_tasks.reports.rows import figures_json
from aicache_tasks.runtime import runtime_of
from aicache_tasks.stores.base import Budget
from aicache_tasks.summaries import RolledUp
from aicache_tasks.testing import EmbeddedServer
from tests.cluster.nodes import ROOT, WorkerProcess, wait_until
from tests.faults import FaultProxy, healthy, send
from tests.tasks.bench_tasks import LoneCelery
from tests.tasks.conftest import Servers, answering, end

MODULE = "tests.tasks.remote_worker"
BROKER_DB = 4
TIMEOUT_S = 30
CELERY_S = 1.0
"""How long Celery's own commands wait for answers."""
TRIES = 3
"""Whoever judges how long something takes asks so often: a machine that stands still is no delay of ours."""
pytestmark = pytest.mark.timeout(180)


class Site(NamedTuple):
    """Two workers with different environments, and a caller."""

    app: Celery
    cache: EmbeddedServer
    workers: list[WorkerProcess]
    environ: dict[str, str]

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Return what each worker answers, by its name."""
        wanted = len(self.workers)
        replies = self.app.control.broadcast(command, arguments, reply=True, timeout=TIMEOUT_S, limit=wanted)
        found: dict[str, Any] = {name: answer for reply in replies for name, answer in reply.items()}
        return found

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.app.send_task(f"{MODULE}.{name}", args, kwargs).get(timeout=TIMEOUT_S, propagate=False)

    def command(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", MODULE, *argv],
            env=self.environ, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def site(servers: Servers) -> Iterator[Site]:
    with EmbeddedServer() as cache:
        config = servers.config(BROKER_DB)
        urls = (config["broker_url"], config["result_backend"], cache.url)
        one = WorkerProcess(MODULE, *urls, concurrency=2, env={"MODEL": "first"}, name="one").start()
        two = WorkerProcess(MODULE, *urls, pool="threads", env={"MODEL": "second"}, name="two").start()
        app = install(LoneCelery("caller", set_as_current=False))
        app.conf.update(config, aicache_url=cache.url, aicache_budget_ms=5000)
        names = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "AICACHE_URL")
        environ = {**os.environ, "PYTHONPATH": str(ROOT), **dict(zip(names, urls, strict=True))}
        try:
            one.ready(), two.ready()
            answering(app, one, two)
            yield Site(app, cache, [one, two], environ)
        finally:
            one.close(), two.close()
            end(app)


def reader(site: Site) -> Reader:
    return Reader(runtime_of(site.app).cache.parts)


def counted(site: Site, calls: int) -> Reader:
    """Wait until all timings of *calls* so far are in the inbox."""
    asked = reader(site)
    wait_until(lambda: total_of(asked.live().totals.values()).of("get") >= calls, TIMEOUT_S, "the timings")
    return asked


def fresh(site: Site) -> dict[str, Any]:
    """Return the answers to ``cache_stats`` once the workers have read all that there is, and the server answers."""

    def read() -> dict[str, Any] | None:
        answers = site.ask("cache_stats")
        lookups = total_of(reader(site).live().totals.values()).lookups
        return answers if all(has(answer, lookups) for answer in answers.values()) else None

    def has(answer: dict[str, Any], lookups: int) -> bool:
        total = answer.get("total")  # none where the first read took long
        return total is not None and total["hits"] + total["misses"] == lookups and answer["store"] == "ok"

    answers: dict[str, Any] = wait_until(read, 2 * TIMEOUT_S, "figures")
    return answers


def switched(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Ask for ``cache_mode`` until each answer is a confirmation; return the answers by worker."""

    def confirmed() -> dict[str, Any] | None:
        answers = ask()
        return answers if all("ok" in answer for answer in answers.values()) else None

    told: dict[str, Any] = wait_until(confirmed, TIMEOUT_S, "confirmations")
    return told


def test_workers_answer_with_the_reader_s_figures(site: Site) -> None:
    calls = [*(f"text {number}" for number in range(10)), *["text 0"] * 5]
    for text in calls:
        assert site.call("figures", text) == text
    asked = reader(site)
    found = lambda: asked.live().totals.get("figures")  # noqa: E731
    wait_until(lambda: (record := found()) and record.of("get") == len(calls), TIMEOUT_S, "the timings")
    for phase in ("as they wait", "rolled up"):
        answers, live = fresh(site), asked.live()
        record = live.totals["figures"]
        assert sorted(answers) == sorted(worker.hostname for worker in site.workers)
        for worker, answer in answers.items():
            shown = answer["operations"]["figures"]
            assert (shown["hits"], shown["misses"]) == (record.hits, record.misses) == (5, 10), phase
            assert shown["get_p95_ms"] == record.percentile_ms("get", 95)
            assert shown["saved"] == figures_json(record)["saved"]
            assert (answer["store"], answer["exact"]) == ("ok", True)
            assert phase == "as they wait" or answer["worker"]["hits"] == total_of(live.workers[worker]).hits
        asked.summaries.roll_up()
        wait_until(lambda: all(of["waiting"]["batches"] == 0 for of in site.ask("cache_stats").values()), TIMEOUT_S)
    for answer in site.ask("cache_stats", operation="figures").values():
        assert answer["operation"] == "figures"
        assert answer["total"] == json.loads(json.dumps(figures_json(asked.live().totals["figures"])))
    for answer in site.ask("cache_stats", operation="nobody's").values():
        assert (answer["total"], answer["note"]) == (None, "no such operation is known")
        assert {"figures", "shout", "slow end"} <= set(answer["known"]), "what has a policy or a record"
    for answer in site.ask("cache_stats", operation="slow end").values():
        assert (answer["total"], answer["note"]) == (None, "nothing is recorded of this operation yet")


def test_policies_show_where_workers_differ_and_nothing_that_vary_holds(site: Site) -> None:
    one, two = (site.ask("cache_policy")[worker.hostname] for worker in site.workers)
    cached = {f"{MODULE}.{name}" for name in ("shout", "opened", "figures", "again", "twice", "slow_end", "fails")}
    assert set(one["tasks"]) >= cached
    assert f"{MODULE}.plain" not in one["tasks"], "it has no policy"
    mine, other = one["tasks"][f"{MODULE}.shout"], two["tasks"][f"{MODULE}.shout"]
    assert mine["vary"] != other["vary"]
    assert len(mine["vary"]) == 32
    assert {name for name in mine if mine[name] != other[name]} == {"vary"}
    assert (mine["operation"], mine["version"], mine["ttl_s"], mine["redact"]) == ("shout", 3, 600.0, True)
    assert "first" not in repr(one)
    assert one | {"tasks": 0} == two | {"tasks": 0}


@pytest.mark.soak
def test_celery_s_own_commands_show_the_answers_within_their_second(site: Site) -> None:
    site.call("shout", "for the command")
    counted(site, 1)
    for _ in range(TRIES):
        shown = site.command("inspect", "cache_stats", "shout", "--json")
        answers = json.loads(shown.stdout[: shown.stdout.rindex("}") + 1]) if shown.returncode == 0 else {}
        if len(answers) == len(site.workers):
            break
    assert shown.returncode == 0, shown.stderr
    assert len(answers) == len(site.workers)
    for _ in range(TRIES):
        sent = site.command("control", "cache_flush_timings")
        confirmed = sent.stdout.count("sent; the pool's processes send theirs within 0.2 s")
        if confirmed == len(site.workers):
            break
    assert confirmed == len(site.workers)


def test_the_stats_of_a_worker_have_one_short_flat_line(site: Site) -> None:
    site.call("shout", "flat")
    counted(site, 1)
    shown = wait_until(
        lambda: line if "hits" in (line := line_of(site)) and line["store"] == "ok" else None, TIMEOUT_S, "figures"
    )
    assert list(shown) == ["hits", "misses", "hit rate", "get p95", "waiting", "store", "read"]
    assert not any(isinstance(value, (dict, list)) for value in shown.values())
    assert re.fullmatch(r"\d+ s ago", shown["read"])
    assert len(repr(shown)) < 150


def line_of(site: Site) -> dict[str, Any]:
    stats = site.app.control.inspect([site.workers[0].hostname], timeout=TIMEOUT_S).stats()
    line: dict[str, Any] = stats[site.workers[0].hostname]["aicache"]
    return line


def test_the_cache_of_all_workers_is_switched_off_and_on(site: Site) -> None:
    def looked_up(status: str) -> int:
        return reader(site).live().totals["open"].of("get", status)

    site.call("opened", "switch")
    wait_until(lambda: "open" in reader(site).live().totals, TIMEOUT_S, "the timings")
    try:
        told = switched(lambda: site.ask("cache_mode", mode="off"))
        assert [answer["ok"].partition(":")[0] for answer in told.values()] == ["off requested"] * len(site.workers)
        time.sleep(EVERY_S)
        hits = looked_up("hit")
        assert [site.call("opened", "switch") for _ in range(6)] == ["switch"] * 6
        wait_until(lambda: looked_up("disabled") == 6, TIMEOUT_S, "the timings")
        assert looked_up("hit") == hits
        wait_until(lambda: all(a.get("mode") == "off" for a in site.ask("cache_stats").values()), TIMEOUT_S)
        wait_until(lambda: "switched off" in line_of(site)["store"], TIMEOUT_S)
    finally:
        switched(lambda: site.ask("cache_mode", mode="on"))
    time.sleep(EVERY_S)
    assert [site.call("opened", "switch") for _ in range(6)] == ["switch"] * 6
    wait_until(lambda: looked_up("hit") == hits + 6, TIMEOUT_S, "the timings")
    assert {answer["error"] for answer in site.ask("cache_mode", mode="of").values()} == {"cache_mode takes on or off"}


def test_a_server_that_froze_since_shows_at_the_next_question(make: Callable[..., Celery]) -> None:
    from aicache_tasks.remote import cache_stats
    from aicache_tasks.reports import inspect

    with EmbeddedServer() as own:
        app = make(aicache_url=own.url)
        state = type("State", (), {"app": app, "hostname": "w@h"})
        for left in reversed(range(TRIES)):
            wait_until(lambda: cache_stats(state).get("store") == "ok", TIMEOUT_S)
            own.pause()  # SIGSTOP
            frozen_s, shown, longest_s = time.monotonic(), ["ok"], 0.0
            try:
                while shown[-1] == "ok":
                    began_s = time.monotonic()
                    shown += [cache_stats(state)["store"]]
                    longest_s = max(longest_s, time.monotonic() - began_s)
                shown_s = time.monotonic() - frozen_s
                assert shown[-1].startswith("down: ")
                assert inspect.line(app)["store"].startswith("down: ")
                assert "hits" in inspect.line(app), "figures from before, with when they were read"
            finally:
                own.resume()
            if longest_s < LIMIT_S + 0.1 and shown_s < 2:
                break
            assert left, (longest_s, shown_s)
        wait_until(lambda: cache_stats(state)["store"].startswith("ok"), TIMEOUT_S)


def test_many_operations_are_not_all_named_to_who_misspells_one(make: Callable[..., Celery]) -> None:
    from aicache_tasks.reports import inspect

    app = make()
    for number in range(inspect.MOST_KNOWN + 3):
        app.task(base=CachedTask, cache=CachePolicy(operation=f"op {number:02}"), name=f"t{number}")(body)
    answer = inspect._of_one(app, Live(0.0, {}, {}, Backlog(0, 0, 0.0), RolledUp(), None), "op 7")
    assert len(answer["known"]) == inspect.MOST_KNOWN
    assert answer["more"] >= 3


def test_a_pulse_is_felt_once_for_all_who_ask_within_a_second() -> None:
    asked: list[int] = []
    now_s = [0.0]

    def feel() -> bool:
        asked.append(1)
        return False

    pulse = Pulse(feel, lambda: now_s[0])
    for at_s, times in ((0.0, 1), (0.9, 1), (1.1, 2)):
        now_s[0] = at_s
        assert pulse.get(TIMEOUT_S) == Beat("", False)
        assert len(asked) == times


@pytest.mark.soak
def test_a_frozen_server_delays_no_answer(servers: Servers) -> None:
    config = servers.config(BROKER_DB + 2)
    with EmbeddedServer() as cache:
        worker = WorkerProcess(MODULE, config["broker_url"], config["result_backend"], cache.url, pool="solo").start()
        app = LoneCelery("caller", set_as_current=False)
        app.conf.update(config)
        try:
            worker.ready()
            answering(app, worker)
            cache.pause()
            for command in ("cache_stats", "stats", "cache_policy", "cache_mode", "cache_flush_timings"):
                took_s: list[float] = []
                while len(took_s) < TRIES and (not took_s or took_s[-1] >= CELERY_S):
                    began_s = time.monotonic()
                    replies = app.control.broadcast(command, {"mode": "off"}, reply=True, timeout=TIMEOUT_S, limit=1)
                    took_s += [time.monotonic() - began_s]
                    assert replies, command
                    assert command != "cache_stats" or len(took_s) > 1 or "has not answered yet" in repr(replies)
                assert took_s[-1] < CELERY_S, (command, took_s)
        finally:
            cache.resume()
            worker.close()
            end(app)


# The snapshot.


class Reads:
    """Reads that end when they are told to."""

    def __init__(self) -> None:
        self.count = 0
        self.now_s = 0.0
        self.error: Exception | None = None
        self.caught: list[Exception] = []

    def __call__(self) -> Any:
        self.count += 1
        if self.error is not None:
            raise self.error
        return f"live {self.count}", [], False


@pytest.fixture
def reads() -> Reads:
    return Reads()


def test_figures_are_read_only_when_somebody_asks_and_they_are_old(reads: Reads) -> None:
    snapshot = Snapshot(reads, reads.caught.append, lambda: reads.now_s)
    assert reads.count == 0
    for now_s, expected in ((0.0, 1), (1.0, 1), (4.9, 1), (5.1, 2), (10.0, 2)):
        reads.now_s = now_s
        seen = snapshot.get(TIMEOUT_S)
        assert seen is not None
        assert (seen.live, reads.count) == (f"live {expected}", expected)


def test_figures_from_before_stay_with_what_is_wrong_now(reads: Reads) -> None:
    snapshot = Snapshot(reads, reads.caught.append, lambda: reads.now_s)
    snapshot.get(TIMEOUT_S)
    reads.now_s, reads.error = 6.0, StoreUnavailable("ConnectionError")
    seen = snapshot.get(TIMEOUT_S)
    assert seen is not None
    assert (seen.live, seen.fault) == ("live 1", "ConnectionError")
    reads.now_s, reads.error = 12.0, KeyError("canary")
    seen = snapshot.get(TIMEOUT_S)
    assert seen is not None
    assert (seen.live, seen.fault, len(reads.caught)) == ("live 1", "internal error", 1)


def test_a_read_that_hangs_keeps_nobody_waiting_for_long_and_is_not_begun_twice() -> None:
    import threading

    gate, begun = threading.Event(), []

    def read() -> Any:
        begun.append(1)
        gate.wait(TIMEOUT_S)
        return "live", [], False

    snapshot = Snapshot(read, lambda error: None)
    took_s: list[float] = []
    for _ in range(TRIES):
        began_s = time.monotonic()
        assert snapshot.get(0.05) is None
        took_s += [time.monotonic() - began_s]
    assert min(took_s) < LIMIT_S
    gate.set()
    assert wait_until(lambda: snapshot.get(0.05), TIMEOUT_S).live == "live"
    assert len(begun) == 1


@pytest.mark.parametrize("operation", [["a"], {"a": 1}, 5], ids=str)
def test_an_operation_that_is_no_text_is_told_so(
    make: Callable[..., Celery], valkey: EmbeddedServer, operation: Any
) -> None:
    from aicache_tasks.remote import cache_stats

    state = type("State", (), {"app": make(aicache_url=valkey.url), "hostname": "w@h"})
    assert cache_stats(state, operation=operation) == {"error": "operation must be a text"}


def test_a_worker_without_shared_timings_says_so(make: Callable[..., Celery]) -> None:
    from aicache_tasks.remote import cache_flush_timings, cache_mode, cache_stats
    from aicache_tasks.reports import inspect

    app = make()
    app.task(base=CachedTask, cache=CachePolicy(operation="alone"), name="alone")(lambda text: text)
    state = type("State", (), {"app": app, "hostname": "w@h"})
    assert "need a Redis or Valkey server" in cache_stats(state)["error"]
    assert "timings do not leave this worker" in cache_flush_timings(state)["error"]
    assert "in its own memory" in cache_mode(state, mode="off")["error"]
    assert inspect.line(app) == {"timings": "stay in each process"}
    assert snapshot_of(app) is snapshot_of(app)


def test_a_switch_that_is_confirmed_too_late_is_said_to_be_unsure_and_was_thrown(
    make: Callable[..., Celery], valkey: EmbeddedServer
) -> None:
    from aicache_tasks.remote import SWITCH_S, cache_mode, cache_stats

    def late(proxy: FaultProxy, link: socket.socket, reply: bytes) -> bool:
        proxy.wait(SWITCH_S + 0.2)
        return send(link, reply)

    with FaultProxy(valkey.port) as proxy:
        slow, other = make(aicache_url=proxy.url), make(aicache_url=valkey.url)
        state = type("State", (), {"app": slow, "hostname": "w@h"})
        parts = runtime_of(slow).cache.parts
        parts.mode.switch(off=False, budget=Budget(5))  # connected
        proxy.fault = late
        answer = cache_mode(state, mode="off")
        assert "ok" not in answer
        assert "off may have taken effect all the same" in answer["error"]
        assert "inspect cache_stats" in answer["error"]
        wait_until(lambda: runtime_of(other).cache.parts.mode.read(Budget(5)) == b"off", TIMEOUT_S)
        proxy.fault = healthy
        wait_until(lambda: cache_stats(state).get("mode") == "off", TIMEOUT_S, "what it says to look at")
        confirmed = switched(lambda: {"w@h": cache_mode(state, mode="on")})["w@h"]
        assert confirmed["ok"].startswith("on requested")
        assert runtime_of(other).cache.parts.mode.read(Budget(5)) == b"on"


def test_a_vary_that_raises_or_asks_for_arguments_fails_no_answer(make: Callable[..., Celery]) -> None:
    from aicache_tasks.remote import cache_policy

    def broken() -> dict[str, str]:
        raise KeyError("canary")

    app = make()
    for name, vary in {"broken": broken, "each": lambda given: given, "none": None}.items():
        app.task(base=CachedTask, cache=CachePolicy(operation=f"remote-{name}", vary=vary), name=name)(body)
    state = type("State", (), {"app": app, "hostname": "w@h"})
    tasks = cache_policy(state)["tasks"]
    assert [tasks[name]["vary"] for name in ("broken", "each", "none")] == ["raises KeyError", "each call", None]


def body(text: str) -> str:
    return text
