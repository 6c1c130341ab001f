"""A body's fingerprint changes with what it does, and with nothing else."""

from __future__ import annotations

import functools
import linecache
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from aicache_tasks.fingerprint import fingerprint

PLAIN = "def body(text, size=1):\n    return text * size\n"


@pytest.fixture
def body() -> Callable[[str], Any]:
    """Return a function that makes a function ``body`` whose source can be read, as from a file."""
    made = 0

    def make(source: str) -> Any:
        nonlocal made
        made += 1
        name, source = f"<body {id(source)} {made}>", textwrap.dedent(source)
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        scope: dict[str, Any] = {"functools": functools, "same": lambda function: function}
        exec(compile(source, name, "exec"), scope)
        return scope["body"]

    return make


@pytest.mark.parametrize(
    "source",
    [
        "def body(text, size=1):\n    # a comment\n    return text * size\n",
        "def body( text , size = 1 ) :\n\n    return (text   *   size)\n",
        'def body(text, size=1):\n    """A docstring."""\n    return text * size\n',
        "@same\ndef body(text, size=1):\n    return text * size\n",
        "if True:\n    def body(text, size=1):\n        return text * size\n",
    ],
    ids=["comment", "layout", "docstring", "decorator", "indented"],
)
def test_what_does_not_change_the_answer_does_not_change_it(body: Callable[[str], Any], source: str) -> None:
    assert fingerprint(body(source)) == fingerprint(body(PLAIN))


@pytest.mark.parametrize(
    "source",
    [
        "def body(text, size=1):\n    return text * size + text\n",
        "def body(text, size=2):\n    return text * size\n",
        "def body(text, size=1):\n    return text.upper() * size\n",
        "def body(text, *, size=1):\n    return text * size\n",
        "def body(text, size=1):\n    def inner():\n        return 1\n    return text * size\n",
        "async def body(text, size=1):\n    return text * size\n",
    ],
    ids=["more", "default", "call", "signature", "inner", "async"],
)
def test_what_may_change_the_answer_changes_it(body: Callable[[str], Any], source: str) -> None:
    assert fingerprint(body(source)) != fingerprint(body(PLAIN))


def test_a_wrapper_has_the_fingerprint_of_what_it_wraps(body: Callable[[str], Any]) -> None:
    plain = body(PLAIN)

    @functools.wraps(plain)
    def wrapper(*args: Any) -> Any:
        return plain(*args)

    assert fingerprint(wrapper) == fingerprint(plain)


def test_a_method_has_the_fingerprint_of_its_function() -> None:
    class Task:
        def run(self) -> int:
            return 1

    assert fingerprint(Task().run) == fingerprint(Task.run)


def test_anything_that_can_be_called_has_one_of_its_own() -> None:
    found = [fingerprint(thing) for thing in (len, print, functools.partial(len), type("C", (), {"__call__": len})())]
    assert len(set(found)) == len(found)


def test_without_a_source_the_bytecode_decides() -> None:
    one, other, same = (eval(f"lambda text: text{rest}") for rest in ("", "*2", ""))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert fingerprint(eval("lambda: 1")) != fingerprint(eval("lambda: 2"))
    assert fingerprint(eval("lambda: 1")) != fingerprint(eval("lambda: '1'"))


def test_it_is_the_same_in_every_process() -> None:
    program = (
        "from aicache_tasks.fingerprint import fingerprint\n"
        'made = eval(\'lambda text: {1, 2, 3} and text in {"a", "b", "c", "d"} and (lambda: text)\')\n'
        "print(fingerprint(made), fingerprint(fingerprint))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1
