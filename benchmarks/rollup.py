"""
Row 8: how many timed steps a second does the roll-up count, before Redis and with it, and what does a backlog cost?

    python -m benchmarks.rollup

A hit is one sample of three steps. Before Redis: batches are decoded and folded into what they add to each record, in
CPU time. With Redis: a whole roll-up, from the inbox to the records, on the clock. Memory: the peak of a roll-up of ten
times as many samples, next to that of few.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from aicache_tasks import AIResponseCache
from aicache_tasks.batches import decode_batch, encode_batch
from aicache_tasks.codec import encode_meta
from aicache_tasks.records import EntryMeta, Sample
from aicache_tasks.rollup import Fold, Names
from aicache_tasks.summaries import Summaries
from aicache_tasks.testing import EmbeddedServer
from benchmarks import _run
from benchmarks._run import Contender, Options, Row, Spent

TARGET_BEFORE, TARGET_WITH, TARGET_MEMORY = 1.0, 0.3, 1.1
OPERATIONS, STEPS, SAMPLES, BATCHES = 5, 3, 64, 64
PIECE_STEPS: Final = STEPS * SAMPLES * BATCHES
"""The steps of what one call counts."""
FEW, MANY = 100_000 // PIECE_STEPS, 1_000_000 // PIECE_STEPS


def measure(options: Options) -> list[Row]:
    """Return row 8: millions of steps a second, before Redis and with it in each mode, and a backlog's memory."""
    samples = _samples()
    rows = [_before_redis([_batch(some, number + 1) for number, some in enumerate(samples)], options)]
    for mode in options.modes:
        with _inbox() as inbox, _run.pinned(mode, inbox.server.pid):
            taken = _run.interleave({"roll-up": inbox.contender(samples)}, options, f"roll-up, {mode}").wall
            found = _run.interval(PIECE_STEPS / micros for micros in taken["roll-up"])
            rows.append(Row(8, "steps counted, with Redis", mode, "M/s", *found, TARGET_WITH, at_least=True))
    return [*rows, _memory(samples, options)]


def _before_redis(batches: Sequence[bytes], options: Options) -> Row:
    def fold() -> None:
        folded = Fold(time.time(), {}, Names((), 1000), Names((), 1000))
        for data in batches:
            folded.add(decode_batch(data))
        folded.deltas()

    with _run.pinned("same"):
        taken = _run.interleave({"fold": _run.looped(fold)}, options, "fold").cpu
    found = _run.interval(PIECE_STEPS / micros for micros in taken["fold"])
    row = Row(8, "steps counted, before Redis", "same", "M/s", *found, TARGET_BEFORE, at_least=True)
    if row.met is False:
        row.profile = _run.profiled(fold, calls=50)
    return row


def _memory(samples: Sequence[Sequence[Sample]], options: Options) -> Row:
    with _inbox() as inbox:
        inbox.roll_up(samples, 1)
        few, many = (inbox.peak_bytes(samples, times) for times in ((4, 8) if options.quick else (FEW, MANY)))
    ratio, detail = many / few, {"few": few / 2**20, "many": many / 2**20}
    what = "peak memory, 1,000,000 steps / 100,000"
    return Row(8, what, "same", "×", ratio, ratio, ratio, TARGET_MEMORY, detail=detail)


class _Inbox:
    """A server whose inbox is filled and rolled up."""

    def __init__(self, server: EmbeddedServer, cache: AIResponseCache, client: Any) -> None:
        self.server, self._client, self._summaries = server, client, Summaries(cache.parts)

    def contender(self, samples: Sequence[Sequence[Sample]]) -> Contender:
        return lambda calls: self.roll_up(samples, calls)

    def roll_up(self, samples: Sequence[Sequence[Sample]], times: int) -> Spent:
        """Fill the inbox with *samples*, *times* over, and return what it takes to roll them up."""
        self._fill(samples, times)
        began = _run.now()
        done = self._summaries.roll_up()
        spent = _run.since(began)
        assert done.samples == times * SAMPLES * BATCHES
        return spent

    def peak_bytes(self, samples: Sequence[Sequence[Sample]], times: int) -> int:
        """Return the most memory that a roll-up holds."""
        self._fill(samples, times)
        tracemalloc.start()
        self._summaries.roll_up()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    def _fill(self, samples: Sequence[Sequence[Sample]], times: int) -> None:
        keys, size = self._summaries.keys, 0
        self._client.delete(keys.seen)
        for first in range(0, times * BATCHES, BATCHES):
            batches = [_batch(some, first + number + 1) for number, some in enumerate(samples)]
            self._client.rpush(keys.inbox, *batches)
            size += sum(map(len, batches))
        self._client.hset(keys.state, "bytes", size)


@contextmanager
def _inbox() -> Iterator[_Inbox]:
    with EmbeddedServer() as server, server.client() as client:
        cache = AIResponseCache(server.url)
        yield _Inbox(server, cache, client)
        cache.close()


def _samples() -> list[list[Sample]]:
    """Return what one call counts: hits of five operations, as a worker leaves them within a second."""
    rng = random.Random(1)
    return [[_hit(rng) for _ in range(SAMPLES)] for _ in range(BATCHES)]


def _batch(samples: Sequence[Sample], number: int) -> bytes:
    return encode_batch(bytes(16), number, "celery@here", samples)


def _hit(rng: random.Random) -> Sample:
    meta = encode_meta(EntryMeta("some-model", {"input_tokens": rng.choice((812, 904)), "output_tokens": 96}, 0.0012))
    return Sample(
        time.time() - rng.random(), f"operation{rng.randrange(OPERATIONS)}", "get", "hit", "",
        int(rng.lognormvariate(11.3, 0.4)), 16_384, "large", 4100, 2000,
        int(rng.lognormvariate(9.6, 0.2)), int(rng.lognormvariate(9.8, 0.2)), int(rng.expovariate(1e-6)), meta,
    )  # fmt: skip


if __name__ == "__main__":
    _run.main(measure, rounds=60, calls=5)
