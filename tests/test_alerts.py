"""Alerts over all workers, judged by records on a real server."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aicache_tasks import AIResponseCache, StoreError, alerts
from aicache_tasks.alerts import AlertChange, AlertState
from aicache_tasks.records import Sample
from aicache_tasks.summaries import Summaries
from aicache_tasks.testing import EmbeddedServer
from tests.caches import live_cache

MS = 1_000_000
CALM = {"aicache_memory_warning_bytes": 2**49, "aicache_memory_critical_bytes": 2**50}


class Office:
    """One namespace's records, fed and judged by processes that may be set differently."""

    def __init__(self, url: str) -> None:
        self._url, self._caches = url, list[AIResponseCache]()
        self.default = self.summaries()

    def summaries(self, **settings: Any) -> Summaries:
        """Return what another process would look through."""
        given = {**CALM, **{f"aicache_{name}": value for name, value in settings.items()}}
        self._caches.append(live_cache(self._url, given, ship=True))
        return Summaries(self._caches[-1].parts)

    def feed(
        self, step: str, status: str, count: int, ms: float = 1.0, operation: str = "shout", ago_s: float = 0
    ) -> None:
        """Have *count* samples counted."""
        sample = Sample(time.time() - ago_s, operation, step, status, "", round(ms * MS))
        cache = self._caches[0]
        for _ in range(count):
            cache.parts.samples.ship(sample)
        assert cache.parts.outbox is not None
        assert cache.parts.outbox.flush(30)
        assert self.default.roll_up().samples == count

    def judge(self, **settings: Any) -> list[AlertChange]:
        return list(alerts.changes(self.summaries(**settings) if settings else self.default))

    def current(self) -> list[AlertState]:
        return alerts.current(self.default)

    def close(self) -> None:
        for cache in self._caches:
            cache.close()


@pytest.fixture
def office(valkey: EmbeddedServer) -> Iterator[Office]:
    made = Office(valkey.url)
    yield made
    made.close()


def levels(changes: list[AlertChange]) -> list[tuple[str, str, str, str]]:
    return [(change.alert, change.operation, change.before, change.level) for change in changes]


def test_without_records_nothing_is_said_and_nothing_is_written(office: Office, client: Any) -> None:
    assert office.judge() == []
    assert office.current() == []
    assert client.exists(office.default.keys.alerts) == 0


@pytest.mark.parametrize(
    ("step", "status", "alert"),
    [("key", "success", "slow_key"), ("get", "hit", "slow_operation"), ("set", "success", "slow_operation")],
)
def test_a_95th_percentile_over_its_limit_is_a_warning_for_its_operation(
    office: Office, step: str, status: str, alert: str
) -> None:
    office.feed(step, status, 94, ms=1)
    office.feed(step, status, 6, ms=400)
    office.feed(step, status, 100, ms=1, operation="calm")
    before_s = time.time()
    (change,) = office.judge()
    assert levels([change]) == [(alert, "shout", "normal", "warning")]
    assert change.value == pytest.approx(400, rel=0.01)
    assert (change.threshold, change.unit) == ({"slow_key": 100.0, "slow_operation": 50.0}[alert], "ms")
    assert change.since == pytest.approx(before_s, abs=30)
    assert office.judge() == []


def test_a_few_slow_calls_under_the_95th_percentile_are_no_warning(office: Office) -> None:
    office.feed("get", "hit", 96, ms=1)
    office.feed("get", "hit", 4, ms=400)
    assert office.judge() == []


def test_slow_stores_are_not_hidden_by_many_fast_look_ups(office: Office) -> None:
    office.feed("get", "hit", 400, ms=1)
    office.feed("set", "success", 20, ms=400)
    assert levels(office.judge()) == [("slow_operation", "shout", "normal", "warning")]


def test_fewer_than_twenty_timings_are_no_percentile_and_leave_the_level_as_it_is(office: Office) -> None:
    office.feed("get", "hit", 400, ms=1)
    office.feed("set", "success", alerts.LEAST_TIMINGS - 1, ms=400)
    office.feed("key", "success", alerts.LEAST_TIMINGS - 1, ms=400, operation="whisper")
    assert office.judge() == []
    office.feed("set", "success", 1, ms=400)
    assert levels(office.judge()) == [("slow_operation", "shout", "normal", "warning")]
    office.feed("get", "hit", 20, ms=400, operation="whisper", ago_s=700)
    assert levels(office.judge(alert_window_s=900)) == [("slow_operation", "whisper", "normal", "warning")]
    office.feed("get", "hit", 1, ms=1, operation="whisper")
    assert office.judge() == [], "one fast look-up alone does not say that all is well"


