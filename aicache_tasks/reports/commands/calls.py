"""
What the commands that speak of one task, or of answers in force, share.

In: a task's name or operation, arguments as JSON.   Out: the task; whether the user means it.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aicache_tasks.errors import StoreUnavailable
from aicache_tasks.prices import tokens_in
from aicache_tasks.records import CacheEntry
from aicache_tasks.reports.commands.base import Misused, Nothing, Unanswered, reader_of, unanswered
from aicache_tasks.reports.refusals import is_too_late, what_helps
from aicache_tasks.reports.wording import duration, label, money, number, plural
from aicache_tasks.runtime import cached_tasks, runtime_of
from aicache_tasks.summary import SummaryRecord
from aicache_tasks.taskcache import Explanation

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:
    _Anything = click.ParamType[Any]
else:  # of an older click it takes no type
    _Anything = click.ParamType


class _Json(_Anything):
    """JSON of one kind. What is wrong is said without what was given, which may be a prompt."""

    def __init__(self, kind: type, name: str) -> None:
        self._kind, self.name = kind, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return what the JSON in *value* says."""
        if isinstance(value, self._kind):
            return value
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            self.fail(f"no JSON; write {self.name}", param, ctx)
        if not isinstance(found, self._kind):
            self.fail(f"not {self.name}", param, ctx)
        return found


def of_a_call(*, needs_task: bool) -> Callable[[F], F]:
    """Add ``TASK``, ``--args`` and ``--kwargs``."""

    def add(function: F) -> F:
        kwargs = _Json(dict, 'an object, such as {"max_length": 50}')
        args = _Json(list, 'an array, such as ["a text"]')
        function = click.option(
            "--kwargs", type=kwargs, default="{}", metavar="JSON", help="Its keyword arguments, an object."
        )(function)
        function = click.option(
            "--args", type=args, default="[]", metavar="JSON", help="The call's arguments, an array."
        )(function)
        return click.argument("task", required=needs_task, metavar="TASK" if needs_task else "[TASK]")(function)

    return add


def confirmed(function: F) -> F:
    """Add ``--yes``."""
    return click.option("--yes", is_flag=True, help="Do it without asking.")(function)


def task_of(ctx: click.Context, name: str) -> Any:
    """Return the task of that name or operation.

    Raises:
        click.ClickException: there is none, it has no ``cache=``, or several have the operation.
    """
    reader_of(ctx)  # says what is wrong with the application and its settings
    tasks = cached_tasks(loaded(ctx))
    found = [task for task in tasks if task.name == name] or [task for task in tasks if operation_of(task) == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise Misused(f"several tasks have the operation {label(name)}: {', '.join(task.name for task in found)}")
    if name in ctx.obj.app.tasks:
        raise Misused(f"the task {label(name)} has no cache=")
    raise _unknown("task with cache=", name, {*(task.name for task in tasks), *map(operation_of, tasks)})


def loaded(ctx: click.Context) -> Any:
    """Return the application with all its tasks, also those that only a worker imports."""
    app = ctx.obj.app
    app.loader.import_default_modules()
    app.finalize()
    return app


def operation_of(task: Any) -> str:
    """Return the operation of a cached task."""
    return str(task.cache_policy.operation or task.name)


def known_operation(ctx: click.Context, operation: str, recorded: Iterable[str]) -> str:
    """Return *operation*, if a task has it or there are records of it.

    Raises:
        click.ClickException: neither; a misspelt name would do nothing, and look as if it did.
    """
    known = {*map(operation_of, cached_tasks(loaded(ctx))), *recorded} - {""}
    if operation not in known:
        raise _unknown("operation", operation, known)
    return operation


def _unknown(what: str, name: str, known: Iterable[str]) -> Misused:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {label(near[0])}?" if near else f"there are {_listed(names)}" if names else "there is none"
    return Misused(f"no {what} {label(name)}; {hint}")


def _listed(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(map(label, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def explained(ctx: click.Context, task: Any, args: list[Any], kwargs: dict[str, Any]) -> Explanation:
    """Return why a call hits or misses.

    Raises:
        click.ClickException: the task cannot be called like this, or the server does not answer.
    """
    try:
        found: Explanation = task.cache.explain(*args, **kwargs)
    except TypeError as error:  # of the signature: it has the names of parameters only
        raise Misused(f"{label(task.name)} cannot be called like this: {label(str(error), 200)}") from None
    if found.status == "error":
        raise Unanswered(_unanswered(task, found))
    return found


def _unanswered(task: Any, found: Explanation) -> str:
    """Say what the server did where a look-up was tried, which has a call's budget and reads answers."""
    url = runtime_of(task.app).settings.url or ""
    error = StoreUnavailable(found.detail or found.reason, answered=found.reason == "redis_error")
    helps = what_helps(error, url)
    if is_too_late(error):
        helps = f"{helps} AICACHE_BUDGET_MS=5000 in the environment waits longer."
    elif "NOPERM" in found.detail:
        helps = f"{helps} This reads a stored answer, which the worker's login may, and the observer's may not."
    return unanswered(error, url, helps)


def confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal, unless *yes*.

    Raises:
        click.ClickException: there is nobody to ask, or the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise Misused(f"{question} Say --yes: there is no terminal to ask on")
    if not click.confirm(question, err=True):
        raise Nothing("nothing was changed")


def worth(record: SummaryRecord, currency: str = "") -> str:
    """Return what the answers were good for so far.

    >>> worth(SummaryRecord("shout", "total", 0))
    'saved nothing so far'
    """
    if not record.hits:
        return "saved nothing so far"
    saved, tokens = record.saved, tokens_in(record.saved.tokens)
    parts = [duration(saved.compute_ns)]
    parts += [f"{number(tokens)} tokens"] if tokens else []
    parts += [f"a cost of {money(saved.cost_micros / 1e6, currency)}"] if saved.cost_micros else []
    return f"{plural(record.hits, 'hit')} saved {', '.join(parts)}"


def cost_of(entry: CacheEntry, currency: str = "") -> str:
    """Return what it took to compute a stored answer."""
    tokens = tokens_in(entry.usage)
    parts = [duration(entry.compute_s * 1e9)]
    parts += [f"{number(tokens)} tokens"] if tokens else []
    parts += [f"a cost of {money(entry.cost, currency)}"] if entry.cost else []
    return ", ".join(parts)


def worth_json(record: SummaryRecord) -> dict[str, Any]:
    """Return the same as plain JSON data."""
    data = record.as_json(sketches=False)
    return {"hits": data["hits"], **data["saved"]}
