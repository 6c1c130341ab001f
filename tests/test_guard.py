"""The breakers and the guard: when the store is asked, and what each outcome teaches."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from aicache_tasks.errors import BreakerOpen, StoreError, StoreRefused, StoreUnavailable
from aicache_tasks.stores.base import NO_FENCE, REFUSED, Budget, Receipt, Shipment
from aicache_tasks.stores.guard import PROBE_S, Breaker, BudgetSpent, Guard
from aicache_tasks.stores.memory import MemoryStore

AWAY = StoreUnavailable("TimeoutError")
READ_ONLY = StoreRefused("ReadOnlyError READONLY", writes=True)
WRONG_TYPE = StoreRefused("ResponseError WRONGTYPE", writes=False)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def breaker(clock: Clock, rng: Callable[[], float] = lambda: 0.5, **options: Any) -> Breaker:
    return Breaker("reads", clock=clock, rng=rng, **options)


class TestBreaker:
    def test_is_closed_at_first(self, clock: Clock) -> None:
        fresh = breaker(clock)
        assert (fresh.state, fresh.allows()) == ("closed", True)

    def test_opens_at_the_first_fault_and_lets_one_call_through_a_second_later(self, clock: Clock) -> None:
        one = breaker(clock)
        one.failed("x")
        assert (one.state, one.allows()) == ("open", False)
        clock.now_s += 0.99
        assert not one.allows()
        clock.now_s += 0.02
        assert one.state == "half-open"
        assert [one.allows() for _ in range(5)] == [True, False, False, False, False]
        assert one.rejected == 6

    def test_doubles_up_to_thirty_seconds(self, clock: Clock) -> None:
        one, delays_s = breaker(clock), []
        for _ in range(8):
            one.failed("x")
            began_s = clock.now_s
            while not one.allows():
                clock.now_s += 0.25
            delays_s.append(clock.now_s - began_s)
        assert delays_s == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]

    def test_begins_again_at_one_second_after_a_success(self, clock: Clock) -> None:
        one = breaker(clock)
        for _ in range(5):
            one.failed("x")
            clock.now_s += 60
            assert one.allows()
        assert one.succeeded()
        assert one.state == "closed"
        one.failed("x")
        clock.now_s += 1.01
        assert one.allows()

    @pytest.mark.parametrize(("draw", "delay_s"), [(0.0, 0.8), (1.0, 1.2)])
    def test_spreads_its_probes_by_a_fifth(self, clock: Clock, draw: float, delay_s: float) -> None:
        one = breaker(clock, rng=lambda: draw)
        one.failed("x")
        clock.now_s += delay_s - 0.01
        assert not one.allows()
        clock.now_s += 0.02
        assert one.allows()

    def test_faults_of_calls_that_began_before_it_opened_count_once(self, clock: Clock) -> None:
        one = breaker(clock)
        for _ in range(10):
            one.failed("x")
        clock.now_s += 1.01
        assert one.allows()
        assert one.opened == 1

    def test_a_probe_that_never_comes_back_gives_way_to_another(self, clock: Clock) -> None:
        one = breaker(clock)
        one.failed("x")
        clock.now_s += 1.01
        assert one.allows()
        clock.now_s += PROBE_S + 0.01
        assert one.allows()

    def test_lets_exactly_one_of_many_threads_probe(self, clock: Clock) -> None:
        for _ in range(20):
            one, start, passed = breaker(clock), threading.Barrier(8), []
            one.failed("x")
            clock.now_s += 1.01

            def call(one: Breaker = one, start: threading.Barrier = start, passed: list[bool] = passed) -> None:
                start.wait()
                passed.append(one.allows())

            threads = [threading.Thread(target=call) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sum(passed) == 1

    def test_works_in_a_child_forked_while_a_thread_held_its_lock(self, clock: Clock) -> None:
        one = breaker(clock)
        with one._lock():
            child = os.fork()
            if not child:
                one.failed("x")  # would wait for ever on the parent's lock
                os._exit(0 if one.state == "open" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    @pytest.mark.timeout(10)
    @pytest.mark.parametrize("inner", ["failed", "allows", "succeeded"])
    @pytest.mark.parametrize("outer", ["failed", "allows"])
    def test_a_signal_handler_may_ask_while_its_thread_is_in_a_call(self, outer: str, inner: str) -> None:
        wound, is_due = Clock(), False

        def interrupted() -> float:
            nonlocal is_due
            if is_due:
                is_due = False
                ask(inner)
            return wound()

        def ask(name: str) -> None:
            one.failed("x") if name == "failed" else getattr(one, name)()

        one = Breaker("reads", clock=interrupted, rng=lambda: 0.5)
        one.failed("x")
        wound.now_s += 1.01
        is_due = True
        ask(outer)
        assert not is_due
        assert one._delay_s in (0.0, 1.0, 2.0)
        assert (one.opened - one.closed, one.is_open) in ((0, False), (1, True))
        wound.now_s += 60
        assert one.allows()
        one.succeeded()
        assert one.state == "closed"

    @pytest.mark.timeout(10)
    def test_a_fault_that_a_signal_handler_meets_during_another_counts_once(self, clock: Clock) -> None:
        draws = iter((lambda: one.failed("x"), lambda: None, lambda: None))

        def draw() -> float:
            next(draws)()
            return 0.5

        one = breaker(clock, rng=draw)
        one.failed("x")
        assert (one.opened, one._until_s - clock.now_s) == (1, 1.0)


class Bench:
    def __init__(self, clock: Clock) -> None:
        self.clock, self.store = clock, MemoryStore(clock)
        self.reads, self.writes = breaker(clock), Breaker("writes", clock=clock, rng=lambda: 0.5)
        self.guard = Guard(self.store, reads=self.reads, writes=self.writes)

    def read(self) -> list[bytes | None]:
        return self.guard.read(["k"], Budget(0.05))

    def write(self) -> None:
        self.guard.ensure(["t"], [b"12345678"], [0], Budget(0.05))

    def states(self) -> tuple[str, str]:
        return self.reads.state, self.writes.state

    def fail(self, call: Callable[[], Any], error: StoreError) -> None:
        self.store.fail = error
        with pytest.raises(type(error)):
            call()
        self.store.fail = None


OPERATOR_CALLS: dict[str, Callable[[Guard], Any]] = {
    "bury": lambda guard: guard.bury("k", b"\xa1\xca\x01\x0287654321", 1_000, [], Budget(1)),
    "replace": lambda guard: guard.replace([("k", b"v", 0)], Budget(1)),
    "scan": lambda guard: guard.scan("k", 0, 10, Budget(1)),
    "unlink": lambda guard: guard.unlink(["k"], Budget(1)),
    "info": lambda guard: guard.info(Budget(1)),
}
TASK_CALLS: dict[str, Callable[[Guard], Any]] = {
    "read": lambda guard: guard.read(["k"], Budget(1)),
    "ensure": lambda guard: guard.ensure(["t"], [b"12345678"], [0], Budget(1)),
    "publish": lambda guard: guard.publish("k", b"frame", 1_000, NO_FENCE, [], Budget(1)),
    "discard": lambda guard: guard.discard("k", b"frame", Budget(1)),
}


@pytest.fixture
def bench(clock: Clock) -> Bench:
    return Bench(clock)


class TestGuard:
    def test_passes_all_ten_calls_through(self, bench: Bench) -> None:
        guard = bench.guard
        assert guard.ensure(["t"], [b"12345678"], [0], Budget(1)) == [b"12345678"]
        assert guard.publish("k", b"frame", 1_000, NO_FENCE, ["t"], Budget(1)) is True
        assert guard.read(["k", "t"], Budget(1)) == [b"frame", b"12345678"]
        assert guard.scan("k", 0, 10, Budget(1)) == (0, ["k"])
        assert guard.info(Budget(1)).keys == 2
        assert guard.bury("k", b"\xa1\xca\x01\x0287654321", 1_000, ["t"], Budget(1)) == (b"frame", [b"12345678"])
        assert guard.discard("k", b"\xa1\xca\x01\x0287654321", Budget(1)) is True
        guard.replace([("r", b"v", 0)], Budget(1))
        assert guard.unlink(["r", "t"], Budget(1)) == 2
        guard.close()
        assert bench.states() == ("closed", "closed")

    @pytest.mark.parametrize("call", ["read", "write"])
    def test_a_transport_fault_opens_both(self, bench: Bench, call: str) -> None:
        bench.fail(getattr(bench, call), AWAY)
        assert bench.states() == ("open", "open")
        for attempt in (bench.read, bench.write):
            with pytest.raises(BreakerOpen) as caught:
                attempt()
            assert (caught.value.reason, caught.value.scope) == ("breaker_open", "none")

    def test_a_refused_write_stops_writes_only(self, bench: Bench) -> None:
        bench.fail(bench.write, READ_ONLY)
        assert bench.states() == ("closed", "open")
        assert bench.read() == [None]
        with pytest.raises(BreakerOpen):
            bench.write()

    def test_a_refusal_of_one_command_stops_nothing(self, bench: Bench) -> None:
        bench.fail(bench.read, WRONG_TYPE)
        bench.fail(bench.write, WRONG_TYPE)
        assert bench.states() == ("closed", "closed")

    def test_a_read_that_probes_well_closes_reads_and_lets_writes_probe(self, bench: Bench) -> None:
        bench.writes._min_s = 8.0
        bench.fail(bench.read, AWAY)
        bench.clock.now_s += 1.01
        assert bench.states() == ("half-open", "open")
        bench.read()
        assert bench.states() == ("closed", "half-open")
        bench.write()
        assert bench.states() == ("closed", "closed")

    def test_a_read_that_succeeds_does_not_hurry_refused_writes(self, bench: Bench) -> None:
        bench.fail(bench.write, READ_ONLY)
        bench.read()
        assert bench.states() == ("closed", "open")

    def test_a_failed_probe_keeps_both_open(self, bench: Bench) -> None:
        bench.fail(bench.read, AWAY)
        bench.clock.now_s += 1.01
        bench.fail(bench.read, AWAY)
        bench.clock.now_s += 1.5
        assert bench.states() == ("open", "open")
        bench.clock.now_s += 0.6
        assert bench.states() == ("half-open", "half-open")

    def test_a_probe_that_is_refused_shows_that_the_server_answers(self, bench: Bench) -> None:
        bench.fail(bench.read, AWAY)
        bench.clock.now_s += 1.01
        bench.fail(bench.read, WRONG_TYPE)
        assert bench.states() == ("closed", "half-open")

    @pytest.mark.parametrize("call", OPERATOR_CALLS)
    def test_a_call_of_an_operator_is_tried_while_both_breakers_are_open(self, bench: Bench, call: str) -> None:
        bench.fail(bench.read, AWAY)
        OPERATOR_CALLS[call](bench.guard)
        own = bench.reads if call in ("scan", "info") else bench.writes
        assert own.state == "closed"

    @pytest.mark.parametrize("call", OPERATOR_CALLS)
    def test_a_call_of_an_operator_that_fails_says_why_and_hurries_no_probe(self, bench: Bench, call: str) -> None:
        for _ in range(3):
            bench.fail(lambda: OPERATOR_CALLS[call](bench.guard), AWAY)
            assert bench.states() == ("open", "open")
        bench.clock.now_s += 1.01
        assert bench.states() == ("half-open", "half-open")

    @pytest.mark.parametrize("call", TASK_CALLS)
    def test_a_call_of_a_task_is_not_tried_while_the_breakers_are_open(self, bench: Bench, call: str) -> None:
        bench.fail(bench.read, AWAY)
        with pytest.raises(BreakerOpen):
            TASK_CALLS[call](bench.guard)
        assert bench.states() == ("open", "open")

    def test_an_operator_s_reply_lets_the_next_write_of_a_task_probe(self, bench: Bench) -> None:
        bench.fail(bench.read, AWAY)
        bench.guard.info(Budget(1))
        assert bench.states() == ("closed", "half-open")

    def test_an_interrupted_call_teaches_nothing_and_passes_untouched(self, bench: Bench) -> None:
        class Interrupted(Exception):  # noqa: N818
            pass

        bench.store.fail = Interrupted()  # type: ignore[assignment]
        with pytest.raises(Interrupted):
            bench.read()
        assert bench.states() == ("closed", "closed")

    def test_an_interrupted_probe_leaves_the_probe_to_the_next(self, bench: Bench) -> None:
        bench.fail(bench.read, AWAY)
        bench.clock.now_s += 1.01
        bench.store.fail = KeyboardInterrupt()  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            bench.read()
        bench.store.fail = None
        assert bench.states()[0] == "half-open"
        assert bench.read() == [None]

    def test_spends_the_budget_and_asks_nobody_when_nothing_is_left(self, bench: Bench) -> None:
        budget = Budget(5)
        bench.guard.read(["k"], budget)
        assert 0.0 < budget.left_s < 5
        spent = Budget(0.0)
        bench.store.fail = AssertionError("was asked")  # type: ignore[assignment]
        with pytest.raises(BudgetSpent) as caught:
            bench.guard.read(["k"], spent)
        assert (caught.value.reason, caught.value.scope) == ("redis_connection_failed", "none")
        assert bench.states() == ("closed", "closed")

    def test_time_between_two_calls_is_not_spent(self, bench: Bench) -> None:
        budget, spent_s = Budget(5), []
        for _ in range(5):
            left_s = budget.left_s
            time.sleep(0.02)
            bench.guard.read(["k"], budget)
            spent_s.append(left_s - budget.left_s)
        assert min(spent_s) < 0.015

    def test_costs_little_while_open(self, bench: Bench) -> None:
        bench.fail(bench.read, AWAY)
        took_s = []
        for _ in range(1_000):
            budget, began = Budget(0.05), time.perf_counter()
            try:
                bench.guard.read(["k"], budget)
            except BreakerOpen:
                took_s.append(time.perf_counter() - began)
        assert len(took_s) == 1_000
        assert sorted(took_s)[500] < 20e-6


class ShippingStore(MemoryStore):
    """A store in memory that takes samples: `receipt` is what becomes of them."""

    receipt: Receipt = 1

    def carry(self, keys: Sequence[str], shipment: Shipment, budget: Budget) -> tuple[list[bytes | None], Receipt]:
        return self.read(keys, budget), self.receipt

    def ship(self, shipment: Shipment, budget: Budget) -> int:
        self.read([], budget)
        if isinstance(self.receipt, StoreError):
            raise self.receipt
        return self.receipt

    def give_up(self, state_key: str, count: int, budget: Budget) -> int:
        self.read([], budget)
        return count


SHIPMENT = Shipment("{ns:s}:inbox", "{ns:s}:state", b"batch", 100)


class ShippingBench(Bench):
    store: ShippingStore

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.store = self.guard.store = ShippingStore(clock)

    def carry(self) -> tuple[list[bytes | None], Receipt]:
        return self.guard.carry(["k"], SHIPMENT, Budget(0.05))

    def ship(self) -> int:
        return self.guard.ship(SHIPMENT, Budget(0.05))


class TestShipping:
    @pytest.fixture
    def bench(self, clock: Clock) -> ShippingBench:
        return ShippingBench(clock)

    def test_what_is_given_up_is_told_whatever_the_breaker_says(self, bench: ShippingBench) -> None:
        bench.writes.failed("OOM")
        assert bench.guard.give_up("{ns:s}:state", 3, Budget(0.05)) == 3
        assert bench.writes.state == "closed"

    def test_is_known_of_a_store(self, bench: ShippingBench, clock: Clock) -> None:
        assert bench.guard.ships
        assert not Bench(clock).guard.ships

    def test_passes_values_and_receipts_through(self, bench: ShippingBench) -> None:
        for receipt in (7, REFUSED):
            bench.store.receipt = receipt
            assert bench.carry() == ([None], receipt)
            assert bench.ship() == receipt
        assert bench.states() == ("closed", "closed")

    def test_a_receipt_that_refuses_writes_stops_them_and_not_the_look_up(self, bench: ShippingBench) -> None:
        bench.store.receipt = READ_ONLY
        assert bench.carry() == ([None], READ_ONLY)
        assert bench.states() == ("closed", "open")
        with pytest.raises(BreakerOpen):
            bench.ship()

    def test_a_receipt_that_refuses_one_command_stops_nothing(self, bench: ShippingBench) -> None:
        bench.store.receipt = WRONG_TYPE
        assert bench.carry() == ([None], WRONG_TYPE)
        assert bench.states() == ("closed", "closed")

    def test_a_receipt_of_a_server_that_went_away_stops_both(self, bench: ShippingBench) -> None:
        bench.store.receipt = AWAY
        assert bench.carry() == ([None], AWAY)
        assert bench.states() == ("open", "open")

    def test_a_good_receipt_shows_that_writes_are_taken_and_a_full_inbox_does_not(self, bench: ShippingBench) -> None:
        bench.fail(bench.write, READ_ONLY)
        bench.store.receipt = REFUSED
        bench.carry()
        assert bench.states() == ("closed", "open")
        bench.store.receipt = 1
        bench.carry()
        assert bench.states() == ("closed", "closed")

    def test_a_look_up_that_carries_is_not_tried_while_reads_are_stopped(self, bench: ShippingBench) -> None:
        bench.fail(bench.carry, AWAY)
        assert bench.states() == ("open", "open")
        with pytest.raises(BreakerOpen):
            bench.carry()

    def test_a_refused_shipment_stops_writes(self, bench: ShippingBench) -> None:
        bench.store.receipt = READ_ONLY
        with pytest.raises(StoreRefused):
            bench.ship()
        assert bench.states() == ("closed", "open")


class TestOperate:
    @staticmethod
    def ask(bench: Bench) -> Callable[[str, Budget], list[bytes | None]]:
        return lambda key, budget: bench.store.read([key], budget)

    def test_passes_what_is_given_and_a_running_budget(self, bench: Bench) -> None:
        budget = Budget(5)
        assert bench.guard.operate(self.ask(bench), budget, "k") == [None]
        assert 0.0 < budget.left_s < 5

    def test_is_tried_while_both_are_stopped_and_lets_writes_resume(self, bench: Bench) -> None:
        bench.fail(bench.read, AWAY)
        bench.guard.operate(self.ask(bench), Budget(1), "k")
        assert bench.states() == ("open", "closed")

    def test_that_only_reads_does_not_say_that_writes_are_taken(self, bench: Bench) -> None:
        bench.fail(bench.write, READ_ONLY)
        bench.guard.operate(self.ask(bench), Budget(1), "k", writes=False)
        assert bench.states() == ("closed", "open")

    @pytest.mark.parametrize("writes", [True, False])
    def test_that_meets_a_fault_stops_both(self, bench: Bench, writes: bool) -> None:
        bench.fail(lambda: bench.guard.operate(self.ask(bench), Budget(1), "k", writes=writes), AWAY)
        assert bench.states() == ("open", "open")
