"""
Row 7: what does it cost to record the samples of a hit, and does that grow with the history?

    python -m benchmarks.samples
"""  # fmt: skip

from __future__ import annotations

import time
from collections.abc import Callable

from aicache_tasks import CachePerformanceMonitor
from aicache_tasks.records import Sample
from benchmarks import _run
from benchmarks._run import Options, Row, Spent

TARGET_US = 2.0
STEPS = ("key", "get", "decode")


def measure(options: Options) -> list[Row]:
    """Return what one hit's three samples cost, with an empty and with a full history."""
    full = CachePerformanceMonitor()
    hit = _hit(full)
    for _ in range(2 * full.max_measurements):
        hit()
    contenders = {"a hit's samples": _run.looped(hit), "on an empty history": _fresh}
    with _run.pinned("same"):
        taken = _run.interleave(contenders, options, "samples").cpu
    found, grown = _run.interval(taken["a hit's samples"]), _run.ratio(*taken.values())
    detail = _run.medians(taken)
    return [
        Row(7, "a hit's samples, recorded", "same", "µs", *found, TARGET_US, detail=detail),
        Row(7, "full history / empty one", "same", "×", *grown),
    ]


def _hit(monitor: CachePerformanceMonitor) -> Callable[[], None]:
    def record() -> None:
        now = time.time()
        for step in STEPS:
            monitor.record(Sample(now, "summarize", step, "hit", "", 40_000, 16_384, "large", 4_100, 2_000))

    return record


def _fresh(calls: int) -> Spent:
    return _run.looped(_hit(CachePerformanceMonitor()))(calls)


if __name__ == "__main__":
    _run.main(measure, rounds=500, calls=100)
