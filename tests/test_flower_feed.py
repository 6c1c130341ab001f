"""Documents for the tab, read beside a loop: who is asked how often, and what is said when nothing can be read."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from celery import Celery
from prometheus_client import REGISTRY, Metric
from prometheus_client.registry import Collector

from aicache_tasks.invalidation import ADMIN_BUDGET_S
from aicache_tasks.records import Sample
from aicache_tasks.reports.flower import snapshot
from aicache_tasks.reports.flower.feed import Feed
from aicache_tasks.reports.flower.metrics import MetricsView
from aicache_tasks.reports.flower.snapshot import ALL_TIME, Asked
from aicache_tasks.reports.flower.states import ADVICE
from aicache_tasks.reports.refusals import ADVICE as WHAT_HELPS
from aicache_tasks.reports.refusals import NOBODY
from aicache_tasks.runtime import runtime_of
from aicache_tasks.testing import EmbeddedServer
from tests.faults import eventually
from tests.reported import calls, count_up, make_app, reader_of, send

DAY = Asked("24h")


class Clock:
    """A monotonic clock that is wound by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def feed(clock: Clock) -> Iterator[Feed]:
    made = Feed(limit_s=5.0, clock=clock)
    yield made
    made.close()


@pytest.fixture
def app(valkey: EmbeddedServer) -> Celery:
    return make_app(valkey.url)


def read(feed: Feed, app: Celery, asked: Asked = DAY) -> dict[str, Any]:
    return asyncio.run(feed.document(app, asked))


def commands(client: Any) -> int:
    """Return how many commands the server has been sent, but for those of this question."""
    return int(client.info("stats")["total_commands_processed"])


class TestSharing:
    def test_ten_viewers_at_once_are_one_reader(self, feed: Feed, own_server: EmbeddedServer) -> None:
        """On a server of its own: what other tests left behind says goodbye to theirs when it is collected."""
        app, client = make_app(own_server.url), own_server.client()
        count_up(app, calls(50, [time.time()], ["shout"]))
        read(feed, app)  # what a first connection asks
        feed.forget()

        async def viewers(count: int) -> list[dict[str, Any]]:
            return await asyncio.gather(*(feed.document(app, DAY) for _ in range(count)))

        before = commands(client)
        asyncio.run(viewers(1))
        for_one = commands(client) - before
        feed.forget()
        before = commands(client)
        documents = asyncio.run(viewers(10))
        assert commands(client) - before == for_one > 1
        assert all(document is documents[0] for document in documents)
        client.close()

    def test_it_is_good_for_some_seconds_and_then_read_anew(
        self, feed: Feed, app: Celery, clock: Clock, client: Any
    ) -> None:
        count_up(app, calls(20, [time.time()], ["shout"]))
        first = read(feed, app)
        count_up(app, calls(20, [time.time()], ["shout"], seed=2))
        assert read(feed, app) is first
        clock.now_s += 3.1
        again = read(feed, app)
        assert again["total"]["steps"]["get"]["count"] == 2 * first["total"]["steps"]["get"]["count"] == 40

    def test_what_took_long_to_read_is_good_for_ten_times_as_long(self, app: Celery, clock: Clock) -> None:
        def slow_clock() -> float:
            clock.now_s += 1.0
            return clock.now_s

        feed = Feed(limit_s=5.0, clock=slow_clock)
        first = read(feed, app)
        clock.now_s += 20
        assert read(feed, app) is first
        clock.now_s += 60
        assert read(feed, app) is not first
        feed.close()

    def test_what_does_not_depend_on_the_span_is_read_once(self, feed: Feed, app: Celery) -> None:
        count_up(app, calls(20, [time.time()], ["shout"]))
        assert read(feed, app, Asked("1h"))["at_s"] == read(feed, app, Asked(ALL_TIME))["at_s"]

    def test_no_number_of_questions_fills_the_memory(self, feed: Feed, app: Celery) -> None:
        for number in range(100):
            read(feed, app, Asked("1h", f"name {number}"))
        assert max(len(held) for held in (feed._read, feed._sound, feed._pending)) <= 64


