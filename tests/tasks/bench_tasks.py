"""
The same tasks twice: on the stock base class (``stock.*``) and on `CachedTask` (``cached.*``).

In: an app.   Out: its tasks, by name, one namespace for each family. Every body counts its runs in Redis, where the
counts outlive the process that made them.
"""

from __future__ import annotations

import enum
import functools
import json
import time
from types import SimpleNamespace
from typing import Any

import redis
from celery import Celery, Task, shared_task, signals
from celery.exceptions import Ignore, Reject
from pydantic import BaseModel

from aicache_tasks import CachedTask, CachePolicy, annotate, install

POLICY = CachePolicy(ttl="10m")
CONFIG: dict[str, Any] = {
    "accept_content": ["json", "pickle"],
    "broker_connection_retry_on_startup": True,
    "worker_prefetch_multiplier": 1,
    "result_expires": 600,
    "aicache_strict": True,
    "aicache_budget_ms": 5000,  # the rows are about outcomes; a stalled test machine must not turn hits into errors
    "aicache_connect_ms": 5000,
}


class LoneCelery(Celery):
    """An app whose tasks are not registered with every other app of the process, as Celery's default is."""

    def task(self, *args: Any, **options: Any) -> Any:
        return super().task(*args, **{"shared": False, **options})


class Question(BaseModel):
    x: str
    size: int = 1


class Level(enum.IntEnum):
    LOW = 1


class Answer(BaseModel):
    text: str


@functools.cache
def counts(url: str) -> Any:
    """Return this process's client of the server that the counts lie on; its pool is safe over a fork."""
    return redis.Redis.from_url(url, protocol=2, decode_responses=True)


def tag(x: object) -> str:
    """Return the part of a text that names the row; tasks add to its end."""
    return str(x[0] if isinstance(x, list) else x).partition("|")[0]


def log(app: Any, family: str, x: object, line: str) -> None:
    """Write *line* into the row's log."""
    counts(app.conf.result_backend).rpush(f"log:{family}:{tag(x)}", line)


def ran(app: Any, family: str, x: object) -> int:
    """Count one run of a body of the row; return how many there were."""
    return int(counts(app.conf.result_backend).incr(f"runs:{family}:{tag(x)}"))


def make_app(name: str = "bench", **config: Any) -> Celery:
    """Return an app with both families; servers come from *config* or Celery's environment variables."""
    app = LoneCelery(name, task_cls="aicache_tasks:CachedTask", set_as_current=False)
    app.conf.update(CONFIG, **config)
    install(app)
    app.stock, app.cached = make_tasks(app, "stock"), make_tasks(app, "cached")
    app.finalize()
    return app


@signals.task_postrun.connect
def note_status(task_id: str, task: Any, **_: Any) -> None:
    """Write down the call's status as the worker saw it; ``stock`` for a task without a policy."""
    if not task.name.startswith(("stock.", "cached.")):
        return
    client, info = counts(task.app.conf.result_backend), getattr(task.request, "aicache", None)
    if info is not None:
        client.hset(f"info:{task_id}", mapping=info._asdict())
    client.rpush(f"headers:{task_id}", json.dumps(task.request.headers))
    client.rpush(f"status:{task_id}", info.status if info is not None else "stock")


def make_tasks(app: Celery, family: str) -> SimpleNamespace:
    """Return the tasks of one family by their names."""
    made = SimpleNamespace(family=family, app=app)
    kind: dict[str, Any] = {"base": CachedTask, "cache": POLICY} if family == "cached" else {"base": Task}

    def task(**options: Any) -> Any:
        def define(body: Any) -> Any:
            defined = app.task(**{"name": f"{family}.{body.__name__}", **kind, **options})(body)
            setattr(made, body.__name__, defined)
            return defined

        return define

    _define_plain(made, task)
    _define_bound(made, task)
    _define_special(made, task)
    _define_classes(made, kind)
    shared = {"stock": shared_stock, "cached": shared_cached}[family]
    made.shared = SimpleNamespace(delay=lambda *args: app.tasks[shared.name].delay(*args))
    return made


def _define_plain(made: SimpleNamespace, task: Any) -> None:  # noqa: C901 - definitions, not branches
    app, family = made.app, made.family

    @task()
    def shout(x: str, mark: str = "!") -> str:
        ran(app, family, x)
        return f"{x}|{mark}"

    @task()
    def both(x: str, y: str, *rest: str, sep: str = "-", **more: str) -> str:
        ran(app, family, x)
        return sep.join([x, y, *rest, *more.values()])

    @task()
    def collect(parts: list[str]) -> list[str]:
        ran(app, family, parts)
        return sorted(parts)

    @task()
    def constant(x: str, what: Any) -> Any:
        ran(app, family, x)
        return what

    @task()
    def pair(x: str) -> Any:
        ran(app, family, x)
        return (x, {"a": [1, 2.5, None, True]}, ("t",))

    @task()
    def unsendable(x: str) -> Any:
        ran(app, family, x)
        return object()

    @task()
    def fails(x: str) -> None:
        ran(app, family, x)
        raise KeyError("no such model")

    @task()
    def factorial(x: str, n: int) -> int:
        ran(app, family, x)
        return 1 if n < 2 else n * factorial(x, n - 1)

    @task()
    def quote(x: str) -> str:
        ran(app, family, x)
        return f"«{made.shout(x)}»"

    @task()
    def told(x: str) -> str:
        ran(app, family, x)
        annotate(model="m-1", usage={"input_tokens": 3})
        annotate(usage={"input_tokens": 4, "output_tokens": 1}, cost=0.5)
        return x


