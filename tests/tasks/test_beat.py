"""The roll-up's task and its entry in beat's schedule, in this process."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Task, signals
from celery.beat import Scheduler, Service

from aicache_tasks import CachedTask, StoreError, alert_changed, install
from aicache_tasks.alerts import LEAST_TIMINGS
from aicache_tasks.beat import ENTRY, TASK, roll_up, since_asked_s
from aicache_tasks.runtime import reset_runtime, runtime_of
from aicache_tasks.summaries import Summaries
from aicache_tasks.testing import EmbeddedServer
from tests.tasks.bench_tasks import LoneCelery

Make = Callable[..., Celery]
URL = "redis://127.0.0.1:1/0"  # nothing connects to it
OWN = {"task": "users.own", "schedule": 5.0}


def own() -> None:
    """Do nothing: a user's task."""


def finalized(app: Celery) -> Celery:
    app.finalize()
    return app


def entry_of(app: Celery) -> Any:
    return app.conf.beat_schedule.get(ENTRY)


def beat(app: Celery, folder: Path) -> Service:
    """Start beat as its command does, up to its first tick."""
    app.loader.init_worker()
    app.finalize()
    service = Service(app, schedule_filename=str(folder / "schedule"))
    _ = service.scheduler
    signals.beat_init.send(sender=service)
    return service


class TestEntry:
    def test_it_is_there_once_the_application_is_finalized(self, make: Make) -> None:
        app = make(aicache_url=URL)
        assert entry_of(app) is None
        entry = entry_of(finalized(app))
        assert entry == {"task": TASK, "schedule": timedelta(seconds=60), "options": {"expires": 600.0}}

    def test_it_is_there_if_the_application_was_finalized_before(self) -> None:
        app = LoneCelery("done", broker="memory://", set_as_current=False)
        app.conf.aicache_url = URL
        app.finalize()
        install(install(app))
        assert entry_of(app)["task"] == TASK
        assert TASK in app.tasks
        app.close()

    @pytest.mark.parametrize(
        ("settings", "expires_s"),
        [
            ({"aicache_rollup_period_s": 5}, 600),
            ({"aicache_rollup_period_s": "5m"}, 3000),
            ({"aicache_rollup_expires_s": 90}, 90),
        ],
        ids=str,
    )
    def test_its_lifetime_is_ten_periods_ten_minutes_at_least_or_what_is_set(
        self, make: Make, settings: dict[str, Any], expires_s: float
    ) -> None:
        assert entry_of(finalized(make(aicache_url=URL, **settings)))["options"] == {"expires": expires_s}

    @pytest.mark.parametrize(
        "settings",
        [
            {"aicache_rollup_period_s": 0},
            {"aicache_samples": "off"},
            {"aicache_url": "memory://"},
            {"aicache_url": None},
            {"aicache_tll": 5},
        ],
        ids=str,
    )
    def test_there_is_none_where_there_is_nothing_to_roll_up(self, make: Make, settings: dict[str, Any]) -> None:
        assert entry_of(finalized(make(**{"aicache_url": URL, **settings}))) is None

    def test_it_takes_the_result_backend_s_server_if_that_is_shared(self, make: Make) -> None:
        app = make(aicache_url=None, aicache_share_backend=True, result_backend=URL)
        assert entry_of(finalized(app)) is not None

    def test_one_of_its_name_that_the_user_wrote_is_left_alone(self, make: Make, tmp_path: Path) -> None:
        mine = {"task": TASK, "schedule": 7.0}
        app = make(aicache_url=URL, beat_schedule={ENTRY: mine})
        service = beat(app, tmp_path)
        assert entry_of(app) is mine
        assert service.scheduler.schedule[ENTRY].schedule.seconds == 7

    def test_reading_it_does_not_settle_the_settings(self, make: Make) -> None:
        app = finalized(make(aicache_url=None))
        app.conf.aicache_url = URL
        app.conf.aicache_ttl = 7
        assert runtime_of(app).settings.ttl == 7

    def test_two_applications_have_each_their_own(self, make: Make) -> None:
        one, other = finalized(make(aicache_url=URL)), finalized(make(aicache_url="memory://"))
        assert (entry_of(one) is None, entry_of(other) is None) == (False, True)


