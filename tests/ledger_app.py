"""
Tasks whose every run is written into a ledger that has nothing to do with the cache.

In: an app's configuration.   Out: the app; after each run a line in the list ``ledger`` of the result server: what
Celery's own signal saw of the call, and what can be worked out from its arguments.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import redis
from celery import Celery, signals

from aicache_tasks import CachedTask, CachePolicy, annotate, install
from tests.tasks.bench_tasks import LoneCelery

NAME = "ledger"
LEDGER = "ledger"
CONFIG: dict[str, Any] = {
    "broker_connection_retry_on_startup": True,
    "worker_prefetch_multiplier": 1,
    "aicache_strict": True,
    # A busy machine must not turn hits into faults.
    "aicache_budget_ms": 10_000,
    "aicache_connect_ms": 10_000,
    "aicache_rollup_period_s": 2,
}


def cost_of(text: str) -> float:
    """Return what an answer for *text* costs."""
    return len(text) / 1000


def condense(text: str, size: int = 10) -> dict[str, Any]:
    """Return a large answer that compresses well."""
    _note(text)
    return {"summary": text[:size] * 200, "size": size}


def grade(text: str) -> int:
    """Return a small answer."""
    _note(text)
    return len(text)


def file_away(text: str, owner: str) -> list[str]:
    """Return an answer that is invalidated by its owner's tag."""
    _note(text)
    return [owner, text[:20]]


def stumble(self: Any, text: str) -> str:
    """Fail at the first attempt, answer at the second."""
    _note(text)
    if self.request.retries == 0:
        raise self.retry(countdown=0.1)
    return text[::-1]


def fail(text: str) -> str:
    """Answer nothing, ever."""
    _note(text)
    raise ValueError("as it always does")


def _note(text: str) -> None:
    annotate(model="m-1", usage={"tokens": len(text)}, cost=cost_of(text))


def make_app(**config: Any) -> Celery:
    """Return the app; servers come from *config* or the environment."""
    app = LoneCelery(NAME, set_as_current=False)
    app.conf.update(CONFIG, **config)
    install(app)
    for body in (condense, grade, file_away, stumble, fail):
        tags = ("owner:{owner}",) if body is file_away else ()
        policy = CachePolicy(operation=body.__name__, ttl="1h", tags=tags)
        bound = {"bind": True, "max_retries": 3} if body is stumble else {}
        app.task(base=CachedTask, cache=policy, name=body.__name__, **bound)(body)
    return app


@functools.cache
def ledger(url: str) -> Any:
    """Return this process's client of the server with the ledger; its pool is safe over a fork."""
    return redis.Redis.from_url(url, decode_responses=True)


def line(info: Any, text: str, worker: str) -> str:
    """Return one run as the ledger has it."""
    known = {**info._asdict(), "text_length": len(text), "cost": cost_of(text), "worker": worker}
    known.pop("key")
    return json.dumps(known)


@signals.task_postrun.connect
def write_down(task: Any, args: Any, kwargs: Any, **_: Any) -> None:
    """Write a worker's run into the ledger; a process that runs several apps' tasks has many that are not of it."""
    info = getattr(task.request, "aicache", None)
    if info is not None and task.app.main == NAME:
        text = (*args, *kwargs.values())[0]
        ledger(task.app.conf.result_backend).rpush(LEDGER, line(info, text, task.request.hostname))


app = make_app()
