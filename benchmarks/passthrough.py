"""
Row 5: what does `CachedTask` cost a task that has no policy?

    python -m benchmarks.passthrough

As a worker runs it (``build_tracer``) and as a direct call, next to the same function under Celery's own ``Task``.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.app.trace import build_tracer, reset_worker_optimizations, setup_worker_optimizations

from aicache_tasks import CachedTask
from benchmarks import _run
from benchmarks._run import Options, Row

TARGET_US = 0.7


def measure(options: Options) -> list[Row]:
    """Return row 5 through the tracer and through a direct call."""
    app = Celery("passthrough", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_ignore_result = True
    stock, ours = (_task(app, name, base) for name, base in (("stock", app.Task), ("ours", CachedTask)))
    rows = [_row("direct call", lambda: stock(1, 2), lambda: ours(1, 2), options)]
    setup_worker_optimizations(app)  # as each worker does; a tracer without them calls tasks in another way
    try:
        rows.append(_row("worker's tracer", _traced(app, stock), _traced(app, ours), options))
    finally:
        reset_worker_optimizations(app)
    return rows


def _row(how: str, stock: Callable[[], Any], ours: Callable[[], Any], options: Options) -> Row:
    contenders = {"celery.Task": _run.looped(stock), "CachedTask": _run.looped(ours)}
    with _run.pinned("same"):
        taken = _run.interleave(contenders, options, how).cpu
    found = _run.interval(_run.less(taken["CachedTask"], taken["celery.Task"]))
    what = f"CachedTask without a policy, {how}"
    return Row(5, what, "same", "µs", *found, TARGET_US, detail=_run.medians(taken))


def _task(app: Celery, name: str, base: Any) -> Any:
    @app.task(base=base, name=name, shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    app.finalize()
    return app.tasks[name]


def _traced(app: Celery, task: Any) -> Callable[[], Any]:
    trace = build_tracer(task.name, task, app=app)
    request = {"id": "1", "delivery_info": {}, "is_eager": False}
    return lambda: trace("1", [1, 2], {}, request)


if __name__ == "__main__":
    _run.main(measure, rounds=500, calls=100)
