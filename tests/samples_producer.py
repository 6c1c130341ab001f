"""A process whose samples are shipped while replies get lost, and that keeps the truth about them.

In: URL, seed, how many samples, how old they are (seconds; 0: now).   Out: the truth as JSON on stdout.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter

from aicache_tasks import AIResponseCache
from aicache_tasks.codec import encode_meta
from aicache_tasks.records import EntryMeta, Sample
from aicache_tasks.settings import Settings

METAS = [encode_meta(EntryMeta("m", {"tokens": n}, n / 4, n * 1000)) for n in range(1, 9)]
SETTINGS = {"aicache_buffer_samples": 100_000, "aicache_ship_after_s": 0.05, "aicache_ship_every": 32}
SPAN_S = 900.0
"""Over how many seconds old samples are spread."""
PATIENCE_S = 0.12
"""How long one attempt to send may take: a reply that is lost is waited for that long."""


def main(url: str, seed: int, count: int, age_s: float) -> None:
    rng, truth = random.Random(seed), Counter[str]()
    cache = AIResponseCache(url, settings=Settings.from_mapping(SETTINGS), ship=True, origin=lambda: f"producer@{seed}")
    outbox = cache.parts.outbox
    assert outbox is not None
    left = count
    while left:
        for _ in range(min(left, rng.randrange(1, 100 if count <= 1000 else 300))):
            outbox.add(made(rng, truth, age_s))
            left -= 1
        outbox.flush(PATIENCE_S)
    deadline_s = time.monotonic() + 40
    while outbox.waiting and time.monotonic() < deadline_s:
        outbox.flush(PATIENCE_S)
    truth["lost"] = outbox.lost + outbox.waiting
    json.dump(truth, sys.stdout)


def made(rng: random.Random, truth: Counter[str], age_s: float) -> Sample:
    """Return a sample; *truth* has it from now on."""
    at, operation = time.time() - age_s - rng.random() * SPAN_S * bool(age_s), f"op{rng.randrange(3)}"
    took, key_ns, age_ms, number = (
        rng.randrange(1, 10**7),
        rng.randrange(2) * 700,
        rng.randrange(10**6),
        rng.randrange(8),
    )
    hit = rng.random() < 0.7
    minute = int(at) // 60 * 60
    for window in (f"minute {minute}", "total 0"):
        truth[f"{window} {operation} {'hits' if hit else 'misses'}"] += 1
        truth[f"{window} {operation} get_ns"] += took
        truth[f"{window} {operation} key_ns"] += key_ns
        if hit:
            truth[f"{window} {operation} age_ms"] += age_ms
            truth[f"{window} {operation} tokens"] += number + 1
            truth[f"{window} {operation} micros"] += (number + 1) * 250_000
    truth["samples"] += 1
    status, meta = ("hit", METAS[number]) if hit else ("miss", b"")
    return Sample(at, operation, "get", status, "", took, 100, "small", 0, 0, key_ns, 0, age_ms if hit else 0, meta)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
