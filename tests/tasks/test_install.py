"""What a worker checks before it takes tasks."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from aicache_tasks import AIResponseCache, CachedTask, CachePolicy, SettingsError, install
from aicache_tasks.installation import warn_of_changed_bodies
from aicache_tasks.runtime import runtime_of
from aicache_tasks.testing import EmbeddedServer
from tests.caches import PATIENT
from tests.cluster.nodes import WorkerProcess
from tests.faults import free_port

Make = Callable[..., Celery]
MODULE = """
from celery import Celery
from aicache_tasks import CachedTask, CachePolicy, SettingsError, install
app = install(Celery("watched"))
app.conf.update({conf!r})

@app.task(base=CachedTask, cache={policy!r}, name="condense")
def condense(text):
    {body}
"""
WARNING = "the body of task 'condense' changed but its cache version"


def starting(app: Celery) -> Any:
    """Make the cache's step as a worker of *app* does that starts."""
    (step,) = [step for step in app.steps["worker"] if step.name == "aicache"]
    return step(SimpleNamespace(app=app, steps=[]))


class Shop:
    """An application in a file that is written anew, and its workers."""

    def __init__(self, folder: Path, server: EmbeddedServer) -> None:
        self._folder, self._server = folder, server

    def log_of_a_start(self, body: str, version: Any = 1, policy: dict[str, Any] | None = None, **conf: Any) -> str:
        """Write the application, start a worker, stop it once it takes tasks or ends, and return its log."""
        policy = {"operation": "condense", "version": version, **(policy or {})}
        settings = {"aicache_url": self._server.url, **PATIENT, **conf}
        (self._folder / "shop_app.py").write_text(MODULE.format(conf=settings, policy=policy, body=body))
        urls = (self._server.url, self._server.url)
        environ = {"PYTHONPATH": str(self._folder), "PYTHONDONTWRITEBYTECODE": "1"}
        worker = WorkerProcess("shop_app", *urls, pool="solo", env=environ).start()
        try:
            worker.ready()
            return worker.logs()
        except RuntimeError as ended:
            return str(ended)
        finally:
            worker.close()


@pytest.fixture
def shop(tmp_path: Path, own_server: EmbeddedServer) -> Shop:
    return Shop(tmp_path, own_server)


def test_a_worker_warns_of_a_changed_body_until_its_version_changes(shop: Shop) -> None:
    assert WARNING not in shop.log_of_a_start("return text")
    assert f"{WARNING} 1 did not" in shop.log_of_a_start("return text.upper()")
    assert WARNING not in shop.log_of_a_start("return text.upper()", version=2)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"aicache_tll": 5}, "unknown setting aicache_tll; did you mean aicache_ttl?"),
        ({"aicache_url": None}, "aicache_url is not set"),
    ],
    ids=["unknown", "missing"],
)
def test_a_worker_with_a_wrong_setting_does_not_start(shop: Shop, conf: dict[str, Any], message: str) -> None:
    log = shop.log_of_a_start("return text", **conf)
    assert "ready." not in log
    assert message in log


def test_a_worker_with_a_policy_that_does_not_fit_its_task_does_not_start(shop: Shop) -> None:
    log = shop.log_of_a_start("return text", policy={"ignore": ("nosuch",)})
    assert "ready." not in log
    assert "cache ignore: the task has no parameter 'nosuch'; it has text" in log


@pytest.mark.parametrize(
    "policy", [{"ignore": ("nosuch",)}, {"text_arg": "nosuch"}, {"question_arg": "nosuch"}], ids=str
)
def test_a_policy_that_does_not_fit_its_task_stops_a_worker_s_start(make: Make, policy: dict[str, Any]) -> None:
    app = make()
    app.task(base=CachedTask, cache=policy, name="misfit")(lambda_body)
    with pytest.raises(SettingsError, match="no parameter 'nosuch'"):
        starting(app)


def test_two_classes_without_a_name_and_with_one_operation_stop_a_worker_s_start(make: Make) -> None:
    class One(CachedTask):
        cache = CachePolicy(operation="install-nameless")

        def run(self, text: str) -> str:
            return text

    class Two(One):
        cache = CachePolicy(operation="install-nameless")

        def run(self, text: str) -> str:
            return text.upper()

    app = make()
    app.register_task(One)
    app.register_task(Two)
    with pytest.raises(SettingsError, match="both have the cache operation 'install-nameless'"):
        starting(app)


