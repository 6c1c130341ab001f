"""What becomes of the samples that wait when a process ends, a child of it, or a cache."""

from __future__ import annotations

import gc
import logging
import math
import queue
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aicache_tasks.batches import Batch
from aicache_tasks.outbox.background import WAITING
from aicache_tasks.summaries import ENDED_FOR_S, Summaries
from aicache_tasks.testing import EmbeddedServer
from tests.caches import live_cache
from tests.faults import eventually
from tests.inbox import INBOX, STATE, batches, rows

ROOT = Path(__file__).parent.parent
BEGINNING = """
import atexit, gc, multiprocessing, os, sys
import billiard
from aicache_tasks import AIResponseCache
from aicache_tasks.settings import Settings

def made(**settings):
    patient = {"budget_ms": 5000, "connect_ms": 5000, "slow_operation_ms": 20000, "slow_key_ms": 20000}
    return AIResponseCache(sys.argv[1], ship=True, settings=Settings(**{**patient, "ship_after_s": 600.0, **settings}))

def look_up(cache, count):
    for n in range(count):
        cache.get_cached_response("text", "shout", {"n": n})

def child(cache, count):
    look_up(cache or made(), count)
"""


def ended(url: str, program: str, folder: Path) -> str:
    """Run *program* to its end; return what it said."""
    path = folder / "program.py"
    path.write_text(
        BEGINNING + "\nif __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in program.splitlines())
    )
    command = [sys.executable, "-W", "ignore", str(path), url]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=50, check=False, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def lookups(found: list[Batch]) -> int:
    return sum(row[2] == "get" for row in rows(found))


class TestProcess:
    def test_what_a_function_looks_up_that_atexit_calls_last_is_sent(
        self, valkey: EmbeddedServer, client: Any, tmp_path: Path
    ) -> None:
        program = """
box = []
atexit.register(lambda: look_up(box[0], 5))
box.append(made())
look_up(box[0], 5)
"""
        assert ended(valkey.url, program, tmp_path) == ""
        assert lookups(batches(client)) == 10

    def test_what_it_gives_up_to_a_full_inbox_is_told_beside_it(
        self, valkey: EmbeddedServer, client: Any, tmp_path: Path
    ) -> None:
        client.rpush(INBOX, b"another's")
        client.hset(STATE, "bytes", 2**20)
        said = ended(valkey.url, "look_up(made(inbox_bytes=2**20), 500)", tmp_path)
        assert said.count("500 timings of this process are lost as it ends: the inbox is full") == 1
        assert client.hget(STATE, "lost") == b"500"

    def test_what_it_gives_up_to_a_full_server_is_told_too(self, own_server: EmbeddedServer, tmp_path: Path) -> None:
        with own_server.client() as client:
            client.config_set("maxmemory", 1)
            said = ended(own_server.url, "look_up(made(), 20)", tmp_path)
            assert client.hget(STATE, "lost") == b"20"
        assert said.count("timings wait in this process: OutOfMemoryError OOM") == 1
        # It tries as long as it may, and its last try may have had no time left for the server's no.
        assert said.count("20 timings of this process are lost as it ends: ") == 1

    def test_what_had_no_room_is_told_by_its_last_batch(
        self, valkey: EmbeddedServer, client: Any, tmp_path: Path
    ) -> None:
        ended(valkey.url, "cache = made(); look_up(cache, 3); cache.parts.outbox._drop(2)", tmp_path)
        assert [(len(batch.rows), batch.lost, batch.last) for batch in batches(client)] == [(1, 2, True)]

    @pytest.mark.parametrize("samples", ["batched", "durable"])
    def test_it_says_that_it_ends_so_that_its_number_need_not_be_remembered(
        self, valkey: EmbeddedServer, client: Any, tmp_path: Path, samples: str
    ) -> None:
        program = f"cache = made(samples={samples!r}); look_up(cache, 3); cache.parts.outbox.flush()"
        assert ended(valkey.url, program, tmp_path) == ""
        found = batches(client)
        assert [batch.last for batch in found] == [False] * (len(found) - 1) + [True]
        assert found[-1].rows == []
        cache = live_cache(valkey.url)
        done = Summaries(cache.parts).roll_up()
        ((_, forgotten_s),) = client.zrange("{aicache:s}:ends", 0, -1, withscores=True)
        assert (done.samples, done.undecodable, done.lost) == (3, 0, 0)
        assert forgotten_s <= client.time()[0] + ENDED_FOR_S
        cache.close()

    def test_it_says_nothing_if_it_sent_nothing(self, valkey: EmbeddedServer, client: Any, tmp_path: Path) -> None:
        assert ended(valkey.url, "made()", tmp_path) == ""
        assert batches(client) == []


