"""The app that the worker process of these tests runs; servers come from the environment."""

from __future__ import annotations

from tests.tasks.bench_tasks import make_app

app = make_app()
