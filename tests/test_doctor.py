"""The doctor finds each fault that a test plants, and none where there is none."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
from celery import Celery, Task
from celery.exceptions import SoftTimeLimitExceeded

from aicache_tasks import CachedTask, CachePolicy
from aicache_tasks.beat import roll_up, since_asked_s
from aicache_tasks.codec import encode_meta
from aicache_tasks.records import EntryMeta, Sample
from aicache_tasks.reports import doctor
from aicache_tasks.reports.doctor import (
    CHECKS,
    Case,
    Check,
    Finding,
    application,
    records,
    redbeat,
    server,
    stability,
    workers,
)
from aicache_tasks.reports.doctor.case import Replies, _answered, said_by, without_login
from aicache_tasks.reports.flower.snapshot import _is_late
from aicache_tasks.runtime import reset_runtime
from aicache_tasks.stores.base import Budget
from aicache_tasks.testing import EmbeddedServer
from tests import doctor_app, reported
from tests.beats import BeatProcess
from tests.cluster.nodes import WorkerProcess
from tests.faults import FaultProxy, eventually, free_port, send, slow
from tests.reported import count_up, look_up, reader_of
from tests.reported import send as send_samples
from tests.test_cli import CELERY, ROOT, environ_of, path, run

__all__ = ["path"]

SOUND = {"maxmemory": "100mb", "maxmemory-policy": "volatile-lfu", "appendonly": "yes", "requirepass": "correct-horse"}
MODULE = "tests.doctor_app"
REDBEAT = ("--scheduler", "redbeat.RedBeatScheduler")


def make_app(url: str, **settings: Any) -> Celery:
    """Return an application without what other tests' modules share with every application."""
    app = reported.make_app(url, **settings)
    app.finalize()
    for name in [name for name, task in app.tasks.items() if getattr(task, "cache_policy", None) is not None]:
        del app.tasks[name]
    return app


def found(app: Celery, *checks: Check, **given: Any) -> list[Finding]:
    return list(doctor.examine(Case(app, reader_of(app), **given), checks))


def one(app: Celery, check: Check, **given: Any) -> Finding:
    (finding,) = found(app, check, **given)
    return finding


def configured(own: EmbeddedServer, **settings: str) -> Celery:
    """Return an application whose server has *settings*."""
    with own.client() as client:
        for name, value in settings.items():
            client.config_set(name.replace("_", "-"), value)
    return make_app(own.url)


def add(app: Celery, name: str = "shop.task", options: dict[str, Any] | None = None, **policy: Any) -> Any:
    def body(text: str, model: str = "m") -> str:
        return text

    return app.task(base=CachedTask, name=name, cache=CachePolicy(**policy), shared=False, **(options or {}))(body)


@pytest.fixture(autouse=True)
def _waits_for_no_worker_but_for_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aicache_tasks.reports.doctor.case.WORKERS_S", 0.05)
    monkeypatch.setattr("aicache_tasks.reports.doctor.case.CONNECT_S", 10.0)


def await_workers(app: Celery, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for the answers of so many workers, however busy they are, and for no others."""
    monkeypatch.setattr("aicache_tasks.reports.doctor.case.WORKERS_S", 5.0)
    monkeypatch.setattr(app.control, "broadcast", functools.partial(app.control.broadcast, limit=count))


class Clinic(NamedTuple):
    """A sound set-up: two servers, a worker, a beat that asked."""

    cache: EmbeddedServer
    queue: EmbeddedServer
    app: Celery

    @property
    def environ(self) -> dict[str, str]:
        urls = {"CELERY_BROKER_URL": self.queue.url, "CELERY_RESULT_BACKEND": self.queue.url}
        return urls | {"AICACHE_URL": self.cache.url}

    def asked(self, monkeypatch: pytest.MonkeyPatch, *checks: Check) -> list[Finding]:
        """Return what is found when the sound worker and an odd one are asked, with the settings as they are now."""
        await_workers(self.app, 2, monkeypatch)
        reset_runtime(self.app)
        try:
            return found(self.app, *checks)
        finally:
            reset_runtime(self.app)

    def worker(self, name: str, **planted: str) -> WorkerProcess:
        urls = (self.queue.url, self.queue.url, self.cache.url)
        return WorkerProcess(MODULE, *urls, pool="solo", concurrency=1, env=planted, name=name).start()


@pytest.fixture(scope="module")
def clinic() -> Iterator[Clinic]:
    with EmbeddedServer(config=SOUND) as cache, EmbeddedServer() as queue:
        app = doctor_app.app
        app.conf.update(broker_url=queue.url, result_backend=queue.url, aicache_url=cache.url)
        made = Clinic(cache, queue, app)
        worker = made.worker("sound")
        try:
            roll_up(app)
            worker.ready()
            yield made
        finally:
            worker.close()
            app.close()


@pytest.fixture(scope="class")
def odd(clinic: Clinic) -> Iterator[WorkerProcess]:
    """One more worker, of another environment, that has gone before a sound set-up is looked at."""
    worker = clinic.worker("odd", CLINIC_MODEL="second", CLINIC_VERSION="0.0.9", CLINIC_PROMPT="2")
    try:
        worker.ready()
        yield worker
    finally:
        worker.close()


def command(clinic: Clinic, path: Path, *arguments: str, **planted: str) -> subprocess.CompletedProcess[str]:
    """Run the real command, as the application's own module has it."""
    environ = environ_of(path) | clinic.environ | planted
    argv = [CELERY, "-A", MODULE, "aicache", "doctor", *arguments]
    return subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=100, check=False)


