"""What every store promises, on the twin in memory, on Valkey and on the oldest Redis that is supported."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aicache_tasks import AIResponseCache
from aicache_tasks.errors import SettingsError
from aicache_tasks.stores import open_store
from aicache_tasks.stores.base import ENTRY_KIND, MAGIC, NO_FENCE, TOMBSTONE_KIND, Budget, Store
from aicache_tasks.stores.memory import MemoryStore
from aicache_tasks.stores.redis import RedisStore
from aicache_tasks.testing import EmbeddedServer

TOKEN, OTHER_TOKEN = b"\x00\r\n\xff1234", b"otherTok"
HOUR_MS = 3_600_000
NOT_LONG_MS = 60_000
Spend = Callable[..., Budget]


def frame(body: bytes = b"body", kind: int = ENTRY_KIND, token: bytes = TOKEN) -> bytes:
    return MAGIC + bytes([1, kind]) + token + body


def tombstone(token: bytes = TOKEN) -> bytes:
    return frame(b"", TOMBSTONE_KIND, token)


def put(store: Store, spend: Spend, key: str, value: bytes, ttl_ms: int = HOUR_MS) -> None:
    store.replace([(key, value, ttl_ms)], spend())


@pytest.fixture
def ttl_ms(store: Store) -> Iterator[Callable[[str], float]]:
    """Return a function of a key: its ttl in ms, -1 for ever, -2 absent, as PTTL says it."""
    if isinstance(store, MemoryStore):
        yield lambda key: _memory_ttl_ms(store, key)
        return
    with _client(store) as client:
        yield client.pttl


def _memory_ttl_ms(store: MemoryStore, key: str) -> float:
    value, ends_s = store._held.get(key, (None, 0.0))
    return -2 if value is None else -1 if ends_s == float("inf") else (ends_s - store._now_s()) * 1000


def _client(store: Store) -> Any:
    import redis

    assert isinstance(store, RedisStore)
    return redis.Redis(port=store._options["port"], protocol=2)


def let_pass(store: Store, ttl_ms: int) -> None:
    if isinstance(store, MemoryStore):
        store.now_s += ttl_ms / 1000 + 0.001
    else:
        time.sleep(ttl_ms / 1000 + 0.01)


class TestRead:
    def test_returns_each_value_in_order_and_none_for_what_is_absent(self, store: Store, spend: Spend) -> None:
        put(store, spend, "a", b"1")
        put(store, spend, "c", b"3")
        assert store.read(["a", "b", "c", "a"], spend()) == [b"1", None, b"3", b"1"]

    @pytest.mark.parametrize("value", [b"", b"\r\n", b"$-1\r\n*2\r\n", bytes(range(256)), os.urandom(300_000)], ids=len)
    def test_returns_the_very_bytes_that_were_stored(self, store: Store, spend: Spend, value: bytes) -> None:
        put(store, spend, "k", value)
        assert store.read(["k", "absent"], spend()) == [value, None]

    def test_takes_keys_beyond_ascii(self, store: Store, spend: Spend) -> None:
        put(store, spend, "{é:00}:ключ", b"v")
        assert store.read(["{é:00}:ключ"], spend()) == [b"v"]

    def test_returns_none_for_a_value_that_has_expired(self, store: Store, spend: Spend) -> None:
        put(store, spend, "k", b"v", 30)
        let_pass(store, 30)
        assert store.read(["k"], spend()) == [None]


class TestEnsure:
    def test_sets_what_is_absent_and_returns_what_is_there(self, store: Store, spend: Spend) -> None:
        put(store, spend, "b", b"old")
        assert store.ensure(["a", "b"], [b"new-a", b"new-b"], [0, 0], spend()) == [b"new-a", b"old"]
        assert store.read(["a", "b"], spend()) == [b"new-a", b"old"]

    def test_gives_the_ttl_that_was_asked_for_and_none_for_zero(
        self, store: Store, spend: Spend, ttl_ms: Callable[[str], float]
    ) -> None:
        store.ensure(["a", "b"], [b"1", b"2"], [0, HOUR_MS], spend())
        assert ttl_ms("a") == -1
        assert HOUR_MS - NOT_LONG_MS < ttl_ms("b") <= HOUR_MS

    def test_does_not_touch_the_ttl_of_what_is_there(
        self, store: Store, spend: Spend, ttl_ms: Callable[[str], float]
    ) -> None:
        put(store, spend, "a", b"1", 2 * HOUR_MS)
        store.ensure(["a"], [b"2"], [HOUR_MS], spend())
        assert ttl_ms("a") > HOUR_MS


class TestPublish:
    def test_stores_the_frame_for_its_ttl(self, store: Store, spend: Spend, ttl_ms: Callable[[str], float]) -> None:
        assert store.publish("k", frame(), HOUR_MS, NO_FENCE, [], spend()) is True
        assert store.read(["k"], spend()) == [frame()]
        assert HOUR_MS - NOT_LONG_MS < ttl_ms("k") <= HOUR_MS

    @pytest.mark.parametrize("fence", [NO_FENCE, TOKEN])
    def test_replaces_an_older_entry_of_the_same_fence(self, store: Store, spend: Spend, fence: bytes) -> None:
        put(store, spend, "k", frame(b"old", token=fence))
        assert store.publish("k", frame(b"new", token=fence), HOUR_MS, fence, [], spend())
        assert store.read(["k"], spend()) == [frame(b"new", token=fence)]

    @pytest.mark.parametrize("seen", [NO_FENCE, OTHER_TOKEN])
    def test_leaves_an_entry_that_was_stored_after_an_invalidation(
        self, store: Store, spend: Spend, seen: bytes
    ) -> None:
        """A slow body from before the invalidation comes after the new answer: the new one stays."""
        put(store, spend, "k", frame(b"new", token=TOKEN))
        assert store.publish("k", frame(b"old", token=seen), HOUR_MS, seen, [], spend()) is False
        assert store.read(["k"], spend()) == [frame(b"new", token=TOKEN)]

    @pytest.mark.parametrize("seen", [NO_FENCE, OTHER_TOKEN])
    def test_leaves_a_tombstone_that_its_look_up_did_not_see(self, store: Store, spend: Spend, seen: bytes) -> None:
        put(store, spend, "k", tombstone())
        assert store.publish("k", frame(), HOUR_MS, seen, [], spend()) is False
        assert store.read(["k"], spend()) == [tombstone()]

    def test_replaces_the_tombstone_that_its_look_up_saw(self, store: Store, spend: Spend) -> None:
        put(store, spend, "k", tombstone())
        assert store.publish("k", frame(), HOUR_MS, TOKEN, [], spend()) is True
        assert store.read(["k"], spend()) == [frame()]

    def test_knows_a_tombstone_of_any_version_and_length(self, store: Store, spend: Spend) -> None:
        newer = MAGIC + bytes([7, TOMBSTONE_KIND]) + TOKEN + b"more of it"
        put(store, spend, "k", newer)
        assert store.publish("k", frame(), HOUR_MS, OTHER_TOKEN, [], spend()) is False
        assert store.publish("k", frame(), HOUR_MS, TOKEN, [], spend()) is True

    @pytest.mark.parametrize("held", [b"", b"\xa1\xca", tombstone()[:11], b"\xa1\xcb\x01\x02" + TOKEN, b"text" * 5])
    def test_replaces_what_is_no_frame(self, store: Store, spend: Spend, held: bytes) -> None:
        put(store, spend, "k", held)
        assert store.publish("k", frame(), HOUR_MS, NO_FENCE, [], spend()) is True

    def test_raises_the_ttl_of_tag_tokens_and_never_lowers_or_makes_one(
        self, store: Store, spend: Spend, ttl_ms: Callable[[str], float]
    ) -> None:
        store.replace([("short", b"1", HOUR_MS // 2), ("long", b"2", 3 * HOUR_MS), ("endless", b"3", 0)], spend())
        store.publish("k", frame(), HOUR_MS, NO_FENCE, ["short", "long", "endless", "absent"], spend())
        assert HOUR_MS - NOT_LONG_MS < ttl_ms("short") <= HOUR_MS
        assert ttl_ms("long") > 2 * HOUR_MS
        assert ttl_ms("endless") == -1
        assert ttl_ms("absent") == -2

    def test_that_is_refused_raises_no_ttl(self, store: Store, spend: Spend, ttl_ms: Callable[[str], float]) -> None:
        store.replace([("k", tombstone(), HOUR_MS), ("tag", b"1", 1_000)], spend())
        store.publish("k", frame(), HOUR_MS, NO_FENCE, ["tag"], spend())
        assert ttl_ms("tag") <= 1_000


class TestBury:
    def test_returns_the_entry_and_the_tokens_in_force(self, store: Store, spend: Spend) -> None:
        store.replace([("k", frame(), HOUR_MS), ("t1", b"token--1", 0)], spend())
        buried = store.bury("k", tombstone(), 1_000, ["t1", "absent"], spend())
        assert buried == (frame(), [b"token--1", None])
        assert store.read(["k"], spend()) == [tombstone()]

    def test_of_an_absent_entry_leaves_a_tombstone_for_its_ttl(
        self, store: Store, spend: Spend, ttl_ms: Callable[[str], float]
    ) -> None:
        assert store.bury("k", tombstone(), HOUR_MS, [], spend()) == (None, [])
        assert HOUR_MS - NOT_LONG_MS < ttl_ms("k") <= HOUR_MS

    def test_tells_an_empty_entry_from_none(self, store: Store, spend: Spend) -> None:
        put(store, spend, "k", b"")
        assert store.bury("k", tombstone(), 1_000, [], spend()).head == b""

    def test_returns_the_first_4096_bytes_of_a_large_entry(self, store: Store, spend: Spend) -> None:
        large = frame(os.urandom(10_000))
        put(store, spend, "k", large)
        assert store.bury("k", tombstone(), 1_000, [], spend()).head == large[:4096]

    @pytest.mark.parametrize(("entry_ms", "asked_ms"), [(2 * HOUR_MS, 1_000), (1_000, 2 * HOUR_MS)])
    def test_lasts_as_long_as_the_entry_or_as_asked_whichever_is_longer(
        self, store: Store, spend: Spend, ttl_ms: Callable[[str], float], entry_ms: int, asked_ms: int
    ) -> None:
        put(store, spend, "k", frame(), entry_ms)
        store.bury("k", tombstone(), asked_ms, [], spend())
        assert HOUR_MS < ttl_ms("k") <= 2 * HOUR_MS

    def test_lasts_for_ever_in_place_of_an_entry_without_end(
        self, store: Store, spend: Spend, ttl_ms: Callable[[str], float]
    ) -> None:
        put(store, spend, "k", frame(), 0)
        store.bury("k", tombstone(), 1_000, [], spend())
        assert ttl_ms("k") == -1

    def test_twice_keeps_the_newer_token(self, store: Store, spend: Spend) -> None:
        store.bury("k", tombstone(TOKEN), HOUR_MS, [], spend())
        assert store.bury("k", tombstone(OTHER_TOKEN), HOUR_MS, [], spend()).head == tombstone(TOKEN)
        assert store.publish("k", frame(), HOUR_MS, TOKEN, [], spend()) is False


class TestDiscard:
    @pytest.mark.parametrize("size", [0, 1, 1_023, 1_024, 200_000])
    def test_removes_the_value_that_was_read_and_no_other(self, store: Store, spend: Spend, size: int) -> None:
        value = os.urandom(size)
        put(store, spend, "k", value)
        assert store.discard("k", value + b"x", spend()) is False
        assert store.discard("k", bytes(byte ^ 1 for byte in value) or b"x", spend()) is False
        assert store.read(["k"], spend()) == [value]
        assert store.discard("k", value, spend()) is True
        assert store.read(["k"], spend()) == [None]

    def test_of_an_absent_key_is_false(self, store: Store, spend: Spend) -> None:
        assert store.discard("k", b"", spend()) is False


class TestReplaceScanUnlink:
    def test_replaces_64_keys_at_once(self, store: Store, spend: Spend) -> None:
        keys = [f"{{ns:{bucket:02x}}}:t:ns" for bucket in range(64)]
        store.replace([(key, b"before", HOUR_MS) for key in keys], spend())
        store.replace([(key, key.encode(), 0) for key in keys], spend())
        assert store.read(keys, spend()) == [key.encode() for key in keys]

    def test_of_nothing_is_nothing(self, store: Store, spend: Spend) -> None:
        store.replace([], spend())
        assert store.unlink([], spend()) == 0

    def test_sets_and_clears_the_ttl(self, store: Store, spend: Spend, ttl_ms: Callable[[str], float]) -> None:
        put(store, spend, "k", b"v", HOUR_MS)
        assert 0 < ttl_ms("k") <= HOUR_MS
        put(store, spend, "k", b"v", 0)
        assert ttl_ms("k") == -1

    def test_scan_finds_every_key_of_a_prefix_and_no_other(self, store: Store, spend: Spend) -> None:
        mine = {f"{{my*ns[1]?:{n % 64:02x}}}:v1:op:{n}" for n in range(300)}
        others = {f"{{myXns1a:{n % 64:02x}}}:v1:op:{n}" for n in range(100)}
        store.replace([(key, b"v", 0) for key in mine | others], spend())
        assert scan_all(store, spend, "{my*ns[1]?:") == mine
        assert scan_all(store, spend, "{nobody:") == set()

    def test_scan_finds_every_key_also_while_those_found_are_unlinked(self, store: Store, spend: Spend) -> None:
        mine = {f"{{ns:{n % 64:02x}}}:v1:op:{n}" for n in range(3_000)}
        for bucket in range(64):
            store.replace([(key, b"v", 0) for key in mine if key.startswith(f"{{ns:{bucket:02x}}}")], spend())
        cursor, went = -1, 0
        while cursor != 0:
            cursor, found = store.scan("{ns:", max(cursor, 0), 1_000, spend())
            went += store.unlink(found, spend())
        assert went == 3_000

    def test_unlink_counts_what_was_there(self, store: Store, spend: Spend) -> None:
        store.replace([("a", b"1", 0), ("b", b"2", 0)], spend())
        assert store.unlink(["a", "absent", "b"], spend()) == 2
        assert store.read(["a", "b"], spend()) == [None, None]


def scan_all(store: Store, spend: Spend, prefix: str) -> set[str]:
    cursor, found = store.scan(prefix, 0, 50, spend())
    seen = set(found)
    while cursor:
        cursor, found = store.scan(prefix, cursor, 50, spend())
        seen |= set(found)
    return seen


def test_info_says_what_serves(store: Store, spend: Spend) -> None:
    put(store, spend, "k", b"v" * 100)
    info = store.info(spend())
    assert info.version
    assert info.keys == 1
    assert info.memory_used_bytes >= 100
    assert info.connected_clients >= 1


def test_a_closed_store_serves_the_next_call(store: Store, spend: Spend) -> None:
    put(store, spend, "k", b"v")
    store.close()
    assert store.read(["k"], spend()) == [b"v"]


class TestOtherRedisTypes:
    """A stranger's value of another type in a key's place, which only a server can hold."""

    @pytest.fixture
    def store(self, each_server: EmbeddedServer) -> Iterator[Store]:
        redis_store = RedisStore(each_server.url, connect_s=5.0)
        with _client(redis_store) as client:
            client.rpush("k", "a", "b")
        yield redis_store
        redis_store.close()

    def test_reads_as_absent(self, store: Store, spend: Spend) -> None:
        assert store.read(["k"], spend()) == [None]

    def test_is_overwritten_by_publish(self, store: Store, spend: Spend) -> None:
        assert store.publish("k", frame(), HOUR_MS, NO_FENCE, [], spend()) is True
        assert store.read(["k"], spend()) == [frame()]

    def test_is_buried(self, store: Store, spend: Spend) -> None:
        assert store.bury("k", tombstone(), HOUR_MS, ["k"], spend()).head is None
        assert store.read(["k"], spend()) == [tombstone()]

    def test_is_not_discarded(self, store: Store, spend: Spend) -> None:
        assert store.discard("k", b"a", spend()) is False

    def test_is_replaced_as_a_token(self, store: Store, spend: Spend) -> None:
        assert store.ensure(["k", "t"], [TOKEN, OTHER_TOKEN], [HOUR_MS, 0], spend()) == [TOKEN, OTHER_TOKEN]
        assert store.read(["k", "t"], spend()) == [TOKEN, OTHER_TOKEN]


class TestOpenStore:
    def test_serves_the_memory_scheme_without_a_server(self, spend: Spend) -> None:
        memory = open_store("memory://")
        put(memory, spend, "k", b"v")
        assert memory.read(["k"], spend()) == [b"v"]

    def test_is_away_where_the_driver_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """C13: look-ups miss, answers are not kept, and nobody fails."""
        for name in [name for name in sys.modules if name == "redis" or name.startswith("redis.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delitem(sys.modules, "aicache_tasks.stores.redis")
        monkeypatch.setitem(sys.modules, "redis", None)
        cache = AIResponseCache("redis://127.0.0.1:6379/0")
        cache.cache_response("t", "qa", {}, "answer")
        assert cache.get_cached_response("t", "qa", {}) is None
        last = cache.monitor.cache_operation_times[-1].additional_data
        assert (last["status"], last["reason"]) == ("error", "breaker_open")

    def test_is_an_error_where_another_module_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "aicache_tasks.stores.redis")
        monkeypatch.setitem(sys.modules, "aicache_tasks.stores.resp", None)
        with pytest.raises(ModuleNotFoundError, match=r"aicache_tasks\.stores\.resp"):
            open_store("redis://127.0.0.1:6379/0")

    def test_selects_the_database_of_the_url(self, valkey: EmbeddedServer, spend: Spend) -> None:
        urls = [valkey.url.replace("/0", "/3"), valkey.url.replace("/0", "?db=3"), valkey.url]
        stores = [open_store(url) for url in urls]
        put(stores[0], spend, "k", b"in 3")
        assert [store.read(["k"], spend()) for store in stores] == [[b"in 3"], [b"in 3"], [None]]
        for store in stores:
            store.close()

    def test_reaches_a_unix_socket_under_both_spellings(self, spend: Spend) -> None:
        with EmbeddedServer(unix=True) as server:
            urls = [f"unix://{server.socket_path}?db=2", f"redis+socket://{server.socket_path}?virtual_host=2"]
            stores = [open_store(url) for url in urls]
            put(stores[0], spend, "k", b"v")
            assert [store.read(["k"], spend()) for store in stores] == [[b"v"], [b"v"]]
            for store in stores:
                store.close()

    @pytest.mark.parametrize("url", ["redis://:secret@host:port/0", "redis://h?db=secret", "redis://h?secret=1"])
    def test_refuses_a_url_it_cannot_use_and_does_not_show_it(self, url: str) -> None:
        with pytest.raises(SettingsError, match="aicache_url") as caught:
            open_store(url)
        assert "secret" not in str(caught.value)
