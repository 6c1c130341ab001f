"""What one call of a task does to the cache and to its caller: direct calls in this process, no worker."""

from __future__ import annotations

import enum
import functools
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from aicache_tasks import CachedTask, CachePolicy, NotCached, SettingsError, annotate
from aicache_tasks.mode import OFF
from aicache_tasks.runtime import reset_runtime, runtime_of
from aicache_tasks.stores.base import Budget
from aicache_tasks.testing import EmbeddedServer
from tests.caches import Clock, wound_cache
from tests.faults import free_port

Make = Callable[..., Celery]


class Body:
    """A body that counts its runs and returns, or raises, what it is told to."""

    def __init__(self, app: Celery, answer: Any = "answer", **policy: Any) -> None:
        self.runs, self.answer = 0, answer

        def task(text: str = "text", *, size: int = 1, trace: str | None = None) -> Any:
            self.runs += 1
            answer = self.answer(text) if callable(self.answer) else self.answer
            if isinstance(answer, BaseException):
                raise answer
            return answer

        self.task = app.task(base=CachedTask, cache=CachePolicy(**policy), name=f"calls.{len(app.tasks)}")(task)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.task(*args, **kwargs)

    @property
    def status(self) -> tuple[str, str]:
        last = self.task.cache.last
        return last.status, last.set_reason or last.set_status


def test_the_second_identical_call_runs_no_body(make: Make) -> None:
    """C27"""
    body = Body(make(), {"summary": "short"})
    assert [body("a"), body("a")] == [{"summary": "short"}] * 2
    assert body.runs == 1
    last = body.task.cache.last
    assert (last.status, last.reason, last.source, last.compute_ms, last.set_status) == ("hit", "", "redis", 0.0, "")


@pytest.mark.parametrize("value", [None, 0, 0.0, False, "", b"", [], {}, (), set()], ids=repr)
def test_falsy_answers_are_cached_and_keep_their_type(make: Make, value: Any) -> None:
    body = Body(make(), value)
    first, second = body(), body()
    assert (second, type(second), body.runs) == (first, type(first), 1)


@pytest.mark.parametrize(
    "value", [datetime(2024, 2, 29, 12, tzinfo=UTC), Decimal("1.10"), {"a": (1, {2, 3})}, "x" * 200_000], ids=type
)
def test_answers_that_come_back_equal_are_cached_with_their_types(make: Make, value: Any) -> None:
    """F16"""
    body = Body(make(), value)
    first, second = body(), body()
    assert (second, type(second), body.runs) == (first, type(first), 1)


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Own:
    def __init__(self, value: int) -> None:
        self.value = value


@pytest.mark.parametrize("value", [Colour.RED, Own(1), [Own(1)], lambda text: (n for n in "ab")], ids=type)
def test_an_answer_that_would_not_come_back_equal_is_refused_with_a_counted_reason(make: Make, value: Any) -> None:
    """F16"""
    body = Body(make(), value)
    body()
    assert body.status == ("miss", "not_roundtrip")
    body()
    assert body.runs == 2


def test_an_answer_over_the_size_limit_is_refused_with_a_counted_reason(make: Make) -> None:
    """F16"""
    body = Body(make(aicache_max_entry_bytes=1000), "x" * 1001)
    assert [body(), body()] == ["x" * 1001] * 2
    assert (body.status, body.runs) == (("miss", "too_large"), 2)


def test_the_first_caller_gets_the_body_s_own_object(make: Make) -> None:
    mine = {"list": [1]}
    body = Body(make(), mine)
    assert body() is mine


@pytest.mark.parametrize("config", [{}, {"aicache_l1_entries": 10}], ids=["redis", "memory"])
def test_changing_a_returned_answer_changes_no_later_hit(make: Make, config: dict[str, Any]) -> None:
    """F7"""
    body = Body(make(**config), lambda text: {"list": [1]})
    for _ in range(4):
        got = body()
        got["list"].append(2)
        got["new"] = 1
        assert body() == {"list": [1]}
    assert body.runs == 1


