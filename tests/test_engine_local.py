"""What the local engine asks a model, and what it makes of the replies."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from aicache_tasks.errors import SettingsError
from aicache_tasks.work import Work
from tests.provider import refused
from workers.articles import ARTICLES
from workers.engines import load_engine
from workers.engines.base import NO_ANSWER, Completion, EmptyReply, EngineRequest, TruncatedReply, UnparsableReply
from workers.engines.deadline import deadline_within
from workers.engines.extractive import split
from workers.engines.local import MODEL_VARIABLE, URL_VARIABLE, LocalEngine, make_engine, served_model
from workers.operations import make_request, make_response

ARTICLE = ARTICLES[0]
SENTENCES = split(ARTICLE.text)


class Model:
    """Answers what it is told, and keeps what it was asked."""

    name = "model"

    def __init__(self, *replies: str, reason: Any = "stop", model: str = "m-1") -> None:
        self.model, self.reason, self.replies = model, reason, list(replies)
        self.sampling: Mapping[str, Any] = {"seed": 1}
        self.asked: list[EngineRequest] = []

    def complete(self, request: EngineRequest) -> Completion:
        self.asked.append(request)
        reply = self.replies[min(len(self.asked), len(self.replies)) - 1]
        return Completion(reply, {"input_tokens": 10, "output_tokens": 2}, self.model, self.reason)


def answer(model: Model, operation: str, value: int | None = None, question: str = ARTICLE.question) -> dict[str, Any]:
    request = make_request(operation, ARTICLE.text, question, value)
    return make_response(request, LocalEngine(model).complete(request), "local")


def test_a_summary_is_made_from_sentences_of_the_text_and_of_no_more_than_the_model_can_follow() -> None:
    model = Model("A summary of it.")
    assert answer(model, "summarize", 500)["result"] == "A summary of it."
    (asked,) = model.asked
    picked = [sentence for sentence in SENTENCES if sentence in asked.prompt]
    assert 2 <= len(picked) < len(SENTENCES)
    assert sum(len(sentence.split()) for sentence in picked) <= 150


def test_the_mood_is_that_of_the_whole_text_in_a_form_that_the_server_holds_the_model_to() -> None:
    model = Model('{"sentiment": "mixed", "confidence": 0.7, "explanation": "Both are said."}')
    assert answer(model, "sentiment")["sentiment"]["sentiment"] == "mixed"
    (asked,) = model.asked
    assert ARTICLE.text.strip() in asked.prompt
    assert asked.schema is not None
    assert set(asked.schema["required"]) == {"sentiment", "confidence", "explanation"}


def test_each_key_point_is_a_sentence_of_its_own_that_the_model_shortens() -> None:
    model = Model("Floods  came.\nTwice.", "It cost more.", "It cost more.")
    response = answer(model, "key_points", 3)
    assert response["key_points"] == ["Floods came. Twice.", "It cost more."]
    assert len(model.asked) == 3
    assert all(any(sentence in asked.prompt for sentence in SENTENCES) for asked in model.asked)


def test_each_question_comes_in_the_form_that_was_asked_for_and_once() -> None:
    model = Model(json.dumps({"question": "Who paid?"}))
    assert answer(model, "questions", 3)["questions"] == ["Who paid?"]
    for other in ("Who paid?", "[" * 50_000):
        with pytest.raises(UnparsableReply):
            answer(Model(other), "questions", 3)


def test_a_question_is_put_to_the_model_with_the_sentence_that_answers_it_alone() -> None:
    model = Model("It came to 3.4 million.")
    assert answer(model, "qa")["result"] == "It came to 3.4 million."
    (asked,) = model.asked
    assert sum(sentence in asked.prompt for sentence in SENTENCES) == 1
    assert ARTICLE.expected in asked.prompt


def test_a_question_that_the_text_does_not_answer_never_reaches_the_model() -> None:
    model = Model("Paris.")
    response = answer(model, "qa", question="What is the capital of France?")
    assert (response["success"], response["metadata"]["reason"]) == (False, NO_ANSWER.lower())
    assert model.asked == []


def test_the_tokens_of_all_requests_are_counted() -> None:
    request = make_request("key_points", ARTICLE.text, value=3)
    completion = LocalEngine(Model("One.", "Two.", "Three.")).complete(request)
    assert completion.usage == {"input_tokens": 30, "output_tokens": 6}


def test_the_tokens_of_the_parts_before_an_error_are_annotated() -> None:
    class Failing(Model):
        def complete(self, request: EngineRequest) -> Completion:
            if len(self.asked) == 2:
                raise SoftTimeLimitExceeded
            return super().complete(request)

    work, question = Work(), json.dumps({"question": "Who paid?"})
    with pytest.raises(SoftTimeLimitExceeded):
        work.run(LocalEngine(Failing("One.")).complete, (make_request("key_points", ARTICLE.text, value=3),), {})
    assert (work.model, work.usage) == ("m-1", {"input_tokens": 20, "output_tokens": 4})

    work, request = Work(), make_request("questions", ARTICLE.text, value=3)
    with pytest.raises(UnparsableReply):  # found when all parts are put together
        work.run(LocalEngine(Model(question, question, "Who paid?")).complete, (request,), {})
    assert work.usage == {"input_tokens": 30, "output_tokens": 6}


def test_the_time_to_pick_sentences_is_part_of_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What picks them may have to be loaded first."""

    class Timed(Model):
        def complete(self, request: EngineRequest) -> Completion:
            return super().complete(request)._replace(text=f"Until {deadline_within(600)}.")

    def slow(text: str) -> list[str]:
        now.append(now[-1] + 5)
        return split(text)

    def body() -> str:
        return LocalEngine(Timed("")).complete(make_request("summarize", ARTICLE.text)).text

    now = [100.0]
    monkeypatch.setattr("workers.engines.deadline.time", SimpleNamespace(monotonic=lambda: now[-1]))
    monkeypatch.setattr("workers.engines.extractive.split", slow)
    task = Celery("timed", set_as_current=False).task(shared=False, soft_time_limit=10)(body)
    assert task.apply().get() == "Until 109.0."


