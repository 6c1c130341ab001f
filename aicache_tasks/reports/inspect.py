"""
What a worker answers when it is asked: figures and policies.

In: its application.   Out: plain data, within half a second, whatever the cache's server does.

A worker's loop waits for its answer, and a caller for a second. So threads read; whoever asks waits `LIMIT_S` for them
at most, and gets figures from before where it takes longer. Whether the server answers is found out each time
(`pulse`). Nothing is read while nobody asks.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from aicache_tasks import __version__
from aicache_tasks.alerts import AlertState, current
from aicache_tasks.canonical import encode_parts
from aicache_tasks.errors import AICacheError, SettingsError, StoreError
from aicache_tasks.fingerprint import fingerprint
from aicache_tasks.keys import CacheKeyGenerator
from aicache_tasks.parts import Parts
from aicache_tasks.policy import CachePolicy, takes_arguments
from aicache_tasks.reports.pulse import WAIT_S, Beat, Pulse, pulse_of
from aicache_tasks.reports.queries import Live, Reader, total_of
from aicache_tasks.reports.rows import figures_json
from aicache_tasks.reports.wording import duration, iso, label, percent
from aicache_tasks.runtime import cached_tasks, runtime_of
from aicache_tasks.settings import Settings, mask_url
from aicache_tasks.signals import steers
from aicache_tasks.summary import SummaryRecord

SCHEMA: Final = 1
"""Version of the answers."""
LIMIT_S: Final = 0.5
"""How long an answer waits for the thread."""
FRESH_S: Final = 5.0
"""How long what was read is good for; ten times as long as reading took, if that is longer."""
FAULT_FRESH_S: Final = 1.0
"""The same where it could not be read."""
MOST_KNOWN: Final = 50
"""Operations that are named to who asks for one that is not known."""
MOST_OPERATIONS: Final = 200
"""Operations that are listed: those with the most look-ups."""
_TIMES_AS_LONG: Final = 10
_NAME_COLUMNS: Final = 500
_BRIEFLY: Final = ("hits", "misses", "hit_rate", "saved", "lost_samples")
_NOT_YET: Final = "the cache's server has not answered yet; ask again"


class Seen(NamedTuple):
    """What was read, and when (monotonic)."""

    live: Live | None
    alerts: list[AlertState]
    is_off: bool
    """Whether ``cache_mode`` switched the cache off."""
    fault: str
    """Why it could not be read; the figures are then from before."""
    read_s: float = 0.0
    took_s: float = 0.0
    is_down: bool = False
    """Whether it is the server that could not be read, and not what lies there."""


class Snapshot:
    """What is so now, read by a thread when somebody asks and what was read is old. Thread-safe.

    Args:
        read: reads; raises `AICacheError`.
        caught: told of a bug of ours.
        clock: monotonic, seconds.
    """

    def __init__(
        self,
        read: Callable[[], tuple[Live, list[AlertState], bool]],
        caught: Callable[[Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._caught, self._clock = read, caught, clock
        self._lock, self._done = threading.Lock(), threading.Event()
        self._is_reading = False
        self._seen: Seen | None = None

    def get(self, limit_s: float = LIMIT_S) -> Seen | None:
        """Return what is so now, or was; None if nothing has been read in *limit_s*."""
        if not self._is_fresh():
            self._begin()
            self._done.wait(limit_s)
        return self._seen

    def age_s(self, seen: Seen) -> float:
        """Return how old the figures of *seen* are."""
        return max(self._clock() - seen.read_s, 0.0)

    def _is_fresh(self) -> bool:
        seen = self._seen
        if seen is None:
            return False
        good_s = FAULT_FRESH_S if seen.fault else max(FRESH_S, _TIMES_AS_LONG * seen.took_s)
        return self.age_s(seen) < good_s

    def _begin(self) -> None:
        with self._lock:
            if self._is_reading:
                return
            self._is_reading = True
            self._done.clear()
        try:
            threading.Thread(target=self._work, name="aicache-inspect", daemon=True).start()
        except RuntimeError:  # no more threads, or the interpreter ends
            self._end()

    def _work(self) -> None:
        began_s, before = self._clock(), self._seen
        live, alerts, is_off = before[:3] if before is not None else (None, [], False)
        fault, is_down = "", False
        try:
            live, alerts, is_off = self._read()
        except AICacheError as error:
            fault, is_down = _fault(error), isinstance(error, StoreError)
        except Exception as error:  # noqa: BLE001 - a bug of ours must not show what it read in a worker's log
            fault = "internal error"
            self._caught(error)
        finally:
            self._seen = Seen(live, alerts, is_off, fault, self._clock(), self._clock() - began_s, is_down)
            self._end()

    def _end(self) -> None:
        self._is_reading = False
        self._done.set()


_SNAPSHOTS: Final[weakref.WeakKeyDictionary[Any, Snapshot]] = weakref.WeakKeyDictionary()
_PULSES: Final[weakref.WeakKeyDictionary[Any, Pulse]] = weakref.WeakKeyDictionary()


def snapshot_of(app: Any) -> Snapshot:
    """Return the snapshot of *app* in this process, made when first asked for."""
    found = _SNAPSHOTS.get(app)
    return found if found is not None else _SNAPSHOTS.setdefault(app, _snapshot(weakref.ref(app)))


def _now(app: Any) -> tuple[Seen | None, Beat]:
    """Return the figures of now or before, and whether the server answers; in `LIMIT_S` at most."""
    pulse = _PULSES.get(app)
    if pulse is None:
        app_of = weakref.ref(app)
        pulse = _PULSES.setdefault(app, pulse_of(lambda: runtime_of(app_of()).cache.parts))
    began_s = time.monotonic()
    pulse.begin()  # both are asked at once
    seen = snapshot_of(app).get()
    left_s = LIMIT_S - (time.monotonic() - began_s)
    return seen, pulse.get(max(min(left_s, WAIT_S), 0.0))


def _snapshot(app_of: Callable[[], Any]) -> Snapshot:
    def read() -> tuple[Live, list[AlertState], bool]:
        parts = runtime_of(app_of()).cache.parts
        reader = Reader(parts)
        live = reader.live()
        return live, current(reader.summaries), live.is_switched_off

    def caught(error: Exception) -> None:
        runtime_of(app_of()).cache.parts.errors.caught(error, "inspect")

    return Snapshot(read, caught)


def _fault(error: AICacheError) -> str:
    return label(error.detail if isinstance(error, StoreError) else str(error), 200)


# Figures.


def cache_stats(app: Any, worker: str, operation: str | None = None) -> dict[str, Any]:
    """Return lifetime figures, as ``celery aicache stats`` has them: all operations briefly, or one with all it has.

    Args:
        app: the worker's application.
        worker: its node name.
        operation: only this one.
    """
    if not isinstance(operation, str | None):  # whoever broadcasts may send anything
        return {"error": "operation must be a text"}
    seen, beat = _now(app)
    if seen is None or seen.live is None:
        return {"error": _unread(seen, beat)}
    live, parts = seen.live, runtime_of(app).cache.parts
    answer: dict[str, Any] = {
        "schema": SCHEMA,
        "version": __version__,
        "at": iso(live.at_s),
        "age_s": round(max(time.time() - live.at_s, 0.0), 1),
        "exact": live.is_exact,
        "mode": _mode(parts, seen, beat),
        "store": _store_state(parts, seen, beat),
        **_unreadable(seen),
        "waiting": {"batches": live.backlog.entries, "age_s": round(live.backlog.age_s, 1)},
        "alerts": [alert._asdict() | {"operation": _name(alert.operation)} for alert in seen.alerts],
        "worker": _briefly(total_of(live.workers.get(worker, ()))),
    }
    if operation is not None:
        return answer | {"operation": _name(operation)} | _of_one(app, live, operation)
    listed = sorted(live.totals.values(), key=lambda record: (-record.lookups, record.operation))[:MOST_OPERATIONS]
    operations = {_name(record.operation): _briefly(record) for record in listed}
    return answer | {"total": _briefly(total_of(live.totals.values())), "operations": operations}


def _unread(seen: Seen | None, beat: Beat) -> str:
    """Say why there are no figures at all."""
    if seen is not None and seen.fault:
        return seen.fault
    return f"{_NOT_YET} ({label(beat.fault, 200)})" if beat.fault else _NOT_YET


def _unreadable(seen: Seen) -> dict[str, Any]:
    """Say why the figures are not newer, where the server answers: a newer version wrote a record."""
    if not seen.fault or seen.is_down:
        return {}
    return {"figures": f"from before: {seen.fault}" if seen.live is not None else seen.fault}


def _of_one(app: Any, live: Live, operation: str) -> dict[str, Any]:
    """Return the figures of *operation*; where there are none, why, and which operations there are."""
    record = live.totals.get(operation)
    if record is not None:
        return {"total": figures_json(record)}
    registered = {task.cache_policy.operation or task.name for task in cached_tasks(app)}
    if operation in registered:
        return {"total": None, "note": "nothing is recorded of this operation yet"}
    known = sorted({*registered, *filter(None, live.totals)})
    more = {"more": len(known) - MOST_KNOWN} if len(known) > MOST_KNOWN else {}
    return {"total": None, "note": "no such operation is known", "known": [*map(_name, known[:MOST_KNOWN])]} | more


def _name(operation: str) -> str:
    return label(operation, _NAME_COLUMNS)


def _briefly(record: SummaryRecord) -> dict[str, Any]:
    figures = figures_json(record)
    return {name: figures[name] for name in _BRIEFLY} | {"get_p95_ms": record.percentile_ms("get", 95)}


def _store_state(parts: Parts, seen: Seen, beat: Beat) -> str:
    """Say how the server is now: as it was just felt, then as it was when the figures were read."""
    if fault := beat.fault or (seen.fault if seen.is_down else ""):
        return f"down: {label(fault, 200)}"
    states = {"reads": parts.store.reads.state, "writes": parts.store.writes.state}
    stopped = [f"{name} stopped" for name, state in states.items() if state == "open"]
    untried = [f"{name} to be tried again" for name, state in states.items() if state == "half-open"]
    return ", ".join(stopped or ["ok", *untried])


def _mode(parts: Parts, seen: Seen, beat: Beat) -> str:
    is_off = seen.is_off if beat.is_off is None else beat.is_off
    return "off" if is_off or parts.settings.disabled else "on"


def line(app: Any) -> dict[str, Any]:
    """Return the few figures of `cache_stats` that fit one line of ``inspect stats`` and of Flower's page."""
    parts = runtime_of(app).cache.parts
    if parts.outbox is None:
        return {"timings": "stay in each process"}
    seen, beat = _now(app)
    if seen is None or (seen.live is None and (seen.is_down or beat.fault)):
        return {"store": f"down: {_unread(seen, beat)}"}
    if seen.live is None:
        return {"store": _store_state(parts, seen, beat), **_unreadable(seen)}
    total = total_of(seen.live.totals.values())
    p95_ms = total.percentile_ms("get", 95)
    return {
        "hits": total.hits,
        "misses": total.misses,
        "hit rate": percent(total.hit_rate),
        "get p95": duration(None if p95_ms is None else p95_ms * 1e6),
        "waiting": seen.live.backlog.entries,
        "store": _store_state(parts, seen, beat) + (", switched off" if _mode(parts, seen, beat) == "off" else ""),
        **_unreadable(seen),
        "read": f"{max(time.time() - seen.live.at_s, 0.0):.0f} s ago",
    }