@pytest.mark.parametrize("config", [{}, {"aicache_l1_entries": 10}], ids=["redis", "memory"])
def test_nothing_is_served_past_its_lifetime(make: Make, config: dict[str, Any]) -> None:
    """F7"""
    clock, app = Clock(), make(**config)
    runtime = runtime_of(app)
    runtime._cache = wound_cache(clock, settings=runtime.settings, policies=runtime.policies)
    body = Body(app, ttl="100ms")
    body()
    clock.wind(0.09)
    assert (body(), body.status[0]) == ("answer", "hit")
    clock.wind(0.02)
    body()
    assert (body.status[0], body.runs, runtime.settings.ttl) == ("miss", 2, 3600.0)


@pytest.mark.parametrize("config", [{}, {"aicache_l1_entries": 10}], ids=["redis", "memory"])
def test_nothing_is_served_after_an_overwrite_or_an_invalidation(make: Make, config: dict[str, Any]) -> None:
    """F7"""
    body = Body(make(**config))
    body("a")
    assert body.task.cache.set("other", "a")
    assert (body("a"), body.runs) == ("other", 1)
    assert body.task.cache.invalidate("a")
    body.answer = "newer"
    assert (body("a"), body.task.cache.last.reason) == ("newer", "invalidated")
    assert (body("a"), body.runs) == ("newer", 2)


def test_a_refresh_overwrites_what_was_stored(make: Make) -> None:
    """F7"""
    body = Body(make())
    body()
    body.answer = "newer"
    assert body.task.with_cache(refresh=True)() == "newer"
    assert (body.status, body()) == (("refresh", "success"), "newer")


def test_each_task_s_lifetime_is_the_server_s_own(valkey: EmbeddedServer, client: Any, make: Make) -> None:
    """C6"""
    app = make(aicache_url=valkey.url, aicache_ttls={"digest": "5m"})
    bodies = {
        90: Body(app, ttl="90s", operation="own"),
        300: Body(app, operation="digest"),
        3600: Body(app, operation="other"),
    }
    for seconds, body in bodies.items():
        body()
        assert seconds - 30 <= client.ttl(body.task.cache.key()) <= seconds
    bodies[90].task.with_cache(ttl="20s")("by the caller")
    assert 0 < client.ttl(bodies[90].task.cache.key("by the caller")) <= 20


def test_another_version_or_model_is_another_entry(make: Make) -> None:
    """F18"""
    app = make()
    one = Body(app, "one", operation="calls.v", shared=True, version="prompt-1")
    two = Body(app, "two", operation="calls.v", shared=True, version="prompt-2")
    other = Body(app, "other", operation="calls.v", shared=True, version="prompt-1", vary=lambda: {"model": "b"})
    assert [one(), two(), other()] == ["one", "two", "other"]
    assert [one(), two(), other()] == ["one", "two", "other"]
    assert [one.runs, two.runs, other.runs] == [1, 1, 1]


def test_a_failed_body_stores_nothing_and_the_recovered_one_does(make: Make) -> None:
    """F5"""
    body = Body(make(), ConnectionError("model away"))
    for _ in range(2):
        with pytest.raises(ConnectionError, match="model away"):
            body()
        assert body.status == ("miss", "body_failed")
    body.answer = "recovered"
    assert [body(), body(), body.runs] == ["recovered", "recovered", 3]


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"store_if": lambda answer: not answer["fallback"]}, "store_if"),
        ({"validate": lambda answer: not answer["fallback"]}, "validate"),
    ],
)
def test_a_fallback_answer_is_given_but_not_kept(make: Make, policy: dict[str, Any], reason: str) -> None:
    """F5"""
    body = Body(make(), {"fallback": True}, **policy)
    assert body() == {"fallback": True}
    assert body.status == ("miss", reason)
    body.answer = {"fallback": False}
    assert [body(), body(), body.runs] == [{"fallback": False}, {"fallback": False}, 2]


def test_an_invalid_entry_is_not_served_by_a_newer_validate(make: Make) -> None:
    app = make()
    old = Body(app, {"short": 1}, operation="calls.v", shared=True)
    new = Body(app, {"long": 1}, operation="calls.v", shared=True, validate=_must_be_long)
    old()
    assert new() == {"long": 1}
    assert new.task.cache.last.reason == "corrupt"
    assert [new(), new.runs] == [{"long": 1}, 1]


