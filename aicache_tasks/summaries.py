"""
The summary records in Redis: the roll-up that writes them.

In: the batches in the inbox.   Out: records by minute, hour and day, lifetime totals, each worker's last hour.
`recordstore` reads them, `retention` forgets them.

inbox ─ head ─ decode ─ fold ─ merge with the records that are there ─ commit

Only the commit changes anything, all of it in one atomic step, and only if nobody committed since the head was read. So
roll-ups need no lock: of two at once one is refused and reads again, and one that dies at any point has done nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from typing import Any, Final, NamedTuple

from aicache_tasks.batches import decode_batch, raw_bytes
from aicache_tasks.errors import CorruptPayload, PayloadError
from aicache_tasks.recordstore import RecordStore, unpacked
from aicache_tasks.retention import tidy
from aicache_tasks.rollup import NOBODY, Fold, Names, Place
from aicache_tasks.stores.inbox import Commit, Head
from aicache_tasks.summary import SummaryRecord

log = logging.getLogger("aicache_tasks")

PIECE_BYTES: Final = 256 * 1024
"""About how much of the inbox is read and committed at once."""
MAX_RECORDS: Final = 600
"""The most records that one commit writes; a single batch may need a few more."""
SEEN_FOR_S: Final = 172_800
"""How long a process's number is remembered after its last batch."""
ENDED_FOR_S: Final = 600
"""The same for a process that said that the batch was its last."""
MAX_OPERATIONS: Final = 1000
MAX_WORKERS: Final = 1000

_MAX_ENTRIES: Final = 4096
_ASIDE_BYTES: Final = 64 * 1024
_INFLATED_BYTES: Final = 8 * 2**20
"""How long the entries of one piece may be when they are inflated."""

Progress = Callable[[int, int], object]
"""Called with how many entries are done, and how many there are."""


@dataclass(slots=True)
class RolledUp:
    """What one roll-up did, or would do."""

    samples: int = 0
    batches: int = 0
    duplicates: int = 0
    """Batches that had been counted before."""
    undecodable: int = 0
    """Entries that were set aside."""
    damaged: int = 0
    """Records that could not be read and were begun anew."""
    lost: int = 0
    """Samples of which their process says that they were lost."""
    commits: int = 0
    conflicts: int = 0
    """Pieces that another roll-up committed first."""
    waiting: int = 0
    """Entries that wait now."""
    totals: dict[str, SummaryRecord] = field(default_factory=dict)
    """What was added to each operation's totals."""
    workers: dict[str, dict[int, SummaryRecord]] = field(default_factory=dict)
    """What `Summaries.preview` would add to each worker's minutes, by their start."""


class _Known(NamedTuple):
    """Whose records there are."""

    operations: Names
    workers: Names


class _Piece(NamedTuple):
    fold: Fold
    taken: list[bytes]
    aside: list[bytes]
    deltas: dict[Place, SummaryRecord]
    given_up: int = 0


