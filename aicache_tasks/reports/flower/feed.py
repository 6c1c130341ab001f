"""
Documents for all viewers, read beside Flower's loop.

In: the Celery application, what a viewer asks for.   Out: the document, in bounded time, whatever the server does.

One thread reads for everybody, so that ten open pages are one reader. A viewer waits `LIMIT_S` at most; one that waits
in vain gets the figures from before, if there are any, and what is wrong. A server that is away is asked for one key
once a second at most, and read as soon as it answers. Flower's own executor stays free for Flower.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from aicache_tasks.errors import MissingExtraError, SettingsError, StoreError, UnknownPayload
from aicache_tasks.reports.flower import snapshot
from aicache_tasks.reports.flower.snapshot import Asked, Now
from aicache_tasks.reports.flower.states import advice
from aicache_tasks.reports.pulse import Pulse, pulse_of
from aicache_tasks.reports.queries import Reader
from aicache_tasks.reports.refusals import what_helps, what_it_did
from aicache_tasks.reports.wording import label
from aicache_tasks.runtime import runtime_of
from aicache_tasks.stores.guard import Guard

LIMIT_S: Final = 2.5
"""How long a viewer waits."""
FRESH_S: Final = 3.0
"""How long what was read is good for everybody; longer where it took long to read."""
TIMES_AS_LONG: Final = 10
"""Reading takes one part in so many of a core's time at most."""
MOST_DOCUMENTS: Final = 64
FAULTS: Final = frozenset({"down", "slow", "busy", "newer", "misconfigured", "absent"})
"""States without figures of their own."""

Document = dict[str, Any]
Clock = Callable[[], float]


class _Read(NamedTuple):
    """What was read, and until when it is good; of a fault, from when on the server is felt for."""

    document: Document
    until: float
    feel_from: float = 0.0


class Feed:
    """Documents for all viewers of one Flower.

    Args:
        limit_s: how long a viewer waits.
        fresh_s: how long what was read is good at least.
        clock: monotonic, seconds.
    """

    def __init__(self, limit_s: float = LIMIT_S, fresh_s: float = FRESH_S, clock: Clock = time.monotonic) -> None:
        self._limit_s, self._fresh_s, self._clock = limit_s, fresh_s, clock
        self._thread = ThreadPoolExecutor(1, "aicache-reports")
        self._pending: dict[Asked, Future[_Read]] = {}
        self._read: dict[Asked, _Read] = {}
        self._sound: dict[Asked, Document] = {}
        self._fault: _Read | None = None
        self._pulse: Pulse | None = None
        self._now: tuple[Now, float] | None = None
        self._began = 0.0

    async def document(self, app: Any, asked: Asked) -> Document:
        """Return what *asked* is for; where that cannot be had, the last that could, and why in ``state``."""
        held = self._read.get(asked)
        if held is None or self._clock() >= held.until:
            held = await self._wait(app, asked)
        if held.document["state"] not in FAULTS:
            return held.document
        return self._sound.get(asked, {}) | held.document

    def forget(self) -> None:
        """Read anew at the next request: something was changed."""
        self._read.clear()
        self._now = None

    def close(self) -> None:
        """Wait for the thread to end."""
        self._thread.shutdown(cancel_futures=True)

    async def _wait(self, app: Any, asked: Asked) -> _Read:
        future = self._pending.get(asked)
        if future is None or future.done():
            _make_room(self._pending)
            future = self._pending[asked] = self._thread.submit(self._ask, app, asked)
        waits_since = self._clock()
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), self._limit_s)
        except TimeoutError:
            return _Read(_fault(self._why(waits_since)) | _whereabouts(app), 0.0)

    def _why(self, waits_since: float) -> str:
        """Say why a viewer waited in vain: one read took nearly all the time, or several did, each its part."""
        return "slow" if self._began < waits_since + self._limit_s / 2 else "busy"

    # In the thread.

    def _ask(self, app: Any, asked: Asked) -> _Read:
        if self._fault is not None and self._is_still(self._fault, app):
            return self._fault  # a server that is away is asked once for all documents
        began = self._began = self._clock()
        document = self._document(app, asked)
        read = _Read(document, self._good_until(began), self._clock() + self._fresh_s)
        self._fault = read if document["state"] in FAULTS else None
        if self._fault is None:
            self._keep(asked, read)
        return read

    def _keep(self, asked: Asked, read: _Read) -> None:
        for documents in (self._read, self._sound):
            _make_room(documents)
        self._read[asked], self._sound[asked] = read, read.document

    def _is_still(self, fault: _Read, app: Any) -> bool:
        """Say whether *fault* holds: for long where finding it took long, but not once the server answers."""
        now = self._clock()
        if now >= fault.until:
            return False
        if self._pulse is None:
            self._pulse = pulse_of(lambda: runtime_of(app).cache.parts)
        return now < fault.feel_from or bool(self._pulse.get().fault)

    def _document(self, app: Any, asked: Asked) -> Document:
        try:
            if not runtime_of(app).ships:
                return _fault("absent")
            parts = runtime_of(app).cache.parts
            reader = Reader(parts)
            document = snapshot.document(reader, asked, self._current(reader))
            return document | {"advice": advice(document["state"]), "breakers": _breakers(parts.store)}
        except (SettingsError, MissingExtraError) as error:
            return _fault("misconfigured", label(str(error), 400))
        except UnknownPayload as error:
            return _fault("newer", f"{label(str(error), 400)}.") | _whereabouts(app)
        except StoreError as error:
            return _down(error, runtime_of(app).settings.url or "") | _whereabouts(app)

    def _current(self, reader: Reader) -> Now:
        """Return what does not depend on what is asked, read once for all documents."""
        began = self._clock()
        if self._now is None or began >= self._now[1]:
            now = snapshot.now_of(reader)
            self._now = now, self._good_until(began)
        return self._now[0]

    def _good_until(self, began: float) -> float:
        ended = self._clock()
        return ended + max(self._fresh_s, TIMES_AS_LONG * (ended - began))


def _fault(state: str, detail: str = "", *first: str) -> Document:
    return {"schema": snapshot.SCHEMA, "state": state, "advice": advice(state, detail, *first)}


def _down(error: StoreError, url: str) -> Document:
    helps = what_helps(error, url) or "Look into the server's log, and at `aicache_url`."
    return _fault("down", f"It {what_it_did(error)}.", helps)


def _whereabouts(app: Any) -> Document:
    runtime = runtime_of(app)
    return {"place": snapshot.place_of(runtime.settings), "breakers": _breakers(runtime.cache.parts.store)}


def _breakers(store: Guard) -> dict[str, str]:
    """Return the states of this process's breakers, which tell how the server answers Flower."""
    return {"reads": store.reads.state, "writes": store.writes.state}


def _make_room(documents: dict[Asked, Any]) -> None:
    while len(documents) >= MOST_DOCUMENTS:
        documents.pop(next(iter(documents)), None)
