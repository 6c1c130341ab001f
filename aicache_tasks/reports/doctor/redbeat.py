"""
Is a beat of celery-redbeat alive, and does another one take over in time?

In: redbeat's settings, the lock in its server.   Out: findings. Needs no redbeat here, where it may not be installed.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from aicache_tasks.checks import URL_SCHEMES
from aicache_tasks.errors import StoreError
from aicache_tasks.reports.doctor.case import Case, Finding, ask_at
from aicache_tasks.reports.wording import duration, label, moment
from aicache_tasks.stores.resp import accept, number_of

LOOP_S: Final = 300.0
"""redbeat's default for beat_max_loop_interval."""
LOCK_LOOPS: Final = 5
LONGEST_LOCK_S: Final = 300.0
MARGIN_S: Final = 2.0
NAME: Final = "redbeat"
UNKNOWN: Final = "nobody knows whose"
_ABSENT_MS: Final = -2
_FOREVER_MS: Final = -1
_UUID_EPOCH: Final = 0x01B21DD213814000
"""The Unix epoch in a version 1 UUID's clock, which counts 100 ns since 1582."""


class Lock(NamedTuple):
    """What lies under the lock's key."""

    token: bytes
    """The holder's; empty if there is none."""
    left_ms: int


def is_used(case: Case) -> bool:
    """Return whether beat is redbeat, as far as the settings say."""
    conf = case.app.conf
    return NAME in str(conf.beat_scheduler).lower() or conf.get("redbeat_redis_url") is not None


def times(case: Case) -> Iterator[Finding]:
    """Does another beat take over in time?"""
    if not is_used(case):
        return
    loop_s, lock_s = _loop_s(case), _lock_s(case)
    said = f"redbeat's lock lasts {duration(lock_s * 1e9)}, a loop {duration(loop_s * 1e9)}"
    fix = "Set redbeat_lock_timeout=30 and beat_max_loop_interval=5."
    if lock_s <= loop_s:
        yield Finding(NAME, "fail", f"{said}: the leader loses it while it sleeps", fix)
    elif lock_s > LONGEST_LOCK_S:
        yield Finding(NAME, "warn", f"{said}: so long nothing is scheduled after a beat was killed", fix)
    else:
        yield Finding(NAME, "ok", said)


def lock(case: Case) -> Iterator[Finding]:
    """Does a beat hold the lock now?"""
    url = str(case.app.conf.get("redbeat_redis_url") or case.broker_urls[0]) if is_used(case) else ""
    if urlsplit(url).scheme not in URL_SCHEMES[:-1]:  # not used, or behind Sentinel or a Cluster
        return
    key = key_of(case)
    if key is None:
        fix = "Take redbeat_lock_key=None out, or run one beat only."
        yield Finding(NAME, "warn", "redbeat has no lock: each beat sends all entries", fix)
        return
    try:
        held = ask_at(url, [[b"GET", key], [b"PTTL", key]], _lock_in)
    except StoreError as error:
        fix = "Is redbeat_redis_url right, and may its user read there?"
        yield Finding(NAME, "warn", f"redbeat's lock cannot be read: {label(error.detail, 100)}", fix)
        return
    yield _judged(case, label(key, 100), held)


def _judged(case: Case, key: str, held: Lock) -> Finding:
    left_s, lock_s = held.left_ms / 1000, _lock_s(case)
    if held.left_ms == _ABSENT_MS:
        fix = "Start a beat, `celery -A … beat -S redbeat.RedBeatScheduler`: without one nothing is scheduled."
        return Finding(NAME, "warn", f"no beat holds redbeat's lock ({key})", fix)
    by = _holder(held.token)
    if held.left_ms == _FOREVER_MS:
        fix = "Delete this key once no beat runs, and start beat again."
        return Finding(NAME, "fail", f"redbeat's lock ({key}, {by}) never runs out: no other beat takes over", fix)
    said = f"a beat holds redbeat's lock ({key}, {by}) for {duration(held.left_ms * 1e6)} more"
    if left_s > lock_s + MARGIN_S:
        fix = "Give all beats the same redbeat_lock_timeout, and this process theirs."
        return Finding(NAME, "warn", f"{said}, longer than redbeat_lock_timeout, {duration(lock_s * 1e9)}", fix)
    return Finding(NAME, "ok", said)


def key_of(case: Case) -> str | None:
    """Return the lock's key as redbeat makes it; None if it is told to have none."""
    conf = case.app.conf
    prefix = str(conf.get("redbeat_key_prefix") or "redbeat:")
    if "redbeat_lock_key" not in conf:
        return f"{prefix}:lock"
    key = conf.get("redbeat_lock_key")
    return None if not key else key if key.startswith(prefix) else f"{prefix}{key}"


def _loop_s(case: Case) -> float:
    return float(case.app.conf.beat_max_loop_interval or LOOP_S)


def _lock_s(case: Case) -> float:
    return float(case.app.conf.get("redbeat_lock_timeout") or LOCK_LOOPS * _loop_s(case))


def _lock_in(replies: list[Any]) -> Lock:
    token = accept(replies[0])
    return Lock(token if isinstance(token, bytes) else b"", number_of(replies[1]))


def _holder(token: bytes) -> str:
    """Say what the token tells of who holds the lock: redis-py makes it of the clock and the host's address.

    >>> _holder(b"9f5ac4f2c6f911eebe56feedfacebeef"), _holder(b"junk")
    ('since 2024-02-09 03:16 UTC by host fe:ed:fa:ce:be:ef', 'nobody knows whose')
    """
    try:
        made = uuid.UUID(token.decode())
    except ValueError:
        return UNKNOWN
    address = ":".join(f"{part:02x}" for part in made.node.to_bytes(6))
    since_s = (made.time - _UUID_EPOCH) / 1e7
    return f"since {moment(since_s)} UTC by host {address}" if made.version == 1 else UNKNOWN
