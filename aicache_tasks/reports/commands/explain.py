"""
``explain``: why a call hits or misses.

In: a task and its arguments.   Out: its status, what its key is made of, and what it means; no argument's value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from aicache_tasks.reports.commands.base import as_json as json_option
from aicache_tasks.reports.commands.base import command, echo_json, screen_of
from aicache_tasks.reports.commands.calls import explained, of_a_call, task_of
from aicache_tasks.reports.wording import NOTHING, duration, label, size
from aicache_tasks.taskcache import Explanation

WHY: Final[Mapping[tuple[str, str], str]] = {
    ("hit", ""): "the call is answered from the cache",
    ("miss", "key_not_found"): (
        "nothing is stored under its key: it was not called with exactly these arguments under this version, its "
        "answer was refused (`summaries --by operation,reason` says why), or has expired or been evicted since"
    ),
    ("miss", "expired"): "its answer's lifetime has ended",
    ("miss", "invalidated"): "its answer was stored before an invalidation: of it, its operation, a tag of it, or all",
    ("miss", "corrupt"): "what was stored is damaged, or the policy's validate= refuses it",
    ("disabled", ""): (
        "the cache is switched off: every call runs its body. Unless aicache_disabled is set, "
        "`celery control cache_mode on` switches it on again"
    ),
}


@command
@of_a_call(needs_task=True)
@json_option
def explain(ctx: click.Context, task: str, args: list[Any], kwargs: dict[str, Any], as_json: bool) -> None:
    """Say why a call hits or misses.

    TASK is a task's name or its operation. Runs nothing, and does not count as a look-up. The arguments are keyed as
    a worker gets them; what is shown has the names of the keyed ones, and no value.
    """
    found = explained(ctx, task_of(ctx, task), args, kwargs)
    if as_json:
        echo_json(found._asdict() | {"why": why(found)})
        return
    screen = screen_of(ctx)
    screen.line(f"{found.status}: {why(found)}")
    for name, value in _lines(found):
        screen.line(f"{name:<11}{value}")


def why(found: Explanation) -> str:
    """Return what an explanation means."""
    return WHY.get((found.status, found.reason)) or label(found.reason or found.status, 300)


def _lines(found: Explanation) -> Iterator[tuple[str, str]]:
    yield "operation", label(found.operation)
    yield "version", NOTHING if found.version is None else label(str(found.version))
    if not found.key:
        return
    yield "key", label(found.key, 200)
    yield "keyed", _names(found.keyed)
    yield "ignored", _names(found.ignored)
    yield "tags", _names(found.tags)
    yield "lifetime", duration(found.ttl_s * 1e9)
    if found.status == "hit":
        yield "stored", f"{duration(found.age_s * 1e9)} ago, {size(found.stored_bytes)}"


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(label(name) for name in names) or NOTHING