def test_only_the_window_counts_and_what_has_no_calls_in_it_is_normal_again(office: Office) -> None:
    office.feed("get", "hit", 20, ms=400, ago_s=700)
    assert office.judge() == []
    assert levels(office.judge(alert_window_s=900)) == [("slow_operation", "shout", "normal", "warning")]
    (over,) = office.judge()
    assert levels([over]) == [("slow_operation", "shout", "warning", "normal")]
    assert over.value is None


def test_an_alert_is_left_only_under_nine_tenths_of_its_limit(office: Office) -> None:
    office.feed("get", "hit", 20, ms=100)
    assert levels(office.judge(slow_operation_ms=99)) == [("slow_operation", "shout", "normal", "warning")]
    assert office.judge(slow_operation_ms=109) == []
    assert [state.threshold for state in office.current()] == [109.0]
    assert levels(office.judge(slow_operation_ms=114)) == [("slow_operation", "shout", "warning", "normal")]
    assert office.judge(slow_operation_ms=109) == []


def test_invalidations_of_all_operations_and_workers_count_together(office: Office) -> None:
    office.feed("invalidate", "success", 30, operation="")
    office.feed("invalidate", "success", 19, operation="shout")
    assert office.judge() == []
    office.feed("invalidate", "failed", 1, operation="other")
    (change,) = office.judge()
    assert levels([change]) == [("invalidation_rate", "", "normal", "warning")]
    assert (change.value, change.threshold, change.unit) == (50, 50, "an hour")
    office.feed("invalidate", "success", 50, operation="")
    (change,) = office.judge()
    assert levels([change]) == [("invalidation_rate", "", "warning", "critical")]
    assert (change.value, change.threshold) == (100, 100)


def test_invalidations_of_over_an_hour_ago_do_not_count(office: Office) -> None:
    office.feed("invalidate", "success", 200, operation="", ago_s=3700)
    assert office.judge() == []


