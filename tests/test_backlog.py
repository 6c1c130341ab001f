"""A roll-up that finds a million samples takes no more memory than one that finds few, and holds up no server."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aicache_tasks.batches import encode_batch
from aicache_tasks.records import Sample
from aicache_tasks.samplekeys import SampleKeys
from aicache_tasks.testing import EmbeddedServer

ROOT = Path(__file__).parent.parent
SAMPLES = 32
STEPS = 3
SLOW_US = 5000
ROLL_UP = """
import json, re, sys
from pathlib import Path
from aicache_tasks.summaries import Summaries
from tests.caches import live_cache

summaries = Summaries(live_cache(sys.argv[1]).parts)
done = summaries.roll_up()
steps = sum(sum(spread.count for spread in record.steps.values()) for record in summaries.totals().values())
# Not ru_maxrss, which begins with what the parent had when it forked.
peak_kib = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
json.dump([done.samples, steps, peak_kib], sys.stdout)
"""


def plant(client: Any, steps: int) -> int:
    """Put batches of hits in the inbox, over 20 minutes, and return how many samples they have."""
    rng, keys, size = random.Random(steps), SampleKeys("aicache"), 0
    count = -(-steps // STEPS // SAMPLES)
    pipe = client.pipeline(transaction=False)
    for number in range(count):
        at = time.time() - 1200 + 1200 * number / count
        hits = [
            Sample(at, f"op{number % 5}", "get", "hit", "", rng.randrange(30_000, 300_000), 300, "small", 4100, 2000,
                   rng.randrange(5_000, 40_000), rng.randrange(5_000, 40_000), rng.randrange(10**7))
            for _ in range(SAMPLES)
        ]  # fmt: skip
        data = encode_batch((number % 8).to_bytes(16, "big"), number + 1, f"celery@{number % 4}", hits)
        size += len(data)
        pipe.rpush(keys.inbox, data)
    pipe.execute()
    client.hset(keys.state, "bytes", size)
    return count * SAMPLES


def rolled_up(server: EmbeddedServer, steps: int) -> tuple[float, list[Any]]:
    """Roll up that many step samples in a process; return its peak in MiB, and what the server was slow at."""
    with server.client() as client:
        client.flushall()
        samples = plant(client, steps)
        client.config_set("slowlog-log-slower-than", SLOW_US)
        client.slowlog_reset()
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        command = [sys.executable, "-c", ROLL_UP, server.url]
        done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)[:2] == [samples, STEPS * samples]
        slow = [entry["command"][:60] for entry in client.slowlog_get(-1)]
        return json.loads(done.stdout)[2] / 1024, slow


@pytest.mark.soak
def test_a_million_waiting_samples_take_no_more_memory_and_no_slow_command(own_server: EmbeddedServer) -> None:
    few_mib, _ = rolled_up(own_server, 100_000)
    slow: list[Any] = []
    for _ in range(3):  # on a busy machine the server may have been made to wait: a slow command is slow each time
        many_mib, slow = rolled_up(own_server, 1_000_000)
        assert many_mib < few_mib + 4
        if not slow:
            break
    assert slow == []
