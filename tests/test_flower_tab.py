"""The tab in real Flower processes, asked as browsers and scripts ask: over HTTP."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
from celery import Celery

from aicache_tasks.reports.flower import tab as flower_tab
from aicache_tasks.reports.flower.snapshot import figures_of
from aicache_tasks.reports.queries import Reader, total_of
from aicache_tasks.reports.spans import Span
from aicache_tasks.reports.wording import label
from aicache_tasks.runtime import runtime_of
from aicache_tasks.testing import EmbeddedServer
from tests.faults import black_hole
from tests.flower_process import LOGIN, PASSWORD, ROOT, USER, FlowerProcess, conf_of_the_package, running
from tests.reported import HOSTILE, calls, count_up, make_app, send

pytestmark = pytest.mark.timeout(240)
"""The first test waits for five Flowers to start."""

PACKAGE = ROOT / "aicache_tasks" / "reports" / "flower"
ASSETS = sorted(path for path in PACKAGE.rglob("*") if path.suffix in {".html", ".js", ".css"})
FORMULAS = ("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1")
MARKUP = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
NAMES = ["summarize", "qa", HOSTILE, MARKUP, *FORMULAS]
HOUR = 3600
OWN_CONF = "from aicache_tasks.reports.flower import install_tab\ninstall_tab()\ninstall_tab()\n"
CALM = {"AICACHE_BUDGET_MS": "5000", "AICACHE_CONNECT_MS": "5000"}
"""A machine that stalls must not turn a server that is there into one that is away."""
HANGS_S = 3.0
"""How long the Flower whose server swallows all tries to connect: who waited for it would wait longer than a stall."""
OTHER_FLOWER = "import flower\nflower.__version__ = '2.3.0'\n" + OWN_CONF


@pytest.fixture(scope="module")
def shop() -> Iterator[Celery]:
    """An application with records of the last thirty days, and some timings that wait."""
    with EmbeddedServer() as server:
        app = make_app(server.url)
        now_s = time.time()
        times = [now_s - ago for ago in (1, 60, 1800, 5 * HOUR, 23 * HOUR, 5 * 24 * HOUR, 29 * 24 * HOUR)]
        count_up(app, calls(900, times, NAMES), "celery@one")
        count_up(app, calls(200, times[:3], NAMES, seed=2), "celery@two")
        send(app, calls(40, times[:1], NAMES, seed=3), "producer@web")
        yield app


@pytest.fixture(scope="module")
def other_shop(shop: Celery) -> Celery:
    """Another namespace on the same server, whose answers may be invalidated: that adds to what is recorded."""
    app = make_app(runtime_of(shop).settings.require_url(), aicache_namespace="other")
    count_up(app, calls(50, [time.time()], ["summarize", "qa"]))
    return app


@pytest.fixture(scope="module")
def flowers(shop: Celery, other_shop: Celery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Flowers that are set up differently: they start at once, which takes as long as one."""
    folder = tmp_path_factory.mktemp("flower")
    own, other = folder / "flowerconfig.py", folder / "other.py"
    own.write_text(OWN_CONF)
    other.write_text(OTHER_FLOWER)
    url = runtime_of(shop).settings.require_url()
    here = {"AICACHE_URL": url, "AICACHE_TEST_BROKER": url.replace("/0", "/1"), **CALM}
    may = {"AICACHE_FLOWER_INVALIDATE": "1", "AICACHE_NAMESPACE": runtime_of(other_shop).settings.namespace}
    with black_hole() as nowhere:
        lost = here | {"AICACHE_URL": nowhere, "FLOWER_UNAUTHENTICATED_API": "true"}
        lost["AICACHE_CONNECT_MS"] = f"{HANGS_S * 1000:.0f}"
        guarded = ("--basic_auth=" + f"{USER}:{PASSWORD}",)
        found = SimpleNamespace(
            guarded=FlowerProcess(folder, conf_of_the_package(), *guarded, environ=here, prefix="/ops"),
            may=FlowerProcess(folder, own, *guarded, environ=here | may),
            read_only=FlowerProcess(folder, own, "--read_only=true", environ=here | may),
            lost=FlowerProcess(folder, own, environ=lost),
            other=FlowerProcess(folder, other, environ=here),
        )
        with running(*vars(found).values()):
            yield found


