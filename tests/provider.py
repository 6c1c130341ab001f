"""
A server that speaks OpenAI's chat completions on loopback, and fails in every way that one can.

In: `Provider.then`, what the next requests get, one after the other.   Out: replies, and `Provider.asked`.

Without `then` it answers well: what each operation asks for, counted in tokens.
"""

from __future__ import annotations

import gzip
import itertools
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest

MODEL = "stub-large"
FALLBACK = "stub-small"
DATE = "-2026-01-01"
"""An answer's model has a date, whether it was asked for or not, as OpenAI's have."""
GOOD = {
    "summarize": "A good summary of the text.",
    "sentiment": '{"sentiment": "mixed", "confidence": 0.5, "explanation": "Both."}',
    "key_points": "- one\n- two",
    "questions": "1. Who?\n2. Why?",
    "qa": "It came to 3.4 million.",
}
_STARTS = {
    "Summarize": "summarize",
    "Judge": "sentiment",
    "List": "key_points",
    "Write": "questions",
    "Answer": "qa",
}
USAGE = {"prompt_tokens": 812, "completion_tokens": 96, "prompt_tokens_details": {"cached_tokens": 512}}


class Asked(NamedTuple):
    """One request as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    connection: int

    @property
    def model(self) -> str:
        return str(self.body["model"])


Behaviour = Callable[["Handler"], None]


class Provider:
    """The server; `close` it."""

    def __init__(self) -> None:
        self.then: deque[Behaviour] = deque()
        self.always: Behaviour | None = None
        self.by_model: dict[str, Behaviour] = {}
        self.answer: str | None = None
        """What it says when it answers well; else what the prompt asks for."""
        self.asked: list[Asked] = []
        self.numbers = itertools.count(1)
        """Of the connections."""
        self.gone = threading.Event()
        """Set when a client left while it was answered."""
        self._closing = threading.Event()
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.005,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def next_behaviour(self, model: str) -> Behaviour:
        if self.then:
            return self.then.popleft()
        return self.by_model.get(model) or self.always or good()

    def recover(self) -> None:
        """Answer well from now on."""
        self.then.clear()
        self.by_model.clear()
        self.always = None

    def wait(self, seconds: float) -> bool:
        """Wait; return True if the server is closing."""
        return self._closing.wait(seconds)

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # a connection that finds no room would be tried again a second later

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is what many tests are about."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    asked: Asked

    def setup(self) -> None:
        super().setup()
        self.provider = self.server.provider
        self.number = next(self.provider.numbers)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked = Asked(self.path, headers, body, self.number)
        self.provider.asked.append(self.asked)
        try:
            self.provider.next_behaviour(self.asked.model)(self)
        except OSError:
            self.provider.gone.set()
            self.close_connection = True

    def log_message(self, *said: Any) -> None:
        """Say nothing."""

    @property
    def answer(self) -> str:
        """What a good completion says."""
        told = self.provider.answer
        return told or GOOD[_STARTS[self.asked.body["messages"][1]["content"].split(" ", 1)[0]]]

    def reply(
        self, body: bytes, status: int = 200, kind: str = "application/json", headers: Mapping[str, str] | None = None
    ) -> None:
        self.begin(len(body), status, kind, headers)
        self.wfile.write(body)

    def begin(
        self, size: int, status: int = 200, kind: str = "application/json", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(size), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def completion(self, **changed: Any) -> dict[str, Any]:
        """Return a good completion with fields of its choice, its message or itself *changed*."""
        message = {"role": "assistant", "content": changed.pop("content", self.answer)}
        if "refusal" in changed:
            message["refusal"] = changed.pop("refusal")
        choice = {"index": 0, "message": message, "finish_reason": changed.pop("finish_reason", "stop")}
        whole = {"id": "c1", "object": "chat.completion", "created": 1, "choices": [choice], "usage": USAGE}
        dated = f"{self.asked.model.removesuffix(DATE)}{DATE}"
        return {**whole, "model": dated, **changed}


@contextmanager
def refused() -> Iterator[str]:
    """Give a URL where nothing listens: the port is held, so that nobody else gets it meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}/v1"


def good(**changed: Any) -> Behaviour:
    """A completion, with parts *changed*: content, refusal, finish_reason, or a field of the reply."""
    return lambda handler: handler.reply(json.dumps(handler.completion(**changed)).encode())


