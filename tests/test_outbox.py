"""Samples on their way out of a process: each arrives once and in order, whatever the store does meanwhile."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aicache_tasks.batches import MAX_SAMPLES, decode_batch
from aicache_tasks.errors import BreakerOpen, StoreError, StoreUnavailable
from aicache_tasks.outbox import Outbox, queue, sender
from aicache_tasks.records import Sample
from aicache_tasks.settings import Settings
from aicache_tasks.stores.base import Budget, Receipt
from aicache_tasks.stores.guard import Breaker, Guard
from aicache_tasks.stores.redis import RedisStore
from aicache_tasks.testing import EmbeddedServer
from tests.faults import FaultProxy, dropped, eventually, healthy
from tests.inbox import INBOX, STATE, batches, counted

ROOT = Path(__file__).parent.parent
KEYS = ("{aicache:00}:v1:shout:0", "{aicache:00}:t:ns")
NEVER_BY_AGE = {"aicache_ship_after_s": 600}
PATIENT_S = 20.0


def sample(number: int, **fields: Any) -> Sample:
    """Return a sample that can be told by its duration."""
    return Sample(1_700_000_000.0, "shout", "get", "hit", "", number, **fields)


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have the outboxes' clock be so much ahead."""
    for module in (queue, sender):
        monkeypatch.setattr(module, "monotonic", lambda: time.monotonic() + seconds)


class Box:
    """An outbox with its guard, and breakers that recover at once."""

    def __init__(self, url: str, store: RedisStore | None = None, **settings: Any) -> None:
        self.settings = Settings.from_mapping(settings)
        self.guard = Guard(
            store or RedisStore(url, connect_s=5.0),
            reads=Breaker("reads", 0.01, 0.02),
            writes=Breaker("writes", 0.01, 0.02),
        )
        self.outbox = Outbox(self.guard, self.settings, lambda: "worker@here")

    def add(self, *numbers: int) -> None:
        for number in numbers:
            self.outbox.add(sample(number))

    def read(self, seconds: float = 5.0) -> None:
        self.outbox.read(KEYS, Budget(seconds))


@pytest.fixture
def box(valkey: EmbeddedServer) -> Iterator[Callable[..., Box]]:
    """Return a function that makes an outbox; what still waits in it at the end is dropped."""
    made: list[Box] = []

    def make(url: str = valkey.url, **settings: Any) -> Box:
        made.append(Box(url, **{**NEVER_BY_AGE, **settings}))
        return made[-1]

    yield make
    for one in made:
        one.outbox.after_fork()
        one.guard.close()


