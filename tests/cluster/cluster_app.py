"""The app that the cluster's worker processes run; servers come from the environment."""

from __future__ import annotations

from celery import Celery

from aicache_tasks import install
from tests.cluster import cluster_tasks

app = Celery("cluster")
app.conf.update(cluster_tasks.CONFIG)
install(app)


@app.task(name="pytest_celery.vendors.worker.tasks.ping")
def ping() -> str:
    """Answer `CeleryTestSetup.ready(ping=True)`."""
    return "pong"
