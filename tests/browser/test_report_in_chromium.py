"""The page that ``report --html`` writes, opened from a file: all of it is drawn, and nothing is asked for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aicache_tasks.codec import encode_meta
from aicache_tasks.records import EntryMeta
from aicache_tasks.stores.base import Budget
from aicache_tasks.testing import EmbeddedServer
from tests.browser.conftest import DESKTOP, PHONE
from tests.browser.test_tab_in_chromium import MARKUP, axe
from tests.reported import HOSTILE, calls, count_up, make_app, others, reader_of
from tests.test_cli import run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]


NO_LABELS_MEET = """plots => plots.every((plot) => {
  const boxes = [...plot.querySelectorAll(".aic-tick-x")].map((label) => label.getBoundingClientRect());
  return boxes.length && boxes.every((box, at) => !at || box.left > boxes[at - 1].right);
})"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    now_s = time.time()
    folder = tmp_path_factory.mktemp("report")
    with EmbeddedServer() as server:
        app = make_app(server.url)
        count_up(app, calls(400, [now_s - hours * 3600 for hours in range(20)], ["shout", "whisper", HOSTILE, MARKUP]))
        for name, since in (("cache", "24h"), ("month", "30d"), ("year", "365d")):
            assert run(app, "report", "--html", str(folder / f"{name}.html"), "--since", since).exit_code == 0
        count_up(app, others(20, now_s, "shout", "error", "redis_connection_failed"))
        reader_of(app).summaries.parts.mode.switch(off=True, budget=Budget(5))
        assert run(app, "report", "--html", str(folder / "off.html")).exit_code == 0
    return folder  # the server has gone


@pytest.fixture
def file(folder: Path) -> Path:
    return folder / "cache.html"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_is_drawn_offline_in_both_themes_on_any_screen(
    chromium: Browser, file: Path, theme: Any, size: tuple[int, int]
) -> None:
    context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=theme, offline=True)
    try:
        page, said, asked = context.new_page(), list[str](), list[str]()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        check(page, theme)
        assert axe(page) == []
    finally:
        context.close()
    assert (said, asked) == ([], [file.as_uri()])


def check(page: Page, theme: str) -> None:
    page.locator(".aic-plot svg path.aic-line").first.wait_for(state="attached")
    assert page.locator("html").get_attribute("data-bs-theme") == theme
    assert page.locator(".metric-card").count() == 7
    assert page.locator(".aic-plot").count() == 5
    assert page.locator("#aic-operations tbody tr").count() == 4
    assert page.locator("#aic-operations button.aic-focus").count() == 0, "nothing to press that does nothing"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    rows = page.locator("#aic-operations tbody th")
    before = rows.all_inner_texts()
    page.get_by_role("button", name="Operation").click()
    page.get_by_role("button", name="Operation").click()
    assert sorted(before) == sorted(rows.all_inner_texts())
    assert page.locator("#aic-operations th[aria-sort]").inner_text().startswith("Operation")


def test_it_says_that_the_cache_is_off_and_what_the_hit_rate_hides(chromium: Browser, folder: Path) -> None:
    page = chromium.new_page()
    try:
        page.goto((folder / "off.html").as_uri())
        page.locator("#aic-cards article").first.wait_for()
        notes = page.locator("#aic-notes > li:visible").all_inner_texts()
    finally:
        page.close()
    assert any(note.startswith("The cache is switched off for all") for note in notes), notes
    assert any(note.startswith("20 look-ups failed in this span") for note in notes), notes


@pytest.mark.parametrize(("name", "size"), [("month", PHONE), ("year", DESKTOP)])
def test_days_can_be_told_apart_below_every_plot(
    chromium: Browser, folder: Path, name: str, size: tuple[int, int]
) -> None:
    page = chromium.new_page(viewport={"width": size[0], "height": size[1]})
    try:
        page.goto((folder / f"{name}.html").as_uri())
        page.locator(".aic-plot .aic-tick-x").first.wait_for()
        assert page.locator(".aic-plot").evaluate_all(NO_LABELS_MEET)
    finally:
        page.close()


def test_what_has_no_price_has_no_cost_as_on_the_command_line(chromium: Browser, tmp_path: Path) -> None:
    now_s, path = time.time(), tmp_path / "cache.html"
    free = encode_meta(EntryMeta("m-2", {"input_tokens": 100}, None, 3_000_000_000, 100))
    with EmbeddedServer() as server:
        app = make_app(server.url, aicache_prices={"version": "7", "currency": "USD", "models": {}})
        count_up(app, calls(50, [now_s], ["shout"]))
        count_up(app, [sample._replace(meta=free if sample.meta else b"") for sample in calls(50, [now_s], ["free"])])
        assert run(app, "report", "--html", str(path)).exit_code == 0
    page = chromium.new_page(viewport={"width": 1600, "height": 900})
    try:
        page.goto(path.as_uri())
        page.locator("#aic-operations tbody tr").first.wait_for()
        heads = [text.split()[0:2] for text in page.locator("#aic-operations thead th").all_inner_texts()]
        at = heads.index(["Money", "saved"])
        rows = [row.locator("th, td").all_inner_texts() for row in page.locator("#aic-operations tbody tr").all()]
    finally:
        page.close()
    shown = {row[0]: row[at] for row in rows}
    assert shown["free"] == "-"
    assert shown["shout"].endswith(" USD")
