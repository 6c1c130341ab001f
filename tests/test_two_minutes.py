"""Two workers and a beat under mixed load: the records are those of a ledger that knows nothing of them."""

from __future__ import annotations

import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aicache_tasks.beat import since_asked_s
from aicache_tasks.outbox import producer_name
from aicache_tasks.rollup import WINDOWS_S
from aicache_tasks.runtime import runtime_of
from aicache_tasks.summaries import Summaries
from aicache_tasks.summary import SummaryRecord
from aicache_tasks.testing import EmbeddedServer
from tests import ledger_app
from tests.beats import BeatProcess
from tests.cluster.nodes import WorkerProcess
from tests.tasks.conftest import end

LASTS_S = 120
APP = "tests.ledger_app"
OWNERS = ("ann", "bob", "cy")
TEXTS = [f"{number} " * (10 ** (1 + number % 4)) for number in range(60)]  # of every tier but the largest
MICROS = 1_000_000

Sums = dict[str, Any]


class Caller:
    """A producer that calls everything in every way, and keeps what it did itself in the ledger too."""

    def __init__(self, app: Any, client: Any, seed: int = 11) -> None:
        self.app, self.client, self.chance = app, client, random.Random(seed)
        self.cache = runtime_of(app).cache
        self.invalidations = Counter[str]()

    def call_some(self, count: int) -> None:
        """Send *count* calls, and wait for all of them."""
        for result in [self.send() for _ in range(count)]:
            result.get(timeout=60, propagate=False)

    def send(self) -> Any:
        text, task = self.chance.choice(TEXTS), self.app.tasks
        ways = [
            lambda: task["condense"].delay(text),
            lambda: task["condense"].delay(text, size=self.chance.randrange(1, 9)),
            lambda: task["grade"].delay(text=text),
            lambda: task["grade"].delay(text),
            lambda: self.app.send_task("grade", (text,)),
            lambda: task["grade"].with_cache(bypass=True).delay(text),
            lambda: task["grade"].with_cache(refresh=True).delay(text),
            lambda: task["condense"].with_cache(no_store=True).delay(text, size=9),
            lambda: task["condense"].with_cache(only_if_cached=True).delay(text, size=1),
            lambda: task["grade"].with_cache(max_age=3).delay(text),
            lambda: task["file_away"].delay(text, self.chance.choice(OWNERS)),
            lambda: task["stumble"].delay(f"{text}{self.chance.randrange(4)}"),
            lambda: task["fail"].delay(text),
        ]
        return self.chance.choice(ways)()

    def act_alone(self) -> None:
        """Do what needs no worker: direct calls, and invalidations of every kind but all."""
        text, owner = self.chance.choice(TEXTS), self.chance.choice(OWNERS)
        grade, file_away = self.app.tasks["grade"], self.app.tasks["file_away"]
        assert grade(text) == len(text)
        self.client.rpush(ledger_app.LEDGER, ledger_app.line(grade.cache.last, text, producer_name()))
        grade.cache.peek(text)
        grade.cache.invalidate(self.chance.choice(TEXTS))
        self.cache.invalidate_by_tag(f"owner:{owner}")
        file_away.cache.invalidate(text, owner)
        self.invalidations.update({"grade": 1, "file_away": 1, "": 1})
        if self.chance.random() < 0.2:
            self.cache.invalidate_by_operation("condense")
            self.invalidations["condense"] += 1


def expected(lines: Iterable[Sums], caller: Caller) -> dict[str, Sums]:
    """Return what the ledger says of each operation: counts, times, sizes, tokens, money."""
    found: dict[str, Sums] = defaultdict(lambda: defaultdict(Counter))
    for run in lines:
        _add_run(found[run["operation"]], run)
    for operation, count in caller.invalidations.items():
        found[operation]["counts"]["invalidate", "success", ""] += count
    return {operation: {name: dict(sums) for name, sums in of.items()} for operation, of in found.items()}


