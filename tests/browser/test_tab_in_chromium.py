"""The tab as people see and use it: in Chromium, with real workers behind it, and when things go wrong."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from aicache_tasks.codec import encode_meta
from aicache_tasks.prices import tokens_in
from aicache_tasks.records import EntryMeta, Sample
from aicache_tasks.reports import wording
from aicache_tasks.rollup import WINDOWS_S
from aicache_tasks.runtime import runtime_of
from tests.browser.conftest import DESKTOP, PHONE, Lab, Opens, ago
from tests.faults import eventually
from tests.reported import HOSTILE, calls, count_up, send

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
"""The first test waits for workers, beat and Flower to start, beside whatever else runs."""
OPERATIONS = {"summarize", "sentiment", "key_points", "questions", "qa"}
HOUR = 3600
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"
THEMES = ("light", "dark")
SIZES = {"desktop": DESKTOP, "phone": PHONE}
SOON_S = 40


def figures(page: Page) -> None:
    """Wait until there are figures."""
    page.locator("#aic-figures").wait_for()


def says(page: Page, selector: str, pattern: str) -> None:
    """Wait until an element says something; the page asks more often meanwhile, as if one came back to it."""
    wanted = page.locator(selector).filter(has_text=re.compile(pattern)).first
    deadline = time.monotonic() + SOON_S
    while not wanted.is_visible():
        assert time.monotonic() < deadline, (
            f"{selector} never said {pattern}: {page.locator(selector).all_inner_texts()}"
        )
        # Not while it waits for an answer: it would drop that one, and ask again.
        page.evaluate(
            "document.querySelector('#aic[aria-busy]') || document.dispatchEvent(new Event('visibilitychange'))"
        )
        page.wait_for_timeout(250)


def shown_by(page: Page, do: Any, asked: str = "") -> Any:
    """Return the document that the page asks for when *do* is done, once it is shown; *asked* is in the question."""
    with page.expect_response(lambda r: "/aicache/data" in r.url and asked in r.url and r.ok) as answered:
        do()
    settled(page)
    return answered.value.json()


def settled(page: Page) -> None:
    """Wait until what the page has asked for is shown."""
    page.locator("#aic:not([aria-busy])").wait_for(state="attached")


def refresh(page: Page) -> None:
    shown_by(page, lambda: page.evaluate("document.dispatchEvent(new Event('visibilitychange'))"))


def answer_with(page: Page, **answer: Any) -> None:
    """Have the page's questions answered, but not by Flower."""
    page.route("**/aicache/data*", lambda route: route.fulfill(**answer))