def test_a_policy_on_a_stock_task_is_warned_of_at_a_worker_s_start(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    app = make()
    app.task(cache=CachePolicy(), name="forgotten")(lambda_body)
    app.task(base=CachedTask, cache=CachePolicy(), name="remembered")(lambda_body)
    starting(app)
    warnings = [record.getMessage() for record in caplog.records if "base=CachedTask" in record.getMessage()]
    assert len(warnings) == 1
    assert "'forgotten'" in warnings[0]


@pytest.fixture
def changed(valkey: EmbeddedServer, make: Make) -> Callable[..., list[str]]:
    """Return a function that makes an application of one task with a body, and checks it as a starting worker does."""

    def check(body: str, **policy: Any) -> list[str]:
        app, scope = make(aicache_url=valkey.url), {"__name__": "made"}
        exec(f"def condense(text):\n    {body}", scope)
        task = app.task(base=CachedTask, cache=policy, name="condense")(scope["condense"])
        assert task.name == "condense"
        return warn_of_changed_bodies(app, runtime_of(app))

    return check


def test_the_first_start_of_each_version_leaves_the_body_that_later_ones_are_compared_with(
    changed: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    assert changed("return text", version="p1") == []
    assert changed("return text", version="p1") == []
    assert changed("return text * 2", version="p1") == ["condense"]
    assert changed("return text * 2", version="p1") == ["condense"]
    assert changed("return text * 2", version="p2") == []
    assert changed("return text", version="p1") == []
    assert len([record for record in caplog.records if WARNING in record.getMessage()]) == 2


def test_a_task_without_a_version_is_compared_too(changed: Callable[..., list[str]]) -> None:
    assert [changed("return text"), changed("return 5")] == [[], ["condense"]]


def test_version_auto_needs_no_warning(changed: Callable[..., list[str]]) -> None:
    assert [changed("return text", version="auto"), changed("return 5", version="auto")] == [[], []]


def test_operations_are_compared_apart(changed: Callable[..., list[str]]) -> None:
    assert [changed("return text", operation="install-a"), changed("return 5", operation="install-b")] == [[], []]


def test_an_invalidation_does_not_forget_the_body(
    valkey: EmbeddedServer, changed: Callable[..., list[str]], make: Make
) -> None:
    assert changed("return text") == []
    runtime_of(make(aicache_url=valkey.url)).cache.invalidate_all()
    assert changed("return 5") == ["condense"]


def test_a_server_that_is_away_is_no_reason_not_to_start(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    app = make(aicache_url=f"redis://127.0.0.1:{free_port()}/0")
    app.task(base=CachedTask, cache={}, name="away")(lambda_body).name  # noqa: B018 - binds it
    assert warn_of_changed_bodies(app, runtime_of(app)) == []
    assert "cannot compare task bodies" in caplog.text


def lambda_body(text: str) -> str:
    return text


def test_the_step_is_added_once_and_needs_no_settings_without_cached_tasks(make: Make) -> None:
    app = make(aicache_url=None)
    for name in [name for name in app.tasks if not name.startswith("celery.")]:  # other tests' shared tasks
        del app.tasks[name]
    steps = len(app.steps["worker"])
    assert install(install(app)) is app
    assert len(app.steps["worker"]) == steps
    starting(app).start(SimpleNamespace(app=app))


def test_stopping_drops_the_main_process_s_connections(make: Make, valkey: EmbeddedServer, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    app = make(aicache_url=valkey.url)
    task = app.task(base=CachedTask, cache={}, name="stopping")(lambda_body)
    running = starting(app)
    running.start(SimpleNamespace(app=app))
    assert task("a") == "a"
    running.stop(SimpleNamespace(app=app))
    assert (task("a"), task.cache.last.status) == ("a", "hit")


def test_a_copy_of_the_application_that_was_pickled_is_prepared_too() -> None:
    app = install(install(Celery("shop", broker="memory://", set_as_current=False)))
    copy = pickle.loads(pickle.dumps(app))
    assert copy is not app
    assert runtime_of(copy).ships
    assert "aicache_tasks.rollup" not in copy._tasks, "it was finalized early"
    copy.finalize()
    assert "aicache_tasks.rollup" in copy.tasks
    assert runtime_of(pickle.loads(pickle.dumps(copy))).ships


@pytest.mark.timeout(10)
def test_a_signal_handler_may_use_the_cache_while_its_thread_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.aicache_url = "memory://"
    runtime, handled = runtime_of(app), list[AIResponseCache]()

    def make(**given: Any) -> AIResponseCache:
        if not handled:
            handled.append(AIResponseCache(**given))
            handled[0] = runtime.cache
        return AIResponseCache(**given)

    monkeypatch.setattr("aicache_tasks.runtime.AIResponseCache", make)
    assert runtime.cache is handled[0] is runtime.cache
