"""
What is so now, as families of Prometheus metrics.

In: lifetime totals with what waits, alerts, the inbox, the server.   Out: metric families.   Pure.

Names end with their unit, in base units; labels are the operations and the words of the records, both of which the
records bound (1000 operations, 64 words), never a worker or a key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from aicache_tasks import __version__
from aicache_tasks.reports.flower.snapshot import Now
from aicache_tasks.reports.wording import label
from aicache_tasks.sketch import Distribution, value_of
from aicache_tasks.stores.base import StoreInfo
from aicache_tasks.summary import SummaryRecord

LABEL_CHARS: Final = 200
STEP_BOUNDS_S: Final = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""From a key to a slow body."""
AGE_BOUNDS_S: Final = (1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 10_800.0, 43_200.0, 86_400.0, 604_800.0)

Labels = tuple[str, ...]
Rows = Mapping[Labels, float]
Records = Iterable[SummaryRecord]

_COUNTS: Final[Mapping[str, tuple[str, str]]] = {
    "aicache_lookups": ("get", "Look-ups; the hit rate is hit, stale and joined in those and miss."),
    "aicache_stores": ("set", "Answers that were stored, refused or skipped."),
    "aicache_invalidations": ("invalidate", "Invalidations; the operation is empty for tags and for all."),
}
_SUMS: Final[Mapping[str, tuple[str, str, Callable[[SummaryRecord], float]]]] = {
    "aicache_saved_seconds": ("seconds", "What computing the hits' answers took.", lambda r: r.saved.compute_ns / 1e9),
    "aicache_spent_seconds": ("seconds", "What the bodies took that ran.", lambda r: r.spent.compute_ns / 1e9),
    "aicache_raw_bytes": ("bytes", "Answers that were stored, before compression.", lambda r: r.raw_bytes),
    "aicache_stored_bytes": ("bytes", "Answers that were stored, as they were stored.", lambda r: r.stored_bytes),
    "aicache_served_bytes": ("bytes", "The hits' answers, before compression.", lambda r: r.served_bytes),
}


def families(now: Now | None, spread: Container[str]) -> Iterator[Metric]:
    """Yield every family, histograms of the operations in *spread*; of None only that there are no figures."""
    yield _gauge("aicache_up", "Whether the records could be read.", now is not None)
    yield _gauges("aicache_build_info", "Version of aicache-tasks that tells this.", ["version"], {(__version__,): 1})
    if now is not None:
        yield from _counters(now.live.totals.values())
        yield from _histograms(record for name, record in now.live.totals.items() if name in spread)
        yield from _state(now)
        yield from _server(now.live.store)


def nothing() -> Iterator[Metric]:
    """Yield every family without a sample, so that names can be told beforehand."""
    yield from families(None, ())
    yield from _counters(())
    yield from _histograms(())


# What only grows.


def _counters(records: Records) -> Iterator[Metric]:
    records = list(records)
    for name, (step, text) in _COUNTS.items():
        yield _counter(name, text, ["operation", "status", "reason"], _counts(records, step))
    for name, (unit, text, figure) in _SUMS.items():
        yield _counter(name, text, ["operation"], _sums(records, figure), unit)
    for ledger, whose in (("saved", "the hits' answers"), ("spent", "the bodies that ran")):
        text, tokens = f"Tokens of {whose}.", _by_name(records, ledger, "tokens")
        yield _counter(f"aicache_{ledger}_tokens", text, ["operation", "kind"], tokens)
        text = f"What {whose} cost, in your currency, by version of aicache_prices; empty: bodies said so."
        yield _counter(f"aicache_{ledger}_cost", text, ["operation", "prices"], _costs(records, ledger))
    text = "Bodies that took tokens which have no price."
    unpriced = _by_name(records, "spent", "unpriced")
    yield _counter("aicache_unpriced_bodies", text, ["operation", "model"], unpriced)
    yield _counter("aicache_text_lookups", "Look-ups by size of the text.", ["operation", "tier"], _tiers(records))
    lost = sum(record.lost for record in records)
    yield _counter("aicache_lost_samples", "Timings that processes could not send.", [], {(): lost})
    damaged = sum(record.damaged for record in records)
    yield _counter("aicache_damaged_records", "Records that could not be read.", [], {(): damaged})


def _counts(records: Records, step: str) -> Rows:
    found = Counter[Labels]()
    for record in records:
        for (name, status, reason), count in record.counts.items():
            if name == step:
                found[_labels(record.operation, status, reason)] += count
    return found


def _sums(records: Records, figure: Callable[[SummaryRecord], float]) -> Rows:
    found: dict[Labels, float] = {}
    for record in records:
        value, labels = figure(record), _labels(record.operation)
        if record.operation or value:
            found[labels] = found.get(labels, 0.0) + value
    return found


def _by_name(records: Records, ledger: str, names: str) -> Rows:
    found = Counter[Labels]()
    for record in records:
        for name, count in getattr(getattr(record, ledger), names).items():
            found[_labels(record.operation, name)] += count
    return found


