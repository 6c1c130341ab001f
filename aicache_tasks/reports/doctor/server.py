"""
Is the cache's server fit for a cache?

In: what it says of itself, round trips.   Out: findings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from statistics import median
from typing import Final

from aicache_tasks.reports.doctor.case import Case, Finding
from aicache_tasks.reports.refusals import what_helps, what_it_did
from aicache_tasks.reports.wording import duration, label, size
from aicache_tasks.settings import mask_url

LEAST_VALKEY: Final = (7, 2)
LEAST_REDIS: Final = (6, 2)
CLOCK_WARN_S: Final = 2.0
CLOCK_FAIL_S: Final = 60.0
BUDGET_PART: Final = 4
"""A look-up is one round trip, a miss and its store are three: one should take a fourth of the budget at most."""
REPLICAS: Final = ("slave", "replica")
NEVER: Final = "noeviction"


def reachable(case: Case) -> Iterator[Finding]:
    """Does it answer?"""
    where = label(mask_url(case.url), 200)
    if case.refusal is not None:
        helps = what_helps(case.refusal, case.url) or "Look into its log, and at aicache_url."
        fix = f"{helps} Tasks run without the cache meanwhile."
        yield Finding("reachable", "fail", f"{where} {what_it_did(case.refusal)}", fix)
    else:
        yield Finding("reachable", "ok", f"{where} answers")


def version(case: Case) -> Iterator[Finding]:
    """Is it new enough?"""
    if case.server is None:
        return
    info = case.server.info
    name, key, least = ("Valkey", "valkey_version", LEAST_VALKEY)
    if key not in info:
        name, key, least = ("Redis", "redis_version", LEAST_REDIS)
    said = label(info.get(key, "?"), 20)
    numbers = tuple(int(part) for part in re.findall(r"\d+", said)[:2])
    if numbers >= least:
        yield Finding("version", "ok", f"{name} {said}")
    else:
        fix = "Use Redis 6.2 or Valkey 7.2, or newer."
        yield Finding("version", "fail", f"{name} {said} is too old", fix)


def role(case: Case) -> Iterator[Finding]:
    """Does it take writes?"""
    if case.server is None:
        return
    info = case.server.info
    if info.get("role") not in REPLICAS:
        yield Finding("role", "ok", "it is a primary")
        return
    primary = f"{label(info.get('master_host', '?'), 100)}:{label(info.get('master_port', '?'), 10)}"
    fix = f"Set aicache_url to where its primary is ({primary}), or to a name that follows a failover."
    if info.get("slave_read_only", info.get("replica_read_only", "1")) == "0":
        said = "it is a replica that takes writes: they are lost when it next copies its primary"
    else:
        said = "it is a replica: writes are refused"
    yield Finding("role", "fail", said, fix)


def eviction(case: Case) -> Iterator[Finding]:
    """Does what it evicts, or refuses, hurt nobody but the cache?"""
    if case.server is None:
        return
    policy = label(case.server.info.get("maxmemory_policy", "?"), 20)
    limit = _whole(case.server.info.get("maxmemory", ""))
    if case.shared_with:
        yield _shared(" and ".join(case.shared_with), policy, limit)
    elif not limit:
        fix = "Set maxmemory, and maxmemory-policy volatile-lfu."
        yield Finding("eviction", "warn", "it has no memory limit: the cache grows until lifetimes end", fix)
    elif policy == NEVER:
        fix = "Set maxmemory-policy volatile-lfu."
        yield Finding("eviction", "warn", f"once {size(limit)} are full it stores nothing more ({policy})", fix)
    elif policy.startswith("allkeys"):
        fix = "Set maxmemory-policy volatile-lfu: records and tokens, which have no lifetime, then stay."
        yield Finding("eviction", "warn", f"{policy} may evict summary records and timings that wait", fix)
    else:
        yield Finding("eviction", "ok", f"{policy} at {size(limit)}, a server of its own")


def _shared(what: str, policy: str, limit: int) -> Finding:
    fix = "Give the cache a server of its own (aicache_url), with maxmemory-policy volatile-lfu."
    if limit and policy != NEVER:
        return Finding("eviction", "fail", f"the {what} lies on it too, and {policy} may evict what Celery needs", fix)
    when = (
        f"when {size(limit)} are full it refuses Celery's writes" if limit else "it grows until the host has no memory"
    )
    return Finding("eviction", "warn", f"the {what} lies on it too: {when}", fix)


def _whole(text: str) -> int:
    return int(text) if text.isdigit() else 0


def persistence(case: Case) -> Iterator[Finding]:
    """What does a restart lose?"""
    if case.server is None:
        return
    info = case.server.info
    broken = [name for name in ("aof_last_write_status", "rdb_last_bgsave_status") if info.get(name, "ok") != "ok"]
    if broken:
        fix = "See its log: disk full, or no right to write there? It refuses writes until a save succeeds."
        yield Finding("persistence", "fail", f"its last save failed ({', '.join(broken)})", fix)
    elif info.get("aof_enabled") == "1":
        yield Finding("persistence", "ok", "append-only file: a restart loses a second at most")
    elif case.server.snapshots:
        fix = "Set appendonly yes: what was invalidated after the last snapshot comes back with it."
        yield Finding("persistence", "warn", "snapshots only: a restart goes back to the last one", fix)
    elif case.server.snapshots is None:
        fix = "Set appendonly yes; or let its user ask: +config|get."
        yield Finding("persistence", "warn", "no append-only file, and it does not say whether it saves snapshots", fix)
    else:
        fix = "Set appendonly yes, if records should outlive a restart."
        yield Finding("persistence", "warn", "it saves nothing: a restart loses answers and summary records", fix)


def timeouts(case: Case) -> Iterator[Finding]:
    """Is it near enough for the budget of a call?"""
    if case.server is None:
        return
    trip_ms, budget_ms = median(case.server.trips_ms), case.settings.budget_ms
    said = f"a round trip takes {duration(trip_ms * 1e6)}, a call's budget is {duration(budget_ms * 1e6)}"
    fix = "Move the server nearer, or raise aicache_budget_ms."
    if trip_ms > budget_ms:
        yield Finding("timeouts", "fail", f"{said}: no look-up can succeed", fix)
    elif trip_ms > budget_ms / BUDGET_PART:
        yield Finding("timeouts", "warn", f"{said}: there is room for less than {BUDGET_PART}", fix)
    else:
        yield Finding("timeouts", "ok", said)


def clock(case: Case) -> Iterator[Finding]:
    """Do its clock and this host's agree?"""
    if case.server is None:
        return
    apart_s = abs(case.server.ahead_s)
    way = "ahead of" if case.server.ahead_s > 0 else "behind"
    said = f"its clock is {duration(apart_s * 1e9)} {way} this host's"
    if apart_s < CLOCK_WARN_S:
        yield Finding("clock", "ok", "its clock agrees with this host's")
        return
    fix = "Run NTP on both: entries end by the hosts' clocks, and timings are counted in the wrong minutes."
    yield Finding("clock", "fail" if apart_s > CLOCK_FAIL_S else "warn", said, fix)


def access(case: Case) -> Iterator[Finding]:
    """Can anybody write answers into it?"""
    if case.server is None:
        return
    if case.is_open_to_all:
        fix = "Set requirepass or an ACL user, and the login in aicache_url: who writes there answers your tasks."
        yield Finding("access", "warn", "whoever reaches it gets in: it wants no password", fix)
    else:
        yield Finding("access", "ok", "it wants a password")
