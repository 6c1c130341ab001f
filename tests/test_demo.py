"""The demo does what it says, and leaves nothing behind."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from rich.console import Console

from aicache_tasks.errors import MissingExtraError, SettingsError
from aicache_tasks.records import CallInfo
from aicache_tasks.testing import EmbeddedServer
from tests.faults import free_port
from tests.provider import MODEL, Provider
from workers import demo, demo_checks, demo_model, demo_table
from workers.demo_calls import OPERATIONS, OPTIONS
from workers.engines import load_engine

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "workers.demo"]
FAST = ("--engine", "extractive")
MISS = CallInfo("miss", "key_not_found", "questions", "k", 99.99, 99.99, 9999.9, 99.99, 99999, 99999)
HIT = CallInfo("hit", "", "questions", "k", 99.99, 99.99)


ENGINE = """
from workers.engines.base import Completion

class Shout:
    name, model, sampling = "shout", "shout-1", {"temperature": 0}

    def complete(self, request):
        mood = '{"sentiment": "neutral", "confidence": 1, "explanation": "No word of it is loud."}'
        reply = mood if request.operation == "sentiment" else request.text.upper()
        return Completion(reply, None, self.model, "stop")
"""


def measured(info: CallInfo, value: object = "answer") -> demo_table.Measured:
    return demo_table.Measured("questions", "seed_library", 99.9999, value, info)


class TestTables:
    def test_they_fit_a_terminal_of_80_columns(self) -> None:
        console = Console(width=80)
        with console.capture() as shown:
            for table in demo_table.tables([measured(MISS)] * 5, [measured(HIT)] * 5):
                console.print(table)
        assert "…" not in shown.get()
        assert "5 miss → 5 hit" in shown.get()

    def test_a_second_run_of_equal_hits_has_no_fault(self) -> None:
        assert demo_table.faults([measured(MISS, {"a": 1})], [measured(HIT, {"a": 1})]) == []

    def test_a_miss_and_another_answer_in_the_second_run_are_faults(self) -> None:
        assert len(demo_table.faults([measured(MISS, "one")], [measured(MISS, "two")])) == 2

    def test_a_reply_that_could_not_be_used_is_told_and_is_no_fault_while_another_article_has_an_answer(self) -> None:
        cut = measured(MISS, "questions: finish reason length")._replace(kept=False)
        first, second = [cut, measured(MISS)], [cut, measured(HIT)]
        assert demo_table.faults(first, second) == []
        assert len(demo_table.not_kept(first)) == 1
        assert demo_table.faults([cut], [cut]) == ["questions: no reply that could be used"]


class TestWhatCannotBegin:
    def test_a_port_that_is_taken_gives_one_line_and_exit_code_2(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = run("--engine", "extractive", "--port", str(port))
        assert done.returncode == 2
        assert done.stderr == f"demo: port {port} is taken; give --port another, or leave it out\n"

    def test_without_a_port_the_next_free_one_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            monkeypatch.setattr(demo_checks, "FLOWER_PORT", taken.getsockname()[1])
            with demo_checks.flower_port(None) as port:
                assert port > demo_checks.FLOWER_PORT

    def test_two_demos_that_start_at_once_get_ports_of_their_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo_checks, "FLOWER_PORT", free_port())  # no demo that runs meanwhile begins there
        with demo_checks.flower_port(None) as first:
            with demo_checks.flower_port(None) as second:
                assert first != second
            with (
                pytest.raises(demo_checks.Unusable, match=f"port {first} is taken"),
                demo_checks.flower_port(first),
            ):
                pass
        with demo_checks.flower_port(first) as again:
            assert again == first

    def test_a_missing_package_names_what_to_install(self) -> None:
        with pytest.raises(
            MissingExtraError, match=r"not_there is not installed: run `pip install 'aicache-tasks\[demo\]'`"
        ):
            demo_checks.check_packages(["not_there"])

    def test_the_users_own_variables_are_not_passed_on(self) -> None:
        mine = {"AICACHE_DISABLED": "1", "CELERY_BROKER_URL": "redis://mine", "FLOWER_PORT": "1", "LANG": "C"}
        at = demo.Addresses("redis://b", "redis://c", "http://f")
        passed_on = demo.child_environ(mine, at, "extractive")
        assert (passed_on["LANG"], passed_on["CELERY_BROKER_URL"]) == ("C", "redis://b")
        assert not {"AICACHE_DISABLED", "FLOWER_PORT", "PYTHONPATH"} & passed_on.keys()

    def test_modules_on_the_callers_path_come_after_all_of_the_environments_own(self) -> None:
        at = demo.Addresses("redis://b", "redis://c", "http://f")
        passed_on = demo.child_environ({demo.CALLERS_PATH: "/my/code"}, at, "mine:make")
        assert passed_on["PYTHONPATH"].split(os.pathsep) == [*filter(None, sys.path), "/my/code"]
        assert demo.client_variables(passed_on, "/my/code")["PYTHONPATH"] == "/my/code"
        assert "PYTHONPATH" not in demo.client_variables(passed_on | {"AICACHE_ENGINE": "local"}, "/my/code")


class TestChoiceOfEngine:
    def test_without_its_packages_the_fast_one_answers_and_a_line_says_so(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(demo_model, "PACKAGES", ("not_there",))
        assert demo_model.choose_engine(None, None, {}) == "extractive"
        assert re.fullmatch(
            r"no language model for .* the engine extractive answers instead\n", capsys.readouterr().err
        )

    def test_asked_for_by_name_its_missing_packages_are_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo_model, "PACKAGES", ("not_there",))
        with pytest.raises(MissingExtraError, match=r"pip install 'aicache-tasks\[local\]'"):
            demo_model.choose_engine("local", None, {})

    @pytest.mark.parametrize(("name", "said"), [("absent", "No such file"), ("text", "is no GGUF file")])
    def test_what_is_no_model_is_said_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
    ) -> None:
        monkeypatch.setattr(demo_model, "PACKAGES", ())
        (tmp_path / "text").write_text("no model")
        with pytest.raises(demo_checks.Unusable, match=said):
            demo_model.choose_engine(None, str(tmp_path / name), {})

    @pytest.mark.parametrize("wanted", ["", "abacus"])
    def test_an_engine_that_there_is_none_of_is_refused_before_anything_starts(self, wanted: str) -> None:
        done = run("--engine", wanted)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"demo: --engine: no engine '{wanted}'; known: extractive, local, openai, ")

    def test_a_model_without_a_name_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo_model, "PACKAGES", ())
        with pytest.raises(demo_checks.Unusable, match="--model: name a GGUF file"):
            demo_model.choose_engine(None, "", {})

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({}, "AICACHE_OPENAI_MODEL is required"),
            ({"AICACHE_OPENAI_MODEL": "m"}, "AICACHE_OPENAI_API_KEY is required by OpenAI"),
            ({"AICACHE_OPENAI_MODLE": "m"}, "AICACHE_OPENAI_MODLE: no such variable"),
            ({"AICACHE_OPENAI_MODEL": "m", "AICACHE_OPENAI_API_KEY_FILE": "/none"}, "/none cannot be read"),
        ],
    )
    def test_a_server_that_cannot_be_asked_is_told_before_anything_starts(
        self, given: dict[str, str], said: str
    ) -> None:
        with pytest.raises(demo_checks.Unusable, match=said):
            demo_model.choose_engine("openai", None, given)

    def test_a_relative_path_is_meant_from_the_callers_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "m.gguf").write_text("no model")
        monkeypatch.setattr(demo_model, "PACKAGES", ())
        monkeypatch.setenv(demo_model.CALLERS_FOLDER, str(tmp_path))
        assert demo.main(["--model", "m.gguf"]) == 2
        assert capsys.readouterr().err == f"demo: {tmp_path}/m.gguf is no GGUF file\n"

    def test_the_keys_file_is_too_for_the_demo_and_for_the_worker(self, tmp_path: Path) -> None:
        (tmp_path / "key").write_text("sk-1")
        given = {"AICACHE_OPENAI_MODEL": "m", demo_model.KEY_FILE: "key", demo_model.CALLERS_FOLDER: str(tmp_path)}
        assert demo_model.choose_engine("openai", None, given) == "openai"
        at = demo.Addresses("redis://b", "redis://c", "http://f")
        passed_on = demo.child_environ(given, at, "openai")
        assert passed_on[demo_model.KEY_FILE] == str(tmp_path / "key")
        assert demo_model.CALLERS_FOLDER not in passed_on

    def test_what_names_the_server_is_passed_on_to_the_engine_that_asks_it_alone_and_no_key_is_shown(self) -> None:
        mine = {"AICACHE_OPENAI_MODEL": "m", "AICACHE_OPENAI_API_KEY": "sk-1", "AICACHE_DISABLED": "1"}
        at = demo.Addresses("redis://b", "redis://c", "http://f")
        passed_on = demo.child_environ(mine, at, "openai")
        assert (passed_on["AICACHE_OPENAI_MODEL"], passed_on["AICACHE_OPENAI_API_KEY"]) == ("m", "sk-1")
        assert "AICACHE_DISABLED" not in passed_on
        assert not mine.keys() & demo.child_environ(mine, at, "extractive").keys()
        shown = demo.where_to_look(at, demo.client_variables(passed_on, None), 3.0)
        assert "export AICACHE_OPENAI_MODEL=m\n" in shown
        assert "sk-1" not in shown

    def test_a_model_is_for_the_local_engine_alone(self) -> None:
        with pytest.raises(demo_checks.Unusable, match="not for extractive"):
            demo_model.choose_engine("extractive", "m.gguf", {})

    def test_the_server_is_found_in_its_log_once_the_line_is_whole(self, tmp_path: Path) -> None:
        log = tmp_path / "llm.log"
        log.write_text("loading\nhttp://127.0.0.1:1/v1 m-1")
        assert demo_model.listening(log) is None
        log.write_text("loading\nhttp://127.0.0.1:1/v1 m-1 (threads: 1)\n")
        assert demo_model.listening(log) == ("http://127.0.0.1:1/v1", "m-1")


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("abacus", "no engine 'abacus'"),
        ("not_there:make", r"no engine 'not_there:make'.* \(No module named 'not_there'\)"),
        ("os:not_there", r"no engine 'os:not_there'.* \(os has no function or class 'not_there'\)"),
        ("os:sep", r"no engine 'os:sep'.* \(os has no function or class 'sep'\)"),
        ("os:", "no engine 'os:'"),
        (":make", "no engine ':make'"),
        ("os:getcwd", "'os:getcwd' gave no engine but str"),
    ],
)
def test_what_is_no_engine_is_said_so(engine: str, said: str) -> None:
    with pytest.raises(SettingsError, match=f"^AICACHE_ENGINE: {said}"):
        load_engine(engine)


class TestServerOfYourOwn:
    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("foo", "--redis-url: must be a URL that starts with one of redis://, "),
            ("redis://[::1/0", "--redis-url: must be a URL that starts with one of redis://, "),
            ("redis://hunter2@127.0.0.1:port/0", "--redis-url: redis-py cannot use it"),
            ("memory://", "--redis-url: name a server, such as redis://"),
            ("", "--redis-url: name a server, such as redis://"),
        ],
    )
    def test_what_is_no_servers_url_is_said_so(self, url: str, said: str) -> None:
        with pytest.raises(demo_checks.Unusable) as found:
            demo_checks.check_cache(url)
        assert str(found.value).startswith(said)
        assert "hunter2" not in str(found.value)

    def test_one_that_is_not_there_gives_one_line_and_exit_code_2_before_anything_starts(self) -> None:
        done = run("--once", "--engine", "extractive", "--redis-url", "redis://:hunter2@127.0.0.1:1/0")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "demo: the cache at redis://:********@127.0.0.1:1/0 does not answer: ConnectionError\n"

    def test_one_that_refuses_is_told_from_one_that_does_not_answer(self) -> None:
        with EmbeddedServer(config={"requirepass": "hunter2"}) as server:
            demo_checks.check_cache(server.url)
            with pytest.raises(demo_checks.Unusable, match=r"wants a password \(NOAUTH\): write it into the URL"):
                demo_checks.check_cache(f"redis://127.0.0.1:{server.port}/0")
            with pytest.raises(demo_checks.Unusable, match=r"does not accept .* \(WRONGPASS\)") as found:
                demo_checks.check_cache(f"redis://:hunter3@127.0.0.1:{server.port}/0")
        assert "hunter3" not in str(found.value)

    def test_one_that_refuses_to_be_read_says_how(self) -> None:
        with EmbeddedServer(config={"user": ["default on nopass ~* +@all", "guest on nopass ~* +ping"]}) as server:
            url = server.url.replace("://", "://guest:any@")
            with pytest.raises(demo_checks.Unusable, match=r"answers, but refuses: NoPermissionError NOPERM"):
                demo_checks.check_cache(url)

    def test_its_password_is_not_shown_at_the_end(self) -> None:
        at = demo.Addresses("redis://b", "redis://:hunter2@c:6379/0", "http://f")
        environ = demo.child_environ({}, at, "extractive")
        shown = demo.where_to_look(at, demo.client_variables(environ, None), 3.0)
        assert shown.count("redis://:********@c:6379/0") == 2
        assert "hunter2" not in shown


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, check=False
    )


def statuses(output: str) -> list[tuple[str, str]]:
    return re.findall(r"^ +(\w+) .* (5 \w+ → 5 \w+) *$", output, re.MULTILINE)


@pytest.mark.soak
@pytest.mark.timeout(120)
class TestWholeDemo:
    def test_every_call_of_the_second_run_is_a_hit_and_long_answers_are_stored_compressed(self) -> None:
        done = run("--once", *FAST)
        assert done.returncode == 0, done.stdout + done.stderr
        assert statuses(done.stdout) == [(operation, "5 miss → 5 hit") for operation in OPERATIONS]
        sizes = re.findall(r"^ +(\w+) +\d+\.\d+ m?s(?: +\d+\.\d+){4} +(\d+) +(\d+) *$", done.stdout, re.MULTILINE)
        assert [operation for operation, _, _ in sizes] == list(OPERATIONS)
        assert {operation for operation, answer, entry in sizes if int(entry) < int(answer)} == set(OPTIONS)
        begun = [f"{name} run: {operation}" for name in ("first", "second") for operation in OPERATIONS]
        assert done.stderr.splitlines()[1:] == begun  # where no bar moves

    def test_a_server_of_your_own_keeps_the_answers_for_the_next_demo(self) -> None:
        with EmbeddedServer() as server:
            runs = [run("--once", *FAST, "--redis-url", server.url) for _ in range(2)]
        assert [done.returncode for done in runs] == [0, 0], runs[-1].stderr
        assert {status for _, status in statuses(runs[1].stdout)} == {"5 hit → 5 hit"}

    def test_a_server_of_openais_protocol_answers_and_is_asked_once_for_each_call(self) -> None:
        provider = Provider()
        own = {"AICACHE_OPENAI_MODEL": MODEL, "AICACHE_OPENAI_BASE_URL": provider.url}
        done = run("--once", "--engine", "openai", **own)
        provider.close()
        assert done.returncode == 0, done.stdout + done.stderr
        assert statuses(done.stdout) == [(operation, "5 miss → 5 hit") for operation in OPERATIONS]
        assert f"Engine: openai ({MODEL})." in done.stdout
        assert len(provider.asked) == 5 * len(OPERATIONS)

    def test_a_damaged_model_gives_one_line_with_the_command_that_shows_why_and_no_folder(self, tmp_path: Path) -> None:
        damaged, folder = tmp_path / "damaged.gguf", tmp_path / "temporary"
        damaged.write_bytes(b"GGUF and no more")
        folder.mkdir()
        done = run("--once", "--model", str(damaged), TMPDIR=str(folder))
        assert (done.returncode, done.stdout) == (2, "")
        _, said = done.stderr.splitlines()
        shows_why = f"{sys.executable} -m workers.llm --model {damaged} --verbose"
        assert said == (
            f"demo: aicache-llm: {damaged} could not be loaded; --verbose shows why (the command: {shows_why})"
        )
        assert list(folder.iterdir()) == []

    def test_an_engine_that_is_none_gives_one_line_exit_code_2_and_no_folder(self, tmp_path: Path) -> None:
        done = run("--once", "--engine", "os:getcwd", TMPDIR=str(tmp_path))
        assert done.returncode == 2
        _, what_is_wrong = done.stderr.splitlines()
        assert what_is_wrong.startswith("demo: AICACHE_ENGINE: 'os:getcwd' gave no engine but str; ")
        assert list(tmp_path.iterdir()) == []

    def test_an_engine_on_the_callers_path_answers_and_shadows_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(ENGINE)
        (tmp_path / "celery.py").write_text("raise RuntimeError('this is not Celery')")
        done = run("--once", "--engine", "mine:Shout", **{demo.CALLERS_PATH: str(tmp_path)})
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Engine: shout (shout-1)." in done.stdout

    def test_a_call_that_fails_leaves_the_workers_log_for_the_engines_author(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(
            ENGINE.replace("return", "raise RuntimeError('no such model')\n        return")
        )
        given = {demo.CALLERS_PATH: str(tmp_path), "TMPDIR": str(tmp_path)}
        done = run("--once", "--engine", "mine:Shout", **given)
        assert done.returncode == 1
        said, where = done.stderr.splitlines()[-2:]
        assert said == "demo: summarize of market_hall failed: RuntimeError"
        assert "no such model" in (Path(where.removeprefix("logs: ")) / "worker.log").read_text()


def processes_with(variable: str) -> list[str]:
    """Return the processes that were started with *variable* in their environment."""
    if sys.platform == "linux":
        return [
            str(path.parent) for path in Path("/proc").glob("[0-9]*/environ") if variable.encode() in contents(path)
        ]
    listed = subprocess.run(["ps", "axeww", "-o", "pid,command"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if variable in line]


def contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended, or belongs to somebody else
        return b""


def wait_until(condition: Callable[[], bool], within_s: float) -> bool:
    deadline, pause = time.monotonic() + within_s, threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.05)
    return True


@pytest.mark.soak
@pytest.mark.timeout(120)
def test_the_lines_for_a_client_show_its_records_and_find_its_answers_from_any_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, *FAST], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        printed = "".join(itertools.takewhile(lambda line: not line.startswith("Ctrl-C ends it"), process.stdout))
        assert process.poll() is None, f"the demo ended by itself: {printed}"
        own = {name: value for name, value in os.environ.items() if not name.startswith(demo.OURS)}
        lines = printed.rpartition("  a client ")[2]
        done = subprocess.run(
            ["/bin/sh", "-ec", lines], cwd=tmp_path, env=own, capture_output=True, text=True, check=False
        )
        process.terminate()
    assert done.returncode == 0, done.stdout + done.stderr
    records, _, calls = done.stdout.partition("What the caller saw")
    assert all(operation in records for operation in OPERATIONS), records
    assert statuses(calls) == [(operation, "5 hit → 5 hit") for operation in OPERATIONS]


@pytest.fixture
def up() -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A demo that has shown its tables and stays up, and the URLs of its cache and its broker."""
    process = subprocess.Popen(
        [*COMMAND, *FAST], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    shown = itertools.takewhile(lambda line: not line.startswith("  a client "), process.stdout)
    yield process, [line.split()[1] for line in shown if line.startswith(("  cache ", "  broker "))]
    process.kill()
    process.communicate()


@pytest.mark.soak
@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_demo_that_is_ended(
    up: tuple[subprocess.Popen[str], list[str]], number: signal.Signals
) -> None:
    process, urls = up
    variable = f"CELERY_BROKER_URL={urls[1]}"
    assert len(processes_with(variable)) >= 5  # worker, its two children, Flower, beat
    assert len(servers(urls)) == 2
    process.send_signal(number)
    assert process.wait(30) == (128 + number if number != signal.SIGKILL else -number)
    assert wait_until(lambda: not processes_with(variable), within_s=3 if number != signal.SIGKILL else 15)
    assert wait_until(lambda: not servers(urls), within_s=15)


@pytest.mark.soak
@pytest.mark.timeout(120)
def test_a_model_that_is_busy_with_an_answer_ends_with_the_demo(tmp_path: Path) -> None:
    environ = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        COMMAND, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    variable = f"TMPDIR={tmp_path}"
    try:
        assert wait_until(lambda: any(cpu_s(pid) > 2 for pid in models_with(variable)), within_s=80)
        process.kill()
    finally:
        process.kill()
        process.wait()
    assert wait_until(lambda: not processes_with(variable), within_s=15)
    assert wait_until(lambda: list(tmp_path.iterdir()) == [], within_s=15)


def models_with(variable: str) -> list[str]:
    """Return the ids of the model servers that were started with *variable* in their environment."""
    found = processes_with(variable)
    if sys.platform == "linux":
        return [Path(path).name for path in found if b"workers.llm" in contents(Path(path) / "cmdline")]
    return [line.split()[0] for line in found if "workers.llm" in line]


def cpu_s(pid: str) -> float:
    """Return the seconds that a process has computed: loading takes less than one, so that more are an answer's."""
    if sys.platform == "linux":
        fields = contents(Path("/proc") / pid / "stat").decode().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0
    shown = subprocess.run(["ps", "-o", "time=", "-p", pid], capture_output=True, text=True, check=False).stdout
    minutes, _, seconds = shown.strip().rpartition(":")
    return 60 * float(minutes or 0) + float(seconds or 0)


def servers(urls: list[str]) -> list[str]:
    """Return the servers at *urls*: of all that it was started with, a server's command line says only its address."""
    addresses = {urlsplit(url).netloc for url in urls}
    if sys.platform == "linux":
        lines = [contents(path).replace(b"\0", b" ").decode() for path in Path("/proc").glob("[0-9]*/cmdline")]
    else:
        lines = subprocess.run(
            ["ps", "axww", "-o", "command"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    return [line for line in lines if "valkey-server" in line and addresses & set(line.split())]
