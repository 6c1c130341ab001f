"""
What the cache needs from a store, in bytes.

In: keys and frames.   Out: frames and tokens.   Every call spends a `Budget`; every fault is a `StoreError`.

All keys of one call start with the same hash tag ``{namespace:bucket}``, so that each call is one slot of a
Cluster. A frame is opaque here but for its first 12 bytes, which no frame version may change
(docs/architecture.md, "Frame header"): magic (2), version (1), kind (1: entry, 2: tombstone), fence (8).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from aicache_tasks.errors import StoreError

MAGIC = b"\xa1\xca"
ENTRY_KIND = 1
TOMBSTONE_KIND = 2
TOKEN_BYTES = 8
NO_FENCE = bytes(TOKEN_BYTES)


class Budget:
    """The store time that one task call may still spend. Not thread-safe: one per call.

    Args:
        seconds: what there is to spend.
    """

    __slots__ = ("_left_s", "deadline")

    def __init__(self, seconds: float) -> None:
        self._left_s = seconds
        self.deadline = 0.0

    def begin(self) -> None:
        """Start the clock; ``deadline`` is then a `time.perf_counter` value."""
        self.deadline = time.perf_counter() + self._left_s

    def finish(self) -> None:
        """Stop the clock and keep what is left."""
        self._left_s = self.deadline - time.perf_counter()

    def excuse(self, seconds: float) -> None:
        """Give *seconds* back: a process's first connection has a budget of its own."""
        self.deadline += seconds

    @property
    def left_s(self) -> float:
        """Seconds left, 0.0 at least, as of the last `finish`."""
        return max(self._left_s, 0.0)


class StoreInfo(NamedTuple):
    """What a server says about itself."""

    version: str
    keys: int
    memory_used_bytes: int
    connected_clients: int
    eviction_policy: str
    memory_limit_bytes: int = 0
    """Its ``maxmemory``; 0 if it has none."""


class Tombstoned(NamedTuple):
    """What `Store.bury` found: the start of the entry that lay there, and the tokens in force."""

    head: bytes | None
    tokens: list[bytes | None]


class Shipment(NamedTuple):
    """Samples on their way to the inbox. Its bytes are the same whenever it is sent again."""

    inbox_key: str
    state_key: str
    data: bytes
    cap_bytes: int
    """The inbox takes no more when it would hold more than this."""


REFUSED = -1
"""The receipt of a shipment for which the inbox has no room."""

Receipt = int | StoreError
"""What became of a shipment: how many entries wait in the inbox now, `REFUSED`, or the fault of its own."""


@runtime_checkable
class Carrier(Protocol):
    """A store that takes samples: on the back of a look-up, or alone. Not every `Store` does."""

    def carry(self, keys: Sequence[str], shipment: Shipment, budget: Budget) -> tuple[list[bytes | None], Receipt]:
        """Return what `Store.read` would, and what became of the shipment. One round trip.

        Each of the two is judged by itself: a server that takes no samples still answers the look-up. A fault that is
        raised leaves open whether the shipment arrived; it may be sent again, since batches are told apart by their id.
        """

    def ship(self, shipment: Shipment, budget: Budget) -> int:
        """Return how many entries the inbox holds now, or `REFUSED`. What is raised may leave open if it arrived."""

    def give_up(self, state_key: str, count: int, budget: Budget) -> int:
        """Have the roll-up count *count* samples as lost, full inbox or not; return how many wait to be counted so."""


class Store(Protocol):
    """Ten methods; each is atomic, spends *budget*, and raises only `StoreError` for a fault of the store."""

    def read(self, keys: Sequence[str], budget: Budget) -> list[bytes | None]:
        """Return the value of each key, None where there is none (or it is not a string). One round trip."""

    def ensure(
        self, keys: Sequence[str], values: Sequence[bytes], ttl_ms: Sequence[int], budget: Budget
    ) -> list[bytes]:
        """Set each key that is absent (ttl 0: for ever) and return what each key holds now."""

    def publish(
        self, key: str, frame: bytes, ttl_ms: int, seen: bytes, tag_keys: Sequence[str], budget: Budget
    ) -> bool:
        """Store *frame* unless a frame with a fence other than *seen* lies there; return whether it was stored.

        The fence of a tombstone is its token, that of an entry the token of the tombstone that it replaced. *seen* is
        the fence that the look-up read, `NO_FENCE` if it read no frame. So neither a tombstone nor what was stored
        after it gives way to an answer whose look-up was before. The ttl of each
        of *tag_keys* is raised to *ttl_ms* at least. A value of another Redis type is overwritten.
        """

    def bury(self, key: str, tombstone: bytes, ttl_ms: int, token_keys: Sequence[str], budget: Budget) -> Tombstoned:
        """Put *tombstone* in the entry's place, for *ttl_ms* or what the entry had left, whichever is longer."""

    def discard(self, key: str, value: bytes, budget: Budget) -> bool:
        """Remove *key* if it still holds exactly *value*; return whether it went."""

    def replace(self, values: Sequence[tuple[str, bytes, int]], budget: Budget) -> None:
        """Set each (key, value, ttl_ms); ttl 0 is for ever. Keys may lie in different slots."""

    def scan(self, prefix: str, cursor: int, count: int, budget: Budget) -> tuple[int, list[str]]:
        """Return the next cursor (0: done) and some keys that start with *prefix*. Never KEYS."""

    def unlink(self, keys: Sequence[str], budget: Budget) -> int:
        """Remove *keys*; return how many were there."""

    def info(self, budget: Budget) -> StoreInfo:
        """Return what the server says about itself."""

    def close(self) -> None:
        """Drop this process's connections; the next call makes new ones."""