class TestBeatStarts:
    """Whenever the schedule was assigned, beat has the user's entries and ours."""

    def check(self, app: Celery, folder: Path) -> None:
        service = beat(app, folder)
        assert {"own", ENTRY} <= set(service.scheduler.schedule)
        assert service.scheduler.schedule[ENTRY].task == TASK
        assert {"own", ENTRY} <= set(app.conf.beat_schedule)
        service.sync()

    def test_assigned_before_it_is_finalized(self, make: Make, tmp_path: Path) -> None:
        self.check(make(aicache_url=URL, beat_schedule={"own": OWN}), tmp_path)

    def test_assigned_after_it_is_finalized(self, make: Make, tmp_path: Path) -> None:
        app = finalized(make(aicache_url=URL))
        app.conf.beat_schedule = {"own": OWN}
        self.check(app, tmp_path)

    def test_changed_in_place_after_it_is_finalized(self, make: Make, tmp_path: Path) -> None:
        own: dict[str, Any] = {}
        app = finalized(make(aicache_url=URL, beat_schedule=own))
        own["own"] = OWN
        self.check(app, tmp_path)

    def test_added_by_a_handler(self, make: Make, tmp_path: Path) -> None:
        app = make(aicache_url=URL)
        task = app.task(name="users.own")(own)
        app.on_after_finalize.connect(
            lambda sender, **_: sender.add_periodic_task(5.0, task.s(), name="own"), weak=False
        )
        self.check(app, tmp_path)

    def test_assigned_by_a_task_s_module_once_everything_was_read(self, make: Make, tmp_path: Path) -> None:
        app = finalized(make(aicache_url=URL))

        def late(sender: Any, **_: Any) -> None:
            app.conf.beat_schedule = {"own": OWN}

        app.loader.init_worker()
        late(app)
        service = Service(app, schedule_filename=str(tmp_path / "schedule"))
        assert ENTRY not in service.scheduler.schedule
        signals.beat_init.send(sender=service)
        assert {"own", ENTRY} <= set(service.scheduler.schedule)
        service.sync()

    def test_the_settings_are_those_of_its_start(self, make: Make, tmp_path: Path) -> None:
        app = finalized(make(aicache_url=URL))
        app.conf.aicache_rollup_period_s = 7
        service = beat(app, tmp_path)
        assert service.scheduler.schedule[ENTRY].schedule.seconds == 7
        service.sync()

    def test_it_is_gone_if_it_is_no_longer_wanted(self, make: Make, tmp_path: Path) -> None:
        app = finalized(make(aicache_url=URL))
        app.conf.aicache_samples = "off"
        service = beat(app, tmp_path)
        assert ENTRY not in service.scheduler.schedule
        service.sync()

    def test_a_wrong_setting_is_said(self, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        beat(make(aicache_url=URL, aicache_tll=5, beat_schedule={"own": OWN}), tmp_path).sync()
        said = [record.getMessage() for record in caplog.records if "no roll-up is scheduled" in record.getMessage()]
        assert said == ["aicache: no roll-up is scheduled: unknown setting aicache_tll; did you mean aicache_ttl?"]

    @pytest.mark.parametrize(
        ("settings", "why"),
        [
            ({"aicache_url": None}, "aicache_url is not set here; start beat with the AICACHE_URL"),
            ({"aicache_url": "memory://"}, "aicache_url is memory://"),
            ({"aicache_url": None, "aicache_share_backend": True}, "aicache_url is not set: give the cache a server"),
        ],
        ids=str,
    )
    def test_a_server_that_is_missing_here_is_said(
        self, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], why: str
    ) -> None:
        beat(make(**settings, beat_schedule={"own": OWN}), tmp_path).sync()
        (said,) = [record for record in caplog.records if record.name == "aicache_tasks"]
        assert said.levelname == "WARNING"
        assert said.getMessage().startswith(f"aicache: no roll-up is scheduled: {why}")

    @pytest.mark.parametrize(
        "settings",
        [
            {"aicache_url": URL},
            {"aicache_url": None, "aicache_samples": "off"},
            {"aicache_url": None, "aicache_rollup_period_s": 0},
            {"aicache_url": None, "aicache_disabled": True},
            {"aicache_url": None, "beat_schedule": {ENTRY: {"task": TASK, "schedule": 7.0}}},
        ],
        ids=str,
    )
    def test_nothing_is_said_where_all_is_as_somebody_asked_for(
        self, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any]
    ) -> None:
        beat(make(**settings), tmp_path).sync()
        assert [record.getMessage() for record in caplog.records if record.name == "aicache_tasks"] == []

    def test_another_application_s_beat_gets_none(self, make: Make, tmp_path: Path) -> None:
        finalized(make(aicache_url=URL))
        other = LoneCelery("other", broker="memory://", set_as_current=False)
        other.conf.beat_schedule = {"own": OWN}
        service = beat(other, tmp_path)
        assert ENTRY not in service.scheduler.schedule
        service.sync()
        other.close()


