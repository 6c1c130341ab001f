"""Records that this version cannot read: every reader says so, and none shows what is left as if it were all."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from aicache_tasks.errors import UnknownPayload
from aicache_tasks.reports import inspect
from aicache_tasks.reports.commands import metrics
from aicache_tasks.reports.doctor import Finding, examine, records
from aicache_tasks.reports.doctor.case import Case
from aicache_tasks.reports.flower.feed import Feed
from aicache_tasks.reports.flower.snapshot import Asked
from aicache_tasks.reports.inspect import cache_stats
from aicache_tasks.rollup import WINDOWS_S
from aicache_tasks.testing import EmbeddedServer
from tests.faults import eventually, free_port
from tests.reported import calls, count_up, make_app, reader_of, send
from tests.test_cli import read, run
from tests.test_prometheus import fetch, of, registry_of, series


@pytest.fixture
def app(valkey: EmbeddedServer) -> Celery:
    made = make_app(valkey.url)
    count_up(made, calls(20, [time.time() - 120], ["shout", "whisper"]))
    return made


@pytest.fixture
def plant(app: Celery, client: Any) -> Callable[..., bytes]:
    """Change the bytes of the records of `shout`: its total, or one window of each length; return what they were."""
    keys = reader_of(app).summaries.keys

    def put(change: Callable[[bytes], bytes], *kinds: str) -> bytes:
        before = b""
        for kind in kinds or ("total",):
            key = keys.totals if kind == "total" else keys.records("shout", kind)
            field = b"shout" if kind == "total" else max(client.hkeys(key))
            before = client.hget(key, field)
            client.hset(key, field, change(before))
        return before

    return put


def of_version_8(record: bytes) -> bytes:
    return record[:2] + b"\x08" + record[3:]


def damaged(record: bytes) -> bytes:
    return record[:-5]


def found_by_doctor(app: Celery, check: Any) -> list[Finding]:
    return list(examine(Case(app, reader_of(app)), [check]))


def answered(ask: Callable[[], dict[str, Any]], field: str) -> dict[str, Any]:
    """Return the first answer with *field* of a server that is up: where all is slow, threads may not be done yet."""
    answers: list[dict[str, Any]] = [{}]

    def is_there() -> bool:
        answers.append(ask())
        return field in answers[-1] and answers[-1]["store"] == "ok"

    eventually(is_there)
    return answers[-1]


class TestOfANewerVersion:
    @pytest.mark.parametrize("kind", WINDOWS_S)
    def test_a_reader_raises_and_says_which(self, app: Celery, plant: Any, kind: str) -> None:
        plant(of_version_8, kind)
        place = rf"record '\d+' of '{{aicache:s}}:{kind[0]}:shout'"
        with pytest.raises(UnknownPayload, match=f"{place}: .*version 8, not 1; a newer aicache-tasks"):
            reader_of(app).summaries.read("shout", kind, 0, 2**31)

    @pytest.mark.parametrize("command", ["stats", "export --resolution total", "report --html -"])
    def test_of_a_total_commands_end_with_1(self, app: Celery, plant: Any, command: str) -> None:
        plant(of_version_8)
        done = run(app, *command.split())
        assert (done.exit_code, done.stdout) == (1, "")
        assert re.match("Error: record 'shout' of '{aicache:s}:totals': .*version 8, not 1", done.stderr)

    @pytest.mark.parametrize("command", ["summaries", "summaries --compare 1d", "top", "export", "report --html -"])
    def test_of_a_window_commands_end_with_1(self, app: Celery, plant: Any, command: str) -> None:
        plant(of_version_8, *WINDOWS_S)
        done = run(app, *command.split(), "--since", "1h")
        assert (done.exit_code, done.stdout) == (1, "")
        assert re.match(r"Error: record '\d+' of '{aicache:s}:[mhd]:shout': .*version 8, not 1", done.stderr)

    def test_a_worker_s_minute_can_be_removed_where_the_error_says_it_lies(self, app: Celery, client: Any) -> None:
        key = reader_of(app).summaries.keys.worker("celery@here")
        field = max(client.hkeys(key))
        client.hset(key, field, of_version_8(client.hget(key, field)))
        said = re.match(r"Error: record '(.+)' of '(.+)': .*version 8, not 1", run(app, "stats").stderr)
        assert said is not None
        assert client.hdel(said[2], said[1]) == 1
        assert run(app, "stats").exit_code == 0

    def test_a_collector_s_counters_do_not_fall(self, app: Celery, plant: Any, client: Any) -> None:
        registry = registry_of(app)
        before = of(series(registry), "aicache_lookups_total", operation="shout")
        record = plant(of_version_8)
        send(app, calls(10, [time.time()], ["shout"], seed=2))
        found = series(registry)
        assert {name for name, _ in found} == {"aicache_up", "aicache_build_info"}
        assert of(found, "aicache_up") == 0
        client.hset(reader_of(app).summaries.keys.totals, "shout", record)
        assert of(series(registry), "aicache_lookups_total", operation="shout") == before + 10

    @pytest.mark.parametrize("served", [False, True])
    def test_metrics_says_on_stderr_why_there_are_none(
        self, app: Celery, plant: Any, monkeypatch: pytest.MonkeyPatch, served: bool
    ) -> None:
        plant(of_version_8)
        port = free_port()
        monkeypatch.setattr(metrics, "_wait", lambda _thread: fetch(port))
        with monkeypatch.context() as alone:
            for name in ("", "aicache_tasks"):
                alone.setattr(logging.getLogger(name), "handlers", [])  # as in a process of its own
            done = run(app, "metrics", *(("--port", str(port)) if served else ("--once",)))
        assert done.exit_code == (0 if served else 1)
        assert re.search("aicache: no metrics: record 'shout' of .*version 8, not 1", done.stderr)

    def test_metrics_says_nothing_on_stderr_where_the_application_logs_it(
        self, app: Celery, plant: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plant(of_version_8)
        file = io.StringIO()
        with monkeypatch.context() as alone:
            alone.setattr(logging.getLogger(), "handlers", [])
            alone.setattr(logging.getLogger("aicache_tasks"), "handlers", [logging.StreamHandler(file)])
            done = run(app, "metrics", "--once")
        assert "no metrics" in file.getvalue()
        assert "no metrics" not in done.stderr

    def test_the_tab_says_what_to_do_and_keeps_the_figures_from_before(self, app: Celery, plant: Any) -> None:
        feed = Feed(limit_s=30.0)
        try:
            sound = asyncio.run(feed.document(app, Asked("all")))
            plant(of_version_8)
            feed.forget()
            document = asyncio.run(feed.document(app, Asked("all")))
        finally:
            feed.close()
        assert (document["state"], document["total"]) == ("newer", sound["total"])
        assert "version 8, not 1" in document["advice"]["text"]
        assert "Upgrade aicache-tasks where Flower runs" in document["advice"]["todo"][0]

    def test_a_worker_that_is_asked_answers_with_the_error(self, app: Celery, plant: Any) -> None:
        plant(of_version_8)
        eventually(lambda: "version 8, not 1" in cache_stats(app, "celery@here")["error"])

    def test_a_worker_that_read_figures_before_does_not_call_the_server_down(
        self, app: Celery, plant: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sound = answered(lambda: cache_stats(app, "celery@here"), "total")
        plant(of_version_8)
        monkeypatch.setattr(inspect, "FRESH_S", 0)
        monkeypatch.setattr(inspect, "_TIMES_AS_LONG", 0)
        found = answered(lambda: cache_stats(app, "celery@here"), "figures")
        assert found["total"] == sound["total"]
        for answer in (found, answered(lambda: inspect.line(app), "figures")):
            assert re.match("from before: record 'shout' of .*version 8, not 1", answer["figures"])

    def test_nor_does_one_that_read_none(self, app: Celery, plant: Any) -> None:
        plant(of_version_8)
        line = answered(lambda: inspect.line(app), "figures")
        assert re.match("record 'shout' of .*version 8, not 1", line["figures"])

    def test_doctor_fails(self, app: Celery, plant: Any) -> None:
        plant(of_version_8)
        (finding,) = found_by_doctor(app, records.inbox)
        assert (finding.level, "version 8, not 1" in finding.what) == ("fail", True)

    @pytest.mark.parametrize("chosen", [("--operation", "shout"), ("--pattern", "sh*"), ("--all",)])
    def test_answers_can_be_invalidated_and_nothing_is_said_of_what_they_saved(
        self, app: Celery, plant: Any, chosen: tuple[str, ...]
    ) -> None:
        plant(of_version_8)
        done = read(app, "invalidate", *chosen, "--yes")
        assert "shout" in done["invalidated"]
        assert done["had_saved"] is None


class TestDamaged:
    def test_totals_are_counted_and_told_of(self, app: Celery, plant: Any) -> None:
        plant(damaged)
        found = read(app, "stats")
        assert {row["operation"]: row["damaged_records"] for row in found["operations"]} == {"shout": 1, "whisper": 0}
        assert found["set_aside"]["records"] == 1
        assert "1 record could not be read: see Entries set aside" in run(app, "stats").output

    def test_the_roll_up_that_sets_it_aside_leaves_the_count(self, app: Celery, plant: Any) -> None:
        plant(damaged)
        registry = registry_of(app)
        assert of(series(registry), "aicache_damaged_records_total") == 1
        count_up(app, calls(20, [time.time()], ["shout"]))
        assert of(series(registry), "aicache_damaged_records_total") == 1
        assert of(series(registry), "aicache_up") == 1

    def test_a_window_is_counted_and_told_of(self, app: Celery, plant: Any) -> None:
        plant(damaged, *WINDOWS_S)
        assert "1 record could not be read: see Entries set aside" in run(app, "summaries", "--since", "1h").output
        rows = read(app, "summaries", "--since", "1h", "--operation", "shout")["rows"]
        assert [row["damaged_records"] for row in rows] == [1]
        lines = [json.loads(line) for line in run(app, "export", "--operation", "shout").stdout.splitlines()]
        assert [line["damaged_records"] for line in lines] == [1]

    def test_doctor_warns(self, app: Celery, plant: Any) -> None:
        plant(damaged)
        assert [(f.level, f.what) for f in found_by_doctor(app, records.inbox)][1:] == [
            ("warn", "1 record of lifetime totals cannot be read")
        ]
        count_up(app, calls(20, [time.time()], ["shout"]))
        assert [f.level for f in found_by_doctor(app, records.inbox)] == ["ok"], "it is set aside and begun anew"
