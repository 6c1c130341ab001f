"""The documents say what the code says."""

from __future__ import annotations

import inspect
import os
import re
import tomllib
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import click
import pytest

from aicache_tasks import checks
from aicache_tasks.durations import show_duration
from aicache_tasks.frame import HEADER_BYTES, TOKEN_BYTES
from aicache_tasks.keys import BUCKETS, CacheKeyGenerator
from aicache_tasks.reports.cli import COMMANDS as NAMES
from aicache_tasks.reports.cli import aicache
from aicache_tasks.reports.commands.base import Misused, Nothing, Unanswered
from aicache_tasks.reports.prometheus import RecordsCollector
from aicache_tasks.settings import PREFIX, Settings
from aicache_tasks.testing import EmbeddedServer
from tests.reported import calls, count_up, make_app, reader_of

ROOT = Path(__file__).parent.parent
SETTINGS = ROOT / "docs" / "settings.md"
COMMANDS = ROOT / "docs" / "cli.md"
CHECKLIST = ROOT / "docs" / "checklist.md"
GUARANTEES = ROOT / "docs" / "guarantees.md"
OPERATIONS = ROOT / "docs" / "operations.md"
GUIDE = ROOT / "docs" / "deployment.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
START, END = "<!-- table: start -->\n", "<!-- table: end -->\n"
ROWS = [*(f"S{n}" for n in range(1, 12)), *(f"C{n}" for n in range(1, 29)), *(f"F{n}" for n in range(1, 20))]
OPEN = {"F12"}


def _default(setting: Field[Any]) -> str:
    value = setting.default if setting.default is not MISSING else setting.default_factory()  # type: ignore[misc]
    check = setting.metadata["check"]
    if isinstance(value, dict):
        show = show_duration if check is checks.ttls else checks.plain
        return ", ".join(f"`{name}` {show(number)}" for name, number in value.items())
    if value is None or value == "":
        return "none"
    if check in (checks.duration, checks.duration_or_zero, checks.period) and value:
        return f"`{show_duration(value)}`"
    shown = ",".join(value) if isinstance(value, tuple) else checks.plain(value) if type(value) is float else value
    return f"`{shown}`"


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


def _commands() -> str:
    """Return what each command is for and takes, as its own help says it."""
    ctx = click.Context(aicache)
    return "\n".join(_command(aicache.get_command(ctx, name)) for name in NAMES)


def _command(command: click.Command | None) -> str:
    assert command is not None
    options = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    head = [f"### {command.name}", "", inspect.cleandoc(command.help or ""), ""]
    return "\n".join([*head, "| option | default | what it does |", "|---|---|---|", *map(_option, options)]) + "\n"


def _option(option: click.Option) -> str:
    choices = "\\|".join(option.type.choices) if isinstance(option.type, click.Choice) else option.metavar
    said, _, default = (option.help or "").partition("[default: ")  # what the code works out
    default = default.rstrip("]") or (str(option.default) if option.show_default else "")
    assert option.is_flag or choices, f"{option.opts[0]} needs a metavar"
    name = option.opts[0] if option.is_flag else f"{option.opts[0]} {choices}"
    return f"| `{name}` | {f'`{default}`' if default else ''} | {said.strip()} |"


def test_the_command_reference_is_made_from_the_code() -> None:
    """``AICACHE_REGENERATE=1`` writes it anew."""
    before, rest = COMMANDS.read_text().split(START)
    reference, after = rest.split(END)
    if os.environ.get("AICACHE_REGENERATE"):
        COMMANDS.write_text(before + START + _commands() + END + after)
        reference = _commands()
    assert reference == _commands()


def test_every_command_is_in_the_reference_with_its_exit_codes() -> None:
    text = COMMANDS.read_text()
    assert [line for line in text.splitlines() if line.startswith("### ")] == [f"### {name}" for name in NAMES]
    codes = {kind.exit_code for kind in (Unanswered, Misused, Nothing)} | {0}
    assert {int(code) for code in re.findall(r"^\| (\d) \|", text, re.MULTILINE)} == codes


@pytest.mark.parametrize("document", [GUIDE, ARCHITECTURE], ids=lambda path: path.stem)
def test_an_entry_s_header_is_as_long_as_the_documents_say(document: Path) -> None:
    assert f" {HEADER_BYTES} bytes of header" in document.read_text()


def test_a_tag_s_token_takes_what_the_guide_says(own_server: EmbeddedServer) -> None:
    keys = CacheKeyGenerator()
    with own_server.client() as client:
        before = client.info("memory")["used_memory"]
        with client.pipeline(transaction=False) as pipe:
            for n in range(4000):
                pipe.set(keys.tag_key(n % BUCKETS, keys.tag_id(f"doc:{n}")), os.urandom(TOKEN_BYTES), px=3_600_000)
            pipe.execute()
        took = (client.info("memory")["used_memory"] - before) / 4000
    (said,) = re.findall(r"about (\d+) bytes more for each tag", GUIDE.read_text())
    assert took == pytest.approx(int(said), rel=0.15)


def test_every_figure_for_prometheus_is_in_its_table(valkey: EmbeddedServer) -> None:
    app = make_app(valkey.url)
    count_up(app, calls(6, [reader_of(app).now_s()], ["shout"]))
    told = list(RecordsCollector(lambda: reader_of(app), limit_s=10).collect())
    names = {metric.name + "_total" * (metric.type == "counter") for metric in told}
    table = OPERATIONS.read_text().split("## Prometheus")[1].split("\n## ")[0]
    said = {name.replace("…_", "aicache_inbox_") for name in re.findall(r"`((?:aicache|…)_\w+)`", table)}
    assert {name.replace("_spent_", "_saved_") for name in names} - said == set()
    assert "aicache_switched_off" in names


def test_no_document_installs_a_name_that_is_on_no_index() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert not re.search(r"pip install\s+'?aicache", document.read_text()), document.name


def test_the_modules_that_may_import_celery_are_named() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (celery,) = [each for each in contracts if each.get("forbidden_modules") == ["celery", "kombu"]]
    may = {line.split(" -> ")[0].removeprefix("aicache_tasks.").replace(".", "/") for line in celery["ignore_imports"]}
    (said,) = re.findall(r"only (`task`.*?) import Celery or kombu", ARCHITECTURE.read_text(), re.DOTALL)
    assert set(re.findall(r"`(.*?)`", said)) == may | {"workers"}


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