@pytest.fixture
def reader(shop: Celery) -> Reader:
    return Reader(runtime_of(shop).cache.parts)


def data(flower: FlowerProcess, **asked: str) -> Any:
    reply = flower.get(f"/aicache/data?{urlencode(asked)}")
    assert reply.status == 200, reply.text
    return reply.json


class TestWhoGetsIn:
    @pytest.mark.parametrize("path", ["/aicache", "/aicache/data", "/aicache/operations.csv", "/api/aicache"])
    def test_only_who_has_a_password_sees_it_if_flower_has_passwords(self, flowers: SimpleNamespace, path: str) -> None:
        assert flowers.guarded.get(path, headers={}).status == 401
        assert flowers.guarded.get(path).status == 200

    def test_the_api_is_shut_where_nobody_logs_in_unless_flower_is_told_so(self, flowers: SimpleNamespace) -> None:
        assert flowers.read_only.get("/aicache/data").status == 200
        assert flowers.read_only.get("/api/aicache").status == 401
        assert flowers.lost.get("/api/aicache").status == 200

    def test_page_and_api_show_the_same(self, flowers: SimpleNamespace) -> None:
        page, api = data(flowers.guarded, span="all"), flowers.guarded.get("/api/aicache?span=all").json
        assert page["operations"] == api["operations"]
        assert page.keys() == api.keys()

    def test_the_page_allows_nothing_from_elsewhere_and_nothing_inline(self, flowers: SimpleNamespace) -> None:
        reply = flowers.guarded.get("/aicache")
        assert reply.headers["Content-Security-Policy"].startswith("default-src 'self'; img-src 'self' data:;")
        assert reply.headers["Cache-Control"] == "no-store"
        assert re.findall(r"<script(?![^>]*\bsrc=)|\bstyle=|\son\w+=", reply.text) == []


class TestUnderAPrefix:
    @pytest.mark.parametrize("page", ["/", "/workers", "/tasks", "/broker", "/aicache"])
    def test_every_page_has_the_tab(self, flowers: SimpleNamespace, page: str) -> None:
        text = flowers.guarded.get(page).text
        (link,) = re.findall(r'<a class="nav-link[^>]*href="/ops/aicache"[^>]*>AI cache</a>', text)
        assert ('aria-current="page"' in link) == (page == "/aicache")

    def test_all_that_the_page_names_is_under_it_and_there(self, flowers: SimpleNamespace) -> None:
        text = flowers.guarded.get("/aicache").text
        named = re.findall(r'(?:href|src|data-data)="(/[^"]*)"', text)
        assert [address for address in named if not address.startswith("/ops/")] == []
        assert {flowers.guarded.get(address.removeprefix("/ops")).status for address in named} == {200}

    def test_scripts_are_asked_for_anew_after_an_upgrade(self, flowers: SimpleNamespace) -> None:
        reply = flowers.guarded.get("/aicache/static/plots.js", headers={})
        assert (reply.status, reply.headers["Cache-Control"]) == (200, "no-cache")
        assert "javascript" in reply.headers["Content-Type"]
        assert flowers.guarded.get("/aicache/static/../view.py").status in {403, 404}


