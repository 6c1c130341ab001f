"""Each benchmark runs and answers its question. Whether it meets its targets is for a quiet machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(180)  # on an idle machine it takes a tenth of that

ROOT = Path(__file__).parent.parent


def measured(tmp_path: Path, module: str, *arguments: str) -> list[dict[str, Any]]:
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", module, "--quick", "--json", str(out), *arguments]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    for row in rows:
        assert row["what"] in done.stdout
        assert row["low"] <= row["value"] <= row["high"]
    return rows


@pytest.mark.parametrize(
    ("module", "rows"),
    [
        ("benchmarks.hit", {"façade hit / floor": 1, "task hit / floor": 1, "task L1 hit / floor": 2}),
        ("benchmarks.worker", {"tasks/s of hits / of no-ops": 3, "child's CPU, hit minus no-op": 3}),
        ("benchmarks.passthrough", {"CachedTask without a policy, worker's tracer": 5}),
        ("benchmarks.key", {"key of 1 MB (ASCII) / sha256": 6, "key of 1 MB (accents) / sha256": 6}),
        ("benchmarks.samples", {"a hit's sample, recorded and shipped": 7}),
        (
            "benchmarks.rollup",
            {
                "steps counted, before Redis": 8,
                "steps counted, with Redis": 8,
                "peak memory, 1,000,000 steps / 100,000": 8,
            },
        ),
    ],
)
def test_a_benchmark_gives_a_figure_for_each_of_its_rows(tmp_path: Path, module: str, rows: dict[str, int]) -> None:
    found = {row["what"]: row["row"] for row in measured(tmp_path, module, "--modes", "same")}
    assert rows.items() <= found.items()


def test_a_mode_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="unknown mode 'sideways'"):
        measured(tmp_path, "benchmarks.key", "--modes", "sideways")


def test_an_interval_holds_the_median_and_narrows_with_more_rounds() -> None:
    from benchmarks._run import interval

    few, many = interval(range(11)), interval(range(1001))
    assert few.median == 5
    assert few.low < 5 < few.high
    assert (many.high - many.low) / 1001 < (few.high - few.low) / 11
