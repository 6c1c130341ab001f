"""What one caller asks of the cache for one call, and how it gets to the worker: in the message's headers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import chain, chord, group, signals

from aicache_tasks import CachedTask, DirectiveError, NotCached
from aicache_tasks.directed import HEADER
from aicache_tasks.policy import NO_DIRECTIVES
from aicache_tasks.taskcache import _from_headers
from tests.cluster.nodes import wait_until
from tests.tasks.bench_tasks import Level, Question, counts
from tests.tasks.conftest import Bench

TIMEOUT_S = 30
Info = Callable[[Any], dict[str, str]]


@pytest.fixture
def x(bench: Bench) -> str:
    return f"{bench.pool}-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def info(bench: Bench) -> Info:
    """Return a function that waits for a result and says how the worker's call went."""

    def get(result: Any) -> dict[str, str]:
        result.get(timeout=TIMEOUT_S, propagate=False)
        client = counts(bench.app.conf.result_backend)
        wait_until(lambda: client.exists(f"status:{result.id}"), TIMEOUT_S, "status")
        return dict(client.hgetall(f"info:{result.id}"))

    return get


@pytest.fixture
def sent() -> Iterator[list[dict[str, Any]]]:
    """The headers of the messages that this process sends."""
    seen: list[dict[str, Any]] = []

    def note(headers: dict[str, Any], **_: Any) -> None:
        seen.append(dict(headers))

    signals.before_task_publish.connect(note, weak=False)
    yield seen
    signals.before_task_publish.disconnect(note)


WAYS: dict[str, Callable[[Any, str], Any]] = {
    "delay": lambda task, x: task.delay(x),
    "apply_async": lambda task, x: task.apply_async((x,), headers={"mine": 1}),
    "s": lambda task, x: task.s(x).delay(),
    "si": lambda task, x: task.si(x).apply_async(),
    "signature": lambda task, x: task.signature((x,), headers={"mine": 1}).apply_async(countdown=0.01),
    "clone": lambda task, x: task.s(x).clone().set(priority=3).apply_async(),
    "chain": lambda task, x: (task.si(x) | task.si(x))(),
    "group": lambda task, x: group([task.s(x)])().results[0],
    "chord body": lambda task, x: chord([task.s(x)], task.si(x))(),
    "json": lambda task, x: task._task.app.signature(_through_json(task.s(x))).delay(),
}


def _through_json(signature: Any) -> Any:
    from kombu.utils.json import dumps, loads

    return loads(dumps(signature))


@pytest.mark.parametrize("way", WAYS)
def test_directives_reach_the_worker_however_a_task_is_sent(bench: Bench, info: Info, x: str, way: str) -> None:
    task = bench.app.cached.shout
    assert info(task.delay(x))["status"] == "miss"
    assert info(WAYS[way](task.with_cache(refresh=True), x))["status"] == "refresh"
    assert info(task.delay(x))["status"] == "hit"


@pytest.mark.parametrize(
    ("directives", "status", "set_reason"),
    [
        ({"refresh": True}, "refresh", ""),
        ({"bypass": True}, "bypass", ""),
        ({"no_store": True}, "hit", ""),
        ({"max_age": 0}, "miss", ""),
        ({"max_age": "1h"}, "hit", ""),
        ({"only_if_cached": True}, "hit", ""),
        ({"ttl": "5m"}, "hit", ""),
        ({"refresh": True, "no_store": True}, "refresh", "no_store"),
        ({"max_age": 0, "ttl": 20}, "miss", ""),
    ],
    ids=str,
)
def test_each_directive_does_what_it_says_in_a_worker(
    bench: Bench, info: Info, x: str, directives: dict[str, Any], status: str, set_reason: str
) -> None:
    task = bench.app.cached.shout
    info(task.delay(x))
    found = info(task.with_cache(**directives).delay(x))
    assert (found["status"], found["set_reason"]) == (status, set_reason)


def test_a_call_with_no_store_is_paid_again(bench: Bench, info: Info, x: str) -> None:
    task = bench.app.cached.shout
    for _ in range(2):
        assert info(task.with_cache(no_store=True).delay(x))["set_reason"] == "no_store"
    assert info(task.delay(x))["status"] == "miss"


def test_a_caller_s_lifetime_is_the_entry_s(bench: Bench, info: Info, x: str) -> None:
    """C6"""
    task = bench.app.cached.shout
    info(task.with_cache(ttl="20s").delay(x))
    with bench.cache.client() as client:
        assert 10 <= client.ttl(task.cache.key(x)) <= 20
    assert task.cache.peek(x).ttl_s <= 20


