"""One run, seen from everywhere: command, tab, workers' answers, Prometheus, page and records say the same."""

from __future__ import annotations

import csv
import io
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aicache_tasks.beat import roll_up
from aicache_tasks.codec import encode_meta
from aicache_tasks.mode import EVERY_S
from aicache_tasks.records import CallInfo, EntryMeta, Sample
from aicache_tasks.reports.commands.calls import worth
from aicache_tasks.reports.flower.download import csv_of
from aicache_tasks.reports.flower.snapshot import ALL_TIME, Asked, document, now_of
from aicache_tasks.reports.queries import Reader
from aicache_tasks.reports.rows import figures_json
from aicache_tasks.runtime import reset_runtime
from aicache_tasks.stores.base import Budget
from aicache_tasks.testing import EmbeddedServer
from aicache_tasks.tracing import attributes_of
from tests import doctor_app
from tests.cluster.nodes import WorkerProcess
from tests.faults import eventually
from tests.reported import count_up, make_app, reader_of
from tests.test_cli import read, run
from tests.test_html_report import written
from tests.test_prometheus import Series, of, registry_of, series

CALLS = 2000
REFRESHED, BYPASSED, OFF = 60, 40, 30
PRICES = {"version": "2026-11", "models": {"mini-*": {"input": 0.15, "output": 0.6}}}
KEPT = ("hits", "misses", "hit_rate", "saved")
USAGE = {
    "beside": {
        "input_tokens": 600,
        "cache_read_input_tokens": 300,
        "cache_creation_input_tokens": 100,
        "output_tokens": 100,
    },
    "part": {"input_tokens": 1000, "cached_input_tokens": 800, "output_tokens": 100},
    "total": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    "words": {"input_words": 1000, "output_words": 100},
}
"""What an answer of each operation took: but for the last 1,100 tokens."""


def test_a_token_counts_once_in_every_view_and_a_word_in_none(valkey: EmbeddedServer, tmp_path: Path) -> None:
    app, now_s = make_app(valkey.url), time.time()
    for name, usage in USAGE.items():
        meta = encode_meta(EntryMeta("m", usage, compute_ns=10**9))
        steps = (("get", "hit"), ("compute", "miss"), ("compute", "miss"))
        count_up(app, [Sample(now_s, name, step, status, "", 10**6, meta=meta) for step, status in steps])
    reader, saved = reader_of(app), {name: 1100 * (name != "words") for name in USAGE}

    lines = [line.split() for line in run(app, "stats", environ={"COLUMNS": "200"}).output.splitlines()]
    cells = {line[0]: line for line in lines if line and line[0] in (*USAGE, "all")}
    assert {name: [cell for cell in line if "," in cell] for name, line in cells.items()} == {
        **{name: ["1,100"] if tokens else [] for name, tokens in saved.items()},
        "all": ["3,300"],
    }
    assert {row["operation"]: row["tokens"] for row in read(app, "top", "--by", "tokens")["rows"]} == {
        name: tokens for name, tokens in saved.items() if tokens
    }
    for name, record in reader.summaries.totals().items():
        assert ("1,100 tokens" in worth(record), "tokens" in worth(record)) == (bool(saved[name]),) * 2
    tab, page = document(reader, Asked(ALL_TIME), now_of(reader)), written(app, tmp_path, "--since", "1h").document
    for found in (tab, page):
        assert found["total"]["tokens"] == found["all_time"]["tokens"] == {"saved": 3300, "spent": 6600}
        for rows in (found["operations"], found["ever"]):
            assert {row["operation"]: row["tokens"]["saved"] for row in rows} == saved
    rows = csv.DictReader(io.StringIO(csv_of(tab, "operations")))
    assert {row["operation"]: (int(row["saved_tokens"]), int(row["spent_tokens"])) for row in rows} == {
        name: (tokens, 2 * tokens) for name, tokens in saved.items()
    }
    spans = {
        name: attributes_of(CallInfo("hit", "", name, ""), EntryMeta(usage=usage)) for name, usage in USAGE.items()
    }
    assert {name: span.get("aicache.saved_tokens", 0) for name, span in spans.items()} == saved


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_after_a_mixed_run_on_two_workers_all_views_agree_exactly(tmp_path: Path) -> None:
    app = doctor_app.app
    with EmbeddedServer() as cache, EmbeddedServer() as queue:
        app.conf.update(broker_url=queue.url, result_backend=queue.url, aicache_url=cache.url)
        reset_runtime(app)
        urls, env = (queue.url, queue.url, cache.url), {"AICACHE_PRICES": json.dumps(PRICES)}
        workers = [
            WorkerProcess("tests.doctor_app", *urls, concurrency=1, env=env, name=name).start()
            for name in ("one", "two")
        ]
        try:
            for worker in workers:
                worker.ready()
            sent = send_all()
            reader = reader_of(app)
            eventually(lambda: is_all_there(reader.live().totals), within_s=120)
            sent += send_while_off(reader)
            eventually(lambda: disabled(reader.live().totals) == OFF == past(reader.live().totals, "disabled"), 60)
            roll_up(app)
            answers = asked_of_workers(app)
            compare(app, tmp_path, sent, answers)
        finally:
            for worker in workers:
                worker.close()
            reset_runtime(app)
            app.close()