def _costs(records: Records, ledger: str) -> Rows:
    """Return costs; every operation has one of what bodies said, so that no series begins late for want of prices."""
    micros = Counter({_labels(record.operation, ""): 0 for record in records if record.operation})
    micros.update(_by_name(records, ledger, "costs"))
    return {labels: cost / 1e6 for labels, cost in micros.items()}


def _tiers(records: Records) -> Rows:
    found = Counter[Labels]()
    for record in records:
        for tier, count in record.tiers.items():
            found[_labels(record.operation, tier)] += count
    return found


def _histograms(records: Records) -> Iterator[Metric]:
    steps: dict[Labels, Distribution] = {}
    ages: dict[Labels, Distribution] = {}
    for record in records:
        for step, spread in record.steps.items():
            steps.setdefault(_labels(record.operation, step), Distribution()).merge(spread)
        if record.ages.count:
            held = ages.setdefault(_labels(record.operation), Distribution(per_octave=record.ages.per_octave))
            held.merge(record.ages)
    text = "What each step took; counts under a bound are right to 1 % of the bound."
    yield _histogram("aicache_step_seconds", text, ["operation", "step"], steps, STEP_BOUNDS_S, 1e9)
    text = "Ages of the answers at their hits; counts under a bound are right to 5 % of the bound."
    yield _histogram("aicache_hit_age_seconds", text, ["operation"], ages, AGE_BOUNDS_S, 1e3)


def under(spread: Distribution, bounds: Sequence[float]) -> list[int]:
    """Return how many of the values are at most each of *bounds*, which rise.

    A value counts as its bucket's middle, whatever the least and the greatest are: those change, and with them values
    would move over a bound, and counts fall.

    >>> spread = Distribution()
    >>> spread.add([90, 110, 900])
    >>> under(spread, [10, 100, 1000])
    [0, 1, 3]
    """
    each = [0] * (len(bounds) + 1)
    for bucket, count in spread.buckets.items():
        value = value_of(bucket, spread.per_octave)
        each[next((at for at, bound in enumerate(bounds) if value <= bound), len(bounds))] += count
    return list(accumulate(each))[:-1]


# What goes up and down.


def _state(now: Now) -> Iterator[Metric]:
    live, backlog = now.live, now.live.backlog
    yield _gauge("aicache_read_timestamp_seconds", "When these figures were read.", live.at_s)
    yield _gauge("aicache_switched_off", "Whether cache_mode has switched the cache off.", live.is_switched_off)
    yield _gauge("aicache_inbox_batches", "Batches of timings that wait for the roll-up.", backlog.entries)
    yield _gauge("aicache_inbox_bytes", "Size of what waits for the roll-up.", backlog.bytes)
    yield _gauge("aicache_inbox_age_seconds", "How long it has waited.", backlog.age_s)
    yield _gauge("aicache_inbox_unreadable_batches", "Waiting batches to be set aside.", live.waiting.undecodable)
    asked: Rows = {} if now.asked_s is None else {(): live.at_s - now.asked_s}
    text = "When a roll-up was last asked for, by beat or somebody; absent before the first time."
    yield _gauges("aicache_rollup_asked_timestamp_seconds", text, [], asked)
    yield _gauge("aicache_processes", "Workers and producers with timings in the last hour.", len(live.workers))
    text = "1 for each alert that is not normal."
    yield _gauges("aicache_alert", text, ["alert", "operation", "level"], _alerts(now))


def _alerts(now: Now) -> Rows:
    return {(alert.alert, *_labels(alert.operation), alert.level): 1 for alert in now.alerts}


def _server(store: StoreInfo | None) -> Iterator[Metric]:
    if store is not None:
        yield _gauge("aicache_server_keys", "Keys in the cache's database.", store.keys)
        yield _gauge("aicache_server_memory_bytes", "Memory of the whole server.", store.memory_used_bytes)
        yield _gauge("aicache_server_clients", "Connections to the server.", store.connected_clients)


# From rows to families.


def _labels(operation: str, *words: str) -> Labels:
    """Return labels that are safe to show; the operation of what concerns all is empty."""
    return tuple(label(word, LABEL_CHARS) if word else "" for word in (operation, *words))


def _counter(name: str, text: str, labels: Sequence[str], rows: Rows, unit: str = "") -> Metric:
    family = CounterMetricFamily(name, text, labels=labels, unit=unit)
    for row, value in sorted(rows.items()):
        family.add_metric(row, value)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return _gauges(name, text, [], {(): float(value)})


def _gauges(name: str, text: str, labels: Sequence[str], rows: Rows) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for row, value in sorted(rows.items()):
        family.add_metric(row, value)
    return family


def _histogram(
    name: str,
    text: str,
    labels: Sequence[str],
    spreads: Mapping[Labels, Distribution],
    bounds_s: Sequence[float],
    per_s: float,
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels, unit="seconds")
    for row, spread in sorted(spreads.items()):
        counts = under(spread, [bound * per_s for bound in bounds_s])
        buckets = [(str(bound), float(count)) for bound, count in zip(bounds_s, counts, strict=True)]
        family.add_metric(row, [*buckets, ("+Inf", float(spread.count))], spread.total / per_s)
    return family