def test_only_if_cached_fails_as_not_cached_through_the_result_backend(bench: Bench, x: str) -> None:
    result = bench.app.cached.shout.with_cache(only_if_cached=True).delay(x)
    with pytest.raises(NotCached, match="no entry for this call of"):
        result.get(timeout=TIMEOUT_S)
    assert result.state == "FAILURE"
    assert not counts(bench.app.conf.result_backend).exists(f"runs:cached:{x}")


def test_directives_stay_with_a_call_over_its_retries(
    bench: Bench, info: Info, x: str, sent: list[dict[str, Any]]
) -> None:
    task = bench.app.cached.third_time
    result = task.with_cache(ttl="20s").apply_async((x,), headers={"mine": 1})
    assert info(result)["status"] == "miss"
    assert task.cache.peek(x).ttl_s <= 20
    assert [headers[HEADER] for headers in sent] == [{"ttl": 20.0}]
    client, noted = counts(bench.app.conf.result_backend), f"headers:{result.id}"
    wait_until(lambda: client.llen(noted) == 3, TIMEOUT_S, "three attempts")
    received = client.lrange(noted, 0, -1)
    assert [json.loads(headers) for headers in received] == [{HEADER: {"ttl": 20.0}, "mine": 1}] * 3


def test_directives_are_for_the_first_task_of_a_chain_alone(bench: Bench, info: Info, x: str) -> None:
    task = bench.app.cached.shout
    info(chain(task.s(x), task.s("?"))())
    result = chain(task.with_cache(refresh=True).s(x), task.s("?"))()
    assert [info(result)["status"], info(result.parent)["status"]] == ["hit", "refresh"]


def test_directives_are_for_one_member_of_a_group_alone(bench: Bench, info: Info, x: str) -> None:
    task = bench.app.cached.shout
    for y in ("a", "b"):
        info(task.delay(x, y))
    result = group(task.with_cache(refresh=True).s(x, "a"), task.s(x, "b"))()
    assert [info(member)["status"] for member in result.results] == ["refresh", "hit"]


def test_directives_are_not_for_what_a_body_calls(bench: Bench, info: Info, x: str) -> None:
    tasks = bench.app.cached
    info(tasks.quote.delay(x))
    info(tasks.factorial.delay(x, 2))
    assert info(tasks.quote.with_cache(refresh=True).delay(x))["status"] == "refresh"
    assert info(tasks.factorial.with_cache(refresh=True).delay(x, 2))["status"] == "refresh"
    # quote and the shout in it, factorial(2) and factorial(1); then quote and factorial(2) alone
    assert int(counts(bench.app.conf.result_backend).get(f"runs:cached:{x}")) == 4 + 2


def test_apply_and_direct_calls_take_directives(threads: Bench) -> None:
    x, task = f"here-{uuid.uuid4().hex}", threads.app.cached.shout
    statuses = []
    for call in (
        lambda: task(x),
        lambda: task.with_cache(refresh=True)(x),
        lambda: task.with_cache(refresh=True).apply((x,)).get(),
        lambda: task.with_cache(max_age="1h").apply((x,), headers={"mine": 1}).get(),
        lambda: task.with_cache(bypass=True)(x),
    ):
        call()
        statuses.append(task.cache.last.status)
    assert statuses == ["miss", "refresh", "refresh", "hit", "bypass"]
    with pytest.raises(NotCached):
        task.with_cache(only_if_cached=True)(f"{x}|other")


def test_the_task_itself_keeps_no_directive(threads: Bench) -> None:
    x, task = f"here-{uuid.uuid4().hex}", threads.app.cached.shout
    task.with_cache(bypass=True)(x)
    task(x)
    assert task.cache.last.status == "miss"


@pytest.mark.parametrize(
    "given",
    [
        {"refesh": True},
        {"refresh": 1},
        {"refresh": "yes"},
        {"max_age": "soon"},
        {"max_age": -1},
        {"max_age": True},
        {"ttl": 0},
        {"ttl": float("inf")},
        {"ttl": float("nan")},
        {"ttl": [1]},
        {"bypass": True, "refresh": True},
        {"bypass": True, "no_store": True},
        {"bypass": True, "only_if_cached": True},
        {"bypass": True, "max_age": 5},
        {"bypass": True, "ttl": 5},
        {"refresh": True, "only_if_cached": True},
        {"refresh": True, "max_age": 5},
        {"refresh": True, "max_age": 0},
        {"no_store": True, "ttl": 5},
        {"only_if_cached": True, "ttl": 5},
    ],
    ids=str,
)
def test_an_unknown_or_contradicting_directive_is_an_error_at_the_caller(
    threads: Bench, given: dict[str, Any], sent: list[dict[str, Any]]
) -> None:
    with pytest.raises(DirectiveError, match=f"with_cache.*{next(iter(given))}"):
        threads.app.cached.shout.with_cache(**given)
    assert sent == []


