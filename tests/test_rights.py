"""The rights that the documents name are enough."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from aicache_tasks import AIResponseCache, alerts
from aicache_tasks.summaries import Summaries
from aicache_tasks.testing import EmbeddedServer
from tests.caches import live_cache

OPERATIONS = Path(__file__).parent.parent / "docs" / "operations.md"


def documented() -> list[str]:
    (found,) = re.findall(r"`~\{<namespace>:\*([^`]+)`", OPERATIONS.read_text())
    return found.split()


def use_all(cache: AIResponseCache) -> None:
    """Do what workers, the roll-up and operators do; raise what the server refuses."""
    cache.cache_response("t", "shout", {}, "T", tags=["a"])
    cache.cache_response("u", "shout", {}, "U", tags=["a"], ttl="2h")
    assert cache.get_cached_response("t", "shout", {}, tags=["a"]) == "T"
    assert cache.invalidate("t", "shout", {}) is True
    cache.invalidate_by_tag("a")
    assert cache.get_cache_stats()["redis"]["status"] == "connected"
    assert cache.purge() >= 0
    assert cache.parts.outbox is not None
    assert cache.parts.outbox.flush()
    summaries = Summaries(cache.parts)
    assert summaries.roll_up().samples > 0
    assert [change.alert for change in alerts.changes(summaries)] == ["memory"]
    assert summaries.totals()["shout"].hits == 1
    assert len(summaries.workers()) == 1


@pytest.fixture
def limited(each_server: EmbeddedServer) -> Iterator[AIResponseCache]:
    """A cache whose user has the documented rights; nothing is in the server yet, no script either."""
    with each_server.client() as client:
        client.script_flush()
        client.zadd("{aicache:s}:ends", {b"a process that ended": 1})
        client.execute_command("ACL", "SETUSER", "limited", "reset", "on", "nopass", "~{aicache:*", *documented())
        url = f"redis://limited:any@127.0.0.1:{each_server.port}/0"
        cache = live_cache(url, {"aicache_memory_warning_bytes": 1}, ship=True)
        yield cache
        cache.close()
        client.execute_command("ACL", "DELUSER", "limited")


def test_they_are_enough(limited: AIResponseCache) -> None:
    use_all(limited)
