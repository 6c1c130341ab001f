"""Every example in a docstring and on a page of the documentation gives what it shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
    for package in ("aicache_tasks", "workers")
    for path in (ROOT / package).rglob("*.py")
    if ">>> " in path.read_text()
)
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if ">>> " in path.read_text()
)
PROGRAM = """
import doctest, importlib, sys
flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
for name in sys.argv[1:]:
    page = name.endswith(".md")
    run = doctest.testfile if page else doctest.testmod
    more = {"module_relative": False} if page else {}
    failed, tried = run(name if page else importlib.import_module(name), optionflags=flags, **more)
    if failed or not tried:
        sys.exit(f"{name}: {failed} of {tried} examples failed")
"""


def shown_as_they_are(*names: str) -> subprocess.CompletedProcess[str]:
    """Run the examples in a process of their own: they make applications, and one of them becomes the current one."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *names], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_examples_of_the_modules_give_what_they_show() -> None:
    done = shown_as_they_are(*MODULES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_give_what_they_show(page: str) -> None:
    done = shown_as_they_are(page)
    assert done.returncode == 0, done.stdout + done.stderr
