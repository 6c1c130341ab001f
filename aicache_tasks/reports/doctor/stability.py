"""
Has a call a key, and the same one in every process?

In: the policies; a command that prints keys, run in processes that hash differently.   Out: findings; and those keys.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

from aicache_tasks.errors import KeyEncodingError
from aicache_tasks.policy import takes_arguments
from aicache_tasks.reports.doctor.case import Case, Finding, Level
from aicache_tasks.reports.wording import label, plural
from aicache_tasks.signals import steers

TEXT: Final = "a text that nobody wrote"
MADE_UP: Final[Mapping[str, Any]] = {
    "str": TEXT,
    "int": 1,
    "float": 1.5,
    "bool": True,
    "list": ["a", "b"],
    "dict": {"a": 1, "b": 2},
    "tuple": ["a", "b"],
    "set": ["a", "b"],
    "frozenset": ["a", "b"],
    "sequence": ["a", "b"],
    "mapping": {"a": 1, "b": 2},
}
"""Arguments by annotation, as a serializer delivers them; else a text."""
AROUND: Final = ("optional", "union", "annotated", "none", "nonetype")
"""Names in an annotation that say nothing of what is to be made up."""
WORD: Final = re.compile(r"([A-Za-z_][\w.]*)(?=(?:\[([^\]]*))?)")
"""A name in an annotation, and what follows it in brackets."""
MOST: Final = 5
MARK: Final = "aicache-keys: "
"""Begins the probe's line, among all that the application prints."""
RAISES: Final = "raises "
"""Begins what is said instead of a key, or of what `vary=` gives."""
UNFIT: Final = "made-up arguments do not fit"
"""Said instead of a key where an error may be of the arguments."""
UNFITTING: Final = (TypeError, ValueError, AttributeError, ArithmeticError)
"""What an argument of another type than was guessed makes a policy raise. A missing parameter is a KeyError."""
LACKING: Final = (*UNFITTING, KeyError, IndexError)
"""What a list or dict that holds other things than was guessed makes it raise."""
FEW: Final = ("1", "2")
MORE: Final = ("3", "4", "5", "6", "7", "8")
"""Hash seeds: any two order every other set of two alike."""
QUICK_S: Final = 3.0
"""How long `FEW` may take for `MORE` to be tried: some applications load gigabytes."""


def faults(case: Case) -> Iterator[Finding]:
    """Does each policy give keys in this process?"""
    fix = "Mend its cache=, or the settings here: without a key nothing is looked up, stored or invalidated."
    yield from _keyless("fail", "has no keys in this process", _faults(case), fix)
    fix = "Does it need what only a call has, such as a ContextVar? Else mend it, or the environment here."
    yield from _keyless("warn", "has no keys outside of a call", _raising(case), fix)


def _keyless(level: Level, what: str, found: Mapping[str, str], fix: str) -> Iterator[Finding]:
    for name in list(found)[:MOST]:
        yield Finding("policies", level, f"{label(name)} {what}: {found[name]}", fix)
    if len(found) > MOST:
        yield Finding("policies", level, f"the like of {plural(len(found) - MOST, 'more task')}", fix)


def _faults(case: Case) -> dict[str, str]:
    """Return why no call of a task has a key, by its name, where that can be told without a call."""
    told = {task.name: _fault(case.mine["tasks"][task.name]) for task in case.tasks}
    return {name: fault for name, fault in told.items() if fault}


def _fault(told: Mapping[str, Any]) -> str:
    if "error" in told:
        return label(str(told["error"]), 200)
    return f"vary= {told['vary']}" if told["vary"] == f"{RAISES}{KeyEncodingError.__name__}" else ""


def _raising(case: Case) -> dict[str, str]:
    """Return what of a task's policy raises here, by its name; a call may have what it needs."""
    sound = [task for task in case.tasks if not _fault(case.mine["tasks"][task.name])]
    told = {task.name: _raised(task, case.mine["tasks"][task.name]) for task in sound}
    return {name: raised for name, raised in told.items() if raised}


def _raised(task: Any, told: Mapping[str, Any]) -> str:
    policy = task.cache.policy
    asked = {"vary": str(told["vary"]), "tenant": _asked(policy.tenant, policy.tenant_of)}
    asked["tags"] = _asked(policy.tags, policy.tags_of)
    return ", ".join(f"{field}= {said}" for field, said in asked.items() if said.startswith(RAISES))


