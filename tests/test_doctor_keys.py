"""The doctor finds calls that have no key, or another one in each process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from aicache_tasks import CachedTask, CachePolicy
from aicache_tasks.reports.commands.doctor import _probe
from aicache_tasks.reports.doctor import stability
from aicache_tasks.testing import EmbeddedServer
from tests.test_cli import environ_of, path
from tests.test_doctor import add, found, make_app, one

__all__ = ["path"]

SHOP = """
import os
from celery import Celery
from aicache_tasks import CachedTask, CachePolicy, install
app = Celery("shop")
app.conf.aicache_url = os.environ["SHOP_URL"]
install(app)
@app.task(base=CachedTask, name="shop.task", cache=CachePolicy())
def task(text): ...
"""


def missing() -> str:
    """Return what no environment has."""
    return os.environ["AICACHE_TESTS_NOPE"]


def printing(keys: Mapping[str, str]) -> list[str]:
    """Return a probe that tells of *keys*."""
    return [sys.executable, "-c", f"print({stability.marked(keys)!r})"]


class TestACallWithoutAKey:
    @pytest.mark.parametrize(
        ("policy", "said"),
        [
            ({"ignore": ("nosuch",)}, "cache ignore: the task has no parameter 'nosuch'; it has text, model"),
            ({"vary": missing}, "vary= raises KeyError"),
            ({"tenant": missing}, "tenant= raises KeyError"),
            ({"tags": missing}, "tags= raises KeyError"),
        ],
        ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
    )
    def test_of_which_this_process_knows_the_reason_fails(
        self, valkey: EmbeddedServer, policy: dict[str, Any], said: str
    ) -> None:
        app = make_app(valkey.url)
        add(app, "shop.sound", tenant=lambda arguments: arguments["text"], version=1)
        add(app, **policy)
        finding = one(app, stability.faults)
        assert (finding.check, finding.level) == ("policies", "fail")
        assert finding.what == f"shop.task has no keys in this process: {said}"

    def test_is_named_for_five_tasks_and_the_others_are_counted(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        for number in range(7):
            add(app, f"shop.task{number}", vary=missing)
        *_, last = told = found(app, stability.faults)
        assert (len(told), last.what) == (6, "no keys of 2 more tasks either")

    def test_for_made_up_arguments_only_is_a_warning(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        tasks = [add(app, vary=lambda arguments: arguments["text"].index("%")), add(app, "shop.other")]
        keys = stability.keys_of(tasks)
        assert (keys["shop.task"], keys["shop.other"][:1]) == ("raises ValueError", "{")
        finding = one(app, stability.keys, probe=printing(keys))
        assert (finding.level, finding.what) == (
            "warn",
            "the same in 8 processes with other hash seeds, but with made-up arguments shop.task raises ValueError",
        )
        assert found(app, stability.faults) == []

    def test_is_not_said_of_one_with_positional_only_parameters(self, valkey: EmbeddedServer) -> None:
        def body(text: str, count: int, /, size: int, *, more: bool = False) -> str:
            return text

        app = make_app(valkey.url)
        task = app.task(base=CachedTask, name="shop.by_place", cache=CachePolicy(), shared=False)(body)
        assert stability.keys_of([task])["shop.by_place"] == task.cache.key("a text that nobody wrote", 1, size=1)


def test_arguments_are_made_up_for_annotations_of_what_a_list_or_dict_holds(valkey: EmbeddedServer) -> None:
    def body(texts: list[str], names: dict[str, int], pairs: dict[str, Any]) -> str:
        return texts[0]

    app = make_app(valkey.url)
    policy = CachePolicy(vary=lambda given: (given["texts"][1], given["names"]["a"], given["pairs"]["b"]))
    body.__annotations__ |= {"texts": list[str]}  # as without `from __future__ import annotations`
    task = app.task(base=CachedTask, name="shop.held", cache=policy, shared=False)(body)
    assert stability.keys_of([task])["shop.held"].startswith("{")


@pytest.mark.parametrize(("small", "large"), [("mini", "large"), ("mini", "maxi"), ("gpt", "claude"), ("a", "b")])
def test_a_set_of_two_has_another_order_in_one_of_the_processes(valkey: EmbeddedServer, small: str, large: str) -> None:
    app = make_app(valkey.url)
    add(app)
    told = json.dumps({"shop.task": "%s"})
    printed = f"print({f'{stability.MARK}{told}'!r} % '-'.join({{{small!r}, {large!r}}}))"
    finding = one(app, stability.keys, probe=[sys.executable, "-c", printed])
    assert (finding.level, finding.what) == ("fail", "another key in each process: shop.task")


def test_of_an_application_that_starts_slowly_there_are_two_processes(
    valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stability, "QUICK_S", 0.0)
    app = make_app(valkey.url)
    finding = one(app, stability.keys, probe=printing(stability.keys_of([add(app)])))
    assert (finding.level, finding.what) == ("ok", "the same in 2 processes with other hash seeds")


def test_the_probe_is_this_command_where_it_runs_and_whatever_the_application_is_called(
    valkey: EmbeddedServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path / "project").mkdir()
    (path / "project" / "aicache.py").write_text(SHOP)
    monkeypatch.chdir(path / "project")  # as Celery has done by the time that the command runs
    probe = _probe(["celery", "--workdir", "project", "-A", "aicache", "aicache", "doctor", "--json"])
    assert probe is not None
    done = subprocess.run(
        probe, env=environ_of(path, valkey.url), capture_output=True, text=True, timeout=50, check=False
    )
    assert (stability.told_by(done.stdout) or {}).keys() == {"shop.task"}, done.stderr
    assert _probe(["pytest", "doctor"]) is None
