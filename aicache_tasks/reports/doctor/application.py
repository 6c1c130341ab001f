"""
Is the application set up so that answers are right, and nothing personal shows?

In: its configuration and its tasks' policies.   Out: findings.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any, Final

from aicache_tasks.invalidation import ADMIN_BUDGET_S
from aicache_tasks.reports.doctor.case import Case, Finding
from aicache_tasks.reports.wording import duration, label, plural
from aicache_tasks.runtime import useless_policies
from aicache_tasks.stores.base import Budget

MODEL_WORDS: Final = ("model", "engine", "llm", "prompt_version", "system_prompt", "temperature", "deployment")
"""Parameters whose names hold one of these decide about the answer."""
PICKLES: Final = frozenset({"pickle", "application/x-python-serialize"})
MOST_NAMES: Final = 5
VISIBILITY_S: Final = 3600.0
"""Kombu's default for Redis: how long until a message that nobody acknowledged is delivered again."""


def switches(case: Case) -> Iterator[Finding]:
    """Is it on?"""
    amiss = list(_amiss(case))
    yield from amiss
    if not amiss and not case.tasks:
        fix = "Give a task base=CachedTask and cache=CachePolicy(…)."
        yield Finding("switches", "warn", "no task has cache=", fix)
    elif not amiss:
        yield Finding("switches", "ok", f"{plural(len(case.tasks), 'task')} cached and timed")


def _amiss(case: Case) -> Iterator[Finding]:
    if not case.fault and case.parts.mode.seems_off(Budget(ADMIN_BUDGET_S)):
        fix = "Switch it on again: celery control cache_mode on."
        yield Finding("switches", "warn", "cache_mode has switched the cache off: every call runs its body", fix)
    if off := [name for name, is_off in _switches(case) if is_off]:
        fix = "Unset it where this is not meant."
        yield Finding("switches", "warn", f"switched off here: {', '.join(off)}", fix)
    if useless := useless_policies(case.app):
        fix = "Give each base=CachedTask too."
        yield Finding("switches", "warn", f"cache= without the base class that reads it: {_listed(useless)}", fix)


def _switches(case: Case) -> Iterator[tuple[str, bool]]:
    yield "the cache (aicache_disabled)", case.settings.disabled
    yield "timings (aicache_samples)", case.settings.samples == "off"


def models(case: Case) -> Iterator[Finding]:
    """Does the key of each task say which model answers?"""
    ignored = [f"{task.name} ({name})" for task in case.tasks for name in _ignored(task) if _names_model(name)]
    silent = [task.name for task in case.tasks if not _says_model(task) and not any(map(_names_model, _ignored(task)))]
    if ignored:
        fix = "Take it out of ignore=: with another value the answer is another."
        yield Finding("models", "fail", f"the key leaves the model out: {_listed(ignored)}", fix)
    if silent:
        fix = "Name the model in vary=, or give version= and change it with the model."
        yield Finding("models", "warn", f"nothing in the key says which model answers: {_listed(silent)}", fix)
    if not ignored and not silent:
        yield Finding("models", "ok", "each task's key has its model or a version")


def _says_model(task: Any) -> bool:
    policy = task.cache_policy
    if policy.vary is not None or policy.version is not None:
        return True
    keyed = set(inspect.signature(task.run).parameters) - set(policy.ignore)
    return any(map(_names_model, keyed))


def _ignored(task: Any) -> tuple[str, ...]:
    return tuple(task.cache_policy.ignore)


def _names_model(name: str) -> bool:
    return any(word in name.lower() for word in MODEL_WORDS)


def pickle(case: Case) -> Iterator[Finding]:
    """Can a message run code?"""
    conf = case.app.conf
    taken = {*(conf.accept_content or ()), *(conf.result_accept_content or ())}
    sent = {conf.task_serializer, conf.result_serializer, *(task.serializer for task in case.tasks)}
    if PICKLES & (taken | sent):
        where = "accept_content" if PICKLES & taken else "a serializer"
        fix = "Use json; who can write to the broker runs code in every worker otherwise."
        yield Finding("pickle", "fail", f"{where} has pickle", fix)
    else:
        yield Finding("pickle", "ok", "no pickle in messages and results")


def results(case: Case) -> Iterator[Finding]:
    """Do results leak arguments?"""
    hiding = [task.name for task in case.tasks if task.cache_policy.redact]
    if case.app.conf.result_extended and hiding:
        fix = "Set result_extended=False."
        yield Finding(
            "results", "warn", f"result_extended stores the arguments of {_listed(hiding)} with each result", fix
        )
    else:
        yield Finding("results", "ok", "results are stored without arguments")


def redelivery(case: Case) -> Iterator[Finding]:
    """Is a call delivered again while its body still runs?"""
    if not any(url.startswith(("redis", "sentinel")) for url in case.broker_urls):
        return
    visible_s = (case.app.conf.broker_transport_options or {}).get("visibility_timeout", VISIBILITY_S)
    if not isinstance(visible_s, int | float) or math.isnan(visible_s):
        fix = "Give it seconds, a number: until then workers fail when they look for what to deliver again."
        yield Finding("redelivery", "fail", "visibility_timeout of broker_transport_options is no number", fix)
        return
    if visible_s == math.inf:  # kombu delivers none again
        return
    late = [(task, _limit_s(case.app, task)) for task in case.tasks if task.acks_late]
    long = [task.name for task, limit_s in late if limit_s > visible_s]
    if long:
        fix = "Give broker_transport_options a visibility_timeout that is longer than the time limit."
        said = f"{_listed(long)} may run longer than {duration(visible_s * 1e9)}, and is then delivered and paid again"
        yield Finding("redelivery", "warn", said, fix)
    elif late:
        yield Finding("redelivery", "ok", f"a message comes again after {duration(visible_s * 1e9)}")


def _limit_s(app: Any, task: Any) -> float:
    return float(task.time_limit or app.conf.task_time_limit or 0)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(label(name) for name in names[:MOST_NAMES]) + more
