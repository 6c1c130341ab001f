"""What is stored comes back equal; what must not come back does not."""

from __future__ import annotations

import datetime as dt
import decimal
import hashlib
import os
import pickle
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from aicache_tasks import MISS, AIResponseCache, CachedTask, CacheEntry, CachePolicy, DirectiveError
from aicache_tasks.policy import PolicyRegistry
from aicache_tasks.testing import EmbeddedServer
from tests.caches import ANSWER, PATIENT, STRICT, TEXT, Clock, gets, lifetime_ms, live_cache, sets, wound_cache
from tests.faults import eventually

ZLIB = STRICT.updated({**PATIENT, "aicache_compression": "zlib"})


@pytest.mark.parametrize(
    "answer",
    [
        None,
        False,
        0,
        "",
        [],
        {},
        "text with \ud800 a lone surrogate",
        {"nested": [{"deep": (1, 2.5, True, None)}], "bytes": b"\x00\xff"},
        {1: "one", (2, 3): "pair"},
        {dt.datetime(2026, 3, 29, 1, 30, tzinfo=dt.UTC), decimal.Decimal("1.00")},
        2**70,
    ],
    ids=repr,
)
def test_an_answer_comes_back_equal_and_of_the_same_type(valkey: EmbeddedServer, answer: Any) -> None:
    """C4, F16: falsy answers too."""
    cache = live_cache(valkey.url)
    cache.cache_response(TEXT, "summarize", {}, answer)
    entry = cache.lookup(TEXT, "summarize", {})
    assert isinstance(entry, CacheEntry)
    assert entry.value == answer
    assert type(entry.value) is type(answer)


