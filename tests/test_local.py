"""L1: what a process keeps in memory, for how long, and what has to make room. Both clocks are wound by hand."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import tracemalloc
from typing import Any

import pytest

from aicache_tasks.codec import Codec, Tokens
from aicache_tasks.frame import Opened
from aicache_tasks.local import OVERHEAD_BYTES, LocalCache, LocalEntry
from aicache_tasks.records import EntryMeta

NOON_MS = 1_700_000_000_000
ROOM = 10**9


class Clocks:
    """A monotonic clock and a wall clock; time passes on both, `set_wall_back` moves one."""

    def __init__(self) -> None:
        self.monotonic_s = 5000.0
        self.wall_ms = NOON_MS

    def sleep(self, seconds: float) -> None:
        self.monotonic_s += seconds
        self.wall_ms += int(seconds * 1000)

    def set_wall_back(self, seconds: float) -> None:
        self.wall_ms -= int(seconds * 1000)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def cache(clocks: Clocks, max_entries: int = 100, max_bytes: int = ROOM) -> LocalCache:
    return LocalCache(max_entries, max_bytes, clock=lambda: clocks.monotonic_s, now_ms=lambda: clocks.wall_ms)


def entry(raw: bytes = b"\xc0", *, ttl_s: float = 60.0, tags: int = 0, now_ms: int = NOON_MS) -> LocalEntry:
    tokens = Tokens(os.urandom(8), os.urandom(8), tuple((os.urandom(16), os.urandom(8)) for _ in range(tags)))
    end_ms = now_ms + int(ttl_s * 1000)
    return LocalEntry(raw, Opened(tokens, now_ms, end_ms, end_ms, len(raw), len(raw) + 94, 0, b"", b"\x90"), 0.0)


def test_an_entry_is_kept_until_its_end(clocks: Clocks) -> None:
    l1, kept = cache(clocks), entry(ttl_s=10)
    l1.put("k", kept)
    clocks.sleep(9.9)
    assert l1.get("k") is kept
    clocks.sleep(0.1)
    assert l1.get("k") is None
    assert (len(l1), l1.bytes) == (0, 0)


def test_setting_the_wall_clock_back_prolongs_nothing(clocks: Clocks) -> None:
    l1 = cache(clocks)
    l1.put("k", entry(ttl_s=10))
    clocks.sleep(10)
    clocks.set_wall_back(3600)
    assert l1.get("k") is None


def test_setting_the_wall_clock_forward_ends_an_entry(clocks: Clocks) -> None:
    l1 = cache(clocks)
    l1.put("k", entry(ttl_s=10))
    clocks.set_wall_back(-10)
    assert l1.get("k") is None


def test_reading_an_entry_does_not_prolong_it(clocks: Clocks) -> None:
    l1 = cache(clocks)
    l1.put("k", entry(ttl_s=10))
    for _ in range(9):
        clocks.sleep(1)
        assert l1.get("k") is not None
    clocks.sleep(1)
    assert l1.get("k") is None


def test_an_entry_past_its_end_is_not_kept_and_forgets_what_it_replaces(clocks: Clocks) -> None:
    l1 = cache(clocks)
    l1.put("k", entry())
    l1.put("k", entry(ttl_s=0))
    assert l1.get("k") is None
    assert l1.evictions == 0


def test_what_was_never_put_is_absent(clocks: Clocks) -> None:
    assert cache(clocks).get("k") is None


def test_a_later_put_replaces_the_entry_and_its_bytes(clocks: Clocks) -> None:
    l1 = cache(clocks)
    l1.put("k", entry(b"1" * 500))
    before = l1.bytes
    l1.put("k", entry(b"2" * 300))
    found = l1.get("k")
    assert found is not None
    assert found.raw == b"2" * 300
    assert l1.bytes == before - 200


def test_the_least_recently_used_entry_makes_room(clocks: Clocks) -> None:
    l1 = cache(clocks, max_entries=3)
    for key in "abc":
        l1.put(key, entry())
    l1.get("a")
    l1.put("d", entry())
    assert [key for key in "abcd" if l1.get(key)] == ["a", "c", "d"]
    assert l1.evictions == 1


def test_updating_a_key_in_a_full_cache_evicts_nobody_else(clocks: Clocks) -> None:
    l1 = cache(clocks, max_entries=3)
    for key in "abc":
        l1.put(key, entry())
    l1.put("a", entry(b"new"))
    assert [key for key in "abc" if l1.get(key)] == ["a", "b", "c"]
    assert l1.evictions == 0


def test_a_cache_of_one_entry_keeps_the_last(clocks: Clocks) -> None:
    l1 = cache(clocks, max_entries=1)
    for key in ("a", "a", "b", "b"):
        l1.put(key, entry(key.encode()))
        assert len(l1) == 1
    found = l1.get("b")
    assert found is not None
    assert found.raw == b"b"
    assert l1.get("a") is None


def test_a_cache_of_no_entries_keeps_nothing(clocks: Clocks) -> None:
    l1 = cache(clocks, max_entries=0)
    l1.put("a", entry())
    assert l1.get("a") is None
    assert (len(l1), l1.bytes, l1.drop("a"), l1.clear(), l1.evictions) == (0, 0, False, 0, 0)


def test_bytes_are_bounded_and_counted_with_key_and_overhead(clocks: Clocks) -> None:
    l1 = cache(clocks, max_bytes=3 * (OVERHEAD_BYTES + 1000))
    for n in range(10):
        l1.put(f"key {n}", entry(b"x" * 900))
    assert len(l1) == 3
    assert l1.bytes <= 3 * (OVERHEAD_BYTES + 1000)
    assert l1.bytes >= 3 * (OVERHEAD_BYTES + 900 + len("key n"))
    assert l1.evictions == 7


def test_an_entry_larger_than_the_cache_is_not_kept_and_evicts_nobody_else(clocks: Clocks) -> None:
    l1 = cache(clocks, max_bytes=10_000)
    l1.put("small", entry(b"x"))
    l1.put("big", entry(b"y"))
    l1.put("big", entry(b"y" * 10_000))
    assert l1.get("big") is None
    assert l1.get("small") is not None
    assert l1.evictions == 0


def test_dropping_and_clearing_say_what_went(clocks: Clocks) -> None:
    l1 = cache(clocks)
    for key in "abc":
        l1.put(key, entry())
    assert (l1.drop("a"), l1.drop("a"), l1.get("a")) == (True, False, None)
    assert l1.clear() == 2
    assert (len(l1), l1.bytes) == (0, 0)


def test_utilization_is_entries_and_their_limit(clocks: Clocks) -> None:
    l1 = cache(clocks, max_entries=50)
    assert l1.utilization == "0/50"
    l1.put("a", entry())
    assert l1.utilization == "1/50"


def test_the_count_of_bytes_follows_any_sequence_of_calls(clocks: Clocks) -> None:
    pick, l1 = random.Random(11), cache(clocks, max_entries=20, max_bytes=40_000)
    for _ in range(5000):
        key = f"k{pick.randrange(40)}"
        act = pick.randrange(6)
        if act < 3:
            sized = entry(bytes(pick.randrange(6000)), ttl_s=pick.choice([1, 30]), now_ms=clocks.wall_ms)
            l1.put(key, sized)
        elif act == 3:
            l1.drop(key)
        elif act == 4:
            l1.get(key)
        else:
            clocks.sleep(0.2)
        assert len(l1) <= 20
        assert 0 <= l1.bytes <= 40_000
    for n in range(40):
        l1.drop(f"k{n}")
    assert (len(l1), l1.bytes) == (0, 0)


@pytest.mark.parametrize("tags", [0, 5])
def test_counted_bytes_are_near_what_python_takes(clocks: Clocks, tags: int) -> None:
    l1 = cache(clocks, max_entries=10_000)
    gc.collect()
    tracemalloc.start()
    try:
        for n in range(500):
            l1.put(f"{{aicache:2f}}:v1:summarize:{n:040x}", entry(os.urandom(2000), tags=tags, ttl_s=60 + n / 10))
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.75 <= l1.bytes / taken <= 1.25


def test_hits_share_no_object(clocks: Clocks) -> None:
    codec, l1 = Codec(), cache(clocks)
    raw = codec.dump({"items": [1, 2]})
    frame = codec.seal(
        raw,
        digest=bytes(32),
        tokens=Tokens(bytes(8), bytes(8)),
        created_ms=NOON_MS,
        fresh_ms=NOON_MS + 1000,
        expires_ms=NOON_MS + 1000,
        meta=EntryMeta("m"),
    )
    opened = codec.open(frame.data, bytes(32))
    l1.put("k", LocalEntry(codec.inflate(opened), opened._replace(body=b""), clocks.monotonic_s))

    def hit() -> Any:
        found = l1.get("k")
        assert found is not None
        return codec.load(found.raw)

    first = hit()
    first["items"].append("changed by a caller")
    assert hit() == {"items": [1, 2]}


def test_threads_share_a_cache(clocks: Clocks) -> None:
    l1, wrong = cache(clocks, max_entries=30, max_bytes=60_000), []

    def work(seed: int) -> None:
        pick = random.Random(seed)
        for _ in range(3000):
            key = f"k{pick.randrange(60)}"
            found = l1.get(key)
            if found is not None and found.raw[:8].rstrip(b"\0") != key.encode():
                wrong.append(key)
            l1.put(key, entry(key.encode().ljust(pick.randrange(8, 3000), b"\0")))
            if pick.random() < 0.1:
                l1.drop(key)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(l1) <= 30
    assert l1.bytes <= 60_000
    l1.clear()
    assert l1.bytes == 0


def test_a_child_forked_while_a_thread_was_changing_the_cache_starts_with_an_empty_one(clocks: Clocks) -> None:
    l1, changing, done = cache(clocks), threading.Event(), threading.Event()
    l1.put("k", entry())

    def change() -> None:
        with l1._lock:
            changing.set()
            done.wait(30)

    thread = threading.Thread(target=change)
    thread.start()
    assert changing.wait(10)
    child = os.fork()
    if not child:
        signal.alarm(10)  # ends a child that waits for ever
        l1.after_fork()
        empty = (l1.get("k"), len(l1), l1.bytes, l1.evictions) == (None, 0, 0, 0)
        l1.put("k", entry())
        os._exit(0 if empty and l1.get("k") is not None and l1.clear() == 1 else 1)
    status = os.waitpid(child, 0)[1]
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0
    assert l1.get("k") is not None


@pytest.mark.timeout(20)
def test_a_signal_handler_may_look_up_while_its_thread_is_in_a_call() -> None:
    """The clocks are read in the middle of a call; what they do here, a handler does."""
    clocks, dice, is_inside = Clocks(), random.Random(7), False
    keys = "abcdef"

    def act() -> None:
        key = dice.choice(keys)
        what = dice.randrange(6)
        if what < 3:
            l1.put(key, entry(bytes(dice.randrange(2000))))
        elif what == 3:
            l1.drop(key)
        elif what == 4:
            l1.get(key)
        else:
            l1.clear()

    def interrupted() -> float:
        nonlocal is_inside
        if not is_inside and dice.random() < 0.7:
            is_inside = True
            act()
            is_inside = False
        clocks.monotonic_s += 1.0
        return clocks.monotonic_s

    l1 = LocalCache(4, 5000, clock=interrupted, now_ms=lambda: clocks.wall_ms)
    for _ in range(5000):
        act()
        assert l1.bytes == sum(slot.cost_bytes for slot in l1._slots.values()) <= 5000
        assert len(l1) <= 4


@pytest.mark.timeout(20)
def test_real_signals_in_the_middle_of_calls_leave_entries_and_bytes_in_step(clocks: Clocks) -> None:
    l1, dice, kept = cache(clocks, 4, 5000), random.Random(7), [entry(bytes(size)) for size in (10, 500, 1500, 3000)]

    def act(*_: object) -> None:
        l1.put(dice.choice("abcdef"), dice.choice(kept))
        l1.get(dice.choice("abcdef"))
        if dice.random() < 0.1:
            l1.drop("a") or l1.clear()

    before = signal.signal(signal.SIGALRM, act)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    try:
        for _ in range(30_000):
            act()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert l1.bytes == sum(slot.cost_bytes for slot in l1._slots.values()) <= 5000