class Summaries(RecordStore):
    """Rolls samples up and reads the records.

    Args:
        parts: of the cache.

    Raises:
        SettingsError: the cache is in memory: no other process could roll its samples up.
    """

    # Roll up.

    def roll_up(self, *, yields: bool = False, progress: Progress | None = None) -> RolledUp:
        """Count all that waits in the inbox when this begins; return what was counted.

        Args:
            yields: stop when another roll-up is at work.
            progress: told of each piece.

        Raises:
            StoreError: the server went away; what was counted is counted, the rest waits.
            UnknownPayload: the records were written by a newer version, which has to go on with them.
        """
        return self.mending(self.keys.kinds(), lambda: self._roll_up(yields, progress))

    def _roll_up(self, yields: bool, progress: Progress | None) -> RolledUp:
        done, goal, taken, known, reach = RolledUp(), -1, 0, self._known(), _MAX_ENTRIES
        while True:
            head = self.ask(self.inbox.head, PIECE_BYTES)
            goal = head.waiting if goal < 0 else goal
            done.waiting = head.waiting
            if not head.turn and (head.entries or head.lost):
                self._take_first_turn()
                continue
            if head.lost and (self._commit(head, self._given_up(head, known), done) or not yields):
                continue
            if not head.entries or taken >= goal:
                break
            piece = self._fold(head, _bounded(head.entries[:reach]), known)
            reach = _fitting(len(piece.taken), len(piece.deltas))
            if self._commit(head, piece, done):
                taken += len(piece.taken)
                _tell(progress, taken, goal)
            elif yields:
                return done
        tidy(self, head.now_ms // 1000)
        return done

    def preview(self, *, progress: Progress | None = None) -> RolledUp:
        """Return what `roll_up` would do now. Changes nothing; what comes meanwhile may or may not be in it."""
        would, offset, known, seen, reach = RolledUp(), 0, self._known(), dict[bytes, int](), _MAX_ENTRIES
        while True:
            head = self.ask(self.inbox.head, PIECE_BYTES, offset=offset)
            would.waiting = head.waiting
            if head.lost and not offset:
                _note(would, self._given_up(head, known))
            if not head.entries:
                return would
            piece = self._fold(head, _bounded(head.entries[:reach]), known, seen)
            reach = _fitting(len(piece.taken), len(piece.deltas))
            seen.update(piece.fold.seen)
            _note(would, piece)
            _note_workers(would, piece)
            offset += len(piece.taken)
            _tell(progress, offset, head.waiting)

    def _known(self) -> _Known:
        return _Known(Names(self.operations(), MAX_OPERATIONS), Names(self.worker_times(), MAX_WORKERS))

    def _given_up(self, head: Head, known: _Known) -> _Piece:
        """Return what processes said at their end that they could not send: it adds to what was lost."""
        fold = Fold(head.now_ms / 1000, {}, *known, self.keep)
        fold.lost = head.lost
        return _Piece(fold, [], [], fold.deltas(), head.lost)

    def _take_first_turn(self) -> None:
        """Commit nothing, so that there is a turn.

        Without one, an inbox that was emptied and filled anew after it was read could not be told from what was read.
        """
        self.ask(self.inbox.commit, Commit(b"", 0, 0, None, (), (), ()))

    def _fold(
        self, head: Head, entries: Sequence[bytes], known: _Known, seen: dict[bytes, int] | None = None
    ) -> _Piece:
        """Return what *entries* add, or the first of them if that is too much for one commit."""
        batches, aside = [], []
        for data in entries:
            try:
                batches.append(decode_batch(data))
            except PayloadError:
                aside.append(data[:_ASIDE_BYTES])
        fold = Fold(head.now_ms / 1000, self._seen(batches, seen or {}), *known, self.keep, len(aside))
        for batch in batches:
            fold.add(batch)
        deltas = fold.deltas()
        if len(deltas) > MAX_RECORDS and len(entries) > 1:
            return self._fold(head, entries[: _fitting(len(entries), len(deltas))], known, seen)
        return _Piece(fold, list(entries), aside, deltas)

    def _seen(self, batches: Sequence[Any], known: dict[bytes, int]) -> dict[bytes, int]:
        asked = list({batch.process for batch in batches} - known.keys())
        return known | dict(zip(asked, self.ask(self.inbox.seen, asked), strict=True))

    def _commit(self, head: Head, piece: _Piece, done: RolledUp) -> bool:
        """Add *piece* to the records in one step; return whether that was done."""
        damaged: list[bytes] = []
        values = self._merged(piece.deltas, damaged)
        now_s, fold = head.now_ms // 1000, piece.fold
        workers = sorted({place.name for place in piece.deltas if place.kind == "worker"})
        values += [(self.keys.workers, worker, b"%d" % now_s) for worker in workers]
        commit = Commit(
            turn=head.turn,
            entries=len(piece.taken),
            entry_bytes=sum(map(len, piece.taken)),
            since_ms=head.now_ms if len(piece.taken) == head.waiting else None,
            seen=[(p, n, now_s + (ENDED_FOR_S if p in fold.ended else SEEN_FOR_S)) for p, n in fold.seen.items()],
            aside=piece.aside + damaged,
            values=values,
            last=piece.taken[-1] if piece.taken else b"",
            lost=piece.given_up,
        )
        if not self.ask(self.inbox.commit, commit):
            done.conflicts += 1
            return False
        _note(done, piece)
        done.damaged += len(damaged)
        done.commits += 1
        return True

    def _merged(self, deltas: dict[Place, SummaryRecord], damaged: list[bytes]) -> list[tuple[str, str, bytes]]:
        """Return the records with *deltas* added; what could not be read goes to *damaged* and is counted."""
        records = self._added(deltas, damaged)
        if damaged:
            if NOBODY not in records:
                records |= self._added({NOBODY: SummaryRecord("", "total", 0)}, damaged)
            records[NOBODY].damaged += len(damaged)
        return [(*self.keys.field(*place), record.pack()) for place, record in records.items()]

    def _added(self, deltas: dict[Place, SummaryRecord], damaged: list[bytes]) -> dict[Place, SummaryRecord]:
        places: dict[str, list[tuple[str, Place]]] = {}
        for place in deltas:
            key, name = self.keys.field(*place)
            places.setdefault(key, []).append((name, place))
        wanted = [(key, [name for name, _ in there]) for key, there in places.items()]
        held = self.mending(dict.fromkeys(places, "hash"), lambda: self.ask(self.inbox.fetch, wanted))
        return {
            place: _sum(data, key, place, deltas[place], damaged)
            for (key, there), found in zip(places.items(), held, strict=True)
            for (_, place), data in zip(there, found, strict=True)
        }


def _note(done: RolledUp, piece: _Piece) -> None:
    """Add what *piece* counted."""
    fold = piece.fold
    done.samples += fold.samples
    done.batches += fold.batches
    done.duplicates += fold.duplicates
    done.lost += fold.lost
    done.undecodable += fold.undecodable
    for place, record in piece.deltas.items():
        if place.kind == "total":
            done.totals.setdefault(place.name, SummaryRecord(place.name, "total", 0)).merge(record)


def _note_workers(would: RolledUp, piece: _Piece) -> None:
    """Add what *piece* adds to the workers' minutes."""
    for place, record in piece.deltas.items():
        if place.kind == "worker":
            minutes = would.workers.setdefault(place.name, {})
            minutes.setdefault(place.start, SummaryRecord(place.name, "minute", place.start)).merge(record)


def _fitting(entries: int, records: int) -> int:
    """Return how many entries nearly fill a commit where *entries* of them made *records*; one at least."""
    return max(entries * MAX_RECORDS * 9 // (10 * max(records, 1)), 1)


def _sum(data: bytes | None, key: str, place: Place, delta: SummaryRecord, damaged: list[bytes]) -> SummaryRecord:
    """Return the record in *data*, a field of the hash *key*, with *delta* added."""
    total = SummaryRecord(place.name, place.kind, place.start)
    if data is not None:
        try:
            total = unpacked(data, key, place.name, place.kind, place.start)
        except CorruptPayload:
            damaged.append(data[:_ASIDE_BYTES])
    total.merge(delta)
    return total


def _bounded(entries: list[bytes]) -> list[bytes]:
    """Return the first of *entries*, as many as may be inflated at once; one at least."""
    sizes = accumulate(map(raw_bytes, entries))
    return entries[: max(sum(1 for _ in takewhile(lambda size: size <= _INFLATED_BYTES, sizes)), 1)]


def _tell(progress: Progress | None, done: int, of: int) -> None:
    if progress is not None:
        progress(done, of)
