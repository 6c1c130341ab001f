"""``report --html``: one file, with the records' own figures, that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from aicache_tasks.beat import roll_up
from aicache_tasks.reports.html import TAB, in_script
from aicache_tasks.reports.rows import figures_json
from aicache_tasks.reports.spans import Span
from aicache_tasks.stores.base import Budget
from aicache_tasks.testing import EmbeddedServer
from tests.reported import HOSTILE, calls, count_up, look_up, make_app, reader_of, send
from tests.test_cli import run

MARKUP = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\u2028"


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = dict(attrs).get("type") or tag if tag in ("script", "style", "title") else self._open
        if tag in ("script", "style", "title"):
            self.inside.setdefault(self._open, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = "" if tag in ("script", "style", "title") else self._open

    def handle_data(self, data: str) -> None:
        if self._open:
            self.inside[self._open][-1] += data

    @property
    def document(self) -> Any:
        (text,) = self.inside["application/json"]
        return json.loads(text)

    @property
    def policy(self) -> str:
        (policy,) = [given["content"] for tag, given in self.tags if given.get("http-equiv")]
        return policy or ""


def written(app: Celery, folder: Path, *arguments: str) -> Page:
    path = folder / "cache.html"
    done = run(app, "report", "--html", str(path), "--force", *arguments)
    assert done.exit_code == 0, done.output + repr(done.exception)
    return Page(path.read_text("utf-8"))


@pytest.fixture
def app(valkey: EmbeddedServer) -> Celery:
    return make_app(valkey.url)


def test_its_figures_are_those_of_the_records(app: Celery, tmp_path: Path) -> None:
    now_s = time.time()
    count_up(app, calls(300, [now_s - hours * 3600 for hours in range(30)], ["shout", "whisper"]))
    shown = written(app, tmp_path, "--since", "6h").document
    span = Span(shown["at_s"] - 6 * 3600, shown["at_s"])
    merged = reader_of(app).merge(span).records
    for row in shown["operations"]:
        assert {name: row[name] for name in figures_json(merged[row["operation"]])} == figures_json(
            merged[row["operation"]]
        )
    assert shown["total"]["hits"] == sum(record.hits for record in merged.values()) < 200
    assert shown["windows"]["resolution"] == "hour"
    windows = [sum(one["lookups"].values()) for one in shown["windows"]["each"]]
    assert sum(windows) >= shown["total"]["hits"] + shown["total"]["misses"]


def test_it_needs_no_other_file_and_no_other_host(app: Celery, tmp_path: Path) -> None:
    count_up(app, calls(20, [time.time()], ["shout"]))
    page = written(app, tmp_path)
    fetched = {"src", "href", "srcset", "action", "data", "poster"}
    assert [(tag, given) for tag, given in page.tags if fetched & given.keys()] == []
    script, style = page.inside["script"][0], page.inside["style"][0]
    assert "@import" not in style
    assert "url(" not in style
    assert set(re.findall(r"https?://[^\s\"']+", script + style)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon)\b", script)


def test_only_its_own_script_and_style_may_run(app: Celery, tmp_path: Path) -> None:
    count_up(app, calls(20, [time.time()], ["shout"]))
    page = written(app, tmp_path)
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    assert rules["default-src"] == "'none'"
    for name, rule in (("script", "script-src"), ("style", "style-src")):
        (text,) = page.inside[name]
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_tab_s_modules_are_one_script_each_before_what_needs_it(app: Celery, tmp_path: Path) -> None:
    count_up(app, calls(20, [time.time()], ["shout"]))
    (script,) = written(app, tmp_path).inside["script"]
    assert not re.search(r"^\s*(import|export)\b", script, re.MULTILINE)
    made: list[str] = []
    for line in script.splitlines():
        if found := re.fullmatch(r"const MODULE_(\w+) = \(\(\) => \{", line):
            made.append(found[1])
        elif found := re.fullmatch(r"const .* = MODULE_(\w+);", line):
            assert found[1] in made
    assert sorted(made) == sorted(set(made))
    assert {"dom", "format", "plots", "charts", "tables", "figures", "notes"} == set(made)
    assert all((TAB / f"{name}.js").is_file() for name in made)


def test_labels_are_text(app: Celery, tmp_path: Path) -> None:
    now_s = time.time()
    count_up(
        app, [s for name in (MARKUP, HOSTILE) for s in look_up(now_s, name, hit=True, took_ns=10**9)] * 150, MARKUP
    )
    send(app, look_up(now_s, MARKUP, hit=True, took_ns=10**9))
    roll_up(app)
    page = written(app, tmp_path)
    assert len(page.inside["script"]) == len(page.inside["application/json"]) == 1
    assert "img" not in {tag for tag, _ in page.tags}
    assert MARKUP in {row["operation"] for row in page.document["operations"]}
    assert page.document["alerts"], "an alert of a hostile operation is shown too"


def test_json_in_a_script_ends_nothing() -> None:
    data = {"a": MARKUP, "b": ["<!--", "-->", "]]>"]}
    text = in_script(data)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == data


def test_no_password_key_or_worker_s_secret_is_in_it(tmp_path: Path) -> None:
    with EmbeddedServer(config={"requirepass": "correct-horse"}) as server:
        app = make_app(server.url)
        count_up(app, calls(20, [time.time()], ["shout"]))
        written(app, tmp_path)
    text = (tmp_path / "cache.html").read_text()
    assert "horse" not in text
    assert "********" in text


def test_a_file_that_is_there_stays_as_it_is(app: Celery, tmp_path: Path) -> None:
    count_up(app, calls(20, [time.time()], ["shout"]))
    path = tmp_path / "cache.html"
    path.write_text("mine")
    done = run(app, "report", "--html", str(path))
    assert (done.exit_code, path.read_text()) == (2, "mine")
    assert "--force replaces it" in done.output
    assert run(app, "report", "--html", str(path), "--force").exit_code == 0
    assert path.read_text().startswith("<!doctype html>")
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache.html"]


@pytest.mark.parametrize("arguments", [(), ("--since", "2d", "--until", "1d")])
def test_nothing_in_the_span_is_exit_code_3_and_no_file(
    app: Celery, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    if arguments:
        count_up(app, calls(20, [time.time()], ["shout"]))
    done = run(app, "report", "--html", str(tmp_path / "cache.html"), *arguments)
    assert done.exit_code == 3, done.output
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_away_is_exit_code_1_and_no_file(refused_url: str, tmp_path: Path) -> None:
    assert run(make_app(refused_url), "report", "--html", str(tmp_path / "cache.html")).exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_it_can_go_to_stdout(app: Celery) -> None:
    count_up(app, calls(20, [time.time()], ["shout"]))
    assert Page(run(app, "report", "--html", "-").stdout).document["total"]["hits"] > 0


@pytest.mark.parametrize(
    ("by", "setting"), [("cache_mode", {}), ("aicache_disabled", {"aicache_disabled": True}), (None, {})]
)
def test_a_cache_that_is_switched_off_is_shown_as_that(
    valkey: EmbeddedServer, tmp_path: Path, by: str | None, setting: dict[str, Any]
) -> None:
    app = make_app(valkey.url, **setting)
    count_up(app, calls(3, [time.time()], ["shout"]))
    reader_of(app).summaries.parts.mode.switch(off=by == "cache_mode", budget=Budget(5))
    shown = written(app, tmp_path).document
    assert (shown["switched_off"], shown["switched_off_by"]) == (by is not None, by)