def _add_run(of: Sums, run: Sums) -> None:
    counts, timed, sizes = of["counts"], of["timed_ns"], of["sizes"]
    status = run["status"]
    counts["get", status, run["reason"]] += 1
    of["tiers"][_tier(run)] += 1
    if run["compute_ms"]:  # a body ran; all say what they take before anything else
        outcome = "failed" if run["set_reason"] == "body_failed" else "success"
        counts["compute", outcome, status] += 1
        timed["compute"] += _ns(run["compute_ms"])
        of["spent"].update(tokens=run["text_length"], micros=round(run["cost"] * MICROS))
    if status == "bypass":
        return
    counts["key", "success", ""] += 1
    timed["get"] += _ns(run["get_ms"])
    if status == "hit":
        of["ages"]["ms"] += round(run["age_s"] * 1000)
        counts["decode", "success", ""] += 1
        sizes["served"] += run["raw_bytes"]
        of["saved"].update(tokens=run["text_length"], micros=round(run["cost"] * MICROS))
        return
    if not run["set_status"]:  # nothing ran: the caller wanted a stored answer or none
        return
    counts["set", run["set_status"], run["set_reason"]] += 1
    timed["set"] += _ns(run["set_ms"])
    if run["stored_bytes"] < run["raw_bytes"]:
        counts["compress", "success", ""] += 1
    if run["set_status"] == "success":
        sizes.update(raw=run["raw_bytes"], stored=run["stored_bytes"])


def _ns(milliseconds: float) -> int:
    return round(milliseconds * MICROS)


def _tier(run: Sums) -> str:
    if run["status"] == "bypass":
        return ""
    return "small" if run["text_length"] < 500 else "medium" if run["text_length"] < 5000 else "large"


def measured(record: SummaryRecord) -> Sums:
    """Return the same of a record."""
    sums = {
        "counts": dict(record.counts),
        "timed_ns": {step: record.steps[step].total for step in ("get", "set", "compute") if step in record.steps},
        "sizes": {"raw": record.raw_bytes, "stored": record.stored_bytes, "served": record.served_bytes},
        "tiers": dict(record.tiers),
        "ages": {"ms": record.ages.total},
        "saved": {"tokens": record.saved.tokens["tokens"], "micros": record.saved.cost_micros},
        "spent": {"tokens": record.spent.tokens["tokens"], "micros": record.spent.cost_micros},
    }
    return {name: filled for name, of in sums.items() if (filled := {key: value for key, value in of.items() if value})}


def without_zeros(sums: dict[str, Sums]) -> dict[str, Sums]:
    kept = {name: {key: value for key, value in of.items() if value} for name, of in sums.items()}
    return {name: of for name, of in kept.items() if of}


def merged(records: Iterable[SummaryRecord], operation: str) -> SummaryRecord:
    total = SummaryRecord(operation, "span", 0)
    for record in records:
        total.merge(record)
    return total


class Stage:
    """Two servers, two workers, a beat and a caller."""

    def __init__(self, queue: EmbeddedServer, cache: EmbeddedServer, folder: Path) -> None:
        urls = (queue.url, queue.url, cache.url)
        self.app = ledger_app.make_app(broker_url=queue.url, result_backend=queue.url, aicache_url=cache.url)
        self.client = queue.client(decode_responses=True)
        self.recycling = WorkerProcess(APP, *urls, extra_args=["--max-tasks-per-child=25"], name="recycling")
        self.restarted = WorkerProcess(APP, *urls, name="restarted")
        self.beat = BeatProcess(APP, *urls, folder=folder, extra_args=(), name="beat")
        self.summaries = Summaries(runtime_of(self.app).cache.parts)
        self.processes = (self.recycling, self.restarted, self.beat)

    def begin(self) -> None:
        for process in self.processes:
            process.start()
        for process in self.processes:
            process.ready()

    def ledger(self) -> list[Sums]:
        return [json.loads(line) for line in self.client.lrange(ledger_app.LEDGER, 0, -1)]

    def close(self) -> None:
        for process in self.processes:
            process.close()
        runtime_of(self.app).close()
        self.client.close()
        end(self.app)