class TestRiding:
    def test_a_batch_rides_on_the_look_up_after_the_sample_that_makes_it_due(self, box: Any, client: Any) -> None:
        one = box()
        one.add(*range(127))
        one.read()
        assert batches(client) == []
        one.add(127)
        one.read()
        (batch,) = batches(client)
        assert (batch.number, batch.origin, batch.last, batch.lost) == (1, "worker@here", False, 0)
        assert [row[5] for row in batch.rows] == list(range(128))
        assert (one.outbox.waiting, one.outbox.shipped) == (0, 128)

    def test_the_look_up_has_its_values_and_takes_one_round_trip(self, box: Any, own_server: EmbeddedServer) -> None:
        with own_server.client() as client:
            client.mset(dict.fromkeys(KEYS, b"v"))
            one = box(own_server.url, aicache_ship_every=1)
            one.add(0)
            one.read()  # the server knows the script from here on
            one.add(1)
            before = client.info("stats")["total_reads_processed"]
            assert one.outbox.read(KEYS, Budget(5.0)) == [b"v", b"v"]
            assert client.info("stats")["total_reads_processed"] - before == 2  # the look-up's, and the one that asks
            assert counted(batches(client)) == [0, 1]

    def test_an_old_sample_makes_its_batch_due(self, box: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        one = box()
        one.add(1)
        for passed_s, sent in ((0, []), (500, []), (600, [1])):
            later(monkeypatch, passed_s)
            one.read()
            assert counted(batches(client)) == sent

    def test_what_nothing_carries_is_sent_alone(self, box: Any, client: Any) -> None:
        one = box(aicache_ship_after_s=0.05)
        one.add(1, 2, 3)
        eventually(lambda: counted(batches(client)) == [1, 2, 3])
        eventually(lambda: one.outbox._is_asleep)
        one.add(4)
        eventually(lambda: counted(batches(client)) == [1, 2, 3, 4])

    def test_many_samples_with_no_look_up_do_not_wait_for_their_age(self, box: Any, client: Any) -> None:
        one = box()
        one.add(*range(3 * MAX_SAMPLES))
        eventually(lambda: len(counted(batches(client))) >= 2 * MAX_SAMPLES)

    def test_hits_from_memory_send_what_they_cannot_carry(self, box: Any, client: Any) -> None:
        one = box()
        one.outbox._has_thread = True  # none
        one.add(*range(MAX_SAMPLES - 1))
        one.outbox.relieve(Budget(5.0))
        assert batches(client) == []
        one.add(MAX_SAMPLES - 1)
        one.outbox.relieve(Budget(5.0))
        assert counted(batches(client)) == list(range(MAX_SAMPLES))

    def test_no_batch_has_over_256_samples(self, box: Any, client: Any) -> None:
        one = box()
        one.outbox._has_thread = True
        one.add(*range(1000))
        assert one.outbox.flush(PATIENT_S)
        assert [len(batch.rows) for batch in batches(client)] == [256, 256, 256, 232]
        assert [batch.number for batch in batches(client)] == [1, 2, 3, 4]

    def test_long_metadata_and_names_make_smaller_batches_that_can_be_read(self, box: Any, client: Any) -> None:
        one = box()
        one.outbox._has_thread = True
        for number in range(300):
            one.outbox.add(sample(number, meta=os.urandom(60_000))._replace(operation="é" * 5_000))
        assert one.outbox.flush(PATIENT_S)
        assert counted(batches(client)) == list(range(300))

    def test_what_cannot_be_encoded_is_dropped_and_counted(self, box: Any, client: Any, caplog: Any) -> None:
        one = box()
        one.outbox.add(sample(1)._replace(reason=object()))
        one.outbox.flush(PATIENT_S)
        one.add(2)
        assert one.outbox.flush(PATIENT_S)
        (batch,) = batches(client)
        assert ([row[5] for row in batch.rows], batch.lost) == ([2], 1)
        assert "TypeError in a batch" in caplog.text


class Watched(RedisStore):
    """Counts how many senders are at it at once."""

    def __init__(self, url: str) -> None:
        super().__init__(url, connect_s=5.0)
        self.now = self.most = 0

    def _counted(self, send: Callable[..., Any], *given: Any) -> Any:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return send(*given)
        finally:
            self.now -= 1

    def carry(self, *given: Any) -> tuple[list[bytes | None], Receipt]:
        return self._counted(super().carry, *given)

    def ship(self, *given: Any) -> int:
        return self._counted(super().ship, *given)


class TestOneSender:
    def test_eight_threads_have_one_sender_and_lose_nothing(self, valkey: EmbeddedServer, client: Any) -> None:
        store = Watched(valkey.url)
        one = Box(valkey.url, store, aicache_ship_after_s=0.01)

        def work(thread: int) -> None:
            for number in range(400):
                one.outbox.add(sample(1000 * thread + number))
                one.read()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert one.outbox.flush(PATIENT_S)
        found = batches(client)
        assert [batch.number for batch in found] == list(range(1, len(found) + 1))
        numbers = counted(found)
        assert sorted(numbers) == [1000 * thread + number for thread in range(8) for number in range(400)]
        for thread in range(8):
            own = [number for number in numbers if number // 1000 == thread]
            assert own == sorted(own)
        assert store.most == 1
        one.guard.close()

    def test_who_waits_for_an_acknowledgement_has_it_whoever_sent_the_batch(self, box: Any, client: Any) -> None:
        one, missing = box(), list[int]()

        def work(thread: int) -> None:
            for number in range(1000 * thread, 1000 * thread + 50):
                one.add(number)
                if not one.outbox.acknowledge(Budget(10.0)) or number not in counted(batches(client)):
                    missing.append(number)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert missing == []
        assert len(batches(client)) < 400, "no batch had another's sample: nothing is shown"

    def test_what_a_thread_moves_into_its_batch_meanwhile_still_waits(self, box: Any) -> None:
        one, moved = box(), list[Any]()
        one.outbox._has_thread = True  # none: this is what it does
        one.add(1)

        class Moved(list[Sample]):
            def __len__(self) -> int:
                if not moved:
                    moved.append(self)
                    moved.append(one.outbox._claim())
                return super().__len__()

        one.outbox._samples = Moved(one.outbox._samples)
        assert one.outbox.waiting == 1
        assert moved[1] is not None

    def test_a_claim_that_nobody_ends_is_taken_over(self, box: Any, client: Any) -> None:
        one = box()
        one.add(1)
        torn_down = one.outbox._claim()
        assert torn_down is not None
        assert one.outbox._claim() is None
        torn_down.until_s = time.monotonic()
        one.add(2)
        assert one.outbox.flush(PATIENT_S)
        assert counted(batches(client)) == [1, 2]

    def test_who_was_taken_over_settles_nothing(self, box: Any, client: Any) -> None:
        one = box()
        one.outbox._claim_s = 0.0
        one.add(1)
        late = one.outbox._claim()
        assert one.outbox.flush(PATIENT_S)
        one.add(2)
        current = one.outbox._claim()
        one.outbox._settle(late, 1)
        assert one.outbox.waiting == 1
        one.outbox._settle(current, 1)
        assert one.outbox.waiting == 0


class TestFaults:
    def test_lost_replies_count_nothing_twice_and_lose_nothing(self, valkey: EmbeddedServer, client: Any) -> None:
        dice = random.Random(3)

        def unlucky(proxy: FaultProxy, link: Any, reply: bytes) -> bool:
            return (dropped if dice.random() < 0.15 else healthy)(proxy, link, reply)

        with FaultProxy(valkey.port) as proxy:
            one = Box(proxy.url, aicache_ship_after_s=0.02, aicache_ship_every=4)
            proxy.fault = unlucky
            for number in range(400):
                one.add(number)
                try:
                    one.read(0.03)
                except StoreError:
                    time.sleep(0.005)
            proxy.fault = healthy
            eventually(lambda: one.outbox.flush(PATIENT_S))
            one.guard.close()
        found = batches(client)
        assert counted(found) == list(range(400))
        numbers = [batch.number for batch in found]
        assert len(numbers) > len(set(numbers)), "no reply was lost: nothing is shown"
        assert numbers == sorted(numbers)
        assert one.outbox.lost == 0

    def test_a_store_that_was_away_gets_everything_in_order(self, own_server: EmbeddedServer) -> None:
        one = Box(own_server.url, aicache_ship_after_s=0.05)
        one.add(*range(10))
        assert one.outbox.flush(PATIENT_S)
        with own_server.client() as client:
            before = client.lrange(INBOX, 0, -1)
        own_server.kill()
        for number in range(10, 610):
            one.add(number)
            with pytest.raises(StoreError):
                one.read(0.2)
        assert one.outbox.waiting == 600
        own_server.start()
        eventually(lambda: one.outbox.waiting == 0)
        with own_server.client() as client:
            assert counted([*map(decode_batch, before), *batches(client)]) == list(range(610))
        assert one.outbox.lost == 0
        one.guard.close()

    def test_a_full_inbox_is_left_alone_and_filled_again_later(
        self, box: Any, client: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caplog.set_level(logging.INFO, logger="aicache_tasks.samples")
        one = box(aicache_inbox_bytes=2**20)
        client.rpush(INBOX, b"another's")
        client.hset(STATE, "bytes", 2**20)
        one.add(*range(140))
        one.read()
        assert (one.outbox.refused, one.outbox.waiting, client.llen(INBOX)) == (1, 140, 1)
        for _ in range(200):
            one.read()
        assert one.outbox.refused == 1  # not with every look-up
        client.delete(INBOX)
        later(monkeypatch, queue.MAX_DELAY_S)
        one.read()
        assert counted(batches(client)) == list(range(140))
        said = [record.getMessage() for record in caplog.records]
        assert [text.partition(": ")[0] for text in said] == ["aicache.samples"] * 2
        assert "the inbox is full" in said[0]
        assert "sent again" in said[1]

    def test_a_key_of_another_type_in_the_inbox_s_place_does_not_hide_the_look_up(self, box: Any, client: Any) -> None:
        client.mset(dict.fromkeys(KEYS, b"v"))
        client.set(INBOX, "taken")
        one = box(aicache_ship_every=1)
        one.add(1)
        assert one.outbox.read(KEYS, Budget(5.0)) == [b"v", b"v"]
        assert (one.outbox.waiting, one.outbox._batch.doubtful_s) == (1, None)
        client.delete(INBOX)
        assert one.outbox.flush(PATIENT_S)
        assert counted(batches(client)) == [1]

    def test_what_has_no_room_goes_oldest_first_and_the_next_batch_says_how_much(
        self, own_server: EmbeddedServer, caplog: Any
    ) -> None:
        one = Box(own_server.url, aicache_buffer_samples=256, aicache_ship_after_s=600)
        own_server.kill()
        one.add(*range(1000))
        assert one.outbox.waiting <= 256 + MAX_SAMPLES
        assert one.outbox.lost == 1000 - one.outbox.waiting
        own_server.start()
        eventually(lambda: one.outbox.flush(PATIENT_S))  # half a second of it, while the breaker is open
        with own_server.client() as client:
            found = batches(client)
        numbers = counted(found)
        assert numbers[-100:] == list(range(900, 1000))
        assert numbers == sorted(set(numbers))
        assert sum(batch.lost for batch in found) == one.outbox.lost == 1000 - len(numbers)
        assert caplog.text.count("the oldest are dropped") == 1
        one.guard.close()

    def test_a_batch_that_may_have_arrived_long_ago_is_given_up(
        self, valkey: EmbeddedServer, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with FaultProxy(valkey.port) as proxy:
            one = Box(proxy.url, aicache_ship_every=1, aicache_ship_after_s=600)
            one.read()
            proxy.fault = dropped
            one.add(1)
            with pytest.raises(StoreUnavailable):
                one.read(0.05)
            eventually(lambda: len(batches(client)) == 1)  # it did arrive
            proxy.fault = healthy
            monkeypatch.setattr(queue, "DOUBT_S", 0.0)
            one.add(2)
            eventually(lambda: one.outbox.flush(PATIENT_S))
            one.guard.close()
        first, second = batches(client)
        assert (first.number, second.number, second.lost) == (1, 2, 1)
        assert counted([first, second]) == [1, 2]

    def test_a_number_is_remembered_for_longer_than_it_is_sent_again(self) -> None:
        from aicache_tasks.summaries import SEEN_FOR_S

        assert queue.DOUBT_S <= SEEN_FOR_S / 2


class TestBreakers:
    def test_no_look_up_carries_while_writes_are_known_to_fail(self, box: Any, client: Any) -> None:
        one = box(aicache_ship_every=1)
        one.guard.writes._min_s = one.guard.writes._max_s = 600.0
        one.guard.writes.failed("OOM")
        one.add(1)
        one.read()
        one.outbox.relieve(Budget(5.0))
        assert not one.outbox.acknowledge(Budget(5.0))
        assert (batches(client), one.outbox.waiting) == ([], 1)

    def test_the_thread_is_the_probe_that_closes_the_breaker_of_writes(self, box: Any, client: Any) -> None:
        one = box(aicache_ship_after_s=0.05)
        one.guard.writes.failed("OOM")
        one.add(1)
        eventually(lambda: counted(batches(client)) == [1])
        eventually(lambda: one.guard.writes.state == "closed")

    def test_an_open_breaker_of_reads_stops_the_look_up_and_costs_the_batch_nothing(
        self, box: Any, client: Any
    ) -> None:
        one = box(aicache_ship_every=1)
        one.guard.reads._min_s = one.guard.reads._max_s = 600.0
        one.guard.reads.failed("TimeoutError")
        one.add(1)
        with pytest.raises(BreakerOpen):
            one.read()
        assert one.outbox._batch.doubtful_s is None
        assert one.outbox.flush(PATIENT_S)
        assert counted(batches(client)) == [1]

    def test_a_spent_budget_costs_the_batch_nothing(self, box: Any, client: Any) -> None:
        one = box(aicache_ship_every=1)
        one.add(1)
        with pytest.raises(StoreUnavailable, match="budget spent"):
            one.read(0.0)
        assert one.outbox._batch.doubtful_s is None
        one.read()
        assert counted(batches(client)) == [1]


class Limit(Exception):  # noqa: N818 - an event
    """What a signal handler raises, as a worker's child does for a soft limit."""


def is_interruption(error: BaseException) -> bool:
    """Return whether *error* comes of a `Limit`: redis-py makes another of one while it makes a connection."""
    return not isinstance(error, UnboundLocalError) or isinstance(error.__context__, Limit)


class TestInterrupted:
    def test_between_request_and_reply_the_claim_ends_and_the_batch_is_sent_again(
        self, box: Any, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(connection: Any) -> Any:
            raise Limit

        one = box(aicache_ship_every=1)
        one.add(1)
        with monkeypatch.context() as patched:
            patched.setattr("aicache_tasks.stores.redis._reply", interrupted)
            with pytest.raises(Limit):
                one.read()
        assert one.outbox._claimed is None
        one.add(2)
        one.read()
        assert one.outbox.flush(PATIENT_S)
        assert counted(batches(client)) == [1, 2]
        assert one.guard.reads.state == "closed"

    def test_at_random_nothing_is_stuck_lost_or_counted_twice(self, valkey: EmbeddedServer, client: Any) -> None:
        one = Box(valkey.url, aicache_ship_every=2, aicache_ship_after_s=0.01)
        one.outbox._claim_s = 0.05
        dice, limits, is_armed, surely, number = random.Random(5), 0, False, list[int](), 0

        def handler(*_: Any) -> None:
            nonlocal limits, is_armed
            signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0002, 0.002))
            if is_armed:
                limits, is_armed = limits + 1, False
                raise Limit

        def rounds() -> None:  # not in the `try`: Python 3.13 leaves a loop's last jump out of it
            nonlocal number, is_armed
            is_armed = True
            while is_armed:
                number += 1
                one.add(number)
                surely.append(number)
                one.read()

        before, hook = signal.signal(signal.SIGALRM, handler), sys.unraisablehook
        sys.unraisablehook = lambda unraisable: None  # a handler that raises inside a `__del__`
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        ends = time.monotonic() + 2.0
        while time.monotonic() < ends or (limits <= 100 and time.monotonic() < ends + PATIENT_S):
            try:
                rounds()
            except (Limit, StoreError, UnboundLocalError) as error:
                is_armed = False
                if not is_interruption(error):
                    raise
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.unraisablehook = hook
        eventually(lambda: one.outbox.flush(PATIENT_S))
        numbers = counted(batches(client))
        assert len(numbers) == len(set(numbers))
        assert set(surely) <= set(numbers) <= set(range(number + 1))
        assert limits > 100
        assert one.outbox.lost == 0
        one.guard.close()


class TestHandlers:
    """A signal handler, or a finalizer, that looks up while its thread is in the middle of something."""

    def test_at_random_no_two_batches_have_one_number(self, valkey: EmbeddedServer, client: Any) -> None:
        one = Box(valkey.url, aicache_ship_every=2, aicache_ship_after_s=0.05)
        number = 0

        def look_up(*_: Any) -> None:
            nonlocal number
            number += 1
            one.outbox.add(sample(number))
            one.outbox.read(KEYS, Budget(5.0))
            if time.monotonic() < ends:  # not by itself: where one takes longer, they would pile up on the stack
                signal.setitimer(signal.ITIMER_REAL, 0.001)

        before, ends = signal.signal(signal.SIGALRM, look_up), time.monotonic() + 2.0
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        while time.monotonic() < ends:
            one.outbox.add(sample(0))
            one.outbox.read(KEYS, Budget(5.0))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        eventually(lambda: one.outbox.flush(PATIENT_S))
        numbers = [batch.number for batch in batches(client)]
        assert numbers == list(range(1, len(numbers) + 1))
        found = counted(batches(client))
        assert sorted(n for n in found if n) == list(range(1, number + 1))
        assert (one.outbox.shipped, one.outbox.lost) == (len(found), 0)
        one.guard.close()

    @pytest.mark.timeout(10)
    @pytest.mark.parametrize("place", ["Pending", "encode_batch", "Shipment", "Claim", "is_done"])
    def test_nothing_is_lost_or_stuck_wherever_it_comes(
        self, box: Any, client: Any, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        one, given, told = box(aicache_ship_every=1), getattr(queue, place), list[bool]()

        def interrupted(*args: Any, **named: Any) -> Any:
            if not told:
                told.append(False)
                one.add(2)
                one.read()
                told[0] = one.outbox.acknowledge(Budget(1.0))
                one.outbox.flush(0.1, last=True)
            return given(*args, **named)

        monkeypatch.setattr(queue, place, interrupted)
        one.add(1)
        one.read()
        one.add(3)
        one.read()
        assert one.outbox.flush(PATIENT_S)
        assert told == [False], "it cannot be acknowledged before the batch that was interrupted is"
        assert counted(batches(client)) == [1, 2, 3]
        numbers = [batch.number for batch in batches(client)]
        assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
class TestFork:
    def test_a_child_drops_what_it_inherits_and_has_numbers_of_its_own(
        self, valkey: EmbeddedServer, client: Any
    ) -> None:
        from tests.caches import live_cache

        cache = live_cache(valkey.url, {"aicache_ship_after_s": 600}, ship=True)
        outbox = cache.parts.outbox
        assert outbox is not None
        outbox.add(sample(1))
        assert outbox.flush(PATIENT_S)
        outbox.add(sample(2))
        outbox._lock.acquire()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            empty = outbox.waiting == 0
            outbox.add(sample(3))
            os._exit(0 if empty and outbox.flush(15.0) else 1)
        outbox._lock.release()
        assert os.waitpid(child, 0)[1] == 0
        cache.close()
        found = batches(client)
        assert [(batch.number, [row[5] for row in batch.rows]) for batch in found] == [(1, [1]), (1, [3]), (2, [2])]
        assert found[0].process == found[2].process != found[1].process


def test_a_million_samples_with_nobody_to_send_them_keep_memory_flat(refused_url: str) -> None:
    one = Box(refused_url, aicache_ship_after_s=600)
    one.outbox._has_thread = True
    made = sample(1)

    def add(count: int) -> int:
        for _ in range(count):
            one.outbox.add(made._replace(text_length=12_345_678))
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = add(20_000)
    assert add(200_000) - before < 4 * 2**20
    for _ in range(800_000):
        one.outbox.add(made)
    assert one.outbox.waiting <= 10_000 + MAX_SAMPLES
    assert one.outbox.waiting + one.outbox.lost == 1_020_000
    one.outbox.after_fork()


def test_an_outbox_that_is_dropped_takes_its_thread_with_it(
    valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_IDLE_S", 0.05)
    before = set(threading.enumerate())
    one = Box(valkey.url, aicache_ship_after_s=0.05)
    one.add(1)
    (thread,) = set(threading.enumerate()) - before
    assert one.outbox.flush(PATIENT_S)
    one.guard.close()
    del one
    eventually(lambda: gc.collect() >= 0 and not thread.is_alive())


ENDING = """
import sys
from aicache_tasks import AIResponseCache
from aicache_tasks.settings import Settings
cache = AIResponseCache(sys.argv[1], ship=True, settings=Settings(ship_after_s=600.0, slow_key_ms=20000.0))
for n in range(5):
    cache.generate_cache_key("text", "shout", {"n": n})
print("ready", flush=True)
"""


class TestEndOfTheProcess:
    def end_within(self, url: str, limit_s: float) -> str:
        """Return what a process said that ended in time: one of three, for a machine that stalls makes none shorter."""
        for left in (2, 1, 0):
            said, took_s = self.end(url)
            if took_s < limit_s or not left:
                assert took_s < limit_s
                return said
        raise AssertionError

    def end(self, url: str) -> tuple[str, float]:
        command = [sys.executable, "-c", ENDING, url]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "ready\n"
            began = time.monotonic()
            said = process.stderr.read()
            assert process.wait(20) == 0
        return said, time.monotonic() - began

    def test_what_waits_is_sent_by_a_process_that_ends(self, valkey: EmbeddedServer, client: Any) -> None:
        said, _ = self.end(valkey.url)
        (batch,) = batches(client)
        assert ([row[2] for row in batch.rows], batch.last) == (["key"] * 5, True)
        assert batch.origin.startswith("producer@")
        assert said == ""

    def test_a_store_that_is_away_costs_two_seconds_at_most_and_one_warning(self, refused_url: str) -> None:
        said = self.end_within(refused_url, 3.0)
        assert said.count("5 timings of this process are lost as it ends: ConnectionError") == 1

    def test_a_store_that_hangs_costs_two_seconds_at_most(self, own_server: EmbeddedServer) -> None:
        own_server.pause()
        said = self.end_within(own_server.url, 3.5)
        own_server.resume()
        assert said.count("are lost as it ends") == 1
