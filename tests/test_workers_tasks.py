"""The AI tasks on a real Valkey: as direct calls, and through a real worker."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest
from celery import Celery, _state, group
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from aicache_tasks.redaction import REQUEST
from aicache_tasks.testing import EmbeddedServer
from tests.caches import PATIENT
from workers import engines, tasks
from workers.app import make_app
from workers.articles import ARTICLES
from workers.engines.base import (
    NO_ANSWER,
    Completion,
    EmptyReply,
    EngineRequest,
    FailedReply,
    RefusedReply,
    TruncatedReply,
    UnparsableReply,
)
from workers.operations import PROMPT_VERSIONS, InputError

TEXT = ARTICLES[0].text
QUESTION = ARTICLES[0].question
ARGUMENTS: dict[str, dict[str, Any]] = {
    "summarize": {"text": TEXT},
    "sentiment": {"text": TEXT},
    "key_points": {"text": TEXT},
    "questions": {"text": TEXT},
    "qa": {"text": TEXT, "question": QUESTION},
}
GOOD = {
    "summarize": "A good summary.",
    "sentiment": '{"sentiment": "mixed", "confidence": 0.5, "explanation": "Both."}',
    "key_points": "- one\n- two",
    "questions": "1. Who?\n2. Why?",
    "qa": "It came to 3.4 million.",
}
TTLS_S = {"summarize": 7200, "sentiment": 86400, "key_points": 7200, "questions": 3600, "qa": 1800}
FIELDS = {
    "summarize": "result",
    "sentiment": "sentiment",
    "key_points": "key_points",
    "questions": "questions",
    "qa": "result",
}
each_operation = pytest.mark.parametrize("operation", PROMPT_VERSIONS)


class StubEngine:
    """An engine that is told what to answer, and counts how often it is asked."""

    name = "stub"

    def __init__(self) -> None:
        self.model = "stub-1"
        self.sampling: Mapping[str, Any] = {"temperature": 0}
        self.asked: list[str] = []
        self.answer: Callable[[EngineRequest], Completion] = self.good

    def good(self, request: EngineRequest) -> Completion:
        usage = {"input_tokens": 812, "output_tokens": 96}
        return Completion(GOOD[request.operation], usage, self.model, "stop")

    def complete(self, request: EngineRequest) -> Completion:
        self.asked.append(request.operation)
        return self.answer(request)

    def reply(self, text: str, reason: Any = "stop") -> None:
        self.answer = lambda _: Completion(text, None, self.model, reason)

    def fail(self, error: BaseException) -> None:
        def answer(_: EngineRequest) -> Completion:
            raise error

        self.answer = answer


@pytest.fixture
def app(valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """The workers' application on this test's server, as the current one."""
    monkeypatch.setenv("AICACHE_STRICT", "1")
    monkeypatch.delenv(engines.ENGINE_VARIABLE, raising=False)
    default = _state.default_app
    made = make_app({"AICACHE_BROKER_URL": valkey.url, "AICACHE_URL": valkey.url})
    made.conf.update(PATIENT)
    made.set_current()
    made.set_default()
    made.finalize()
    yield made
    made.close()
    _state.set_default_app(default)
    _state._set_current_app(default)


@pytest.fixture
def worker(app: Celery) -> Iterator[None]:
    with start_worker(app, pool="threads", concurrency=2, perform_ping_check=False, shutdown_timeout=20.0):
        yield


@pytest.fixture
def stub(app: Celery, monkeypatch: pytest.MonkeyPatch) -> StubEngine:
    """The engine in force, named by its dotted path as an application's own would be."""
    engine, module = StubEngine(), ModuleType("stub_engine")
    module.__dict__["make"] = lambda: engine
    monkeypatch.setitem(sys.modules, "stub_engine", module)
    monkeypatch.setenv(engines.ENGINE_VARIABLE, "stub_engine:make")
    engines.load_engine.cache_clear()
    return engine


def call(operation: str, **given: Any) -> dict[str, Any]:
    answer: dict[str, Any] = getattr(tasks, operation)(**{**ARGUMENTS[operation], **given})
    return answer


def last_status(operation: str) -> str:
    return str(getattr(tasks, operation).cache.last.status)