class TestFigures:
    @pytest.mark.parametrize("span", ["1h", "24h", "30d"])
    def test_those_of_a_span_are_the_readers(self, flowers: SimpleNamespace, reader: Reader, span: str) -> None:
        document = data(flowers.guarded, span=span)
        asked = {"1h": HOUR, "24h": 24 * HOUR, "30d": 720 * HOUR}[span]
        merged = reader.merge(Span(document["at_s"] - asked, document["at_s"]))
        shown = {row.pop("operation"): row for row in document["operations"]}
        assert shown == {name: {"label": label(name), **figures_of(r)} for name, r in merged.records.items()}
        assert document["total"] == figures_of(total_of(merged.records.values()))
        assert document["span"] == {
            "name": span,
            "start_s": merged.cover.span.start_s,
            "end_s": merged.cover.span.end_s,
        }

    def test_those_of_all_time_count_what_waits(self, flowers: SimpleNamespace, reader: Reader) -> None:
        document, live = data(flowers.guarded, span="all"), reader.live()
        assert live.waiting.samples == document["rollup"]["samples"] > 0
        assert document["total"] == document["all_time"] == figures_of(total_of(live.totals.values()))
        assert {row["operation"] for row in document["operations"]} == set(live.totals)
        assert {row["worker"]: row["hits"] for row in document["workers"]} == {
            name: total_of(minutes).hits for name, minutes in live.workers.items()
        }

    @pytest.mark.parametrize(
        ("span", "resolution", "windows"), [("1h", "minute", 61), ("24h", "hour", 25), ("30d", "day", 31)]
    )
    def test_windows_are_the_records_of_their_time(
        self, flowers: SimpleNamespace, reader: Reader, span: str, resolution: str, windows: int
    ) -> None:
        document = data(flowers.guarded, span=span)
        shown = document["windows"]
        start_s, length_s = shown["each"][0]["start_s"], shown["length_s"]
        assert (shown["resolution"], len(shown["each"])) == (resolution, pytest.approx(windows, abs=1))
        for at, window in enumerate(shown["each"]):
            assert window["start_s"] == start_s + at * length_s
        known = [
            r
            for name in reader.summaries.operations()
            for r in reader.summaries.read(name, resolution, start_s, time.time())
        ]
        hits = sum(window["lookups"].get("hit", 0) for window in shown["each"])
        assert hits == sum(record.hits for record in known) > 0
        saved_s = sum(window["saved_s"] for window in shown["each"])
        assert saved_s == pytest.approx(sum(record.saved.compute_ns for record in known) / 1e9)

    def test_one_operation_alone_is_that_ones_figures(self, flowers: SimpleNamespace, reader: Reader) -> None:
        document = data(flowers.guarded, span="24h", operation=MARKUP)
        merged = reader.merge(Span(document["at_s"] - 24 * HOUR, document["at_s"]))
        assert document["total"] == figures_of(merged.records[MARKUP])
        assert len(document["operations"]) == len(merged.records)
        windows = list(reader.each(Span(document["at_s"] - 24 * HOUR, document["at_s"]), "hour", [MARKUP]))
        shown = [window for window in document["windows"]["each"] if window["lookups"]]
        assert [window["hit_rate"] for window in shown] == [record.hit_rate for record in windows]

    def test_an_operation_that_is_not_there_has_no_figures_and_is_no_error(self, flowers: SimpleNamespace) -> None:
        document = data(flowers.guarded, operation="nobody")
        assert (document["state"], document["total"]["hits"], document["total"]["steps"]) == ("ok", 0, {})

    @pytest.mark.parametrize("asked", [{"span": "2h"}, {"span": "<b>"}, {"operation": "x" * 900}])
    def test_what_cannot_be_asked_is_refused(self, flowers: SimpleNamespace, asked: dict[str, str]) -> None:
        why = "no operation has so long a name" if "operation" in asked else "span must be one of 1h, 24h, 30d, all"
        for path in ("/aicache/data", "/aicache/operations.csv", "/api/aicache"):
            reply = flowers.guarded.get(f"{path}?{urlencode(asked)}")
            assert (reply.status, reply.json) == (400, {"error": why})


