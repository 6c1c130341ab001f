"""Tasks that are given prompts, for a worker whose cache logs all it can."""

from __future__ import annotations

import logging
from typing import Any

import redis
from celery import Celery
from celery.signals import after_setup_logger, worker_init

from aicache_tasks import CachedTask, CachePolicy, events, install

app = Celery("canary", set_as_current=False)
app.conf.update(
    task_send_sent_event=True,
    worker_prefetch_multiplier=4,
    broker_connection_retry_on_startup=True,
    aicache_budget_ms=5000,
    aicache_connect_ms=5000,
    aicache_ship_after_s=0.1,
    aicache_rollup_period_s=0,
)
install(app)


@worker_init.connect
def tell_soon(sender: Any, **_: Any) -> None:
    """States do not matter here. Not at import, nor for any worker: tests import this module too."""
    if sender.app is app:
        events.DELAY_S = 0.5  # type: ignore[misc]


@after_setup_logger.connect
def log_all(**_: Any) -> None:
    logging.getLogger("aicache_tasks").setLevel(logging.DEBUG)


def raises(given: Any) -> Any:
    raise KeyError(str(given))


POLICY = CachePolicy(ttl="10m", tags=("doc:{text}",), tenant=lambda given: given["text"])


def cached(**policy: Any) -> Any:
    return app.task(base=CachedTask, cache=CachePolicy(**policy), shared=False)


@app.task(base=CachedTask, cache=POLICY, shared=False)
def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"answer": text.upper(), **more}


@app.task(base=CachedTask, cache=POLICY, bind=True, shared=False)
def retries(self: Any, text: str) -> str:
    if self.request.retries < 1:
        raise self.retry(countdown=0.1)
    return text.upper()


@app.task(base=CachedTask, cache=POLICY, shared=False)
def fails(text: str) -> str:
    raise ValueError("nothing of the text")


@app.task(base=CachedTask, cache=POLICY, shared=False)
def quotes(text: str) -> str:
    raise ValueError(f"cannot read {text}")


@app.task(base=CachedTask, cache=POLICY, shared=False)
def waits(text: str, gate: str) -> str:
    with redis.Redis.from_url(app.conf.result_backend, socket_timeout=None) as client:  # redis-py 8 has one of 5 s
        client.blpop([gate])
    return text.upper()


@cached(vary=raises)
def varies(text: str) -> str:
    return text.upper()


@cached(tenant=raises)
def tenants(text: str) -> str:
    return text.upper()


@cached(validate=raises)
def validates(text: str) -> str:
    return text.upper()


@cached(store_if=raises)
def stores_if(text: str) -> str:
    return text.upper()


@app.task(shared=False)
def unknown_elsewhere(text: str) -> str:
    return text