@pytest.mark.parametrize("size", [2_000, 100_000, 1_000_000])
@pytest.mark.parametrize("compression", ["zstd", "zlib", "none"])
def test_large_answers_come_back_equal(valkey: EmbeddedServer, size: int, compression: str) -> None:
    """S11."""
    cache = live_cache(valkey.url, {"aicache_compression": compression})
    answer = {"result": "The ferry leaves at nine. " * (size // 26)}
    cache.cache_response(TEXT, "summarize", {}, answer)
    assert cache.get_cached_response(TEXT, "summarize", {}) == answer


@pytest.mark.parametrize(
    ("given", "codec"),
    [({}, 2), ({"compression_threshold": 10**6}, 0), ({"settings": ZLIB}, 1)],
    ids=["usual", "huge threshold", "zlib"],
)
def test_the_threshold_decides_what_is_compressed(valkey: EmbeddedServer, client: Any, given: Any, codec: int) -> None:
    """C9, F8: the frame's header and the sample say the same."""
    cache = AIResponseCache(valkey.url, **{"settings": STRICT.updated(PATIENT), **given})
    cache.cache_response(TEXT, "summarize", {}, {"result": "ferry " * 500})
    frame = client.get(cache.generate_cache_key(TEXT, "summarize", {}))
    assert frame[12] == codec
    assert sets(cache)[0].additional_data["compression_used"] is (codec != 0)
    assert len(cache.monitor.compression_ratios) == (codec != 0)
    assert sets(cache)[0].additional_data["cache_data_size"] == len(frame)


def test_the_level_is_the_one_that_is_set(valkey: EmbeddedServer) -> None:
    """C9."""
    sizes = []
    for level in (1, 9):
        cache = AIResponseCache(valkey.url, compression_level=level, settings=ZLIB)
        cache.cache_response(TEXT, "summarize", {"level": level}, {"result": Path(__file__).read_text()})
        sizes.append(sets(cache)[0].additional_data["cache_data_size"])
    assert sizes[1] < sizes[0]


def test_nothing_is_added_to_the_stored_answer(valkey: EmbeddedServer) -> None:
    """The body has no ``cache_hit`` and no times: a hit is the answer that was computed."""
    cache = live_cache(valkey.url)
    answer = {"cache_hit": "the task's own field", "cached_at": 7}
    cache.cache_response(TEXT, "summarize", {}, answer)
    assert cache.get_cached_response(TEXT, "summarize", {}) == answer


def test_changing_a_returned_answer_changes_no_later_hit(valkey: EmbeddedServer) -> None:
    """F7: with L1 on as well."""
    cache = live_cache(valkey.url, memory_cache_size=10)
    cache.cache_response(TEXT, "summarize", {}, {"list": [1]})
    for _ in range(3):
        found = cache.get_cached_response(TEXT, "summarize", {})
        assert found == {"list": [1]}
        found["list"].append(2)


def test_an_entry_ends_at_its_ttl(valkey: EmbeddedServer, client: Any) -> None:
    cache = live_cache(valkey.url)
    cache.cache_response(TEXT, "summarize", {}, ANSWER, ttl=60.05)
    key = cache.generate_cache_key(TEXT, "summarize", {})
    assert 0 < client.pttl(key) <= 60_050
    cache.cache_response(TEXT, "summarize", {}, ANSWER, ttl=0.05)
    eventually(lambda: not client.exists(key))


def test_a_clock_apart_makes_an_entry_expire_and_say_so() -> None:
    """``expired`` is seen when the frame's own end comes before the store's."""
    clock = Clock()
    cache = wound_cache(clock)
    cache.cache_response(TEXT, "summarize", {}, ANSWER)
    clock.wall_ms += 7_200_000
    assert cache.get_cached_response(TEXT, "summarize", {}) is None
    assert gets(cache)[-1].additional_data["reason"] == "expired"


@pytest.mark.parametrize(
    ("operation", "ttl_s"),
    [("summarize", 7200), ("sentiment", 86400), ("key_points", 7200), ("questions", 3600), ("qa", 1800), ("x", 3600)],
)
def test_each_operation_has_its_ttl(valkey: EmbeddedServer, client: Any, operation: str, ttl_s: int) -> None:
    """C6: with no jitter."""
    cache, began_s = live_cache(valkey.url), time.time()
    cache.cache_response(TEXT, operation, {}, ANSWER)
    least_ms, most_ms = lifetime_ms(client, cache.generate_cache_key(TEXT, operation, {}), began_s)
    assert least_ms - 500 < 1000 * ttl_s < most_ms + 500


def test_ttls_can_be_set_by_operation_and_jitter_shortens_them() -> None:
    """C6."""
    cache = wound_cache(Clock(), operation_ttls={"summarize": 100.0})
    cache.cache_response(TEXT, "summarize", {}, ANSWER)
    assert sets(cache)[-1].additional_data["ttl"] == 100.0
    policies = PolicyRegistry()
    policies.register("t", "summarize", CachePolicy(ttl=100, jitter=0.5))
    jittery = wound_cache(Clock(), policies=policies)
    for number in range(20):
        jittery.cache_response(TEXT, "summarize", {"n": number}, ANSWER)
    lives = {sample.additional_data["ttl"] for sample in sets(jittery)}
    assert len(lives) > 1
    assert all(50 <= life <= 100 for life in lives)


def test_version_tenant_and_vary_are_part_of_the_identity() -> None:
    """F18: a new model or prompt version misses, and the old answer is still there for the old one."""
    said = {"model": "one"}
    policies = PolicyRegistry()
    policies.register("t", "summarize", CachePolicy(version="p1", vary=lambda: said, tenant="acme"))
    cache = wound_cache(Clock(), policies=policies)
    cache.cache_response(TEXT, "summarize", {}, ANSWER)
    assert cache.get_cached_response(TEXT, "summarize", {}) == ANSWER
    assert cache.get_cached_response(TEXT, "summarize", {}, version="p1", tenant="acme") == ANSWER
    assert cache.get_cached_response(TEXT, "summarize", {}, version="p2") is None
    assert cache.get_cached_response(TEXT, "summarize", {}, tenant="other") is None
    said["model"] = "two"
    assert cache.get_cached_response(TEXT, "summarize", {}) is None
    said["model"] = "one"
    assert cache.get_cached_response(TEXT, "summarize", {}) == ANSWER


def test_the_hash_is_pluggable_by_name_and_by_constructor() -> None:
    """C5."""
    keys = {
        wound_cache(Clock(), hash_algorithm=algorithm).generate_cache_key(TEXT, "qa")
        for algorithm in ("md5", "sha1", "sha256", hashlib.sha256, "sha512", "blake2b")
    }
    assert len(keys) == 5


def test_two_questions_whose_short_hashes_collide_have_their_own_answers(valkey: EmbeddedServer) -> None:
    """F1."""
    cache = live_cache(valkey.url)
    one, two = "What happens in case 3760?", "What happens in case 51470?"
    cache.cache_response(TEXT, "qa", {}, "answer one", one)
    assert cache.get_cached_response(TEXT, "qa", {}, two) is None
    assert cache.get_cached_response(TEXT, "qa", {}, one) == "answer one"


def test_an_argument_that_cannot_be_keyed_bypasses(valkey: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
    """F19: never a failure, never a shorter key; one warning names the place and not the value."""
    cache = live_cache(valkey.url)
    secret = "a value that nobody may see"
    for _ in range(3):
        cache.cache_response(TEXT, "summarize", {"image": {"handle": _Unkeyable(secret)}}, ANSWER)
        assert cache.get_cached_response(TEXT, "summarize", {"image": {"handle": _Unkeyable(secret)}}) is None
    warnings = [r.getMessage() for r in caplog.records if "bypass" in r.getMessage()]
    assert len(warnings) == 1
    assert "image" in warnings[0]
    assert secret not in caplog.text
    assert {g.additional_data["status"] for g in gets(cache)} == {"bypass"}


class _Unkeyable:
    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return self.value


class TestHostileBytes:
    """C11, C12, F6: what lies in the server is not trusted."""

    PLANTED = (
        b"",
        b"garbage",
        b"raw:" + pickle.dumps({"result": "planted"}),
        b"compressed:" + zlib.compress(pickle.dumps({"result": "planted"})),
        b'{"result": "legacy JSON"}',
        b"\xa1\xca\x01\x01" + b"\x00" * 200,
    )

    @pytest.mark.parametrize("planted", PLANTED, ids=range(len(PLANTED)))
    def test_planted_bytes_are_a_miss_and_go(self, valkey: EmbeddedServer, client: Any, planted: bytes) -> None:
        cache = live_cache(valkey.url)
        key = cache.generate_cache_key(TEXT, "summarize", {})
        client.set(key, planted)
        assert cache.get_cached_response(TEXT, "summarize", {}) is None
        assert [g.additional_data["reason"] for g in gets(cache)] == ["corrupt"]
        assert not client.exists(key)
        cache.cache_response(TEXT, "summarize", {}, ANSWER)
        assert cache.get_cached_response(TEXT, "summarize", {}) == ANSWER

    @pytest.mark.parametrize("planted", PLANTED, ids=range(len(PLANTED)))
    def test_a_task_computes_and_one_warning_is_logged(
        self, valkey: EmbeddedServer, client: Any, planted: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        """C11: in a task, which does not notice; the log names the operation and nothing of the bytes."""
        app = Celery("planted", broker="memory://", set_as_current=False)
        app.conf.update(aicache_url=valkey.url, aicache_strict=True, **PATIENT)

        @app.task(base=CachedTask, cache=CachePolicy(operation="summarize"), name="planted", shared=False)
        def summarize(text: str) -> dict[str, Any]:
            return ANSWER

        for _ in range(3):
            client.set(summarize.cache.key(TEXT), planted)
            assert summarize(TEXT) == ANSWER
            assert (summarize.cache.last.status, summarize.cache.last.reason) == ("miss", "corrupt")
            assert summarize(TEXT) == ANSWER
            assert summarize.cache.last.status == "hit"
        # On a busy machine the monitor may call the look-ups slow.
        told = [r for r in caplog.records if r.name != "aicache_tasks.monitor" and r.thread == threading.get_ident()]
        assert [r.getMessage() for r in told] == ["aicache.corrupt 'summarize': an entry was removed"]
        app.close()

    def test_a_planted_pickle_never_runs(self, valkey: EmbeddedServer, client: Any, tmp_path: Path) -> None:
        """F6."""
        marker = tmp_path / "it ran"
        cache = live_cache(valkey.url)
        client.set(cache.generate_cache_key(TEXT, "summarize", {}), b"raw:" + pickle.dumps(_Runs(marker)))
        assert cache.get_cached_response(TEXT, "summarize", {}) is None
        assert not marker.exists()

    def test_another_keys_frame_is_never_an_answer(self, valkey: EmbeddedServer, client: Any) -> None:
        """A swapped entry proves itself foreign by its digest."""
        cache = live_cache(valkey.url)
        cache.cache_response(TEXT, "summarize", {"n": 1}, "one")
        one, two = (cache.generate_cache_key(TEXT, "summarize", {"n": n}) for n in (1, 2))
        client.set(two, client.get(one))
        assert cache.get_cached_response(TEXT, "summarize", {"n": 2}) is None
        assert not client.exists(two)
        assert cache.get_cached_response(TEXT, "summarize", {"n": 1}) == "one"

    def test_a_frame_of_a_newer_version_is_a_miss_and_stays(self, valkey: EmbeddedServer, client: Any) -> None:
        """Rolling deploys: what this version cannot read is not its to remove."""
        cache = live_cache(valkey.url)
        cache.cache_response(TEXT, "summarize", {}, ANSWER)
        key = cache.generate_cache_key(TEXT, "summarize", {})
        frame = bytearray(client.get(key))
        frame[2] = 99
        client.set(key, bytes(frame))
        assert cache.get_cached_response(TEXT, "summarize", {}) is None
        assert client.get(key) == bytes(frame)
        assert gets(cache)[-1].additional_data["reason"] == "key_not_found"

    def test_a_key_of_another_type_is_a_miss_and_is_overwritten(self, valkey: EmbeddedServer, client: Any) -> None:
        cache = live_cache(valkey.url)
        key = cache.generate_cache_key(TEXT, "summarize", {})
        client.rpush(key, "a list")
        assert cache.get_cached_response(TEXT, "summarize", {}) is None
        cache.cache_response(TEXT, "summarize", {}, ANSWER)
        assert cache.get_cached_response(TEXT, "summarize", {}) == ANSWER

    def test_every_flipped_byte_is_a_miss(self, valkey: EmbeddedServer, client: Any) -> None:
        cache = live_cache(valkey.url)
        cache.cache_response(TEXT, "summarize", {}, ANSWER)
        key = cache.generate_cache_key(TEXT, "summarize", {})
        frame = client.get(key)
        for place in range(0, len(frame), 7):
            client.set(key, frame[:place] + bytes([frame[place] ^ 0x10]) + frame[place + 1 :])
            assert cache.get_cached_response(TEXT, "summarize", {}) is None, place
        client.set(key, frame)
        assert cache.get_cached_response(TEXT, "summarize", {}) == ANSWER


class _Runs:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._marker),)


def test_no_prompt_and_no_answer_in_any_key(valkey: EmbeddedServer, client: Any) -> None:
    """F3, C3: neither text, question, options, tags nor tenant can be read from the key names."""
    cache = live_cache(valkey.url)
    words = {"text": "canarytext", "question": "canaryquestion", "option": "canaryoption", "tag": "canarytag"}
    cache.cache_response(
        words["text"], "qa", {"o": words["option"]}, ANSWER, words["question"], tags=[words["tag"]], tenant="canaryt"
    )
    names = b" ".join(client.scan_iter("*"))
    assert b"canary" not in names
    assert b":v1:qa:" in names


def test_a_validation_that_fails_keeps_the_answer_out_and_takes_a_stored_one_away() -> None:
    """``validate`` runs at the store and at each load."""
    allowed = {"good", "bad"}
    policies = PolicyRegistry()
    policies.register("t", "summarize", CachePolicy(validate=lambda value: value in allowed))
    cache = wound_cache(Clock(), policies=policies)
    cache.cache_response(TEXT, "summarize", {"n": 0}, "ugly")
    assert sets(cache)[-1].additional_data["reason"] == "validate"
    cache.cache_response(TEXT, "summarize", {"n": 1}, "bad")
    allowed.remove("bad")
    assert cache.get_cached_response(TEXT, "summarize", {"n": 1}) is None
    allowed.add("bad")
    assert cache.get_cached_response(TEXT, "summarize", {"n": 1}) is None
    cache.cache_response(TEXT, "summarize", {"n": 2}, "good")
    assert cache.get_cached_response(TEXT, "summarize", {"n": 2}) == "good"


def test_store_if_keeps_degraded_answers_out() -> None:
    """F5."""
    policies = PolicyRegistry()
    policies.register("t", "summarize", CachePolicy(store_if=lambda answer: not answer["fallback_used"]))
    cache = wound_cache(Clock(), policies=policies)
    cache.cache_response(TEXT, "summarize", {}, {"fallback_used": True})
    assert sets(cache)[-1].additional_data["reason"] == "store_if"
    assert cache.lookup(TEXT, "summarize", {}) is MISS


def test_max_age_refuses_older_entries() -> None:
    clock = Clock()
    cache = wound_cache(clock)
    cache.cache_response(TEXT, "summarize", {}, ANSWER)
    clock.wind(30)
    assert cache.lookup(TEXT, "summarize", {}, max_age=60) is not MISS
    assert cache.lookup(TEXT, "summarize", {}, max_age=10) is MISS
    assert gets(cache)[-1].additional_data["reason"] == "expired"


def test_an_entry_says_its_age_its_ttl_and_its_sizes() -> None:
    clock = Clock()
    cache = wound_cache(clock)
    cache.cache_response(TEXT, "summarize", {}, {"result": "word " * 1000})
    clock.wind(60)
    entry = cache.lookup(TEXT, "summarize", {})
    assert isinstance(entry, CacheEntry)
    assert (entry.age_s, entry.ttl_s, entry.operation, entry.source) == (60.0, 7140.0, "summarize", "redis")
    assert entry.raw_bytes > entry.stored_bytes > 0
    assert entry.key == cache.generate_cache_key(TEXT, "summarize", {})


def test_whatever_a_policys_callable_raises_nobody_fails() -> None:
    """The call bypasses; a store that bypasses is no look-up."""
    policies = PolicyRegistry()
    policies.register("t", "summarize", CachePolicy(vary=lambda call: {}["no such name"]))
    cache = wound_cache(Clock(), policies=policies, settings=STRICT.updated({"aicache_strict": False}))
    assert cache.get_cached_response(TEXT, "summarize", {}) is None
    cache.cache_response(TEXT, "summarize", {}, ANSWER)
    assert cache.invalidate(TEXT, "summarize", {}) is False
    assert [g.additional_data["status"] for g in gets(cache)] == ["bypass"]
    assert [s.additional_data["reason"] for s in sets(cache)] == ["bypass"]


@pytest.mark.parametrize("ttl", [0, -1, "x", float("nan"), True])
def test_a_lifetime_that_is_none_is_the_callers_error(ttl: Any) -> None:
    with pytest.raises(DirectiveError):
        wound_cache(Clock()).cache_response(TEXT, "summarize", {}, ANSWER, ttl=ttl)


def test_lifetimes_and_ages_may_be_written_as_people_write_them() -> None:
    clock = Clock()
    cache = wound_cache(clock)
    cache.cache_response(TEXT, "summarize", {}, ANSWER, ttl="2h5m")
    assert sets(cache)[0].additional_data["ttl"] == 7500.0
    clock.wind(120)
    assert cache.lookup(TEXT, "summarize", {}, max_age="1m") is MISS
    assert cache.lookup(TEXT, "summarize", {}, max_age="3m") is not MISS


@pytest.mark.parametrize("tags", ["doc:7", ["doc:7"], iter(["doc:7"])], ids=["text", "list", "iterator"])
def test_one_tag_may_be_given_as_text(tags: Any) -> None:
    cache = wound_cache(Clock())
    cache.cache_response(TEXT, "summarize", {}, ANSWER, tags=tags)
    cache.invalidate_by_tag("doc:7")
    assert cache.get_cached_response(TEXT, "summarize", {}) is None


def test_a_sample_is_left_by_a_look_up_that_broke() -> None:
    cache = wound_cache(Clock(), settings=STRICT.updated({"aicache_strict": False}))

    def breaks(*_: Any) -> Any:
        raise KeyError("x")

    cache.cache_response(TEXT, "summarize", {}, ANSWER)
    cache.parts.codec.open = breaks  # type: ignore[method-assign]
    cache.parts.codec.dump = breaks  # type: ignore[method-assign]
    cache.get_cached_response(TEXT, "summarize", {})
    cache.cache_response(TEXT, "summarize", {}, ANSWER)
    assert gets(cache)[-1].additional_data["reason"] == "internal_error"
    assert sets(cache)[-1].additional_data["reason"] == "internal_error"
