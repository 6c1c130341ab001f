"""The openai engine over real sockets: what it sends, when it gives up, whose answer is kept."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.exceptions import SoftTimeLimitExceeded

from aicache_tasks.errors import MissingExtraError, SettingsError
from aicache_tasks.testing import EmbeddedServer
from aicache_tasks.work import Work
from tests import provider as stub
from tests import test_workers_tasks
from tests.cluster.nodes import ROOT, WorkerProcess
from tests.provider import FALLBACK, MODEL, Behaviour, Provider
from workers import engines, tasks
from workers.articles import ARTICLES
from workers.engines import base
from workers.engines.base import (
    Completion,
    EngineError,
    EngineRequest,
    RateLimited,
    RejectedRequest,
    TimedOut,
    TruncatedReply,
    Unavailable,
    UnknownModel,
    UnparsableReply,
)
from workers.engines.deadline import soft_limit_s
from workers.engines.openai import OpenAIEngine
from workers.engines.openai_reply import completion_of
from workers.engines.openai_settings import OpenAISettings, settings_from, variables
from workers.engines.retrying import AttemptFailed, backoff_s, retry_after_s
from workers.operations import PROMPT_VERSIONS, make_request

TEXT, QUESTION = ARTICLES[0].text, ARTICLES[0].question
KEY = "sk-stub-0815"
PATIENT = {"AICACHE_BUDGET_MS": "10000", "AICACHE_CONNECT_MS": "10000"}
"""Of a worker on a busy machine."""
provider, app = stub.provider, test_workers_tasks.app  # fixtures


@pytest.fixture
def make(provider: Provider) -> Iterator[Callable[..., OpenAIEngine]]:
    """Return a function that makes an engine that asks the stub."""
    made: list[OpenAIEngine] = []

    def engine(**settings: Any) -> OpenAIEngine:
        made.append(OpenAIEngine(OpenAISettings(**{"model": MODEL, "base_url": provider.url, **settings})))
        return made[-1]

    yield engine
    for each in made:
        each.close()


@pytest.fixture
def in_force(provider: Provider, app: Celery, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., OpenAIEngine]]:
    """Return a function that puts an engine that asks the stub in force."""

    def engine(**settings: Any) -> OpenAIEngine:
        given = {"model": MODEL, "base_url": provider.url, **settings}
        for name, value in given.items():
            monkeypatch.setenv(f"AICACHE_OPENAI_{name.upper()}", str(value))
        monkeypatch.setenv(engines.ENGINE_VARIABLE, "openai")
        engines.load_engine.cache_clear()
        found = engines.current_engine()
        assert isinstance(found, OpenAIEngine)
        return found

    yield engine
    engines.load_engine.cache_clear()


def request(operation: str = "summarize") -> EngineRequest:
    return make_request(operation, TEXT, QUESTION)


@contextmanager
def took_s(least: float = 0.0, *, less: float) -> Iterator[None]:
    """Fail unless what is in the block takes from *least* to *less* seconds."""
    began = time.monotonic()
    yield
    assert least <= time.monotonic() - began < less


@contextmanager
def silent(host: str, port: int) -> Iterator[None]:
    """Let *host* answer no attempt to connect: its queue is full."""
    with ExitStack() as opened:
        listening = opened.enter_context(socket.socket())
        listening.bind((host, port))
        listening.listen(0)
        for _ in range(3):
            queued = opened.enter_context(socket.socket())
            queued.setblocking(False)
            queued.connect_ex((host, port))
        yield


def running(app: Celery) -> AbstractContextManager[Any]:
    """Return a worker with two threads in this process."""
    return start_worker(app, pool="threads", concurrency=2, perform_ping_check=False, shutdown_timeout=20.0)


class TestSettings:
    def test_every_variable_is_taken(self, tmp_path: Path) -> None:
        given = {
            "MODEL": "m",
            "BASE_URL": "http://h:1/v1/",
            "API_KEY_FILE": str(tmp_path / "key"),
            "FALLBACK_MODEL": "f",
            "ANSWERED_BY": "m*",
            "SERVER": "s",
            "TEMPERATURE": "0.5",
            "SEED": "7",
            "MAX_OUTPUT_TOKENS": "9",
            "JSON_SCHEMA": "0",
            "EXTRA_BODY": '{"cache_prompt": false}',
            "TIMEOUT_S": "8",
            "ATTEMPT_TIMEOUT_S": "4",
            "CONNECT_TIMEOUT_S": "2",
            "RETRIES": "0",
        }
        made = settings_from({f"AICACHE_OPENAI_{name}": text for name, text in given.items()})
        assert dataclasses.asdict(made) == {
            "model": "m",
            "base_url": "http://h:1/v1",
            "api_key": None,
            "api_key_file": str(tmp_path / "key"),
            "fallback_model": "f",
            "answered_by": "m*",
            "server": "s",
            "temperature": 0.5,
            "seed": 7,
            "max_output_tokens": 9,
            "json_schema": False,
            "extra_body": {"cache_prompt": False},
            "timeout_s": 8.0,
            "attempt_timeout_s": 4.0,
            "connect_timeout_s": 2.0,
            "retries": 0,
        }
        assert {name.removeprefix("AICACHE_OPENAI_") for name, *_ in variables()} == {*given, "API_KEY"}

    def test_an_empty_variable_is_one_that_is_not_set(self) -> None:
        assert settings_from({"AICACHE_OPENAI_MODEL": "m", "AICACHE_OPENAI_SEED": " "}) == OpenAISettings(model="m")

    def test_none_sends_no_temperature_and_no_limit(self) -> None:
        given = {"MODEL": "m", "TEMPERATURE": "none", "MAX_OUTPUT_TOKENS": "None"}
        made = settings_from({f"AICACHE_OPENAI_{name}": text for name, text in given.items()})
        assert (made.temperature, made.max_output_tokens) == (None, None)

    @pytest.mark.parametrize(
        ("name", "text", "fix"),
        [
            ("MODEL", "", "is required: name the model"),
            ("MODLE", "m", "did you mean AICACHE_OPENAI_MODEL?"),
            ("COLOUR", "red", "no such variable"),
            ("BASE_URL", "api.openai.com/v1", "must be a URL such as"),
            ("BASE_URL", "ftp://h/v1", "must be a URL such as"),
            ("BASE_URL", "http://h:99999/v1", "must be a URL such as"),
            ("BASE_URL", "http://300.1.1.1:8000/v1", "must be a URL such as"),
            ("BASE_URL", "http://127.0.0.01/v1", "must be a URL such as"),
            ("BASE_URL", "http://h/\u2028v1", "must be a URL such as"),
            ("BASE_URL", "https://joe:hunter2@h/v1", "no user, password"),
            ("BASE_URL", "https://h/v1?key=hunter2", "no user, password"),
            ("API_KEY", "hunter2\nX-Evil: 1", "one key in one line of ASCII"),
            ("API_KEY", "hunter2é", "one key in one line of ASCII"),
            ("FALLBACK_MODEL", "m", "must be another model"),
            ("TEMPERATURE", "warm", "must be a number"),
            ("TEMPERATURE", "2.1", "must be from 0 to 2"),
            ("TEMPERATURE", "nan", "must be from 0 to 2"),
            ("SEED", "1.5", "must be a whole number"),
            ("MAX_OUTPUT_TOKENS", "0", "must be 1 or more"),
            ("JSON_SCHEMA", "maybe", "must be 1 or 0"),
            ("EXTRA_BODY", "{", "must be a JSON object"),
            ("EXTRA_BODY", "[1]", "must be a JSON object"),
            ("EXTRA_BODY", '{"a": NaN}', "must be JSON in UTF-8"),
            ("EXTRA_BODY", '{"a": "hunter2 \\ud800"}', "must be JSON in UTF-8"),
            ("MODEL", "m\udcff", "must be text in UTF-8"),
            ("SERVER", "s\udcff", "must be text in UTF-8"),
            ("EXTRA_BODY", '{"stream": true, "model": "x"}', "must not hold model, stream"),
            ("TIMEOUT_S", "0", "must be seconds"),
            ("TIMEOUT_S", "inf", "must be seconds"),
            ("ATTEMPT_TIMEOUT_S", "-1", "must be seconds"),
            ("CONNECT_TIMEOUT_S", "nan", "must be seconds"),
            ("RETRIES", "11", "must be from 0 to 10"),
        ],
    )
    def test_a_wrong_value_is_an_error_that_names_the_variable_and_the_fix(
        self, name: str, text: str, fix: str
    ) -> None:
        with pytest.raises(SettingsError, match=rf"^AICACHE_OPENAI_{name}\b") as caught:
            settings_from({"AICACHE_OPENAI_MODEL": "m", f"AICACHE_OPENAI_{name}": text})
        assert fix in str(caught.value)
        assert "hunter2" not in str(caught.value)

    def test_a_key_and_a_file_for_it_are_one_too_many(self) -> None:
        with pytest.raises(SettingsError, match="both set"):
            OpenAISettings(model="m", api_key="a", api_key_file="b")

    def test_no_repr_shows_the_key(self) -> None:
        settings = OpenAISettings(model="m", api_key=KEY)
        assert KEY not in f"{settings!r} {settings} {OpenAIEngine(settings)!r} {OpenAIEngine(settings).sampling!r}"


DOCUMENT = ROOT / "docs" / "engines.md"
START, END = "<!-- table: start -->\n", "<!-- table: end -->\n"


def test_the_table_of_variables_is_made_from_the_code() -> None:
    """``AICACHE_REGENERATE=1`` writes it anew."""
    before, rest = DOCUMENT.read_text().split(START)
    table, after = rest.split(END)
    rows = [f"| `{name}` | {f'`{default}`' if default else ''} | {means} |" for name, default, means in variables()]
    made = "\n".join(["| variable | default | what it is |", "|---|---|---|", *rows]) + "\n"
    if os.environ.get("AICACHE_REGENERATE"):
        DOCUMENT.write_text(before + START + made + END + after)
        table = made
    assert table == made


def test_every_kind_of_error_is_in_the_document() -> None:
    kinds = {kind.__name__ for kind in vars(base).values() if isinstance(kind, type) and issubclass(kind, EngineError)}
    assert {name for name in kinds if f"`{name}`" not in DOCUMENT.read_text()} == set()


class TestKey:
    def test_openai_needs_one_and_a_cache_key_does_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-ambient")
        engine = OpenAIEngine(OpenAISettings(model="m"))
        assert (engine.name, engine.model) == ("openai", "m")
        with pytest.raises(SettingsError, match=r"^AICACHE_OPENAI_API_KEY is required by OpenAI: set it, or .*_FILE$"):
            engine.complete(request())

    def test_one_from_a_file_is_sent(
        self, make: Callable[..., OpenAIEngine], provider: Provider, tmp_path: Path
    ) -> None:
        (tmp_path / "key").write_text(f"  {KEY}\n")
        make(api_key_file=str(tmp_path / "key")).complete(request())
        assert provider.asked[0].headers["authorization"] == f"Bearer {KEY}"

    @pytest.mark.parametrize("content", [None, "", "\n", "two words", "hunter2\nhunter2"])
    def test_a_file_without_one_is_an_error_that_names_the_variable(
        self, make: Callable[..., OpenAIEngine], tmp_path: Path, content: str | None
    ) -> None:
        if content is not None:
            (tmp_path / "key").write_text(content)
        with pytest.raises(SettingsError, match=r"^AICACHE_OPENAI_API_KEY_FILE: ") as caught:
            make(api_key_file=str(tmp_path / "key")).complete(request())
        assert "hunter2" not in str(caught.value)

    def test_none_goes_to_a_server_that_needs_none(self, make: Callable[..., OpenAIEngine], provider: Provider) -> None:
        make().complete(request())
        assert "authorization" not in provider.asked[0].headers


AMBIENT = {
    "OPENAI_API_KEY": "sk-ambient",
    "OPENAI_ADMIN_KEY": "sk-ambient-admin",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
    "OPENAI_ORG_ID": "org-ambient",
    "OPENAI_PROJECT_ID": "proj-ambient",
    "OPENAI_CUSTOM_HEADERS": "X-Ambient: 1\nAuthorization: Bearer sk-ambient",
    "OPENAI_LOG": "debug",
    "OPENAI_API_TYPE": "azure",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "ALL_PROXY": "http://127.0.0.1:9",
}


@pytest.mark.parametrize(
    "header",
    [
        "Host: ambient.test",
        "User-Agent: ambient",
        "Accept: ambient/x",
        "Content-Length: 5",
        "Content-Type: multipart/form-data; boundary=ambient",
        "X-Ambient: é",
        "Authorization: Basic ambient",
        "Transfer-Encoding: ambient",
    ],
)
def test_no_header_of_the_surroundings_has_an_effect(
    make: Callable[..., OpenAIEngine], provider: Provider, header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().complete(request())
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", header)
    make().complete(request())
    usual, sent = provider.asked
    assert (sent.headers, sent.body) == (usual.headers, usual.body)


@pytest.mark.parametrize("key", ["", KEY])
def test_nothing_of_the_surroundings_has_an_effect(provider: Provider, key: str) -> None:
    program = (
        "import logging\nfrom workers.engines.openai import from_environment\n"
        "from workers.operations import make_request\n"
        "print(from_environment().complete(make_request('summarize', 'It rained all day.')).text)\n"
        "print(logging.getLogger('openai').level, logging.getLogger().handlers)"
    )
    given = {"MODEL": MODEL, "BASE_URL": provider.url, "API_KEY": key}
    ours = {f"AICACHE_OPENAI_{name}": text for name, text in given.items()}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, **AMBIENT, **ours, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == (f"{stub.GOOD['summarize']}\n0 []\n", "")
    sent = provider.asked[0]
    assert "ambient" not in json.dumps([dict(sent.headers), sent.body])
    assert sent.headers.get("authorization") == (f"Bearer {key}" if key else None)


def test_a_missing_sdk_names_the_extra_and_a_key_needs_none() -> None:
    program = (
        "import sys; sys.modules['openai'] = None\n"
        "import workers.tasks as t\nprint(t.engine_identity()['model'])\n"
        "from workers.engines import current_engine\nfrom workers.operations import make_request\n"
        "try: current_engine().complete(make_request('summarize', 'It rained all day.'))\n"
        "except ImportError as e: print(type(e).__name__, e)"
    )
    ours = {"AICACHE_ENGINE": "openai", "AICACHE_OPENAI_MODEL": "m", "AICACHE_OPENAI_API_KEY": KEY}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **ours}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "m",
        f"{MissingExtraError.__name__} openai is not installed: run `pip install 'aicache-tasks[openai]'`",
    ]


class TestWhatIsSent:
    @pytest.mark.parametrize("operation", PROMPT_VERSIONS)
    def test_the_prompts_and_the_sampling(
        self, make: Callable[..., OpenAIEngine], provider: Provider, operation: str
    ) -> None:
        make(seed=7, extra_body={"cache_prompt": False}).complete(request(operation))
        sent = dict(provider.asked[0].body)
        schema = sent.pop("response_format", None)
        assert sent == {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": request(operation).system},
                {"role": "user", "content": request(operation).prompt},
            ],
            "temperature": 0.0,
            "seed": 7,
            "max_tokens": 2048,
            "cache_prompt": False,
        }
        assert provider.asked[0].path == "/v1/chat/completions"
        assert (schema is not None) == (operation == "sentiment")

    def test_what_is_not_set_is_not_sent(self, make: Callable[..., OpenAIEngine], provider: Provider) -> None:
        make(temperature=None, max_output_tokens=None).complete(request())
        assert provider.asked[0].body.keys() == {"model", "messages"}

    def test_openais_own_server_gets_the_newer_name_of_the_limit(self) -> None:
        engine = OpenAIEngine(OpenAISettings(model="m", api_key=KEY))
        assert engine._body(request(), "m", None)["max_completion_tokens"] == 2048

    def test_headers_are_those_that_are_needed(self, make: Callable[..., OpenAIEngine], provider: Provider) -> None:
        make(api_key=KEY).complete(request())
        assert provider.asked[0].headers.keys() == {
            "host",
            "accept",
            "accept-encoding",
            "authorization",
            "connection",
            "content-length",
            "content-type",
            "user-agent",
        }

    def test_a_text_that_cannot_be_encoded_is_an_error_that_does_not_hold_it(
        self, make: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        """JSON can hold half a surrogate pair, UTF-8 cannot."""
        with pytest.raises(RejectedRequest, match="cannot be encoded") as caught:
            make().complete(request()._replace(prompt=f"{TEXT} \ud800"))
        assert "Ostermere" not in f"{caught.value!r} {traceback.format_exception(caught.value)}"
        assert provider.asked == []

    @pytest.mark.parametrize(
        "changed",
        [
            {"model": "other"},
            {"base_url": "http://127.0.0.1:9/v1"},
            {"temperature": 0.5},
            {"temperature": None},
            {"seed": 1},
            {"max_output_tokens": 9},
            {"json_schema": False},
            {"extra_body": {"top_k": 1}},
            {"answered_by": "m*"},
        ],
    )
    def test_what_changes_answers_changes_the_identity(self, changed: Mapping[str, Any]) -> None:
        given = {"model": "m", "base_url": "http://127.0.0.1:1/v1"}
        one, other = (OpenAIEngine(OpenAISettings(**settings)) for settings in (given, {**given, **changed}))
        assert (one.model, one.sampling) != (other.model, other.sampling)

    def test_a_name_of_the_server_stands_for_its_address(self) -> None:
        one, other = (
            OpenAIEngine(OpenAISettings(model="m", server="ours", base_url=f"http://h{n}/v1")) for n in (1, 2)
        )
        assert one.sampling == other.sampling

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({"base_url": "http://h/v1"}, {"base_url": "HTTP://H/v1"}),
            ({"base_url": "http://h/v1"}, {"base_url": "http://h:80/v1/"}),
            ({"base_url": "https://h/v1"}, {"base_url": "HTTPS://h:443/v1"}),
            ({"base_url": "http://[::1]:8000/v1"}, {"base_url": "http://[::1]:08000/v1"}),
            ({"temperature": 0}, {"temperature": 0.0}),
        ],
    )
    def test_two_ways_to_write_the_same_are_one_identity(
        self, one: Mapping[str, Any], other: Mapping[str, Any]
    ) -> None:
        identities = [OpenAIEngine(OpenAISettings(**{"model": "m", **given})).sampling for given in (one, other)]
        assert repr(identities[0]) == repr(identities[1])

    def test_paths_and_unusual_ports_tell_servers_apart(self) -> None:
        urls = ["http://h/v1", "http://h/V1", "http://h:443/v1", "https://h/v1", "http://h:8000/v1", "http://h"]
        assert len({OpenAISettings(model="m", base_url=url).base_url for url in urls}) == len(urls)

    def test_openais_own_server_is_known_however_it_is_written(self) -> None:
        assert OpenAISettings(model="m", base_url="HTTPS://API.OpenAI.com:443/v1").is_openai


class TestSchema:
    def test_a_server_without_it_is_asked_plainly_and_remembered(
        self, make: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        provider.always, engine = stub.no_schema, make()
        for expected in (2, 3, 4):
            assert json.loads(engine.complete(request("sentiment")).text)["sentiment"] == "mixed"
            assert len(provider.asked) == expected
        assert ["response_format" in asked.body for asked in provider.asked] == [True, False, False, False]

    def test_another_refusal_is_none_of_the_schema(self, make: Callable[..., OpenAIEngine], provider: Provider) -> None:
        provider.always = stub.error(400, param="temperature")
        with pytest.raises(RejectedRequest, match="status 400, about temperature"):
            make().complete(request("sentiment"))
        assert len(provider.asked) == 1

    @pytest.mark.parametrize("status", [429, 500, 501, 503])
    def test_a_server_that_fails_has_not_refused_it_whatever_it_says(
        self, make: Callable[..., OpenAIEngine], provider: Provider, status: int
    ) -> None:
        provider.then.append(stub.error(status, message="json_schema overloaded, try later"))
        engine = make()
        for _ in range(2):
            engine.complete(request("sentiment"))
        assert ["response_format" in asked.body for asked in provider.asked] == [True, True, True]

    def test_it_is_asked_for_again_where_the_plain_request_is_refused_too(
        self, make: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        provider.then.extend([stub.error(400, message="too long: json_schema ...")] * 2)
        engine = make(retries=0)
        with pytest.raises(RejectedRequest):
            engine.complete(request("sentiment"))
        engine.complete(request("sentiment"))
        assert ["response_format" in asked.body for asked in provider.asked] == [True, False, True]

    def test_it_can_be_switched_off(self, make: Callable[..., OpenAIEngine], provider: Provider) -> None:
        make(json_schema=False).complete(request("sentiment"))
        assert "response_format" not in provider.asked[0].body

    def test_an_answer_by_schema_is_checked_all_the_same(
        self, in_force: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        in_force()
        provider.then.append(stub.good(content='{"sentiment": "glad", "confidence": 1, "explanation": "x"}'))
        with pytest.raises(UnparsableReply):
            tasks.sentiment(TEXT)
        assert tasks.sentiment(TEXT)["success"] is True


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"<html>",
        b"\xff",
        b"[" * 100_000,
        b'{"error": "quota"}',
        b'{"error": {"code": ["model"], "param": {"a": 1}}}',
        b'{"code": 400, "message": 7}',
    ],
    ids=lambda body: repr(body[:20]),
)
def test_an_error_of_any_form_is_told_by_its_status(
    make: Callable[..., OpenAIEngine], provider: Provider, body: bytes
) -> None:
    provider.always = lambda handler: handler.reply(body, 400)
    with pytest.raises(RejectedRequest, match=r"^sentiment: status 400$"):
        make().complete(request("sentiment"))
    assert len(provider.asked) == 1


@pytest.mark.parametrize("encoding", ["", " IDENTITY", "UTF-8"])
def test_an_encoding_that_encodes_nothing_is_no_compression(
    make: Callable[..., OpenAIEngine], provider: Provider, encoding: str
) -> None:
    provider.then.append(stub.encoded(encoding))
    assert make(retries=0).complete(request()).text == stub.GOOD["summarize"]


class TestRetries:
    @pytest.mark.parametrize("failure", [stub.error(500), stub.limited(), stub.cut, stub.refuse, stub.error(408)])
    def test_a_server_that_recovers_in_time_gives_the_answer(
        self, make: Callable[..., OpenAIEngine], provider: Provider, failure: Behaviour
    ) -> None:
        provider.then.extend([failure, failure])
        assert make(retries=2).complete(request()).text == stub.GOOD["summarize"]
        assert len(provider.asked) == 3

    def test_the_last_error_is_told_when_there_are_no_more(
        self, make: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        provider.then.extend([stub.error(500), stub.limited()])
        with pytest.raises(RateLimited):
            make(retries=1).complete(request())

    @pytest.mark.parametrize(
        ("headers", "least_s"),
        [({"Retry-After-Ms": "300"}, 0.3), ({"Retry-After": "0.3"}, 0.3), ({"Retry-After": "1"}, 1.0)],
    )
    def test_a_wait_that_the_server_asks_for_is_kept(
        self, make: Callable[..., OpenAIEngine], provider: Provider, headers: Mapping[str, str], least_s: float
    ) -> None:
        provider.then.append(stub.limited(**headers))
        with took_s(least_s, less=least_s + 5):
            make().complete(request())

    @pytest.mark.soak
    def test_a_date_that_the_server_asks_for_is_kept(
        self, make: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        provider.then.append(lambda handler: stub.limited(**stub.retry_date(2))(handler))
        with took_s(0.5, less=7):
            make().complete(request())

    def test_a_wait_beyond_the_deadline_is_told_at_once(
        self, make: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        provider.always, engine = stub.limited(**{"Retry-After": "30"}), make(timeout_s=20)
        with pytest.raises(RateLimited, match="status 429, retry after 30 s") as caught:
            engine.complete(request())
        assert caught.value.retry_after_s == 30
        assert len(provider.asked) == 1

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("2", 2.0),
            ("0", 0.0),
            ("1e400", 31_536_000.0),
            ("-5", None),
            ("nan", None),
            ("soon", None),
            ("", None),
            ("Thu, 01 Jan 1970 00:00:30 GMT", 20.0),
            ("Thu, 01 Jan 1970 00:00:05 GMT", 0.0),
            ("Fri, 31 Dec 9999 23:59:59 GMT", 31_536_000.0),
            ("Thu, 99 Foo 1970 00:00:05 GMT", None),
        ],
    )
    def test_retry_after_is_read_as_it_is_written(self, text: str, expected: float | None) -> None:
        assert retry_after_s({"retry-after": text}, now=10.0) == expected

    def test_milliseconds_come_first(self) -> None:
        assert retry_after_s({"retry-after": "2", "retry-after-ms": "1500"}, 0) == 1.5

    def test_waits_are_spread_over_all_of_a_bound_that_doubles_up_to_a_cap(self) -> None:
        for done, bound in [(0, 0.5), (1, 1.0), (2, 2.0), (4, 8.0), (10, 8.0)]:
            waits = [backoff_s(done) for _ in range(500)]
            assert 0 <= min(waits) < 0.2 * bound
            assert 0.8 * bound < max(waits) <= bound


class TestDeadline:
    @pytest.mark.parametrize(
        "behaviour", [stub.delay(30), stub.drip, stub.drip_headers, stub.drip_error(500), stub.error(500)]
    )
    def test_all_attempts_together_end_at_it(
        self,
        make: Callable[..., OpenAIEngine],
        provider: Provider,
        behaviour: Behaviour,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("workers.engines.retrying.FIRST_WAIT_S", 0.3)
        provider.always, engine = behaviour, make(timeout_s=0.6, attempt_timeout_s=0.25, retries=10)
        with took_s(less=6), pytest.raises(Unavailable):  # its attempts and waits would take half a minute
            engine.complete(request())

    def test_an_attempt_that_takes_too_long_is_made_again(
        self, make: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        provider.then.append(stub.delay(30))
        assert make(attempt_timeout_s=0.3, retries=10).complete(request()).finish_reason == "stop"

    @pytest.mark.parametrize("behaviour", [stub.delay(30), stub.drip, stub.limited(**{"Retry-After": "50"})])
    def test_a_soft_limit_passes_through_on_time_and_leaves_no_connection_half_used(
        self, make: Callable[..., OpenAIEngine], provider: Provider, behaviour: Behaviour
    ) -> None:
        """It may come during a call or a wait. The next answer belongs to the next request."""

        def limit(*_: Any) -> None:
            raise SoftTimeLimitExceeded

        def begin(handler: stub.Handler) -> None:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            behaviour(handler)

        provider.then.append(begin)
        engine, before = make(), signal.signal(signal.SIGALRM, limit)
        try:
            with took_s(0.3, less=10), pytest.raises(SoftTimeLimitExceeded):
                engine.complete(request())
        finally:
            signal.signal(signal.SIGALRM, before)
        assert engine.complete(request("qa")).text == stub.GOOD["qa"]

    @pytest.mark.soak
    def test_no_soft_limit_is_lost_whenever_it_comes_and_no_answer_is_anothers(
        self, make: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        came = False

        def limit(*_: Any) -> None:
            nonlocal came
            came = True
            raise SoftTimeLimitExceeded

        engine, operations, interrupted = make(), random.Random(7), 0
        before, ends = signal.signal(signal.SIGALRM, limit), time.monotonic() + 10
        try:
            while time.monotonic() < ends:
                came = False
                provider.then.extend(operations.choices([stub.good(), stub.error(500), stub.cut, stub.refuse]))
                try:
                    signal.setitimer(signal.ITIMER_REAL, operations.uniform(0.0003, 0.006))
                    engine.complete(request())
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    assert not came
                except SoftTimeLimitExceeded:
                    interrupted += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
                provider.recover()
                operation = operations.choice([*PROMPT_VERSIONS])
                assert engine.complete(request(operation)).text == stub.GOOD[operation]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert interrupted > 100

    def test_an_interrupted_connection_is_closed(self, make: Callable[..., OpenAIEngine], provider: Provider) -> None:
        provider.then.append(stub.drip)
        with pytest.raises(TimedOut):
            make(timeout_s=0.2).complete(request())
        assert provider.gone.wait(10)

    def test_a_task_gives_up_before_its_soft_limit(
        self, in_force: Callable[..., OpenAIEngine], provider: Provider, app: Celery
    ) -> None:
        """In a pool of threads nothing else would end it."""
        in_force(retries=0)
        provider.always = stub.delay(30)
        with running(app):
            result = tasks.summarize.apply_async((TEXT,), soft_time_limit=1)
            with pytest.raises(TimedOut, match=r"summarize: no whole reply within 0\.\d+ s"):
                result.get(timeout=20)

    @pytest.mark.parametrize(
        ("configured", "of_task", "of_call", "limit_s"),
        [
            ({}, {}, None, None),
            ({"task_soft_time_limit": 120, "task_time_limit": 100}, {}, None, 120),
            ({"task_time_limit": 150}, {}, None, 150),
            ({"task_soft_time_limit": 120}, {"soft_time_limit": 60}, None, 60),
            ({"task_soft_time_limit": 120}, {"soft_time_limit": 60}, (50, 40), 40),
            ({"task_soft_time_limit": 120}, {}, (50, None), 120),
            ({"task_time_limit": 150}, {"time_limit": 90}, (50, None), 50),
        ],
    )
    def test_a_tasks_limit_is_the_calls_or_its_own_or_the_configurations(
        self,
        configured: Mapping[str, Any],
        of_task: Mapping[str, Any],
        of_call: tuple[Any, Any] | None,
        limit_s: float | None,
    ) -> None:
        def body() -> None: ...

        app = Celery("limits", set_as_current=False)
        task = app.task(shared=False, **of_task)(body)
        assert task.name in app.tasks  # it is bound: even Celery 5.7 gives it no limit of the configuration any more
        app.conf.update(configured)
        task.push_request(timelimit=of_call)
        assert soft_limit_s(task) == limit_s

    def test_a_batch_has_one_limit_for_all_its_items(
        self, in_force: Callable[..., OpenAIEngine], provider: Provider, app: Celery
    ) -> None:
        in_force(retries=0)
        provider.always = stub.delay(30)
        items = [{"operation": "sentiment", "text": f"{TEXT} {n}"} for n in range(20)]
        with running(app):
            result = tasks.batch.apply_async((items,), soft_time_limit=1)
            with took_s(less=8):
                result.get(timeout=20)
        assert result.get()["failed"] == 20

    def test_a_rate_limit_comes_back_from_a_worker_as_what_it_is(
        self, in_force: Callable[..., OpenAIEngine], provider: Provider, app: Celery
    ) -> None:
        in_force()
        provider.always = stub.limited(**{"Retry-After": "900"})
        with running(app), pytest.raises(RateLimited) as caught:
            tasks.qa.delay(TEXT, QUESTION).get(timeout=20)
        assert caught.value.retry_after_s == 900


class TestFallback:
    def test_its_answer_is_told_apart_and_not_kept(
        self, in_force: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        in_force(fallback_model=FALLBACK, retries=0)
        provider.by_model[MODEL] = stub.error(503)
        for _ in range(2):
            answer = tasks.summarize(TEXT)
            assert (answer["success"], answer["metadata"]["substitute"]) == (True, True)
            assert answer["metadata"]["model"] == f"{FALLBACK}-2026-01-01"
            assert tasks.summarize.cache.last.set_reason == "store_if"
        assert tasks.summarize.cache.peek(TEXT) is None

        provider.recover()
        computed = tasks.summarize(TEXT)
        assert computed["metadata"]["model"] == f"{MODEL}-2026-01-01"
        assert "substitute" not in computed["metadata"]
        assert (tasks.summarize(TEXT), str(tasks.summarize.cache.last.status)) == (computed, "hit")

    def test_a_kept_answer_is_used_while_the_model_fails(
        self, in_force: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        in_force(fallback_model=FALLBACK, retries=0)
        computed = tasks.summarize(TEXT)
        provider.by_model[MODEL] = stub.error(503)
        assert tasks.summarize(TEXT) == computed

    @pytest.mark.parametrize(
        "failure",
        [
            stub.error(500),
            stub.error(404),
            stub.limited(**{"Retry-After": "900"}),
            stub.cut,
            stub.compressed(429, {"Retry-After": "60"}),
        ],
    )
    def test_it_is_asked_when_the_model_fails_for_good(
        self, make: Callable[..., OpenAIEngine], provider: Provider, failure: Behaviour
    ) -> None:
        provider.by_model[MODEL] = failure
        found = make(fallback_model=FALLBACK, retries=0).complete(request())
        assert (found.text, found.substitute) == (stub.GOOD["summarize"], True)
        assert [asked.model for asked in provider.asked] == [MODEL, FALLBACK]

    @pytest.mark.parametrize("failure", [stub.error(401), stub.error(403), stub.error(400), stub.raw(b"<html>")])
    def test_it_is_not_asked_what_would_be_refused_again(
        self, make: Callable[..., OpenAIEngine], provider: Provider, failure: Behaviour
    ) -> None:
        provider.by_model[MODEL] = failure
        with pytest.raises((RejectedRequest, UnparsableReply)):
            make(fallback_model=FALLBACK, retries=0).complete(request())
        assert [asked.model for asked in provider.asked] == [MODEL]

    def test_the_models_own_error_is_told_when_both_fail(
        self, make: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        provider.by_model = {MODEL: stub.error(404), FALLBACK: stub.error(500)}
        with pytest.raises(UnknownModel):
            make(fallback_model=FALLBACK, retries=0).complete(request())

    def test_it_has_its_turn_when_the_model_says_nothing(
        self, make: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        provider.by_model[MODEL] = stub.delay(30)
        engine = make(fallback_model=FALLBACK, retries=0, attempt_timeout_s=2, timeout_s=20)
        assert engine.complete(request()).substitute is True

    def test_its_degraded_answer_is_an_error(self, in_force: Callable[..., OpenAIEngine], provider: Provider) -> None:
        in_force(fallback_model=FALLBACK, retries=0)
        provider.by_model = {MODEL: stub.error(500), FALLBACK: stub.good(finish_reason="length")}
        with pytest.raises(TruncatedReply):
            tasks.summarize(TEXT)

    def test_an_answer_of_a_model_that_a_gateway_put_in_its_place_is_not_kept(
        self, in_force: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        in_force(answered_by=f"{MODEL}*")
        provider.then.append(stub.good(model="cheaper-1"))
        assert tasks.summarize(TEXT)["metadata"]["substitute"] is True
        assert tasks.summarize.cache.peek(TEXT) is None
        assert "substitute" not in tasks.summarize(TEXT)["metadata"]
        assert tasks.summarize.cache.peek(TEXT).model == f"{MODEL}-2026-01-01"

    @pytest.mark.parametrize("name", [None, f"{MODEL}{'x' * 200}", f"{MODEL}\n"], ids=["none", "long", "unprintable"])
    def test_an_answer_that_does_not_say_whose_it_is_is_not_kept_where_that_matters(
        self, in_force: Callable[..., OpenAIEngine], provider: Provider, name: str | None
    ) -> None:
        in_force(answered_by=f"{MODEL}*")
        provider.then.append(stub.good(model=name))
        assert tasks.summarize(TEXT)["metadata"]["substitute"] is True
        assert tasks.summarize.cache.peek(TEXT) is None


class TestSpent:
    """What a reply took that is no answer is spent all the same."""

    @pytest.mark.parametrize(
        "reply",
        [stub.good(choices=[]), stub.good(error={"message": "x"}), stub.good(choices=[{"text": "x"}])],
        ids=["no choices", "error", "another shape"],
    )
    @pytest.mark.parametrize("fallback", [None, FALLBACK])
    def test_the_tokens_of_a_reply_that_is_no_completion_are_annotated(
        self, make: Callable[..., OpenAIEngine], provider: Provider, reply: Behaviour, fallback: str | None
    ) -> None:
        failing = MODEL if fallback is None else fallback
        provider.by_model = {MODEL: stub.error(500), failing: reply}
        work = Work()
        with pytest.raises(EngineError):
            work.run(make(fallback_model=fallback, retries=0).complete, (request(),), {})
        expected = {"input_tokens": 812, "cached_input_tokens": 512, "output_tokens": 96}
        assert (work.model, work.usage) == (f"{failing}{stub.DATE}", expected)

    def test_those_of_an_answer_are_left_to_who_gets_it(
        self, make: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        work = Work()
        assert work.run(make().complete, (request(),), {}).usage
        assert work.usage is None


class TestReply:
    """What is made of a reply's parts that no error hangs on."""

    def test_all_that_is_only_the_beginning_of_a_completion_ends_too_early(self) -> None:
        body = json.dumps(
            {"choices": [{"message": {"content": "é\n"}}], "model": "m", "usage": None, "x": [-1.5e-3, True]},
            ensure_ascii=False,
        ).encode()
        for size in range(len(body)):
            with pytest.raises(AttemptFailed) as caught:
                completion_of("summarize", "m", body[:size])
            assert (type(caught.value.error), caught.value.again) == (Unavailable, True)

    @pytest.mark.parametrize(
        ("usage", "expected"),
        [
            (stub.USAGE, {"input_tokens": 812, "cached_input_tokens": 512, "output_tokens": 96}),
            ({"prompt_tokens": 5, "completion_tokens": 0}, {"input_tokens": 5, "output_tokens": 0}),
            ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 6}}, {"input_tokens": 5}),
            ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0}}, {"input_tokens": 5}),
            ({"prompt_tokens": 5, "prompt_tokens_details": None}, {"input_tokens": 5}),
            ({"prompt_tokens": True, "completion_tokens": "96"}, None),
            ({"prompt_tokens": -1, "completion_tokens": 1.5}, None),
            ({"prompt_tokens": 10**30, "completion_tokens": 3}, {"output_tokens": 3}),
            (None, None),
            ([1], None),
            ("many", None),
        ],
    )
    def test_usage_is_taken_as_far_as_it_can_be(self, usage: Any, expected: Any) -> None:
        assert self.completion(usage=usage).usage == expected

    @pytest.mark.parametrize("given", [None, "", 7, "m" * 201, "m\n", ["m"]])
    def test_a_model_that_is_no_name_is_the_one_that_was_asked(self, given: Any) -> None:
        assert self.completion(model=given).model == "asked"

    @pytest.mark.parametrize(
        "thoughts",
        [
            "<think>Let me see.</think>\n\n",
            " \n<think>\n\n</think>\n<THINKING>I see.</THINKING>",
            "[THINK]Let me see.[/THINK]",
            "<thought>Let me see.</thought>\n",
            "◁think▷Let me see.◁/think▷",
            "<thoughts>Let me see.</thoughts>",
            "<reasoning>Let me see.</reasoning>\n",
            "<seed:think>Let me see.</seed:think>",
            "analysisThe user wants a summary.assistantfinal",
            "Okay, the user wants a summary.\n</think>\n\n",
            "Okay.</think>\r\n",
            "<think>It says <think>so</think> there.\n</think>\n",
            "</think>\n\n",
        ],
    )
    def test_thoughts_before_an_answer_are_no_part_of_it(self, thoughts: str) -> None:
        assert self.text_of(f"{thoughts}It rained.") == "It rained."

    def test_an_answer_in_a_tag_of_its_own_is_taken_out_of_it(self) -> None:
        for end in ("", "<|im_end|>\n</s>"):
            assert self.text_of(f"<think>Hm.</think>\n<answer>\nIt rained.\n</answer>{end}") == "It rained."
        for text in ("Between <answer> and </answer>", "<answer>Rain</answer> or <answer>snow</answer>"):
            assert self.text_of(text) == text

    @pytest.mark.parametrize(
        "text",
        [
            "The model wraps its reasoning in <think> and </think> tags.",
            "It ends its thoughts with </think>\n- and then answers.",
            "- It writes `</think>`\n- It answers.",
            "Okay. </think> It rained.",
            "<think>Okay, the user wants a summary.",
        ],
    )
    def test_a_tag_that_ends_no_thoughts_for_sure_is_left_for_the_operation_to_judge(self, text: str) -> None:
        assert self.text_of(text) == text

    def text_of(self, content: str) -> str:
        return self.completion(choices=[{"message": {"content": content}, "finish_reason": "stop"}]).text

    def completion(self, **changed: Any) -> Completion:
        choice = {"message": {"content": "It rained."}, "finish_reason": "stop"}
        body = {"choices": [choice], "model": "m", "usage": stub.USAGE, **changed}
        return completion_of("summarize", "asked", json.dumps(body).encode())


