"""Tasks that are given secrets, for a worker in a process of its own; the cache's URL has a password."""

from __future__ import annotations

import os
from typing import Any

import redis
from celery import Celery

from aicache_tasks import CachedTask, CachePolicy, install

app = Celery("redaction", set_as_current=False)
app.conf.update(
    task_send_sent_event=True,
    worker_send_task_events=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    aicache_url=os.environ["CACHE_URL_WITH_PASSWORD"],
    aicache_secret="the secret of the keys",
    aicache_budget_ms=5000,
    aicache_connect_ms=5000,
    redbeat_redis_url=os.environ["CACHE_URL_WITH_PASSWORD"],
)
install(app)
POLICY = CachePolicy(ttl="10m", tags=("doc:{text}",), tenant=lambda given: given["text"])


@app.task(base=CachedTask, cache=POLICY, shared=False)
def hidden(text: str, *, gate: str | None = None) -> dict[str, Any]:
    if gate is not None:
        with redis.Redis.from_url(app.conf.result_backend) as client:
            client.rpush(f"{gate}:entered", 1)
            client.blpop([gate], timeout=20)
    return {"answer": text.upper()}


@app.task(base=CachedTask, cache=POLICY, bind=True, shared=False)
def hidden_retry(self: Any, text: str) -> str:
    if self.request.retries < 1:
        raise self.retry(countdown=0)
    return text.upper()


@app.task(base=CachedTask, cache=POLICY, shared=False)
def hidden_failure(text: str) -> str:
    raise ValueError("no text of the task's in here")


@app.task(base=CachedTask, cache=CachePolicy(redact=False), shared=False)
def shown(text: str) -> str:
    return text.upper()


@app.task(base=CachedTask, shared=False)
def plain(text: str) -> str:
    return text.upper()
