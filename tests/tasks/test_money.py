"""What answers cost, from the body to every view: the ledgers are a table that was worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from aicache_tasks.ledger import Ledger
from aicache_tasks.reports.flower.snapshot import ALL_TIME, Asked, document, now_of
from aicache_tasks.reports.rows import figures_json
from aicache_tasks.runtime import runtime_of
from aicache_tasks.testing import EmbeddedServer
from tests import money_app
from tests.cluster.nodes import WorkerProcess
from tests.reported import reader_of
from tests.tasks.conftest import Servers, end
from tests.test_cli import read, shown
from tests.test_prometheus import of, registry_of, series

OLD: dict[str, Any] = {
    "version": "2026-10",
    "currency": "USD",
    "models": {
        "mini*": {"input": 0.15, "cached_input": 0.075, "output": 0.60},
        "big": {"input": 2.5, "cached_input": 1.25, "cache_write": 3.125, "output": 10},
    },
}
NEW: dict[str, Any] = {
    "version": "2026-11",
    "currency": "USD",
    "models": {
        "mini*": {"input": 0.10, "output": 0.40},
        "big": {"input": 3, "cached_input": 1.5, "cache_write": 3.75, "output": 12},
    },
}
SOME = {"input_tokens": 1000, "cached_input_tokens": 400, "output_tokens": 10}
LONG = {"input_tokens": 100, "cache_read_input_tokens": 1000, "cache_creation_input_tokens": 200, "output_tokens": 50}
TWO, THREE = {"input_tokens": 7, "output_tokens": 1}, {"input_tokens": 30}

# What is called, and what it costs by hand: (saved or spent, operation, version of the prices, millionths).
Entry = tuple[str, str, str, int]
Calls = list[tuple[str, dict[str, bool], tuple[Any, ...], list[Entry]]]
BEFORE: Calls = [
    # 600 x 0.15 + 400 x 0.075 + 10 x 0.60 = 90 + 30 + 6
    ("ask", {}, ("one", "mini-1", SOME), [("spent", "ask", "2026-10", 126)]),
    ("ask", {}, ("one", "mini-1", SOME), [("saved", "ask", "2026-10", 126)]),
    ("ask", {}, ("one", "mini-1", SOME), [("saved", "ask", "2026-10", 126)]),
    ("ask", {"refresh": True}, ("one", "mini-1", SOME), [("spent", "ask", "2026-10", 126)]),
    ("ask", {"bypass": True}, ("one", "mini-1", SOME), [("spent", "ask", "2026-10", 126)]),
    ("ask", {"no_store": True}, ("other", "mini-1", SOME), [("spent", "ask", "2026-10", 126)]),
    # 7 x 0.15 + 1 x 0.60 = 1.65, each time: what failed is paid and not stored
    ("ask", {}, ("two", "mini-2", TWO, "fail"), [("spent", "ask", "2026-10", 2)]),
    ("ask", {}, ("two", "mini-2", TWO, "fail"), [("spent", "ask", "2026-10", 2)]),
    ("ask", {"bypass": True}, ("two", "mini-2", TWO, "fail"), [("spent", "ask", "2026-10", 2)]),
    # 30 x 0.15 = 4.5, half to even; two attempts, of which the first ends in Retry
    ("ask", {}, ("three", "mini", THREE, "retry"), [("spent", "ask", "2026-10", 4), ("spent", "ask", "2026-10", 4)]),
    ("ask", {}, ("three", "mini", THREE, "retry"), [("saved", "ask", "2026-10", 4)]),
    # a model without a price
    ("ask", {}, ("four", "elsewhere", {"input_tokens": 500}), []),
    ("ask", {}, ("four", "elsewhere", {"input_tokens": 500}), []),
    # 100 x 2.5 + 1000 x 1.25 + 200 x 3.125 + 50 x 10 = 250 + 1250 + 625 + 500
    ("draft", {}, ("five", "big", LONG), [("spent", "draft", "2026-10", 2625)]),
    ("draft", {}, ("five", "big", LONG), [("saved", "draft", "2026-10", 2625)]),
    ("draft", {}, ("five", "big", LONG), [("saved", "draft", "2026-10", 2625)]),
    # the body says it: 10500.5 millionths, half to even
    ("draft", {}, ("six", "big", LONG, 0.0105005), [("spent", "draft", "", 10_500)]),
    ("draft", {}, ("six", "big", LONG, 0.0105005), [("saved", "draft", "", 10_500)]),
]
AFTER: Calls = [
    # an answer has the price of when it was computed, for as long as it lives
    ("ask", {}, ("one", "mini-1", SOME), [("saved", "ask", "2026-10", 126)]),
    ("draft", {}, ("five", "big", LONG), [("saved", "draft", "2026-10", 2625)]),
    # (600 + 400) x 0.10 + 10 x 0.40: cached tokens cost what others do, if nobody says what they cost
    ("ask", {"refresh": True}, ("one", "mini-1", SOME), [("spent", "ask", "2026-11", 104)]),
    ("ask", {}, ("one", "mini-1", SOME), [("saved", "ask", "2026-11", 104)]),
    ("ask", {"refresh": True}, ("four", "elsewhere", {"input_tokens": 500}), []),
    # 100 x 3 + 1000 x 1.5 + 200 x 3.75 + 50 x 12
    ("draft", {"bypass": True}, ("five", "big", LONG), [("spent", "draft", "2026-11", 3150)]),
    ("draft", {}, ("six", "big", LONG, 0.0105005), [("saved", "draft", "", 10_500)]),
]
# The sums of the above.
COSTS = {
    ("saved", "ask"): {"2026-10": 382, "2026-11": 104},
    ("spent", "ask"): {"2026-10": 518, "2026-11": 104},
    ("saved", "draft"): {"2026-10": 7875, "": 21_000},
    ("spent", "draft"): {"2026-10": 2625, "2026-11": 3150, "": 10_500},
}
UNPRICED = {("saved", "ask"): {"elsewhere": 1}, ("spent", "ask"): {"elsewhere": 2}}
SAVED_ASK_TOKENS = {"input_tokens": 4 * 1000 + 30 + 500, "cached_input_tokens": 4 * 400, "output_tokens": 4 * 10}


@pytest.fixture
def app(servers: Servers, own_server: EmbeddedServer) -> Iterator[Celery]:
    config = {**servers.config(8), "aicache_url": own_server.url}
    made = money_app.make_app(**config, aicache_prices=NEW)
    try:
        yield made
    finally:
        end(made)


def run(app: Celery, prices: dict[str, Any], calls: Calls) -> str:
    """Have a worker with *prices* run *calls*, one after the other; return its log."""
    urls = (app.conf.broker_url, app.conf.result_backend, app.conf.aicache_url)
    worker = WorkerProcess("tests.money_app", *urls, concurrency=1, env={"AICACHE_PRICES": json.dumps(prices)}).start()
    try:
        worker.ready()
        for name, directives, args, _ in calls:
            task = app.tasks[name]
            directed = task.with_cache(**directives) if directives else task
            directed.delay(*args).get(timeout=30, propagate=False)
        worker.stop()
        return worker.logs()
    finally:
        worker.close()


def test_the_table_adds_up() -> None:
    sums: dict[tuple[str, str], dict[str, int]] = {}
    for _, _, _, entries in BEFORE + AFTER:
        for ledger, operation, version, micros in entries:
            of = sums.setdefault((ledger, operation), {})
            of[version] = of.get(version, 0) + micros
    assert sums == COSTS


@pytest.mark.timeout(120)
def test_every_view_has_the_costs_that_were_worked_out_by_hand(app: Celery) -> None:
    log = run(app, OLD, BEFORE)
    assert log.count("that have no price in aicache_prices['models']") == 1
    run(app, NEW, AFTER)
    reader = reader_of(app)
    check_views(app, {name: total for name, total in reader.live().totals.items() if name})  # while all of it waits
    done = reader.summaries.roll_up()
    assert (done.lost, done.undecodable) == (0, 0)
    totals = {name: total for name, total in reader.summaries.totals().items() if name}
    check_records(totals)
    check_views(app, totals)
    check_peek(app)


def check_records(totals: dict[str, Any]) -> None:
    for (ledger, operation), costs in COSTS.items():
        found: Ledger = getattr(totals[operation], ledger)
        assert found.costs == costs
        assert found.cost_micros == sum(costs.values())
        assert found.unpriced == UNPRICED.get((ledger, operation), {})
        assert found.compute_ns > 0
    assert totals["ask"].saved.tokens == SAVED_ASK_TOKENS
    bodies = {key[1:]: count for key, count in totals["ask"].counts.items() if key[0] == "compute"}
    assert bodies == {
        ("success", "miss"): 4, ("success", "refresh"): 3, ("success", "bypass"): 1,
        ("failed", "miss"): 3, ("failed", "bypass"): 1,
    }  # fmt: skip


def check_views(app: Celery, totals: dict[str, Any]) -> None:
    reader, figures = reader_of(app), series(registry_of(app))
    command, now = read(app, "stats"), now_of(reader)
    tab = document(reader, Asked(ALL_TIME), now)
    assert command["currency"] == tab["currency"] == "USD"
    spans = (["summaries"], ["summaries", "--compare", "1d"], ["top", "--by", "cost"])
    assert [read(app, *arguments)["currency"] for arguments in spans] == ["USD"] * 3
    for view in (command, tab):
        rows = {row["operation"]: row for row in view["operations"]}
        for (ledger, operation), costs in COSTS.items():
            said = rows[operation][ledger]
            assert said == figures_json(totals[operation])[ledger]
            assert said["cost"] == sum(costs.values()) / 1e6
            assert said["cost_by_prices"] == {version: micros / 1e6 for version, micros in costs.items()}
            assert said["unpriced"] == UNPRICED.get((ledger, operation), {})
    for (ledger, operation), costs in COSTS.items():
        for version, micros in costs.items():
            name = f"aicache_{ledger}_cost_total"
            assert of(figures, name, operation=operation, prices=version) == micros / 1e6
    assert of(figures, "aicache_unpriced_bodies_total", operation="ask", model="elsewhere") == 2
    text = shown(app, "stats")
    assert "cost by prices 2026-11: 0.0001 USD saved, 0.0033 USD spent" in text
    assert "cost as bodies said: 0.021 USD saved" in text
    assert "2 answers took tokens that have no price" in text
    assert "elsewhere 2" in text


def check_peek(app: Celery) -> None:
    ask, draft = app.tasks["ask"].cache, app.tasks["draft"].cache
    assert ask.peek("one", "mini-1", SOME).cost == 0.000104
    assert [entry.prices for entry in (ask.peek("one", "mini-1", SOME), draft.peek("five", "big", LONG))] == [
        "2026-11", "2026-10",
    ]  # fmt: skip
    said = draft.peek("six", "big", LONG, 0.0105005)
    assert (said.cost, said.prices) == (0.0105, "")
    lost = ask.peek("four", "elsewhere", {"input_tokens": 500})
    assert (lost.cost, lost.prices) == (None, "2026-11")
    runtime_of(app).close()