def _asked(given: Any, ask: Callable[[Mapping[str, Any]], Any]) -> str:
    """Return what *ask* raises; empty if it does not, or wants the arguments of a call."""
    return _said(partial(ask, {})) if callable(given) and not takes_arguments(given) else ""


def keys(case: Case) -> Iterator[Finding]:
    """Do processes with other hash seeds make the same keys?"""
    if not case.tasks:
        return
    if case.probe is None:
        fix = "Run it as celery -A app aicache doctor."
        yield Finding("keys", "warn", "not compared: how to run it in other processes cannot be told", fix)
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
    yield _alike(one, _raising(case), f"the same in {len(made)} processes with other hash seeds")


def _alike(made: Mapping[str, Any], known: Collection[str], what: str) -> Finding:
    """Say so, and of which tasks no key could be made; those *known* to raise outside of a call are told of."""
    raised = [f"{label(name)} {label(str(key))}" for name, key in made.items() if _is_raised(key) and name not in known]
    if raised:
        fix = "Does its task.cache.key() give one for real arguments? Else no call of it is cached."
        return Finding("keys", "warn", f"{what}, but with made-up arguments {', '.join(raised[:MOST])}", fix)
    unfit = [label(name) for name, key in made.items() if key == UNFIT]
    but = f", but for {', '.join(unfit[:MOST])} ({UNFIT})" if unfit else ""
    return Finding("keys", "ok", what + but)


def _is_raised(key: Any) -> bool:
    return str(key).startswith(RAISES)


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
    return {task.name: _told(task) for task in tasks}


def _told(task: Any) -> str:
    try:
        return _key(task)
    except Exception as error:  # the policy is the user's
        if steers(error):
            raise
        return UNFIT if _may_be_unfit(error, task) else f"{RAISES}{type(error).__name__}"


def _may_be_unfit(error: Exception, task: Any) -> bool:
    """Say whether *error* may be of the arguments that were made up, and not of the policy."""
    raised = error.__context__ if isinstance(error.__context__, KeyError) else error  # a tag template's ValueError
    if TEXT in f"{error} {raised}":
        return True
    if isinstance(error, KeyEncodingError):
        return False
    made_up = [_made_up(each.annotation, None) for each in _needed(task)]
    is_filled = any(isinstance(each, list | dict) for each in made_up)
    return isinstance(raised, LACKING if is_filled else UNFITTING if None in made_up else ())


def _key(task: Any) -> str:
    args, kwargs = _arguments(task)
    return str(task.cache.key(*args, **kwargs))


def _said(ask: Callable[[], Any]) -> str:
    """Return what *ask* returns, or which error it raises."""
    try:
        return str(ask())
    except Exception as error:  # vary=, tenant= and tags= are the user's
        if steers(error):
            raise
        return f"{RAISES}{type(error).__name__}"


def _arguments(task: Any) -> tuple[list[Any], dict[str, Any]]:
    needed = _needed(task)
    by_place = [_made_up(each.annotation) for each in needed if each.kind is each.POSITIONAL_ONLY]
    by_name = [each for each in needed if each.kind is not each.POSITIONAL_ONLY]
    return by_place, {each.name: _made_up(each.annotation) for each in by_name}


def _needed(task: Any) -> list[inspect.Parameter]:
    """Return the parameters that each call has to give."""
    parameters = inspect.signature(task.run).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each for each in parameters if each.default is each.empty and each.kind not in several]


def _made_up(annotation: Any, unknown: str | None = TEXT) -> Any:
    """Return what may be meant by *annotation*, of several types the first; *unknown* if it is none of `MADE_UP`.

    >>> [_made_up(one) for one in (list[str], int | None, "Optional[int]", "typing.Literal['a', 'b']", "Document")]
    [['a', 'b'], 1, 1, 'a', 'a text that nobody wrote']
    """
    told = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    for dotted, literal in WORD.findall(told):
        name = dotted.rpartition(".")[2].lower()
        if name == "literal":
            return _literal(literal, unknown)
        if name not in AROUND:
            return MADE_UP.get(name, unknown)
    return unknown


def _literal(told: str, unknown: str | None) -> Any:
    with suppress(ValueError, SyntaxError):
        return ast.literal_eval(f"({told},)")[0]
    return unknown
