"""The doctor finds calls that have no key, or another one in each process."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

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
from click import Option
from aicache_tasks import CachedTask, CachePolicy, install
app = Celery("shop")
app.conf.aicache_url = os.environ["SHOP_URL"]
install(app)
app.user_options["preload"].add(Option(["--site"]))
@app.task(base=CachedTask, name="shop.task", cache=CachePolicy())
def task(text): ...
"""


TENANT: ContextVar[str] = ContextVar("tenant")


class Color(Enum):
    RED = "red"


def missing() -> str:
    """Return what no environment has."""
    return os.environ["AICACHE_TESTS_NOPE"]


def model_of(given: Mapping[str, Any]) -> str:
    """Return the model of a kind of text, of which there is one."""
    try:
        return {"summary": "m1"}[given["what"]]
    except KeyError:
        raise ValueError("unknown kind") from None


def printing(keys: Mapping[str, str]) -> list[str]:
    """Return a probe that tells of *keys*."""
    return [sys.executable, "-c", f"print({stability.marked(keys)!r})"]


@pytest.fixture(autouse=True)
def _more_processes_are_tried_however_slow_the_first_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stability, "QUICK_S", 60.0)


def told_of_one(annotation: Any, **policy: Any) -> str:
    """Return the key of a task with one parameter, or what is said instead."""

    def body(what: Any) -> None: ...

    body.__annotations__["what"] = annotation
    task = make_app("redis://nobody").task(
        base=CachedTask, name="shop.task", cache=CachePolicy(**policy), shared=False
    )(body)
    return stability.keys_of([task])["shop.task"]


