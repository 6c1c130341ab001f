"""What a policy and a directive may say, and the registry of operations."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from aicache_tasks import CachePolicy, DirectiveError, SettingsError
from aicache_tasks.policy import (
    Directives,
    PolicyRegistry,
    call_with,
    check_directives,
    directives_from,
    matching,
)


def test_a_policy_is_frozen() -> None:
    policy = CachePolicy(operation="a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.ttl = 5  # type: ignore[misc]


def test_a_dict_with_the_same_names_is_a_policy() -> None:
    given = {"operation": "a", "ttl": "2h5m", "ignore": ["b"], "version": 3}
    policy = CachePolicy.of(given)
    assert policy == CachePolicy(operation="a", ttl="2h5m", ignore=("b",), version=3)
    assert (policy.ttl_s, policy.ignore) == (7500.0, ("b",))
    assert CachePolicy.of(policy) is policy


@pytest.mark.parametrize("given", [5, "summarize", ["ttl"], None])
def test_anything_else_is_no_policy(given: Any) -> None:
    with pytest.raises(SettingsError, match="neither a CachePolicy nor a dict"):
        CachePolicy.of(given)


def test_an_unknown_name_in_a_dict_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"unknown name 'tll'; known are .*ttl"):
        CachePolicy.of({"tll": 5})


@pytest.mark.parametrize("ttl", [60, 60.0, "60", "60s", "1m", timedelta(minutes=1)], ids=repr)
def test_a_lifetime_is_seconds_text_or_a_timedelta(ttl: Any) -> None:
    assert CachePolicy(ttl=ttl).ttl_s == 60.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("operation", ""),
        ("operation", "a\nb"),
        ("operation", 5),
        ("operation", "x" * 513),
        ("ttl", 0),
        ("ttl", -1),
        ("ttl", "soon"),
        ("ttl", True),
        ("ttl", 1e308),
        ("ttl", 10**400),
        ("version", True),
        ("version", 1.5),
        ("version", ("a",)),
        ("ignore", "trace_id"),
        ("ignore", (5,)),
        ("ignore", ("",)),
        ("ignore", 5),
        ("tags", "doc"),
        ("tags", (None,)),
        ("vary", {"model": "m"}),
        ("tenant", 5),
        ("store_if", True),
        ("validate", "yes"),
        ("jitter", 0.6),
        ("jitter", -0.1),
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error_that_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"cache {field}"):
        CachePolicy(**{field: value})


def test_tags_are_filled_from_the_arguments_sorted_and_without_repeats() -> None:
    assert CachePolicy(tags=("z", "doc:{doc}", "z")).tags_of({"doc": 7}) == ("doc:7", "z")
    assert CachePolicy(tags=lambda given: [f"doc:{given['doc']}"]).tags_of({"doc": 7}) == ("doc:7",)
    assert CachePolicy().tags_of({"doc": 7}) == ()


@pytest.mark.parametrize("tags", [[1], [""], [None], [f"t{n}" for n in range(33)]], ids=lambda tags: repr(tags)[:9])
def test_tags_that_are_no_text_or_too_many_are_an_error(tags: list[Any]) -> None:
    with pytest.raises(ValueError, match="32 non-empty texts"):
        CachePolicy(tags=lambda: tags).tags_of({})


def test_fixed_tags_are_those_that_no_argument_changes() -> None:
    assert CachePolicy(tags=("a", "doc:{doc}")).fixed_tags == ("a",)
    assert CachePolicy(tags=lambda: ["a"]).fixed_tags == ()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: "none", "none"),
        (lambda given: given["a"], 1),
        (lambda *given: given[0]["a"], 1),
        (lambda given=None: given, {"a": 1}),
        (lambda *, other=5: other, 5),
        (dict, {"a": 1}),
    ],
    ids=["nothing", "one", "any", "optional", "keyword-only", "class"],
)
def test_a_callable_gets_the_arguments_if_it_takes_one(function: Any, expected: Any) -> None:
    assert call_with(function, {"a": 1}) == expected


def test_the_type_error_of_a_callable_s_own_body_is_not_taken_for_a_wrong_call() -> None:
    def broken(arguments: Any) -> Any:
        return len(5)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="len"):
        call_with(broken, {})


def test_two_tasks_with_one_operation_are_an_error_that_names_both_and_the_ways_out() -> None:
    registry = PolicyRegistry()
    registry.register("first", "op", CachePolicy())
    with pytest.raises(SettingsError, match=r"'first' and 'second'.*'op'.*operation=.*shared=True"):
        registry.register("second", "op", CachePolicy())
    assert registry.operations() == ["op"]


@pytest.mark.parametrize(("one", "other"), [(True, False), (False, True)])
def test_shared_must_be_said_by_both(one: bool, other: bool) -> None:
    registry = PolicyRegistry()
    registry.register("first", "op", CachePolicy(shared=one))
    with pytest.raises(SettingsError, match="shared=True"):
        registry.register("second", "op", CachePolicy(shared=other))


def test_tasks_that_share_an_operation_and_a_task_registered_twice_are_fine() -> None:
    registry = PolicyRegistry()
    for name in ("first", "second", "first"):
        registry.register(name, "op", CachePolicy(shared=True))
    registry.register("alone", "own", CachePolicy())
    registry.register("alone", "own", CachePolicy())
    assert registry.operations() == ["op", "own"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("q", ["q"]), ("q*", ["q", "qa"]), ("?a", ["qa"]), ("*", ["Q", "q", "qa"]), ("[", []), ("Q", ["Q"])],
)
def test_a_pattern_matches_whole_names_and_their_case(pattern: str, found: list[str]) -> None:
    assert matching(pattern, ["qa", "q", "Q"]) == found


def test_directives_that_are_on_travel_as_plain_values() -> None:
    given = {"refresh": True, "bypass": False, "ttl": timedelta(hours=1), "max_age": None}
    assert check_directives(given) == {"refresh": True, "ttl": 3600.0}
    assert directives_from(given) == Directives(refresh=True, ttl_s=3600.0)
    assert directives_from({"max_age": 0}) == Directives(max_age_s=0.0)
    assert directives_from({}) == Directives()


def test_an_unknown_directive_lists_the_known_ones() -> None:
    with pytest.raises(DirectiveError, match=r"unknown 'refesh'; known are refresh, bypass, no_store, only_if_cached"):
        check_directives({"refesh": True})
