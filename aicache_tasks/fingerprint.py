"""
A fingerprint of a task's body, to notice that the code changed and its version did not.

In: a function.   Out: 16 hex digits over its source without comments, layout, docstrings and decorators, or over its
bytecode where the source is not at hand. Only the body itself: not what it calls. Pure.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from types import CodeType
from typing import Any


def fingerprint(function: Callable[..., Any]) -> str:
    """Return 16 hex digits that change when the body of *function* does.

    >>> fingerprint(lambda: 1) == fingerprint(lambda: 1)
    True
    """
    target = inspect.unwrap(function)
    target = getattr(target, "__func__", target)
    text = _source(target) or _code(getattr(target, "__code__", None)) or _name(target)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _name(target: Any) -> str:
    """The best that can be said of a builtin or of an object that can be called."""
    named = target if hasattr(target, "__qualname__") else type(target)
    return f"{named.__module__}.{named.__qualname__}"


def _source(function: Callable[..., Any]) -> str:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return ""
    found = next((node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))), None)
    if found is None:  # a lambda shares its line with other code
        return ""
    found.decorator_list = []
    for node in ast.walk(found):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            _drop_docstring(node)
    return ast.unparse(found)


def _drop_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:] or [ast.Pass()]


def _code(code: CodeType | None) -> str:
    if code is None:
        return ""
    return "\n".join([code.co_code.hex(), *code.co_names, *code.co_varnames, *map(_constant, code.co_consts)])


def _constant(constant: Any) -> str:
    """Return a constant as text that is the same in every process: sets have no order of their own."""
    if isinstance(constant, CodeType):
        return _code(constant)
    if isinstance(constant, frozenset):
        return f"frozenset:{sorted(map(_constant, constant))}"
    if isinstance(constant, tuple):
        return f"tuple:{list(map(_constant, constant))}"
    return f"{type(constant).__name__}:{constant!r}"
