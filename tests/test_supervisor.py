"""No process outlives a supervisor, whichever way it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workers import watcher
from workers.supervisor import ChildFailed, Stopped, Supervisor

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import sys
import workers.supervisor as module
if "without-prctl" in sys.argv:
    module._follow_parent = lambda: None
with module.Supervisor() as supervisor:
    quiet = supervisor.start("quiet", ["sleep", "600"])
    family = supervisor.start("family", ["sh", "-c", "sleep 600 & echo $! > $0; wait", sys.argv[1]])
    supervisor.wait_until(lambda: open(sys.argv[1], "a+").tell() > 0, within_s=30, child=family)
    print(supervisor.folder, supervisor._watcher.pid, quiet.process.pid, family.process.pid, flush=True)
    try:
        supervisor.wait_for_signal()
    except module.Stopped as stopped:
        code = stopped.exit_code
sys.exit(code)
"""


def wait_until(condition: Callable[[], bool], within_s: float = 30.0) -> bool:
    """Return True as soon as *condition* holds, False if it does not in time."""
    deadline, pause = time.monotonic() + within_s, threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.01)
    return True


def is_running(pid: int) -> bool:
    """Return whether *pid* is a process that is more than a zombie."""
    if sys.platform != "linux":
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout
        return bool(state.strip()) and not state.startswith("Z")
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Running:
    """A supervisor in a process of its own, with two children and a grandchild."""

    def __init__(self, tmp_path: Path, *arguments: str) -> None:
        grandchild = tmp_path / "grandchild"
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(grandchild), *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        folder, *pids = self.process.stdout.readline().split()
        self.folder = Path(folder)
        self.watcher, *self.children = (*map(int, pids), int(grandchild.read_text()))

    def is_gone(self) -> bool:
        return not any(map(is_running, (self.watcher, *self.children))) and not self.folder.exists()


@pytest.fixture
def running(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    started = Running(tmp_path, *getattr(request, "param", ()))
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_every_child_and_gives_the_exit_code_of_a_shell(running: Running, number: int) -> None:
    assert all(map(is_running, running.children))
    running.process.send_signal(number)
    assert running.process.wait(30) == 128 + number
    assert wait_until(running.is_gone)  # what is killed is gone a moment later


@pytest.mark.parametrize("running", [(), ("without-prctl",)], indirect=True, ids=["prctl and watcher", "watcher alone"])
def test_killing_the_supervisor_leaves_no_process_and_no_folder(running: Running) -> None:
    running.process.kill()
    assert wait_until(running.is_gone)


def test_a_second_signal_does_not_cut_the_end_short(running: Running) -> None:
    running.process.send_signal(signal.SIGTERM)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) in {128 + signal.SIGTERM, 128 + signal.SIGINT}
    assert wait_until(running.is_gone)  # what is killed is gone a moment later


def test_a_group_that_ignores_sigterm_is_killed() -> None:
    stubborn = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo ready; sleep 600 & wait; wait"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert stubborn.stdout is not None
    assert stubborn.stdout.readline() == b"ready\n"
    stubborn.stdout.close()
    watcher.end_groups([stubborn.pid], grace_s=0.1)
    assert stubborn.wait(10) == -signal.SIGKILL
    assert wait_until(lambda: not watcher.alive(stubborn.pid))


def test_children_end_in_the_reverse_order_of_their_start(tmp_path: Path) -> None:
    order = tmp_path / "order"
    script = 'trap "echo $1 >> $0; exit" TERM; touch $0.$1; while :; do sleep 0.01; done'
    with Supervisor() as supervisor:
        for name in ("server", "worker", "beat"):
            child = supervisor.start(name, ["sh", "-c", script, str(order), name])
            supervisor.wait_until(Path(f"{order}.{name}").exists, within_s=30, child=child)
    assert order.read_text().split() == ["beat", "worker", "server"]


def test_a_child_that_ends_too_early_is_named_with_its_log_which_is_kept() -> None:
    with pytest.raises(ChildFailed, match="broken ended with code 3; its log: ") as failure, Supervisor() as supervisor:
        (supervisor.folder / "data").write_bytes(b"gone afterwards")
        child = supervisor.start("broken", ["sh", "-c", "echo why; exit 3"])
        supervisor.wait_until(lambda: False, within_s=30, child=child)
    assert child.log.read_text() == "why\n"
    assert str(child.log) in str(failure.value)
    assert list(supervisor.folder.iterdir()) == [child.log]
    child.log.unlink()
    supervisor.folder.rmdir()


def test_a_child_that_is_not_ready_in_time_is_named() -> None:
    with pytest.raises(ChildFailed, match=r"slow was not ready within 0\.1 s"), Supervisor() as supervisor:
        child = supervisor.start("slow", ["sleep", "600"])
        supervisor.wait_until(lambda: False, within_s=0.1, child=child)
    child.log.unlink()
    supervisor.folder.rmdir()


def test_waiting_for_a_child_returns_its_exit_code_and_leaves_the_others() -> None:
    with Supervisor() as supervisor:
        other = supervisor.start("other", ["sleep", "600"])
        assert supervisor.wait_for(supervisor.start("client", ["sh", "-c", "exit 7"])) == 7
        assert is_running(other.process.pid)
    assert not is_running(other.process.pid)


def test_a_signal_during_the_start_stops_before_the_next_child_starts() -> None:
    with pytest.raises(Stopped) as stopped, Supervisor() as supervisor:
        os.kill(os.getpid(), signal.SIGTERM)
        supervisor.start("never", ["sleep", "600"])
    assert stopped.value.exit_code == 143
    assert not supervisor.folder.exists()


def test_signal_handlers_and_the_wake_up_descriptor_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Supervisor():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_an_adopted_process_ends_after_the_children() -> None:
    ended = []
    with Supervisor() as supervisor:
        server = subprocess.Popen(["sleep", "600"], start_new_session=True)
        supervisor.adopt(server.pid, lambda: ended.append(is_running(child.process.pid)))
        child = supervisor.start("client", ["sleep", "600"])
    assert ended == [False]
    assert is_running(server.pid)
    server.kill()
    server.wait()