def test_no_directive_is_a_plain_call(threads: Bench, info: Info, x: str) -> None:
    task = threads.app.cached.shout
    task.delay(x).get(timeout=TIMEOUT_S)
    assert task.with_cache(refresh=False, ttl=None).delay(x).get(timeout=TIMEOUT_S) == f"{x}|!"


HOSTILE: tuple[Any, ...] = (
    "refresh",
    7,
    [],
    ["refresh"],
    {"refresh": "yes"},
    {"bypass": True, "refresh": True},
    {"nope": 1},
    {"max_age": "x" * 1000},
    {"ttl": 1e308},
    {"ttl": -5},
    {"refresh": {"a": {}}},
    {"": None},
)


@pytest.mark.parametrize("header", HOSTILE, ids=lambda header: str(header)[:30])
def test_directives_that_make_no_sense_in_a_message_are_ignored(bench: Bench, info: Info, x: str, header: Any) -> None:
    task = bench.app.cached.shout
    for status in ("miss", "hit"):
        result = task.apply_async((x,), headers={HEADER: header})
        assert info(result)["status"] == status
        assert result.get(timeout=TIMEOUT_S) == f"{x}|!"


class Broken(dict[str, Any]):
    """A mapping that a serializer of the application's own may deliver."""

    def items(self) -> Any:
        raise RecursionError


@pytest.mark.parametrize(
    "given",
    [
        {1: True, "x": 1},
        {None: 1, (1, 2): 2, "refresh": True},
        {"ttl": -(10**5000)},
        {"ttl": 10**5000},
        {"max_age": -(10**400)},
        {"max_age": "9" * 1_000_000},
        {"ttl": "1h" * 500_000},
        {"x" * 1_000_000: 1},
        Broken(refresh=True),
        *HOSTILE,
    ],
    ids=range(9 + len(HOSTILE)),
)
def test_any_directives_of_a_message_can_be_read_and_the_warning_names_the_task(
    given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert _from_headers({HEADER: given}, "shop.summarize") == NO_DIRECTIVES
    assert [record.getMessage() for record in caplog.records] == [
        "aicache: a message for task 'shop.summarize' has cache directives that make no sense; they are ignored"
    ]


@pytest.mark.parametrize("value", [["hit"], {"status": "hit"}, "hit", None, 1])
def test_a_message_cannot_pretend_to_have_been_answered(bench: Bench, info: Info, x: str, value: Any) -> None:
    task = bench.app.cached.shout
    result = task.with_cache(no_store=True).apply_async((x,), headers={"aicache": value, "key": "mine", "tenant": "b"})
    found = info(result)
    assert (found["status"], found["set_reason"], found["key"]) == ("miss", "no_store", task.cache.key(x))


@pytest.mark.parametrize(
    "argument",
    [
        {1: "x"},
        {"a": (1, (2,))},
        Level.LOW,
        [Level.LOW, None],
        1.0,
        2**60,
        "é\u0301",
        {"b": 1, "a": 2},
        uuid.UUID(int=5),
    ],
    ids=str,
)
def test_producer_and_worker_have_one_key_for_what_json_changes(
    bench: Bench, info: Info, x: str, argument: Any
) -> None:
    task = bench.app.cached.constant
    key = task.cache.key(x, argument)
    found = info(task.delay(x, what=argument))
    assert (found["status"], found["key"]) == ("miss", key)


@pytest.mark.parametrize("argument", [{1, 2}, frozenset({"a"}), (1, 2), {1: Level.LOW}, Question(x="a")], ids=repr)
def test_producer_and_worker_have_one_key_for_what_pickle_delivers(
    bench: Bench, info: Info, x: str, argument: Any
) -> None:
    task = bench.app.cached.pickled
    key = task.cache.key(x, [argument])
    found = info(task.delay(x, [argument]))
    assert (found["status"], found["key"]) == ("miss", key)


def test_producer_and_worker_have_one_key_for_a_model(bench: Bench, info: Info, x: str) -> None:
    task, question = bench.app.cached.modelled, Question(x=x, size=2)
    found = info(task.delay(question.model_dump()))
    assert (found["status"], found["key"]) == ("miss", task.cache.key(question.model_dump()))
    if getattr(CachedTask, "_dump_pydantic_arguments", 0) is None:  # since Celery 5.7 callers may give the model itself
        assert task.cache.key(question) == found["key"]
        assert info(task.delay(question))["status"] == "hit"