# Policies.


def cache_policy(app: Any, tasks: Iterable[Any]) -> dict[str, Any]:
    """Return the policy of each of *tasks* as this worker has worked it out, so that workers can be compared."""
    runtime = runtime_of(app)
    settings = runtime.settings
    return {
        "schema": SCHEMA,
        "version": __version__,
        "namespace": settings.namespace,
        "url": mask_url(settings.url or ""),
        "digest": _digest(settings),
        "disabled": settings.disabled,
        "tasks": {task.name: _policy(task, settings) for task in tasks},
    }


def _digest(settings: Settings) -> str:
    """Return the digest of a call that nobody makes; it shows of the secret what any key shows."""
    keys = CacheKeyGenerator(hash_algorithm=settings.hash, secret=settings.secret)
    return keys.make(None, "", None).digest[:16].hex()


def _policy(task: Any, settings: Settings) -> dict[str, Any]:
    try:
        plan = task.cache.plan
    except SettingsError as error:
        return {"error": _fault(error)}
    policy, rules = plan.policy, plan.rules
    return {
        "operation": _name(plan.operation),
        "version": plan.version if policy.version is not None else None,
        "body": fingerprint(task.run),
        "ttl_s": rules.ttl_s,
        "jitter": rules.jitter,
        "ignore": list(policy.ignore),
        "vary": _vary(policy, plan.cache.parts),
        "tenant": _tenant(policy, plan.cache.parts),
        "text_arg": policy.text_arg or "text",
        "question_arg": policy.question_arg or "question",
        "tags": _kind(policy.tags or None),
        "validate": rules.validate is not None,
        "store_if": rules.store_if is not None,
        "redact": policy.redact,
        "shared": policy.shared,
        "l1": bool(settings.l1_entries) and rules.local,
        "compression": settings.compression,
    }


def _kind(given: Any) -> str | None:
    """Say what decides about tags, which may be personal."""
    return None if given is None else "each call" if callable(given) else "fixed"


def _tenant(policy: CachePolicy, parts: Parts) -> str | None:
    """Return a digest of a tenant that is fixed."""
    return parts.keys.tag_id(policy.tenant).hex() if isinstance(policy.tenant, str) else _kind(policy.tenant)


def _vary(policy: CachePolicy, parts: Parts) -> str | None:
    """Return a digest of what ``vary`` resolves to here; it may hold secrets."""
    if policy.vary is None:
        return None
    if takes_arguments(policy.vary):
        return "each call"
    try:
        resolved = policy.vary_of({})
        mark, encoding = encode_parts((resolved,), ("vary",))
    except Exception as error:  # the user's code must not fail the answer about all other tasks
        if steers(error):
            raise
        return f"raises {type(error).__name__}"
    return parts.keys.tag_id((mark + encoding).hex()).hex()
