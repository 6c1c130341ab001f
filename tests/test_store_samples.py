"""Samples on their way: along with a look-up or alone into the inbox, and out of it in one atomic step."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from aicache_tasks.errors import StoreError, StoreRefused, StoreUnavailable
from aicache_tasks.samplekeys import SampleKeys
from aicache_tasks.stores.base import REFUSED, Budget, Carrier, Shipment
from aicache_tasks.stores.guard import Breaker, Guard
from aicache_tasks.stores.inbox import MAX_ASIDE, Commit, Head, Inbox
from aicache_tasks.stores.memory import MemoryStore
from aicache_tasks.stores.redis import RedisStore
from aicache_tasks.testing import EmbeddedServer
from tests import faults
from tests.conftest import REDIS_62
from tests.faults import FaultProxy, eventually

KEYS = SampleKeys("ns")
MINUTES, TOTALS = KEYS.records("shout", "minute"), KEYS.totals
BATCH = b"a batch of samples"
PROCESS, OTHER = bytes(range(16)), bytes(range(16, 32))
ROOMY = 10**9
ROUNDS = 5
PATIENT_S = 10.0


def parcel(data: bytes = BATCH, cap_bytes: int = ROOMY) -> Shipment:
    return Shipment(KEYS.inbox, KEYS.state, data, cap_bytes)


def running(seconds: float = PATIENT_S) -> Budget:
    budget = Budget(seconds)
    budget.begin()
    return budget


class Bench:
    """A store and an inbox on a server, and a plain client that looks at what they did."""

    def __init__(self, server: EmbeddedServer, client: Any) -> None:
        self.server, self.client = server, client
        self.store = RedisStore(server.url, connect_s=PATIENT_S)
        self.inbox = Inbox(self.store, KEYS)
        client.set("{ns:00}:k", b"value")

    def carry(self, data: bytes = BATCH, cap_bytes: int = ROOMY) -> tuple[list[bytes | None], int | StoreError]:
        return self.store.carry(["{ns:00}:k", "{ns:00}:absent"], parcel(data, cap_bytes), running())

    def ship(self, data: bytes = BATCH, cap_bytes: int = ROOMY) -> int:
        return self.store.ship(parcel(data, cap_bytes), running())

    def head(self, limit_bytes: int = 10**6, offset: int = 0) -> Head:
        return self.inbox.head(limit_bytes, running(), offset=offset)

    def commit(self, commit: Commit) -> bool:
        return self.inbox.commit(commit, running())

    def entries(self) -> list[bytes]:
        found: list[bytes] = self.client.lrange(KEYS.inbox, 0, -1)
        return found

    def held(self) -> dict[str, Any]:
        """Return all that the server holds, in a form that can be compared."""
        return {key: self.client.dump(key) for key in self.client.keys("{ns:s}*")}


@pytest.fixture
def bench(each_server: EmbeddedServer) -> Iterator[Bench]:
    with each_server.client() as client:
        made = Bench(each_server, client)
        yield made
        made.store.close()


@contextmanager
def full(client: Any) -> Iterator[None]:
    """Let the server be at its memory limit."""
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


@contextmanager
def user(bench: Bench, *rights: str) -> Iterator[RedisStore]:
    """Yield a store whose user may do all but what *rights* say."""
    bench.client.execute_command("ACL", "SETUSER", "limited", "reset", "on", "nopass", "+@all", *rights)
    store = RedisStore(f"redis://limited:any@127.0.0.1:{bench.server.port}/0", connect_s=PATIENT_S)
    try:
        yield store
    finally:
        store.close()
        bench.client.execute_command("ACL", "DELUSER", "limited")


def guarded(store: RedisStore) -> Guard:
    return Guard(store, reads=Breaker("reads"), writes=Breaker("writes"))


def test_a_store_tells_whether_it_ships(valkey: EmbeddedServer) -> None:
    assert isinstance(RedisStore(valkey.url), Carrier)
    assert not isinstance(MemoryStore(), Carrier)


class TestGiveUp:
    def test_adds_up_until_the_roll_up_counts_it(self, bench: Bench) -> None:
        bench.ship()
        assert [bench.store.give_up(KEYS.state, count, running()) for count in (3, 4)] == [3, 7]
        assert bench.client.hget(KEYS.state, "lost") == b"7"
        assert bench.head().waiting_bytes == len(BATCH)

    def test_is_taken_by_a_full_server(self, bench: Bench) -> None:
        with full(bench.client):
            assert bench.store.give_up(KEYS.state, 5, running()) == 5

    def test_a_stranger_s_key_in_the_way_is_a_fault_that_changes_nothing(self, bench: Bench) -> None:
        bench.client.set(KEYS.state, b"a stranger's")
        before = bench.held()
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            bench.store.give_up(KEYS.state, 5, running())
        assert bench.held() == before


class TestCarry:
    def test_returns_what_a_read_would_and_how_many_entries_wait(self, bench: Bench) -> None:
        assert bench.carry(b"one") == ([b"value", None], 1)
        assert bench.carry(b"two") == ([b"value", None], 2)
        assert bench.entries() == [b"one", b"two"]

    @pytest.mark.parametrize("data", [b"", b"\r\n", bytes(range(256)), os.urandom(300_000)], ids=len)
    def test_brings_the_very_bytes(self, bench: Bench, data: bytes) -> None:
        bench.carry(data)
        assert bench.entries() == [data]
        assert bench.head().entries == [data]

    def test_is_refused_at_the_cap_and_reads_all_the_same(self, bench: Bench) -> None:
        bench.carry(b"x" * 60, cap_bytes=100)
        before = bench.held()
        assert bench.carry(b"x" * 41, cap_bytes=100) == ([b"value", None], REFUSED)
        assert bench.held() == before
        assert bench.carry(b"x" * 40, cap_bytes=100) == ([b"value", None], 2)

    def test_reads_all_the_same_from_a_full_server(self, bench: Bench) -> None:
        guard = guarded(bench.store)
        with full(bench.client):
            values, receipt = guard.carry(["{ns:00}:k"], parcel(), Budget(PATIENT_S))
        assert values == [b"value"]
        assert isinstance(receipt, StoreRefused)
        assert receipt.detail.endswith(" OOM")
        assert (guard.reads.state, guard.writes.state) == ("closed", "open")
        assert bench.held() == {}

    @pytest.mark.parametrize("rights", [("~{ns:00}*",), ("~*", "-evalsha", "-eval"), ("~*", "-hset"), ("~*", "-rpush")])
    def test_reads_all_the_same_where_the_user_may_not_ship(self, bench: Bench, rights: tuple[str, ...]) -> None:
        with user(bench, *rights) as store:
            guard = guarded(store)
            values, receipt = guard.carry(["{ns:00}:k"], parcel(), Budget(PATIENT_S))
        assert values == [b"value"]
        assert isinstance(receipt, StoreRefused)
        assert receipt.detail.endswith(" NOPERM")
        assert (guard.reads.state, guard.writes.state) == ("closed", "open")
        assert bench.entries() == []

    @pytest.mark.parametrize("key", [KEYS.inbox, KEYS.state])
    def test_reads_all_the_same_where_a_stranger_s_key_is_in_the_way(self, bench: Bench, key: str) -> None:
        bench.client.set(key, b"a stranger's")
        guard, before = guarded(bench.store), bench.held()
        values, receipt = guard.carry(["{ns:00}:k"], parcel(), Budget(PATIENT_S))
        assert values == [b"value"]
        assert isinstance(receipt, StoreRefused)
        assert receipt.detail.endswith(" WRONGTYPE")
        assert (guard.reads.state, guard.writes.state) == ("closed", "closed")
        assert bench.held() == before

    def test_reads_all_the_same_from_a_replica(self, bench: Bench) -> None:
        with EmbeddedServer(bench.server.binary) as replica, replica.client() as client:
            bench.client.config_set("repl-diskless-sync-delay", 0)
            client.replicaof("127.0.0.1", str(bench.server.port))
            eventually(lambda: client.info("replication")["master_link_status"] == "up")
            store = RedisStore(replica.url, connect_s=PATIENT_S)
            guard = guarded(store)
            values, receipt = guard.carry(["{ns:00}:k"], parcel(), Budget(PATIENT_S))
            store.close()
        assert values == [b"value"]
        assert isinstance(receipt, StoreRefused)
        assert receipt.detail.endswith(" READONLY")
        assert (guard.reads.state, guard.writes.state) == ("closed", "open")

    def test_ships_once_to_a_server_that_has_lost_its_scripts(self, bench: Bench) -> None:
        bench.carry(b"one")
        bench.client.script_flush()
        assert bench.carry(b"two") == ([b"value", None], 2)
        assert bench.entries() == [b"one", b"two"]

    def test_reads_all_the_same_where_no_time_is_left_for_the_script(self, bench: Bench) -> None:
        replies: list[Any] = []

        def carried() -> bool:
            """Return whether the reply came within a moment of grace, which a server on a loaded machine may miss."""
            bench.store.read(["{ns:00}:k"], running())
            bench.client.script_flush()
            with suppress(StoreUnavailable):
                replies.append(bench.store.carry(["{ns:00}:k"], parcel(), running(-0.01)))
            return bool(replies)

        eventually(carried)
        ((values, receipt),) = replies
        assert values == [b"value"]
        assert isinstance(receipt, StoreRefused)
        assert receipt.detail.endswith(" NOSCRIPT")
        assert bench.entries() == []

    def test_raises_what_the_look_up_met(self, bench: Bench) -> None:
        with user(bench, "~{ns:s}*") as store, pytest.raises(StoreRefused, match="NOPERM"):
            store.carry(["{ns:00}:k"], parcel(), running())

    def test_does_not_notice_a_server_that_was_restarted_between_two_calls(self) -> None:
        for binary in [None, REDIS_62] if REDIS_62 else [None]:
            with EmbeddedServer(binary) as server:
                store = RedisStore(server.url, connect_s=PATIENT_S)
                for _ in range(2):
                    assert store.carry(["k"], parcel(), running()) == ([None], 1)
                    server.kill()
                    server.start()
                store.close()


STRANGE_REPLIES = {
    "no number": b"*1\r\n$1\r\nv\r\n$3\r\nabc\r\n",
    "a number that counts nothing": b"*1\r\n$1\r\nv\r\n:0\r\n",
    "a negative number": b"*1\r\n$1\r\nv\r\n:-2\r\n",
    "nothing": b"*1\r\n$1\r\nv\r\n$-1\r\n",
    "too many values": b"*2\r\n$1\r\nv\r\n$1\r\nw\r\n:1\r\n",
    "the two in the other order": b":1\r\n*1\r\n$1\r\nv\r\n",
}


def first_reply_only(proxy: FaultProxy, client: socket.socket, reply: bytes) -> bool:
    return faults.send(client, reply[: reply.rindex(b":")])


class TestFaults:
    @pytest.fixture
    def proxy(self, bench: Bench) -> Iterator[FaultProxy]:
        with FaultProxy(bench.server.port) as between:
            yield between

    @pytest.fixture
    def far(self, bench: Bench, proxy: FaultProxy) -> Iterator[RedisStore]:
        """A store behind the proxy, connected and with its script loaded."""
        store = RedisStore(proxy.url, connect_s=PATIENT_S)
        store.carry(["{ns:00}:k"], parcel(b"first"), running())
        yield store
        store.close()

    @pytest.mark.parametrize("name", STRANGE_REPLIES)
    def test_a_reply_of_a_wrong_shape_drops_the_connection(
        self, bench: Bench, proxy: FaultProxy, far: RedisStore, name: str
    ) -> None:
        connects, proxy.fault = proxy.connects, faults.answers(STRANGE_REPLIES[name])
        with pytest.raises(StoreUnavailable) as caught:
            far.carry(["{ns:00}:k"], parcel(), running())
        assert (caught.value.detail, caught.value.reason) == ("ValueError", "redis_error")
        proxy.fault = faults.healthy
        assert far.read(["{ns:00}:k"], running()) == [b"value"]
        assert proxy.connects == connects + 1

    @pytest.mark.parametrize(
        "fault",
        [faults.dropped, faults.half_then_silence, faults.half_then_end, faults.half_then_reset, first_reply_only],
        ids=lambda fault: fault.__name__,
    )
    def test_a_reply_that_is_lost_is_raised_and_the_batch_may_be_sent_again(
        self, bench: Bench, proxy: FaultProxy, far: RedisStore, fault: faults.Fault
    ) -> None:
        def took_s() -> float:
            began = time.perf_counter()
            with pytest.raises(StoreUnavailable) as caught:
                far.carry(["{ns:00}:k"], parcel(), running(0.05))
            assert caught.value.reason == "redis_connection_failed"
            return time.perf_counter() - began

        proxy.fault = fault
        assert any(took_s() < 0.5 for _ in range(5))  # but for a stall, the first time
        proxy.fault = faults.healthy
        values, receipt = far.carry(["{ns:00}:k"], parcel(), running())
        assert values == [b"value"]
        assert bench.entries()[0] == b"first"
        assert set(bench.entries()[1:]) == {BATCH}
        assert receipt == len(bench.entries())

    def test_a_commit_whose_reply_was_lost_is_not_applied_again(
        self, bench: Bench, proxy: FaultProxy, far: RedisStore
    ) -> None:
        inbox = Inbox(far, KEYS)
        inbox.commit(commit_of(inbox.head(1, running())._replace(entries=[])), running())  # the script is there now
        head = inbox.head(10**6, running())
        once = commit_of(head, values=[(MINUTES, "60", b"counted once")])
        proxy.fault = faults.dropped
        with pytest.raises(StoreUnavailable):
            inbox.commit(once, running(0.05))
        proxy.fault = faults.healthy
        eventually(lambda: not bench.entries())
        bench.client.hset(MINUTES, "60", b"what another has made of it")
        bench.ship()
        assert inbox.commit(once, running()) is False
        assert bench.client.hget(MINUTES, "60") == b"what another has made of it"
        assert bench.entries() == [BATCH]


class TestShip:
    def test_returns_how_many_entries_wait_until_the_cap(self, bench: Bench) -> None:
        assert [bench.ship(b"x" * 40, cap_bytes=100) for _ in range(4)] == [1, 2, REFUSED, REFUSED]
        assert bench.head().waiting_bytes == 80

    def test_refuses_a_batch_that_is_longer_than_the_cap(self, bench: Bench) -> None:
        assert bench.ship(b"x" * 101, cap_bytes=100) == REFUSED
        assert bench.held() == {}

    def test_notes_since_when_the_inbox_has_not_been_empty(self, bench: Bench) -> None:
        bench.ship()
        first = bench.head()
        assert 0 <= first.now_ms - first.since_ms < 60_000
        assert abs(first.now_ms - time.time() * 1000) < 60_000
        eventually(lambda: bench.head().now_ms > first.since_ms)
        bench.ship()
        assert bench.head().since_ms == first.since_ms

    def test_raises_what_the_server_says(self, bench: Bench) -> None:
        guard = guarded(bench.store)
        with full(bench.client), pytest.raises(StoreRefused, match="OOM"):
            guard.ship(parcel(), Budget(PATIENT_S))
        assert (guard.reads.state, guard.writes.state) == ("closed", "open")
        assert bench.held() == {}

    def test_counts_from_nothing_where_the_entries_were_lost(self, bench: Bench) -> None:
        bench.ship(b"x" * 90, cap_bytes=100)
        bench.client.delete(KEYS.inbox)
        assert bench.ship(b"x" * 90, cap_bytes=100) == 1
        assert bench.head().waiting_bytes == 90

    def test_goes_on_where_the_state_was_lost_or_spoilt(self, bench: Bench) -> None:
        bench.ship()
        for spoil in (lambda: bench.client.delete(KEYS.state), lambda: bench.client.hset(KEYS.state, "bytes", "many")):
            spoil()
            assert bench.ship() > 1
            assert bench.head().waiting_bytes == len(BATCH)

    def test_is_refused_if_other_entries_lie_where_those_that_go_did(self, bench: Bench) -> None:
        bench.ship()
        head = bench.head()
        bench.client.lset(KEYS.inbox, 0, b"newer")
        assert not bench.commit(commit_of(head, values=[(MINUTES, "60", b"v")]))
        assert bench.client.lrange(KEYS.inbox, 0, -1) == [b"newer"]
        assert not bench.client.exists(MINUTES)

    def test_leaves_keys_that_last(self, bench: Bench) -> None:
        bench.ship()
        bench.commit(commit_of(bench.head(), seen=[(PROCESS, 1, 9)], values=[(MINUTES, "60", b"v")]))
        assert {bench.client.ttl(key) for key in bench.client.keys("{ns:s}*")} == {-1}


def commit_of(head: Head, **changes: Any) -> Commit:
    """Return a commit that takes the entries of *head* and changes nothing else."""
    size_bytes = sum(map(len, head.entries))
    commit = Commit(head.turn, len(head.entries), size_bytes, None, [], [], [])._replace(**changes)
    return commit._replace(last=head.entries[commit.entries - 1] if 0 < commit.entries <= len(head.entries) else b"")


class TestHead:
    def test_of_an_empty_inbox_is_empty(self, bench: Bench) -> None:
        head = bench.head()
        assert head[:5] == (b"", [], 0, 0, 0)
        assert abs(head.now_ms - time.time() * 1000) < 60_000

    def test_is_the_oldest_entries_up_to_a_limit(self, bench: Bench) -> None:
        for n in range(50):
            bench.ship(b"%099d" % n)
        for limit_bytes, count in ((10**6, 50), (1_000, 10), (150, 1), (1, 1)):
            head = bench.head(limit_bytes)
            assert head.entries == [b"%099d" % n for n in range(count)]
            assert (head.waiting, head.waiting_bytes) == (50, 50 * 99)

    def test_goes_on_after_an_offset(self, bench: Bench) -> None:
        for n in range(5):
            bench.ship(b"%d" % n)
        assert bench.head(2, offset=3).entries == [b"3", b"4"]
        assert bench.head(2, offset=5).entries == []
        assert bench.head(2, offset=5).waiting == 5

    def test_of_a_state_that_was_lost_is_read_all_the_same(self, bench: Bench) -> None:
        for n in range(5):
            bench.ship(b"%d" % n)
        bench.client.delete(KEYS.state)
        assert bench.head().entries == [b"0", b"1", b"2", b"3", b"4"]
        assert bench.head().waiting_bytes == 0

    @pytest.mark.parametrize("key", [KEYS.inbox, KEYS.state])
    def test_of_a_stranger_s_key_is_refused(self, bench: Bench, key: str) -> None:
        bench.client.set(key, b"a stranger's")
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            bench.head()


class TestCommit:
    def test_writes_records_marks_processes_and_takes_the_entries(self, bench: Bench) -> None:
        for data in (b"one", b"two", b"three"):
            bench.ship(data)
        head = bench.head()._replace(entries=[b"one", b"two"])
        values = [(MINUTES, "60", b"a"), (TOTALS, "shout", b"b"), (MINUTES, "120", b"c")]
        seen = [(PROCESS, 7, 1_000), (OTHER, 2**53, 2_000)]
        assert bench.commit(commit_of(head, since_ms=1_234, seen=seen, aside=[b"two"], values=values)) is True
        assert bench.inbox.hash(MINUTES, running()) == {b"60": b"a", b"120": b"c"}
        assert bench.inbox.hash(TOTALS, running()) == {b"shout": b"b"}
        assert bench.inbox.seen([PROCESS, b"?" * 16, OTHER], running()) == [7, 0, 2**53]
        assert dict(bench.client.zrange(KEYS.ends, 0, -1, withscores=True)) == {PROCESS: 1_000, OTHER: 2_000}
        assert bench.inbox.aside(10, running()) == [b"two"]
        after = bench.head()
        assert after[1:5] == ([b"three"], 1, 5, 1_234)
        assert after.turn not in (head.turn, b"")

    def test_leaves_an_empty_inbox_without_an_age(self, bench: Bench) -> None:
        bench.ship()
        assert bench.commit(commit_of(bench.head(), entry_bytes=3, since_ms=1_234))
        assert bench.head()[1:5] == ([], 0, 0, 0)

    def test_leaves_the_age_if_it_is_told_none(self, bench: Bench) -> None:
        bench.ship()
        bench.ship()
        head = bench.head(1)
        assert bench.commit(commit_of(head))
        assert bench.head()[2:5] == (1, len(BATCH), head.since_ms)

    def test_takes_no_entry_that_came_after_the_head(self, bench: Bench) -> None:
        bench.ship(b"counted")
        head = bench.head()
        bench.ship(b"later")
        assert bench.commit(commit_of(head)) is True
        assert bench.entries() == [b"later"]
        assert bench.head().waiting_bytes == 5

    def test_is_applied_once(self, bench: Bench) -> None:
        for data in (b"one", b"two"):
            bench.ship(data)
        once = commit_of(bench.head(1), values=[(MINUTES, "60", b"v")])
        assert bench.commit(once) is True
        before = bench.held()
        assert bench.commit(once) is False
        assert bench.held() == before

    def test_of_one_of_two_that_read_the_same_is_refused(self, bench: Bench) -> None:
        bench.ship(b"one")
        bench.ship(b"two")
        first, second = bench.head(), bench.head()
        assert bench.commit(commit_of(second, values=[(MINUTES, "60", b"second")])) is True
        assert bench.commit(commit_of(first, values=[(MINUTES, "60", b"first")])) is False
        assert bench.client.hget(MINUTES, "60") == b"second"

    def test_is_refused_if_the_entries_are_gone(self, bench: Bench) -> None:
        bench.ship()
        head = bench.head()
        bench.client.lpop(KEYS.inbox)
        before = bench.held()
        assert bench.commit(commit_of(head, values=[(MINUTES, "60", b"v")])) is False
        assert bench.held() == before

    def test_of_nothing_takes_a_turn(self, bench: Bench) -> None:
        assert bench.commit(commit_of(bench.head())) is True
        assert len(bench.head().turn) == 8

    @pytest.mark.parametrize("count", [1, 49, 50, 51, 100, 101, 800])
    def test_takes_any_number_of_values(self, bench: Bench, count: int) -> None:
        """The script hands on a hundred words at once."""
        values = [(KEYS.records(f"op{n % 3}", "hour"), str(n), b"v%d" % n) for n in range(count)]
        seen = [(b"%016d" % n, n + 1, n) for n in range(count)]
        aside = [b"%d" % n for n in range(count)]
        assert bench.commit(commit_of(bench.head(), values=values, seen=seen, aside=aside))
        found = bench.inbox.fetch([(key, [field]) for key, field, _ in values], running())
        assert found == [[value] for _, _, value in values]
        assert bench.inbox.seen([process for process, _, _ in seen], running()) == list(range(1, count + 1))
        assert bench.client.zcount(KEYS.ends, 0, count) == count
        assert bench.inbox.aside(1_000, running()) == aside[-MAX_ASIDE:]

    def test_keeps_the_newest_entries_aside(self, bench: Bench) -> None:
        for n in range(0, 150, 50):
            bench.commit(commit_of(bench.head(), aside=[b"%d" % m for m in range(n, n + 50)]))
        assert bench.inbox.aside(1_000, running()) == [b"%d" % n for n in range(50, 150)]
        assert bench.inbox.aside(2, running()) == [b"148", b"149"]
        assert bench.inbox.aside(0, running()) == []

    @pytest.mark.parametrize("role", ["inbox", "state", "seen", "ends", "aside", "records"])
    def test_writes_nothing_where_a_stranger_s_key_is_in_the_way(self, bench: Bench, role: str) -> None:
        bench.ship()
        head = bench.head()
        key = TOTALS if role == "records" else getattr(KEYS, role)
        bench.client.delete(key)
        bench.client.set(key, b"a stranger's")
        before = bench.held()
        values = [(MINUTES, "60", b"a"), (TOTALS, "shout", b"b")]
        with pytest.raises(StoreRefused) as caught:
            bench.commit(commit_of(head, seen=[(PROCESS, 1, 9)], aside=[b"x"], values=values))
        assert caught.value.detail == f"WRONGTYPE {role}"
        assert caught.value.scope == "none"
        assert bench.held() == before

    def test_is_taken_whole_by_a_full_server(self, bench: Bench) -> None:
        for _ in range(20):
            bench.ship(os.urandom(1_000))
        head = bench.head()
        values = [(MINUTES, str(n), os.urandom(1_000)) for n in range(300)]
        with full(bench.client):
            applied = bench.commit(commit_of(head, seen=[(PROCESS, 1, 9)], aside=[b"x"], values=values))
            assert bench.inbox.sweep(100, 10, running()) == 1
            assert bench.inbox.drop_fields(MINUTES, ["0", "1"], running()) == 2
        assert applied is True
        assert bench.entries() == []
        assert bench.client.hlen(MINUTES) == 298
        assert bench.inbox.aside(5, running()) == [b"x"]

    @pytest.mark.parametrize("command", ["hset", "hdel", "ltrim", "zadd", "rpush", "type", "llen", "hget"])
    def test_counts_nothing_where_the_user_may_not_do_one_of_its_steps(self, bench: Bench, command: str) -> None:
        bench.ship()
        before = bench.held()
        with user(bench, "~*", f"-{command}") as store, pytest.raises(StoreRefused) as caught:
            Inbox(store, KEYS).commit(
                commit_of(bench.head(), seen=[(PROCESS, 1, 9)], aside=[b"x"], values=[(MINUTES, "60", b"a")]), running()
            )
        assert caught.value.detail.endswith(" NOPERM")
        after = bench.held()
        if command == "rpush":  # the turn has changed by then, which costs one more look
            assert bench.head().turn
            del before[KEYS.state.encode()], after[KEYS.state.encode()]
        assert after == before


class TestRecords:
    def test_fetch_returns_each_field_in_order(self, bench: Bench) -> None:
        bench.commit(commit_of(bench.head(), values=[(MINUTES, "60", b"a"), (TOTALS, "shout", b"b")]))
        wanted = [(MINUTES, ["120", "60"]), (TOTALS, []), (TOTALS, ["shout"]), ("{ns:s}:absent", ["f"])]
        assert bench.inbox.fetch(wanted, running()) == [[None, b"a"], [], [b"b"], [None]]
        assert bench.inbox.fetch([], running()) == []
        assert bench.inbox.fetch([(TOTALS, [])], running()) == [[]]
        assert bench.inbox.seen([], running()) == []

    def test_fetch_takes_thousands_of_fields(self, bench: Bench) -> None:
        bench.client.hset(MINUTES, mapping={str(n): f"v{n}" for n in range(5_000)})
        (found,) = bench.inbox.fetch([(MINUTES, [str(n) for n in range(5_000)])], running())
        assert found == [b"v%d" % n for n in range(5_000)]

    def test_seen_takes_what_is_no_number_for_none(self, bench: Bench) -> None:
        bench.client.hset(KEYS.seen, mapping={b"a": b"-3", b"b": b"many", b"c": b"9" * 5_000, b"d": b"4"})
        assert bench.inbox.seen([b"a", b"b", b"c", b"d"], running()) == [0, 0, 0, 4]

    def test_hash_of_an_absent_key_is_empty(self, bench: Bench) -> None:
        assert bench.inbox.hash(KEYS.workers, running()) == {}

    def test_sweep_forgets_whose_end_has_passed_a_few_at_a_time(self, bench: Bench) -> None:
        seen = [(b"%016d" % n, 1, 1_000 + n) for n in range(10)]
        bench.commit(commit_of(bench.head(), seen=seen))
        assert [bench.inbox.sweep(1_005.5, 4, running()) for _ in range(3)] == [4, 2, 0]
        assert bench.inbox.seen([process for process, _, _ in seen], running()) == [0] * 6 + [1] * 4
        assert bench.client.zcard(KEYS.ends) == 4

    def test_drop_fields_counts_what_was_there(self, bench: Bench) -> None:
        bench.client.hset(MINUTES, mapping={str(n): "v" for n in range(1_200)})
        assert bench.inbox.drop_fields(MINUTES, [str(n) for n in range(-50, 1_199)], running()) == 1_199
        assert bench.inbox.hash(MINUTES, running()) == {b"1199": b"v"}
        assert bench.inbox.drop_fields(MINUTES, [], running()) == 0

    def test_swap_sets_only_what_still_is_as_it_was_read(self, bench: Bench) -> None:
        def swap(old: bytes | None, new: bytes) -> bool:
            return bench.inbox.swap(KEYS.alerts, "slow", old, new, running())

        assert [swap(b"x", b"y"), swap(None, b""), swap(None, b"b"), swap(b"", b"c"), swap(b"", b"d")] == [
            *(False, True, False),
            *(True, False),
        ]
        assert bench.inbox.hash(KEYS.alerts, running()) == {b"slow": b"c"}

    def test_what_a_stranger_s_key_hides_is_refused(self, bench: Bench) -> None:
        for key in (KEYS.seen, KEYS.ends, KEYS.aside, MINUTES):
            bench.client.set(key, b"a stranger's")
        calls: list[Callable[[], Any]] = [
            lambda: bench.inbox.seen([PROCESS], running()),
            lambda: bench.inbox.sweep(1, 1, running()),
            lambda: bench.inbox.aside(1, running()),
            lambda: bench.inbox.hash(MINUTES, running()),
            lambda: bench.inbox.drop_fields(MINUTES, ["f"], running()),
            lambda: bench.inbox.swap(MINUTES, "f", None, b"v", running()),
        ]
        for call in calls:
            with pytest.raises(StoreRefused, match="WRONGTYPE"):
                call()


def test_no_step_holds_the_server_up_for_five_milliseconds(bench: Bench) -> None:
    """Each of them a few times, at its largest: what the server itself calls slow is not there each time."""
    bench.inbox.sweep(0, 1, running())
    bench.commit(commit_of(bench.head(1)._replace(entries=[])))  # the server knows its scripts from here on
    bench.client.config_set("slowlog-log-slower-than", 5_000)
    rounds = [slow_steps(bench, rep) for rep in range(ROUNDS)]
    while (always := set.intersection(*rounds)) and len(rounds) < 10 * ROUNDS:  # the server waits for its turn, too
        rounds.append(slow_steps(bench, len(rounds)))
    assert not always


def slow_steps(bench: Bench, rep: int) -> set[bytes]:
    """Take each step once; return those that were slow."""
    for _ in range(250):
        bench.ship(os.urandom(4_000))
    bench.client.slowlog_reset()
    head = bench.head(10**6)
    assert len(head.entries) == 250
    values = [(KEYS.records(f"op{n % 5}", "minute"), f"{rep}-{n}", os.urandom(1_000)) for n in range(800)]
    seen = [(os.urandom(16), 1, 1) for _ in range(250)]
    assert bench.commit(commit_of(head, seen=seen, values=values))
    assert bench.inbox.sweep(2, 500, running()) == 250
    return {entry["command"][:60] for entry in bench.client.slowlog_get(100)}