class TestACallWithoutAKey:
    @pytest.mark.parametrize(
        ("policy", "said"),
        [
            ({"ignore": ("nosuch",)}, "cache ignore: the task has no parameter 'nosuch'; it has text, model"),
            ({"vary": lambda: object()}, "vary= raises KeyEncodingError"),
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

    @pytest.mark.parametrize("field", ["vary", "tenant", "tags"])
    @pytest.mark.parametrize("asked", [missing, TENANT.get], ids=["KeyError", "LookupError"])
    def test_is_a_warning_where_a_call_may_have_what_it_needs(
        self, valkey: EmbeddedServer, field: str, asked: Callable[[], str], request: pytest.FixtureRequest
    ) -> None:
        app = make_app(valkey.url)
        task = add(app, **{field: lambda: asked()})
        finding = one(app, stability.faults)
        assert (finding.check, finding.level) == ("policies", "warn")
        error = request.node.callspec.id.partition("-")[0]
        assert finding.what == f"shop.task has no keys outside of a call: {field}= raises {error}"
        keys = stability.keys_of([task])
        assert one(app, stability.keys, probe=printing(keys)).level == "ok", "it is told of once"

    def test_is_named_for_five_tasks_and_the_others_are_counted(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        for number in range(7):
            add(app, f"shop.task{number}", vary=missing)
        *_, last = told = found(app, stability.faults)
        assert (len(told), last.what) == (6, "the like of 2 more tasks")

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

    @pytest.mark.parametrize(
        "vary",
        [lambda given: {"summary": "m1"}[given["text"]], lambda given: Color(given["text"])],
        ids=["dict", "enum"],
    )
    def test_is_no_warning_where_an_error_names_the_text_that_was_made_up(
        self, valkey: EmbeddedServer, vary: Callable[..., Any]
    ) -> None:
        app = make_app(valkey.url)
        finding = one(app, stability.keys, probe=printing(stability.keys_of([add(app, vary=vary)])))
        assert (finding.level, finding.what) == (
            "ok",
            "the same in 8 processes with other hash seeds, but for shop.task (made-up arguments do not fit)",
        )

    @pytest.mark.parametrize("annotation", [inspect.Parameter.empty, "datetime", "Document", Any], ids=str)
    @pytest.mark.parametrize(
        ("vary", "said"),
        [
            (lambda given: given["what"].year, stability.UNFIT),
            (lambda given: given["what"]["title"], stability.UNFIT),
            (lambda given: given["what"] + 1, stability.UNFIT),
            (lambda given: Decimal(given["what"]), stability.UNFIT),
            (lambda given: object(), "raises KeyEncodingError"),
            (lambda given: given["nosuch"], "raises KeyError"),
        ],
        ids=["attribute", "item", "number", "decimal", "no key", "no parameter"],
    )
    def test_may_be_of_arguments_of_which_nobody_can_know_what_fits(
        self, annotation: Any, vary: Callable[..., Any], said: str
    ) -> None:
        assert told_of_one(annotation, vary=vary) == said

    @pytest.mark.parametrize("annotation", ["str", "Document"])
    def test_may_be_of_the_text_that_was_made_up_where_its_error_became_another(self, annotation: str) -> None:
        assert told_of_one(annotation, vary=model_of) == stability.UNFIT

    @pytest.mark.parametrize(
        ("tag", "said"),
        [("{what.year}", stability.UNFIT), ("{what[x]}", stability.UNFIT), ("{no}", "raises ValueError")],
    )
    def test_is_not_of_them_where_a_tag_names_no_parameter(self, tag: str, said: str) -> None:
        assert told_of_one("Document", tags=(tag,)) == said

    @pytest.mark.parametrize(
        ("annotation", "vary", "said"),
        [
            (dict, lambda given: given["what"]["model"], stability.UNFIT),
            (dict[str, str], lambda given: given["what"]["a"].lower(), stability.UNFIT),
            (list[int], lambda given: sum(given["what"]), stability.UNFIT),
            (list[str], lambda given: given["what"][2], stability.UNFIT),
            (list[str], lambda given: [object()], "raises KeyEncodingError"),
            (list[str], lambda given: TENANT.get(), "raises LookupError"),
        ],
        ids=["key", "value", "element", "length", "no key", "no call"],
    )
    def test_may_be_of_what_nobody_can_know_that_a_list_or_dict_holds(
        self, annotation: Any, vary: Callable[..., Any], said: str
    ) -> None:
        assert told_of_one(annotation, vary=vary) == said

    def test_is_a_warning_where_its_parameter_is_not_there(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        keys = stability.keys_of([add(app, vary=lambda given: given["kind"])])
        assert one(app, stability.keys, probe=printing(keys)).level == "warn"

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


@pytest.mark.parametrize(
    ("annotation", "made_up"),
    [
        *[(one, 1) for one in (int, int | None, Optional[int], Union[None, int, str], Annotated[int, "up"])],  # noqa: UP007, UP045
        *[(one, 1) for one in ("int", "int | None", "None | int", "Optional[int]", "t.Annotated[int, up()]")],
        *[(one, "a") for one in (Literal["a", "b"], "Literal['a', 'b'] | None", "t.Optional[t.Literal['a', 'b']]")],
        *[(one, 0) for one in (Literal[0, 1], "Literal[0]")],
        *[(one, ["a", "b"]) for one in (list[int] | None, "list[dict[str, int]]", "collections.abc.Sequence[int]")],
        *[(one, stability.TEXT) for one in (str | int, "str | None", "Literal[", "Callable[[int], str]", "", Path)],
    ],
    ids=lambda given: repr(given)[:40],
)
def test_an_argument_is_made_up_for(annotation: Any, made_up: Any) -> None:
    assert stability._made_up(annotation) == made_up


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
    probe = _probe(["celery", "--workdir", "project", "-A", "aicache", "aicache", "--site", "a", "doctor", "--json"])
    assert probe is not None
    done = subprocess.run(
        probe, env=environ_of(path, valkey.url), capture_output=True, text=True, timeout=50, check=False
    )
    assert (stability.told_by(done.stdout) or {}).keys() == {"shop.task"}, done.stderr


@pytest.mark.parametrize(
    ("called", "ends"),
    [
        ("-A doctor aicache doctor --strict", "-A doctor aicache doctor --probe"),
        ("-A app aicache --stage aicache -Z 1 doctor", "-A app aicache --stage aicache -Z 1 doctor --probe"),
        ("--workdir=a -A app aicache doctor", "--workdir={cwd} -A app aicache doctor --probe"),
        ("--workdir a -A app aicache doctor", "--workdir {cwd} -A app aicache doctor --probe"),
    ],
)
def test_the_probe_is_given_what_stands_before_the_command(called: str, ends: str) -> None:
    made = _probe(["celery", *called.split()])
    assert made is not None
    assert made[1:] == ["-m", "celery", *ends.format(cwd=Path.cwd()).split()]


def test_where_there_is_no_probe_it_is_said_that_nothing_was_compared(valkey: EmbeddedServer) -> None:
    assert _probe(["pytest", "doctor"]) is None
    app = make_app(valkey.url)
    assert found(app, stability.keys) == [], "it has no task"
    add(app)
    finding = one(app, stability.keys)
    assert (finding.level, finding.what[:12]) == ("warn", "not compared")