class TestPrices:
    TABLE: ClassVar[dict[str, Any]] = {"version": "7", "models": {"m-1": {"input": 1, "output": 2}}}

    def taken(self, valkey: EmbeddedServer, model: str) -> Celery:
        """Return an application with prices, of which a body took tokens of *model* a minute ago."""
        app, version = make_app(valkey.url, aicache_prices=self.TABLE), "" if model == "m-1" else "7"
        meta = encode_meta(EntryMeta(model, {"input_tokens": 5}, None if version else 0.1, 9, 9, version))
        count_up(app, [Sample(time.time(), "shout", "compute", "success", "miss", 9, meta=meta)])
        return app

    def test_a_model_without_one_is_named(self, valkey: EmbeddedServer) -> None:
        finding = one(self.taken(valkey, "m-2"), records.prices)
        assert (finding.level, finding.what) == ("warn", "models took tokens and have no price: m-2")

    def test_nothing_is_wrong_with_the_others(self, valkey: EmbeddedServer) -> None:
        assert one(self.taken(valkey, "m-1"), records.prices).level == "ok"
        assert found(make_app(valkey.url), records.prices) == []


@pytest.mark.timeout(120)
class TestTheCommand:
    def test_a_sound_set_up_is_all_ok(self, clinic: Clinic, path: Path) -> None:
        roll_up(clinic.app)  # however long ago the first one was
        done = command(clinic, path, "--json", "--strict", CLINIC_WORKERS="1")
        assert done.returncode == 0, done.stdout + done.stderr
        assert reader_of(clinic.app).live().totals == {}, "it leaves no timing"
        findings = [Finding(**finding) for finding in json.loads(done.stdout)["findings"]]
        assert {finding.level for finding in findings} == {"ok"}
        assert {finding.fix for finding in findings} == {""}
        assert [finding.check for finding in findings] == [
            *("reachable", "version", "role", "eviction", "persistence", "timeouts", "clock", "access"),
            *("beat", "inbox", "switches", "models", "pickle", "results", "workers", "versions", "policies", "keys"),
        ]
        assert re.fullmatch("the same in [28] processes with other hash seeds", findings[-1].what)

    def test_what_is_wrong_is_shown_with_what_to_do(self, clinic: Clinic, path: Path) -> None:
        done = command(clinic, path, CLINIC_MODEL="hashed")
        assert done.returncode == 1, done.stdout + done.stderr
        assert "fail  keys         another key in each process: tests.doctor_app.shout\n" in done.stdout
        assert "→ Look for hash(), id()" in done.stdout
        assert "whisper" not in done.stdout
        assert "correct-horse" not in done.stdout + done.stderr

    def test_a_server_that_is_away_does_not_keep_it_from_looking_further(self, refused_url: str) -> None:
        app = make_app(refused_url)
        app.conf.accept_content = ["pickle"]
        done = run(app, "doctor", "--json")
        assert done.exit_code == 1
        findings = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
        assert findings["reachable"]["level"] == findings["pickle"]["level"] == "fail"
        assert "ConnectionError" in findings["reachable"]["what"]
        assert "eviction" not in findings

    def test_a_warning_ends_with_1_only_if_it_is_strict(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        add(app)
        assert json.loads(run(app, "doctor", "--json").stdout)["worst"] == "warn"
        assert (run(app, "doctor").exit_code, run(app, "doctor", "--strict").exit_code) == (0, 1)

    def test_it_changes_nothing(self, valkey: EmbeddedServer, client: Any) -> None:
        app = make_app(valkey.url)
        add(app)
        send_samples(app, look_up(time.time(), "shout", hit=True, took_ns=1000))
        before = {key: client.dump(key) for key in client.scan_iter()}
        run(app, "doctor")
        assert {key: client.dump(key) for key in client.scan_iter()} == before

    def test_a_user_who_may_not_ask_is_told_so(self, own_server: EmbeddedServer) -> None:
        with own_server.client() as client:
            client.execute_command("ACL", "SETUSER", "reader", "on", ">pass", "~*", "+info", "+time", "+hgetall")
        app = make_app(own_server.url.replace("redis://", "redis://reader:pass@"))
        finding = one(app, server.persistence)
        assert (finding.level, "it does not say whether" in finding.what) == ("warn", True)
        send_samples(make_app(own_server.url), look_up(time.time(), "shout", hit=True, took_ns=1000))
        finding = one(app, records.inbox)
        assert (finding.level, "NOPERM" in finding.what) == ("warn", True)


def older(name: bytes, version: bytes) -> Callable[..., bool]:
    """Return a fault of a proxy: the server says that it is of another version."""

    def fault(proxy: FaultProxy, link: Any, reply: bytes) -> bool:
        said = said_by(reply)
        if name == b"redis_version":
            reply = reply.replace(b"valkey_version:", b"valkey_was_on_:"[:14] + b":")
        held = said.get(name.decode(), "").strip().encode()
        return send(link, reply.replace(name + b":" + held, (name + b":" + version).ljust(len(name) + 1 + len(held))))

    return fault


class TestTheServer:
    def test_one_that_refuses(self, refused_url: str) -> None:
        finding = one(make_app(refused_url.replace("redis://", "redis://ann:secret@")), server.reachable)
        assert (finding.level, "secret" in finding.what) == ("fail", False)
        assert finding.fix.startswith("Nothing listens there")

    def test_one_that_refuses_the_login_is_not_to_be_started(self, clinic: Clinic) -> None:
        finding = one(make_app(clinic.cache.url.replace("correct", "battery")), server.reachable)
        assert finding.what.endswith("answers with an error: AuthenticationError WRONGPASS")
        assert finding.fix.startswith("Correct the user or the password in aicache_url.")
        assert (finding.level, "horse" in repr(finding), "Start" in finding.fix) == ("fail", False, False)

    def test_a_replica_refuses_writes_or_loses_them(self, valkey: EmbeddedServer, own_server: EmbeddedServer) -> None:
        app = make_app(own_server.url)
        assert one(app, server.role) == ("role", "ok", "it is a primary", "")
        with own_server.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", valkey.port)
            finding = one(app, server.role)
            assert (finding.level, finding.what) == ("fail", "it is a replica: writes are refused")
            assert f"127.0.0.1:{valkey.port}" in finding.fix
            client.config_set("replica-read-only", "no")
            assert "replica that takes writes" in one(app, server.role).what

    @pytest.mark.parametrize(
        ("name", "version", "level"),
        [
            (b"redis_version", b"6.0.9", "fail"),
            (b"redis_version", b"6.2.1", "ok"),
            (b"valkey_version", b"7.1.9", "fail"),
        ],
    )
    def test_its_version(self, valkey: EmbeddedServer, name: bytes, version: bytes, level: str) -> None:
        with FaultProxy(valkey.port) as proxy:
            proxy.fault = older(name, version)
            finding = one(make_app(proxy.url), server.version)
        assert (finding.level, version.decode() in finding.what) == (level, True)

    @pytest.mark.parametrize(
        ("settings", "level", "said"),
        [
            ({"maxmemory": "0"}, "warn", "no memory limit"),
            ({"maxmemory": "50mb", "maxmemory_policy": "noeviction"}, "warn", "stores nothing more"),
            ({"maxmemory": "50mb", "maxmemory_policy": "allkeys-lru"}, "warn", "may evict summary records"),
            ({"maxmemory": "50mb", "maxmemory_policy": "volatile-ttl"}, "ok", "volatile-ttl at 52.4 MB"),
        ],
    )
    def test_what_it_evicts(self, own_server: EmbeddedServer, settings: dict[str, str], level: str, said: str) -> None:
        finding = one(configured(own_server, **settings), server.eviction)
        assert (finding.level, said in finding.what) == (level, True), finding

    @pytest.mark.parametrize(
        ("policy", "level", "said"),
        [("volatile-lfu", "fail", "may evict what Celery needs"), ("noeviction", "warn", "refuses Celery's writes")],
    )
    def test_sharing_it_with_celery(self, own_server: EmbeddedServer, policy: str, level: str, said: str) -> None:
        app = configured(own_server, maxmemory="50mb", maxmemory_policy=policy)
        app.conf.result_backend = f"redis://localhost:{own_server.port}/3"  # by another name
        finding = one(app, server.eviction)
        assert (finding.level, said in finding.what) == (level, True), finding
        assert "the result backend lies on it too" in finding.what
        app.conf.result_backend, app.conf.broker_url = None, own_server.url
        assert "the broker lies on it too" in one(app, server.eviction).what

    @pytest.mark.parametrize("broker", ["{other};{cache}", "{cache};{other}", ["{other}", "{cache}"]], ids=str)
    def test_sharing_it_with_a_broker_that_is_one_of_several(
        self, own_server: EmbeddedServer, valkey: EmbeddedServer, broker: str | list[str]
    ) -> None:
        app, named = make_app(own_server.url), {"cache": own_server.url, "other": valkey.url}
        app.conf.broker_url = broker.format(**named) if isinstance(broker, str) else [b.format(**named) for b in broker]
        assert one(app, server.eviction).what.startswith("the broker lies on it too")

    def test_sharing_it_with_the_broker_that_is_read(self, own_server: EmbeddedServer, valkey: EmbeddedServer) -> None:
        app = make_app(own_server.url)
        app.conf.update(broker_url=valkey.url, broker_read_url=own_server.url)
        assert one(app, server.eviction).what.startswith("the broker lies on it too")

    @pytest.mark.parametrize(
        ("settings", "level", "said"),
        [
            ({"save": ""}, "warn", "it saves nothing"),
            ({"save": "3600 1"}, "warn", "snapshots only"),
            ({"appendonly": "yes"}, "ok", "append-only"),
        ],
    )
    def test_what_a_restart_loses(self, settings: dict[str, str], level: str, said: str) -> None:
        with EmbeddedServer(config=settings) as own:
            finding = one(make_app(own.url), server.persistence)
        assert (finding.level, said in finding.what) == (level, True), finding

    def test_a_save_that_failed(self, own_server: EmbeddedServer) -> None:
        (own_server.directory / "dump.rdb").mkdir()  # where the file should go
        with own_server.client() as client:
            client.set("a", 1)
            client.bgsave()
            while client.info("persistence")["rdb_bgsave_in_progress"]:
                time.sleep(0.01)
        finding = one(make_app(own_server.url), server.persistence)
        assert (finding.level, "rdb_last_bgsave_status" in finding.what) == ("fail", True)

    @pytest.mark.parametrize(("budget_ms", "level"), [(100, "fail"), (590, "warn"), (5000, "ok")])
    def test_a_network_that_is_slow(
        self, valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, budget_ms: int, level: str
    ) -> None:
        monkeypatch.setattr("aicache_tasks.reports.doctor.case.TRIPS", 3)
        monkeypatch.setattr("tests.faults.DELAY_S", 0.15)
        with FaultProxy(valkey.port) as proxy:
            proxy.fault = slow
            assert one(make_app(proxy.url, aicache_budget_ms=budget_ms), server.timeouts).level == level

    @pytest.mark.parametrize(
        ("apart_s", "level"), [(0, "ok"), (30, "warn"), (-30, "warn"), (3600, "fail"), (-3600, "fail")]
    )
    def test_a_clock_that_is_wrong(self, valkey: EmbeddedServer, apart_s: int, level: str) -> None:
        finding = one(make_app(valkey.url), server.clock, now_s=lambda: time.time() - apart_s)
        assert finding.level == level
        assert ("ahead of" in finding.what) == (apart_s > 0)

    def test_one_that_wants_no_password(self, own_server: EmbeddedServer) -> None:
        app = make_app(own_server.url)
        assert one(app, server.access).level == "warn"
        with own_server.client() as client:
            client.execute_command("ACL", "SETUSER", "ann", "on", ">secret", "~*", "+@all")
        named = make_app(own_server.url.replace("redis://", "redis://ann:secret@"))
        assert one(named, server.access).level == "warn", "the default user still wants none"
        with own_server.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "off")
        assert one(named, server.access).level == "ok"

    def test_one_that_lets_in_whom_it_gives_no_right_to_ask(self, own_server: EmbeddedServer) -> None:
        with own_server.client() as client:
            client.execute_command("ACL", "SETUSER", "ann", "on", ">secret", "~*", "+@all")
            client.execute_command("ACL", "SETUSER", "default", "-info")
        finding = one(make_app(own_server.url.replace("redis://", "redis://ann:secret@")), server.access)
        assert (finding.level, "wants no password" in finding.what) == ("warn", True)

    def test_one_on_a_socket_with_a_password(self) -> None:
        with EmbeddedServer(config={"requirepass": "secret"}, unix=True) as own:
            assert one(make_app(own.url), server.access).level == "ok"
            assert "secret" not in without_login(own.url)


