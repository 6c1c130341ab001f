"""
The summary records as they lie in Redis: to be read, and asked for.

In: operations, windows, workers.   Out: records; what waits.   Changes nothing but keys that are not ours (`mending`).

A record that is damaged is read as an empty one that counts it. One of a newer version stops whoever reads: without it
every sum would be too small, and look right.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

from aicache_tasks.errors import CorruptPayload, SettingsError, StoreRefused, UnknownPayload
from aicache_tasks.invalidation import ADMIN_BUDGET_S
from aicache_tasks.parts import Parts
from aicache_tasks.rollup import WINDOWS_S, WORKER_KEEP_S, Keep
from aicache_tasks.samplekeys import SampleKeys
from aicache_tasks.stores.base import Budget, Carrier
from aicache_tasks.stores.inbox import Head, Inbox
from aicache_tasks.summary import SummaryRecord

if TYPE_CHECKING:  # it imports redis
    from aicache_tasks.stores.redis import RedisStore

log = logging.getLogger("aicache_tasks")

FIELDS_AT_ONCE: Final = 500
_DIGITS: Final = 13
_MOST_CHARS: Final = 512
_FAR_S: Final = 172_800
_WRITES: Final = frozenset({"commit", "sweep", "drop_fields", "swap", "move_strangers"})

T = TypeVar("T")


class Backlog(NamedTuple):
    """What waits in the inbox."""

    entries: int
    bytes: int
    age_s: float


class RecordStore:
    """One cache's summary records.

    Args:
        parts: of the cache.

    Raises:
        SettingsError: the cache is in memory: there are no records.
    """

    def __init__(self, parts: Parts) -> None:
        store, settings = parts.store.store, parts.settings
        if not isinstance(store, Carrier):
            raise SettingsError("aicache_url: summary records need a Redis or Valkey server, not memory://")
        self.keys = SampleKeys(settings.namespace)
        self.inbox = Inbox(cast("RedisStore", store), self.keys)
        self.parts = parts
        self.keep = Keep(settings.keep_minutes_s, settings.keep_hours_s, settings.keep_days_s)

    def operations(self) -> list[str]:
        """Return the names of all operations that have records; "" is there if something concerned all of them."""
        return sorted(map(text_of, self.ask(self.inbox.hash, self.keys.totals)))

    def totals(self, unread: list[UnknownPayload] | None = None) -> dict[str, SummaryRecord]:
        """Return each operation's lifetime totals, as of the last roll-up.

        Args:
            unread: gets the errors, one for each operation that is then left out.

        Raises:
            UnknownPayload: a newer version wrote one of them, and there is no *unread*.
        """
        held = self.ask(self.inbox.hash, self.keys.totals)
        named = sorted((text_of(name), data) for name, data in held.items())
        found = {}
        for name, data in named:
            try:
                found[name] = _read(data, self.keys.totals, name, "total", 0)
            except UnknownPayload as error:
                if unread is None:
                    raise
                unread.append(error)
        return found

    def read(self, operation: str, resolution: str, start_s: float, end_s: float) -> list[SummaryRecord]:
        """Return the records of the windows that begin in [*start_s*, *end_s*), oldest first; empty ones are not there.

        Args:
            operation: one of `operations`.
            resolution: ``minute``, ``hour`` or ``day``.
            start_s: seconds since the epoch.
            end_s: seconds since the epoch.

        Raises:
            UnknownPayload: a newer version wrote one of them.
        """
        length, key = WINDOWS_S[resolution], self.keys.records(operation, resolution)
        now_s = self.parts.now_ms() / 1000  # of this process: near enough to leave out what cannot be there
        first_s = max(start_s, now_s - getattr(self.keep, resolution) - _FAR_S)
        end_s = min(end_s, now_s + _FAR_S)
        starts = range(-int(-first_s // length) * length, math.ceil(end_s), length)
        return list(self._read_fields(key, starts, operation, resolution))

    def workers(self) -> dict[str, list[SummaryRecord]]:
        """Return the minutes of the last hour of each worker and producer, all operations together."""
        now_s = self.ask(self.inbox.head, 0).now_ms // 60_000 * 60
        minutes = range(now_s - WORKER_KEEP_S + 60, now_s + 60, 60)
        return {
            name: list(self._read_fields(self.keys.worker(name), minutes, name, "minute"))
            for name, seen_s in self.worker_times().items()
            if seen_s > now_s - WORKER_KEEP_S
        }

    def backlog(self) -> Backlog:
        """Return what waits, and for how long: 0 if nothing does."""
        head = self.ask(self.inbox.head, 0)
        return Backlog(head.waiting, head.waiting_bytes, _age_s(head))

    def _read_fields(self, key: str, starts: Sequence[int], name: str, kind: str) -> Iterator[SummaryRecord]:
        for first in range(0, len(starts), FIELDS_AT_ONCE):
            some = starts[first : first + FIELDS_AT_ONCE]
            (found,) = self.ask(self.inbox.fetch, [(key, [str(start) for start in some])])
            for start, data in zip(some, found, strict=True):
                if data is not None:
                    yield _read(data, key, name, kind, start)

    def worker_times(self) -> dict[str, int]:
        """Return when each worker and producer was last heard of, seconds since the epoch."""
        held = self.ask(self.inbox.hash, self.keys.workers)
        return {text_of(name): epoch_s(seen, 0) for name, seen in sorted(held.items())}

    def ask(self, ask: Callable[..., T], *given: Any, **named: Any) -> T:
        """Return what *ask* does, a call of the inbox: as an operator's, with a budget of its own."""
        bound = (lambda *args: ask(*args, **named)) if named else ask
        writes = ask.__name__ in _WRITES  # a read says nothing of whether the server takes writes
        return self.parts.store.operate(bound, Budget(ADMIN_BUDGET_S), *given, writes=writes)

    def mending(self, kinds: Mapping[str, str], do: Callable[[], T]) -> T:
        """Return what *do* does. Keys of other Redis types than *kinds* says are put out of the way."""
        try:
            return do()
        except StoreRefused as error:
            moved = self.ask(self.inbox.move_strangers, kinds) if "WRONGTYPE" in error.detail else []
            if not moved:
                raise
        for key in moved:
            log.warning("aicache.summaries: %s held a value of another type; it is now %s:aside", key, key)
        return do()


