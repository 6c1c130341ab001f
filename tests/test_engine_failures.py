"""Every engine, every operation, every failure: the right error, nothing kept, and the real answer afterwards."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from celery import Celery

from aicache_tasks.errors import MissingExtraError
from tests import provider as stub
from tests import test_workers_tasks
from tests.faults import eventually
from tests.provider import MODEL, Behaviour, Provider
from workers import engines, tasks
from workers.articles import ARTICLES
from workers.engines.base import (
    EmptyReply,
    EngineError,
    FailedReply,
    RateLimited,
    RefusedReply,
    RejectedRequest,
    TimedOut,
    TruncatedReply,
    Unavailable,
    UnknownModel,
    UnparsableReply,
)
from workers.engines.openai import OpenAIEngine
from workers.operations import PROMPT_VERSIONS

TEXT, QUESTION = ARTICLES[0].text, ARTICLES[0].question
SECRET = "Zanzibar-4711"
"""In every reply that is not an answer."""
KEY = "sk-stub-0815"
REFUSAL = f"I'm sorry, I cannot help: {SECRET}"
TIMEOUT_S = 0.5
"""Of the failures that end by time; thrice as much where the server has to begin its reply in it."""


class Failure(NamedTuple):
    """What a server does until it recovers, and what a caller gets."""

    name: str
    behaviour: Behaviour
    error: type[EngineError]
    requests: int = 1
    timeout_s: float = 20
    """Long enough on a busy machine."""


FAILURES = [
    Failure("refused key", stub.error(401), RejectedRequest),
    Failure("no rights", stub.error(403), RejectedRequest),
    Failure("bad request", stub.error(400), RejectedRequest),
    Failure("unknown model", stub.error(404, code="model_not_found"), UnknownModel),
    Failure("prompt filtered", stub.error(400, code="content_filter"), RefusedReply),
    Failure("redirect", stub.error(307, {"Location": "http://127.0.0.1:9/v1"}), RejectedRequest),
    Failure("no quota", stub.error(429, code="insufficient_quota"), RateLimited),
    Failure("rate limit", stub.limited(), RateLimited, 2),
    Failure("rate limit for a minute", stub.limited(**{"Retry-After": "60"}), RateLimited),
    Failure("rate limit until a date", lambda h: stub.limited(**stub.retry_date(60))(h), RateLimited),
    Failure("request timeout", stub.error(408), Unavailable, 2),
    Failure("conflict", stub.error(409), Unavailable, 2),
    Failure("server error", stub.error(500), Unavailable, 2),
    Failure("overloaded", stub.error(503), Unavailable, 2),
    Failure("told not to come back", stub.error(503, {"X-Should-Retry": "false"}), Unavailable),
    Failure("rate limit in gzip", stub.compressed(429, {"Retry-After": "60"}), RateLimited),
    Failure("overloaded in gzip", stub.compressed(503), Unavailable, 2),
    Failure("page of megabytes", stub.raw(b"<" * 5_000_000, "text/html", status=503), Unavailable, 2),
    Failure("closed without a word", stub.refuse, Unavailable, 2),
    Failure("cut in the body", stub.cut, Unavailable, 2),
    Failure("silence", stub.delay(30), TimedOut, timeout_s=TIMEOUT_S),
    Failure("dripping headers", stub.drip_headers, TimedOut, timeout_s=TIMEOUT_S),
    Failure("dripping body", stub.drip, TimedOut, timeout_s=TIMEOUT_S),
    Failure("dripping error", stub.drip_error(400), RejectedRequest, timeout_s=3 * TIMEOUT_S),
    Failure("rate limit cut in the body", stub.cut_error(429, {"Retry-After": "60"}), RateLimited),
    Failure("refusal cut in the body", stub.cut_error(400), RejectedRequest),
    Failure("endless body", stub.flood, UnparsableReply),
    Failure("compressed unasked", stub.raw(b"\x1f\x8b", headers={"Content-Encoding": "gzip"}), UnparsableReply),
    Failure("page of HTML", stub.raw(f"<html>{SECRET}</html>".encode(), "text/html"), UnparsableReply),
    Failure("half JSON", stub.raw(b'{"choices": [{"message": {"content": "' + SECRET.encode()), Unavailable, 2),
    Failure("cut in a body without a length", stub.cut_unseen, Unavailable, 2),
    Failure("nested JSON", stub.raw(b"[" * 100_000), UnparsableReply),
    Failure("not UTF-8", stub.raw(b'{"choices": "\xff\xfe"}'), UnparsableReply),
    Failure("no bytes", stub.raw(b""), Unavailable, 2),
    Failure("another shape", stub.raw(b'{"answer": "' + SECRET.encode() + b'"}'), UnparsableReply),
    Failure("choices of another shape", stub.good(choices=[{"text": SECRET}]), UnparsableReply),
    Failure("content of another shape", stub.good(content=[SECRET]), UnparsableReply),
    Failure("no choices", stub.good(choices=[]), EmptyReply),
    Failure("no content", stub.good(content=None), EmptyReply),
    Failure("blank content", stub.good(content=" \n "), EmptyReply),
    Failure("thoughts only", stub.good(content=f"<think>{SECRET}</think>"), EmptyReply),
    Failure("error under status 200", stub.good(error={"message": SECRET}), FailedReply),
    Failure("cut off by length", stub.good(finish_reason="length"), TruncatedReply),
    Failure("answer filtered", stub.good(finish_reason="content_filter"), RefusedReply),
    Failure("refusal", stub.good(refusal=SECRET), RefusedReply),
    Failure("refusal in words", stub.good(content=REFUSAL), RefusedReply),
    Failure("call of a tool", stub.good(content=None, finish_reason="tool_calls"), FailedReply),
    Failure("unknown end", stub.good(finish_reason=[SECRET]), FailedReply),
]


class Served(NamedTuple):
    """An engine that asks a server."""

    environ: Callable[[str], Mapping[str, str]]
    """What makes it ask the server at a URL."""
    answers: Mapping[str, str]
    """What the server says when it answers an operation well."""


def openai(url: str) -> Mapping[str, str]:
    return {
        "AICACHE_ENGINE": "openai",
        "AICACHE_OPENAI_BASE_URL": url,
        "AICACHE_OPENAI_MODEL": MODEL,
        "AICACHE_OPENAI_API_KEY": KEY,
    }


def local(url: str) -> Mapping[str, str]:
    return {"AICACHE_ENGINE": "local", "AICACHE_LLM_URL": url, "AICACHE_LLM_MODEL": ANSWERED}


ANSWERED = MODEL + stub.DATE
SERVED = {
    "openai": Served(openai, stub.GOOD),
    "local": Served(local, {**stub.GOOD, "questions": '{"question": "Who was it?"}'}),
}
provider, app = stub.provider, test_workers_tasks.app  # fixtures
each_operation = pytest.mark.parametrize("operation", PROMPT_VERSIONS)


@pytest.fixture(params=SERVED)
def served(
    request: pytest.FixtureRequest, app: Celery, provider: Provider, operation: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Provider]:
    """The server behind the engine in force."""
    engine = SERVED[request.param]
    provider.answer = engine.answers[operation]
    for name, text in engine.environ(provider.url).items():
        monkeypatch.setenv(name, text)
    engines.load_engine.cache_clear()
    yield provider
    asking().close()
    engines.load_engine.cache_clear()


def asking() -> OpenAIEngine:
    """Return what sends the requests of the engine in force."""
    engine: Any = engines.current_engine()
    found: OpenAIEngine = getattr(engine, "_asked", engine)
    return found


@contextmanager
def changed(**settings: Any) -> Iterator[None]:
    """Change settings of the engine in force that are not in the key."""
    engine = asking()
    usual = engine.settings
    engine.settings = dataclasses.replace(usual, **settings)
    engine.close()
    try:
        yield
    finally:
        engine.settings = usual
        engine.close()


def call(operation: str) -> dict[str, Any]:
    question = {"question": QUESTION} if operation == "qa" else {}
    answer: dict[str, Any] = getattr(tasks, operation)(TEXT, **question)
    return answer


def entry(operation: str) -> Any:
    return getattr(tasks, operation).cache.peek(*([TEXT, QUESTION] if operation == "qa" else [TEXT]))


def status(operation: str) -> str:
    return str(getattr(tasks, operation).cache.last.status)


def check_recovered(operation: str, server: Provider) -> None:
    """The next call computes the real answer and stores it; the one after gets it and asks nobody."""
    computed = call(operation)
    assert (computed["success"], status(operation)) == (True, "miss")
    assert entry(operation).value == computed
    asked = len(server.asked)
    assert (call(operation), status(operation)) == (computed, "hit")
    assert len(server.asked) == asked


def pairs() -> Iterator[Any]:
    """Every operation with every failure; quickly, each failure with one of them."""
    for i, failure in enumerate(FAILURES):
        for j, operation in enumerate(PROMPT_VERSIONS):
            marks = [] if i % len(PROMPT_VERSIONS) == j else [pytest.mark.soak]
            yield pytest.param(operation, failure, id=f"{operation}-{failure.name}", marks=marks)


@pytest.mark.parametrize(("operation", "failure"), [*pairs()])
def test_a_failing_server_gives_the_right_error_and_nothing_is_kept(
    served: Provider, operation: str, failure: Failure, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    served.always = failure.behaviour
    with changed(timeout_s=failure.timeout_s, retries=1), pytest.raises(failure.error) as caught:
        call(operation)
    assert type(caught.value) is failure.error
    eventually(lambda: len(served.asked) >= failure.requests)  # a busy server may take one up after it was given up
    assert len(served.asked) == failure.requests
    assert entry(operation) is None
    for shown in (str(caught.value), repr(caught.value), caplog.text):
        assert not [text for text in ("Ostermere", SECRET, KEY) if text in shown]

    served.recover()
    check_recovered(operation, served)


@each_operation
def test_a_server_that_is_down_is_the_right_error_and_nothing_is_kept(served: Provider, operation: str) -> None:
    with (
        stub.refused() as url,
        changed(base_url=url, retries=1),
        pytest.raises(Unavailable, match="ConnectError"),
    ):
        call(operation)
    assert entry(operation) is None
    check_recovered(operation, served)


@pytest.mark.parametrize("operation", ["key_points", "questions"])
@pytest.mark.parametrize("bad", [stub.good(content=" "), stub.good(content=REFUSAL)], ids=["blank", "refusal"])
def test_one_bad_part_of_an_answer_makes_it_a_bad_answer(served: Provider, operation: str, bad: Behaviour) -> None:
    """The local engine asks for these two sentence by sentence."""
    call(operation)
    parts = len(served.asked)
    getattr(tasks, operation).cache.invalidate(TEXT)
    served.then.extend([stub.good()] * (parts - 1) + [bad])
    with pytest.raises((EmptyReply, RefusedReply)):
        call(operation)
    assert entry(operation) is None
    check_recovered(operation, served)


@each_operation
def test_usage_and_model_of_an_answer_are_those_of_the_reply(served: Provider, operation: str) -> None:
    call(operation)
    kept = entry(operation)
    times = len(served.asked)
    assert kept.model == ANSWERED
    assert kept.usage == {"input_tokens": 812 * times, "cached_input_tokens": 512 * times, "output_tokens": 96 * times}


class TestExtractive:
    """It asks nobody: it can be missing, and it can find nothing that fits."""

    @pytest.fixture(autouse=True)
    def _in_force(self, app: Celery, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv(engines.ENGINE_VARIABLE, "extractive")
        engines.load_engine.cache_clear()
        yield
        engines.load_engine.cache_clear()

    @each_operation
    def test_a_missing_package_is_the_right_error_and_nothing_is_kept(
        self, operation: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as broken:
            broken.setattr("workers.engines.extractive._PACKAGES", ("not-there",))
            with pytest.raises(MissingExtraError, match=r"aicache-tasks\[extractive\]"):
                tasks._answer(operation, TEXT, question=QUESTION)
        check_recovered(operation, provider)

    def test_a_text_of_which_nothing_fits_is_the_right_error_and_is_not_kept(self) -> None:
        for _ in range(2):
            with pytest.raises(TruncatedReply):
                tasks.summarize("word " * 200)
            assert status("summarize") == "miss"
        assert tasks.summarize.cache.peek("word " * 200) is None