def error(status: int, headers: Mapping[str, str] | None = None, **said: Any) -> Behaviour:
    """An error with *status* that quotes the prompt, as servers do."""

    def behave(handler: Handler) -> None:
        quoted = handler.asked.body["messages"][1]["content"]
        body = {"error": {"message": f"cannot: {quoted}", "type": "stub", "code": None, "param": None, **said}}
        handler.reply(json.dumps(body).encode(), status, headers=headers)

    behave.__name__ = f"error_{status}"  # it is a test's id
    return behave


def limited(**headers: str) -> Behaviour:
    return error(429, headers=headers)


def retry_date(seconds: float) -> Mapping[str, str]:
    return {"Retry-After": formatdate(time.time() + seconds, usegmt=True)}


def raw(
    body: bytes, kind: str = "application/json", headers: Mapping[str, str] | None = None, status: int = 200
) -> Behaviour:
    return lambda handler: handler.reply(body, status, kind, headers)


def compressed(status: int, headers: Mapping[str, str] | None = None) -> Behaviour:
    """An error with *status* that was compressed unasked."""
    return raw(
        gzip.compress(b'{"error": {"message": "slow"}}'),
        headers={"Content-Encoding": "gzip", **(headers or {})},
        status=status,
    )


def encoded(encoding: str) -> Behaviour:
    """Answer well, and say that it is in *encoding*, which it is not."""
    return lambda handler: handler.reply(
        json.dumps(handler.completion()).encode(), headers={"Content-Encoding": encoding}
    )


def twice(handler: Handler) -> None:
    """Answer well, and send a stray answer in the same write."""
    answers = [json.dumps(handler.completion(**changed)).encode() for changed in ({}, {"content": "Stray."})]
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    handler.wfile.write(b"".join(head.format(len(answer)).encode() + answer for answer in answers))


def refuse(handler: Handler) -> None:
    """Close without a word."""
    handler.close_connection = True


def cut(handler: Handler) -> None:
    """Close in the middle of the body."""
    body = json.dumps(handler.completion()).encode()
    handler.begin(len(body))
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def cut_unseen(handler: Handler) -> None:
    """Say no length, and close in the middle of the body."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    body = json.dumps(handler.completion()).encode()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def delay(seconds: float) -> Behaviour:
    def behave(handler: Handler) -> None:
        if not handler.provider.wait(seconds):
            good()(handler)

    return behave


def drip(handler: Handler) -> None:
    """Send a body one byte at a time, for ever."""
    handler.begin(10**9)
    while not handler.provider.wait(0.05):
        handler.wfile.write(b" ")


def drip_headers(handler: Handler) -> None:
    """Send a header one byte at a time, for ever."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not handler.provider.wait(0.05):
        handler.wfile.write(b"a")


def drip_error(status: int) -> Behaviour:
    """Send the body of an error with *status* one byte at a time, for ever."""

    def behave(handler: Handler) -> None:
        handler.begin(10**9, status)
        while not handler.provider.wait(0.05):
            handler.wfile.write(b" ")

    behave.__name__ = f"drip_error_{status}"  # it is a test's id
    return behave


def cut_error(status: int, headers: Mapping[str, str] | None = None) -> Behaviour:
    """Close in the middle of the body of an error with *status*."""

    def behave(handler: Handler) -> None:
        handler.begin(100, status, headers=headers)
        handler.wfile.write(b"{")
        handler.close_connection = True

    return behave


def flood(handler: Handler) -> None:
    """Send more than anybody can hold."""
    handler.begin(10**12)
    while not handler.provider.wait(0):
        handler.wfile.write(b" " * 65_536)


def no_schema(handler: Handler) -> None:
    """Refuse ``response_format``, answer else."""
    if "response_format" in handler.asked.body:
        message = "'response_format' of type 'json_schema' is not supported"
        error(400, message=message, param="response_format")(handler)
        return
    good()(handler)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """A server of the test's own; waits between attempts are short.

    A request that a caller gave up may reach a busy server long after: it must not be counted in another test.
    """
    import workers.engines.openai_http  # noqa: F401 - loads the SDK, which takes longer than a test's time limit

    monkeypatch.setattr("workers.engines.retrying.FIRST_WAIT_S", 0.01)
    running = Provider()
    yield running
    running.close()