class TestOneOperation:
    @each_operation
    def test_a_response_has_its_field_and_no_time(self, stub: StubEngine, operation: str) -> None:
        response = call(operation)
        assert list(response) == ["operation", "success", FIELDS[operation], "metadata"]
        assert response["success"] is True
        assert response["metadata"] == {
            "word_count": len(TEXT.split()),
            "engine": "stub",
            "model": "stub-1",
            "prompt_version": PROMPT_VERSIONS[operation],
        }

    @each_operation
    def test_a_hit_equals_what_was_computed_and_asks_no_engine(self, stub: StubEngine, operation: str) -> None:
        computed = call(operation)
        assert last_status(operation) == "miss"
        assert call(operation) == computed
        assert last_status(operation) == "hit"
        assert stub.asked == [operation]

    @each_operation
    def test_an_entry_has_its_operations_lifetime_and_says_what_it_took(self, stub: StubEngine, operation: str) -> None:
        call(operation)
        entry = getattr(tasks, operation).cache.peek(**ARGUMENTS[operation])
        assert TTLS_S[operation] - 60 < entry.ttl_s <= TTLS_S[operation]
        assert (entry.model, entry.usage) == ("stub-1", {"input_tokens": 812, "output_tokens": 96})

    def test_a_default_given_or_left_out_is_the_same_call(self, stub: StubEngine) -> None:
        assert call("summarize") == call("summarize", max_length=100)
        assert stub.asked == ["summarize"]
        call("summarize", max_length=101)
        assert stub.asked == ["summarize", "summarize"]

    @pytest.mark.parametrize(
        ("attribute", "value"), [("name", "other"), ("model", "stub-2"), ("sampling", {"temperature": 0.7})]
    )
    @each_operation
    def test_another_engine_model_or_sampling_is_another_call(
        self, stub: StubEngine, monkeypatch: pytest.MonkeyPatch, operation: str, attribute: str, value: Any
    ) -> None:
        before = getattr(tasks, operation).cache.key(**ARGUMENTS[operation])
        monkeypatch.setattr(stub, attribute, value)
        assert getattr(tasks, operation).cache.key(**ARGUMENTS[operation]) != before

    @each_operation
    def test_the_prompt_version_is_in_the_policy(self, app: Celery, operation: str) -> None:
        assert getattr(tasks, operation).cache.policy.version == PROMPT_VERSIONS[operation]

    @pytest.mark.parametrize(
        ("reply", "reason", "error"),
        [
            ("A good summary.", "length", TruncatedReply),
            ("A good summary.", "refusal", RefusedReply),
            ("A good summary.", "error", FailedReply),
            ("", "stop", EmptyReply),
            ("short", "stop", UnparsableReply),
        ],
    )
    def test_a_bad_reply_is_an_error_is_not_stored_and_the_next_call_recovers(
        self, stub: StubEngine, reply: str, reason: str, error: type[Exception]
    ) -> None:
        stub.reply(reply, reason)
        with pytest.raises(error):
            call("summarize")
        assert tasks.summarize.cache.peek(TEXT) is None
        stub.answer = stub.good
        assert call("summarize")["result"] == "A good summary."
        assert last_status("summarize") == "miss"

    def test_an_unparsable_sentiment_is_not_stored(self, stub: StubEngine) -> None:
        stub.reply("I feel it is rather good")
        with pytest.raises(UnparsableReply):
            call("sentiment")
        assert tasks.sentiment.cache.peek(TEXT) is None

    def test_a_question_without_an_answer_is_marked_and_asked_again(self, stub: StubEngine) -> None:
        stub.reply(NO_ANSWER)
        assert call("qa")["success"] is False
        assert tasks.qa.cache.last.set_reason == "store_if"
        assert call("qa")["metadata"]["reason"] == "no_answer"
        assert len(stub.asked) == 2

    def test_an_argument_outside_its_limits_reaches_no_engine(self, stub: StubEngine) -> None:
        for bad in ({"text": "short"}, {"max_length": 9}, {"max_length": "100"}):
            with pytest.raises(InputError):
                call("summarize", **bad)
        assert stub.asked == []


class TestThroughAWorker:
    def test_the_extractive_engine_answers_each_operation_and_a_hit_is_equal(self, worker: None) -> None:
        for operation, arguments in ARGUMENTS.items():
            task = getattr(tasks, operation)
            computed = task.delay(**arguments).get(timeout=20)
            assert computed["success"] is True
            assert computed[FIELDS[operation]]
            assert task.delay(**arguments).get(timeout=20) == computed
            assert task.cache.peek(**arguments).value == computed

    def test_errors_come_back_as_what_they_are(self, stub: StubEngine, worker: None) -> None:
        with pytest.raises(InputError, match="text: must be 10 to 10000 characters, not 3"):
            tasks.summarize.delay("abc").get(timeout=20)
        stub.reply("A good", "length")
        with pytest.raises(TruncatedReply) as caught:
            tasks.qa.delay(TEXT, QUESTION).get(timeout=20)
        assert (caught.value.operation, caught.value.detail) == ("qa", "finish reason length")

    def test_a_batch_answers_as_a_direct_call_does(self, worker: None) -> None:
        requests = [{"operation": o, **a} for o, a in ARGUMENTS.items()] + [{"operation": "translate", "text": TEXT}]
        answered = tasks.batch.delay(requests).get(timeout=20)
        assert (answered["total_requests"], answered["completed"], answered["failed"]) == (6, 5, 1)
        assert tasks.batch(requests) == answered
        assert {last_status(operation) for operation in ARGUMENTS} == {"hit"}


