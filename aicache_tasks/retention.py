"""
Forget what is no longer kept: retention is this, not a ttl, because a server may evict what has one.

In: the server's time.   Out: windows, workers and numbers of processes that are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aicache_tasks.recordstore import FIELDS_AT_ONCE, RecordStore, epoch_s, text_of
from aicache_tasks.rollup import WINDOWS_S, WORKER_KEEP_S

_SWEPT_AT_ONCE: Final = 5000
_LATE_S: Final = 3600
"""How much longer records lie than they are read: a roll-up that began before may still write them."""


def tidy(records: RecordStore, now_s: int) -> None:
    """Remove what is no longer kept."""
    while records.ask(records.inbox.sweep, now_s, FIELDS_AT_ONCE) == FIELDS_AT_ONCE:
        pass
    operations, workers = records.operations(), records.worker_times()
    for name, seen in records.ask(records.inbox.hash, records.keys.workers).items():
        if epoch_s(seen, 0) < now_s - WORKER_KEEP_S - _LATE_S:
            _forget_worker(records, name)
    for kind, length in WINDOWS_S.items():
        keys = [records.keys.records(operation, kind) for operation in operations]
        _sweep(records, kind, keys, length, now_s - getattr(records.keep, kind))
    _sweep(records, "worker", [records.keys.worker(worker) for worker in workers], 60, now_s - WORKER_KEEP_S)


def _sweep(records: RecordStore, kind: str, keys: Sequence[str], length: int, kept_s: float) -> None:
    """Remove the records of windows that ended long before *kept_s*, from where the last sweep ended."""
    mark, end_s = f"swept_{kind}", int(kept_s - _LATE_S) // length * length
    ((held,),) = records.ask(records.inbox.fetch, [(records.keys.state, [mark])])
    begin_s = epoch_s(held, end_s) // length * length  # later than the end if the clock was put back
    end_s = min(end_s, begin_s + _SWEPT_AT_ONCE * length)
    fields = [str(start) for start in range(begin_s, end_s, length)]
    for key in keys if fields else ():
        records.mending({key: "hash"}, lambda key=key: records.ask(records.inbox.drop_fields, key, fields))  # type: ignore[misc]
    if held != (swept := b"%d" % end_s):
        records.ask(records.inbox.swap, records.keys.state, mark, held, swept)


def _forget_worker(records: RecordStore, name: bytes) -> None:
    key = records.keys.worker(text_of(name))
    records.ask(records.inbox.drop_fields, key, list(records.ask(records.inbox.hash, key)))
    records.ask(records.inbox.drop_fields, records.keys.workers, [name])