class TestSending:
    @pytest.mark.parametrize(
        "route",
        [{"queue": "elsewhere"}, {"queue": "elsewhere", "exchange": "else", "routing_key": "where"}, {"priority": 3}],
        ids=str,
    )
    def test_a_queue_that_is_set_wins_over_routes(
        self, make: Make, valkey: EmbeddedServer, client: Any, route: dict[str, Any]
    ) -> None:
        app = make(aicache_url=URL, broker_url=valkey.url, task_routes={"*": route}, aicache_rollup_queue="roll.ups")
        self.send(app)
        assert client.llen("roll.ups") + client.llen("roll.ups\x06\x163") == 1
        assert client.llen("elsewhere") == 0

    def test_without_one_routes_decide(self, make: Make, valkey: EmbeddedServer, client: Any) -> None:
        self.send(make(aicache_url=URL, broker_url=valkey.url, task_routes={"aicache_tasks.*": {"queue": "routed"}}))
        assert client.llen("routed") == 1

    def test_the_message_expires_and_holds_no_argument(self, make: Make, valkey: EmbeddedServer, client: Any) -> None:
        self.send(make(aicache_url=URL, broker_url=valkey.url, task_serializer="msgpack"))
        headers = json.loads(client.lindex("celery", 0))["headers"]
        assert (headers["task"], headers["argsrepr"], headers["ignore_result"]) == (TASK, "()", True)
        assert headers["expires"] is not None

    @staticmethod
    def send(app: Celery) -> None:
        """Send the entry as a scheduler does."""
        scheduler = Scheduler(finalized(app))
        scheduler.apply_async(scheduler.schedule[ENTRY], advance=False)
        scheduler.close()


@pytest.fixture
def app(make: Make, valkey: EmbeddedServer) -> Iterator[Celery]:
    # No batch goes by itself, on a look-up that came late.
    made = finalized(make(aicache_url=valkey.url, aicache_ship_after_s=600, aicache_slow_key_ms=0.001))
    yield made
    runtime_of(made).close()


def call_some(app: Celery, count: int = 3) -> None:
    """Have *count* samples wait in the inbox."""
    cache = runtime_of(app).cache
    for number in range(count):
        cache.get_cached_response(f"text {number}", "rolled")
    assert cache.parts.outbox is not None
    assert cache.parts.outbox.flush(30)