class TestHostileNames:
    def test_labels_hold_nothing_that_steers_a_page_a_terminal_or_a_line(self, flowers: SimpleNamespace) -> None:
        reply = flowers.guarded.get("/aicache/data?span=all")
        assert reply.text.isascii()
        assert "</" not in reply.text
        labels = [row["label"] for row in reply.json["operations"]]
        assert len(labels) == len(NAMES)
        assert all(
            text.isprintable() and len(text) <= 4 * 48 and not set(text) & set("\u202e\u2066\x1b\n\t\r")
            for text in labels
        )

    def test_the_page_itself_holds_no_name_at_all(self, flowers: SimpleNamespace) -> None:
        text = flowers.guarded.get(f"/aicache?{urlencode({'operation': MARKUP, 'span': MARKUP})}").text
        assert "alert(1)" not in text
        assert "summarize" not in text

    def test_a_spreadsheet_finds_no_formula_in_a_download(self, flowers: SimpleNamespace) -> None:
        reply = flowers.guarded.get("/aicache/operations.csv?span=all")
        assert reply.headers["Content-Disposition"] == 'attachment; filename="aicache-operations-all.csv"'
        header, *rows = csv.reader(io.StringIO(reply.text))
        assert header[:4] == ["operation", "lookups", "hits", "misses"]
        first = [row[0] for row in rows]
        assert len(first) == len(NAMES)
        assert [name for name in first if name.startswith(("=", "+", "-", "@", "\t", "\r"))] == []
        assert {f"'{name}" for name in FORMULAS[:4]} <= set(first)

    @pytest.mark.parametrize("table", ["operations", "steps", "windows", "workers"])
    def test_every_table_can_be_downloaded_with_the_figures_that_are_shown(
        self, flowers: SimpleNamespace, table: str
    ) -> None:
        document = data(flowers.guarded, span="24h")
        header, *rows = csv.reader(io.StringIO(flowers.guarded.get(f"/aicache/{table}.csv?span=24h").text))
        assert all(len(row) == len(header) for row in rows)
        expected = {
            "operations": len(document["operations"]),
            "steps": len(document["total"]["steps"]),
            "windows": len(document["windows"]["each"]),
            "workers": len(document["workers"]),
        }
        assert len(rows) == expected[table]
        if table == "windows":
            hits = sum(int(row[header.index("hit")]) for row in rows)
            assert hits == sum(window["lookups"].get("hit", 0) for window in document["windows"]["each"])

    def test_json_can_be_downloaded_too(self, flowers: SimpleNamespace) -> None:
        reply = flowers.guarded.get("/aicache/data?span=1h&download=1")
        assert reply.headers["Content-Disposition"] == 'attachment; filename="aicache-1h.json"'
        assert reply.json["span"]["name"] == "1h"


class TestInvalidation:
    @pytest.fixture
    def token(self, flowers: SimpleNamespace) -> dict[str, str]:
        """Return the headers that the page sends."""
        cookie = flowers.may.get("/aicache").headers["Set-Cookie"].partition(";")[0]
        return LOGIN | {"Cookie": cookie, "X-XSRFToken": cookie.partition("=")[2], "Content-Type": "application/json"}

    def post(self, flower: FlowerProcess, headers: dict[str, str], body: Any = None) -> Any:
        sent = json.dumps({"operation": "summarize"} if body is None else body).encode()
        return flower.get("/aicache/invalidate", headers, sent)

    def test_it_takes_the_operations_answers_out_of_force_and_no_others(
        self, flowers: SimpleNamespace, other_shop: Celery, token: dict[str, str]
    ) -> None:
        cache = runtime_of(other_shop).cache
        for operation in ("summarize", "qa"):
            cache.cache_response("a text", operation, {}, {"answer": 1})
        reply = self.post(flowers.may, token)
        assert (reply.status, reply.json["invalidated"]) == (200, "summarize")
        assert cache.get_cached_response("a text", "summarize", {}) is None
        assert cache.get_cached_response("a text", "qa", {}) == {"answer": 1}
        assert f"aicache: {USER} invalidated the operation summarize in Flower" in flowers.may.log.read_text()
        assert PASSWORD not in flowers.may.log.read_text()

    def test_not_without_the_pages_token(self, flowers: SimpleNamespace, token: dict[str, str]) -> None:
        plain = {name: value for name, value in token.items() if name != "X-XSRFToken"}
        assert self.post(flowers.may, plain).status == 403
        assert self.post(flowers.may, {**token, "X-XSRFToken": "another"}).status == 403
        assert self.post(flowers.may, {**token, "Sec-Fetch-Site": "cross-site"}).status == 403
        assert self.post(flowers.may, LOGIN).status == 403
        assert self.post(flowers.may, {k: v for k, v in token.items() if k != "Authorization"}).status == 401

    @pytest.mark.parametrize(
        ("body", "status"), [({"operation": "nobody"}, 404), ({}, 400), ([], 400), ({"operation": 1}, 400)]
    )
    def test_only_an_operation_that_there_is(
        self, flowers: SimpleNamespace, token: dict[str, str], body: Any, status: int
    ) -> None:
        reply = self.post(flowers.may, token, body)
        assert (reply.status, list(reply.json)) == (status, ["error"])

    def test_a_task_without_records_can_be_invalidated_too(
        self, flowers: SimpleNamespace, token: dict[str, str]
    ) -> None:
        assert self.post(flowers.may, token, {"operation": "shout"}).status == 200

    @pytest.mark.parametrize("name", ["guarded", "read_only"])
    def test_it_is_off_by_default_and_where_flower_is_read_only(self, flowers: SimpleNamespace, name: str) -> None:
        flower = getattr(flowers, name)
        cookie = flower.get("/aicache").headers["Set-Cookie"].partition(";")[0]
        reply = self.post(flower, LOGIN | {"Cookie": cookie, "X-XSRFToken": cookie.partition("=")[2]})
        assert (reply.status, reply.json) == (403, {"error": "invalidation is switched off"})
        assert not data(flower)["may_invalidate"]
        assert data(flowers.may)["may_invalidate"]


