"""
The inbox of samples and the records that are made of it: what the roll-up and readers ask the server.

In: keys and packed records.   Out: entries and records as bytes; whether a commit was applied.

Entries are taken from the inbox by `Inbox.commit` alone, in one atomic step with the records that count them. Each
commit changes the *turn*, a random word in the inbox's state, and is refused unless the turn is the one that was read
before the entries were: so neither two roll-ups at once nor a commit sent twice counts an entry again.

Each method takes a running `Budget` last and raises `StoreError` for a fault of the store. None blocks the server for
over 5 ms if a commit has at most 800 values of about 1 KB and what is read at once is about 1 MB.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aicache_tasks.errors import StoreRefused
from aicache_tasks.samplekeys import SampleKeys
from aicache_tasks.stores.base import Budget
from aicache_tasks.stores.resp import accept, number_of, pack, pack_all, values_of

if TYPE_CHECKING:  # it imports redis
    from aicache_tasks.stores.redis import RedisStore

MAX_ASIDE: Final = 100
"""How many entries that could not be read are kept, the newest."""
TURN_BYTES: Final = 8
_USUAL_ENTRY_BYTES: Final = 2048
"""What an entry is taken to have where the state does not say."""
_LEAST_ENTRY_BYTES: Final = 1
_MOST_ENTRY_BYTES: Final = 2**21
MAX_ENTRIES: Final = 4096
"""The most entries that are read at once, however short they are."""
_FIELDS_AT_ONCE: Final = 500
_ROLES: Final = frozenset({b"inbox", b"state", b"seen", b"ends", b"aside", b"records"})


class Head(NamedTuple):
    """The oldest entries of the inbox, and what waits."""

    turn: bytes
    """For the `Commit` that takes the entries; empty before the first."""
    entries: list[bytes]
    waiting: int
    """How many entries the inbox holds."""
    waiting_bytes: int
    since_ms: int
    """Since when the inbox has not been empty, or what the last commit said; 0 if nothing waits."""
    now_ms: int
    """The server's clock."""
    lost: int = 0
    """Samples that ending processes gave up, and that no commit has counted."""


class Commit(NamedTuple):
    """What one atomic step does: records are written, the entries that they count go."""

    turn: bytes
    """As read with the entries."""
    entries: int
    """How many go, from the oldest on."""
    entry_bytes: int
    """Their length in all."""
    since_ms: int | None
    """How old the rest may be, for `Head.since_ms`; None leaves it. Without a rest it is removed."""
    seen: Sequence[tuple[bytes, int, int]]
    """Process, its highest number now, and when it may be forgotten, epoch s."""
    aside: Sequence[bytes]
    """Entries that could not be read."""
    values: Sequence[tuple[str, str, bytes]]
    """Key of a hash, field, value."""
    last: bytes = b""
    """The last of the entries that go."""
    lost: int = 0
    """How many of the samples that ending processes gave up are counted by this."""