@pytest.fixture
def stage(own_server: EmbeddedServer, tmp_path: Path) -> Iterator[Stage]:
    with EmbeddedServer() as cache:
        made = Stage(own_server, cache, tmp_path)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.soak
@pytest.mark.timeout(LASTS_S + 240)
def test_after_two_minutes_of_mixed_load_the_records_equal_the_ledger(stage: Stage) -> None:
    stage.begin()
    caller, first_children = Caller(stage.app, stage.client), stage.recycling.child_pids()
    run_for(LASTS_S / 2, caller)
    stage.restarted.kill(15)  # while calls wait: they are another's, or its own when it is back
    results = [caller.send() for _ in range(40)]
    stage.restarted.start()
    for result in results:
        result.get(timeout=60, propagate=False)
    run_for(LASTS_S / 2, caller)

    rolled_meanwhile = sum(total.lookups for total in stage.summaries.totals().values())
    assert since_asked_s(stage.summaries) is not None
    assert set(first_children).isdisjoint(stage.recycling.child_pids()), "no child was recycled"
    stage.recycling.stop()
    stage.restarted.stop()
    assert (stage.recycling.returncode, stage.restarted.returncode) == (0, 0)
    stage.beat.stop()
    runtime_of(stage.app).close()
    done = stage.summaries.roll_up()
    assert (done.lost, done.undecodable, done.damaged, done.waiting) == (0, 0, 0, 0)

    lines, totals = stage.ledger(), stage.summaries.totals()
    wanted = {name: without_zeros(sums) for name, sums in expected(lines, caller).items()}
    assert {name: measured(total) for name, total in totals.items()} == wanted
    assert rolled_meanwhile > len(lines) / 2, "beat did not roll up while the load ran"
    check_windows(stage.summaries, totals)
    check_workers(stage, lines, caller, totals)
    check_variety(totals)


def run_for(seconds: float, caller: Caller) -> None:
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        caller.call_some(25)
        caller.act_alone()


def check_windows(summaries: Summaries, totals: dict[str, SummaryRecord]) -> None:
    """Minutes, hours and days are each the whole."""
    now_s = time.time()
    for operation, total in totals.items():
        for kind in WINDOWS_S:
            records = summaries.read(operation, kind, now_s - 2 * 86_400, now_s + 120)
            assert merged(records, operation).pack() == total.pack(), (operation, kind)


def check_workers(stage: Stage, lines: list[Sums], caller: Caller, totals: dict[str, SummaryRecord]) -> None:
    """The workers' figures and the producer's are together the whole, and each has its own."""
    own = {name: merged(minutes, name) for name, minutes in stage.summaries.workers().items()}
    nodes = {stage.recycling.hostname, stage.restarted.hostname}
    assert own.keys() == nodes | {producer_name()}
    for node in nodes:
        assert sum(own[node].counts[key] for key in own[node].counts if key[0] == "get") == sum(
            run["worker"] == node for run in lines
        )
    everything = merged(own.values(), "").counts
    assert everything == merged(totals.values(), "").counts
    assert own[producer_name()].of("invalidate") == caller.invalidations.total()


def check_variety(totals: dict[str, SummaryRecord]) -> None:
    """The load was as mixed as it was meant to be."""
    counts = merged(totals.values(), "").counts
    wanted: list[tuple[str, str, str]] = [
        ("get", "hit", ""),
        ("get", "miss", "key_not_found"),
        ("get", "miss", "invalidated"),
        ("get", "miss", "expired"),
        ("get", "refresh", ""),
        ("get", "bypass", "requested"),
        ("compute", "success", "bypass"),
        ("compute", "failed", "miss"),
        ("set", "success", ""),
        ("set", "skipped", "body_failed"),
        ("set", "skipped", "no_store"),
        ("compress", "success", ""),
        ("invalidate", "success", ""),
    ]
    assert [kind for kind in wanted if not counts[kind]] == []