def send_all() -> Counter[str]:
    """Send the calls, some of them again and again; return how many of each operation."""
    rng, sent = random.Random(7), Counter[str]()
    for number in range(CALLS):
        text = f"text {rng.randint(1, 150)}"
        name = rng.choice(("shout", "whisper"))
        task = doctor_app.app.tasks[f"tests.doctor_app.{name}"]
        refreshed, bypassed = number < REFRESHED, REFRESHED <= number < REFRESHED + BYPASSED
        directed = task.with_cache(refresh=refreshed, bypass=bypassed) if refreshed or bypassed else task
        directed.apply_async((text,), {"size": 2} if name == "shout" else {}, ignore_result=True)
        sent[name if name == "shout" else task.name] += 1
    return sent


def is_all_there(totals: dict[str, Any]) -> bool:
    """Say whether every call's last timing has come: of what was computed, its store's."""
    computed = sum(record.of("get", "miss", "refresh") for record in totals.values())
    stored = sum(record.of("set") for record in totals.values())
    got = sum(record.of("get") for record in totals.values())
    return got == CALLS and stored == computed and past(totals, "bypass") == BYPASSED


def past(totals: dict[str, Any], status: str) -> int:
    """Return how many bodies ran past the cache, for calls of a status."""
    return sum(record.counts["compute", "success", status] for record in totals.values())


def send_while_off(reader: Reader) -> Counter[str]:
    """Send calls while the cache is switched off; return how many of each operation."""
    mode = reader.summaries.parts.mode
    mode.switch(off=True, budget=Budget(5))
    time.sleep(EVERY_S)
    shout = doctor_app.app.tasks["tests.doctor_app.shout"]
    sent = [shout.apply_async((f"text {number}",), {"size": 2}) for number in range(OFF)]
    for result in sent:
        result.get(timeout=60)
    mode.switch(off=False, budget=Budget(5))
    return Counter(shout=OFF)


def disabled(totals: dict[str, Any]) -> int:
    return sum(record.of("get", "disabled") for record in totals.values())


def asked_of_workers(app: Any) -> list[dict[str, Any]]:
    replies = app.control.broadcast("cache_stats", reply=True, timeout=10, limit=2)
    return [answer for reply in replies for answer in reply.values()]


def statuses(reader: Reader) -> Counter[str]:
    """Return how many calls had each status."""
    seen: Counter[str] = Counter()
    for record in reader.summaries.totals().values():
        for (step, status, _), times in record.counts.items():
            seen[status] += times if step == "get" else 0
    return seen


def timed(seen: Counter[str]) -> int:
    return seen.total() - seen["disabled"] - seen["bypass"]


def compare(app: Any, folder: Path, sent: Counter[str], answers: list[dict[str, Any]]) -> None:
    reader = reader_of(app)
    records = {name: figures_json(record) for name, record in reader.summaries.totals().items()}
    assert Counter({name: record.of("get") for name, record in reader.summaries.totals().items()}) == sent

    seen = statuses(reader)
    assert seen["disabled"] == OFF
    assert sum(record.steps["get"].count for record in reader.summaries.totals().values()) == timed(seen), "no look-up"
    assert (seen["refresh"] > 0, seen["bypass"] > 0, seen["hit"] > seen["miss"] > 0) == (True, True, True)

    command = {row["operation"]: row for row in read(app, "stats")["operations"]}
    tab = {row["operation"]: row for row in document(reader, Asked(ALL_TIME), now_of(reader))["operations"]}
    page = {row["operation"]: row for row in written(app, folder, "--since", "1h").document["operations"]}
    for view in (command, tab, page):
        assert {name: {figure: row[figure] for figure in records[name]} for name, row in view.items()} == records

    assert len(answers) == 2
    for answer in answers:
        brief = {name: {figure: row[figure] for figure in KEPT} for name, row in answer["operations"].items()}
        assert brief == {name: {figure: row[figure] for figure in KEPT} for name, row in records.items()}

    shown = series(registry_of(app))
    for name, row in records.items():
        for status, reasons in row["counts"]["get"].items():
            for reason, count in reasons.items():
                labels = {"operation": name, "status": status, "reason": reason}
                assert of(shown, "aicache_lookups_total", **labels) == count
        for step, spread in row["steps"].items():
            assert of(shown, "aicache_step_seconds_count", operation=name, step=step) == spread["count"]
            assert of(shown, "aicache_step_seconds_sum", operation=name, step=step) == spread["sum_ns"] / 1e9
        assert of(shown, "aicache_saved_seconds_total", operation=name) == row["saved"]["seconds"]
        assert of(shown, "aicache_served_bytes_total", operation=name) == row["bytes"]["served"]
    compare_money(shown, records)


def compare_money(shown: Series, records: dict[str, Any]) -> None:
    for name, row in records.items():
        for ledger in ("saved", "spent"):
            for version, cost in row[ledger]["cost_by_prices"].items():
                assert of(shown, f"aicache_{ledger}_cost_total", operation=name, prices=version) == cost > 0
            for kind, count in row[ledger]["tokens"].items():
                assert of(shown, f"aicache_{ledger}_tokens_total", operation=name, kind=kind) == count > 0
    priced = {name: [*row["spent"]["cost_by_prices"]] for name, row in records.items()}
    assert priced == {"shout": ["2026-11"], "tests.doctor_app.whisper": [""]}
