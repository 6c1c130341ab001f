"""
The monitor: takes samples in, hands the arrays and their figures out.

In: samples, or durations by the ``record_*`` names.   Out: the arrays, statistics, warnings.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aicache_tasks.errors import SettingsError
from aicache_tasks.monitor import advice, metrics, samples, statistics
from aicache_tasks.monitor.alerts import MemoryAlert, RateAlert, SlowAlert
from aicache_tasks.monitor.metrics import CompressionMetric, InvalidationMetric, MemoryUsageMetric, PerformanceMetric
from aicache_tasks.monitor.statistics import MIB, iso_utc
from aicache_tasks.records import HIT_STATUSES, Sample

_OWN_WINDOWS: Final = ("key", "compress", "memory", "invalidate", "decode", "compute")
_WATCHED: Final = frozenset({"key", "memory", "invalidate"})


class CachePerformanceMonitor:
    """The timings of this process. Thread-safe; recording is O(1) whatever the history.

    Windowed are the arrays, every section of the statistics and each ``total_operations`` in one: the newest
    *max_measurements* samples of each array that are younger than *retention_hours* (one that is exactly as old is
    dropped). Since the last reset count ``cache_hits``, ``cache_misses``, ``total_operations`` (of cache operations),
    ``total_invalidations``, ``total_keys_invalidated``, and so the hit ratio. A hit is a get with status hit, stale or
    joined; error, bypass, refresh and disabled are neither hit nor miss.

    Args:
        retention_hours: how long a sample shows.
        max_measurements: how many samples each array keeps.
        memory_warning_threshold_bytes: cache size from which a warning is given.
        memory_critical_threshold_bytes: cache size from which it is critical.
        clock: seconds since the epoch; durations never come from it.
        key_generation_threshold: seconds from which making a key is slow.
        cache_operation_threshold: seconds from which a cache operation is slow.
        invalidation_rate_warning_per_hour: invalidations in an hour from which a warning is given.
        invalidation_rate_critical_per_hour: invalidations in an hour from which it is critical.

    Raises:
        SettingsError: the retention is not positive, or no measurement would be kept.

    >>> monitor = CachePerformanceMonitor()
    >>> monitor.record_cache_operation_time("get", 0.002, cache_hit=True)
    >>> monitor.hit_ratio(), monitor.cache_operation_times[0].duration
    (100.0, 0.002)
    """

    def __init__(
        self,
        retention_hours: float = 1,
        max_measurements: int = 1000,
        memory_warning_threshold_bytes: int = 50 * MIB,
        memory_critical_threshold_bytes: int = 100 * MIB,
        *,
        clock: Callable[[], float] = time.time,
        key_generation_threshold: float = 0.1,
        cache_operation_threshold: float = 0.05,
        invalidation_rate_warning_per_hour: int = 50,
        invalidation_rate_critical_per_hour: int = 100,
    ) -> None:
        if not retention_hours > 0 or max_measurements < 1:
            raise SettingsError("retention_hours and max_measurements must be greater than 0")
        self.retention_hours = retention_hours
        self.max_measurements = max_measurements
        self.memory_warning_threshold_bytes = memory_warning_threshold_bytes
        self.memory_critical_threshold_bytes = memory_critical_threshold_bytes
        self.key_generation_threshold = key_generation_threshold
        self.cache_operation_threshold = cache_operation_threshold
        self.invalidation_rate_warning_per_hour = invalidation_rate_warning_per_hour
        self.invalidation_rate_critical_per_hour = invalidation_rate_critical_per_hour
        self._clock = clock
        self._new_lock()
        self._start()

    # recording

    def record(self, sample: Sample) -> None:
        """Take one sample. O(1), about a microsecond at most; nothing is removed by age here."""
        if sample.step != "get":
            self._record_step(sample)
            return
        status, key_ns = sample.status, sample.key_ns
        with self._lock:  # in one piece: this is what a hit pays for
            self._operations.append(sample)
            self.total_operations += 1
            if status in HIT_STATUSES:
                self.cache_hits += 1
            elif status == "miss":
                self.cache_misses += 1
            if key_ns:
                self._keys.append(sample)
            if sample.decode_ns:
                self._decodes.append(sample)
        if sample.duration_ns > self.cache_operation_threshold * 1e9:
            self._slow_operation.warn(sample, self.cache_operation_threshold, self._clock())
        if key_ns > self.key_generation_threshold * 1e9:
            self._watch(sample._replace(step="key", duration_ns=key_ns))

    def _record_step(self, sample: Sample) -> None:
        """Take a sample that is no look-up's. A slow log handler holds up no other thread: it is called last."""
        with self._lock:
            window = self._windows.get(sample.step)
            if window is not None:
                window.append(sample)
            else:
                self._operations.append(sample)
                self.total_operations += 1
        if window is not None:
            if sample.step in _WATCHED:
                self._watch(sample)
        elif sample.duration_ns > self.cache_operation_threshold * 1e9:
            self._slow_operation.warn(sample, self.cache_operation_threshold, self._clock())

    def _watch(self, sample: Sample) -> None:
        if sample.step == "invalidate":
            self._count_invalidation(sample)
        elif sample.step == "memory":
            self._memory_alert.update(sample.extra.get("total_cache_size_bytes", 0), *self._memory_limits())
        elif sample.duration_ns > self.key_generation_threshold * 1e9:
            self._slow_key.warn(sample, self.key_generation_threshold, self._clock())

    def record_key_generation_time(
        self,
        duration: float,
        text_length: int,
        operation_type: str = "",
        additional_data: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the time of one key, in seconds.

        Raises:
            ValueError: the duration is negative or not finite.
        """
        extra = dict(additional_data or {})
        self.record(samples.key_sample(self._clock(), duration, text_length, operation_type, extra))

    def record_cache_operation_time(
        self,
        operation: str,
        duration: float,
        cache_hit: bool,
        text_length: int = 0,
        additional_data: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the time of one ``get``, ``set``, ``delete`` …, in seconds.

        A get that is no hit is a miss, unless the ``reason`` in *additional_data* is a fault of the store or its
        ``status`` says what else it was.

        Raises:
            ValueError: the duration is negative or not finite.
        """
        extra = dict(additional_data or {})
        self.record(samples.operation_sample(self._clock(), operation, duration, cache_hit, text_length, extra))

    def record_compression_ratio(
        self, original_size: int, compressed_size: int, compression_time: float, operation_type: str = ""
    ) -> None:
        """Take one compression: sizes in bytes, time in seconds.

        Raises:
            ValueError: the time is negative or not finite.
        """
        at = self._clock()
        self.record(samples.compression_sample(at, original_size, compressed_size, compression_time, operation_type))

    def record_memory_usage(
        self,
        *,
        memory_cache_bytes: int = 0,
        memory_cache_entries: int = 0,
        redis_bytes: int = 0,
        redis_entries: int = 0,
        memory_cache_entry_limit: int = 0,
        additional_data: Mapping[str, Any] | None = None,
    ) -> MemoryUsageMetric:
        """Take one measurement of the cache's size and return it; the process's own memory is read here.

        Args:
            memory_cache_bytes: what this process's memory cache holds.
            memory_cache_entries: how many entries it holds.
            redis_bytes: what the cache's entries take in Redis (not the whole server: other data may live there).
            redis_entries: how many entries that is.
            memory_cache_entry_limit: the most entries that the memory cache may hold; 0 is not known.
            additional_data: kept with the measurement.
        """
        limit = {"memory_cache_entry_limit": memory_cache_entry_limit} if memory_cache_entry_limit else {}
        sample = samples.memory_sample(
            self._clock(),
            (memory_cache_bytes, memory_cache_entries),
            (redis_bytes, redis_entries),
            self.memory_warning_threshold_bytes,
            limit | dict(additional_data or {}),
        )
        self.record(sample)
        return metrics.memory_metric(sample)

    def record_invalidation_event(
        self,
        pattern: str,
        keys_invalidated: int | None,
        duration: float,
        invalidation_type: str = "manual",
        operation_context: str = "",
        additional_data: Mapping[str, Any] | None = None,
    ) -> None:
        """Take one invalidation; *keys_invalidated* is None when nobody counted, *duration* in seconds.

        Raises:
            ValueError: the duration is negative or not finite.
        """
        at, extra = self._clock(), dict(additional_data or {})
        what = pattern, keys_invalidated, duration, invalidation_type, operation_context
        self.record(samples.invalidation_sample(at, *what, extra))

    def _count_invalidation(self, sample: Sample) -> None:
        with self._lock:
            self.total_invalidations += 1
            self.total_keys_invalidated += sample.extra.get("keys_invalidated") or 0
        self._rate_alert.add(sample.at, *self._rate_limits())

    # the arrays

    @property
    def key_generation_times(self) -> list[PerformanceMetric]:
        """Times of keys, oldest first."""
        return [metrics.key_metric(sample) for sample in self._retained("key")]

    @property
    def cache_operation_times(self) -> list[PerformanceMetric]:
        """Times of look-ups, writes and other cache operations, oldest first."""
        return [metrics.operation_metric(sample) for sample in self._retained("get")]

    @property
    def compression_ratios(self) -> list[CompressionMetric]:
        """Compressions, oldest first."""
        return [metrics.compression_metric(sample) for sample in self._retained("compress")]

    @property
    def memory_usage_measurements(self) -> list[MemoryUsageMetric]:
        """Measurements of the cache's size, oldest first."""
        return [metrics.memory_metric(sample) for sample in self._retained("memory")]

    @property
    def invalidation_events(self) -> list[InvalidationMetric]:
        """Invalidations, oldest first."""
        return [metrics.invalidation_metric(sample) for sample in self._retained("invalidate")]

    # figures

    def hit_ratio(self) -> float:
        """Return hits in percent (0 to 100) of hits and misses since the last reset; 0.0 before the first."""
        with self._lock:
            return statistics.hit_rate(self.cache_hits, self.cache_misses)

    def get_performance_stats(self) -> dict[str, Any]:
        """Return all figures; a section is there only if its array is not empty."""
        stats: dict[str, Any] = {
            "timestamp": iso_utc(self._clock()),
            "retention_hours": self.retention_hours,
            "cache_hit_rate": self.hit_ratio(),
            "total_cache_operations": self.total_operations,
            "cache_hits": self.cache_hits,
            "cache_misses": self.cache_misses,
        }
        if keys := self.key_generation_times:
            stats["key_generation"] = statistics.key_generation_stats(keys, self.key_generation_threshold)
        if operations := self.cache_operation_times:
            stats["cache_operations"] = statistics.cache_operation_stats(operations, self.cache_operation_threshold)
        if compressions := self.compression_ratios:
            stats["compression"] = statistics.compression_stats(compressions)
        memory, invalidation = self.get_memory_usage_stats(), self.get_invalidation_frequency_stats()
        if "current" in memory:
            stats["memory_usage"] = memory
        if "rates" in invalidation:
            stats["invalidation"] = invalidation
        return stats

    def get_step_stats(self) -> dict[str, dict[str, Any]]:
        """Return the durations' figures of each step that has samples, ``decode`` and ``compute`` among them."""
        durations: dict[str, list[float]] = {}
        for sample in self._retained("get"):
            durations.setdefault(sample.step, []).append(sample.duration_ns / 1e9)
        for step in ("key", "decode", "compute", "compress", "invalidate"):
            if found := self._retained(step):
                durations[step] = [metrics.took_ns(sample, step) / 1e9 for sample in found]
        return {step: statistics.duration_stats(taken) for step, taken in durations.items()}

    def get_memory_usage_stats(self) -> dict[str, Any]:
        """Return the ``memory_usage`` section; without a measurement, only the thresholds."""
        return statistics.memory_stats(self.memory_usage_measurements, *self._memory_limits())

    def get_invalidation_frequency_stats(self) -> dict[str, Any]:
        """Return the ``invalidation`` section; without an event, only the thresholds."""
        now = self._clock()
        self._rate_alert.check(now, *self._rate_limits())
        return statistics.invalidation_stats(
            self.invalidation_events,
            now=now,
            retention_hours=self.retention_hours,
            totals=(self.total_invalidations, self.total_keys_invalidated),
            warning_per_hour=self.invalidation_rate_warning_per_hour,
            critical_per_hour=self.invalidation_rate_critical_per_hour,
        )

    def get_recent_slow_operations(self, threshold_multiplier: float = 2.0) -> dict[str, list[dict[str, Any]]]:
        """Return what took longer than *threshold_multiplier* times the mean of its array."""
        return {
            "key_generation": advice.slow_timings(self.key_generation_times, threshold_multiplier),
            "cache_operations": advice.slow_timings(self.cache_operation_times, threshold_multiplier),
            "compression": advice.slow_compressions(self.compression_ratios, threshold_multiplier),
        }

    def get_memory_warnings(self) -> list[dict[str, Any]]:
        """Return ``{severity, message, recommendations}`` for each thing that the latest measurement shows."""
        measured = self.memory_usage_measurements
        return advice.memory_warnings(measured[-1], *self._memory_limits()) if measured else []

    def get_invalidation_recommendations(self) -> list[dict[str, Any]]:
        """Return ``{severity, issue, message, suggestions}`` for each thing that the invalidations show."""
        stats = self.get_invalidation_frequency_stats()
        return advice.invalidation_recommendations(stats) if "rates" in stats else []

    def performance_summary(self) -> dict[str, Any]:
        """Return the counters, the hit ratio and the mean of the last ten timings; ``memory_usage`` once measured."""
        recent = statistics.RECENT_MEASUREMENTS
        keys, operations = self.key_generation_times[-recent:], self.cache_operation_times[-recent:]
        summary = {
            "hit_ratio": self.hit_ratio(),
            "recent_avg_key_generation_time": statistics.mean([metric.duration for metric in keys]),
            "recent_avg_cache_operation_time": statistics.mean([metric.duration for metric in operations]),
            **self._counters(),
        }
        memory = self.get_memory_usage_stats()
        return summary | {"memory_usage": memory} if "current" in memory else summary

    def export_metrics(self) -> dict[str, Any]:
        """Return the arrays and counters as plain JSON data."""
        arrays: dict[str, Sequence[metrics.Metric]] = {
            "key_generation_times": self.key_generation_times,
            "cache_operation_times": self.cache_operation_times,
            "compression_ratios": self.compression_ratios,
            "memory_usage_measurements": self.memory_usage_measurements,
            "invalidation_events": self.invalidation_events,
        }
        exported = {name: [metrics.json_safe(metric._asdict()) for metric in array] for name, array in arrays.items()}
        return {**exported, **self._counters(), "export_timestamp": iso_utc(self._clock())}

    # start and reset

    def reset_stats(self) -> None:
        """Empty the arrays, set the counters to 0 and the alerts to normal. Call it in a forked child."""
        if self._pid != os.getpid():
            # A thread that the child does not have may have held the lock when the process was copied.
            self._new_lock()
        with self._lock:
            self._start()

    def _new_lock(self) -> None:
        # Re-entrant: a signal handler or finalizer that records while its thread records must not wait for itself.
        self._pid, self._lock = os.getpid(), threading.RLock()

    def _start(self) -> None:
        self._operations = self._window()
        self._windows = {step: self._window() for step in _OWN_WINDOWS}
        self._keys, self._decodes = self._windows["key"], self._windows["decode"]
        self.cache_hits = self.cache_misses = self.total_operations = 0
        self.total_invalidations = self.total_keys_invalidated = 0
        self._slow_key, self._slow_operation = SlowAlert("key generation"), SlowAlert("cache operation")
        self._memory_alert, self._rate_alert = MemoryAlert(), RateAlert()

    def _window(self) -> deque[Sample]:
        return deque(maxlen=self.max_measurements)

    # reading

    def _retained(self, step: str) -> list[Sample]:
        with self._lock:
            found = list(self._windows.get(step, self._operations))
        cutoff = self._clock() - self.retention_hours * 3600
        return [sample for sample in found if sample.at > cutoff]

    def _memory_limits(self) -> tuple[int, int]:
        return self.memory_warning_threshold_bytes, self.memory_critical_threshold_bytes

    def _rate_limits(self) -> tuple[int, int]:
        return self.invalidation_rate_warning_per_hour, self.invalidation_rate_critical_per_hour

    def _counters(self) -> dict[str, int]:
        with self._lock:
            return {
                "cache_hits": self.cache_hits,
                "cache_misses": self.cache_misses,
                "total_operations": self.total_operations,
                "total_invalidations": self.total_invalidations,
                "total_keys_invalidated": self.total_keys_invalidated,
            }