class TestConnections:
    def test_each_request_has_one_of_its_own(self, make: Callable[..., OpenAIEngine], provider: Provider) -> None:
        engine = make()
        provider.then.append(stub.error(500))
        for operation in PROMPT_VERSIONS:
            engine.complete(request(operation))
        assert len({asked.connection for asked in provider.asked}) == len(provider.asked) == 6
        assert {asked.headers["connection"] for asked in provider.asked} == {"close"}

    def test_what_a_server_sends_after_a_reply_is_nobodys_answer(
        self, make: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        provider.always, engine = stub.twice, make()
        for operation in PROMPT_VERSIONS:
            assert engine.complete(request(operation)).text == stub.GOOD[operation]

    def test_an_address_that_is_silent_leaves_time_for_the_next(
        self, make: Callable[..., OpenAIEngine], provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port, known = int(provider.url.split(":")[2].removesuffix("/v1")), socket.getaddrinfo

        def both(host: str, *args: Any, **kwargs: Any) -> list[Any]:
            hosts = ("127.0.0.2", "127.0.0.1") if host == "two.test" else (host,)
            return [found for each in hosts for found in known(each, *args, **kwargs)]

        with silent("127.0.0.2", port):
            monkeypatch.setattr(socket, "getaddrinfo", both)
            engine = make(base_url=f"http://two.test:{port}/v1", connect_timeout_s=2, retries=0)
            with took_s(0.3, less=20):
                assert engine.complete(request()).text == stub.GOOD["summarize"]

    def test_threads_get_the_answers_to_what_they_asked(
        self, make: Callable[..., OpenAIEngine], provider: Provider
    ) -> None:
        engine = make()
        operations = [*PROMPT_VERSIONS] * 12
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda operation: engine.complete(request(operation)).text, operations)
            assert list(answers) == [stub.GOOD[operation] for operation in operations]

    def test_a_fork_has_connections_of_its_own(self, make: Callable[..., OpenAIEngine], provider: Provider) -> None:
        engine = make()
        engine.complete(request())
        child = os.fork()
        if child == 0:
            os._exit(0 if engine.complete(request("qa")).text == stub.GOOD["qa"] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        engine.complete(request())
        assert len({asked.connection for asked in provider.asked}) == 3

    def test_a_closed_engine_opens_new_ones(self, make: Callable[..., OpenAIEngine], provider: Provider) -> None:
        engine = make()
        engine.complete(request())
        engine.close()
        assert engine.complete(request("qa")).text == stub.GOOD["qa"]

    @pytest.mark.soak
    @pytest.mark.parametrize(
        ("patch", "spawn", "answer"),
        [
            ("import gevent.monkey; gevent.monkey.patch_all()", "gevent.spawn(ask)", "get"),
            ("import eventlet; eventlet.monkey_patch()", "eventlet.spawn(ask)", "wait"),
        ],
        ids=["gevent", "eventlet"],
    )
    def test_greenlets_wait_side_by_side(self, provider: Provider, patch: str, spawn: str, answer: str) -> None:
        program = (
            f"{patch}\nimport time\n"
            "from workers.engines.openai import from_environment\nfrom workers.operations import make_request\n"
            "engine, r = from_environment(), make_request('summarize', 'It rained all day.')\n"
            "def ask(): return engine.complete(r).text\n"
            "ask(); began = time.monotonic()\n"
            f"made = [{spawn} for _ in range(20)]\n"
            f"print({{m.{answer}() for m in made}})\n"
            "print(time.monotonic() - began)"
        )
        provider.then.append(stub.good())
        provider.always = stub.delay(0.5)
        ours = {"AICACHE_OPENAI_MODEL": MODEL, "AICACHE_OPENAI_BASE_URL": provider.url}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            env={**os.environ, **ours, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said, took = done.stdout.splitlines()
        assert said == str({stub.GOOD["summarize"]})
        assert 0.5 <= float(took) < 8  # one after the other takes 10


class TestARealWorker:
    def test_a_soft_limit_ends_a_silent_call_and_the_worker_goes_on(
        self, valkey: EmbeddedServer, provider: Provider, app: Celery
    ) -> None:
        settings = {"MODEL": MODEL, "BASE_URL": provider.url, "API_KEY": KEY, "RETRIES": "0"}
        environ = {f"AICACHE_OPENAI_{name}": text for name, text in settings.items()}
        with_engine = {**environ, "AICACHE_ENGINE": "openai", **PATIENT}
        worker = WorkerProcess(
            "workers.app",
            valkey.url,
            valkey.url,
            valkey.url,
            concurrency=1,
            extra_args=["-l", "debug", "-I", "tests.llm_margin"],
            env=with_engine,
        ).start()
        try:
            worker.ready()
            first = tasks.summarize.delay(TEXT).get(timeout=30)
            provider.always = stub.drip
            slow = tasks.qa.apply_async((TEXT, QUESTION), soft_time_limit=4)
            with took_s(less=20), pytest.raises(TimedOut):
                slow.get(timeout=30)
            provider.recover()
            answer = tasks.qa.delay(TEXT, QUESTION).get(timeout=30)
            assert answer["result"] == stub.GOOD["qa"]
            asked = len(provider.asked)
            assert tasks.qa.delay(TEXT, QUESTION).get(timeout=30) == answer
            assert tasks.summarize.delay(TEXT).get(timeout=30) == first
            assert len(provider.asked) == asked == 3
            shown = worker.logs()
            assert not [text for text in (KEY, "Ostermere", stub.GOOD["qa"]) if text in shown]
        finally:
            worker.close()