def _define_bound(made: SimpleNamespace, task: Any) -> None:  # noqa: C901 - definitions, not branches
    app, family = made.app, made.family

    @task(bind=True)
    def bound(self: Any, x: str, y: int = 1) -> dict[str, Any]:
        ran(app, family, x)
        return {"x": x, "y": y, "name": self.name.partition(".")[2], "direct": self.request.called_directly}

    @task(bind=True, max_retries=3, default_retry_delay=0)
    def third_time(self: Any, x: str) -> str:
        ran(app, family, x)
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return x

    @task(bind=True, max_retries=1)
    def never(self: Any, x: str) -> None:
        ran(app, family, x)
        raise self.retry(exc=ValueError("still no model"), countdown=0)

    @task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=False, default_retry_delay=0, max_retries=3)
    def second_time(self: Any, x: str) -> str:
        ran(app, family, x)
        if self.request.retries < 1:
            raise ConnectionError("model away")
        return x

    @task(bind=True)
    def replaced(self: Any, x: str) -> Any:
        ran(app, family, x)
        return self.replace(made.shout.s(x, mark="?"))

    @task(bind=True)
    def progresses(self: Any, x: str) -> str:
        ran(app, family, x)
        if not self.request.called_directly:
            self.update_state(state="PROGRESS", meta={"done": 1})
        return x

    @task(bind=True)
    def leaves_state(self: Any, x: str) -> None:
        ran(app, family, x)
        self.update_state(state="ELSEWHERE", meta={"where": "there"})
        raise Ignore

    @task(bind=True)
    def in_chain(self: Any, x: str) -> str:
        ran(app, family, x)
        return f"{x}|[{self.request.root_id is not None}]"


def _define_special(made: SimpleNamespace, task: Any) -> None:  # noqa: C901 - definitions, not branches
    app, family = made.app, made.family

    @task()
    def ignored(x: str) -> None:
        ran(app, family, x)
        raise Ignore

    @task(acks_late=True)
    def rejected(x: str) -> None:
        ran(app, family, x)
        raise Reject("not mine", requeue=False)

    @task(acks_late=True, reject_on_worker_lost=True)
    def late(x: str) -> str:
        ran(app, family, x)
        return x.upper()

    @task()
    def sleeps(x: str, seconds: float) -> str:
        ran(app, family, x)
        time.sleep(seconds)
        return x

    @task(ignore_result=True)
    def unread(x: str) -> str:
        ran(app, family, x)
        return x

    @task(typing=False)
    def untyped(x: str) -> str:
        ran(app, family, x)
        return x

    @task(track_started=True)
    def tracked(x: str) -> str:
        ran(app, family, x)
        return x

    @task(pydantic=True)
    def modelled(question: Question) -> Answer:
        ran(app, family, question.x)
        return Answer(text=question.x * question.size)

    @task(serializer="pickle")
    def pickled(x: str, what: Any = None) -> Any:
        ran(app, family, x)
        return [x, sorted(map(repr, what or ()))]

    def by_default(x: str) -> str:
        ran(app, family, x)
        return f"{x}d"

    # The application's task_cls is CachedTask: no base= at all.
    options = {"cache": POLICY} if family == "cached" else {"base": Task}
    made.by_default = app.task(name=f"{family}.by_default", **options)(by_default)

    def done(x: str) -> None:
        log(app, family, x, "done")

    made.done = app.task(name=f"{family}.done", base=Task)(done)


def _define_classes(made: SimpleNamespace, kind: dict[str, Any]) -> None:  # noqa: C901 - definitions, not branches
    app, family, base = made.app, made.family, kind["base"]

    class Whisper(base):  # type: ignore[misc]
        name = f"{family}.whisper"
        cache = kind.get("cache")

        def run(self, x: str) -> str:
            ran(app, family, x)
            return f"({x})"

    class Mumble(Whisper):
        name = f"{family}.mumble"
        cache = kind.get("cache")

        def run(self, x: str) -> str:
            return super().run(x) + "…"

    class Watched(base):  # type: ignore[misc]
        abstract = True

        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            log(app, family, args[0], "before_start")

        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            log(app, family, args[0], f"on_success {retval}")

        def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            log(app, family, args[0], f"on_failure {type(exc).__name__}")

        def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            log(app, family, args[0], f"after_return {status}")

    options = {**kind, "base": Watched}

    def watched(x: str, fail: bool = False) -> str:
        ran(app, family, x)
        if fail:
            raise ValueError("asked to")
        return x

    made.watched = app.task(name=f"{family}.watched", **options)(watched)
    made.whisper, made.mumble = app.register_task(Whisper()), app.register_task(Mumble())


@shared_task(name="stock.shared", base=Task)
def shared_stock(x: str) -> str:
    from celery import current_task

    ran(current_task.app, "stock", x)
    return f"{x}s"


@shared_task(name="cached.shared", base=CachedTask, cache=POLICY)
def shared_cached(x: str) -> str:
    from celery import current_task

    ran(current_task.app, "cached", x)
    return f"{x}s"
