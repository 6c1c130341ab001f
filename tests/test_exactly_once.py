"""Each sample counts once: senders whose replies get lost, roll-ups that die anywhere, three of them at once.

Of 40,000 samples a run lost about 40 replies and had about 400 deaths, 60 commits and a few conflicts.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from aicache_tasks.summaries import Summaries
from aicache_tasks.summary import SummaryRecord
from aicache_tasks.testing import EmbeddedServer
from tests import faults
from tests.caches import live_cache
from tests.faults import FaultProxy, eventually

ROOT = Path(__file__).parent.parent
CHANCE = 0.15
PATIENCE_S = 80
"""For each part of a run, on a busy machine; it takes a tenth of that on an idle one."""
PRODUCERS, ROLLERS = 2, 3
HOURS_S = 20 * 3600.0
LOST = (faults.dropped, faults.half_then_reset, faults.half_then_end, faults.half_then_silence)


class Flaky:
    """Loses a part of all replies, in several ways."""

    def __init__(self, chance: float) -> None:
        self._rng, self._chance = random.Random(11), chance
        self.lost = 0

    def __call__(self, proxy: FaultProxy, client: socket.socket, reply: bytes) -> bool:
        if self._rng.random() >= self._chance:
            return faults.healthy(proxy, client, reply)
        self.lost += 1
        return self._rng.choice(LOST)(proxy, client, reply)


def told(processes: Sequence[subprocess.Popen[str]], within_s: float) -> Counter[str]:
    """Wait for *processes* to end and return the sum of what they say."""
    said = Counter[str]()
    for process in processes:
        out, errors = process.communicate(timeout=within_s)
        assert process.returncode == 0, errors
        said.update(json.loads(out))
    return said


def counted(record: SummaryRecord) -> dict[str, int]:
    """Return the figures of a record that producers know."""
    steps = {name: record.steps[name].total if name in record.steps else 0 for name in ("get", "key")}
    return {
        "hits": record.hits, "misses": record.misses, "get_ns": steps["get"], "key_ns": steps["key"],
        "age_ms": record.ages.total, "tokens": record.saved.tokens["tokens"], "micros": record.saved.cost_micros,
    }  # fmt: skip


def found(summaries: Summaries) -> dict[str, int]:
    """Return what was rolled up, named as the producers name it."""
    records = list(summaries.totals().values())
    for operation in summaries.operations():
        records += summaries.read(operation, "minute", 0, 2**31)
    return {
        f"{record.resolution} {record.start} {record.operation} {name}": figure
        for record in records
        for name, figure in counted(record).items()
        if figure
    }


class Run:
    """One server, one flaky line to it for each producer, and what came of it all."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self.summaries = Summaries(live_cache(server.url).parts)
        self.processes: list[subprocess.Popen[str]] = []

    def begin(self, module: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.processes.append(subprocess.Popen(command, cwd=ROOT, env=environ, text=True, **pipes))
        return self.processes[-1]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def play(self, samples: int, age_s: float, losses: float) -> dict[str, Any]:
        """Let everything happen at once; return what happened."""
        flaky = [Flaky(losses) for _ in range(PRODUCERS)]
        with FaultProxy(self.server.port) as first, FaultProxy(self.server.port) as second:
            lines = [first, second]
            for line, fault in zip(lines, flaky, strict=True):
                line.fault = fault
            rollers = [self.begin("tests.samples_roller", self.server.url, n, CHANCE) for n in range(ROLLERS)]
            producers = [
                self.begin("tests.samples_producer", line.url, n, samples // PRODUCERS, age_s)
                for n, line in enumerate(lines)
            ]
            truth = told(producers, PATIENCE_S)
        eventually(lambda: not self.summaries.backlog().entries, within_s=PATIENCE_S)
        happened = told(rollers, PATIENCE_S)  # their stdin ends
        happened["replies"] = sum(fault.lost for fault in flaky)
        return {"truth": truth, **happened}


@pytest.fixture
def run(own_server: EmbeddedServer) -> Iterator[Run]:
    made = Run(own_server)
    yield made
    made.end()


def check(run: Run, came: dict[str, Any], samples: int) -> None:
    truth: Counter[str] = came["truth"]
    assert (truth.pop("samples"), truth.pop("lost", 0)) == (samples, 0)
    assert found(run.summaries) == {name: figure for name, figure in truth.items() if figure}
    assert came["deaths"] > 0
    assert came["replies"] > 0
    assert {name for name in came if name.startswith("ended")} == set()


@pytest.mark.timeout(3 * PATIENCE_S)
def test_a_thousand_samples_are_counted_once_through_lost_replies_and_deaths(run: Run) -> None:
    check(run, run.play(1_000, 0.0, 0.3), 1_000)


@pytest.mark.soak
@pytest.mark.timeout(3 * PATIENCE_S)
@pytest.mark.parametrize("age_s", [0.0, HOURS_S], ids=["of now", "of minutes closed long ago"])
def test_forty_thousand_samples_are_counted_once(run: Run, age_s: float) -> None:
    came = run.play(40_000, age_s, 0.08)
    check(run, came, 40_000)
    assert came["deaths"] > 50
    assert came["commits"] > 50
    assert came["replies"] > 20
