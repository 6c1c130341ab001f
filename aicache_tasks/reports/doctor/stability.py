"""
Has the same call the same key in every process?

In: a command that prints keys, run in two processes that hash differently.   Out: findings; and those keys.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from aicache_tasks.errors import AICacheError
from aicache_tasks.reports.doctor.case import SEEDS, Case, Finding
from aicache_tasks.reports.wording import label
from aicache_tasks.signals import steers

MADE_UP: Final[Mapping[Any, Any]] = {
    int: 1,
    float: 1.5,
    bool: True,
    list: ["a", "b"],
    dict: {"a": 1, "b": 2},
    tuple: ["a", "b"],
    set: ["a", "b"],
    "int": 1,
    "float": 1.5,
    "bool": True,
}
"""Arguments by annotation, as a serializer delivers them; else a text."""
TEXT: Final = "a text that nobody wrote"
MOST: Final = 5
MARK: Final = "aicache-keys: "
"""Begins the probe's line, among all that the application prints."""


def keys(case: Case) -> Iterator[Finding]:
    """Do two processes with other hash seeds make the same keys?"""
    if case.probe is None or not case.tasks:
        return
    found = [made for made in map(told_by, case.probed) if made is not None]
    if len(found) < len(SEEDS):
        fix = "Does its module import in a fresh process, with the same environment?"
        yield Finding("keys", "warn", "a second process could not make keys", fix)
        return
    one, two = found
    differing = [name for name in one if one[name] != two.get(name)]
    if differing:
        names = ", ".join(map(label, differing[:MOST]))
        fix = "Look for hash(), id(), a set's order, the time or a random number in vary=, tenant= and defaults."
        yield Finding("keys", "fail", f"another key in each process: {names}", fix)
        return
    untold = [name for name, key in one.items() if key is None]
    but = f", but for {', '.join(map(label, untold[:MOST]))}: no made-up arguments fit" if untold else ""
    yield Finding("keys", "ok", f"the same in two processes with other hash seeds{but}")


def marked(made: Mapping[str, str | None]) -> str:
    """Return what the probe prints: *made*, in a line of its own whatever was printed before.

    >>> told_by("hello" + marked({"shout": "k1"}) + "bye")
    {'shout': 'k1'}
    """
    return f"\n{MARK}{json.dumps(made)}\n"


def told_by(text: str) -> dict[str, Any] | None:
    """Return the keys that a process which printed *text* made; None if it told of none."""
    told = [line.removeprefix(MARK) for line in text.splitlines() if line.startswith(MARK)]
    try:
        made = json.loads(told[-1]) if told else None
    except ValueError:
        return None
    return made if isinstance(made, dict) else None


def keys_of(tasks: list[Any]) -> dict[str, str | None]:
    """Return the key of a call of each task with made-up arguments; None where these do not fit."""
    return {task.name: _key(task) for task in tasks}


def _key(task: Any) -> str | None:
    try:
        return str(task.cache.key(**_arguments(task)))
    except AICacheError:
        return None
    except Exception as error:  # vary=, tenant= and tags= are the user's, and the arguments are not
        if steers(error):
            raise
        return None


def _arguments(task: Any) -> dict[str, Any]:
    needed = [
        parameter
        for parameter in inspect.signature(task.run).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    return {parameter.name: _made_up(parameter.annotation) for parameter in needed}


def _made_up(annotation: Any) -> Any:
    try:
        return MADE_UP.get(annotation, TEXT)
    except TypeError:  # it cannot be hashed
        return TEXT
