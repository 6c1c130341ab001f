"""A process that rolls up again and again, in children that end by `os._exit` before or after any call of the inbox.

In: URL, seed, how likely each death is; it ends when stdin does.   Out: what happened, counted, as JSON on stdout.
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import aicache_tasks.stores.redis  # noqa: F401 - and its driver: hundreds of children would load them each anew
from aicache_tasks import summaries
from aicache_tasks.errors import StoreError
from aicache_tasks.summaries import Summaries
from tests.caches import live_cache

CALLS = ("head", "seen", "fetch", "commit", "sweep", "hash", "drop_fields", "swap")
DIED, TROUBLE = 17, 18


def main(url: str, seed: int, chance: float) -> None:
    happened = Counter[str]()
    summaries.PIECE_BYTES = 12_000  # type: ignore[misc]  # many small commits
    read, write = os.pipe()
    while not select.select([sys.stdin], [], [], 0)[0]:
        happened["runs"] += 1
        if (child := os.fork()) == 0:
            roll_up(url, seed + 1000 * happened["runs"], chance, write)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        happened[{0: "finished", DIED: "deaths", TROUBLE: "trouble"}.get(ended, f"ended {ended}")] += 1
    os.close(write)
    with os.fdopen(read, "rb") as said:
        happened.update({1: "commits", 0: "conflicts"}[byte] for byte in said.read())
    json.dump(happened, sys.stdout)


def roll_up(url: str, seed: int, chance: float, write: int) -> None:
    """Roll up in a child; does not return."""
    code = 1
    try:
        made, rng = Summaries(live_cache(url).parts), random.Random(seed)
        for name in CALLS:
            setattr(made.inbox, name, deadly(name, getattr(made.inbox, name), rng, chance, write))
        made.roll_up()
        code = 0
    except StoreError:
        code = TROUBLE
    finally:
        os._exit(code)


def deadly(name: str, call: Callable[..., Any], rng: random.Random, chance: float, write: int) -> Callable[..., Any]:
    def called(*given: Any, **named: Any) -> Any:
        if rng.random() < chance:
            os._exit(DIED)
        answer = call(*given, **named)
        if name == "commit" and given[0].entries:
            os.write(write, bytes([answer]))
        if rng.random() < chance:
            os._exit(DIED)
        return answer

    return called


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
