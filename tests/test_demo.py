"""The demo does what it says, and leaves nothing behind."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from aicache_tasks.errors import MissingExtraError
from aicache_tasks.records import CallInfo
from aicache_tasks.testing import EmbeddedServer
from workers import demo, demo_table
from workers.demo_client import OPERATIONS

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "workers.demo"]
MISS = CallInfo("miss", "key_not_found", "questions", "k", 99.99, 99.99, 9999.9, 99.99, 99999, 99999)
HIT = CallInfo("hit", "", "questions", "k", 99.99, 99.99)


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


class TestWhatCannotBegin:
    def test_a_port_that_is_taken_gives_one_line_and_exit_code_2(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = run("--port", str(port))
        assert done.returncode == 2
        assert done.stderr == f"demo: port {port} is taken; give --port another, or leave it out\n"

    def test_without_a_port_the_next_free_one_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            monkeypatch.setattr(demo, "FLOWER_PORT", taken.getsockname()[1])
            assert demo.flower_port(None) > demo.FLOWER_PORT

    def test_a_missing_package_names_what_to_install(self) -> None:
        with pytest.raises(
            MissingExtraError, match=r"not_there is not installed: run `pip install 'aicache-tasks\[demo\]'`"
        ):
            demo.check_packages(["not_there"])

    def test_the_users_own_variables_are_not_passed_on(self) -> None:
        mine = {"AICACHE_DISABLED": "1", "CELERY_BROKER_URL": "redis://mine", "FLOWER_PORT": "1", "LANG": "C"}
        at = demo.Addresses("redis://b", "redis://c", "http://f")
        passed_on = demo.child_environ(mine, at, "extractive")
        assert (passed_on["LANG"], passed_on["CELERY_BROKER_URL"]) == ("C", "redis://b")
        assert not {"AICACHE_DISABLED", "FLOWER_PORT"} & passed_on.keys()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def statuses(output: str) -> list[tuple[str, str]]:
    return re.findall(r"^ +(\w+) .* (5 \w+ → 5 \w+) *$", output, re.MULTILINE)


@pytest.mark.soak
@pytest.mark.timeout(120)
class TestWholeDemo:
    def test_every_call_of_the_second_run_is_a_hit(self) -> None:
        done = run("--once")
        assert done.returncode == 0, done.stdout + done.stderr
        assert statuses(done.stdout) == [(operation, "5 miss → 5 hit") for operation in OPERATIONS]

    def test_a_server_of_your_own_keeps_the_answers_for_the_next_demo(self) -> None:
        with EmbeddedServer() as server:
            runs = [run("--once", "--redis-url", server.url) for _ in range(2)]
        assert [done.returncode for done in runs] == [0, 0], runs[-1].stderr
        assert {status for _, status in statuses(runs[1].stdout)} == {"5 hit → 5 hit"}

    def test_a_server_that_is_not_there_gives_one_line_and_exit_code_2(self) -> None:
        done = run("--once", "--redis-url", "redis://:hunter2@127.0.0.1:1/0")
        assert done.returncode == 2
        last = done.stderr.splitlines()[-1]
        assert last == "demo: the cache at redis://:********@127.0.0.1:1/0 does not answer: redis_connection_failed"

    def test_an_engine_that_is_not_there_gives_one_line_and_exit_code_2(self) -> None:
        done = run("--once", "--engine", "abacus")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("demo: AICACHE_ENGINE: no engine 'abacus'")


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


@pytest.fixture
def up() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A demo that has shown its tables and stays up, and the environment variable that its children have."""
    process = subprocess.Popen(COMMAND, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    broker = next((line.split()[1] for line in process.stdout if line.startswith("  broker ")), "")
    yield process, f"CELERY_BROKER_URL={broker}"
    process.kill()
    process.communicate()


@pytest.mark.soak
@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_demo_that_is_ended(up: tuple[subprocess.Popen[str], str], number: signal.Signals) -> None:
    process, variable = up
    assert len(processes_with(variable)) >= 5  # worker, its two children, Flower, beat
    process.send_signal(number)
    assert process.wait(30) == (128 + number if number != signal.SIGKILL else -number)
    assert wait_until(lambda: not processes_with(variable), within_s=0.5 if number != signal.SIGKILL else 15)
    assert wait_until(lambda: not servers(), within_s=15)


def servers() -> list[str]:
    """Return the servers whose data lies in a demo's folder."""
    if sys.platform == "linux":
        lines = [contents(path).replace(b"\0", b" ").decode() for path in Path("/proc").glob("[0-9]*/cmdline")]
    else:
        lines = subprocess.run(
            ["ps", "axww", "-o", "command"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    return [line for line in lines if "valkey-server" in line and "aicache-demo-" in line]
