"""A soft time limit that arrives during a cache call acts when the call ends, and costs nobody a right answer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aicache_tasks.errors import StoreUnavailable
from aicache_tasks.signals import SoftLimitHold
from aicache_tasks.stores.base import NO_FENCE, Budget
from aicache_tasks.stores.guard import Breaker, Guard
from aicache_tasks.stores.redis import RedisStore
from aicache_tasks.testing import EmbeddedServer

ROOT = Path(__file__).parent.parent


class Limit(Exception):  # noqa: N818 - an event
    """What a worker's handler raises; an Exception, as Celery's is."""


def raise_limit(number: int, frame: Any) -> None:
    raise Limit


@pytest.fixture
def install() -> Iterator[Callable[[Any], None]]:
    """Return a function that installs a handler of the soft limit's signal for this test."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler)
    signal.signal(signal.SIGUSR1, before)


def held(hold: SoftLimitHold, seconds: float = 60.0) -> None:
    hold.begin(time.perf_counter() + seconds)


def arrive() -> None:
    signal.raise_signal(signal.SIGUSR1)


@contextmanager
def alarm(seconds: float, do: Callable[[], None]) -> Iterator[None]:
    """Have the kernel's timer interrupt the block: a thread's could come too late where the machine stalls."""
    before = signal.signal(signal.SIGALRM, lambda *_: do())
    left_s, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left_s)
        signal.signal(signal.SIGALRM, before)


class TestHold:
    def test_a_limit_during_a_call_acts_when_the_call_ends(self, install: Callable[[Any], None]) -> None:
        install(raise_limit)
        hold, reached_the_end = SoftLimitHold(), False
        held(hold)
        arrive()
        reached_the_end = True
        with pytest.raises(Limit):
            hold.end()
        assert reached_the_end
        assert hold.noted == 1

    def test_acts_once(self, install: Callable[[Any], None]) -> None:
        install(raise_limit)
        hold = SoftLimitHold()
        held(hold)
        arrive()
        with pytest.raises(Limit):
            hold.end()
        held(hold)
        hold.end()

    def test_a_limit_between_calls_acts_at_once(self, install: Callable[[Any], None]) -> None:
        install(raise_limit)
        hold = SoftLimitHold()
        held(hold)
        hold.end()
        with pytest.raises(Limit):
            arrive()
        assert hold.noted == 0

    def test_a_handler_that_a_forked_child_installs_is_wrapped_too(self, install: Callable[[Any], None]) -> None:
        seen: list[str] = []
        install(lambda *_: seen.append("parent's"))
        hold = SoftLimitHold()
        held(hold)
        hold.end()
        install(lambda *_: seen.append("child's"))
        held(hold)
        arrive()
        assert seen == []
        hold.end()
        assert seen == ["child's"]

    def test_a_handler_that_calls_ours_is_wrapped_without_going_round_in_circles(
        self, install: Callable[[Any], None]
    ) -> None:
        seen: list[int] = []
        install(lambda number, frame: seen.append(number))
        hold = SoftLimitHold()
        held(hold)
        hold.end()
        ours = signal.getsignal(signal.SIGUSR1)
        install(lambda number, frame: ours(number, frame))
        held(hold)
        arrive()
        assert seen == []
        hold.end()
        assert seen == [signal.SIGUSR1]

    @pytest.mark.parametrize("none", [signal.SIG_DFL, signal.SIG_IGN])
    def test_a_process_without_a_handler_is_left_alone(
        self, install: Callable[[Any], None], none: signal.Handlers
    ) -> None:
        install(none)
        hold = SoftLimitHold()
        held(hold)
        hold.end()
        assert signal.getsignal(signal.SIGUSR1) is none

    def test_a_call_of_another_thread_holds_nothing(self, install: Callable[[Any], None]) -> None:
        install(raise_limit)
        hold, begun, ended = SoftLimitHold(), threading.Event(), threading.Event()

        def call() -> None:
            held(hold)
            begun.set()
            ended.wait(10)
            hold.end()

        thread = threading.Thread(target=call)
        thread.start()
        assert begun.wait(10)
        with pytest.raises(Limit):
            arrive()
        ended.set()
        thread.join()

    def test_a_hold_that_nobody_ended_ends_by_itself(self, install: Callable[[Any], None]) -> None:
        install(raise_limit)
        hold = SoftLimitHold()
        held(hold, seconds=-0.001)
        with pytest.raises(Limit):
            arrive()

    def test_costs_less_than_a_few_microseconds_a_call(self, install: Callable[[Any], None]) -> None:
        install(raise_limit)
        hold, took_s = SoftLimitHold(), []
        for _ in range(2_000):
            began = time.perf_counter()
            hold.begin(began + 1)
            hold.end()
            took_s.append(time.perf_counter() - began)
        assert sorted(took_s)[1_000] < 5e-6