class TestTask:
    def test_it_is_a_stock_task_whatever_the_application_s_are(self, make: Make) -> None:
        app = make(aicache_url=URL, task_ignore_result=False)
        app.task_cls = CachedTask
        task = finalized(app).tasks[TASK]
        assert isinstance(task, Task)
        assert not isinstance(task, CachedTask)
        assert (task.ignore_result, task.max_retries, task.name) == (True, 0, TASK)

    def test_it_counts_what_waits_and_says_how_much(self, app: Celery) -> None:
        call_some(app)
        first = app.tasks[TASK].apply().get()
        assert (first["samples"], first["batches"], first["duplicates"], first["waiting"]) == (3, 1, 0, 0)
        assert app.tasks[TASK].apply().get()["samples"] == 0
        assert Summaries(runtime_of(app).cache.parts).totals()["rolled"].misses == 3

    def test_beat_of_an_eager_application_rolls_up_itself(self, app: Celery, caplog: pytest.LogCaptureFixture) -> None:
        app.conf.update(task_always_eager=True, task_eager_propagates=True)
        call_some(app)
        TestSending.send(app)
        assert Summaries(runtime_of(app).cache.parts).totals()["rolled"].misses == 3

    def test_a_server_that_is_away_is_an_expected_failure(self, make: Make, refused_url: str) -> None:
        app = finalized(make(aicache_url=refused_url))
        task = app.tasks[TASK]
        result = task.apply()
        assert isinstance(result.result, StoreError)
        assert isinstance(result.result, task.throws)

    def test_it_notes_when_it_was_asked_for_and_a_worker_that_stands_in_does_not(self, app: Celery) -> None:
        summaries = Summaries(runtime_of(app).cache.parts)
        assert since_asked_s(summaries) is None
        roll_up(app, asked=False)
        assert since_asked_s(summaries) is None
        roll_up(app)
        since_s = since_asked_s(summaries)
        assert since_s is not None
        assert 0 <= since_s < 30

    def test_what_was_set_aside_is_said_once_by_its_number(
        self, app: Celery, client: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        summaries = Summaries(runtime_of(app).cache.parts)
        call_some(app)
        roll_up(app)
        client.hset(summaries.keys.totals, "rolled", b"secret damage")
        client.rpush(summaries.keys.inbox, b"secret entry", b"secret entry")
        call_some(app)
        caplog.clear()
        for _ in range(2):
            roll_up(app)
        said = [record.getMessage() for record in caplog.records if record.name == "aicache_tasks"]
        assert [record.levelname for record in caplog.records if record.name == "aicache_tasks"] == ["WARNING"] * 2
        assert said[0].startswith("aicache: batches of timings that could not be read: 2, set aside.")
        assert said[1].startswith("aicache: summary records that could not be read: 1, set aside and begun anew.")
        assert not any("secret" in line for line in said)


class TestSignal:
    @pytest.fixture
    def heard(self) -> Iterator[list[SimpleNamespace]]:
        told: list[SimpleNamespace] = []

        def broken(**_: Any) -> None:
            raise ValueError("a receiver's own")

        def listen(sender: Any, signal: Any, **given: Any) -> None:
            told.append(SimpleNamespace(sender=sender, **given))

        alert_changed.connect(broken)
        alert_changed.connect(listen)
        yield told
        alert_changed.disconnect(broken)
        alert_changed.disconnect(listen)

    def test_receivers_hear_of_each_change_once_and_cannot_break_the_roll_up(
        self, app: Celery, heard: list[SimpleNamespace], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.ERROR, "celery.utils.dispatch.signal")
        call_some(app, LEAST_TIMINGS)
        assert [roll_up(app).samples, roll_up(app).samples] == [LEAST_TIMINGS, 0]
        (change,) = [change for change in heard if change.alert == "slow_key"]
        assert (change.sender, change.operation, change.before, change.level) == (app, "rolled", "normal", "warning")
        assert (change.threshold, change.unit) == (0.001, "ms")
        assert change.value > 0.001
        assert change.since > 1e9
        assert "a receiver's own" in caplog.text

    def test_the_documented_arguments_are_those_that_are_sent(self, app: Celery, heard: list[SimpleNamespace]) -> None:
        call_some(app, LEAST_TIMINGS)
        roll_up(app)
        assert {frozenset(vars(change)) for change in heard} == {frozenset({"sender", *alert_changed.providing_args})}

    def test_it_is_judged_also_when_nothing_was_committed(self, app: Celery, heard: list[SimpleNamespace]) -> None:
        call_some(app, LEAST_TIMINGS)
        Summaries(runtime_of(app).cache.parts).roll_up()
        assert roll_up(app).commits == 0
        assert [change.alert for change in heard if change.operation == "rolled"] == ["slow_key"]
        app.conf.aicache_slow_key_ms = 1000
        reset_runtime(app)
        roll_up(app)
        assert [change.level for change in heard if change.operation == "rolled"] == ["warning", "normal"]
