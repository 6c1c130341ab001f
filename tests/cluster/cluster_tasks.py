"""
Cached tasks whose answers anyone can check: each is a pure function of its arguments.

In: nothing.   Out: shared tasks, their bodies as plain functions, and the configuration of both sides.

Shared, so that they belong to the worker's app and to the app that pytest-celery makes for each test. A body notes
that it ran in a Redis list of the result server, where the notes outlive every process of a test.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import redis
from celery import current_app, current_task, shared_task

from aicache_tasks import CachedTask, CachePolicy

CONFIG: dict[str, Any] = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "task_publish_retry_policy": {"max_retries": 200, "interval_start": 0.05, "interval_step": 0, "interval_max": 0.1},
    "worker_prefetch_multiplier": 1,
    "worker_lost_wait": 0.3,
    "broker_connection_retry_on_startup": True,
    "broker_transport_options": {
        "visibility_timeout": 3,
        "unacked_restore_interval": 0.5,
        "unacked_restore_throttle": 1,
    },
    "aicache_strict": True,
    # Patient on a busy machine, and soon back after a restart: the tests count which calls are answered by the cache.
    "aicache_budget_ms": 5000,
    "aicache_connect_ms": 5000,
    "aicache_breaker_min_s": 0.1,
    "aicache_breaker_max_s": 0.5,
}
BODY_S = 0.01


def note(*args: Any) -> None:
    """Write down that the current task's body runs with *args*."""
    with redis.Redis.from_url(current_app.conf.result_backend) as client:
        client.rpush("bodies", f"{current_task.name}{args!r}")


def count(text: str, unit: str = "words") -> dict[str, Any]:
    """Return how many *unit* the text has."""
    return {"unit": unit, "count": len(text.split() if unit == "words" else text)}


def reverse(text: str) -> str:
    """Return the text backwards."""
    return text[::-1]


def powers(base: int, upto: int) -> list[int]:
    """Return the powers of *base* from 0 to *upto*."""
    return [base**exponent for exponent in range(upto + 1)]


def _run(body: Callable[..., Any], *args: Any) -> Any:
    note(*args)
    time.sleep(BODY_S)  # the model's time, so that a kill has something to interrupt
    return body(*args)


class DiesOnceStored(CachedTask):
    """Kills its process after the answer is stored and before Celery hears of it, the first time only."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answer = super().__call__(*args, **kwargs)
        with redis.Redis.from_url(self.app.conf.result_backend) as client:
            first = client.set(f"died:{self.request.id}", os.getpid(), nx=True)
        if first:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


@shared_task(base=CachedTask, cache=CachePolicy(operation="count", ttl="10m"))
def count_task(text: str, unit: str = "words") -> dict[str, Any]:
    return dict(_run(count, text, unit))


@shared_task(base=CachedTask, cache=CachePolicy(operation="reverse", ttl="10m"))
def reverse_task(text: str) -> str:
    return str(_run(reverse, text))


@shared_task(base=CachedTask, cache=CachePolicy(operation="powers", ttl="10m"))
def powers_task(base: int, upto: int) -> list[int]:
    return list(_run(powers, base, upto))


@shared_task(base=DiesOnceStored, cache=CachePolicy(operation="dies-once", ttl="10m"))
def dies_once_stored_task(text: str) -> str:
    return str(_run(reverse, text))


@shared_task(base=CachedTask, cache=CachePolicy(operation="gated", ttl="10m"))
def gated_task(text: str) -> str:
    """Wait until the test pushes to the list ``gate``."""
    note(text)
    with redis.Redis.from_url(current_app.conf.result_backend) as client:
        client.blpop(["gate"], timeout=60)
    return reverse(text)