def unpacked(data: bytes, key: str, name: str, kind: str, start: int) -> SummaryRecord:
    """Return the record in *data*, a field of the hash *key*.

    Raises:
        UnknownPayload: a newer version wrote it; says where it lies.
        CorruptPayload: it is damaged.
    """
    try:
        return SummaryRecord.unpack(data, name, kind, start)
    except UnknownPayload as error:
        what = f"record {_whole(name if kind == 'total' else str(start))} of {_whole(key)}: {error}"
        raise UnknownPayload(f"{what}; a newer aicache-tasks has to read it, or it must be removed") from None


def _read(data: bytes, key: str, name: str, kind: str, start: int) -> SummaryRecord:
    try:
        return unpacked(data, key, name, kind, start)
    except CorruptPayload:
        return SummaryRecord(name, kind, start, damaged=1)


def _whole(text: str) -> str:
    """Return *text* escaped, and long enough to be used: only what is no name of ours is cut."""
    return repr(text[:_MOST_CHARS])


def _age_s(head: Head) -> float:
    """Return how long the oldest entry has waited. A clock that was put back hides it: then it is taken for old."""
    if not head.waiting or not head.since_ms:
        return 0.0
    return abs(head.now_ms - head.since_ms) / 1000


def epoch_s(held: bytes | None, otherwise: int) -> int:
    """Return the time in *held*, seconds; *otherwise* if there is none that is one of ours."""
    return int(held) if held and held.isdigit() and len(held) < _DIGITS else otherwise


def text_of(name: bytes) -> str:
    return name.decode("utf-8", "replace")