def axe(page: Page) -> list[str]:
    """Return what axe-core finds wrong with a page."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]


class TestWithRealWorkers:
    def test_every_panel_shows_what_the_workers_did(self, office: SimpleNamespace, opened: Opens) -> None:
        page = opened(office.flower)
        figures(page)
        page.click("text=Pause")
        document = shown_by(page, lambda: page.click("label:has-text('1 hour')"), "span=1h")
        total = document["total"]
        cards = page.locator("#aic-cards article").all_inner_texts()
        assert wording.percent(total["hit_rate"]) in cards[0]
        assert wording.number(total["hits"] + total["misses"]) in cards[1]
        assert wording.duration(total["saved"]["seconds"] * 1e9) in cards[2]
        rows = page.locator("#aic-operations tbody tr")
        assert {row.split("\n")[0].split("\t")[0] for row in rows.all_inner_texts()} >= OPERATIONS
        steps = [text for text in page.locator("#aic-steps tbody tr").all_inner_texts() if "compress" not in text]
        assert [row.split()[0] for row in steps] == ["key", "look-up", "decode", "compute", "store"]
        get = total["steps"]["get"]
        assert all(wording.duration(get[f"{rank}_ns"]) in steps[1] for rank in ("p50", "p95", "p99"))
        workers = page.locator("#aic-workers tbody tr").all_inner_texts()
        assert any(row.startswith("one@office") for row in workers)
        assert any(row.startswith("two@office") for row in workers)
        assert "volatile-lfu" in page.inner_text("#aic-store")
        assert page.inner_text("#aic-store").count("closed") == 2
        assert "nothing waits" in page.inner_text("#aic-store") or "timings wait" in page.inner_text("#aic-store")
        assert page.locator("#aic-top li").count() >= 10

    def test_every_plot_is_drawn_and_has_its_table(self, office: SimpleNamespace, opened: Opens) -> None:
        page = opened(office.flower, "?span=1h")
        figures(page)
        assert page.locator("#aic-plots figure").count() == 5
        for plot in page.locator("#aic-plots figure").all():
            title = plot.locator("h3").inner_text()
            assert plot.locator("svg[role=img] path:not(.aic-grid)").count() >= 1, title
            assert plot.locator("svg[role=img]").get_attribute("aria-label").startswith(f"{title}: 6")
            plot.locator("summary").click()
            plot.locator("details tbody tr").nth(59).wait_for(state="attached")
            assert plot.locator("details tbody tr").count() <= 62, title
            assert plot.locator("svg[role=img] .aic-tick-x").count() >= 2

    def test_new_calls_appear_by_themselves(self, office: SimpleNamespace, opened: Opens) -> None:
        page = opened(office.flower, "?span=all")
        figures(page)
        before = int(page.locator("#aic-cards article").nth(1).locator(".metric-value").inner_text())
        office.app.send_task("workers.summarize", ("A text of its own about ferries and bridges. " * 5,)).get(
            timeout=60
        )
        # Sent after a second, read every three or ten times as long as reading takes, asked for every five.
        page.wait_for_function(
            "n => Number(document.querySelectorAll('#aic-cards .metric-value')[1].textContent) > n",
            arg=before,
            timeout=90_000,
        )

    def test_flowers_other_pages_lead_here(self, office: SimpleNamespace, opened: Opens) -> None:
        page = opened(office.flower)
        page.click("nav >> text=Tasks")
        page.click("nav >> text=AI cache")
        figures(page)
        assert page.locator("nav [aria-current=page]").inner_text() == "AI cache"

    def test_a_download_holds_what_is_shown(self, office: SimpleNamespace, opened: Opens, tmp_path: Path) -> None:
        page = opened(office.flower, "?span=30d&operation=qa")
        figures(page)
        with page.expect_download() as one:
            page.click("#aic-json")
        one.value.save_as(tmp_path / "shown.json")
        document = json.loads((tmp_path / "shown.json").read_text())
        assert (one.value.suggested_filename, document["operation"]) == ("aicache-30d.json", "qa")
        with page.expect_download() as one:
            page.click("#aic-workers >> text=CSV")
        one.value.save_as(tmp_path / "workers.csv")
        assert "one@office" in (tmp_path / "workers.csv").read_text()


class TestChoosing:
    @pytest.fixture
    def page(self, lab: Lab, opened: Opens) -> Page:
        count_up(lab.app, calls(400, [ago(5), ago(20 * HOUR), ago(20 * 24 * HOUR)], ["summarize", "qa"]))
        page = opened(lab.flower)
        figures(page)
        return page

    def test_a_span_changes_all_figures_and_is_in_the_address(self, page: Page) -> None:
        seen = {}
        for name, label in (("1h", "1 hour"), ("24h", "24 hours"), ("30d", "30 days"), ("all", "All time")):
            page.click(f"label:has-text('{label}')")
            page.wait_for_url(f"**span={name}*")
            says(page, "#aic-announce", f"{label}: hit rate")
            seen[name] = page.locator("#aic-cards .metric-value").nth(1).inner_text()
        assert int(seen["1h"]) < int(seen["24h"]) < int(seen["30d"]) == int(seen["all"]) == 400
        page.reload()
        figures(page)
        assert page.is_checked("#aic-span-all")

    def test_one_operation_can_be_looked_at_alone(self, page: Page, lab: Lab) -> None:
        page.click("#aic-operations >> text=qa")
        page.wait_for_url("**operation=qa*")
        alone = wording.number(lab.reader.live().totals["qa"].lookups)
        page.click("label:has-text('All time')")
        says(page, "#aic-cards article:nth-child(2) .metric-value", f"^{alone}$")
        assert page.locator("#aic-operations tbody tr").count() == 2
        assert page.input_value("#aic-operation") == "qa"
        page.select_option("#aic-operation", "")
        says(page, "#aic-cards article:nth-child(2) .metric-value", "^400$")
        page.goto(page.url + "&operation=nobody")
        says(page, "#aic-notes > li", "^Nothing was recorded of nobody.$")
        assert page.input_value("#aic-operation") == "nobody"

    def test_operations_can_be_ordered(self, page: Page) -> None:
        names = page.locator("#aic-operations tbody th")
        for order in ("descending", "ascending"):
            page.click("#aic-operations thead >> text=Operation")
            assert page.locator("#aic-operations [aria-sort]").get_attribute("aria-sort") == order
            assert [text.split("\n")[0] for text in names.all_inner_texts()] == sorted(
                ["qa", "summarize"], reverse=order == "descending"
            )

    def test_a_pointer_reads_the_windows(self, page: Page) -> None:
        figure = page.locator("#aic-plots figure").nth(1)
        area = figure.locator(".aic-plot-area")
        area.hover(position={"x": area.evaluate("e => e.clientWidth") - 12, "y": 60})
        figure.locator("figcaption").filter(has_text=re.compile(r"\d+:00–\d+:00 UTC")).wait_for()
        assert re.search(r"hit \d+", figure.locator(".aic-legend").inner_text())

    def test_it_can_be_paused(self, page: Page, lab: Lab) -> None:
        page.click("text=Pause")
        says(page, "#aic-status", "Paused")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(6_000)
        assert asked == []
        page.click("text=Resume")
        says(page, "#aic-status", "Live")


class TestByKeyboard:
    def test_everything_can_be_reached_and_done(self, lab: Lab, opened: Opens) -> None:
        count_up(lab.app, calls(100, [ago(5)], ["summarize", "qa"]))
        page = opened(lab.flower)
        figures(page)
        page.click("text=Pause")
        page.focus("#aic-span-24h")
        page.keyboard.press("ArrowLeft")
        page.wait_for_url("**span=1h*")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "aic-operation"
        page.keyboard.press("q")
        page.wait_for_url("**operation=qa*")
        settled(page)
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate(
                    "document.activeElement.closest('figure, section')?.querySelector('h2, h3')?.textContent ?? ''"
                )
            )
        assert reached >= {
            "Operations",
            "Hit rate",
            "Look-ups by status",
            "p95 by step",
            "Computing time",
            "Bytes",
            "Steps",
            "Workers",
        }

    def test_arrow_keys_read_a_plot_aloud(self, lab: Lab, opened: Opens) -> None:
        count_up(lab.app, calls(100, [ago(5)], ["summarize", "qa"]))
        page = opened(lab.flower, "?span=24h")
        figures(page)
        plot = page.locator("#aic-plots figure").nth(1)
        plot.locator(".aic-plot-area").focus()
        page.keyboard.press("End")
        said = plot.locator("[aria-live]")
        last = said.inner_text()
        assert re.match(r"\d+ \w{3} \d+:00–\d+:00 UTC: hit \d+, miss \d+", last)
        page.keyboard.press("ArrowLeft")
        assert said.inner_text() != last
        page.keyboard.press("Escape")
        assert "the last 24 hours" in plot.locator("figcaption").inner_text()

    def test_focus_place_and_selection_outlive_a_refresh(self, lab: Lab, opened: Opens) -> None:
        count_up(lab.app, calls(100, [ago(5)], ["summarize", "qa"]))
        page = opened(lab.flower)
        figures(page)
        page.focus("#aic-operations button.aic-focus")
        key = page.evaluate("document.activeElement.dataset.key")
        for _ in range(2):
            refresh(page)
        assert page.evaluate("document.activeElement.dataset.key") == key
        page.locator("#aic-plots summary").first.click()
        page.locator(".aic-tall").evaluate("table => table.scrollTo(0, 90)")
        page.locator("[aria-label='Invalidate qa'] >> visible=true").click()
        refresh(page)
        page.keyboard.press("Escape")
        # A dialog says that it is closed in a task of its own, after the key's.
        page.locator("[aria-label='Invalidate qa']:focus").wait_for()
        assert page.locator(".aic-tall").evaluate("table => table.scrollTop") == 90
        page.evaluate("getSelection().selectAllChildren(document.querySelector('.metric-value'))")
        chosen = page.evaluate("String(getSelection())")
        refresh(page)
        assert page.evaluate("String(getSelection())") == chosen != ""
        assert page.inner_text("#aic-status") == "Held while text is selected"
        page.evaluate("getSelection().empty()")
        says(page, "#aic-status", "Live")


class TestWhenSomethingIsWrong:
    def test_nothing_recorded(self, lab: Lab, opened: Opens) -> None:
        page = opened(lab.flower)
        says(page, "#aic-advice h2", "Nothing is recorded yet")
        assert page.locator("#aic-advice li").count() >= 2
        assert not page.is_visible("#aic-figures")
        assert not page.is_visible("#aic-toolbar")
        count_up(lab.app, calls(20, [ago(1)], ["summarize"]))
        says(page, "#aic-operations tbody", "summarize")
        # What the page asked for before the roll-up has the figures too, and that there was none.
        page.locator("#aic-advice").wait_for(state="hidden")

    def test_nothing_rolled_up(self, lab: Lab, opened: Opens) -> None:
        send(lab.app, calls(20, [ago(1)], ["summarize"]))
        page = opened(lab.flower, "?span=all")
        says(page, "#aic-advice h2", "Nothing is rolled up yet")
        assert page.locator("#aic-operations tbody tr").count() == 1

    def test_no_roll_up_for_long(self, lab: Lab, opened: Opens) -> None:
        count_up(lab.app, calls(20, [ago(1)], ["summarize"]))
        send(lab.app, calls(20, [ago(1)], ["summarize"], seed=2))
        with lab.server.client() as client:
            client.hset(lab.reader.summaries.keys.state, "since_ms", int(ago(HOUR) * 1000))
        page = opened(lab.flower)
        says(page, "#aic-advice h2", "old: timings wait for a roll-up")
        assert "aicache rollup" in page.inner_text("#aic-advice")
        assert "the oldest for 1 h" in page.inner_text("#aic-store")

    def test_the_server_goes_away_and_comes_back(self, lab: Lab, opened: Opens) -> None:
        count_up(lab.app, calls(20, [ago(1)], ["summarize"]))
        page = opened(lab.flower, "?span=all")
        says(page, "#aic-cards .metric-value", "^20$")
        lab.server.kill()
        try:
            says(page, "#aic-advice h2", "cannot be read")
            says(page, "#aic-status", r"As of \d\d:\d\d UTC")
            assert re.search(r"The figures below are from \d\d:\d\d UTC", page.inner_text("#aic-advice"))
            assert page.locator("#aic-advice li").count() >= 2
            assert page.locator("#aic-cards .metric-value").nth(1).inner_text() == "20"
            assert axe(page) == []
        finally:
            lab.server.start()
        says(page, "#aic-advice h2", "Nothing is recorded yet")

    def test_a_server_that_is_away_from_the_beginning(self, lab: Lab, opened: Opens) -> None:
        lab.server.kill()
        try:
            page = opened(lab.flower, "?span=30d&operation=never")
            says(page, "#aic-advice h2", "cannot be read")
            assert not page.is_visible("#aic-figures")
            says(page, "#aic-status", "No figures")
        finally:
            lab.server.start()

    def test_flower_does_not_answer(self, lab: Lab, opened: Opens) -> None:
        count_up(lab.app, calls(20, [ago(1)], ["summarize"]))
        page = opened(lab.flower, quiet=False)
        figures(page)
        page.route("**/aicache/data*", lambda route: route.abort())
        says(page, "#aic-status", r"Flower does not answer; figures from \d\d:\d\d UTC")
        assert page.is_visible("#aic-figures")
        page.evaluate("getSelection().selectAllChildren(document.querySelector('.metric-value'))")
        page.unroute("**/aicache/data*")
        says(page, "#aic-status", "Held while text is selected")
        assert "status-dot-live" in page.get_attribute("#aic-dot", "class").split()
        page.evaluate("getSelection().empty()")
        says(page, "#aic-status", "Live")

    def test_flower_wants_a_login_again(self, lab: Lab, opened: Opens) -> None:
        count_up(lab.app, calls(20, [ago(1)], ["summarize"]))
        page = opened(lab.flower, quiet=False)
        for answer in (
            {"body": "<h1>Login</h1>", "content_type": "text/html"},
            {"status": 302, "headers": {"Location": "https://login.example/authorize"}},
            {"status": 401},
        ):
            says(page, "#aic-status", "Live")
            answer_with(page, **answer)
            says(page, "#aic-status", "Flower wants you to log in again")
            page.unroute("**/aicache/data*")
        page.route("**/aicache/invalidate", lambda route: route.fulfill(status=403, json={"error": "Forbidden"}))
        page.click("[aria-label='Invalidate summarize'] >> visible=true")
        page.click("#aic-dialog-confirm")
        says(page, "#aic-dialog-error", "Flower wants you to log in again")

    def test_an_alert_is_shown(self, lab: Lab, opened: Opens) -> None:
        from aicache_tasks import alerts
        from tests.reported import make_app, reader_of

        strict = make_app(lab.server.url, aicache_namespace="lab", aicache_slow_operation_ms=0.01)
        count_up(strict, calls(100, [ago(1)], ["summarize"]))
        list(alerts.changes(reader_of(strict).summaries))
        page = opened(lab.flower)
        says(page, "#aic-notes", r"warning slow operation of summarize: [\d.]+ ms, threshold 10 µs, since \d{4}-")

    def test_damaged_records_are_not_taken_for_none(self, lab: Lab, opened: Opens) -> None:
        count_up(lab.app, calls(20, [ago(1)], ["qa", "summarize"]))
        keys = lab.reader.summaries.keys
        with lab.server.client() as client:
            client.hset(keys.totals, "qa", b"no record")
            for key in (keys.records("qa", kind) for kind in WINDOWS_S):
                client.hset(key, mapping=dict.fromkeys(client.hkeys(key), b"no record"))
        page = opened(lab.flower, "?span=all&operation=qa")
        says(page, "#aic-notes", "^1 record could not be read: see Entries set aside")
        assert "Nothing was recorded" not in page.inner_text("#aic-notes")

    def test_what_the_hit_rate_hides_is_said(self, lab: Lab, opened: Opens) -> None:
        failed = Sample(ago(1), "summarize", "get", "error", "redis_connection_failed", 50_000_000)
        count_up(lab.app, [*calls(20, [ago(1)], ["summarize"]), failed, failed])
        page = opened(lab.flower)
        says(page, "#aic-notes", "2 look-ups failed in this span, and the bodies ran: redis_connection_failed 2")
        assert "2 more failed" in page.inner_text("#aic-cards")
        columns = page.locator("#aic-operations thead th").all_inner_texts()
        at = next(at for at, text in enumerate(columns) if text.startswith("Errors"))
        assert page.locator("#aic-operations tbody tr >> nth=0").locator("th, td").nth(at).inner_text() == "2"
        assert any(text.startswith("Money saved") for text in columns)
        scrolled = page.locator("#aic-operations .aic-scroll").evaluate("e => e.scrollWidth - e.clientWidth")
        assert scrolled <= 0, "with all columns that there can be"


class TestInvalidation:
    @pytest.fixture
    def page(self, lab: Lab, opened: Opens) -> Page:
        count_up(lab.app, calls(200, [ago(5), ago(3 * 24 * HOUR)], ["summarize", "qa"]))
        parts = encode_meta(EntryMeta("m", {"input_tokens": 500, "cached_input_tokens": 400, "input_words": 300}))
        count_up(lab.app, [Sample(ago(5), "qa", "get", "hit", "", 10**6, meta=parts)])
        for operation in ("summarize", "qa"):
            runtime_of(lab.app).cache.cache_response("a text", operation, {}, {"answer": operation})
        page = opened(lab.flower)
        figures(page)
        return page

    def answer(self, lab: Lab, operation: str) -> Any:
        return runtime_of(lab.app).cache.get_cached_response("a text", operation, {})

    def test_it_asks_first_and_names_the_operation_and_what_it_saved(self, page: Page, lab: Lab) -> None:
        page.click("[aria-label='Invalidate qa'] >> visible=true")
        dialog = page.locator("dialog[open]")
        ever = lab.reader.live().totals["qa"]
        text = dialog.inner_text()
        assert text.startswith("Invalidate qa?")
        assert wording.duration(ever.saved.compute_ns) in text
        assert f"served {wording.number(ever.hits)} calls" in text
        assert f", {wording.number(tokens_in(ever.saved.tokens))} tokens" in text
        every = wording.number(sum(tokens_in(record.saved.tokens) for record in lab.reader.live().totals.values()))
        assert f"all time {every}\n" in page.inner_text("#aic-cards")
        assert page.evaluate("document.activeElement.id") == "aic-dialog-cancel"
        assert axe(page) == []
        page.keyboard.press("Escape")
        dialog.wait_for(state="detached")
        page.click("[aria-label='Invalidate qa'] >> visible=true")
        page.click("dialog >> text=Cancel")
        dialog.wait_for(state="detached")
        assert self.answer(lab, "qa") == {"answer": "qa"}

    def test_confirmed_it_does_it_and_says_so(self, page: Page, lab: Lab) -> None:
        page.focus("[aria-label='Invalidate qa'].aic-broad")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Invalidate qa"
        page.keyboard.press("Enter")
        says(page, "#aic-announce", "qa is invalidated")
        assert not page.is_visible("dialog")
        assert self.answer(lab, "qa") is None
        assert self.answer(lab, "summarize") == {"answer": "summarize"}

    def test_a_failure_stays_in_the_dialog(self, lab: Lab, opened: Opens) -> None:
        count_up(lab.app, calls(20, [ago(5)], ["qa"]))
        page = opened(lab.flower, quiet=False)
        figures(page)
        page.click("[aria-label='Invalidate qa'] >> visible=true")
        lab.server.kill()
        try:
            page.click("dialog >> text=Invalidate qa >> nth=-1")
            says(page, "#aic-dialog-error", r"not done: .*You can try again")
            assert page.is_enabled("#aic-dialog-confirm")
        finally:
            lab.server.start()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES)
def test_both_themes_and_widths_are_sound(office: SimpleNamespace, opened: Opens, size: str, theme: str) -> None:
    page = opened(office.flower, "?span=1h&operation=qa", size=SIZES[size], theme=theme)
    figures(page)
    assert page.evaluate("document.documentElement.dataset.bsTheme") == theme
    page.locator("#aic-plots summary").first.click()
    assert axe(page) == []
    width = SIZES[size][0]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    parts = "[...document.querySelectorAll('#aic .aic-panel, #aic article, #aic .aic-toolbar > *')]"
    assert page.evaluate(f"{parts}.filter(e => e.getBoundingClientRect().right > innerWidth + 1).length") == 0
    if size == "phone":
        scrolled = page.locator("#aic-operations .aic-scroll").evaluate("e => e.scrollWidth - e.clientWidth")
        assert scrolled <= 0, "figures of operations are read without scrolling sideways"


@pytest.mark.parametrize("theme", THEMES)
def test_the_states_without_figures_are_sound_too(lab: Lab, opened: Opens, theme: str) -> None:
    page = opened(lab.flower, size=PHONE, theme=theme)
    says(page, "#aic-advice h2", "Nothing is recorded yet")
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]


def test_flowers_own_switch_changes_the_theme_at_once(office: SimpleNamespace, opened: Opens) -> None:
    page = opened(office.flower)
    figures(page)
    color = "getComputedStyle(document.querySelector('#aic-operations')).backgroundColor"
    before = page.evaluate(color)
    page.click("#theme-toggle")
    page.click("[data-bs-theme-value=dark]")
    assert page.evaluate(color) != before


def test_the_chosen_span_shows_without_colours_of_the_page_s_own(office: SimpleNamespace, opened: Opens) -> None:
    page = opened(office.flower)
    page.emulate_media(forced_colors="active")
    figures(page)
    color = "e => getComputedStyle(e).backgroundColor"
    chosen = page.locator(".aic-spans input:checked + label")
    assert chosen.evaluate(color) != page.locator(".aic-spans").evaluate(color)


def test_names_are_text_wherever_they_are_shown(lab: Lab, opened: Opens) -> None:
    names = [MARKUP, HOSTILE, "=1+1", "'\"><b>"]
    count_up(lab.app, calls(200, [ago(5)], names), origin=MARKUP)
    page = opened(lab.flower, size=PHONE)
    figures(page)
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    assert page.locator("#aic img, #aic b:has-text('>'), #aic-figures script").count() == 0
    shown = page.locator("#aic-operations tbody th bdi").all_inner_texts()
    assert set(shown) == {wording.label(name) for name in names}
    assert wording.label(MARKUP) in page.locator("#aic-workers tbody th").first.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    page.select_option("#aic-operation", MARKUP)
    page.wait_for_url("**operation=%3Cimg*")
    page.locator("[aria-label^='Invalidate <img'] >> visible=true").click()
    assert page.locator("dialog h2").inner_text() == f"Invalidate {wording.label(MARKUP)}?"
    page.click("#aic-dialog-confirm")
    says(page, "#aic-announce", "is invalidated")


NS = [
    0,
    1,
    500,
    950,
    999.4,
    42_000,
    999_600,
    1_234_567,
    2.5e9,
    59.4e9,
    59.6e9,
    75e9,
    3600e9,
    9000e9,
    5e14,
    86_400e9 * 1200,
]
COUNTS = [0, 1, 12, 999, 1000, 1234, 99_999, 9_999_999, 12_345_678, 5_000_000_000, 2.5, 0.25, 1234.5, 3e12, None]
SHARES = [0, 0.0001, 0.0005, 0.5, 0.8764, 0.9994, 0.9999, 1, None]
SIZES_BYTES = [0, 1, 999, 999.4, 1000, 1234, 2.5e9, 10**15, None]
MONEY = [0, 0.00213, 0.5, 0.994, 0.999, 12.5, 1234.567, None]


MEASURED = [(151.4, "ms"), (1_731_880, "bytes"), (0.4, "hits / look-ups"), (60, "an hour"), (None, "ms")]


def test_numbers_read_as_in_the_terminal(office: SimpleNamespace, opened: Opens) -> None:
    page = opened(office.flower)
    wanted = {"duration": [*NS, None], "number": COUNTS, "percent": SHARES, "size": SIZES_BYTES, "money": MONEY}
    module = "/aicache/static/format.js"
    for name, values in wanted.items():
        shown = page.evaluate(
            "async ([m, n, v]) => { const f = await import(m); return v.map((x) => f[n](x)); }", [module, name, values]
        )
        assert shown == [getattr(wording, name)(value) for value in values], name
    measure = "async ([m, v]) => { const f = await import(m); return v.map(([a, b]) => f.measured(a, b)); }"
    shown = page.evaluate(measure, [module, MEASURED])
    assert shown == [wording.measured(value, unit) for value, unit in MEASURED]


def test_a_hidden_page_asks_for_nothing(office: SimpleNamespace, opened: Opens) -> None:
    page = opened(office.flower)
    figures(page)
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true })")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(6_000)
    assert asked == []


def test_figures_are_there_within_a_second(office: SimpleNamespace, opened: Opens) -> None:
    page = opened(office.flower)
    figures(page)
    took_s = []
    for _ in range(4):  # the machine may stall in some of them
        began = time.monotonic()
        page.reload()
        figures(page)
        took_s.append(time.monotonic() - began)
        if took_s[-1] < 3:
            break
    assert min(took_s) < 3
    eventually(lambda: page.locator("#aic-status").inner_text().startswith("Live"), within_s=30)
