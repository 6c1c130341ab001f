"""
``invalidate``: take answers out of force.

In: one call, an operation, a tag, a pattern, or all.   Out: what went, and what it had saved, or taken to compute.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import click

from aicache_tasks.cache import AIResponseCache
from aicache_tasks.errors import UnknownPayload
from aicache_tasks.policy import matching
from aicache_tasks.records import CacheEntry
from aicache_tasks.reports.commands.base import Misused, Nothing, command, echo_json, place_of, reader_of, screen_of
from aicache_tasks.reports.commands.base import as_json as json_option
from aicache_tasks.reports.commands.calls import (
    confirm,
    confirmed,
    cost_of,
    explained,
    known_operation,
    loaded,
    of_a_call,
    task_of,
    worth,
    worth_json,
)
from aicache_tasks.reports.queries import total_of
from aicache_tasks.reports.wording import label, plural
from aicache_tasks.runtime import runtime_of
from aicache_tasks.summary import SummaryRecord

CONTEXT: Final = "celery aicache"
"""What the timings of it say about who did it."""


class Plan(NamedTuple):
    """What would be done."""

    what: str
    """For people."""
    names: Sequence[str]
    """Operations and tags."""
    record: SummaryRecord | None
    """What it saved so far; None where that is not known."""
    do: Callable[[], object]
    entry: CacheEntry | None = None
    """Of one call."""


@command
@of_a_call(needs_task=False)
@click.option("--operation", metavar="NAME", help="Every answer of this operation.")
@click.option("--tag", metavar="NAME", help="Every answer with this tag.")
@click.option(
    "--pattern", metavar="PATTERN", help="Every operation and fixed tag that matches whole; * and ? match any."
)
@click.option("--all", "everything", is_flag=True, help="Every answer of the namespace.")
@confirmed
@json_option
def invalidate(
    ctx: click.Context,
    task: str | None,
    args: list[Any],
    kwargs: dict[str, Any],
    operation: str | None,
    tag: str | None,
    pattern: str | None,
    everything: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Take answers out of force.

    One call of TASK (a task's name or its operation), with its arguments; or one of --operation, --tag, --pattern,
    --all. It is in force when this returns, in a worker's memory within a second. Bytes stay until their lifetime
    ends: `purge` erases them. Asks first; says what the answers have saved so far, of one call what its answer took.
    """
    asked = [what for what in (task, operation, tag, pattern, everything or None) if what is not None]
    if len(asked) != 1:
        raise Misused("say one of TASK, --operation, --tag, --pattern and --all")
    if "" in asked:
        raise Misused("an empty name names nothing: is a variable of your script empty?")
    if (args or kwargs) and task is None:
        raise Misused("--args and --kwargs are of a call: name its TASK")
    if task is not None:
        plan = _call(ctx, task, args, kwargs)
    elif pattern is not None:
        plan = _matching(ctx, pattern)
    else:
        plan = _renewing(ctx, operation, tag)
    currency = runtime_of(loaded(ctx)).settings.currency
    described = _described(plan, currency)
    confirm(f"Invalidate {described}?", yes=yes)
    done = plan.do()
    if as_json:
        said = {"invalidated": list(plan.names), "was_stored": done if task else None, "currency": currency}
        echo_json(said | _worth_json(plan))
        return
    screen_of(ctx).line(f"invalidated {described}" if done is not False else "no answer was stored for this call")


def _described(plan: Plan, currency: str) -> str:
    if plan.entry is not None:
        return f"{plan.what} (its answer took {cost_of(plan.entry, currency)})"
    return plan.what if plan.record is None else f"{plan.what} ({worth(plan.record, currency)})"


def _worth_json(plan: Plan) -> dict[str, Any]:
    entry = plan.entry
    took = entry and {"seconds": entry.compute_s, "tokens": dict(entry.usage or {}), "cost": entry.cost}
    return {"had_saved": None if plan.record is None else worth_json(plan.record), "had_taken": took}


def _call(ctx: click.Context, name: str, args: list[Any], kwargs: dict[str, Any]) -> Plan:
    task = task_of(ctx, name)
    found = explained(ctx, task, args, kwargs)
    if not found.key:
        raise Nothing(f"this call has no key, and no answer: {label(found.reason or found.status, 300)}")
    do = functools.partial(task.cache.invalidate, *args, **kwargs)
    return Plan(f"this call of {label(found.operation)}", [found.operation], None, do, task.cache.peek(*args, **kwargs))


def _renewing(ctx: click.Context, operation: str | None, tag: str | None) -> Plan:
    totals, cache = _totals(ctx), _cache(ctx)
    if tag is not None:
        what = f"every answer with the tag {label(tag)}"
        return Plan(what, [tag], None, lambda: cache.invalidate_by_tag(tag, CONTEXT))
    if operation is None:
        what, record = f"every answer in {place_of(ctx)}", _total(totals, totals)
        return Plan(what, sorted(filter(None, totals)), record, lambda: cache.invalidate_all(CONTEXT))
    known_operation(ctx, operation, totals)
    what, record = f"every answer of {label(operation)}", _total(totals, [operation])
    return Plan(what, [operation], record, lambda: cache.invalidate_by_operation(operation, CONTEXT))


def _matching(ctx: click.Context, pattern: str) -> Plan:
    totals, policies = _totals(ctx), runtime_of(loaded(ctx)).policies
    cache = _cache(ctx)
    operations = matching(pattern, {*policies.operations(), *filter(None, totals)})
    tags = matching(pattern, policies.tags())
    if not operations and not tags:
        raise Nothing(f"no operation and no fixed tag matches {label(pattern)}")

    def do() -> None:
        for operation in operations:
            cache.invalidate_by_operation(operation, CONTEXT)
        for tag in tags:
            cache.invalidate_by_tag(tag, CONTEXT)

    counted = " and ".join(plural(len(n), of) for n, of in ((operations, "operation"), (tags, "tag")) if n)
    what = f"{counted}: {', '.join(map(label, [*operations, *tags]))}"
    return Plan(what, [*operations, *tags], _total(totals, operations), do)


def _totals(ctx: click.Context) -> Mapping[str, SummaryRecord | None]:
    """Return each operation's totals; None where a newer version wrote some: answers can go all the same."""
    reader = reader_of(ctx)
    try:
        return reader.live().totals
    except UnknownPayload:
        return dict.fromkeys(reader.summaries.operations())


def _total(totals: Mapping[str, SummaryRecord | None], operations: Iterable[str]) -> SummaryRecord | None:
    found = [totals[name] for name in operations if name in totals]
    known = [record for record in found if record is not None]
    return total_of(known) if len(known) == len(found) else None


def _cache(ctx: click.Context) -> AIResponseCache:
    return runtime_of(loaded(ctx)).cache