class TestChildren:
    """Children of `multiprocessing`, and of Celery's copy of it: they end without `atexit`."""

    @pytest.mark.parametrize("library", ["multiprocessing", "billiard"])
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_a_child_sends_what_waits_when_it_ends(
        self, valkey: EmbeddedServer, client: Any, tmp_path: Path, library: str, method: str
    ) -> None:
        theirs = "cache" if method == "fork" else "None"
        program = f"""
cache = made()
look_up(cache, 2)
context = {library}.get_context({method!r})
one, other = context.Process(target=child, args=({theirs}, 5)), context.Process(target=child, args=(None, 7))
for process in (one, other):
    process.start()
for process in (one, other):
    process.join()
"""
        assert ended(valkey.url, program, tmp_path) == ""
        found = batches(client)
        assert lookups(found) == 2 + 5 + 7
        assert sorted(len(batch.rows) for batch in found) == [2, 5, 7]
        assert all(batch.last for batch in found)

    def test_a_child_sends_what_waits_if_its_parent_had_no_cache(
        self, valkey: EmbeddedServer, client: Any, tmp_path: Path
    ) -> None:
        program = """
process = multiprocessing.get_context("fork").Process(target=child, args=(None, 5))
process.start()
process.join()
"""
        assert ended(valkey.url, program, tmp_path) == ""
        assert lookups(batches(client)) == 5


def is_idle(outbox: Any) -> bool:
    return not outbox.waiting and outbox._is_asleep


class Bare(queue.SimpleQueue[None]):
    """As gevent 25.4.1 has it."""

    __class_getitem__ = None


class TestCache:
    def test_one_that_was_made_before_gevent_patches_threads_stops_no_greenlet(
        self, valkey: EmbeddedServer, client: Any, tmp_path: Path
    ) -> None:
        program = """import time, gevent.monkey
cache = made(ship_after_s=0.05)
gevent.monkey.patch_all()
look_up(cache, 1)
while not cache.parts.outbox._is_asleep:  # for a minute
    time.sleep(0.01)"""
        ended(valkey.url, program, tmp_path)
        assert lookups(batches(client)) == 1

    def test_one_sends_also_where_the_queues_of_greenlets_are_of_no_type(
        self, valkey: EmbeddedServer, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(queue, "SimpleQueue", Bare)
        cache = live_cache(valkey.url, {"aicache_ship_after_s": 0.1}, ship=True)
        assert cache.get_cached_response("text", "shout") is None
        eventually(lambda: lookups(batches(client)) == 1)
        cache.parts.store.close()

    def test_one_that_is_dropped_has_its_samples_sent_and_then_goes(self, valkey: EmbeddedServer, client: Any) -> None:
        before = set(threading.enumerate())
        cache = live_cache(valkey.url, {"aicache_ship_after_s": 0.1}, ship=True)
        outbox = cache.parts.outbox
        assert outbox is not None
        outbox._not_before_s = math.inf
        assert cache.get_cached_response("text", "shout") is None
        cache.parts.store.close()
        assert outbox in WAITING
        (thread,) = set(threading.enumerate()) - before
        outbox._not_before_s = 0.0
        del cache, outbox
        gc.collect()
        eventually(lambda: lookups(batches(client)) == 1)
        eventually(lambda: gc.collect() >= 0 and not thread.is_alive())

    def test_one_that_is_dropped_while_it_has_nothing_to_send_goes_at_once(self, valkey: EmbeddedServer) -> None:
        before = set(threading.enumerate())
        cache = live_cache(valkey.url, {"aicache_ship_after_s": 0.1}, ship=True)
        outbox = cache.parts.outbox
        assert cache.get_cached_response("text", "shout") is None
        (thread,) = set(threading.enumerate()) - before
        eventually(partial(is_idle, outbox))
        cache.parts.store.close()
        del cache, outbox
        eventually(lambda: gc.collect() >= 0 and not thread.is_alive())

    def test_one_whose_samples_are_sent_is_not_kept(self, valkey: EmbeddedServer) -> None:
        cache = live_cache(valkey.url, {"aicache_ship_after_s": 600.0}, ship=True)
        cache.get_cached_response("text", "shout")
        outbox = cache.parts.outbox
        assert outbox is not None
        assert outbox in WAITING
        cache.close()
        assert outbox not in WAITING

    def test_samples_that_are_given_up_keep_nothing(self, refused_url: str, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING)
        cache = live_cache(refused_url, {"aicache_ship_after_s": 600.0}, ship=True)
        cache.get_cached_response("text", "shout")
        outbox = cache.parts.outbox
        assert outbox is not None
        assert not outbox.flush(0.1, last=True)
        assert outbox not in WAITING
        for _ in range(3):
            cache.get_cached_response("text", "shout")
        assert (outbox.waiting, outbox.lost) == (0, 4)
        assert caplog.text.count("lost as it ends") == 1