class TestMetrics:
    def test_flowers_own_page_has_the_records_figures_too(self, flowers: SimpleNamespace, reader: Reader) -> None:
        text = flowers.guarded.get("/metrics", headers={}).text
        assert "# TYPE flower_events_total counter" in text
        shown = dict(
            re.findall(
                r'^aicache_lookups_total\{operation="summarize",reason="",status="(\w+)"\} (\S+)$', text, re.MULTILINE
            )
        )
        assert float(shown["hit"]) == reader.live().totals["summarize"].of("get", "hit")
        assert flowers.guarded.get("/metrics").text.count("# TYPE aicache_lookups_total") == 1

    def test_a_server_that_is_away_leaves_flowers_own(self, flowers: SimpleNamespace) -> None:
        text = flowers.lost.get("/metrics").text
        assert "# TYPE flower_events_total counter" in text
        assert "\naicache_up 0.0\n" in text

    def test_another_flower_has_its_own_only(self, flowers: SimpleNamespace) -> None:
        assert "aicache_" not in flowers.other.get("/metrics").text


class TestAServerThatSwallowsAll:
    def test_the_page_is_there_and_its_data_says_in_time_what_to_do(self, flowers: SimpleNamespace) -> None:
        assert flowers.lost.get("/aicache").status == 200
        began = time.monotonic()
        document = data(flowers.lost)
        assert time.monotonic() - began < 8, "the page gives up after 12 s"
        assert document["state"] in {"down", "slow"}
        assert len(document["advice"]["todo"]) >= 2
        assert document["place"]["url"].startswith("redis://127.0.0.1:")
        assert "total" not in document
        assert flowers.lost.get("/aicache/operations.csv").status == 503

    def test_flowers_own_pages_do_not_wait_for_it(self, flowers: SimpleNamespace) -> None:
        viewers = [threading.Thread(target=data, args=(flowers.lost,), kwargs={"operation": str(n)}) for n in range(8)]
        for viewer in viewers:
            viewer.start()
        slowest_s = 0.0
        while any(viewer.is_alive() for viewer in viewers):
            began = time.monotonic()
            assert flowers.lost.get("/workers?json=1").status == 200
            slowest_s = max(slowest_s, time.monotonic() - began)
        assert slowest_s < HANGS_S - 0.5


class TestAnotherFlower:
    def test_it_runs_without_the_tab_and_says_why(self, flowers: SimpleNamespace) -> None:
        assert flowers.other.get("/aicache").status == 404
        text = flowers.other.get("/workers").text
        assert "Workers" in text
        assert "AI cache" not in text
        assert "aicache: no tab in Flower 2.3.0: it is made for 2.2.x" in flowers.other.log.read_text()

    def test_a_navigation_bar_without_a_place_for_it_stays_as_it_is(self, caplog: pytest.LogCaptureFixture) -> None:
        assert flower_tab.with_link("<nav></nav>") == "<nav></nav>"
        assert "the tab is at /aicache" in caplog.text


def test_the_configuration_file_is_where_the_command_says() -> None:
    assert conf_of_the_package() == PACKAGE / "flowerconfig.py"
    assert conf_of_the_package().is_file()


def test_there_are_assets_and_none_names_another_host() -> None:
    assert {path.suffix for path in ASSETS} == {".html", ".js", ".css"}
    found = {path.name: re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", path.read_text()) for path in ASSETS}
    assert {name: urls for name, urls in found.items() if urls} == {"dom.js": ["http://www.w3.org/2000/svg"]}