@pytest.mark.parametrize("operation", ["summarize", "key_points", "qa"])
def test_of_a_reply_that_is_cut_off_or_empty_nothing_is_used(operation: str) -> None:
    model = Model("It was", reason="length")
    with pytest.raises(TruncatedReply):
        answer(model, operation)
    assert len(model.asked) == 1
    with pytest.raises(EmptyReply):
        answer(Model(" "), operation)


def test_another_model_or_other_packages_that_pick_make_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(model: str) -> tuple[str, str, dict[str, Any]]:
        engine = LocalEngine(Model("", model=model))
        return engine.name, engine.model, dict(engine.sampling)

    before = identity("m-1")
    assert before == identity("m-1") != identity("m-2")
    monkeypatch.setattr("workers.engines.extractive._PACKAGES", ("nupunkt",))
    assert identity("m-1") != before


@contextmanager
def served(pieces: list[bytes], pause_s: float = 0.0) -> Iterator[str]:
    """Serve one connection: a pause after each piece, then close. Yields the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with listening.accept()[0] as connection, suppress(OSError):
                connection.recv(65_536)
                for piece in pieces:
                    connection.sendall(piece)
                    left.wait(pause_s)

        left, thread = threading.Event(), threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        left.set()
        thread.join(10)


class TestEnvironment:
    def test_without_a_url_the_variable_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(URL_VARIABLE, raising=False)
        with pytest.raises(SettingsError, match=f"^{URL_VARIABLE} is required"):
            load_engine("local")

    def test_a_named_model_needs_no_server_for_a_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(URL_VARIABLE, "http://127.0.0.1:1/v1")
        monkeypatch.setenv(MODEL_VARIABLE, "m-1")
        assert make_engine().model == "m-1"

    @pytest.mark.parametrize(
        "reply",
        [
            b'HTTP/1.0 200 OK\r\n\r\n{"data": [{"id": "m-7"}]}',
            b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n19\r\n{"data": [{"id": "m-7"}]}\r\n0\r\n\r\n',
        ],
        ids=["plain", "chunked"],
    )
    def test_without_its_name_the_server_is_asked(self, reply: bytes) -> None:
        with served([reply]) as url:
            assert served_model(url) == "m-7"

    def test_a_server_that_does_not_close_after_its_reply_is_understood_at_once(self) -> None:
        body, began = b'{"data": [{"id": "m-7"}]}', time.monotonic()
        with served([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)], pause_s=30) as url:
            assert served_model(url) == "m-7"
            assert time.monotonic() - began < 4

    @pytest.mark.parametrize(
        ("reply", "detail"),
        [
            (b"HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
            (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\n\r\n", "status 302"),
            (b"SSH-2.0-OpenSSH\r\n", "no reply of HTTP"),
            (b"", "no reply of HTTP"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{", "DecodeError"),
            (b"HTTP/1.1 200 OK\r\n\r\n<html>", "DecodeError"),
            (b'HTTP/1.1 200 OK\r\n\r\n{"data": []}', "IndexError"),
            (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * ((1 << 20) + 1), "too large"),
        ],
    )
    def test_a_server_that_names_no_model_is_an_error_that_says_why(self, reply: bytes, detail: str) -> None:
        with served([reply]) as url, pytest.raises(SettingsError, match=f"no model server at {url}: .*{detail}"):
            served_model(url)

    @pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
    def test_a_server_that_drips_holds_nobody_beyond_the_time(
        self, begin: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("workers.engines.local.NAME_S", 0.4)
        began = time.monotonic()
        with (
            served([begin, *[b" "] * 600], pause_s=0.05) as url,
            pytest.raises(SettingsError, match=r"in time|timed out"),
        ):
            served_model(url)
        assert time.monotonic() - began < 10

    def test_a_url_that_is_none_is_an_error_that_names_the_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(MODEL_VARIABLE, "m-1")
        for wrong in ("127.0.0.1:8090/v1", "file:///etc/passwd", "http://joe:hunter2@h/v1"):
            monkeypatch.setenv(URL_VARIABLE, wrong)
            with pytest.raises(SettingsError, match=f"^{URL_VARIABLE}: must ") as caught:
                make_engine()
            assert "hunter2" not in str(caught.value)

    def test_without_its_name_a_server_that_is_not_there_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(MODEL_VARIABLE, raising=False)
        with refused() as url:
            monkeypatch.setenv(URL_VARIABLE, url)
            with pytest.raises(SettingsError, match=f"{URL_VARIABLE}: no model server at {url}"):
                make_engine()