@pytest.mark.parametrize("kind", ["total", "minute"])
def test_records_of_a_newer_version_leave_all_other_operations_judged(
    office: Office, client: Any, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    office.feed("invalidate", "success", 50)
    assert levels(office.judge()) == [("invalidation_rate", "", "normal", "warning")]
    office.feed("invalidate", "success", 50)
    office.feed("get", "hit", 20, ms=400)
    office.feed("get", "hit", 20, ms=400, operation="whisper")
    keys = office.default.keys
    key = keys.totals if kind == "total" else keys.records("shout", kind)
    for field, record in client.hgetall(key).items():
        if kind == "minute" or field == b"shout":
            client.hset(key, field, record[:2] + b"\x08" + record[3:])
    assert levels(office.judge()) == [("slow_operation", "whisper", "normal", "warning")]
    assert [state.level for state in office.current()] == ["warning", "warning"], "too small a sum is no level"
    (said,) = [record.message for record in caplog.records if "not judged" in record.message]
    assert re.search("not judged: 1, nor invalidations; record .*version 8, not 1", said)


def used_memory(client: Any) -> int:
    """Return what the server holds with 20 MiB, against which a connection more or less does not matter.

    The server makes them itself: of what is sent to it, it keeps a buffer for some tenths of a second.
    """
    client.setrange("ballast", 20 * 2**20, b"x")
    used: int = client.info("memory")["used_memory"]
    return used


def test_the_memory_is_the_server_s_with_two_levels_that_do_not_flap(own_server: EmbeddedServer) -> None:
    office = Office(own_server.url)
    with own_server.client() as client:
        used = used_memory(client)
    assert levels(office.judge(memory_warning_bytes=1, memory_critical_bytes=2)) == [
        ("memory", "", "normal", "critical")
    ]
    near = {"memory_warning_bytes": 1, "memory_critical_bytes": int(used / 0.95)}
    assert office.judge(**near) == []
    far = {"memory_warning_bytes": int(used / 0.95), "memory_critical_bytes": int(used / 0.5)}
    assert levels(office.judge(**far)) == [("memory", "", "critical", "warning")]
    assert levels(office.judge()) == [("memory", "", "warning", "normal")]
    assert office.judge(**far) == []
    office.close()


def test_without_limits_of_its_own_the_memory_is_judged_by_where_the_server_refuses(own_server: EmbeddedServer) -> None:
    office, unset = Office(own_server.url), {"memory_warning_bytes": 0, "memory_critical_bytes": 0}
    with own_server.client() as client:
        used = used_memory(client)
        assert office.judge(**unset) == [], "a server without a limit has none to come near to"
        client.config_set("maxmemory", 2 * used)
        assert office.judge(**unset) == []
        client.config_set("maxmemory", int(used / 0.9))
        (change,) = office.judge(**unset)
        assert levels([change]) == [("memory", "", "normal", "warning")]
        assert change.threshold == pytest.approx(0.85 * int(used / 0.9))
        client.config_set("maxmemory", int(used / 0.97))
        assert levels(office.judge(**unset)) == [("memory", "", "warning", "critical")]
        client.config_set("maxmemory-policy", "volatile-lfu")
        (over,) = office.judge(**unset)
        assert levels([over]) == [("memory", "", "critical", "normal")], "it evicts, and may be full"
        assert over.value is None
    office.close()


def test_a_server_that_does_not_say_its_size_has_its_other_alerts(office: Office, client: Any) -> None:
    client.execute_command("ACL", "SETUSER", "limited", "reset", "on", "nopass", "~*", "+@all", "-info")
    office.feed("get", "hit", 20, ms=400)
    own = office._url.replace("redis://", "redis://limited:any@")
    cache = live_cache(own, {"aicache_memory_warning_bytes": 1}, ship=True)
    try:
        assert levels(list(alerts.changes(Summaries(cache.parts)))) == [
            ("slow_operation", "shout", "normal", "warning")
        ]
    finally:
        cache.close()
        client.execute_command("ACL", "DELUSER", "limited")


class TestHitRate:
    def test_it_is_off_unless_there_is_a_floor(self, office: Office) -> None:
        office.feed("get", "miss", 200)
        assert office.judge() == []
        (change,) = office.judge(hit_rate_floor=0.5)
        assert levels([change]) == [("hit_rate", "shout", "normal", "warning")]
        assert (change.value, change.threshold) == (0.0, 0.5)
        assert levels(office.judge()) == [("hit_rate", "shout", "warning", "normal")]

    def test_fewer_look_ups_than_the_least_say_nothing(self, office: Office) -> None:
        office.feed("get", "miss", 99)
        assert office.judge(hit_rate_floor=0.5) == []
        office.feed("get", "miss", 1)
        assert levels(office.judge(hit_rate_floor=0.5)) == [("hit_rate", "shout", "normal", "warning")]
        assert office.judge(hit_rate_floor=0.5, hit_rate_min_lookups=500) == [], "and do not end it either"

    def test_an_operation_that_is_no_longer_called_is_normal_again(self, office: Office) -> None:
        office.feed("get", "miss", 200, ago_s=700)
        assert len(office.judge(hit_rate_floor=0.5, alert_window_s=900)) == 1
        (over,) = office.judge(hit_rate_floor=0.5)
        assert (over.level, over.value) == ("normal", None)

    def test_it_is_left_only_clearly_above_the_floor(self, office: Office) -> None:
        office.feed("get", "hit", 60)
        office.feed("get", "miss", 40)
        assert len(office.judge(hit_rate_floor=0.61)) == 1
        assert office.judge(hit_rate_floor=0.59) == []
        assert levels(office.judge(hit_rate_floor=0.54)) == [("hit_rate", "shout", "warning", "normal")]
        assert office.judge(hit_rate_floor=0.59) == []

    @pytest.mark.parametrize("floor", [0.01, 0.5, 0.9, 0.99, 1.0])
    def test_every_floor_can_be_left(self, floor: float) -> None:
        assert alerts.next_level_under("warning", 1.0, floor) == "normal"
        assert alerts.next_level_under("normal", floor, floor) == "normal"
        assert alerts.next_level_under("normal", floor - 0.001, floor) == "warning"


def test_a_change_is_one_log_line_of_its_level_with_the_name_escaped(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aicache_tasks.alerts")
    name = "evil\n" + "x" * 100
    office.feed("get", "hit", 20, ms=400, operation=name)
    office.judge()
    office.judge()
    office.judge(slow_operation_ms=3000)
    office.judge(slow_operation_ms=3000, memory_warning_bytes=1, memory_critical_bytes=2)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if record.name.endswith("alerts")]
    cut = "'evil\\n" + "x" * 59 + "'"
    assert [level for level, _ in lines] == ["WARNING", "INFO", "ERROR"]
    assert lines[0][1].startswith(f"aicache.alert slow_operation of {cut} is warning, was normal: ")
    assert lines[1][1].startswith(f"aicache.alert slow_operation of {cut} is normal, was warning: ")
    assert lines[2][1].startswith("aicache.alert memory is critical, was normal: ")


def test_a_log_line_has_figures_for_people_and_the_record_the_numbers(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aicache_tasks.alerts")
    office.feed("get", "hit", 9, ms=2_500)
    office.feed("get", "miss", 91, ms=2_500)
    office.feed("invalidate", "success", 1234, operation="")
    office.judge(memory_warning_bytes=1000, hit_rate_floor=0.5)
    office.judge(slow_operation_ms=3000)
    told = [record for record in caplog.records if record.name == "aicache_tasks.alerts"]
    lines = {record.args[0]: record for record in told if record.args and record.levelname != "INFO"}
    said = {alert: record.getMessage().partition("was normal: ")[2] for alert, record in lines.items()}
    assert re.fullmatch(r"\d[\d.]* MB \(threshold 1 KB\)", said.pop("memory"))
    assert re.fullmatch(r"2,[45]\d\d ms \(threshold 50 ms\)", said.pop("slow_operation"))
    assert said == {
        "hit_rate": "9 % (threshold 50 %)",
        "invalidation_rate": "1,234 an hour (threshold 100 an hour)",
    }
    assert not any("e+" in record.getMessage() for record in caplog.records)
    numbers = lines["hit_rate"].aicache  # type: ignore[attr-defined]
    assert numbers == {
        "alert": "hit_rate", "operation": "'shout'", "level": "warning", "before": "normal", "value": 0.09,
        "threshold": 0.5, "unit": "hits / look-ups", "since": numbers["since"],
    }  # fmt: skip
    assert "no figures (threshold 0 %)" in [r.getMessage() for r in caplog.records if "hit_rate" in r.getMessage()][-1]


def test_of_several_at_once_one_tells_of_each_change(office: Office) -> None:
    for operation in ("a", "b", "c"):
        office.feed("get", "hit", 20, ms=400, operation=operation)
    told: list[AlertChange] = []
    judges = [office.summaries() for _ in range(4)]
    gate = threading.Barrier(len(judges))

    def judge(summaries: Summaries) -> None:
        gate.wait()
        told.extend(alerts.changes(summaries))

    threads = [threading.Thread(target=judge, args=(summaries,)) for summaries in judges]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(levels(told)) == [("slow_operation", name, "normal", "warning") for name in ("a", "b", "c")]


def test_readers_see_what_is_not_normal_with_the_newest_value(office: Office) -> None:
    office.feed("get", "hit", 20, ms=400)
    office.feed("key", "success", 20, ms=400, operation="other:one")
    (first, second) = sorted(office.judge(), key=lambda change: change.operation)
    assert [(state.alert, state.operation) for state in office.current()] == [
        ("slow_key", "other:one"),
        ("slow_operation", "shout"),
    ]
    office.feed("get", "hit", 400, ms=800)
    assert office.judge() == []
    state = office.current()[1]
    assert state.value == pytest.approx(800, rel=0.01)
    assert (state.level, state.threshold, state.unit, state.since) == ("warning", 50.0, "ms", second.since)
    assert first.operation == "other:one"


@pytest.mark.parametrize(
    "planted",
    [b"", b"nonsense", b"[" * 400, b'["loud",1,2,3]', b'["warning",-1,2,3]', b'["warning",1,2,3]' + b" " * 600],
    ids=repr,
)
def test_a_state_that_somebody_planted_is_none(office: Office, client: Any, planted: bytes) -> None:
    client.hset(office.default.keys.alerts, mapping={"slow_operation:shout": planted, b"\xff:x": planted})
    assert office.current() == []
    office.feed("get", "hit", 20, ms=400)
    assert levels(office.judge()) == [("slow_operation", "shout", "normal", "warning")]
    assert len(office.current()) == 1


def test_alerts_of_unknown_names_are_not_shown(office: Office, client: Any) -> None:
    client.hset(office.default.keys.alerts, "of_a_newer_version:shout", b'["warning",1,2,3]')
    assert office.current() == []


def test_a_server_that_is_away_is_a_store_error(refused_url: str) -> None:
    cache = live_cache(refused_url, ship=True)
    read: list[Callable[[], Any]] = [
        lambda: alerts.current(Summaries(cache.parts)),
        lambda: list(alerts.changes(Summaries(cache.parts))),
    ]
    for ask in read:
        with pytest.raises(StoreError):
            ask()