class Inbox:
    """One namespace's inbox and records.

    Args:
        store: whose connections are used.
        keys: of the namespace.
    """

    def __init__(self, store: RedisStore, keys: SampleKeys) -> None:
        self._store, self._keys = store, keys

    def head(self, limit_bytes: int, budget: Budget, *, offset: int = 0) -> Head:
        """Return the oldest entries, about *limit_bytes* of them and at least one, after skipping *offset*."""
        state: list[str | bytes] = [b"HMGET", self._keys.state, b"turn", b"bytes", b"since_ms", b"lost"]
        packed = pack_all([state, [b"LLEN", self._keys.inbox], [b"TIME"]])
        empty = self._store.ask(packed, 3, budget, _state, may_repeat=True)
        if empty.waiting <= offset:
            return empty
        last = offset + min(max(int(limit_bytes / _average(empty)), 1), MAX_ENTRIES) - 1
        return empty._replace(entries=self._range(self._keys.inbox, offset, last, budget))

    def seen(self, processes: Sequence[bytes], budget: Budget) -> list[int]:
        """Return the highest number of each process that was counted, 0 for one that is not known."""
        (found,) = self.fetch([(self._keys.seen, processes)], budget)
        return [_whole(number) for number in found]

    def fetch(
        self, wanted: Sequence[tuple[str, Sequence[str] | Sequence[bytes]]], budget: Budget
    ) -> list[list[bytes | None]]:
        """Return the values of the fields of each hash, None for one that is not there. One round trip."""
        asked = [(key, fields) for key, fields in wanted if fields]
        if not asked:
            return [[] for _ in wanted]
        packed = pack_all([[b"HMGET", key, *fields] for key, fields in asked])
        sizes = [len(fields) for _, fields in asked]
        found = iter(self._store.ask(packed, len(asked), budget, lambda got: _each(got, sizes), may_repeat=True))
        return [next(found) if fields else [] for _, fields in wanted]

    def hash(self, key: str, budget: Budget) -> dict[bytes, bytes]:
        """Return all of a small hash."""
        flat = self._store.ask(pack(b"HGETALL", key), 1, budget, lambda got: _present(got[0]), may_repeat=True)
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def commit(self, commit: Commit, budget: Budget) -> bool:
        """Apply all of *commit*, or nothing; return whether it was applied.

        It is refused if the turn has changed since, or other entries lie where those that are to go did. A server at
        its memory limit takes it: it makes room. A fault that is raised leaves open whether it was applied; to commit
        again is then refused.

        Raises:
            StoreError: also where one of the keys is of another type; its detail ends with what the key is for.
        """
        keys, given = _committed(self._keys, commit)
        return self._store.run("commit", keys, given, budget, _applied)

    def sweep(self, now_s: float, limit: int, budget: Budget) -> int:
        """Forget up to *limit* processes whose end has passed; return how many."""
        given = [b"%.3f" % now_s, b"%d" % limit]
        return self._store.run("sweep", [self._keys.ends, self._keys.seen], given, budget, number_of)

    def drop_fields(self, key: str, fields: Sequence[str] | Sequence[bytes], budget: Budget) -> int:
        """Remove *fields* of a hash; return how many were there."""
        pieces = [fields[start : start + _FIELDS_AT_ONCE] for start in range(0, len(fields), _FIELDS_AT_ONCE)]
        if not pieces:
            return 0
        packed = pack_all([[b"HDEL", key, *piece] for piece in pieces])
        return self._store.ask(packed, len(pieces), budget, lambda got: sum(map(number_of, got)))

    def swap(self, key: str, field: str, old: bytes | None, new: bytes, budget: Budget) -> bool:
        """Set a field of a hash if it still holds *old*, or nothing for None; return whether it was set."""
        given: list[str | bytes] = [field, new] if old is None else [field, new, old]
        return self._store.run("swap", [key], given, budget, number_of) == 1

    def move_strangers(self, kinds: Mapping[str, str], budget: Budget) -> list[str]:
        """Rename each key that has another Redis type than *kinds* says, to its name and ``:aside``; return them."""
        types = self._store.ask(pack_all([[b"TYPE", key] for key in kinds]), len(kinds), budget, _texts)
        wrong = [key for (key, kind), found in zip(kinds.items(), types, strict=True) if found not in ("none", kind)]
        if wrong:
            renames = pack_all([[b"RENAME", key, f"{key}:aside"] for key in wrong])
            self._store.ask(renames, len(wrong), budget, lambda got: [accept(reply) for reply in got])
        return wrong

    def aside(self, limit: int, budget: Budget) -> list[bytes]:
        """Return the newest entries that could not be read, *limit* at most."""
        return self._range(self._keys.aside, -limit, -1, budget) if limit > 0 else []

    def _range(self, key: str, first: int, last: int, budget: Budget) -> list[bytes]:
        packed = pack(b"LRANGE", key, b"%d" % first, b"%d" % last)
        return self._store.ask(packed, 1, budget, lambda got: _present(got[0]), may_repeat=True)


def _average(head: Head) -> float:
    """Return how long an entry is on average, as the state has it; the usual length where that cannot be."""
    average = head.waiting_bytes / head.waiting
    return average if _LEAST_ENTRY_BYTES <= average <= _MOST_ENTRY_BYTES else _USUAL_ENTRY_BYTES


def _committed(keys: SampleKeys, commit: Commit) -> tuple[list[str], list[str | bytes]]:
    """Return keys and arguments of ``commit.lua``."""
    records: dict[str, list[str | bytes]] = {}
    for key, field, value in commit.values:
        records.setdefault(key, []).extend((field, value))
    since = b"" if commit.since_ms is None else b"%d" % commit.since_ms
    numbers = (commit.entries, commit.entry_bytes, MAX_ASIDE, len(commit.aside), len(commit.seen))
    last = hashlib.sha1(commit.last, usedforsecurity=False).hexdigest().encode()
    given: list[str | bytes] = [
        commit.turn,
        os.urandom(TURN_BYTES),
        since,
        *(b"%d" % number for number in numbers),
        last,
        b"%d" % commit.lost,
    ]
    given += commit.aside
    given += [word for process, number, _ in commit.seen for word in (process, b"%d" % number)]
    given += [word for process, _, ends_s in commit.seen for word in (b"%d" % ends_s, process)]
    for words in records.values():
        given += (b"%d" % len(words), *words)
    return [keys.inbox, keys.state, keys.seen, keys.ends, keys.aside, *records], given


def _applied(reply: Any) -> bool:
    if accept(reply) in _ROLES:
        raise StoreRefused(f"WRONGTYPE {reply.decode()}", writes=False)
    return number_of(reply) == 1


def _state(replies: list[Any]) -> Head:
    turn, held, since, lost = values_of(replies[0], 4)
    waiting = number_of(replies[1])
    seconds, micros = (_whole(part) for part in values_of(replies[2], 2))
    return Head(turn or b"", [], waiting, _whole(held), _whole(since), seconds * 1000 + micros // 1000, _whole(lost))


def _each(replies: list[Any], sizes: list[int]) -> list[list[bytes | None]]:
    return [values_of(reply, size) for reply, size in zip(replies, sizes, strict=True)]


def _texts(replies: list[Any]) -> list[str]:
    return [accept(reply).decode() for reply in replies]


def _present(reply: Any) -> list[bytes]:
    return [value for value in values_of(reply) if value is not None]


def _whole(text: bytes | None) -> int:
    """Return the number in *text*; 0 for none, and for what is no number of ours."""
    return int(text) if text and text.isdigit() and len(text) < 20 else 0
