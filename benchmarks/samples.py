"""
Row 7: what does it cost to record a hit's timings and to ship them, and does that grow with the history?

    python -m benchmarks.samples

A hit leaves one sample with the times of its key, its look-up and its decoding. Shipping is measured by the batch: as
many samples as make one, and the read of three keys that carries it, minus the same read alone. Right after a read,
when the server has had the core, the same work takes about twice as long; that is a figure of its own.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aicache_tasks import CachePerformanceMonitor
from aicache_tasks.call import Call, Rules
from aicache_tasks.keys import CacheKeyGenerator
from aicache_tasks.outbox import Outbox, producer_name
from aicache_tasks.parts import Samples, wall_ms
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
    return rows + [row for mode in options.modes for row in _shipped(mode, options)]


def _shipped(mode: str, options: Options) -> list[Row]:
    every = Settings().ship_every
    with EmbeddedServer() as server, _run.pinned(mode, server.pid):
        guard = Guard(RedisStore(server.url), reads=Breaker("reads"), writes=Breaker("writes"))
        outbox = Outbox(guard, Settings(), producer_name)
        record = _hit(Samples(CachePerformanceMonitor(), outbox).record)

        def read() -> None:
            guard.read(KEYS, Budget(5.0))

        def batch() -> None:
            for _ in range(every):
                record()
            outbox.read(KEYS, Budget(5.0))

        def one() -> None:
            record()
            outbox.read(KEYS, Budget(5.0))

        contenders = {"batch": _run.looped(batch), "one": _run.looped(one), "read": _run.looped(read)}
        cpu = _run.interleave(contenders, options.scaled(calls=0.2), f"shipped, {mode}").cpu
        assert outbox.flush()
        assert outbox.lost == 0
        shipped = _run.interval(us / every for us in _run.less(cpu["batch"], cpu["read"]))
        amid = _run.interval(_run.less(cpu["one"], cpu["read"]))
        detail = _run.medians(cpu)
        return [
            Row(7, "a hit's sample, recorded and shipped", mode, "µs", *shipped, TARGET_US, detail=detail),
            Row(0, "the same between reads", mode, "µs", *amid),
        ]


def _hit(record: Callable[[Sample], None]) -> Callable[[], None]:
    """Return a function that leaves what a look-up does which hit."""
    extra: dict[str, Any] = {"cache_tier": "redis", "populated_memory_cache": False}
    call = Call(CacheKeyGenerator().make(_run.PROMPT, "summarize", _run.OPTIONS), (), Rules(3600.0), Budget(5.0))
    call.status, call.meta_bytes = "hit", META
    call.get_ns, call.key_ns, call.decode_ns, call.age_ms = 40_123, 12_034, 5_077, 61_000
    call.raw_bytes, call.stored_bytes = 4_100, 2_000
    return lambda: record(call.lookup_sample(wall_ms() / 1000, extra))


def _fresh(calls: int) -> Spent:
    return _run.looped(_hit(CachePerformanceMonitor().record))(calls)


if __name__ == "__main__":
    _run.main(measure, rounds=500, calls=100)
