"""Calls that mean the same bind the same, and wrong calls are refused as Python refuses them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicache_tasks import SettingsError
from aicache_tasks.binding import make_binder, make_mapper, option_defaults

sign = inspect.signature


def summarize(text: str, max_length: int = 100, *, model: str = "m", trace: str | None = None) -> None:
    """A usual task."""


def test_text_and_question_are_taken_by_name_and_the_rest_are_options() -> None:
    bind = make_binder(sign(lambda text, question, size=1: None))
    assert bind("t", "q") == ("t", "q", {"size": 1})


def test_other_names_can_hold_text_and_question() -> None:
    bind = make_binder(sign(lambda text, document, ask: None), text_arg="document", question_arg="ask")
    assert bind("t", "d", "a") == ("d", "a", {"text": "t"})


def test_a_task_without_a_text_has_none() -> None:
    assert make_binder(sign(lambda a, b=2: None))(1) == (None, None, {"a": 1, "b": 2})
    assert make_binder(sign(lambda: None))() == (None, None, {})


@pytest.mark.parametrize(
    "call",
    [
        lambda bind: bind("t", 100),
        lambda bind: bind(text="t"),
        lambda bind: bind("t", model="m"),
        lambda bind: bind(max_length=100, text="t", trace=None),
    ],
    ids=["positional", "keyword", "some keywords", "other order"],
)
def test_positional_keyword_and_default_are_one_call(call: Callable[..., Any]) -> None:
    bind = make_binder(sign(summarize))
    assert call(bind) == ("t", None, {"max_length": 100, "model": "m", "trace": None})


def test_ignored_names_are_left_out_of_the_options_and_not_of_the_map() -> None:
    bind = make_binder(sign(summarize), ignore=("trace",))
    assert bind("t", trace="x") == bind("t", trace="y") == ("t", None, {"max_length": 100, "model": "m"})
    assert make_mapper(sign(summarize))("t", trace="x")["trace"] == "x"


def test_extra_keywords_lie_beside_the_named_ones_and_can_be_ignored() -> None:
    signature = sign(lambda text, **more: None)
    assert make_binder(signature)("t", a=1) == ("t", None, {"a": 1})
    assert make_binder(signature, ignore=("a",))("t", a=1, b=2) == ("t", None, {"b": 2})


def test_no_two_calls_of_a_variadic_task_are_taken_for_one() -> None:
    bind = make_binder(sign(lambda a, /, *rest, **more: None))
    calls = [
        bind(1),
        bind(1, 2),
        bind(1, **{"2": 2}),
        bind(1, a=5),
        bind(1, rest=(2,)),
        bind(1, **{"*": (2,)}),
        bind(5),
    ]
    assert len({repr(call) for call in calls}) == len(calls)
    assert bind(1, **{"*": (2,)}) != bind(1, 2)


def test_an_extra_keyword_with_the_name_of_the_ignored_machinery_is_an_option() -> None:
    bind = make_binder(sign(lambda text, **more: None))
    assert bind("t", _ignored=1, _k=2) == ("t", None, {"_ignored": 1, "_k": 2})


def test_a_parameter_may_have_the_name_of_something_that_the_binder_uses() -> None:
    def odd(bind: int, _ignored: int, _k: int = 3, _default_1: int = 4, dict: int = 5, **_v: int) -> None:  # noqa: A002
        """Names chosen to collide."""

    expected = {"bind": 1, "_ignored": 2, "_k": 3, "_default_1": 4, "dict": 5, "more": 6}
    assert make_binder(sign(odd))(1, 2, more=6) == (None, None, expected)


def test_defaults_are_the_objects_themselves() -> None:
    default = object()

    def body(text: str, how: object = default) -> None:
        """A default whose repr is no Python."""

    assert make_binder(sign(body))("t")[2]["how"] is default
    assert option_defaults(sign(body)) == {"how": default}


def test_annotations_are_not_evaluated() -> None:
    def body(text: NoSuchName, size: also_missing = 1) -> None:  # type: ignore[name-defined] # noqa: F821
        """Its annotations name nothing."""

    assert make_binder(sign(body))("t") == ("t", None, {"size": 1})


def test_a_wrapped_function_binds_as_what_it_wraps() -> None:
    @functools.wraps(summarize)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        """Takes anything."""

    assert make_binder(sign(wrapper))("t") == make_binder(sign(summarize))("t")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_arg": "nope"}, "text_arg: the task has no parameter 'nope'; it has text, max_length, model, trace"),
        ({"question_arg": "nope"}, "question_arg"),
        ({"ignore": ("nope",)}, "ignore: the task has no parameter 'nope'"),
        ({"ignore": ("text",)}, "ignore: 'text' is the text"),
        ({"text_arg": "model", "ignore": ("model",)}, "ignore: 'model' is the text"),
    ],
)
def test_a_name_that_the_task_does_not_have_is_an_error_when_the_binder_is_made(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        make_binder(sign(summarize), **options)


@given(st.lists(st.integers(), max_size=4), st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e"]), st.integers()))
def test_a_call_is_refused_if_and_only_if_the_task_would_refuse_it(args: list[int], kwargs: dict[str, int]) -> None:
    def body(a: int, /, b: int, c: int = 3, *, d: int = 4) -> tuple[int, ...]:
        return (a, b, c, d)

    bind, mapper = make_binder(sign(body)), make_mapper(sign(body))
    try:
        expected = body(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError):
            bind(*args, **kwargs)
        with pytest.raises(TypeError):
            mapper(*args, **kwargs)
        return
    assert tuple(bind(*args, **kwargs)[2].values()) == tuple(mapper(*args, **kwargs).values()) == expected
