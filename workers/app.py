"""
The Celery application: ``celery -A workers.app worker``.

In: the environment.   Out: `app`, with `workers.tasks` and the cache installed. Connects to nothing yet.

====================================  ===============================================================================
``CELERY_BROKER_URL``                 the broker; Celery itself gives this name precedence
``AICACHE_BROKER_URL``                the broker, where the name above belongs to another application
``CELERY_RESULT_BACKEND``             where results go; by default the broker's server
``AICACHE_URL``                       the cache's server, required; every other ``AICACHE_*`` setting counts too
``AICACHE_ENGINE``                    what answers: ``extractive``, ``local``, ``openai``, or ``package.module:factory``
====================================  ===============================================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from celery import Celery

from aicache_tasks import install

DEFAULT_BROKER: Final = "redis://127.0.0.1:6379/0"
SOFT_LIMIT_S: Final = 120
HARD_LIMIT_S: Final = 150


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the application that *environ* describes.

    >>> make_app({"AICACHE_BROKER_URL": "memory://"}).conf.task_acks_late
    True
    """
    broker = environ.get("CELERY_BROKER_URL") or environ.get("AICACHE_BROKER_URL") or DEFAULT_BROKER
    app = Celery("workers", include=["workers.tasks"], set_as_current=False)
    app.conf.update(
        broker_url=broker,
        result_backend=environ.get("CELERY_RESULT_BACKEND") or broker,
        broker_connection_retry_on_startup=True,
        # Data only: a pickle in a message or a result would run code.
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        # It would put prompts beside the results.
        result_extended=False,
        result_expires=3600,
        # A task whose worker dies is sent again. An answer that was already stored is then not paid for again.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        # A hit takes a millisecond, an AI call many seconds: a reserved hit must not wait behind somebody's AI call.
        worker_prefetch_multiplier=1,
        # Both well below the hour after which a Redis broker sends an unfinished task again.
        task_soft_time_limit=SOFT_LIMIT_S,
        task_time_limit=HARD_LIMIT_S,
        # For a beat that runs with redbeat: where it keeps schedule and lock, and how soon another takes over.
        redbeat_redis_url=broker,
        redbeat_lock_timeout=30,
        beat_max_loop_interval=5,
    )
    if url := environ.get("AICACHE_URL"):
        app.conf.aicache_url = url
    install(app)
    return app


app: Final = make_app(os.environ)
app.set_default()  # in every thread, `workers.tasks` are this application's: they are shared tasks
app.set_current()
