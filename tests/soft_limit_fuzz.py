"""
A process of its own whose cache reads are interrupted at random; prints what it counted.

    python -m tests.soft_limit_fuzz URL wrapped|unknown hiredis|pure READS
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from typing import Any

from aicache_tasks.signals import SOFT_LIMITS
from aicache_tasks.stores.base import Budget
from aicache_tasks.stores.guard import Breaker, Guard
from aicache_tasks.stores.redis import RedisStore

KEYS = [f"k{n}" for n in range(64)]
PAUSE_S = (0.0005, 0.003)


class Limit(Exception):  # noqa: N818 - an event
    """What the handler raises, as a worker's child does for a soft limit."""


class HandlerTimeout(TimeoutError):  # noqa: N818 - an event
    """The same as a class that socket code catches."""


class Fuzz:
    def __init__(self, url: str, parser: str) -> None:
        self.store = RedisStore(url, connect_s=5.0)
        if parser == "pure":
            from redis._parsers import _RESP2Parser

            self.store._options["parser_class"] = _RESP2Parser
        self.guard = Guard(self.store, reads=Breaker("reads"), writes=Breaker("writes"))
        self.counts = dict.fromkeys(("right", "wrong", "errors", "limits"), 0)
        self.done, self.random = threading.Event(), random.Random(7)

    def handler(self, number: int, frame: Any) -> None:
        raise self.random.choice((Limit, HandlerTimeout))

    def shoot(self, number: int) -> None:
        while not self.done.wait(self.random.uniform(*PAUSE_S)):
            os.kill(os.getpid(), number)

    def work(self) -> None:
        while not self.done.is_set():
            sum(range(500))
            time.sleep(0.0005)

    def read(self, reads: int) -> None:
        for n in range(reads):
            asked = [KEYS[n % 64], KEYS[(n * 7) % 64], "absent"]
            try:
                got = self.guard.read(asked, Budget(5.0))
                self.counts["right" if got == [value(asked[0]), value(asked[1]), None] else "wrong"] += 1
            except (Limit, HandlerTimeout):
                self.counts["limits"] += 1
            except Exception as error:  # noqa: BLE001 - whatever else comes is what the test looks for
                self.counts["errors"] += 1
                sys.stderr.write(f"{type(error).__name__} {error}\n")


def value(key: str) -> bytes:
    return key.encode() * 500


def main(url: str, handler: str, parser: str, reads: str) -> None:
    fuzz = Fuzz(url, parser)
    fuzz.guard.replace([(key, value(key), 0) for key in KEYS], Budget(5.0))
    sys.unraisablehook = lambda unraisable: None  # a handler that raises inside a `__del__`
    number = signal.SIGUSR1 if handler == "wrapped" else signal.SIGUSR2
    signal.signal(number, lambda *_: None)
    threads = [threading.Thread(target=fuzz.shoot, args=(number,)), threading.Thread(target=fuzz.work)]
    for thread in threads:
        thread.start()
    left = int(reads)
    while left > 0:
        before = sum(fuzz.counts.values())
        try:
            signal.signal(number, fuzz.handler)
            fuzz.read(min(left, 500))
        except (Limit, HandlerTimeout):  # outside a call
            pass
        while True:  # nothing is interrupted that nobody catches
            try:
                signal.signal(number, signal.SIG_IGN)
                break
            except (Limit, HandlerTimeout):
                pass
        left -= max(sum(fuzz.counts.values()) - before, 1)
    fuzz.done.set()
    for thread in threads:
        thread.join()
    fuzz.guard.close()
    counted = {**fuzz.counts, "noted": SOFT_LIMITS.noted, "reads": fuzz.guard.reads.state}
    sys.stdout.write(json.dumps(counted))


if __name__ == "__main__":
    main(*sys.argv[1:])
