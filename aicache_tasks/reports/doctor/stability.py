"""
Has a call a key, and the same one in every process?

In: the policies; a command that prints keys, run in processes that hash differently.   Out: findings; and those keys.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from aicache_tasks.policy import takes_arguments
from aicache_tasks.reports.doctor.case import Case, Finding
from aicache_tasks.reports.wording import label, plural
from aicache_tasks.signals import steers

MADE_UP: Final[Mapping[str, Any]] = {
    "int": 1,
    "float": 1.5,
    "bool": True,
    "list": ["a", "b"],
    "dict": {"a": 1, "b": 2},
    "tuple": ["a", "b"],
    "set": ["a", "b"],
}
"""Arguments by annotation, as a serializer delivers them; else a text."""
TEXT: Final = "a text that nobody wrote"
MOST: Final = 5
MARK: Final = "aicache-keys: "
"""Begins the probe's line, among all that the application prints."""
RAISES: Final = "raises "
"""Begins what is said instead of a key, or of what `vary=` gives."""
FEW: Final = ("1", "2")
MORE: Final = ("3", "4", "5", "6", "7", "8")
"""Hash seeds: any two order every other set of two alike."""
QUICK_S: Final = 3.0
"""How long `FEW` may take for `MORE` to be tried: some applications load gigabytes."""


def faults(case: Case) -> Iterator[Finding]:
    """Does each policy give keys in this process?"""
    found = _faults(case)
    fix = "Mend its cache=, or the environment here: without a key nothing is looked up, stored or invalidated."
    for name in list(found)[:MOST]:
        yield Finding("policies", "fail", f"{label(name)} has no keys in this process: {found[name]}", fix)
    if len(found) > MOST:
        yield Finding("policies", "fail", f"no keys of {plural(len(found) - MOST, 'more task')} either", fix)


def _faults(case: Case) -> dict[str, str]:
    """Return why no call of a task has a key, by its name, where that can be told without a call."""
    told = {task.name: _fault(task, case.mine["tasks"][task.name]) for task in case.tasks}
    return {name: fault for name, fault in sorted(told.items()) if fault}


def _fault(task: Any, told: Mapping[str, Any]) -> str:
    if "error" in told:
        return label(str(told["error"]), 200)
    policy = task.cache.policy
    asked = {"vary": str(told["vary"]), "tenant": _asked(policy.tenant, policy.tenant_of)}
    asked["tags"] = _asked(policy.tags, policy.tags_of)
    return ", ".join(f"{field}= {said}" for field, said in asked.items() if said.startswith(RAISES))


def _asked(given: Any, ask: Callable[[Mapping[str, Any]], Any]) -> str:
    """Return what *ask* raises; empty if it does not, or wants the arguments of a call."""
    return _said(partial(ask, {})) if callable(given) and not takes_arguments(given) else ""


def keys(case: Case) -> Iterator[Finding]:
    """Do processes with other hash seeds make the same keys?"""
    if case.probe is None or not case.tasks:
        return
    made = _made(case)
    if None in made:
        fix = "Does its module import in a fresh process, with the same environment?"
        yield Finding("keys", "warn", "a second process could not make keys", fix)
        return
    one, *others = [told for told in made if told is not None]
    differing = [name for name in one if any(one[name] != other.get(name) for other in others)]
    if differing:
        names = ", ".join(map(label, differing[:MOST]))
        fix = "Look for hash(), id(), a set's order, the time or a random number in vary=, tenant= and defaults."
        yield Finding("keys", "fail", f"another key in each process: {names}", fix)
        return
    yield _alike(one, f"the same in {len(made)} processes with other hash seeds")


def _alike(made: Mapping[str, Any], what: str) -> Finding:
    raised = [f"{label(name)} {label(str(key))}" for name, key in made.items() if str(key).startswith(RAISES)]
    if not raised:
        return Finding("keys", "ok", what)
    fix = "Does its task.cache.key() give one for real arguments? Else no call of it is cached."
    return Finding("keys", "warn", f"{what}, but with made-up arguments {', '.join(raised[:MOST])}", fix)


def _made(case: Case) -> list[dict[str, Any] | None]:
    """Return the keys of each process; None for one that told of none."""
    began = time.monotonic()
    few = [told_by(text) for text in case.printed(FEW)]
    if None in few or few[0] != few[1] or time.monotonic() - began > QUICK_S:
        return few
    return few + [told_by(text) for text in case.printed(MORE)]


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


def keys_of(tasks: list[Any]) -> dict[str, str]:
    """Return the key of a call of each task with made-up arguments; where these do not fit, what it raises."""
    return {task.name: _said(partial(_key, task)) for task in tasks}


def _key(task: Any) -> str:
    args, kwargs = _arguments(task)
    return str(task.cache.key(*args, **kwargs))


def _said(ask: Callable[[], Any]) -> str:
    """Return what *ask* returns, or which error it raises."""
    try:
        return str(ask())
    except Exception as error:  # vary=, tenant= and tags= are the user's, and the arguments are not
        if steers(error):
            raise
        return f"{RAISES}{type(error).__name__}"


def _arguments(task: Any) -> tuple[list[Any], dict[str, Any]]:
    needed = [each for each in inspect.signature(task.run).parameters.values() if each.default is each.empty]
    by_place = [_made_up(each.annotation) for each in needed if each.kind is each.POSITIONAL_ONLY]
    by_name = [each for each in needed if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    return by_place, {each.name: _made_up(each.annotation) for each in by_name}


def _made_up(annotation: Any) -> Any:
    name = str(getattr(annotation, "__name__", annotation))  # an annotation may be a text
    return MADE_UP.get(name.partition("[")[0].lower(), TEXT)
