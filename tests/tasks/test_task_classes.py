"""Policies on classes: inheritance, other base classes, whole applications, operations that belong to one task."""

from __future__ import annotations

import importlib
import linecache
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, Task, _state

from aicache_tasks import CachedTask, CachePolicy, NotCached, SettingsError
from aicache_tasks.fingerprint import fingerprint
from aicache_tasks.redaction import REQUEST
from aicache_tasks.runtime import runtime_of

Make = Callable[..., Celery]


class Other(Task):
    """Another base class of the application, with an order of its own."""

    abstract = True

    def __init_subclass__(cls, mark: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.mark = mark

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return ("other", super().__call__(*args, **kwargs))

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        return super().apply_async(args, kwargs, *more, **{**options, "priority": 3})


def test_a_base_class_may_have_other_bases_too(make: Make) -> None:
    class Base(CachedTask, Other, mark="m"):
        abstract = True

    runs: list[str] = []

    def body(text: str) -> str:
        runs.append(text)
        return text

    task = make().task(base=Base, cache={"operation": "cooperative"}, name="cooperative")(body)
    assert [task("a"), task("a"), runs] == [("other", "a"), ("other", "a"), ["a"]]
    assert (Base.mark, issubclass(task.__class__, Other)) == ("m", True)


def test_other_bases_may_come_first(make: Make) -> None:
    class Base(Other, CachedTask):
        abstract = True

    runs: list[str] = []

    def body(text: str) -> str:
        runs.append(text)
        return text

    task = make().task(base=Base, cache={"operation": "outside"}, name="outside")(body)
    assert [task("a"), task("a"), runs] == [("other", "a"), ("other", "a"), ["a"]]


def test_a_dict_is_a_policy(make: Make) -> None:
    task = make().task(base=CachedTask, cache={"ttl": "2h"}, name="by-dict")(_echo)
    assert task.cache.policy == CachePolicy(ttl="2h")


def _echo(text: str) -> str:
    return text


@pytest.mark.parametrize("given", [{"tll": 1}, 5, True, "2h"], ids=repr)
def test_a_wrong_policy_is_an_error_where_the_task_is_defined(make: Make, given: Any) -> None:
    with pytest.raises(SettingsError, match=r"^cache"):
        _ = make().task(base=CachedTask, cache=given, name="wrong")(_echo).name


def test_a_policy_cannot_be_set_on_a_task(make: Make) -> None:
    task = make().task(base=CachedTask, cache={"ttl": 5}, name="fixed")(_echo)
    with pytest.raises(AttributeError, match="give cache= to the decorator"):
        task.cache = CachePolicy()


def test_a_subclass_that_overrides_run_needs_a_policy_of_its_own() -> None:
    class First(CachedTask):
        cache = CachePolicy(operation="first")

        def run(self, text: str) -> str:
            return text

    with pytest.raises(SettingsError, match=r"Second overrides run\(\) but inherits the cache policy of First"):

        class Second(First):
            def run(self, text: str) -> str:
                return text.upper()

    class Third(First):
        cache = None

        def run(self, text: str) -> str:
            return text.upper()

    class Fourth(First):
        cache = CachePolicy(operation="fourth")

        def run(self, text: str) -> str:
            return text.upper()

    class Fifth(First):
        """Overrides nothing."""

    assert [cls.cache_policy and cls.cache_policy.operation for cls in (First, Third, Fourth, Fifth)] == [
        "first",
        None,
        "fourth",
        "first",
    ]


def test_run_from_a_mixin_needs_a_policy_of_its_own_too() -> None:
    class First(CachedTask):
        cache = CachePolicy(operation="first")

        def run(self, text: str) -> str:
            return text

    class Louder:
        def run(self, text: str) -> str:
            return text.upper()

    with pytest.raises(SettingsError, match=r"run\(\)"):

        class Second(Louder, First):
            """Its run() is not the one that the policy was written for."""


def test_an_abstract_base_may_hold_the_policy_of_all_its_tasks(make: Make) -> None:
    class Base(CachedTask):
        abstract = True
        cache = CachePolicy(ttl="5m", version=2)

    app = make()
    one = app.task(base=Base, name="classes.one")(_echo)
    two = app.task(base=Base, name="classes.two", cache={"ttl": "1h"})(lambda_of_two)
    three = app.task(base=Base, name="classes.three", cache=None)(_echo)
    one("a"), two("a"), three("a")
    assert (one.cache.policy.ttl_s, two.cache.policy.ttl_s, three.cache) == (300.0, 3600.0, None)
    assert {"classes.one", "classes.two"} <= set(runtime_of(app).policies.operations())
    assert "classes.three" not in runtime_of(app).policies.operations()


def lambda_of_two(text: str) -> str:
    return text


def test_a_subclass_that_redacts_no_more_shows_its_arguments_again() -> None:
    class First(CachedTask):
        abstract = True
        cache = CachePolicy()

    class Second(First):
        abstract = True
        cache = CachePolicy(redact=False)

    class Third(First):
        abstract = True
        cache = None

    stock = (Task.Request, Task.resultrepr_maxsize)
    assert (First.Request, First.resultrepr_maxsize) != stock
    assert (Second.Request, Second.resultrepr_maxsize) == stock
    assert (Third.Request, Third.resultrepr_maxsize) == stock


def test_a_request_class_of_the_task_s_own_is_redacted_too() -> None:
    from celery.worker.request import Request

    from aicache_tasks.redaction import RedactedRequest

    class Mine(Request):
        """A request class of the application."""

    class First(CachedTask):
        abstract = True
        Request = Mine
        cache = CachePolicy()

    class Second(First):
        abstract = True
        cache = CachePolicy(ttl=5)

    assert issubclass(First.Request, (RedactedRequest,))
    assert issubclass(First.Request, Mine)
    assert Second.Request is First.Request


def test_tasks_with_one_operation_are_an_error_when_the_application_is_finalized(make: Make) -> None:
    app = make()
    app.task(base=CachedTask, cache={"operation": "twice"}, name="classes.one")(_echo)
    app.task(base=CachedTask, cache={"operation": "twice"}, name="classes.two")(lambda_of_two)
    with pytest.raises(SettingsError, match=r"'classes\.(one|two)' and 'classes\.(one|two)'.*'twice'"):
        app.finalize()


def test_classes_without_a_name_never_share_an_operation_by_accident(make: Make) -> None:
    class One(CachedTask):
        cache = CachePolicy(operation="nameless")

        def run(self, text: str) -> str:
            return f"one {text}"

    class Two(CachedTask):
        cache = CachePolicy(operation="nameless")

        def run(self, text: str) -> str:
            return f"two {text}"

    app = make()
    one, two = app.register_task(One), app.register_task(Two)
    assert one("a") == "one a"
    for _ in range(3):
        with pytest.raises(SettingsError, match="both have the cache operation 'nameless'"):
            two("a")


def test_a_duplicate_is_refused_at_each_call(make: Make) -> None:
    app = make()
    one = app.task(base=CachedTask, cache={"operation": "again"}, name="classes.one")(_echo)
    two = app.task(base=CachedTask, cache={"operation": "again"}, name="classes.two")(lambda_of_two)
    assert one("a") == "a"
    for _ in range(3):
        with pytest.raises(SettingsError, match="both have the cache operation 'again'"):
            two("a")


def test_tasks_that_share_an_operation_share_their_answers(make: Make) -> None:
    app, runs = make(), []

    def body(text: str) -> str:
        runs.append(text)
        return text

    policy = {"operation": "both", "shared": True}
    one = app.task(base=CachedTask, cache=policy, name="classes.one")(body)
    two = app.task(base=CachedTask, cache=policy, name="classes.two")(lambda_of_two)
    assert [one("a"), two("a"), runs] == ["a", "a", ["a"]]
    assert two.cache.last.status == "hit"


def test_every_task_of_an_application_may_have_the_class(make: Make) -> None:
    app = make(aicache_url=None)
    app.task_cls = "aicache_tasks:CachedTask"
    plain = app.task(name="plain")(_echo)
    assert isinstance(plain, CachedTask)
    assert isinstance(app.tasks["celery.chord"], CachedTask)
    assert [plain("a"), plain.apply(("a",)).get(), plain.map(["a"]).apply().get()] == ["a", "a", ["a"]]


def test_version_auto_follows_the_body(make: Make) -> None:
    """F18"""
    bodies = {}
    for name in ("one", "two"):
        scope: dict[str, Any] = {}
        exec(f"def body(text):\n    return text + {name!r}", scope)
        bodies[name] = scope["body"]
    app = make()
    policy = {"operation": "auto", "shared": True, "version": "auto"}
    one, two = (app.task(base=CachedTask, cache=policy, name=name)(body) for name, body in bodies.items())
    assert [one("a"), two("a"), one("a"), one.cache.last.status] == ["aone", "atwo", "aone", "hit"]
    assert one.cache.explain("a").version != two.cache.explain("a").version
    assert len(one.cache.explain("a").version) == 16


def test_version_auto_is_of_the_body_that_was_imported(make: Make, tmp_path: Path, monkeypatch: Any) -> None:
    """F18: a deploy may put another file in its place before the first call."""
    file = tmp_path / "deployed_body.py"
    file.write_text("def body(text):\n    return text + 'old'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    body = importlib.import_module("deployed_body").body
    expected = fingerprint(body)
    task = make().task(base=CachedTask, cache={"operation": "imported", "version": "auto"}, name="imported")(body)
    assert task.name == "imported"
    file.write_text("def body(text):\n    return text + 'the new one'\n")
    linecache.checkcache(str(file))
    assert fingerprint(body) != expected
    assert task.cache.explain("a").version == expected


@pytest.mark.parametrize("given", [{"ttl": "5m"}, CachePolicy(ttl="5m")], ids=["dict", "policy"])
@pytest.mark.parametrize("own", [{}, {"cache": {"ttl": "1h"}}], ids=["none", "own"])
def test_a_policy_can_come_from_task_annotations(make: Make, given: Any, own: dict[str, Any]) -> None:
    app = make(task_annotations={"annotated": {"cache": given}})
    task = app.task(base=CachedTask, name="annotated", **own)(_echo)
    assert [task("a"), task("a"), task.cache.last.status] == ["a", "a", "hit"]
    assert task.cache.policy.ttl_s == 300.0
    assert task.resultrepr_maxsize == 0
    assert runtime_of(app).policies.operations().count("annotated") == 1


def test_task_annotations_can_take_a_policy_away(make: Make) -> None:
    task = make(task_annotations={"annotated": {"cache": None}}).task(
        base=CachedTask, name="annotated", cache={"ttl": 5}
    )(_echo)
    assert (task("a"), task.cache) == ("a", None)


def test_task_annotations_can_hide_the_arguments_of_a_task_without_a_policy(make: Make) -> None:
    app = make(task_annotations={"annotated": {"redact_arguments": True}})
    task = app.task(base=CachedTask, name="annotated")(_echo)
    assert (task.Request, task.resultrepr_maxsize) == (REQUEST, 0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (NotCached,)),
        ({"throws": (KeyError,)}, (KeyError, NotCached)),
        ({"throws": KeyError}, (KeyError, NotCached)),
    ],
    ids=str,
)
def test_not_cached_is_an_expected_error_of_a_cached_task(make: Make, given: dict[str, Any], expected: Any) -> None:
    app = make()
    assert app.task(base=CachedTask, cache={}, name="throwing", **given)(_echo).throws == expected
    plain = app.task(base=CachedTask, name="plain", **given)(_echo)
    assert plain.throws == given.get("throws", ())


def test_a_text_arg_that_the_task_does_not_have_is_an_error_before_the_body_runs(make: Make) -> None:
    task = make().task(base=CachedTask, cache={"text_arg": "document"}, name="named")(_echo)
    with pytest.raises(SettingsError, match="no parameter 'document'; it has text"):
        task("a")


def test_a_task_can_be_pickled_by_name(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make()
    task = app.task(base=CachedTask, cache={"ttl": 5}, name="pickled-by-name")(_echo)
    task("a")
    monkeypatch.setattr(_state._tls, "current_app", app)
    assert pickle.loads(pickle.dumps(task._get_current_object())).name == "pickled-by-name"