class TestStates:
    def test_nothing_recorded(self, feed: Feed, app: Celery) -> None:
        document = read(feed, app)
        assert document["state"] == "empty"
        assert "cache=" in document["advice"]["todo"][0]

    def test_nothing_rolled_up(self, feed: Feed, app: Celery) -> None:
        send(app, calls(20, [time.time()], ["shout"]))
        document = read(feed, app, Asked(ALL_TIME))
        assert document["state"] == "waiting"
        assert document["total"]["hits"] + document["total"]["misses"] == 20
        assert document["rollup"]["late"]

    def test_figures_and_something_that_waits(self, feed: Feed, app: Celery) -> None:
        count_up(app, calls(20, [time.time()], ["shout"]))
        send(app, calls(20, [time.time()], ["shout"], seed=2))
        document = read(feed, app)
        assert (document["state"], document["advice"]) == ("ok", None)
        assert document["breakers"] == {"reads": "closed", "writes": "closed"}

    def test_what_waits_for_long(self, feed: Feed, app: Celery, client: Any) -> None:
        count_up(app, calls(20, [time.time()], ["shout"]))
        summaries = reader_of(app).summaries
        cache = runtime_of(app).cache
        cache.parts.samples.ship(Sample(time.time(), "shout", "get", "hit", "", 1000))
        assert cache.parts.outbox is not None
        assert cache.parts.outbox.flush()
        assert summaries.backlog().entries == 1
        client.hset(summaries.keys.state, "since_ms", int((time.time() - 600) * 1000))
        assert summaries.backlog().age_s == pytest.approx(600, abs=20)
        document = read(feed, app)
        assert document["state"] == "stale"
        assert "total" in document

    def test_no_server(self, feed: Feed, refused_url: str) -> None:
        document = read(feed, make_app(refused_url))
        assert document["state"] == "down"
        assert document["advice"]["text"] == "It does not answer: ConnectionError."
        assert document["advice"]["todo"][0] == NOBODY
        assert document["place"]["url"] == refused_url

    def test_a_password_shows_nowhere(self, feed: Feed, refused_url: str) -> None:
        document = read(feed, make_app(refused_url.replace("://", "://:s3cret@")))
        assert "s3cret" not in str(document)
        assert "********" in document["place"]["url"]

    @pytest.mark.parametrize(
        ("login", "database", "helps"),
        [("nobody:wrong@", 0, WHAT_HELPS["WRONGPASS"]), ("", 99, "Does it have a database 99?")],
    )
    def test_a_server_that_refuses(
        self, feed: Feed, valkey: EmbeddedServer, login: str, database: int, helps: str
    ) -> None:
        document = read(feed, make_app(f"redis://{login}127.0.0.1:{valkey.port}/{database}"))
        assert document["state"] == "down"
        assert document["advice"]["text"].startswith("It answers with an error: ")
        assert document["advice"]["todo"][0].startswith(helps)
        assert document["advice"]["todo"][-1].endswith("Only changed settings need a restart, here of Flower.")

    def test_a_frozen_server_is_not_waited_for(self, own_server: EmbeddedServer, clock: Clock) -> None:
        app, feed = make_app(own_server.url), Feed(limit_s=0.3, clock=clock)
        count_up(app, calls(20, [time.time()], ["shout"]))
        eventually(lambda: read(feed, app, Asked("1h"))["state"] == "ok")
        sound = read(feed, app, Asked("1h"))
        own_server.pause()
        began = time.monotonic()
        document = read(feed, app, DAY)
        assert time.monotonic() - began < ADMIN_BUDGET_S - 1, "that long the reader waits"
        assert (document["state"], "total" in document) == ("slow", False)
        feed.forget()
        kept = read(feed, app, Asked("1h"))
        assert (kept["state"], kept["total"], kept["at_s"]) == ("slow", sound["total"], sound["at_s"])
        own_server.resume()
        feed.close()

    @pytest.mark.soak
    def test_a_frozen_server_that_goes_on_is_read_in_seconds(self, own_server: EmbeddedServer) -> None:
        """Finding out that it was frozen took long; no longer is it said than it is so."""
        app, feed = make_app(own_server.url), Feed(fresh_s=1.0)
        count_up(app, calls(20, [time.time()], ["shout"]))
        sound = read(feed, app)
        feed.forget()
        own_server.pause()
        try:
            eventually(lambda: read(feed, app)["state"] == "down", within_s=30)
            fault = feed._fault
            assert fault is not None
            eventually(lambda: time.monotonic() > fault.feel_from)
            assert read(feed, app)["state"] == "down", "it is felt for"
        finally:
            own_server.resume()
        went_on = time.monotonic()
        assert fault.until > went_on + 10
        eventually(lambda: read(feed, app)["state"] == "ok", within_s=9)
        assert read(feed, app)["total"] == sound["total"]
        feed.close()

    def test_waiting_behind_other_viewers_is_not_said_of_the_server(
        self, app: Celery, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        feed, goes, at_last = Feed(limit_s=1.0, clock=clock), threading.Event(), threading.Event()
        second = threading.Event()
        count_up(app, calls(20, [time.time()], ["shout"]))
        sound = read(feed, app)
        feed.forget()
        document = snapshot.document

        def slowly(reader: Any, asked: Asked, now: Any) -> dict[str, Any]:
            if asked.span == "1h":
                assert goes.wait(20)
                clock.now_s += 0.7
            else:
                second.set()
                assert at_last.wait(20)
            return document(reader, asked, now)

        monkeypatch.setattr(snapshot, "document", slowly)

        async def viewers() -> list[dict[str, Any]]:
            first = asyncio.create_task(feed.document(app, Asked("1h")))
            await asyncio.sleep(0)
            waiting = [asyncio.create_task(feed.document(app, asked)) for asked in (DAY, Asked(ALL_TIME))]
            await asyncio.sleep(0)
            goes.set()
            assert await asyncio.to_thread(second.wait, 20)
            return await asyncio.gather(first, *waiting)

        try:
            first, kept, none = asyncio.run(viewers())
        finally:
            at_last.set()
            feed.close()
        assert first["state"] == "ok"
        assert (kept["state"], kept["total"], kept["at_s"]) == ("busy", sound["total"], sound["at_s"])
        assert (none["state"], "total" in none) == ("busy", False)
        assert "server" not in none["advice"]["title"]

    def test_figures_from_before_stay_while_the_server_is_away_and_it_is_asked_once_for_all(
        self, feed: Feed, clock: Clock, own_server: EmbeddedServer
    ) -> None:
        app = make_app(own_server.url)
        count_up(app, calls(20, [time.time()], ["shout"]))
        sound = read(feed, app)
        own_server.kill()
        clock.now_s += 4
        document = read(feed, app)
        assert (document["state"], document["total"], document["at_s"]) == ("down", sound["total"], sound["at_s"])
        assert document["breakers"]["reads"] == "open"
        own_server.start()
        assert read(feed, app, Asked("1h"))["state"] == "down", "found out a moment ago"
        clock.now_s += 4
        assert read(feed, app)["state"] == "empty"

    def test_a_cache_in_memory(self, feed: Feed) -> None:
        document = read(feed, make_app("memory://"))
        assert document["state"] == "misconfigured"
        assert "memory://" in document["advice"]["text"]

    @pytest.mark.parametrize(("settings", "named"), [({}, "aicache_url"), ({"aicache_ttl": "soon"}, "aicache_ttl")])
    def test_a_setting_that_is_missing_or_wrong(self, feed: Feed, settings: dict[str, Any], named: str) -> None:
        document = read(feed, make_app(None, **settings))
        assert document["state"] == "misconfigured"
        assert named in document["advice"]["text"]

    def test_an_application_without_a_cache(self, feed: Feed) -> None:
        document = read(feed, Celery("plain", broker="memory://", set_as_current=False))
        assert document["state"] == "absent"
        assert any("install(app)" in line for line in document["advice"]["todo"])

    def test_every_state_but_ok_says_what_to_do(self) -> None:
        assert all(advice.title and advice.todo for advice in ADVICE.values())
        assert "ok" not in ADVICE


def test_an_alert_is_shown_with_its_value_and_since_when(feed: Feed, valkey: EmbeddedServer) -> None:
    from aicache_tasks import alerts

    app = make_app(valkey.url, aicache_slow_operation_ms=0.01)
    count_up(app, calls(200, [time.time()], ["shout"]))
    list(alerts.changes(reader_of(app).summaries))
    shown = {alert["alert"]: alert for alert in read(feed, app)["alerts"]}
    assert shown["slow_operation"]["label"] == "shout"
    assert shown["slow_operation"]["value"] > 0.01


def test_the_slowest_and_the_most_saving_operations_are_ranked(feed: Feed, app: Celery) -> None:
    now_s = time.time()
    count_up(app, [*calls(100, [now_s], ["busy"]), *calls(10, [now_s], ["idle"], seed=3)])
    count_up(app, [Sample(now_s, "slow", "get", "miss", "key_not_found", 90_000_000)])
    ranked = {by: [row["operation"] for row in rows] for by, rows in read(feed, app)["top"].items()}
    assert ranked["saved"][:2] == ["busy", "idle"]
    assert ranked["slow"][0] == "slow"
    assert ranked["cost"][0] == "busy"


def test_the_busiest_and_the_one_that_is_asked_for_can_be_chosen(
    feed: Feed, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MOST_OPERATIONS", 2)
    now_s = time.time()
    count_up(app, calls(9, [now_s], ["z"]) + calls(6, [now_s - 7200], ["y"]) + calls(3, [now_s], ["b", "a"]))
    shown = read(feed, app, Asked("1h", "nobody"))
    assert [one["operation"] for one in shown["names"]] == sorted(
        {"z", "y", "nobody"} | {row["operation"] for row in shown["operations"]}
    )
    assert shown["total"]["counts"] == shown["all_time"]["counts"] == {}


class Stuck(Collector):
    """Waits, as for a server that hangs."""

    def __init__(self) -> None:
        self.asked, self.goes_on = 0, threading.Event()

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        self.asked += 1
        assert self.goes_on.wait(20)
        yield Metric("stuck", "A server that hangs.", "gauge")


def test_scrapes_at_once_wait_for_one_answer() -> None:
    stuck = Stuck()
    REGISTRY.register(stuck)

    async def scrapes() -> list[bytes]:
        waiting = [asyncio.create_task(MetricsView.text()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # one whose client went away does not take the others' answer with it
        stuck.goes_on.set()
        return await asyncio.gather(*waiting[1:])

    try:
        texts = asyncio.run(scrapes())
        assert (stuck.asked, texts[0] is texts[1], b"# TYPE stuck gauge" in texts[0]) == (1, True, True)
        asyncio.run(MetricsView.text())
        assert stuck.asked == 2
    finally:
        stuck.goes_on.set()
        REGISTRY.unregister(stuck)
