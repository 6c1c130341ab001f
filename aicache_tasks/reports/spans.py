"""
Which records cover a span of time.

In: from when to when, how long records are kept.   Out: pieces of minutes, hours and days that do not overlap.   Pure.

A span is covered by whole days and hours where they are kept and fit, by minutes at its edges. Where minutes are no
longer kept an edge goes outward, to the hour or the day, and the cover says so. All times are UTC.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from aicache_tasks.durations import MAX_DURATION_S, seconds_in, shorten
from aicache_tasks.errors import SettingsError
from aicache_tasks.rollup import AHEAD_S, WINDOWS_S, Keep

FINEST_FIRST: Final = ("minute", "hour", "day")
MOST_WINDOWS: Final = {"minute": 120, "hour": 72}
"""How many windows of each kind `resolution_of` takes before it takes longer ones."""


class Span(NamedTuple):
    """From ``start_s`` on until before ``end_s``, seconds since the epoch."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """How long it is, seconds."""
        return self.end_s - self.start_s


class Piece(NamedTuple):
    """Windows of one length, one after the other."""

    resolution: str
    start_s: int
    end_s: int


class Cover(NamedTuple):
    """The records to read for a span."""

    pieces: list[Piece]
    span: Span
    """What they really cover; of no length if nothing of the span is kept."""


def parse_moment(text: str, now_s: float, *, name: str) -> float:
    """Return seconds since the epoch.

    Args:
        text: ``now``, a duration for as long ago (``6h``, ``2d12h``), or an ISO time (UTC unless it says otherwise).
        now_s: seconds since the epoch.
        name: of the option, for the error.

    Raises:
        SettingsError: none of these, or over a hundred years ago.

    >>> parse_moment("6h", 1_000_000.0, name="since")
    978400.0
    >>> parse_moment("1970-01-02", 0.0, name="since"), parse_moment("1970-01-01T02:00+02:00", 0.0, name="since")
    (86400.0, 0.0)
    """
    text = text.strip()
    if text.lower() == "now":
        return now_s
    if (found := _iso_s(text)) is not None:
        return found
    ago_s = None if _is_bare(text) else seconds_in(text)
    if ago_s is None:
        raise SettingsError(f"{name}: {shorten(text)} is no time; write 6h, 30m or 2d (ago), or 2026-11-22T10:00 (UTC)")
    if ago_s > MAX_DURATION_S:
        raise SettingsError(f"{name}: {shorten(text)} is out of range: a hundred years ago at most")
    return now_s - ago_s


def _is_bare(text: str) -> bool:
    """Say whether *text* is a number without a unit."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _iso_s(text: str) -> float | None:
    if "-" not in text:  # the standard's short forms read like numbers
        return None
    try:
        when = datetime.fromisoformat(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def cover(span: Span, now_s: float, keep: Keep) -> Cover:
    """Return the pieces that cover *span*, oldest first.

    >>> day = 86_400
    >>> [tuple(piece) for piece in cover(Span(3 * day - 3660, 4 * day + 60), 5.5 * day, Keep()).pieces]
    [('hour', 252000, 259200), ('day', 259200, 345600), ('minute', 345600, 345660)]
    """
    # Nothing lies in the future but what a clock that runs ahead put there: today's record is whole.
    is_open = span.end_s > _down(now_s, WINDOWS_S["minute"])
    goal = _up(now_s + AHEAD_S + 1, WINDOWS_S["day"]) if is_open else span.end_s
    at, pieces = _begin(span.start_s, now_s, keep), list[Piece]()
    while at < goal:
        kind = _next(at, goal, now_s, keep)
        end = at + WINDOWS_S[kind]
        begun = pieces.pop().start_s if pieces and pieces[-1].resolution == kind else at
        pieces.append(Piece(kind, begun, end))
        at = end
    if not pieces:
        return Cover([], Span(span.end_s, span.end_s))
    end_s = _up(span.end_s, WINDOWS_S["minute"]) if is_open else pieces[-1].end_s
    return Cover(pieces, Span(pieces[0].start_s, end_s))


def windows(span: Span, resolution: str, now_s: float, keep: Keep) -> Cover:
    """Return the one piece of windows of *resolution* that covers *span*, as far as they are kept."""
    length = WINDOWS_S[resolution]
    oldest = _down(now_s - getattr(keep, resolution), length)
    start = max(_down(span.start_s, length), oldest)
    end = _up(min(span.end_s, now_s + AHEAD_S), length)
    if start >= end:
        return Cover([], Span(span.end_s, span.end_s))
    return Cover([Piece(resolution, start, end)], Span(start, end))


def resolution_of(span: Span, now_s: float, keep: Keep) -> str:
    """Return the windows that show *span* best: the shortest that are kept and not too many.

    >>> [resolution_of(Span(-hours * 3600, 0), 0, Keep()) for hours in (1, 24, 48, 200)]
    ['minute', 'hour', 'hour', 'day']
    """
    for kind, most in MOST_WINDOWS.items():
        length = WINDOWS_S[kind]
        if span.length_s <= most * length and _is_kept(kind, _down(span.start_s, length), now_s, keep):
            return kind
    return "day"


def pieces_of(piece: Piece, windows_each: int) -> Iterable[Piece]:
    """Return *piece* in parts of *windows_each* windows at most."""
    step = windows_each * WINDOWS_S[piece.resolution]
    for start in range(piece.start_s, piece.end_s, step):
        yield piece._replace(start_s=start, end_s=min(start + step, piece.end_s))


def _begin(since_s: float, now_s: float, keep: Keep) -> int:
    """Return the start of the finest window that is kept of *since_s*, or of the oldest that is kept at all."""
    for kind in FINEST_FIRST:
        start = _down(since_s, WINDOWS_S[kind])
        if _is_kept(kind, start, now_s, keep):
            return start
    return min(_down(now_s - getattr(keep, kind), WINDOWS_S[kind]) for kind in FINEST_FIRST)


def _next(at: int, goal: float, now_s: float, keep: Keep) -> str:
    """Return the longest window at *at* that ends by *goal*, else the shortest there is."""
    there = [kind for kind in FINEST_FIRST if at % WINDOWS_S[kind] == 0 and _is_kept(kind, at, now_s, keep)]
    fitting = [kind for kind in there if at + WINDOWS_S[kind] <= goal]
    return fitting[-1] if fitting else there[0]


def _is_kept(kind: str, start: int, now_s: float, keep: Keep) -> bool:
    """Say whether the roll-up still counts samples in this window."""
    return start + WINDOWS_S[kind] > now_s - float(getattr(keep, kind))


def _down(at_s: float, length: int) -> int:
    return int(at_s // length) * length


def _up(at_s: float, length: int) -> int:
    return -int(-at_s // length) * length
