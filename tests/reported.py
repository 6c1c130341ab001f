"""An application whose summary records say what a test knows: real batches, rolled up on a real server."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from typing import Any

from celery import Celery

from aicache_tasks import install
from aicache_tasks.batches import MAX_SAMPLES, encode_batch
from aicache_tasks.codec import encode_meta
from aicache_tasks.records import EntryMeta, Sample
from aicache_tasks.reports.queries import Reader
from aicache_tasks.runtime import runtime_of
from tests.caches import PATIENT

META = encode_meta(EntryMeta("m-1", {"input_tokens": 100, "output_tokens": 20}, 0.002, 3_000_000_000, 100))
"""Of an answer that took 3 s, 120 tokens and 0.002."""
HOSTILE = "a\x1b]0;x\x07\x1b[31mb\u202e[red]\u2066\nc|" + "数" * 60


def make_app(url: str | None, **settings: Any) -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update({"aicache_url": url, "aicache_strict": True, **PATIENT, **settings})
    return install(app)


def reader_of(app: Celery) -> Reader:
    return Reader(runtime_of(app).cache.parts)


def look_up(at: float, operation: str, *, hit: bool, took_ns: int) -> list[Sample]:
    """Return the samples of a call."""
    if hit:
        sizes = {"raw_bytes": 4000, "stored_bytes": 1000}
        return [Sample(at, operation, "get", "hit", "", took_ns, 100, "small", **sizes, key_ns=9000, meta=META)]
    return [
        Sample(at, operation, "get", "miss", "key_not_found", took_ns, 100, "small", key_ns=9000),
        Sample(at, operation, "compute", "miss", "", 3_000_000_000 + took_ns, meta=META),
        Sample(at, operation, "set", "success", "", 2 * took_ns, raw_bytes=4000, stored_bytes=1000),
    ]


def calls(count: int, times: Sequence[float], operations: Sequence[str], seed: int = 1) -> list[Sample]:
    """Return the samples of *count* calls at *times* in turn, about two of three of them hits."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        hit, took_ns = rng.random() < 0.66, rng.randint(50_000, 5_000_000)
        made += look_up(times[number % len(times)], rng.choice(operations), hit=hit, took_ns=took_ns)
    return made


def others(count: int, at: float, operation: str, status: str, reason: str = "", step: str = "get") -> list[Sample]:
    """Return the samples of *count* steps that neither hit nor missed."""
    return [Sample(at, operation, step, status, reason, 0) for _ in range(count)]


def send(app: Celery, samples: Sequence[Sample], origin: str = "celery@here") -> None:
    """Put *samples* into the inbox, as a process of its own would."""
    process, inbox = os.urandom(16), reader_of(app).summaries.keys.inbox
    with _client(app) as client:
        for number, start in enumerate(range(0, len(samples), MAX_SAMPLES)):
            batch = samples[start : start + MAX_SAMPLES]
            client.rpush(inbox, encode_batch(process, number + 1, origin, batch))


def count_up(app: Celery, samples: Sequence[Sample], origin: str = "celery@here") -> None:
    """Send *samples* and roll them up."""
    send(app, samples, origin)
    reader_of(app).summaries.roll_up()


def gets(samples: Iterable[Sample], status: str = "") -> list[Sample]:
    """Return the look-ups among *samples*."""
    return [sample for sample in samples if sample.step == "get" and status in ("", sample.status)]


def _client(app: Celery) -> Any:
    import redis

    return redis.Redis.from_url(runtime_of(app).settings.require_url(), protocol=2)
