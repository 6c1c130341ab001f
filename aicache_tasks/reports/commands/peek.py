"""
``peek``: the stored answer of one call.

In: a task and its arguments.   Out: the entry's age, size and origin; the answer itself only when asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from aicache_tasks.records import CacheEntry
from aicache_tasks.reports.commands.base import Nothing, command, echo_json, screen_of
from aicache_tasks.reports.commands.base import as_json as json_option
from aicache_tasks.reports.commands.calls import explained, of_a_call, task_of
from aicache_tasks.reports.commands.explain import why
from aicache_tasks.reports.wording import duration, label, money, number, size
from aicache_tasks.runtime import runtime_of


@command
@of_a_call(needs_task=True)
@click.option("--show-value", is_flag=True, help="Show the answer too: it may be personal.")
@json_option
def peek(
    ctx: click.Context, task: str, args: list[Any], kwargs: dict[str, Any], show_value: bool, as_json: bool
) -> None:
    """Show the stored answer of one call.

    TASK is a task's name or its operation. Runs nothing, and does not count as a look-up. The answer itself is shown
    with --show-value only.
    """
    named = task_of(ctx, task)
    found = explained(ctx, named, args, kwargs)
    entry = named.cache.peek(*args, **kwargs) if found.status in ("hit", "disabled") else None
    if entry is None and not as_json:
        raise Nothing(f"no answer is stored for this call: {why(found)}")
    if as_json:
        echo_json({"status": found.status, "reason": found.reason, "entry": entry and _json(entry, show_value)})
        return
    assert entry is not None
    screen = screen_of(ctx)
    for name, value in _lines(entry, runtime_of(named.app).settings.currency):
        screen.line(f"{name:<12}{value}")
    if show_value:
        screen.line()
        screen.line(_text(entry.value))


def _lines(entry: CacheEntry, currency: str) -> Iterator[tuple[str, str]]:
    yield "operation", label(entry.operation)
    yield "key", label(entry.key, 200)
    yield "stored", f"{duration(entry.age_s * 1e9)} ago, for another {duration(entry.ttl_s * 1e9)}"
    yield "size", f"{size(entry.raw_bytes)}, {size(entry.stored_bytes)} as it is stored"
    yield "computed in", duration(entry.compute_s * 1e9)
    if entry.model is not None:
        yield "model", label(entry.model)
    if entry.usage:
        yield "usage", ", ".join(f"{label(kind)} {number(count)}" for kind, count in sorted(entry.usage.items()))
    if entry.cost is not None:
        by = f", by prices {label(entry.prices)}" if entry.prices else ""
        yield "cost", f"{money(entry.cost, currency)}{by}"


def _json(entry: CacheEntry, show_value: bool) -> dict[str, Any]:
    data = entry._asdict()
    value = data.pop("value")
    usage = None if entry.usage is None else dict(entry.usage)
    return data | {"usage": usage} | ({"value": _plain(value)} if show_value else {})


def _text(value: Any) -> str:
    return json.dumps(_plain(value), indent=2)


def _plain(value: Any) -> Any:
    """Return *value* as plain JSON data; what JSON does not have as Python shows it."""
    try:
        return json.loads(json.dumps(value, default=ascii, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return ascii(value)
