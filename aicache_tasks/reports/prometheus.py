"""
The summary records for Prometheus.

In: an application; scrapes.   Out: a collector for any registry of ``prometheus_client``.

A scrape takes `limit_s` at most: a thread reads, a scrape that cannot wait for it gets what was read before. When the
server does not answer, or a newer version wrote the records, ``aicache_up`` is 0 and there are no other figures.

Counters do not fall while this process lives, whatever a roll-up is doing, or a replica that took over has not seen.
Only where more than half is gone, the records were lost, they begin anew: Prometheus takes that for the reset it is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.registry import Collector

from aicache_tasks.errors import AICacheError
from aicache_tasks.reports.families import families, nothing
from aicache_tasks.reports.flower.snapshot import Now, now_of
from aicache_tasks.reports.queries import Reader
from aicache_tasks.runtime import runtime_of
from aicache_tasks.summary import SummaryRecord

LIMIT_S: Final = 0.2
"""How long a scrape may wait for the server. Flower's loop stands still meanwhile."""
FRESH_S: Final = 1.0
"""How long what was read is good for every scrape."""
OLD_S: Final = 60.0
"""Figures that were read longer ago are not shown while a read takes so long."""
READS: Final = 3
"""How often to read anew because roll-ups count all the while."""
LOST: Final = 0.5
"""Part of the counts that must be left, else the records were lost."""
COUNTED: Final = frozenset({"aicache_lookups_total", "aicache_stores_total", "aicache_invalidations_total"})
"""What tells whether records were lost: some operations are only stored to, some only invalidated."""
MOST_HISTOGRAMS: Final = 100
"""Operations that have histograms, which are nearly all of a scrape: 17 kB for each."""
_GROWING: Final = frozenset({"counter", "histogram"})

Key = tuple[str, tuple[str, ...]]
log = logging.getLogger("aicache_tasks")


def register(
    app: Any, registry: CollectorRegistry = REGISTRY, *, limit_s: float = LIMIT_S, fresh_s: float = FRESH_S
) -> RecordsCollector:
    """Have *registry*, by default that of ``prometheus_client``, show the records of *app*. Reads nothing yet.

    Raises:
        ValueError: it shows them already.
    """
    collector = RecordsCollector(lambda: Reader(runtime_of(app).cache.parts), limit_s=limit_s, fresh_s=fresh_s)
    registry.register(collector)
    return collector


class RecordsCollector(Collector):
    """Collects what a `Reader` finds.

    Args:
        reader: makes the reader; may raise `SettingsError`, for which there are no figures either.
        limit_s: how long a scrape may take.
        fresh_s: how long what was read is good for other scrapes.
        clock: monotonic, seconds.
    """

    def __init__(
        self,
        reader: Callable[[], Reader],
        *,
        limit_s: float = LIMIT_S,
        fresh_s: float = FRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make_reader, self._limit_s, self._fresh_s, self._clock = reader, limit_s, fresh_s, clock
        self._lock = threading.Lock()
        self._reading: threading.Event | None = None
        self._now: Now | None = None
        self._read_s: float | None = None
        self._floor = Floor()
        self._spread: frozenset[str] = frozenset()
        self._said = ""

    def describe(self) -> Iterable[Metric]:
        """Return the families without samples; nothing is read."""
        return nothing()

    def collect(self) -> Iterable[Metric]:
        """Return the families with what was read, at most `limit_s` after this is called."""
        reading = self._begin()
        if reading is not None:
            reading.wait(self._limit_s)
        with self._lock:
            is_old = self._read_s is None or self._clock() - self._read_s > OLD_S
            now = None if is_old else self._now
            if now is not None:
                self._spread = with_histograms(now.live.totals, self._spread, MOST_HISTOGRAMS)
            return list(self._floor.over(families(now, self._spread)))

    def _begin(self) -> threading.Event | None:
        """Have a thread read, unless one does or what was read is fresh; return what tells when it is done."""
        with self._lock:
            is_fresh = self._read_s is not None and self._clock() - self._read_s < self._fresh_s
            if self._reading is None and not is_fresh:
                self._reading = threading.Event()
                threading.Thread(target=self._read, args=[self._reading], name="aicache-metrics", daemon=True).start()
            return self._reading

    def _read(self, done: threading.Event) -> None:
        now = None
        try:
            now = self._exactly_now()
        finally:
            with self._lock:
                self._now, self._read_s, self._reading = now, self._clock(), None
            done.set()

    def _exactly_now(self) -> Now | None:
        """Return what is so now; None if it cannot be told, which is logged once for each reason."""
        try:
            reader = self._make_reader()
            for _ in range(READS):
                now = now_of(reader)
                if now.live.is_exact:
                    self._said = ""
                    return now
            return self._now  # roll-ups count without a pause: a moment ago is nearer than a part
        except AICacheError as error:
            self._say(error)
            return None

    def _say(self, error: AICacheError) -> None:
        said = str(error)
        if said != self._said:
            self._said = said
            log.warning("aicache: no metrics: %s", said)


def with_histograms(totals: Mapping[str, SummaryRecord], before: Collection[str], most: int) -> frozenset[str]:
    """Return the operations of *totals* to have histograms: those that had them *before*, so that none goes while
    others come, and where there is room those with the most look-ups.

    >>> totals = {name: SummaryRecord(name, "total", 0) for name in "abc"}
    >>> sorted(with_histograms(totals, {"c", "gone"}, 2))
    ['a', 'c']
    """
    kept = [name for name in totals if name in before]
    others = sorted(totals.keys() - kept, key=lambda name: (-totals[name].lookups, name))
    return frozenset([*kept, *others][:most])


class Floor:
    """What counters do not fall under: the highest that was shown of each."""

    def __init__(self) -> None:
        self._shown: dict[Key, float] = {}
        self._total = 0.0

    def over(self, metrics: Iterable[Metric]) -> Iterator[Metric]:
        """Yield *metrics* with no counter under what it was before."""
        found = list(metrics)
        growing = [metric for metric in found if metric.type in _GROWING]
        if growing:
            total = sum(sample.value for metric in growing for sample in metric.samples if sample.name in COUNTED)
            if total < LOST * self._total:
                self._shown.clear()
                self._total = 0.0
            self._total = max(total, self._total)
        for metric in growing:
            metric.samples = [sample._replace(value=self._raised(sample)) for sample in metric.samples]
        yield from found

    def _raised(self, sample: Any) -> float:
        key = sample.name, tuple(sample.labels.values())
        value = self._shown[key] = max(float(sample.value), self._shown.get(key, 0.0))
        return value
