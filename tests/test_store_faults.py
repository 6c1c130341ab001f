"""A store that is away, slow, sick or strange: what is raised, how soon, and that it heals."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aicache_tasks.errors import BreakerOpen, StoreError, StoreRefused, StoreUnavailable
from aicache_tasks.stores.base import NO_FENCE, Budget
from aicache_tasks.stores.guard import Breaker, Guard
from aicache_tasks.stores.redis import RedisStore
from aicache_tasks.testing import EmbeddedServer
from tests import faults
from tests.faults import FaultProxy, black_hole, eventually

pytestmark = pytest.mark.usefixtures("steady_heap")  # durations are held to a call's budget

BUDGET_S = 0.05
TOLERANCE_S = 0.01
CI_STALL_S = 2.0
"""What a loaded machine may add to one call; the best of several calls must do without."""

PATIENT_S = 10.0
"""For calls of which a reply is expected."""
CONNECT_S = 0.1
KEY, VALUE, BIG = "k", b"right" * 10, b"x" * 4_000_000


class Bench:
    """A guard on a store, breakers with a clock of their own, and what its calls came to."""

    def __init__(self, url: str) -> None:
        self.now_s, self.budget_s = 0.0, PATIENT_S
        self.store = RedisStore(url, connect_s=PATIENT_S)
        options = {"clock": lambda: self.now_s, "rng": lambda: 0.5}
        self.guard = Guard(self.store, reads=Breaker("reads", **options), writes=Breaker("writes", **options))

    def read(self, key: str = KEY) -> bytes | None:
        return self.guard.read([key], Budget(self.budget_s))[0]

    def publish(self) -> bool:
        return self.guard.publish(KEY, VALUE, 60_000, NO_FENCE, [], Budget(self.budget_s))

    def replace(self) -> None:
        self.guard.replace([(KEY, VALUE, 0)], Budget(self.budget_s))

    def write(self) -> None:
        self.guard.replace([(KEY, VALUE, 0)], Budget(PATIENT_S))

    def states(self) -> tuple[str, str]:
        return self.guard.reads.state, self.guard.writes.state

    def let_probe(self) -> None:
        self.now_s += 60.0

    @contextmanager
    def hurried(self) -> Iterator[None]:
        """Give calls little time, where no reply is expected."""
        self.budget_s = BUDGET_S
        yield
        self.budget_s = PATIENT_S


@pytest.fixture
def bench_on() -> Iterator[Callable[[str], Bench]]:
    benches: list[Bench] = []

    def make(url: str) -> Bench:
        benches.append(Bench(url))
        return benches[-1]

    yield make
    for bench in benches:
        bench.store.close()


@pytest.fixture
def proxy(valkey: EmbeddedServer) -> Iterator[FaultProxy]:
    with FaultProxy(valkey.port) as between:
        yield between


def failing(call: Callable[[], Any], attempts: int = 5, before: Callable[[], None] = lambda: None) -> StoreError:
    """Return what *call* raises, and hold it to its budget. A loaded machine has more attempts: the best one counts."""
    took_s, errors = list[float](), []
    while len(took_s) < attempts or (min(took_s) > BUDGET_S + TOLERANCE_S and len(took_s) < 10 * attempts):
        before()
        began = time.perf_counter()
        with pytest.raises(StoreError) as caught:
            call()
        took_s.append(time.perf_counter() - began)
        errors.append(caught.value)
    assert min(took_s) <= BUDGET_S + TOLERANCE_S
    assert max(took_s) <= BUDGET_S + TOLERANCE_S + CI_STALL_S
    assert len({(type(error), error.reason, error.scope, error.detail) for error in errors}) == 1
    return errors[0]


BROKEN_REPLIES = {
    "slow": (faults.slow, "TimeoutError"),
    "half a reply, then silence": (faults.half_then_silence, "TimeoutError"),
    "dropped": (faults.dropped, "TimeoutError"),
    "trickled": (faults.trickled, "TimeoutError"),
    "half a reply, then a reset": (faults.half_then_reset, "ConnectionError"),
    "half a reply, then the end": (faults.half_then_end, "ConnectionError"),
}


def patience(bench: Bench, driver_error: str) -> contextlib.AbstractContextManager[None]:
    """Give calls little time if they are to run out of it, and else enough for what ends them sooner to arrive."""
    return bench.hurried() if driver_error == "TimeoutError" else contextlib.nullcontext()


class TestBrokenReplies:
    @pytest.mark.parametrize("name", BROKEN_REPLIES)
    def test_end_within_the_budget_open_both_breakers_and_heal(
        self, bench_on: Callable[[str], Bench], proxy: FaultProxy, name: str
    ) -> None:
        bench = bench_on(proxy.url)
        bench.write()
        assert bench.read() == VALUE
        proxy.fault, driver_error = BROKEN_REPLIES[name]
        with patience(bench, driver_error):
            error = failing(bench.read, before=bench.let_probe)
        assert (type(error), error.reason, error.scope, error.detail) == (
            StoreUnavailable,
            "redis_connection_failed",
            "all",
            driver_error,
        )
        assert bench.states() == ("open", "open")
        proxy.fault = faults.healthy
        bench.let_probe()
        assert bench.read() == VALUE
        bench.write()
        assert bench.states() == ("closed", "closed")

    @pytest.mark.parametrize("name", BROKEN_REPLIES)
    def test_to_a_write_do_the_same(self, bench_on: Callable[[str], Bench], proxy: FaultProxy, name: str) -> None:
        bench = bench_on(proxy.url)
        bench.write()
        proxy.fault, driver_error = BROKEN_REPLIES[name]
        with patience(bench, driver_error):
            error = failing(bench.publish, before=bench.let_probe)
        assert (error.reason, error.scope) == ("redis_connection_failed", "all")
        assert bench.states() == ("open", "open")

    @pytest.mark.parametrize("name", BROKEN_REPLIES)
    def test_never_reach_the_call_after(self, bench_on: Callable[[str], Bench], proxy: FaultProxy, name: str) -> None:
        bench = bench_on(proxy.url)
        bench.guard.replace([(f"k{n}", f"v{n}".encode() * 9, 0) for n in range(20)], Budget(PATIENT_S))
        for n in range(19):
            proxy.fault, _ = BROKEN_REPLIES[name]
            with pytest.raises(StoreUnavailable):
                bench.guard.read([f"k{n}"], Budget(0.01))
            proxy.fault = faults.healthy
            bench.let_probe()
            assert bench.guard.read([f"k{n + 1}"], Budget(PATIENT_S)) == [f"v{n + 1}".encode() * 9]


CANNED_REPLIES = {
    "a web server": (b"HTTP/1.1 400 Bad Request\r\n\r\n", StoreUnavailable, "redis_error", "all", "InvalidResponse"),
    "max clients": (
        b"-ERR max number of clients reached\r\n",
        StoreUnavailable,
        "redis_error",
        "all",
        "ConnectionError",
    ),
    "loading": (
        b"-LOADING Redis is loading the dataset in memory\r\n",
        StoreUnavailable,
        "redis_error",
        "all",
        "BusyLoadingError LOADING",
    ),
    "master down": (b"-MASTERDOWN Link with MASTER is down\r\n", StoreUnavailable, "redis_error", "all", "MASTERDOWN"),
    "protected mode": (b"-DENIED Redis is in protected mode\r\n", StoreUnavailable, "redis_error", "all", "DENIED"),
    "busy script": (b"-BUSY Redis is busy running a script\r\n", StoreRefused, "redis_error", "none", "BUSY"),
    "no disk": (b"-MISCONF Redis is configured to save RDB\r\n", StoreRefused, "redis_error", "writes", "MISCONF"),
    "no replicas": (b"-NOREPLICAS Not enough good replicas\r\n", StoreRefused, "redis_error", "writes", "NOREPLICAS"),
    "a wrong type": (b"-WRONGTYPE Operation against a key\r\n", StoreRefused, "redis_error", "none", "WRONGTYPE"),
    "a prompt": (b"-SECRET the prompt is: what ails me\r\n", StoreRefused, "redis_error", "none", "ResponseError"),
    "an array of a wrong length": (b"*-7\r\n", None, None, None, ""),
    "no number": (b"$x\r\n", None, None, None, ""),
    "endless nesting": (b"*1\r\n" * 20_000, None, None, None, ""),
}


@pytest.mark.parametrize("name", CANNED_REPLIES)
@pytest.mark.parametrize("pure_python", [False, True], ids=["hiredis", "pure"])
def test_strange_replies_become_store_errors_that_quote_nothing(
    bench_on: Callable[[str], Bench],
    proxy: FaultProxy,
    name: str,
    pure_python: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    canned, kind, reason, scope, detail = CANNED_REPLIES[name]
    bench = bench_on(proxy.url)
    if pure_python:
        bench.store._options |= {"parser_class": pure_python_parser()}
    bench.write()
    proxy.fault = faults.answers(canned)
    with bench.hurried() if kind is None else contextlib.nullcontext():  # nonsense may be waited for to go on
        error = failing(bench.read, before=bench.let_probe)
    assert detail in error.detail
    if kind is not None:
        assert (type(error), error.reason, error.scope) == (kind, reason, scope)
    assert "prompt" not in str(error)
    assert "SECRET" not in str(error)
    proxy.fault = faults.healthy
    bench.let_probe()
    assert bench.read() == VALUE


def pure_python_parser() -> Any:
    from redis._parsers import _RESP2Parser

    return _RESP2Parser


class TestServerAway:
    def test_refused_port(self, bench_on: Callable[[str], Bench]) -> None:
        bench = bench_on(f"redis://127.0.0.1:{faults.free_port()}/0")
        error = failing(bench.read, before=bench.let_probe)
        assert (type(error), error.reason, error.detail) == (
            StoreUnavailable,
            "redis_connection_failed",
            "ConnectionError",
        )
        assert bench.states() == ("open", "open")

    def test_unknown_host(self, bench_on: Callable[[str], Bench]) -> None:
        bench = bench_on("redis://no-such-host.invalid:6379/0")
        with pytest.raises(StoreUnavailable) as caught:
            bench.read()
        assert caught.value.reason == "redis_connection_failed"

    def test_port_that_never_answers_costs_the_connect_time_and_gives_the_budget_back(self) -> None:
        def left_s(url: str) -> float:
            store, budget = RedisStore(url, connect_s=CONNECT_S), Budget(BUDGET_S)
            budget.begin()
            began = time.perf_counter()
            with pytest.raises(StoreUnavailable) as caught:
                store.read([KEY], budget)
            budget.finish()
            assert CONNECT_S * 0.9 < time.perf_counter() - began < CONNECT_S + TOLERANCE_S + CI_STALL_S
            assert caught.value.reason == "redis_connection_failed"
            return budget.left_s

        with black_hole() as url:
            assert any(left_s(url) > BUDGET_S / 2 for _ in range(5))  # but for a stall, the first time

    def test_hang_ends_within_the_budget_and_heals(
        self, bench_on: Callable[[str], Bench], own_server: EmbeddedServer
    ) -> None:
        bench = bench_on(own_server.url)
        bench.write()
        own_server.pause()
        with bench.hurried():
            error = failing(bench.read, before=bench.let_probe)
        own_server.resume()
        assert (error.reason, error.detail) == ("redis_connection_failed", "TimeoutError")
        assert bench.states() == ("open", "open")
        bench.let_probe()
        assert bench.read() == VALUE

    def test_hundreds_of_calls_during_a_hang_lose_a_few_budgets_in_total(
        self, bench_on: Callable[[str], Bench], own_server: EmbeddedServer
    ) -> None:
        bench = bench_on(own_server.url)
        bench.write()
        own_server.pause()
        began = time.perf_counter()
        with bench.hurried():
            for _ in range(400):
                bench.now_s += 0.01  # 400 tasks in 4 s: the first fault, and probes after 1 s and 3 s
                for call in (bench.read, bench.publish):
                    with pytest.raises(StoreError):
                        call()
        lost_s = time.perf_counter() - began
        own_server.resume()
        assert bench.guard.reads.rejected + bench.guard.writes.rejected >= 790
        assert lost_s < 4 * (BUDGET_S + TOLERANCE_S) + CI_STALL_S

    @pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
    def test_restart_between_two_calls_is_not_noticed(self, bench_on: Callable[[str], Bench], unix: bool) -> None:
        with EmbeddedServer(unix=unix) as server:
            bench = bench_on(server.url)
            for _ in range(3):
                bench.write()
                assert bench.read() == VALUE
                server.kill()
                server.start()
                assert bench.read() is None
                bench.write()
                server.kill()
                server.start()
                bench.write()  # a write finds the dead connection before it uses it
            assert bench.states() == ("closed", "closed")

    def test_kill_in_the_midst_of_calls_and_restart(
        self, bench_on: Callable[[str], Bench], own_server: EmbeddedServer
    ) -> None:
        bench = bench_on(own_server.url)
        bench.write()
        own_server.kill()
        error = failing(bench.read, before=bench.let_probe)
        assert error.reason == "redis_connection_failed"
        own_server.start()
        bench.let_probe()
        assert bench.read() is None
        bench.write()
        assert bench.read() == VALUE
        assert bench.states() == ("closed", "closed")

    def test_client_that_stalled_past_its_deadline_still_takes_the_reply(
        self, bench_on: Callable[[str], Bench], valkey: EmbeddedServer
    ) -> None:
        store = bench_on(valkey.url).store
        ask(store, lambda budget: store.replace([(KEY, VALUE, 0)], budget))
        for stall_s in (-0.01, 0.0):  # the deadline is over before the request is sent
            eventually(lambda stall_s=stall_s: answers_at_once(store, stall_s))


def answers_at_once(store: RedisStore, seconds: float) -> bool:
    """Return whether the reply comes within a moment of grace, which a server on a loaded machine may miss."""
    with contextlib.suppress(StoreUnavailable):
        return bool(ask(store, lambda budget: store.read([KEY], budget), seconds) == [VALUE])
    return False


def ask(store: RedisStore, call: Callable[[Budget], Any], seconds: float = PATIENT_S) -> Any:
    budget = Budget(seconds)
    budget.begin()
    return call(budget)


class TestRefusals:
    def test_out_of_memory_stops_writes_and_not_reads(
        self, bench_on: Callable[[str], Bench], own_server: EmbeddedServer
    ) -> None:
        bench = bench_on(own_server.url)
        bench.write()
        bench.publish()
        with own_server.client() as client:
            client.config_set("maxmemory", "1mb")
            for call in (bench.publish, bench.replace):
                error = failing(call, before=bench.let_probe)
                assert (type(error), error.reason, error.scope) == (StoreRefused, "redis_error", "writes")
                assert error.detail.endswith(" OOM")
            assert bench.read() == VALUE
            assert bench.states() == ("closed", "open")
            client.config_set("maxmemory", "0")
        bench.let_probe()
        assert bench.publish()
        assert bench.states() == ("closed", "closed")

    def test_out_of_memory_does_not_hide_tokens_that_are_there(
        self, bench_on: Callable[[str], Bench], own_server: EmbeddedServer
    ) -> None:
        bench = bench_on(own_server.url)
        bench.guard.ensure(["t1", "t2"], [b"token--1", b"token--2"], [0, 0], Budget(PATIENT_S))
        with own_server.client() as client:
            client.config_set("maxmemory", "1mb")
        got = bench.guard.ensure(["t1", "t2"], [b"newtoken", b"newtoken"], [0, 0], Budget(PATIENT_S))
        assert got == [b"token--1", b"token--2"]
        ensure = lambda: bench.guard.ensure(["t1", "t3"], [b"x", b"y"], [0, 0], Budget(PATIENT_S))  # noqa: E731
        error = failing(ensure, before=bench.let_probe)
        assert (error.scope, error.detail) == ("writes", "OutOfMemoryError OOM")

    def test_replica_serves_reads_and_stops_writes(
        self, bench_on: Callable[[str], Bench], own_server: EmbeddedServer, valkey: EmbeddedServer
    ) -> None:
        bench = bench_on(own_server.url)
        bench.write()
        bench.publish()
        with own_server.client() as client, valkey.client() as master:
            master.set(KEY, VALUE)
            master.config_set("repl-diskless-sync-delay", 0)
            client.replicaof("127.0.0.1", str(valkey.port))
            eventually(lambda: client.info("replication")["master_link_status"] == "up")
            error = failing(bench.publish, before=bench.let_probe)
            assert (type(error), error.scope) == (StoreRefused, "writes")
            assert error.detail.endswith(" READONLY")
            assert bench.read() == VALUE
            assert bench.states() == ("closed", "open")
            client.replicaof("NO", "ONE")
        bench.let_probe()
        assert bench.publish()
        assert bench.states() == ("closed", "closed")

    def test_missing_password(self, bench_on: Callable[[str], Bench]) -> None:
        with EmbeddedServer(config={"requirepass": "right-word"}) as server:
            bench = bench_on(f"redis://127.0.0.1:{server.port}/0")
            error = failing(bench.read, before=bench.let_probe)
            assert (type(error), error.reason, error.scope) == (StoreUnavailable, "redis_error", "all")
            assert error.detail.startswith("AuthenticationError")

    def test_wrong_password_is_not_shown_and_the_right_one_serves(self, bench_on: Callable[[str], Bench]) -> None:
        with EmbeddedServer(config={"requirepass": "right-word"}) as server:
            wrong = bench_on(f"redis://:wrong-word@127.0.0.1:{server.port}/0")
            error = failing(wrong.read, before=wrong.let_probe)
            assert (type(error), error.reason, error.scope) == (StoreUnavailable, "redis_error", "all")
            assert error.detail.startswith("AuthenticationError")
            assert "word" not in str(error)
            right = bench_on(server.url)
            right.write()
            assert right.read() == VALUE

    def test_user_without_the_right_to_write_still_reads(
        self, bench_on: Callable[[str], Bench], each_server: EmbeddedServer
    ) -> None:
        with each_server.client() as client:
            client.set(KEY, VALUE)
            client.execute_command("ACL", "SETUSER", "reader", "on", "nopass", "~*", "+mget")
        bench = bench_on(f"redis://reader:any@127.0.0.1:{each_server.port}/0")
        for call in (bench.publish, bench.replace):
            error = failing(call, before=bench.let_probe)
            assert (type(error), error.scope, error.detail) == (StoreRefused, "writes", "NoPermissionError NOPERM")
        assert bench.read() == VALUE
        assert bench.states() == ("closed", "open")

    def test_server_that_still_loads(self, bench_on: Callable[[str], Bench]) -> None:
        slowly = {"key-load-delay": 500, "loading-process-events-interval-bytes": 1024, "save": "900 1"}
        with EmbeddedServer() as server:
            with server.client() as client:
                client.mset({f"k{n}": b"v" * 100 for n in range(10_000)})
                client.set(KEY, VALUE)
                client.save()
            with EmbeddedServer(config=slowly, directory=server.directory) as loading:
                bench = bench_on(loading.url)
                error = failing(bench.read, before=bench.let_probe)
                assert (error.reason, error.scope, error.detail) == ("redis_error", "all", "BusyLoadingError LOADING")
                with loading.client() as client:
                    client.config_set("key-load-delay", 0)
                    eventually(lambda: client.info("persistence")["loading"] == 0)
                bench.let_probe()
                assert bench.read() == VALUE

    def test_server_with_no_room_for_another_client(
        self, bench_on: Callable[[str], Bench], own_server: EmbeddedServer
    ) -> None:
        with own_server.client() as client:
            client.set(KEY, VALUE)
            client.config_set("maxclients", 1)
            bench = bench_on(own_server.url)
            error = failing(bench.read, before=bench.let_probe)
            assert (type(error), error.scope) == (StoreUnavailable, "all")
            client.config_set("maxclients", 100)
        bench.let_probe()
        assert bench.read() == VALUE

    def test_server_busy_with_a_script(self, bench_on: Callable[[str], Bench], own_server: EmbeddedServer) -> None:
        bench = bench_on(own_server.url)
        bench.write()
        with own_server.client() as client, own_server.client() as looper:
            client.config_set("busy-reply-threshold", 1)
            endless = threading.Thread(target=lambda: run_for_ever(looper))
            endless.start()
            eventually(lambda: is_busy(bench))
            error = failing(bench.read, before=bench.let_probe)
            assert (type(error), error.scope, error.detail) == (StoreRefused, "none", "ResponseError BUSY")
            assert bench.guard.reads.state == "closed"
            client.script_kill()
            endless.join()
        assert bench.read() == VALUE


def run_for_ever(client: Any) -> None:
    import redis

    with contextlib.suppress(redis.ResponseError):
        client.eval("while true do end", 0)


def is_busy(bench: Bench) -> bool:
    try:
        bench.let_probe()
        bench.read()
    except StoreRefused:
        return True
    except StoreError:
        return False
    return False


class TestCostWhileAway:
    def test_an_open_breaker_answers_in_less_than_a_tenth_of_a_millisecond(
        self, bench_on: Callable[[str], Bench]
    ) -> None:
        bench = bench_on(f"redis://127.0.0.1:{faults.free_port()}/0")
        with pytest.raises(StoreUnavailable):
            bench.read()
        took_s = []
        for _ in range(500):
            began = time.perf_counter()
            with contextlib.suppress(BreakerOpen):
                bench.read()
            took_s.append(time.perf_counter() - began)
        assert sorted(took_s)[450] < 0.0001
        assert bench.guard.reads.rejected == 500

    def test_five_callers_of_a_dead_server_at_once_get_one_reason(self) -> None:
        store = RedisStore(f"redis://127.0.0.1:{faults.free_port()}/0")
        start, reasons = threading.Barrier(5), []

        def call() -> None:
            start.wait()
            with pytest.raises(StoreError) as caught:
                ask(store, lambda budget: store.read([KEY], budget), BUDGET_S)
            reasons.append(caught.value.reason)

        callers = [threading.Thread(target=call) for _ in range(5)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert reasons == ["redis_connection_failed"] * 5

    def test_log_has_one_line_for_each_change_and_quotes_no_text(
        self, bench_on: Callable[[str], Bench], proxy: FaultProxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "aicache_tasks.store")
        bench = bench_on(proxy.url)
        bench.write()
        proxy.fault = faults.dropped
        with bench.hurried():
            for _ in range(20):
                with pytest.raises(StoreError):
                    bench.read()
        proxy.fault = faults.healthy
        bench.let_probe()
        bench.read()
        bench.write()
        assert [record.getMessage() for record in caplog.records] == [
            "cache store: reads stopped: TimeoutError",
            "cache store: writes stopped: TimeoutError",
            "cache store: reads resumed",
            "cache store: writes resumed",
        ]


class TestTls:
    @pytest.fixture
    def tls(self, valkey: EmbeddedServer) -> Iterator[FaultProxy]:
        with FaultProxy(valkey.port, tls=True) as between:
            yield between

    def test_serves_all_sizes(self, bench_on: Callable[[str], Bench], tls: FaultProxy) -> None:
        store = bench_on(f"{tls.url}?ssl_cert_reqs=none").store
        for value in (b"", VALUE, BIG):
            ask(store, lambda budget, value=value: store.replace([(KEY, value, 0)], budget), 5.0)
            assert ask(store, lambda budget: store.read([KEY], budget), 5.0) == [value]
        assert tls.connects == 1

    @pytest.mark.parametrize("name", BROKEN_REPLIES)
    def test_ends_within_the_budget_and_heals(
        self, bench_on: Callable[[str], Bench], tls: FaultProxy, name: str
    ) -> None:
        bench = bench_on(f"{tls.url}?ssl_cert_reqs=none")
        bench.write()
        tls.fault, driver_error = BROKEN_REPLIES[name]
        with patience(bench, driver_error):
            error = failing(bench.read, before=bench.let_probe)
        assert (error.reason, error.scope) == ("redis_connection_failed", "all")
        tls.fault = faults.healthy
        bench.let_probe()
        assert bench.read() == VALUE

    def test_a_certificate_that_nobody_signed_is_refused(
        self, bench_on: Callable[[str], Bench], tls: FaultProxy
    ) -> None:
        with pytest.raises(StoreUnavailable) as caught:
            bench_on(tls.url).read()
        assert caught.value.reason == "redis_connection_failed"


class TestManyUsers:
    def test_a_new_connection_asks_the_server_nothing_of_its_own(
        self, bench_on: Callable[[str], Bench], own_server: EmbeddedServer
    ) -> None:
        with own_server.client() as client:
            client.ping()
            client.config_resetstat()
            bench_on(own_server.url).read()
            asked = client.info("commandstats")
        assert set(asked) == {"cmdstat_mget", "cmdstat_config|resetstat"}

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
    def test_children_forked_from_a_process_with_a_live_connection_get_their_own_values(
        self, bench_on: Callable[[str], Bench], valkey: EmbeddedServer
    ) -> None:
        bench = bench_on(valkey.url)
        bench.write()
        children = [fork(lambda n=n: wrong_values(bench, f"child{n}")) for n in range(4)]
        assert wrong_values(bench, "parent") == 0
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4

    def test_threads_get_their_own_values_and_reuse_connections(self, proxy: FaultProxy) -> None:
        store, wrong = RedisStore(proxy.url, connect_s=PATIENT_S), []

        def work(name: str) -> None:
            for n in range(200):
                value, budget = f"{name}-{n}".encode(), Budget(5.0)
                budget.begin()
                store.replace([(name, value, 0)], budget)
                wrong.extend({value} - set(store.read([name], budget)))

        workers = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        store.close()
        assert wrong == []
        assert proxy.connects <= 8

    def test_large_values_pass_both_ways_within_one_budget(
        self, bench_on: Callable[[str], Bench], valkey: EmbeddedServer
    ) -> None:
        store = bench_on(valkey.url).store
        ask(store, lambda budget: store.publish(KEY, BIG, 60_000, NO_FENCE, [], budget), 5.0)
        assert ask(store, lambda budget: store.read([KEY], budget), 5.0) == [BIG]

    def test_a_value_that_streams_without_a_pause_ends_within_the_budget_too(
        self, bench_on: Callable[[str], Bench], valkey: EmbeddedServer
    ) -> None:
        with valkey.client() as client:
            client.set("huge", bytes(100_000_000))
            bench = bench_on(valkey.url)
            bench.read("small")
            with bench.hurried():
                assert failing(lambda: bench.read("huge"), before=bench.let_probe).detail == "TimeoutError"
            client.delete("huge")

    def test_peer_that_does_not_take_a_large_value_ends_it_within_the_budget(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            store = RedisStore(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0")
            error = failing(lambda: ask(store, lambda b: store.replace([(KEY, BIG, 0)], b), BUDGET_S), attempts=4)
            assert (error.reason, error.detail) == ("redis_connection_failed", "TimeoutError")


def fork(work: Callable[[], int]) -> int:
    child = os.fork()
    if child:
        return child
    wrong = 255
    try:
        wrong = min(work(), 254)
    finally:
        os._exit(wrong)


def wrong_values(bench: Bench, name: str) -> int:
    wrong = 0
    for n in range(500):
        value = f"{name}-{n}".encode()
        bench.guard.replace([(name, value, 0)], Budget(5.0))
        wrong += bench.guard.read([name], Budget(5.0)) != [value]
    return wrong
