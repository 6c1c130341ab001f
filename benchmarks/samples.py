"""
Row 7: what does it cost to record a hit's timings and to ship them, and does that grow with the history?

    python -m benchmarks.samples

A hit leaves one sample with the times of its key, its look-up and its decoding. ``shipped`` is a read of three keys
with such a sample recorded after it, and with the batches that this makes due on its back, minus the same read alone.
"""  # fmt: skip

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from aicache_tasks import CachePerformanceMonitor
from aicache_tasks.outbox import Outbox, producer_name
from aicache_tasks.parts import Samples
from aicache_tasks.records import Sample
from aicache_tasks.settings import Settings
from aicache_tasks.stores.base import Budget
from aicache_tasks.stores.guard import Breaker, Guard
from aicache_tasks.stores.redis import RedisStore
from aicache_tasks.testing import EmbeddedServer
from benchmarks import _run
from benchmarks._run import Options, Row, Spent

TARGET_US = 2.0
KEYS = ("{aicache:00}:v1:summarize:0", "{aicache:00}:t:ns", "{aicache:00}:t:op:summarize")
META = b"\x95\xa9some-model\x82\xacinput_tokens\xcd\x03\x2c\xadoutput_tokens\x60\xc0\xce\x49\x96\x02\xd2\x00"


def measure(options: Options) -> list[Row]:
    """Return what one hit's sample costs: recorded with an empty and a full history, and shipped in each mode."""
    full = CachePerformanceMonitor()
    hit = _hit(full.record)
    for _ in range(2 * full.max_measurements):
        hit()
    contenders = {"a hit's sample": _run.looped(hit), "on an empty history": _fresh}
    with _run.pinned("same"):
        taken = _run.interleave(contenders, options, "samples").cpu
    recorded, grown = _run.interval(taken["a hit's sample"]), _run.ratio(*taken.values())
    rows = [
        Row(7, "a hit's sample, recorded", "same", "µs", *recorded, TARGET_US, detail=_run.medians(taken)),
        Row(7, "full history / empty one", "same", "×", *grown),
    ]
    return rows + [_shipped(mode, options) for mode in options.modes]


def _shipped(mode: str, options: Options) -> Row:
    with EmbeddedServer() as server, _run.pinned(mode, server.pid):
        guard = Guard(RedisStore(server.url), reads=Breaker("reads"), writes=Breaker("writes"))
        outbox = Outbox(guard, Settings(), producer_name)
        record = _hit(Samples(CachePerformanceMonitor(), outbox).record)

        def read() -> Any:
            return guard.read(KEYS, Budget(5.0))

        def shipping() -> Any:
            found = outbox.read(KEYS, Budget(5.0))
            record()
            return found

        taken = _run.interleave({"shipping": _run.looped(shipping), "read": _run.looped(read)}, options, "shipped")
        assert outbox.flush()
        found = _run.interval(_run.less(taken.cpu["shipping"], taken.cpu["read"]))
        detail = _run.medians(taken.cpu) | {f"{name}, clock": us for name, us in _run.medians(taken.wall).items()}
        return Row(7, "a hit's sample, recorded and shipped", mode, "µs", *found, TARGET_US, detail=detail)


def _hit(record: Callable[[Sample], None]) -> Callable[[], None]:
    extra: dict[str, Any] = {"cache_tier": "redis", "populated_memory_cache": False}

    def hit() -> None:
        what = 40_123, 16_384, "large", 4_100, 2_000, 12_034, 5_077, 61_000
        record(Sample(time.time(), "summarize", "get", "hit", "", *what, META, extra))

    return hit


def _fresh(calls: int) -> Spent:
    return _run.looped(_hit(CachePerformanceMonitor().record))(calls)


if __name__ == "__main__":
    _run.main(measure, rounds=500, calls=100)
