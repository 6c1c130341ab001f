"""
Bind a call's arguments to a task's own signature, fast.

In: a signature and the names that play a part.   Out: a function from ``(*args, **kwargs)`` to
``(text, question, options)``, made once per task, that raises the same TypeError as the task would. Pure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from aicache_tasks.errors import SettingsError

Bound = tuple[Any, Any, dict[str, Any]]
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def make_binder(
    signature: inspect.Signature,
    *,
    text_arg: str | None = None,
    question_arg: str | None = None,
    ignore: Sequence[str] = (),
) -> Callable[..., Bound]:
    """Return a function that binds a call.

    Args:
        signature: of the task, without ``self``.
        text_arg: parameter that holds the text; by default ``text`` if there is one.
        question_arg: parameter that holds the question; by default ``question`` if there is one.
        ignore: parameters (or extra keywords) that are left out.

    Raises:
        SettingsError: a name that the signature does not have.

    >>> bind = make_binder(inspect.signature(lambda text, *, max_length=100, trace_id=None: 0), ignore=("trace_id",))
    >>> bind("hello", trace_id=7)
    ('hello', None, {'max_length': 100})
    """
    names = _named(signature)
    text, question = _part(names, "text_arg", text_arg, "text"), _part(names, "question_arg", question_arg, "question")
    _check_ignored(signature, names, ignore, (text, question))
    rest = [name for name in names if name not in {text, question, *ignore}]
    options = ", ".join([*(f"{name!r}: {name}" for name in rest), *_variadic(signature)])
    return _compile(signature, f"{text}, {question}, {{{options}}}", frozenset(ignore))


def make_mapper(signature: inspect.Signature) -> Callable[..., dict[str, Any]]:
    """Return a function that binds a call to one mapping of every argument, defaults filled in."""
    options = ", ".join([*(f"{name!r}: {name}" for name in _named(signature)), *_variadic(signature)])
    return _compile(signature, f"{{{options}}}", frozenset())


def option_defaults(
    signature: inspect.Signature, *, text_arg: str | None = None, question_arg: str | None = None
) -> dict[str, Any]:
    """Return the defaults of the parameters that are options."""
    parts = {text_arg or "text", question_arg or "question"}
    named = {name: signature.parameters[name].default for name in _named(signature) if name not in parts}
    return {name: default for name, default in named.items() if default is not inspect.Parameter.empty}


def _named(signature: inspect.Signature) -> list[str]:
    return [name for name, p in signature.parameters.items() if p.kind not in _VARIADIC]


def _part(names: Sequence[str], field: str, given: str | None, usual: str) -> str | None:
    if given is None:
        return usual if usual in names else None
    if given not in names:
        raise SettingsError(f"cache {field}: the task has no parameter {given!r}; it has {', '.join(names) or 'none'}")
    return given


def _check_ignored(
    signature: inspect.Signature, names: Sequence[str], ignore: Sequence[str], parts: tuple[str | None, str | None]
) -> None:
    extra = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    for name in ignore:
        if name in parts:
            raise SettingsError(f"cache ignore: {name!r} is the text or the question; the answer depends on it")
        if name not in names and not extra:
            raise SettingsError(
                f"cache ignore: the task has no parameter {name!r}; it has {', '.join(names) or 'none'}"
            )


def _variadic(signature: inspect.Signature) -> list[str]:
    """Return the entries for ``*args`` and ``**kwargs``.

    Extra keywords lie flat beside the named ones, unless a name could then stand for two things.
    """
    kinds = {p.kind: name for name, p in signature.parameters.items()}
    entries = []
    if (many := kinds.get(inspect.Parameter.VAR_POSITIONAL)) is not None:
        entries.append(f"'*': {many}")
    if (extra := kinds.get(inspect.Parameter.VAR_KEYWORD)) is not None:
        kept = f"{{_k: _v for _k, _v in {extra}.items() if _k not in {_ignored_name(signature)}}}"
        ambiguous = many is not None or inspect.Parameter.POSITIONAL_ONLY in kinds
        entries.append(f"'**': {kept}" if ambiguous else f"**{kept}")
    return entries


def _ignored_name(signature: inspect.Signature) -> str:
    """Return a name for the ignored names that no parameter has."""
    return "_ignored_" + "_".join(signature.parameters)


def _compile(signature: inspect.Signature, result: str, ignored: frozenset[str]) -> Callable[..., Any]:
    scope: dict[str, Any] = {_ignored_name(signature): ignored}
    parameters = [_bare(p, scope) for p in signature.parameters.values()]
    header = str(inspect.Signature(parameters))
    source = f"def bind{header}:\n    return {result}\n"
    exec(compile(source, "<aicache binder>", "exec"), scope)  # noqa: S102 - the source is made of identifiers only
    function: Callable[..., Any] = scope["bind"]
    return function


class _Name(str):
    """A default that prints as a bare name."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _bare(parameter: inspect.Parameter, scope: dict[str, Any]) -> inspect.Parameter:
    if parameter.default is inspect.Parameter.empty:
        return parameter.replace(annotation=inspect.Parameter.empty)
    name = f"_default_{len(scope)}"
    scope[name] = parameter.default
    return parameter.replace(annotation=inspect.Parameter.empty, default=_Name(name))
