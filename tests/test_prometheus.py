"""What Prometheus is shown: the records' own figures, in its own terms, in bounded time."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, parser
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser

from aicache_tasks.records import Sample
from aicache_tasks.reports import families, prometheus, queries
from aicache_tasks.reports.families import STEP_BOUNDS_S
from aicache_tasks.reports.prometheus import RecordsCollector, register
from aicache_tasks.runtime import runtime_of
from aicache_tasks.sketch import Distribution
from aicache_tasks.stores.base import Budget
from aicache_tasks.summaries import Summaries
from aicache_tasks.testing import EmbeddedServer
from tests.faults import FaultProxy, dropped, eventually, free_port, healthy
from tests.reported import HOSTILE, calls, count_up, look_up, make_app, others, reader_of, send
from tests.test_cli import CELERY, environ_of, path, run

__all__ = ["path"]

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
UNITS = ("seconds", "bytes", "batches", "tokens", "cost")
PATIENT_S = 20.0


@pytest.fixture
def app(valkey: EmbeddedServer) -> Celery:
    return make_app(valkey.url)


def registry_of(app: Celery, *, limit_s: float = PATIENT_S, fresh_s: float = 0.0) -> CollectorRegistry:
    registry = CollectorRegistry()
    register(app, registry, limit_s=limit_s, fresh_s=fresh_s)
    return registry


def series(registry: CollectorRegistry) -> Series:
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for m in registry.collect() for s in m.samples}


def counters(registry: CollectorRegistry) -> Series:
    growing = [metric for metric in registry.collect() if metric.type in ("counter", "histogram")]
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for metric in growing for s in metric.samples}


def of(found: Series, name: str, **labels: str) -> float:
    """Return the sum of the series of *name* that have *labels*."""
    return sum(value for (n, held), value in found.items() if n == name and labels.items() <= dict(held).items())


class TestFigures:
    def test_they_are_those_of_the_reader_with_what_waits(self, app: Celery) -> None:
        count_up(app, calls(200, [time.time() - 3600], ["shout", "whisper"]))
        send(app, calls(30, [time.time()], ["shout"], seed=2))
        found, live = series(registry_of(app)), reader_of(app).live()
        assert sum(of(found, "aicache_lookups_total", operation=name) for name in live.totals) == 230
        for name, record in live.totals.items():
            counted = {step: Counter({n[1:]: c for n, c in record.counts.items() if n[0] == step}) for step in ("get",)}
            for (status, reason), count in counted["get"].items():
                assert of(found, "aicache_lookups_total", operation=name, status=status, reason=reason) == count
            assert of(found, "aicache_stores_total", operation=name) == record.of("set")
            assert of(found, "aicache_saved_seconds_total", operation=name) == record.saved.compute_ns / 1e9
            assert of(found, "aicache_spent_cost_total", operation=name) == record.spent.cost_micros / 1e6
            assert of(found, "aicache_stored_bytes_total", operation=name) == record.stored_bytes
            for kind, tokens in record.saved.tokens.items():
                assert of(found, "aicache_saved_tokens_total", operation=name, kind=kind) == tokens
            for step, spread in record.steps.items():
                assert of(found, "aicache_step_seconds_count", operation=name, step=step) == spread.count
                assert of(found, "aicache_step_seconds_sum", operation=name, step=step) == spread.total / 1e9
        assert of(found, "aicache_inbox_batches") == live.backlog.entries > 0
        assert of(found, "aicache_up") == 1

    def test_counts_under_a_bound_are_right_to_one_percent_of_it(self, app: Celery) -> None:
        samples = calls(500, [time.time()], ["shout"])
        count_up(app, samples)
        found = series(registry_of(app))
        took_s = [sample.duration_ns / 1e9 for sample in samples if sample.step == "get"]
        for bound in STEP_BOUNDS_S:
            counted = of(found, "aicache_step_seconds_bucket", operation="shout", step="get", le=str(bound))
            least, most = (sum(value <= bound * (1 + error) for value in took_s) for error in (-0.01, 0.01))
            assert least <= counted <= most
        assert of(found, "aicache_step_seconds_bucket", operation="shout", step="get", le="+Inf") == len(took_s)

    def test_an_alert_and_the_last_roll_up_are_shown_while_they_are_there(self, app: Celery) -> None:
        from aicache_tasks.beat import roll_up

        registry = registry_of(app)
        assert not of(series(registry), "aicache_rollup_asked_timestamp_seconds")
        now_s = time.time()
        send(app, [s for _ in range(200) for s in look_up(now_s, "shout", hit=True, took_ns=10**9)])
        roll_up(app)
        found = series(registry)
        assert of(found, "aicache_alert", alert="slow_operation", operation="shout") == 1
        assert abs(of(found, "aicache_rollup_asked_timestamp_seconds") - now_s) < 60

    def test_a_cache_that_is_switched_off_is_shown_as_that(self, app: Celery) -> None:
        registry, mode = registry_of(app), reader_of(app).summaries.parts.mode
        for off in (False, True, False):
            mode.switch(off=off, budget=Budget(5))
            assert [of(series(registry), "aicache_switched_off")] == [float(off)]
        assert ("aicache_switched_off", ()) in series(registry)

    def test_no_series_names_a_worker_or_a_key(self, app: Celery) -> None:
        count_up(app, calls(20, [time.time()], ["shout"]), "celery@secret-host")
        text = generate_latest(registry_of(app)).decode()
        assert "secret-host" not in text
        assert {name for line in text.splitlines() for name in re.findall(r"(\w+)=", line)} == {
            *("operation", "status", "reason", "step", "le", "kind", "tier", "version", "prices"),
        }

    def test_labels_from_the_server_are_escaped_and_those_that_look_alike_are_one(self, app: Celery) -> None:
        long = "\x01" * 150  # four characters each, escaped
        now_s = time.time()
        names = [HOSTILE, long + "a", long + "b"]
        count_up(app, [s for name in names for s in look_up(now_s, name, hit=True, took_ns=1000)])
        registry = registry_of(app)
        text = generate_latest(registry).decode()
        assert re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text) == []
        names_shown = {s.labels["operation"] for m in registry.collect() for s in m.samples if "operation" in s.labels}
        assert len(names_shown) == 2
        assert max(map(len, names_shown)) <= 200
        assert of(series(registry), "aicache_lookups_total", operation=max(names_shown, key=len)) == 2


class TestConventions:
    def test_both_reference_parsers_read_it(self, app: Celery) -> None:
        count_up(app, calls(50, [time.time()], ["shout", HOSTILE]))
        registry = registry_of(app)
        plain = list(parser.text_string_to_metric_families(generate_latest(registry).decode()))
        strict = list(openmetrics_parser.text_string_to_metric_families(openmetrics.generate_latest(registry).decode()))
        assert {m.name for m in strict} == {m.name for m in registry.collect()}
        assert len(plain) >= len(strict)
        assert all(metric.documentation.endswith(".") for metric in strict)

    def test_names_say_what_is_counted_and_end_with_its_base_unit(self, app: Celery) -> None:
        count_up(app, calls(10, [time.time()], ["shout"]))
        for metric in registry_of(app).collect():
            assert re.fullmatch(r"aicache_[a-z]+(_[a-z]+)*", metric.name)
            assert not re.search(r"_(ms|ns|milliseconds|kb|percent|ratio)$", metric.name)
            assert not metric.unit or metric.name.endswith(f"_{metric.unit}")
            assert metric.type in ("counter", "gauge", "histogram")
            if metric.type == "counter":
                assert {s.name for s in metric.samples} <= {f"{metric.name}_total"}

    def test_what_is_described_beforehand_is_what_comes(self, app: Celery) -> None:
        count_up(app, calls(10, [time.time()], ["shout"]))
        described = {m.name for m in families.nothing()}
        assert not [s for m in families.nothing() for s in m.samples if s.name.endswith("_total") and s.value]
        growing = {m.name for m in registry_of(app).collect() if m.type != "gauge"}
        assert growing <= described

    def test_it_can_stand_in_the_default_registry_once(self, app: Celery) -> None:
        collector = register(app, limit_s=PATIENT_S)
        try:
            assert b"aicache_up 1.0" in generate_latest()
            with pytest.raises(ValueError, match="aicache_up"):
                register(app)
        finally:
            REGISTRY.unregister(collector)


class TestCountersNeverFall:
    @pytest.mark.timeout(300)
    def test_while_timings_come_and_several_roll_ups_count_them(self, app: Celery) -> None:
        registry, stop, sent = registry_of(app), threading.Event(), [0]

        def produce() -> None:
            while not stop.is_set():
                send(app, calls(60, [time.time()], ["shout", "whisper"], sent[0]))
                sent[0] += 60
                stop.wait(0.01)

        def roll_up() -> None:
            while not stop.is_set():
                reader_of(app).summaries.roll_up()

        threads = [threading.Thread(target=work) for work in (produce, roll_up, roll_up)]
        for thread in threads:
            thread.start()
        fell, before = [], counters(registry)
        for _ in range(20):
            now = counters(registry)
            fell += [(key, value, now.get(key)) for key, value in before.items() if now.get(key, -1) < value]
            before = now
        stop.set()
        for thread in threads:
            thread.join()
        assert fell == []
        assert of(counters(registry), "aicache_lookups_total") == sent[0] > 60

    def test_a_process_that_begins_anew_goes_on_where_the_former_was(self, app: Celery) -> None:
        count_up(app, calls(50, [time.time()], ["shout"]))
        before = counters(registry_of(app))
        send(app, calls(5, [time.time()], ["shout"]))
        after = counters(registry_of(make_app(runtime_of(app).settings.url)))
        assert all(after[key] >= value for key, value in before.items())
        assert of(after, "aicache_lookups_total") == 55

    def test_a_value_at_a_bound_stays_on_its_side_whatever_comes_later(self) -> None:
        bounds = [bound * 1e9 for bound in STEP_BOUNDS_S]
        for bound in bounds:
            spread = Distribution()
            spread.add([int(bound)])
            before = families.under(spread, bounds)
            spread.add([10**12])
            assert all(now >= then for now, then in zip(families.under(spread, bounds), before, strict=True))

    def test_a_process_that_begins_while_all_is_counted_says_nothing_rather_than_too_little(
        self, app: Celery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        preview = Summaries.preview

        def overtaken(self: Summaries, **given: Any) -> Any:
            count_up(app, calls(5, [time.time()], ["shout"]))
            return preview(self, **given)

        monkeypatch.setattr(Summaries, "preview", overtaken)
        assert not of(series(registry_of(app)), "aicache_lookups_total")
        monkeypatch.undo()
        assert of(series(registry_of(app)), "aicache_lookups_total") == 5 * queries.TRIES * prometheus.READS

    def test_a_replica_that_missed_a_little_does_not_take_them_back(self, app: Celery, client: Any) -> None:
        registry, totals = registry_of(app), reader_of(app).summaries.keys.totals
        count_up(app, calls(100, [time.time()], ["shout"]))
        older = client.hgetall(totals)
        count_up(app, calls(10, [time.time()], ["shout"], seed=2))
        before = counters(registry)
        client.hset(totals, mapping=older)
        assert counters(registry) == before
        count_up(app, calls(30, [time.time()], ["shout"], seed=3))
        assert of(counters(registry), "aicache_lookups_total") == 130

    def test_records_that_were_lost_begin_anew(self, app: Celery, client: Any) -> None:
        registry = registry_of(app)
        count_up(app, calls(100, [time.time()], ["shout"]))
        assert of(series(registry), "aicache_lookups_total") == 100
        client.flushall()
        count_up(app, calls(10, [time.time()], ["shout"]))
        assert of(series(registry), "aicache_lookups_total") == 10

    @pytest.mark.parametrize(("step", "name"), [("set", "stores"), ("invalidate", "invalidations")])
    def test_records_without_look_ups_that_were_lost_begin_anew(
        self, app: Celery, client: Any, step: Any, name: str
    ) -> None:
        registry = registry_of(app)
        count_up(app, others(10, time.time(), "shout", "ok", step=step))
        assert of(series(registry), f"aicache_{name}_total") == 10
        client.flushall()
        count_up(app, others(3, time.time(), "shout", "ok", step=step))
        assert of(series(registry), f"aicache_{name}_total") == 3
        count_up(app, others(1, time.time(), "shout", "ok", step=step))
        assert of(series(registry), f"aicache_{name}_total") == 4


class TestManyOperations:
    def test_only_the_first_have_histograms_and_keep_them(self, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prometheus, "MOST_HISTOGRAMS", 2)
        registry, now_s = registry_of(app), time.time()
        count_up(app, [*calls(3, [now_s], ["busy"]), *calls(2, [now_s], ["calm"]), *calls(1, [now_s], ["idle"])])
        before = counters(registry)
        assert spread(before) == {"busy", "calm"}
        count_up(app, [*calls(9, [now_s], ["idle"], seed=2), *calls(9, [now_s], ["new"], seed=3)])
        after = counters(registry)
        assert spread(after) == {"busy", "calm"}
        assert all(after[key] >= value for key, value in before.items())
        assert of(after, "aicache_lookups_total", operation="idle") == 10

    def test_a_scrape_stays_small(self, app: Celery) -> None:
        now_s = time.time()
        count_up(app, [s for n in range(1000) for s in look_up(now_s, f"operation {n}", hit=True, took_ns=1000)])
        found = counters(registry_of(app))
        assert len(spread(found)) == prometheus.MOST_HISTOGRAMS
        assert of(found, "aicache_lookups_total") == 1000


def spread(found: Series) -> set[str]:
    """Return the operations that have histograms."""
    return {dict(labels)["operation"] for name, labels in found if name == "aicache_step_seconds_count"}


class TestAServerThatIsAway:
    def test_one_that_refuses_gives_up_0_and_no_figures(self, refused_url: str) -> None:
        found = series(registry_of(make_app(refused_url)))
        assert of(found, "aicache_up") == 0
        assert {name for name, _ in found} == {"aicache_up", "aicache_build_info"}

    def test_one_that_is_frozen_holds_no_scrape_longer_than_the_limit(
        self, valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with FaultProxy(valkey.port) as proxy:
            app = make_app(proxy.url)
            count_up(app, calls(20, [time.time()], ["shout"]))
            monkeypatch.setattr("aicache_tasks.recordstore.ADMIN_BUDGET_S", 1.0)
            registry = registry_of(app, limit_s=0.2)

            def frozen() -> tuple[float, Series]:
                proxy.fault = healthy
                eventually(lambda: of(series(registry), "aicache_lookups_total") == 20)
                proxy.fault = dropped
                return timed(lambda: series(registry))

            took_s, found = frozen()
            for _ in range(4):  # but for a stall, it was the first time
                if took_s >= 0.9:
                    took_s, found = frozen()
            assert took_s < 0.9
            assert of(found, "aicache_lookups_total") == 20, "what was read before"
            eventually(lambda: of(series(registry), "aicache_up") == 0, within_s=20)

    def test_old_figures_are_not_shown_for_long(self, valkey: EmbeddedServer) -> None:
        clock = [0.0]
        with FaultProxy(valkey.port) as proxy:
            app = make_app(proxy.url)
            registry = CollectorRegistry()
            collector = RecordsCollector(lambda: reader_of(app), limit_s=PATIENT_S, fresh_s=1, clock=lambda: clock[0])
            registry.register(collector)
            assert of(series(registry), "aicache_up") == 1
            proxy.fault, collector._limit_s = dropped, 0.05
            clock[0] = prometheus.OLD_S
            assert of(series(registry), "aicache_up") == 1
            clock[0] += 1
            assert of(series(registry), "aicache_up") == 0

    def test_one_that_comes_back_is_read_again(self, own_server: EmbeddedServer) -> None:
        registry = registry_of(make_app(own_server.url))
        assert of(series(registry), "aicache_up") == 1
        own_server.kill()
        assert of(series(registry), "aicache_up") == 0
        own_server.restart()
        eventually(lambda: of(series(registry), "aicache_up") == 1)

    def test_settings_that_are_wrong_are_no_error_of_the_scrape(self, caplog: pytest.LogCaptureFixture) -> None:
        registry = registry_of(make_app(None))
        for _ in range(3):
            assert of(series(registry), "aicache_up") == 0
        said = [record.message for record in caplog.records if "no metrics" in record.message]
        assert len([message for message in said if "aicache_url is not set" in message]) == 1

    def test_scrapes_at_once_are_one_read(self, app: Celery) -> None:
        made: list[Any] = []

        def make() -> Any:
            made.append(1)
            return reader_of(app)

        registry = CollectorRegistry()
        registry.register(RecordsCollector(make, limit_s=PATIENT_S, fresh_s=600))
        threads = [threading.Thread(target=series, args=[registry]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 1


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.monotonic()
    found = work()
    return time.monotonic() - began, found


class TestTheCommand:
    def test_it_prints_the_figures_once(self, app: Celery) -> None:
        count_up(app, calls(20, [time.time()], ["shout"]))
        done = run(app, "metrics", "--once")
        assert done.exit_code == 0, done.output
        names = {m.name for m in parser.text_string_to_metric_families(done.stdout)}
        assert {"aicache_up", "aicache_lookups", "aicache_step_seconds"} <= names

    def test_a_server_that_is_away_is_exit_code_1(self, refused_url: str) -> None:
        done = run(make_app(refused_url), "metrics", "--once")
        assert done.exit_code == 1
        assert "aicache_up 0.0" in done.stdout

    @pytest.mark.usefixtures("heeding")
    def test_it_serves_until_it_is_stopped(self, path: Any, valkey: EmbeddedServer) -> None:
        count_up(make_app(valkey.url), calls(20, [time.time()], ["shout"]))
        port = free_port()
        command = [CELERY, "-A", "shopapp", "aicache", "metrics", "--port", str(port)]
        given = {"cwd": path, "env": environ_of(path, valkey.url), "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **given) as process:
            try:
                eventually(lambda: b"aicache_up 1.0" in fetch(port), within_s=30)
                assert b'aicache_lookups_total{operation="shout"' in fetch(port)
                status, headers, body = head(port)
                assert (status, body, int(headers["Content-Length"]) > 1000) == (200, b"", True)
                assert headers["Content-Type"].startswith("text/plain")
                process.send_signal(signal.SIGINT)
                said = process.communicate(timeout=20)[1]
            finally:
                process.kill()
        assert process.returncode == 130
        assert f"http://127.0.0.1:{port}/metrics has the records in {valkey.url}" in said
        assert "Traceback" not in said

    def test_a_port_that_is_taken_is_said(self, app: Celery, valkey: EmbeddedServer) -> None:
        done = run(app, "metrics", "--port", str(valkey.port))
        assert done.exit_code == 2
        assert f"cannot listen on 127.0.0.1, port {valkey.port}" in done.output

    def test_without_the_package_it_names_the_extra(self, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [
            name for name in sys.modules if name.startswith(("aicache_tasks.reports.prom", "aicache_tasks.reports.fam"))
        ]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "prometheus_client", None)
        done = run(app, "metrics", "--once")
        assert done.exit_code == 2
        assert "pip install 'aicache-tasks[metrics]'" in done.output


def fetch(port: int) -> bytes:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        return bytes(page.read())
    return b""


def head(port: int) -> tuple[int, Any, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", method="HEAD")
    with urllib.request.urlopen(request, timeout=10) as page:
        return page.status, page.headers, page.read()


def test_a_sample_of_an_unknown_step_stands_beside_the_others(app: Celery) -> None:
    count_up(app, [Sample(time.time(), "shout", "brew", "done", "", 5000)])
    assert of(series(registry_of(app)), "aicache_step_seconds_count", step="brew") == 1
