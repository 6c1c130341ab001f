"""Tasks for workers that are asked, switched and watched; the worker sends events if it is started with -E."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

from aicache_tasks import CachedTask, CachePolicy, install
from aicache_tasks.events import DELAY_S
from aicache_tasks.reports import inspect

inspect.FRESH_S = 0.2  # type: ignore[misc] # tests wait for figures

app = Celery("remote", set_as_current=False)
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    aicache_strict=True,
    aicache_budget_ms=5000,
    aicache_connect_ms=5000,
    aicache_ship_after_s=0.1,
    aicache_rollup_period_s=0,
)
install(app)


def model() -> dict[str, str]:
    return {"model": os.environ.get("MODEL", "first")}


@app.task(base=CachedTask, cache=CachePolicy(operation="shout", ttl="10m", version=3, vary=model), shared=False)
def shout(text: str) -> str:
    return text.upper()


@app.task(base=CachedTask, cache=CachePolicy(operation="open", redact=False, ttl="10m"), shared=False)
def opened(text: str, *, size: int | list[Any] = 1) -> str:
    return text * size if isinstance(size, int) else text


@app.task(base=CachedTask, cache=CachePolicy(operation="figures"), shared=False)
def figures(text: str) -> str:
    return text


@app.task(base=CachedTask, cache=CachePolicy(operation="again"), bind=True, shared=False)
def again(self: Any, text: str, countdown: float = 0.2) -> str:
    if self.request.retries < 1:
        raise self.retry(countdown=countdown)
    return text


@app.task(base=CachedTask, cache=CachePolicy(operation="twice"), bind=True, shared=False)
def twice(self: Any, text: str) -> str:
    if self.request.retries < 1:
        self.retry(countdown=0.2, throw=False)
    return text


class SlowEnd(CachedTask):
    """Ends long after its body, and not before its gate is open."""

    abstract = True

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        time.sleep(DELAY_S + 1)
        while not Path(args[0]).exists():
            time.sleep(0.01)


@app.task(base=SlowEnd, cache=CachePolicy(operation="slow end"), shared=False)
def slow_end(gate: str) -> str:
    return gate


@app.task(base=CachedTask, cache=CachePolicy(operation="gated"), shared=False)
def gated(gate: str) -> str:
    while not Path(gate).exists():
        time.sleep(0.01)
    return gate


@app.task(base=CachedTask, cache=CachePolicy(operation="fails"), shared=False)
def fails(text: str) -> str:
    raise ValueError("no text of the task's in here")


@app.task(base=CachedTask, shared=False)
def plain(text: str) -> str:
    return text