class TestTheRecords:
    def test_a_beat_that_never_asked(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        assert one(app, records.beat).level == "warn"
        send_samples(app, look_up(time.time(), "shout", hit=True, took_ns=1000))
        assert one(app, records.beat).level == "fail"
        roll_up(app)
        assert one(app, records.beat).level == "ok"

    @pytest.mark.parametrize(("period_s", "level"), [(60, "fail"), (0, "ok")])
    def test_a_roll_up_by_hand_makes_a_dead_beat_no_better_unless_the_schedule_is_yours(
        self, valkey: EmbeddedServer, period_s: int, level: str
    ) -> None:
        app = make_app(valkey.url, aicache_rollup_period_s=period_s)
        assert run(app, "rollup").exit_code == 0
        send_samples(app, look_up(time.time(), "shout", hit=True, took_ns=1000))
        assert one(app, records.beat).level == level

    def test_a_beat_that_stopped(self, valkey: EmbeddedServer, client: Any) -> None:
        app = make_app(valkey.url)
        roll_up(app)
        client.hset(reader_of(app).summaries.keys.state, "asked_s", int(time.time() - 200))
        finding = one(app, records.beat)
        assert (finding.level, "and should be every 1 min" in finding.what) == ("fail", True)
        app = make_app(valkey.url, aicache_rollup_period_s=600)
        assert one(app, records.beat).level == "ok"

    @pytest.mark.parametrize(("ago_s", "is_late"), [(100, False), (200, True)])
    def test_stats_and_the_tab_call_a_beat_late_when_the_doctor_does(
        self, valkey: EmbeddedServer, client: Any, ago_s: int, is_late: bool
    ) -> None:
        app = make_app(valkey.url, aicache_rollup_period_s=5)
        send_samples(app, look_up(time.time(), "shout", hit=True, took_ns=1000))
        roll_up(app)
        client.hset(reader_of(app).summaries.keys.state, "asked_s", int(time.time() - ago_s))
        assert (one(app, records.beat).level == "fail") is is_late
        assert ("is beat running?" in run(app, "stats").stdout) is is_late
        assert _is_late(since_asked_s(reader_of(app).summaries), reader_of(app).settings) is is_late

    def test_what_waits_too_long(self, valkey: EmbeddedServer, client: Any) -> None:
        app = make_app(valkey.url)
        assert one(app, records.inbox).level == "ok"
        send_samples(app, look_up(time.time(), "shout", hit=True, took_ns=1000))
        client.hset(reader_of(app).summaries.keys.state, "since_ms", int((time.time() - 400) * 1000))
        finding = one(app, records.inbox)
        assert (finding.level, "for 6 min 4" in finding.what) == ("warn", True)

    @pytest.mark.parametrize(("part", "level"), [(0.4, "ok"), (0.6, "warn"), (0.95, "fail")])
    def test_an_inbox_that_is_nearly_full(self, valkey: EmbeddedServer, client: Any, part: float, level: str) -> None:
        app = make_app(valkey.url, aicache_inbox_bytes=2**20)
        send_samples(app, look_up(time.time(), "shout", hit=True, took_ns=1000))
        client.hset(reader_of(app).summaries.keys.state, "bytes", int(part * 2**20))
        assert one(app, records.inbox).level == level

    def test_batches_that_cannot_be_read(self, valkey: EmbeddedServer, client: Any) -> None:
        app = make_app(valkey.url)
        client.rpush(reader_of(app).summaries.keys.inbox, b"junk")
        assert [finding.level for finding in found(app, records.inbox)] == ["ok", "warn"]

    def test_one_of_another_type_is_no_matter_of_rights(self, valkey: EmbeddedServer, client: Any) -> None:
        app = make_app(valkey.url)
        client.set(reader_of(app).summaries.keys.totals, "junk")
        finding = one(app, records.inbox)
        assert (finding.level, finding.what.startswith("cannot be told: ResponseError")) == ("warn", True)
        assert "aicache rollup" in finding.fix, finding
        roll_up(app)
        assert one(app, records.inbox).level == "ok"


class TestTheApplication:
    @pytest.fixture
    def app(self, valkey: EmbeddedServer) -> Celery:
        return make_app(valkey.url)

    def test_no_task_that_is_cached(self, app: Celery) -> None:
        assert one(app, application.switches).what == "no task has cache="
        add(app)
        assert one(Case(app, reader_of(app)).app, application.switches).level == "ok"

    @pytest.mark.parametrize("given", [CachePolicy(), {"operation": "x", "ttl": "1h"}], ids=["policy", "dict"])
    def test_a_task_without_the_base_class_that_reads_its_policy(self, app: Celery, given: Any) -> None:
        add(app)
        self.add_plain(app, given)
        finding = one(app, application.switches)
        assert (finding.level, finding.what.endswith("it: shop.plain")) == ("warn", True)

    @pytest.mark.parametrize("given", [{}, {"hits": 1}, {"ttl": []}, {"tags": 5}, {1: 2}, "1h", 5, object], ids=str)
    def test_what_another_package_s_task_calls_cache_is_not_told_of(self, app: Celery, given: Any) -> None:
        add(app)
        self.add_plain(app, given)
        assert one(app, application.switches).level == "ok"

    def test_nor_is_it_touched(self, app: Celery) -> None:
        def fail(_: Any) -> Any:
            raise RuntimeError("outside of its application")

        add(app)
        self.add_plain(app, type("Lazy", (), {"__bool__": fail, "__class__": property(fail)})())
        app.register_task(type("Base", (Task,), {"name": "shop.lazy", "cache": property(fail)})())
        assert one(app, application.switches).level == "ok"

    def add_plain(self, app: Celery, cache: Any) -> None:
        def body(text: str) -> str:
            return text

        app.task(name="shop.plain", cache=cache, shared=False)(body)

    @pytest.mark.parametrize("setting", [{"aicache_disabled": True}, {"aicache_samples": "off"}])
    def test_what_is_switched_off(self, valkey: EmbeddedServer, setting: dict[str, Any]) -> None:
        app = make_app(valkey.url, **setting)
        add(app)
        finding = one(app, application.switches)
        assert (finding.level, next(iter(setting)) in finding.what) == ("warn", True)

    def test_a_cache_that_was_switched_off_for_all(self, app: Celery) -> None:
        add(app)
        reader_of(app).summaries.parts.mode.switch(off=True, budget=Budget(5))
        finding = one(app, application.switches)
        assert (finding.level, "cache_mode" in finding.what, "cache_mode on" in finding.fix) == ("warn", True, True)
        reader_of(app).summaries.parts.mode.switch(off=False, budget=Budget(5))
        assert one(app, application.switches).level == "ok"

    def test_a_model_that_the_key_ignores(self, app: Celery) -> None:
        add(app, ignore=("model",))
        finding = one(app, application.models)
        assert (finding.level, "shop.task (model)" in finding.what) == ("fail", True)

    def test_a_key_that_does_not_say_the_model(self, app: Celery) -> None:
        def body(text: str) -> str:
            return text

        app.task(base=CachedTask, name="shop.silent", cache=CachePolicy(), shared=False)(body)
        finding = one(app, application.models)
        assert (finding.level, "shop.silent" in finding.what) == ("warn", True)

    @pytest.mark.parametrize("policy", [{"vary": lambda: {"model": "m"}}, {"version": 2}, {"version": "auto"}])
    def test_a_key_that_says_it_otherwise(self, app: Celery, policy: dict[str, Any]) -> None:
        def body(text: str) -> str:
            return text

        app.task(base=CachedTask, name="shop.said", cache=CachePolicy(**policy), shared=False)(body)
        assert one(app, application.models).level == "ok"

    @pytest.mark.parametrize(
        "setting",
        [
            {"accept_content": ["json", "pickle"]},
            {"accept_content": ["application/x-python-serialize"]},
            {"result_accept_content": ["pickle"]},
            {"task_serializer": "pickle"},
            {"result_serializer": "pickle"},
        ],
        ids=str,
    )
    def test_pickle_in_messages(self, app: Celery, setting: dict[str, Any]) -> None:
        assert one(app, application.pickle).level == "ok"
        app.conf.update(setting)
        assert one(app, application.pickle).level == "fail"

    def test_pickle_for_one_task(self, app: Celery) -> None:
        add(app, options={"serializer": "pickle"})
        assert one(app, application.pickle).level == "fail"

    def test_results_with_arguments(self, app: Celery) -> None:
        add(app)
        assert one(app, application.results).level == "ok"
        app.conf.result_extended = True
        finding = one(app, application.results)
        assert (finding.level, "shop.task" in finding.what) == ("warn", True)

    def test_results_of_what_hides_nothing(self, app: Celery) -> None:
        add(app, redact=False)
        app.conf.result_extended = True
        assert one(app, application.results).level == "ok"

    @pytest.mark.parametrize(
        ("settings", "level"),
        [
            ({}, "warn"),
            ({"redbeat_lock_timeout": 30, "beat_max_loop_interval": 5}, "ok"),
            ({"redbeat_lock_timeout": 5, "beat_max_loop_interval": 5}, "fail"),
            ({"redbeat_lock_timeout": 30}, "fail"),
            ({"redbeat_lock_timeout": 900, "beat_max_loop_interval": 5}, "warn"),
        ],
        ids=str,
    )
    def test_redbeat_s_lock(self, app: Celery, settings: dict[str, Any], level: str) -> None:
        assert found(app, redbeat.times) == []
        app.conf.update(beat_scheduler="redbeat.RedBeatScheduler", **settings)
        assert one(app, redbeat.times).level == level

    def test_redbeat_s_lock_is_judged_as_redbeat_takes_it(self, app: Celery, valkey: EmbeddedServer) -> None:
        from redbeat.schedulers import RedBeatConfig, RedBeatScheduler

        settings = {"beat_max_loop_interval": 7, "redbeat_redis_url": valkey.url, "redbeat_redis_options": {}}
        app.conf.update(beat_scheduler="redbeat.RedBeatScheduler", **settings)
        app.redbeat_conf = RedBeatConfig(app)
        taken = RedBeatScheduler(app, lazy=True).lock_timeout
        assert (taken, "lasts 35 s" in one(app, redbeat.times).what) == (35, True)
        for prefix, key in (("redbeat:", ":lock"), ("mine-", "mine-beat"), ("mine-", "beat")):
            app.conf.update(redbeat_key_prefix=prefix, redbeat_lock_key=key)
            assert redbeat.key_of(Case(app, reader_of(app))) == RedBeatConfig(app).lock_key

    def test_a_redbeat_that_is_alive_and_one_that_is_not(self, clinic: Clinic, tmp_path: Path) -> None:
        app, url = make_app(clinic.cache.url), clinic.queue.url.removesuffix("0") + "5"
        assert found(app, redbeat.lock) == [], "beat is no redbeat"
        app.conf.update(beat_scheduler="redbeat.RedBeatScheduler", redbeat_redis_url=url, redbeat_lock_timeout=3)
        finding = one(app, redbeat.lock)
        assert (finding.level, finding.what) == ("warn", "no beat holds redbeat's lock (redbeat::lock)")
        assert "Start a beat" in finding.fix
        beat = BeatProcess(
            "tests.tasks.rollup_worker", url, url, clinic.cache.url, folder=tmp_path, extra_args=REDBEAT, name="red"
        ).start()
        try:
            with contextlib.suppress(AssertionError):
                eventually(lambda: "Acquired lock" in beat.logs() or not beat.running)
            assert "Acquired lock" in beat.logs(), beat.logs()
            finding = one(app, redbeat.lock)
            assert finding.level == "ok"
            assert re.fullmatch(
                r"a beat holds redbeat's lock \(redbeat::lock, since [-\d]+ [:\d]+ UTC by host [0-9a-f:]{17}\)"
                r" for [.\d]+ m?s more",
                finding.what,
            )
        finally:
            beat.close()
        eventually(lambda: one(app, redbeat.lock).level == "warn")

    @pytest.mark.parametrize(
        ("ttl_s", "level", "said"),
        [
            (None, "fail", "never runs out: no other beat takes over"),
            (600, "warn", r"for (10 min|9 min \d+ s) more, longer than redbeat_lock_timeout, 30 s"),
            (20, "ok", r"nobody knows whose\) for (20|1\d(\.\d+)?) s more"),  # time passes meanwhile
        ],
    )
    def test_a_redbeat_s_lock_that_stays(
        self, app: Celery, valkey: EmbeddedServer, client: Any, ttl_s: int | None, level: str, said: str
    ) -> None:
        app.conf.update(redbeat_redis_url=valkey.url, redbeat_lock_key=":beat", redbeat_lock_timeout=30)
        client.set("redbeat::beat", "junk", ex=ttl_s)
        finding = one(app, redbeat.lock)
        assert finding.level == level
        assert re.search(said, finding.what)

    def test_a_redbeat_s_server_that_is_away_and_one_without_a_lock(self, app: Celery, refused_url: str) -> None:
        app.conf.update(redbeat_redis_url=refused_url.replace("redis://", "redis://ann:secret@"))
        finding = one(app, redbeat.lock)
        assert (finding.level, finding.what) == ("warn", "redbeat's lock cannot be read: ConnectionError")
        app.conf.redbeat_lock_key = None
        assert "each beat sends all entries" in one(app, redbeat.lock).what

    def test_a_redbeat_behind_sentinel_is_judged_by_its_settings_only(self, app: Celery) -> None:
        app.conf.update(redbeat_redis_url="redis-sentinel://a:26379/0", redbeat_lock_timeout=30)
        assert found(app, redbeat.lock) == []

    def test_a_call_that_is_delivered_again_while_it_runs(self, app: Celery) -> None:
        app.conf.broker_url = f"redis://127.0.0.1:{free_port()}/0"
        add(app, "shop.slow", {"acks_late": True, "time_limit": 7200})
        assert one(app, application.redelivery).level == "warn"
        app.conf.broker_transport_options = {"visibility_timeout": 10_000}
        assert one(app, application.redelivery).level == "ok"
        app.conf.broker_transport_options = {"visibility_timeout": math.inf}
        assert found(app, application.redelivery) == []

    @pytest.mark.parametrize("given", [None, "1h", "3600", math.nan], ids=str)
    def test_a_visibility_timeout_that_is_no_number(self, app: Celery, given: Any) -> None:
        app.conf.update(broker_url="redis://", broker_transport_options={"visibility_timeout": given})
        finding = one(app, application.redelivery)
        assert (finding.level, "visibility_timeout" in finding.what) == ("fail", True)

    def test_a_check_that_fails_hides_none_of_the_others(self, app: Celery) -> None:
        def broken(case: Case) -> Iterator[Finding]:
            raise KeyError("hunter2")
            yield

        told = found(app, broken, application.pickle)
        assert [(finding.check, finding.level) for finding in told] == [("broken", "fail"), ("pickle", "ok")]
        assert told[0].what == "cannot be told: KeyError"

    def test_what_steers_ends_the_doctor(self, app: Celery) -> None:
        def stopped(case: Case) -> Iterator[Finding]:
            raise SoftTimeLimitExceeded
            yield

        with pytest.raises(SoftTimeLimitExceeded):
            found(app, stopped)


class TestTheWorkers:
    def test_none_that_answers(self, valkey: EmbeddedServer) -> None:
        assert one(make_app(valkey.url), workers.answers).what == "no worker answered"

    def test_a_broker_that_is_away(self, valkey: EmbeddedServer, refused_url: str) -> None:
        app = make_app(valkey.url)
        app.conf.broker_url = refused_url
        began = time.monotonic()
        finding = one(app, workers.answers)
        assert (finding.level, "the broker does not answer" in finding.what) == ("warn", True)
        assert time.monotonic() - began < 20

    def test_a_broker_that_refuses_the_login(self, clinic: Clinic) -> None:
        app = make_app(clinic.queue.url)
        app.conf.broker_url = clinic.cache.url.replace("correct", "battery")
        finding = one(app, workers.answers)
        assert (finding.level, finding.what) == ("warn", "the broker refuses: AuthenticationError")
        assert "login" in finding.fix

    def test_a_frozen_broker_does_not_freeze_the_doctor(
        self, valkey: EmbeddedServer, own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("aicache_tasks.reports.doctor.case.BROKER_S", 1.0)
        app = make_app(valkey.url)
        app.conf.broker_url = own_server.url
        own_server.pause()
        began = time.monotonic()
        try:
            finding = one(app, workers.answers)
            assert (finding.level, finding.what) == ("warn", "the broker does not answer: TimeoutError")
            assert time.monotonic() - began < 10
        finally:
            own_server.resume()

    @pytest.mark.soak
    def test_the_command_ends_while_the_broker_is_frozen(self, own_server: EmbeddedServer, path: Path) -> None:
        environ = environ_of(path) | {"CELERY_BROKER_URL": own_server.url, "AICACHE_URL": own_server.url}
        own_server.pause()
        try:
            argv = [CELERY, "-A", MODULE, "aicache", "doctor", "--json"]
            done = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=40, check=False)
        finally:
            own_server.resume()
        assert "the broker does not answer: TimeoutError" in done.stdout, done.stderr

    def test_one_without_install(self, clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
        from celery.worker.control import Panel

        queue = clinic.queue.url.removesuffix("0") + "7"
        bare = WorkerProcess("tests.doctor_bare", queue, queue, None, pool="solo", concurrency=1, name="bare").start()
        try:
            bare.ready()
            app = make_app(clinic.cache.url)
            app.conf.broker_url = queue
            await_workers(app, 1, monkeypatch)
            finding = one(app, workers.answers)
        finally:
            bare.close()
        assert Panel.data
        assert (finding.level, bare.hostname in finding.what) == ("fail", True)

    def test_what_it_answers_is_not_trusted(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        add(app)
        for answer in ("junk", {"tasks": ["junk"]}, {"tasks": {"shop.task": "junk"}}, {"error": "\x1b[2J" * 100}):
            case = Case(app, reader_of(app))
            vars(case)["replies"] = Replies({"\x1b[2J@here": _answered(answer)}, "")
            found_ = list(doctor.examine(case, (workers.answers, workers.versions, workers.policies)))
            assert any(finding.level != "ok" for finding in found_)
            assert not any("\x1b" in finding.what for finding in found_)

    @pytest.mark.parametrize(
        ("tasks", "level", "said"),
        [
            ({}, "warn", "has no task that this process has: nothing was compared"),
            ({"shop.other": {"operation": "shop.other"}}, "warn", "has no task that this process has"),
            ({"shop.task": 5}, "warn", "gives an answer of shop.task that is none"),
            ({"shop.task": {"error": "aicache_ttl is soon"}}, "fail", "says of shop.task: aicache_ttl is soon"),
        ],
        ids=["no task", "another task", "no policy", "an error"],
    )
    def test_one_with_which_nothing_was_compared_does_not_pass(
        self, valkey: EmbeddedServer, tasks: dict[str, Any], level: str, said: str
    ) -> None:
        app = make_app(valkey.url)
        add(app)
        case = Case(app, reader_of(app))
        vars(case)["replies"] = Replies({"w@here": {**case.mine, "tasks": tasks}}, "")
        (finding,) = doctor.examine(case, (workers.policies,))
        assert (finding.level, said in finding.what) == (level, True), finding

    @pytest.mark.parametrize(
        ("settings", "policy", "level", "said"),
        [
            ({}, {}, "ok", "as this process does"),
            ({"aicache_secret": b"0123456789abcdef"}, {}, "fail", "has another aicache_secret or aicache_hash than"),
            ({"aicache_hash": "sha512"}, {}, "fail", "has another aicache_secret or aicache_hash than"),
            ({"aicache_url": "redis://ann:pass@other:1/0"}, {}, "warn", "has the cache at redis://other:1/0, this"),
            ({}, {"tenant": "acme"}, "fail", "resolves tenant= of shop.task otherwise than this process"),
            ({}, {"text_arg": "model"}, "fail", "has another text_arg of shop.task"),
            ({}, {"question_arg": "model"}, "fail", "has another question_arg of shop.task"),
        ],
        ids=["all the same", "secret", "hash", "url", "tenant", "text", "question"],
    )
    def test_one_that_shares_no_answer_with_this_process(
        self, valkey: EmbeddedServer, settings: dict[str, Any], policy: dict[str, Any], level: str, said: str
    ) -> None:
        app, other = make_app(valkey.url), make_app(valkey.url)
        other.conf.update(settings)
        add(app, tenant="shop")
        add(other, **{"tenant": "shop", **policy})
        case = Case(app, reader_of(app))
        vars(case)["replies"] = Replies({"w@here": json.loads(json.dumps(Case(other, reader_of(other)).mine))}, "")
        (finding,) = doctor.examine(case, (workers.policies,))
        assert (finding.level, said in finding.what) == (level, True), finding
        assert not re.search("acme|:pass@|0123456789abcdef", repr(case.replies.each))

    def test_another_login_at_the_same_server_is_nothing_to_tell(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        add(app)
        case = Case(app, reader_of(app))
        theirs = valkey.url.replace("redis://", "redis://ann:********@")
        vars(case)["replies"] = Replies({"w@here": {**case.mine, "url": theirs}}, "")
        assert [finding.level for finding in doctor.examine(case, (workers.policies,))] == ["ok"]

    @pytest.mark.parametrize(
        ("mine", "theirs", "level"),
        [
            ("redis://cache:6379/0", "redis://Cache?client_name=web", "ok"),
            ("redis://ann:pass@cache/0?db=2", "rediss://cache/2", "ok"),
            ("unix:///run/s", "redis+socket:///run/s?virtual_host=0", "ok"),
            ("redis://cache/1", "redis://cache", "warn"),
            ("redis://cache", "redis://cache:6380", "warn"),
            ("unix:///run/s", "unix:///run/t", "warn"),
            ("redis://cache", "redis://[junk", "warn"),
        ],
    )
    def test_the_place_of_the_cache_is_compared_and_not_how_it_is_written(
        self, valkey: EmbeddedServer, mine: str, theirs: str, level: str
    ) -> None:
        app = make_app(valkey.url)
        add(app)
        case = Case(app, reader_of(app))
        vars(case)["mine"] = {**case.mine, "url": mine}
        vars(case)["replies"] = Replies({"w@here": {**case.mine, "url": theirs}}, "")
        assert [finding.level for finding in doctor.examine(case, (workers.policies,))] == [level]

    def test_one_of_a_version_that_tells_less_is_said_to_and_nothing_else(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        add(app, tenant="shop")
        case = Case(app, reader_of(app))
        (task,) = case.mine["tasks"].values()
        older = {name: told for name, told in task.items() if name not in ("text_arg", "question_arg", "body")}
        less = {name: told for name, told in case.mine.items() if name not in ("url", "digest")}
        tasks = {"shop.task": {**older, "tenant": "fixed"}}
        vars(case)["replies"] = Replies({"w@here": {**less, "tasks": tasks}}, "")
        (_, finding) = doctor.examine(case, (workers.versions, workers.policies))
        assert (finding.level, finding.what) == ("warn", "w@here does not tell digest, question_arg, text_arg, url")

    @pytest.mark.parametrize("raises_here", [True, False])
    def test_a_vary_that_raises_outside_of_a_call_is_no_failure(
        self, valkey: EmbeddedServer, raises_here: bool
    ) -> None:
        app = make_app(valkey.url)
        add(app, vary=lambda: {}["no call"] if raises_here else "m")
        case = Case(app, reader_of(app))
        other = "5d" * 16 if raises_here else "raises LookupError"
        tasks = {"shop.task": {**case.mine["tasks"]["shop.task"], "vary": other}}
        vars(case)["replies"] = Replies({"w@here": {**case.mine, "tasks": tasks}}, "")
        (finding,) = doctor.examine(case, (workers.policies,))
        assert (finding.check, finding.level) == ("vary", "warn")
        assert finding.what == "vary= of shop.task raises in one of w@here and this process, outside of a call"

    def test_one_with_tasks_that_are_none_does_not_pass(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        case = Case(app, reader_of(app))
        vars(case)["replies"] = Replies({"w@here": {**case.mine, "tasks": None}}, "")
        (finding,) = doctor.examine(case, (workers.answers,))
        assert (finding.level, finding.what) == ("fail", "w@here says: an answer that cannot be read")

    @pytest.mark.parametrize("reply", [[1, 2], "junk", None], ids=str)
    def test_a_reply_of_no_worker_is_shown(
        self, valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, reply: Any
    ) -> None:
        app = make_app(valkey.url)
        monkeypatch.setattr(app.control, "broadcast", lambda *args, **given: [reply])
        finding = one(app, workers.answers)
        assert (finding.level, finding.what) == ("fail", "? says: an answer that cannot be read")


class TestManyOddWorkers:
    def case(self, url: str, count: int, **odd: Any) -> Case:
        """Return a case with *count* workers that are *odd*, and a sound one."""
        app = make_app(url)
        add(app)
        case = Case(app, reader_of(app))
        vars(case)["replies"] = Replies(
            {f"w{n}@here": {**case.mine, **odd} for n in range(count)} | {"z": case.mine}, ""
        )
        return case

    @pytest.mark.parametrize(
        ("check", "odd", "level", "last"),
        [
            (workers.policies, {"namespace": "x"}, "fail", "the like of 3 more workers: w5@here, w6@here, w7@here"),
            (workers.policies, {"disabled": True}, "warn", "the like of 3 more workers: w5@here, w6@here, w7@here"),
            (workers.answers, {"tasks": None}, "fail", "no policies from 3 more workers either"),
        ],
    )
    def test_five_are_told_of_and_how_many_more_there_are(
        self, valkey: EmbeddedServer, check: Check, odd: dict[str, Any], level: str, last: str
    ) -> None:
        told = list(doctor.examine(self.case(valkey.url, 8, **odd), [check]))
        assert len(told) == workers.MOST + 1
        assert (told[-1].level, told[-1].what) == (level, last)
        assert len(list(doctor.examine(self.case(valkey.url, 5, **odd), [check]))) == workers.MOST

    def test_versions_name_five(self, valkey: EmbeddedServer) -> None:
        (told,) = doctor.examine(self.case(valkey.url, 8, version="0.0.1"), [workers.versions])
        assert told.what.endswith("w4@here 0.0.1 and 3 more")

    def test_tasks_with_a_fault_are_counted(self, valkey: EmbeddedServer) -> None:
        case = self.case(valkey.url, 1)
        for number in range(7):
            add(case.app, f"shop.task{number}")
        vars(case).pop("mine")
        case.tasks = [task for name, task in sorted(case.app.tasks.items()) if name.startswith("shop.")]
        broken = {name: {"error": "aicache_ttl is soon"} for name in case.mine["tasks"]}
        vars(case)["replies"] = Replies({"w@here": {**case.mine, "tasks": broken}}, "")
        told = list(doctor.examine(case, [workers.policies]))
        assert len(told) == workers.MOST + 1
        assert told[-1].what == "w@here says so of 3 more tasks"


class TestAnOddWorker:
    def test_one_of_another_environment_and_version(
        self, clinic: Clinic, odd: WorkerProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answered = clinic.asked(monkeypatch, workers.answers, workers.versions, workers.policies)
        wrong = [finding for finding in answered if finding.level != "ok"]
        assert [(f.check, f.level) for f in wrong] == [("versions", "warn"), ("vary", "fail"), ("policies", "fail")]
        assert f"{odd.hostname} 0.0.9" in wrong[0].what
        assert wrong[1].what == f"{odd.hostname} resolves vary= of {MODULE}.shout otherwise than this process"
        assert wrong[2].what == f"{odd.hostname} has another version of {MODULE}.whisper"

    def test_one_of_another_namespace_and_one_that_is_off(
        self, clinic: Clinic, odd: WorkerProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(clinic.app.conf, "aicache_namespace", "other")
        monkeypatch.setenv("AICACHE_DISABLED", "1")
        said = [finding.what for finding in clinic.asked(monkeypatch, workers.policies)]
        assert f"{odd.hostname} has the namespace clinic, this process other" in said
        assert f"the cache is switched off in one of {odd.hostname} and this process" in said


class TestKeys:
    def test_a_process_that_cannot_make_keys(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        add(app)
        assert one(app, stability.keys, probe=[sys.executable, "-c", "raise SystemExit(3)"]).level == "warn"

    @pytest.mark.parametrize("told", ["", "junk", "[]", "{"], ids=str)
    def test_a_process_that_tells_no_keys(self, valkey: EmbeddedServer, told: str) -> None:
        app = make_app(valkey.url)
        add(app)
        for text in (told, stability.MARK + told):
            finding = one(app, stability.keys, probe=[sys.executable, "-c", f"print({text!r})"])
            assert (finding.level, "could not make keys" in finding.what) == ("warn", True)

    def test_what_the_application_prints_does_not_matter(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        keys = stability.keys_of([add(app)])
        text = f"loading {{}} …{stability.marked(keys)}bye"
        assert one(app, stability.keys, probe=[sys.executable, "-c", f"print({text!r})"]).level == "ok"

    def test_arguments_are_made_up_from_annotations(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)

        def body(text: str, count: int, parts: list[str], *rest: str, names: dict[str, int], **more: Any) -> str:
            return text

        task = app.task(base=CachedTask, name="shop.many", cache=CachePolicy(), shared=False)(body)
        assert stability.keys_of([task])["shop.many"] is not None


def test_every_check_says_what_to_do_unless_all_is_well(refused_url: str, valkey: EmbeddedServer) -> None:
    for url in (refused_url, valkey.url):
        app = make_app(url)
        app.conf.accept_content = ["pickle"]
        for finding in found(app, *CHECKS):
            assert bool(finding.fix) == (finding.level != "ok"), finding
            assert not finding.what.endswith(".")
            assert not finding.fix or finding.fix.endswith((".", "?"))
