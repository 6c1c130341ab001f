"""
Tasks whose answers cost what their arguments say, for the ledgers of money.

In: the environment: servers, and ``AICACHE_PRICES``.   Out: the app.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from aicache_tasks import CachedTask, CachePolicy, annotate, install
from tests.tasks.bench_tasks import LoneCelery

CONFIG: dict[str, Any] = {
    "broker_connection_retry_on_startup": True,
    "aicache_strict": True,
    "aicache_samples": "durable",  # a call that has returned is in the inbox
    "aicache_budget_ms": 10_000,
    "aicache_connect_ms": 10_000,
    "aicache_rollup_period_s": 0,
}
Usage = dict[str, int]


def ask(self: Any, text: str, model: str, usage: Usage, end: str = "answer") -> str:
    """Answer, fail, or answer at the second attempt; each attempt takes the tokens."""
    annotate(model=model, usage=usage)
    if end == "fail":
        raise ValueError("as it was told to")
    if end == "retry" and self.request.retries == 0:
        raise self.retry(countdown=0)
    return text.upper()


def draft(text: str, model: str, usage: Usage, cost: float | None = None) -> str:
    """Answer, and say what it cost if that is known."""
    annotate(model=model, usage=usage, cost=cost)
    return text.title()


def make_app(**config: Any) -> Celery:
    """Return the app; servers come from *config* or the environment."""
    app = LoneCelery("money", set_as_current=False)
    app.conf.update(CONFIG, **config)
    install(app)
    app.task(base=CachedTask, cache=CachePolicy(operation="ask"), name="ask", bind=True, max_retries=2)(ask)
    app.task(base=CachedTask, cache=CachePolicy(operation="draft"), name="draft")(draft)
    return app


app = make_app()