class TestBatch:
    def test_bad_items_fail_alone_and_the_counts_add_up(self, stub: StubEngine) -> None:
        bad = [
            "no object",
            None,
            {},
            {"operation": "translate", "text": TEXT},
            {"operation": ["qa"], "text": TEXT},
            {"operation": "summarize"},
            {"operation": "summarize", "text": "short"},
            {"operation": "summarize", "text": TEXT, "options": {"max_length": 0}},
            {"operation": "summarize", "text": TEXT, "options": {"max_lenght": 50}},
            {"operation": "summarize", "text": TEXT, "options": [50]},
            {"operation": "summarize", "text": TEXT, "question": QUESTION},
            {"operation": "summarize", "text": TEXT, "model": "m"},
            {"operation": "sentiment", "text": TEXT, "options": {"max_points": 3}},
            {"operation": "qa", "text": TEXT},
            {"operation": "qa", "text": TEXT, "question": " "},
        ]
        good = [{"operation": o, **a} for o, a in ARGUMENTS.items()]
        answered = tasks.batch([*bad, *good])
        assert [r["request_index"] for r in answered["results"]] == list(range(len(bad) + len(good)))
        assert [r["status"] for r in answered["results"]] == ["failed"] * len(bad) + ["completed"] * len(good)
        assert (answered["total_requests"], answered["failed"], answered["completed"]) == (20, len(bad), len(good))
        for result in answered["results"][: len(bad)]:
            assert result["response"] is None
            assert result["error"].startswith("InputError: ")
            assert TEXT not in result["error"]
        assert [r["response"]["operation"] for r in answered["results"][len(bad) :]] == list(ARGUMENTS)

    def test_an_item_whose_engine_fails_fails_alone(self, stub: StubEngine) -> None:
        stub.answer = lambda r: stub.good(r)._replace(finish_reason="refusal" if r.operation == "qa" else "stop")
        answered = tasks.batch([{"operation": o, **a} for o, a in ARGUMENTS.items()])
        assert (answered["completed"], answered["failed"]) == (4, 1)
        assert answered["results"][-1]["error"] == "RefusedReply: qa: finish reason refusal"

    def test_items_that_ask_for_the_same_are_run_once_without_a_cache_too(
        self, stub: StubEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AICACHE_DISABLED", "1")
        same = [
            {"operation": "key_points", "text": TEXT},
            {"text": TEXT, "operation": "key_points", "options": {}},
            {"operation": "key_points", "text": f" {TEXT} ", "options": {"max_points": 5}},
        ]
        answered = tasks.batch([*same, {"operation": "key_points", "text": TEXT, "options": {"max_points": 1}}])
        assert stub.asked == ["key_points", "key_points"]
        first, second, third, other = (r["response"]["key_points"] for r in answered["results"])
        assert first == second == third == ["one", "two"]
        assert other == ["one"]

    def test_a_failing_item_that_is_repeated_is_asked_once(self, stub: StubEngine) -> None:
        stub.reply("")
        assert tasks.batch([{"operation": "sentiment", "text": TEXT}] * 3)["failed"] == 3
        assert stub.asked == ["sentiment"]

    def test_results_of_repeated_items_are_separate_objects(self, stub: StubEngine) -> None:
        first, second = tasks.batch([{"operation": "key_points", "text": TEXT}] * 2)["results"]
        first["response"]["key_points"].clear()
        assert second["response"]["key_points"] == ["one", "two"]

    def test_fifty_items_are_taken_and_51_or_none_are_not(self, stub: StubEngine) -> None:
        items = [{"operation": "sentiment", "text": f"{TEXT} {n}"} for n in range(50)]
        assert tasks.batch(items)["completed"] == 50
        for wrong in ([], [*items, items[0]], {"operation": "sentiment"}, "text", None):
            with pytest.raises(InputError, match="1 to 50 items"):
                tasks.batch(wrong)

    @pytest.mark.parametrize(
        "error",
        [SoftTimeLimitExceeded(), Retry(), Ignore(), Reject(), KeyError("a bug"), KeyboardInterrupt()],
        ids=lambda error: type(error).__name__,
    )
    def test_what_concerns_the_whole_task_passes_through(self, stub: StubEngine, error: BaseException) -> None:
        stub.fail(error)
        with pytest.raises(type(error)):
            tasks.batch([{"operation": "sentiment", "text": TEXT}])

    def test_items_answered_before_a_time_limit_are_not_paid_again(self, stub: StubEngine) -> None:
        def answer(request: EngineRequest) -> Completion:
            if request.operation == "qa":
                raise SoftTimeLimitExceeded
            return stub.good(request)

        stub.answer = answer
        requests = [{"operation": o, **a} for o, a in ARGUMENTS.items()]
        with pytest.raises(SoftTimeLimitExceeded):
            tasks.batch(requests)
        stub.answer = stub.good
        assert tasks.batch(requests)["completed"] == 5
        assert stub.asked == [*ARGUMENTS, "qa"]


def test_a_group_runs_as_many_items_side_by_side_as_the_worker_has_room_for(app: Celery, stub: StubEngine) -> None:
    """C26: five at a time on a worker of five, and one bad item fails alone."""
    five, lock, running, most = threading.Barrier(5, timeout=30), threading.Lock(), 0, 0

    def answer(request: EngineRequest) -> Completion:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        five.wait()
        with lock:
            running -= 1
        return stub.good(request)

    stub.answer = answer
    members = [tasks.sentiment.s(f"{TEXT} {number}") for number in range(10)]
    with start_worker(app, pool="threads", concurrency=5, perform_ping_check=False, shutdown_timeout=20.0):
        result = group([*members, tasks.sentiment.s("short")]).delay()
        answers = [member.get(timeout=40, propagate=False) for member in result.results]
    assert [answer["operation"] for answer in answers[:10]] == ["sentiment"] * 10
    assert isinstance(answers[10], InputError)
    assert most == 5


@pytest.mark.parametrize("operation", [*PROMPT_VERSIONS, "batch"])
def test_a_message_shows_no_text_outside_of_its_body(app: Celery, client: Any, operation: str) -> None:
    given = {"requests": [{"operation": "sentiment", "text": TEXT}]} if operation == "batch" else ARGUMENTS[operation]
    getattr(tasks, operation).delay(**given)
    headers = json.loads(client.lindex("celery", 0))["headers"]
    assert headers["task"] == f"workers.{operation}"
    assert (headers["argsrepr"], headers["kwargsrepr"]) == ("<redacted>", "<redacted>")
    assert "Ostermere" not in json.dumps(headers)


def test_a_batch_by_name_shows_no_text_and_a_worker_hides_its_result(app: Celery, client: Any) -> None:
    """``batch`` has no policy: it says ``redact_arguments`` itself."""
    app.send_task("workers.batch", kwargs={"requests": [{"operation": "sentiment", "text": TEXT}]})
    headers = json.loads(client.lindex("celery", 0))["headers"]
    assert (headers["argsrepr"], headers["kwargsrepr"]) == ("<redacted>", "<redacted>")
    assert (tasks.batch.Request, tasks.batch.resultrepr_maxsize) == (REQUEST, 0)


class TestApp:
    def test_the_environment_names_the_servers(self) -> None:
        conf = make_app({"AICACHE_BROKER_URL": "redis://b:1/0", "AICACHE_URL": "redis://c:2/0"}).conf
        assert (conf.broker_url, conf.result_backend, conf.aicache_url) == (
            "redis://b:1/0",
            "redis://b:1/0",
            "redis://c:2/0",
        )

    def test_celerys_own_names_come_first(self) -> None:
        given = {
            "AICACHE_BROKER_URL": "redis://b:1/0",
            "CELERY_BROKER_URL": "amqp://d",
            "CELERY_RESULT_BACKEND": "rpc://",
        }
        conf = make_app(given).conf
        assert (conf.broker_url, conf.result_backend) == ("amqp://d", "rpc://")

    def test_only_data_travels_and_a_lost_worker_loses_no_task(self) -> None:
        conf = make_app({}).conf
        assert (conf.accept_content, conf.task_serializer, conf.result_serializer) == (["json"], "json", "json")
        assert conf.task_acks_late
        assert conf.task_reject_on_worker_lost
        assert not conf.result_extended
        assert 0 < conf.task_soft_time_limit < conf.task_time_limit < 3600

    def test_it_knows_the_six_tasks(self, app: Celery) -> None:
        assert {name for name in app.tasks if name.startswith("workers.")} == {
            *(f"workers.{operation}" for operation in PROMPT_VERSIONS),
            "workers.batch",
        }