class TestGuardedCall:
    def test_is_finished_before_the_limit_acts(self, install: Callable[[Any], None], valkey: EmbeddedServer) -> None:
        install(raise_limit)
        store = RedisStore(valkey.url, connect_s=5.0)
        guard = Guard(store, reads=Breaker("reads"), writes=Breaker("writes"))
        exchange = store._exchange

        def interrupted(*given: Any) -> list[Any]:
            arrive()
            return exchange(*given)

        store._exchange = interrupted  # type: ignore[method-assign]
        with pytest.raises(Limit):
            guard.publish("k", b"v", 60_000, NO_FENCE, [], Budget(10.0))
        store._exchange = exchange  # type: ignore[method-assign]
        assert guard.read(["k"], Budget(10.0)) == [b"v"]
        assert (guard.reads.state, guard.writes.state) == ("closed", "closed")
        store.close()

    def test_that_hangs_raises_the_limit_when_its_budget_is_over(
        self, install: Callable[[Any], None], own_server: EmbeddedServer
    ) -> None:
        install(raise_limit)
        store = RedisStore(own_server.url, connect_s=5.0)
        guard = Guard(store, reads=Breaker("reads"), writes=Breaker("writes"))
        guard.read(["k"], Budget(10.0))
        own_server.pause()
        with alarm(0.02, arrive):
            began = time.perf_counter()
            with pytest.raises(Limit) as caught:
                guard.read(["k"], Budget(0.1))
            took_s = time.perf_counter() - began
        own_server.resume()
        store.close()
        assert took_s >= 0.1
        assert isinstance(caught.value.__context__, StoreUnavailable)
        assert guard.reads.state == "open"


@pytest.mark.parametrize("interrupt", [Limit, KeyboardInterrupt])
def test_an_exception_between_request_and_reply_leaves_the_reply_to_nobody(
    valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    def interrupted(connection: Any) -> Any:
        raise interrupt

    store = RedisStore(valkey.url, connect_s=5.0)
    guard = Guard(store, reads=Breaker("reads"), writes=Breaker("writes"))
    guard.replace([("k1", b"v1", 0), ("k2", b"v2", 0)], Budget(10.0))
    with monkeypatch.context() as patched:
        patched.setattr("aicache_tasks.stores.redis._reply", interrupted)
        with pytest.raises(interrupt):
            guard.read(["k1"], Budget(10.0))
    assert guard.read(["k2"], Budget(10.0)) == [b"v2"]
    assert guard.reads.state == "closed"
    store.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("reads", [5_000, pytest.param(50_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("parser", ["hiredis", "pure"])
@pytest.mark.parametrize("handler", ["wrapped", "unknown"])
def test_interrupts_at_random_never_make_an_answer_wrong(
    valkey: EmbeddedServer, handler: str, parser: str, reads: int
) -> None:
    """``unknown`` is a handler of another signal, which nothing holds back: the connection is dropped instead."""
    command = [sys.executable, "-m", "tests.soft_limit_fuzz", valkey.url, handler, parser, str(reads)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2_000:]
    counted = json.loads(ended.stdout)
    assert (counted["wrong"], counted["errors"], counted["reads"]) == (0, 0, "closed"), ended.stderr[-2_000:]
    assert counted["limits"] > reads / 500
    assert counted["right"] > reads / 20
    assert (counted["noted"] > reads / 500) is (handler == "wrapped")
