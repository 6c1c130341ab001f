"""Chromium, Flowers to look at, and what every page is held to: a silent console and one host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from celery import Celery

from aicache_tasks.outbox import background
from aicache_tasks.testing import EmbeddedServer
from tests.caches import forget_samples
from tests.faults import eventually
from tests.flower_process import PASSWORD, ROOT, USER, FlowerProcess, conf_of_the_package, running
from tests.reported import make_app, reader_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("AICACHE_TEST_CHROMIUM") or shutil.which("chromium") or ""
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = (1280, 900), (390, 844)
MAY = {"AICACHE_FLOWER_INVALIDATE": "1"}
NAMESPACE = "lab"
CALM = {"AICACHE_BUDGET_MS": "5000", "AICACHE_CONNECT_MS": "5000"}
"""A machine that stalls must not turn hits into faults, nor a server that is there into one that is away."""
ON_TEXTS = ("summarize", "sentiment", "key_points", "questions")
IMPATIENT = """
from functools import partial
from aicache_tasks.reports.flower import feed, install_tab, tab
feed.TIMES_AS_LONG = 1
tab.Feed = partial(feed.Feed, fresh_s=0.1)
install_tab(allow_invalidation=True)
"""
"""A configuration whose Flower shows at once what a test did."""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "no chromium; install it, or name it in AICACHE_TEST_CHROMIUM"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET, timeout=120_000)
        yield browser
        browser.close()


class Watched:
    """What a page did that it should not."""

    def __init__(self, page: Page, host: str) -> None:
        self.said: list[str] = []
        self.elsewhere: list[str] = []
        self._host = host
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", self._requested)

    def _requested(self, request: Any) -> None:
        if urlsplit(request.url).netloc != self._host:
            self.elsewhere.append(request.url)


Opens = Callable[..., "Page"]


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Opens]:
    """Return a function that opens the tab of a Flower; in the end no page has said or asked what it should not."""
    watched: list[Watched] = []
    contexts: list[Any] = []

    def open_tab(
        flower: FlowerProcess,
        query: str = "",
        *,
        size: tuple[int, int] = DESKTOP,
        theme: str = "light",
        quiet: bool = True,
    ) -> Page:
        context = chromium.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if theme == "dark" else "light",
            has_touch=size == PHONE,
            http_credentials={"username": USER, "password": PASSWORD},
            accept_downloads=True,
        )
        context.set_default_timeout(30_000)
        page = context.new_page()
        contexts.append(context)
        if quiet:
            watched.append(Watched(page, f"127.0.0.1:{flower.port}"))
        page.goto(f"{flower.url}/aicache{query}")
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert [said for one in watched for said in one.said] == []
    assert [url for one in watched for url in one.elsewhere] == []


# A Flower with real workers behind it.


@contextmanager
def started(folder: Path, name: str, *arguments: str, environ: dict[str, str]) -> Iterator[None]:
    """Run a celery command of the example application while the body runs."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("AICACHE_", "FLOWER_"))}
    command = [sys.executable, "-m", "celery", "-A", "workers.app", *arguments]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=mine | environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Two workers, beat and Flower of the example application; its five operations ran, twice."""
    folder = tmp_path_factory.mktemp("office")
    with EmbeddedServer() as broker, EmbeddedServer(config={"maxmemory-policy": "volatile-lfu"}) as cache:
        environ = {
            "PYTHONPATH": str(ROOT),
            "CELERY_BROKER_URL": broker.url,
            "CELERY_RESULT_BACKEND": broker.url,
            "AICACHE_URL": cache.url,
            "AICACHE_ROLLUP_PERIOD_S": "2",
            **CALM,
        }
        worker = ("worker", "--concurrency=1", "--events", "--loglevel=warning")
        beat = ("beat", "--pidfile=", f"--schedule={folder / 'schedule'}", "--max-interval=1")
        flower = FlowerProcess(folder, conf_of_the_package(), environ=environ | MAY, app="workers.app")
        with (
            started(folder, "one", *worker, "--hostname=one@office", environ=environ),
            started(folder, "two", *worker, "--hostname=two@office", environ=environ),
            started(folder, "beat", *beat, environ=environ),
            running(flower),
        ):
            app = make_app(cache.url, broker_url=broker.url, result_backend=broker.url)
            run_operations(app)
            reader = reader_of(app)
            eventually(lambda: sum(r.lookups for r in reader.summaries.totals().values()) >= 40, within_s=60)
            yield SimpleNamespace(flower=flower, app=app, reader=reader, cache=cache)


def run_operations(app: Celery) -> None:
    """Have the workers run each operation on four articles, twice."""
    articles = [path.read_text() for path in sorted((ROOT / "workers" / "articles").glob("*.txt"))[:4]]
    for _ in range(2):
        sent = []
        for article in articles:
            text = article[:4000]
            sent += [app.send_task(f"workers.{name}", (text,)) for name in ON_TEXTS]
            sent.append(app.send_task("workers.qa", (text, "What is planned?")))
        for result in sent:
            result.get(timeout=60)


# A Flower whose server a test may do anything to.


class Lab:
    """A server, a Flower behind a password and under a prefix, and an application that writes what they show."""

    def __init__(self, server: EmbeddedServer, flower: FlowerProcess) -> None:
        self.server, self.flower = server, flower
        self.begin()

    def begin(self) -> None:
        """Take an application that knows of no fault, empty the server, and wait until Flower has noticed.

        What the last test's application recorded is sent first: a second later it would be counted in this test.
        """
        background.flush_all()
        forget_samples()
        self.app = make_app(self.server.url, aicache_namespace=NAMESPACE)
        self.reader = reader_of(self.app)
        with self.server.client() as client:
            client.flushall()
        eventually(lambda: self.flower.get("/aicache/data?span=all").json["state"] == "empty", within_s=40)


@pytest.fixture(scope="session")
def _lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    with EmbeddedServer() as broker, EmbeddedServer() as server:
        conf = folder / "flowerconfig.py"
        conf.write_text(IMPATIENT)
        environ = {"AICACHE_URL": server.url, "AICACHE_TEST_BROKER": broker.url, "AICACHE_NAMESPACE": NAMESPACE, **CALM}
        environ["AICACHE_SAMPLES"] = "off"  # or what it records of an invalidation would be counted in the next test
        guard = f"--basic_auth={USER}:{PASSWORD}"
        flower = FlowerProcess(folder, conf, guard, environ=environ, prefix="/ops")
        with running(flower):
            yield Lab(server, flower)


@pytest.fixture
def lab(_lab: Lab) -> Lab:
    """The lab, with an empty server."""
    _lab.begin()
    return _lab


def ago(seconds: float) -> float:
    """Return the time *seconds* ago."""
    return time.time() - seconds
