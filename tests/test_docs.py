"""The documents say what the code says."""

from __future__ import annotations

import os
import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from aicache_tasks.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent
SETTINGS = ROOT / "docs" / "settings.md"
CHECKLIST = ROOT / "docs" / "checklist.md"
GUARANTEES = ROOT / "docs" / "guarantees.md"
START, END = "<!-- table: start -->\n", "<!-- table: end -->\n"
ROWS = [*(f"S{n}" for n in range(1, 12)), *(f"C{n}" for n in range(1, 29)), *(f"F{n}" for n in range(1, 20))]
OPEN = {"C28", "F12"}


def _default(setting: Field[Any]) -> str:
    value = setting.default if setting.default is not MISSING else setting.default_factory()  # type: ignore[misc]
    if isinstance(value, dict):
        return ", ".join(f"`{name}` {number:g}" for name, number in value.items())
    return "none" if value is None else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _table() -> str:
    lines = ["| setting | environment | default | what it does |", "|---|---|---|---|"]
    for setting in fields(Settings):
        variable = f"`{(PREFIX + setting.name).upper()}`" if setting.metadata["env"] else "no"
        lines.append(f"| `{PREFIX}{setting.name}` | {variable} | {_default(setting)} | {setting.metadata['doc']} |")
    return "\n".join(lines) + "\n"


def test_the_settings_table_is_made_from_the_code() -> None:
    """``AICACHE_REGENERATE=1`` writes it anew."""
    before, rest = SETTINGS.read_text().split(START)
    table, after = rest.split(END)
    if os.environ.get("AICACHE_REGENERATE"):
        SETTINGS.write_text(before + START + _table() + END + after)
        table = _table()
    assert table == _table()


def _defined_tests() -> set[str]:
    """Return ``file::Class::test`` and ``file::test`` of every test in the tree."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        owner = ""
        for line in path.read_text().splitlines():
            if match := re.match(r"class (\w+)", line):
                owner = f"::{match[1]}"
            elif match := re.match(r"( *)(?:async )?def (test_\w+)", line):
                owner = owner if match[1] else ""
                found.add(f"{path.relative_to(ROOT)}{owner}::{match[2]}")
    return found


def _cited(document: Path) -> set[str]:
    return set(re.findall(r"`(tests/[\w/]+\.py::[\w:]+)`", document.read_text()))


def test_every_test_that_a_document_cites_exists() -> None:
    for document in (CHECKLIST, GUARANTEES):
        cited = _cited(document)
        assert cited
        assert cited - _defined_tests() == set(), document.name


def test_the_checklist_has_every_row_with_a_test_or_a_reason() -> None:
    lines = [line for line in CHECKLIST.read_text().splitlines() if re.match(r"\| [SCF]\d", line)]
    assert [line.split("|")[1].strip() for line in lines] == ROWS
    for line in lines:
        row = line.split("|")[1].strip()
        assert ("open:" in line) if row in OPEN else ("`tests/" in line), row