def _must_be_long(answer: dict[str, int]) -> None:
    if "long" not in answer:
        raise ValueError("short")


@pytest.mark.parametrize(
    "argument", ["\ud800", {1: "a", "1": "b"}, {None: 1, 2: 2}, {1, "a"}, [[]] * 3, 2**70], ids=lambda a: ascii(a)[:12]
)
def test_arguments_that_are_hard_to_key_never_fail_a_task(make: Make, argument: Any) -> None:
    """F19"""
    body = Body(make())
    assert body(argument) == body(argument) == "answer"
    assert body.status[0] in ("hit", "bypass")


@pytest.mark.parametrize("argument", [object(), [lambda: 1], {"a": object()}], ids=["object", "function", "nested"])
def test_an_argument_that_cannot_be_keyed_bypasses_with_one_warning_that_names_its_place(
    make: Make, argument: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """F19"""
    body = Body(make())
    assert [body("secret prompt", size=argument), body("secret prompt", size=argument)] == ["answer"] * 2
    assert (body.status[0], body.runs) == ("bypass", 2)
    (warning,) = [record for record in caplog.records if "bypass" in record.getMessage()]
    assert "options.size" in warning.getMessage()
    assert "secret" not in caplog.text


def test_a_loop_in_an_argument_bypasses(make: Make) -> None:
    """F19"""
    loop: list[Any] = []
    loop.append(loop)
    body = Body(make())
    assert (body(loop), body.status[0]) == ("answer", "bypass")


@pytest.mark.parametrize("name", ["vary", "tenant", "tags"])
@pytest.mark.parametrize("takes", ["nothing", "arguments"])
def test_a_policy_callable_that_raises_means_bypass(make: Make, name: str, takes: str) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("secret")

    given = broken if takes == "arguments" else lambda: broken()
    body = Body(make(aicache_strict=False), **{name: given})
    assert [body(), body(), body.status[0], body.runs] == ["answer", "answer", "bypass", 2]


def test_a_policy_callable_that_raises_is_seen_when_strict(make: Make) -> None:
    body = Body(make(), vary=lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        body()
    assert body.runs == 0


@pytest.mark.parametrize("tag", ["doc:{no_such_argument}", "{0}", "{text[0]}"])
def test_a_tag_template_that_cannot_be_filled_means_bypass(make: Make, tag: str) -> None:
    body = Body(make(aicache_strict=False), tags=(tag,))
    assert (body(7), body.status[0]) == ("answer", "bypass")


def test_policy_callables_take_the_bound_arguments_or_nothing(make: Make) -> None:
    seen: list[Any] = []
    current = {"tenant": "a"}
    body = Body(
        make(),
        tenant=lambda: current["tenant"],
        vary=lambda arguments: seen.append(dict(arguments)) or {"size": arguments["size"]},
        tags=lambda arguments: [f"doc:{arguments['text']}"],
    )
    body("a", size=3)
    assert seen == [{"text": "a", "size": 3, "trace": None}]
    current["tenant"] = "b"
    body("a", size=3)
    assert body.runs == 2
    assert body.task.cache.explain("a").tags == ("doc:a",)


def test_positional_keyword_and_default_arguments_are_one_call(make: Make) -> None:
    body = Body(make(), ignore=("trace",))
    for call in (lambda: body("a"), lambda: body(text="a"), lambda: body("a", size=1), lambda: body("a", trace="t")):
        call()
    assert body.runs == 1
    body("a", size=2)
    assert body.runs == 2


def test_an_argument_that_is_not_ignored_by_name_is_keyed(make: Make) -> None:
    body = Body(make())
    body("a", trace="1")
    body("a", trace="2")
    assert body.runs == 2


def test_text_arg_names_the_parameter_that_holds_the_text(make: Make) -> None:
    app = make()

    @app.task(base=CachedTask, cache=CachePolicy(operation="calls.named", text_arg="document", question_arg="ask"))
    def named(document: str, ask: str, size: int = 1) -> str:
        return f"{document}{ask}{size}"

    named("long text", "why?")
    cache = runtime_of(app).cache
    assert cache.get_cached_response("long text", "calls.named", {"size": 1}, "why?") == "long textwhy?1"
    assert cache.generate_cache_key("long text", "calls.named", {"size": 1}, "why?") == named.cache.key(
        "long text", "why?"
    )
    assert named.cache.explain("long text", "why?").keyed == ("text", "question", "size")


def test_a_wrong_call_raises_the_task_s_own_type_error(make: Make) -> None:
    body = Body(make())
    with pytest.raises(TypeError, match="unexpected keyword argument 'nope'"):
        body(nope=1)
    assert body.runs == 0


def test_annotations_add_up_and_show_in_peek(make: Make) -> None:
    app = make()

    @app.task(base=CachedTask, cache={"operation": "calls.told"})
    def told(text: str) -> str:
        annotate(model="m-0", usage={"input_tokens": 3})
        annotate(model="m-1", usage={"input_tokens": 4, "output_tokens": 1}, cost=0.5)
        annotate(cost=0.25)
        return text

    annotate(model="nobody's")  # outside of a body: nothing happens
    assert told.cache.peek("a") is None
    told("a")
    entry = told.cache.peek("a")
    assert (entry.value, entry.model, entry.cost) == ("a", "m-1", 0.75)
    assert entry.usage == {"input_tokens": 7, "output_tokens": 1}
    assert entry.compute_s > 0
    assert 0 < entry.ttl_s <= 3600
    assert entry.age_s < 60
    assert entry.key == told.cache.key("a")


@pytest.mark.parametrize("usage", [{"tokens": 1.5}, {"tokens": True}, {1: 1}, {"details": {"a": 1}}, 5, None], ids=repr)
def test_annotations_of_the_wrong_kind_are_left_out_and_fail_nobody(make: Make, usage: Any) -> None:
    """The answer is paid for by then."""

    def noted(text: str) -> str:
        annotate(usage=usage, cost="free", model=7)
        annotate(usage={"input_tokens": 3}, cost=Decimal("0.5"))
        annotate(usage={"input_tokens": 4}, cost=2)
        return "answer"

    body = Body(make(), noted)
    assert body() == "answer"
    entry = body.task.cache.peek()
    assert (entry.usage, entry.cost, entry.model) == ({"input_tokens": 7}, 2.5, None)


def test_annotations_of_an_inner_call_stay_with_it(make: Make) -> None:
    app = make()
    inner = Body(app, lambda text: annotate(model="inner") or "i")

    def outer_answer(text: str) -> str:
        annotate(model="outer")
        inner(text)
        annotate(usage={"tokens": 1})
        return "o"

    outer = Body(app, outer_answer)
    outer("a")
    assert (outer.task.cache.peek("a").model, inner.task.cache.peek("a").model) == ("outer", "inner")
    assert (outer.task.cache.peek("a").usage, inner.task.cache.peek("a").usage) == ({"tokens": 1}, None)


def test_a_body_that_calls_its_own_task_with_the_same_arguments_ends(make: Make) -> None:
    depth = {"now": 0}
    body = Body(make())

    def again(text: str) -> str:
        depth["now"] += 1
        return "deep" if depth["now"] == 3 else body(text) + "er"

    body.answer = again
    assert body("a") == "deeperer"
    assert body("a") == "deeperer"
    assert body.runs == 3


def test_peek_set_invalidate_and_explain_run_no_body(make: Make) -> None:
    body = Body(make())
    cache = body.task.cache
    assert cache.peek("a") is None
    assert not cache.invalidate("a")
    assert cache.explain("a")[:2] == ("miss", "invalidated")
    assert cache.explain("b")[:2] == ("miss", "key_not_found")
    assert cache.set({"b": 1}, "b")
    assert cache.peek("b").value == {"b": 1}
    assert cache.explain("b").status == "hit"
    assert cache.invalidate("b")
    assert cache.peek("b") is None
    assert cache.explain(size=object()) == cache.explain(size=object())
    assert cache.explain(size=object()).status == "bypass"
    assert body.runs == 0


@pytest.mark.parametrize("name", ["value", "self", "args", "kwargs"])
def test_a_task_s_parameter_may_have_any_name(make: Make, name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def named({name}): return 'computed'", scope)
    cache = make().task(base=CachedTask, cache={}, name="calls.named")(scope["named"]).cache
    assert cache.set("stored", **{name: 3})
    assert cache.peek(**{name: 3}).value == "stored"
    assert cache.key(**{name: 3}) == cache.explain(**{name: 3}).key
    assert cache.invalidate(**{name: 3})


def test_peek_of_a_call_that_cannot_be_keyed_is_none(make: Make) -> None:
    assert Body(make()).task.cache.peek(object()) is None


def test_a_call_that_the_switch_stops_is_explained_by_the_switch_alone(make: Make) -> None:
    cache = Body(make()).task.cache
    cache.set("answer", "a")
    cache.invalidate("a")
    cache.plan.mode.switch(off=True, budget=Budget(1))
    cache.plan.mode.note(OFF, 0.0)
    assert cache.explain("a")[:2] == ("disabled", "")
    assert not cache.set("answer", "a")


def test_explain_says_that_a_policy_callable_raised_and_quotes_nothing(make: Make) -> None:
    app = make(aicache_strict=False)
    untaggable, broken = Body(app, tags=("doc:{nosuch}",)), Body(app, vary=lambda call: {}[call["text"]])
    for body, error in ((untaggable, "ValueError"), (broken, "KeyError")):
        found = body.task.cache.explain("secret")
        assert found[:2] == ("bypass", f"vary=, tenant= or tags= raised {error}")
        assert "secret" not in repr(found)


def test_explain_of_a_wrong_call_is_the_task_s_own_type_error(make: Make) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nope'"):
        Body(make()).task.cache.explain(nope=1)


def test_what_steers_a_task_passes_through_explain(make: Make) -> None:
    def interrupted(arguments: Any) -> Any:
        raise SoftTimeLimitExceeded

    with pytest.raises(SoftTimeLimitExceeded):
        Body(make(), vary=interrupted).task.cache.explain("a")


def test_a_disabled_cache_with_no_server_can_be_asked(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AICACHE_DISABLED", "1")
    cache = Body(make(aicache_url=None)).task.cache
    assert (cache.peek("a"), cache.explain("a").status) == (None, "disabled")


class Interrupts:
    """An argument over whose serialization something is raised."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __json__(self) -> Any:
        raise self._error


@pytest.mark.parametrize("error", [SoftTimeLimitExceeded(), Retry("later"), Ignore()], ids=lambda e: type(e).__name__)
def test_what_steers_a_task_passes_through_the_serializer(make: Make, error: Exception) -> None:
    cache = Body(make()).task.cache
    for ask in (cache.key, cache.peek, cache.invalidate, cache.explain, functools.partial(cache.set, "answer")):
        with pytest.raises(type(error)) as caught:
            ask(Interrupts(error))
        assert caught.value is error


def test_a_soft_limit_that_a_body_is_handling_is_not_raised_again(make: Make) -> None:
    cache = Body(make()).task.cache
    try:
        raise SoftTimeLimitExceeded
    except SoftTimeLimitExceeded:
        assert cache.peek(Interrupts(ValueError("cannot be sent"))) is None


def test_a_handler_s_own_exception_passes_through_the_serializer(make: Make) -> None:
    """A signal handler of the application's own may raise what it likes."""

    class Deadline(Exception):  # noqa: N818 - what an application calls it
        pass

    def raises(*signal_and_frame: Any) -> None:
        raise Deadline

    class Interrupted:
        def __json__(self) -> Any:
            signal.raise_signal(signal.SIGUSR2)

    former = signal.signal(signal.SIGUSR2, raises)
    try:
        with pytest.raises(Deadline):
            Body(make()).task.cache.peek(Interrupted())
    finally:
        signal.signal(signal.SIGUSR2, former)


@pytest.mark.parametrize(
    "call", [lambda task, x: task(x), lambda task, x: task.apply((x,)).get()], ids=["call", "apply"]
)
@pytest.mark.parametrize(("one", "other"), [({1: "a"}, {"1": "a"}), (Level.LOW, 1)], ids=str)
def test_a_call_here_is_keyed_by_what_its_body_sees(make: Make, call: Any, one: Any, other: Any) -> None:
    """No serializer makes these two calls one: the body sees them as they are."""
    body = Body(make(), repr)
    for _ in range(2):
        assert [call(body.task, one), call(body.task, other)] == [repr(one), repr(other)]
    assert body.runs == 2
    assert body.task.cache.key(one) == body.task.cache.key(other)


def test_a_fallback_that_is_returned_after_a_retry_was_sent_is_not_stored(make: Make) -> None:
    def body(self: Any, text: str) -> str:
        if self.request.retries == 0:
            self.retry(countdown=0, throw=False)
            return "fallback"
        return "answer"

    task = make().task(base=CachedTask, cache={}, bind=True, name="calls.fallback")(body)
    assert task.apply(("a",)).get() == "fallback"
    assert (task.cache.last.set_status, task.cache.last.set_reason) == ("skipped", "no_store")
    assert task.cache.peek("a") is None  # a worker's retry would be answered with it


def test_set_says_when_nothing_was_stored(make: Make) -> None:
    body = Body(make())
    assert not body.task.cache.set(Own(1), "a")
    assert body.task.cache.peek("a") is None


def test_explain_names_what_is_keyed_and_shows_no_argument(make: Make) -> None:
    body = Body(make(), ignore=("trace",), version=3, ttl="10m")
    body("secret prompt", trace="t")
    found = body.task.cache.explain("secret prompt", size=1)
    assert (found.status, found.version, found.ttl_s) == ("hit", 3, 600.0)
    assert (found.keyed, found.ignored) == (("text", "size"), ("trace",))
    assert found.stored_bytes > 0
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    "error",
    [SoftTimeLimitExceeded(), Retry("later"), Ignore(), Reject("no"), KeyboardInterrupt(), SystemExit(3), ValueError()],
    ids=lambda error: type(error).__name__,
)
def test_what_a_body_raises_passes_untouched_and_stores_nothing(make: Make, error: BaseException) -> None:
    body = Body(make(), error)
    with pytest.raises(type(error)) as caught:
        body()
    assert caught.value is error
    assert body.task.cache.peek() is None


@pytest.mark.parametrize("error", [SoftTimeLimitExceeded(), Ignore(), Retry("later")], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("name", ["vary", "store_if", "validate"])
def test_what_steers_a_task_passes_through_policy_callables(make: Make, name: str, error: Exception) -> None:
    def interrupted(*given: Any) -> Any:
        raise error

    body = Body(make(aicache_strict=False), **{name: interrupted})
    with pytest.raises(type(error)):
        body()


@pytest.mark.parametrize("name", ["store_if", "validate"])
def test_a_policy_callable_that_breaks_on_an_answer_does_not_fail_the_task(make: Make, name: str) -> None:
    body = Body(make(aicache_strict=False), **{name: lambda answer: 1 / 0})
    assert [body(), body.status, body.runs] == ["answer", ("miss", name), 1]


def test_two_threads_have_a_last_call_each(make: Make) -> None:
    body = Body(make())
    body("a")
    seen: list[Any] = [body.task.cache.last.status]

    def other() -> None:
        seen.append(body.task.cache.last)
        body("a")
        seen.append(body.task.cache.last.status)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == ["miss", None, "hit"]
    assert body.task.cache.last.status == "miss"


def test_many_threads_get_their_own_answers(make: Make) -> None:
    body = Body(make(), str.upper)
    wrong: list[str] = []

    def work(seed: int) -> None:
        for n in range(200):
            text = f"t{(n * seed) % 7}"
            if body(text) != text.upper():
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert body.runs < 100


def test_a_task_without_a_policy_is_a_stock_task(make: Make) -> None:
    app = make(aicache_url=None)

    @app.task(base=CachedTask)
    def plain(text: str) -> str:
        return text

    assert plain("a") == plain.run("a") == plain.apply(("a",)).get() == "a"
    assert plain.cache is None
    assert plain.resultrepr_maxsize != 0
    with pytest.raises(SettingsError, match="no cache="):
        plain.with_cache(refresh=True)


def test_calling_run_goes_past_the_cache(make: Make) -> None:
    body = Body(make())
    assert [body.task.run(), body.task.run(), body.runs] == ["answer", "answer", 2]


def test_the_cache_is_off_when_disabled(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make()
    monkeypatch.setenv("AICACHE_DISABLED", "1")
    body = Body(app)
    assert [body(), body(), body.status, body.runs] == ["answer", "answer", ("disabled", ""), 2]


def test_a_disabled_cache_needs_no_server(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AICACHE_DISABLED", "1")
    body = Body(make(aicache_url=None))
    assert [body(), body.status, body.runs] == ["answer", ("disabled", ""), 1]


@pytest.mark.parametrize(("eager", "runs"), [(False, 2), (True, 1)])
def test_always_eager_uses_the_cache_only_if_asked_to(make: Make, eager: bool, runs: int) -> None:
    body = Body(make(task_always_eager=True, aicache_eager=eager))
    assert [body.task.delay("a").get(), body("a")] == ["answer", "answer"]
    assert body.runs == runs


def test_apply_uses_the_cache_without_always_eager(make: Make) -> None:
    body = Body(make())
    assert [body.task.apply(("a",)).get(), body.task.apply(("a",)).get(), body("a"), body.runs] == ["answer"] * 3 + [1]


def test_the_status_of_a_call_is_in_no_header_of_its_retry(make: Make) -> None:
    seen: list[Any] = []

    def body(self: Any, text: str) -> str:
        seen.append((self.request.aicache.status, self.request.headers))
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return text

    task = make().task(base=CachedTask, cache={}, bind=True, name="calls.retries")(body)
    assert task.apply(("a",)).get() == "a"
    assert seen == [("miss", {})] * 3


def test_a_missing_url_names_both_settings(make: Make) -> None:
    app = make(aicache_url=None, result_backend="redis://localhost/0")
    body = Body(app)
    with pytest.raises(SettingsError, match=r"aicache_url.*aicache_share_backend"):
        body()
    app.conf.aicache_share_backend = True
    reset_runtime(app)
    assert runtime_of(app).settings.url == "redis://localhost/0"


def test_a_broken_server_leaves_the_result_as_it_is(make: Make) -> None:
    """S3, C13: no connection, the task runs as if there were no cache."""
    body = Body(make(aicache_url=f"redis://127.0.0.1:{free_port()}/0"), {"a": 1})
    assert [body(), body(), body.runs] == [{"a": 1}, {"a": 1}, 2]
    last = body.task.cache.last
    assert (last.status, last.set_status) == ("error", "failed")


def test_a_refused_write_leaves_the_result_as_it_is(own_server: EmbeddedServer, make: Make) -> None:
    """S2"""
    body = Body(make(aicache_url=own_server.url), {"a": 1})
    with own_server.client() as client:
        client.config_set("maxmemory", 1)
    assert [body(), body(), body.runs] == [{"a": 1}, {"a": 1}, 2]
    last = body.task.cache.last
    assert (last.set_status, last.set_reason) == ("failed", "redis_error") or last.set_reason == "breaker_open"


def test_the_text_is_in_no_key_and_no_log_line(
    valkey: EmbeddedServer, client: Any, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """F3"""
    caplog.set_level("DEBUG", "aicache_tasks")
    body = Body(make(aicache_url=valkey.url), str.upper, tags=("doc:{text}",), tenant="Ms Doe")
    body("canary prompt")
    body("canary prompt")
    body("canary prompt", size=object())
    body.task.cache.invalidate("canary prompt")
    shown = " ".join(key.decode() for key in client.scan_iter(count=1000)).lower() + caplog.text.lower()
    assert body.runs == 2
    assert "canary" not in shown
    assert "ms doe" not in shown


def test_only_if_cached_never_computes_also_when_there_is_no_look_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller who will not pay gets `NotCached` from a disabled cache and for a call that cannot be keyed."""
    body = Body(make())
    with pytest.raises(NotCached):
        body.task.with_cache(only_if_cached=True)(size=object())
    monkeypatch.setenv("AICACHE_DISABLED", "1")
    off = Body(make())
    with pytest.raises(NotCached):
        off.task.with_cache(only_if_cached=True)()
    assert body.runs == off.runs == 0
