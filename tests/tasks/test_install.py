"""What a worker checks before it takes tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from aicache_tasks import CachedTask, install
from aicache_tasks.installation import warn_of_changed_bodies
from aicache_tasks.runtime import runtime_of
from aicache_tasks.testing import EmbeddedServer
from tests.cluster.nodes import WorkerProcess
from tests.faults import free_port

Make = Callable[..., Celery]
MODULE = """
from celery import Celery
from aicache_tasks import CachedTask, install
app = install(Celery("watched"))
app.conf.update({conf!r})

@app.task(base=CachedTask, cache={policy!r}, name="condense")
def condense(text):
    {body}
"""
WARNING = "the body of task 'condense' changed but its cache version"


class Shop:
    """An application in a file that is written anew, and its workers."""

    def __init__(self, folder: Path, server: EmbeddedServer) -> None:
        self._folder, self._server = folder, server

    def log_of_a_start(self, body: str, version: Any = 1, **conf: Any) -> str:
        """Write the application, start a worker, stop it once it takes tasks or ends, and return its log."""
        policy = {"operation": "condense", "version": version}
        settings = {"aicache_url": self._server.url, "aicache_budget_ms": 2000, **conf}
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


@pytest.fixture
def changed(valkey: EmbeddedServer, make: Make) -> Callable[..., list[str]]:
    """Return a function that makes an application of one task with a body, and checks it as a starting worker does."""

    def check(body: str, **policy: Any) -> list[str]:
        app, scope = make(aicache_url=valkey.url, aicache_budget_ms=2000), {"__name__": "made"}
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
    runtime_of(make(aicache_url=valkey.url, aicache_budget_ms=2000)).cache.invalidate_all()
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
    steps = len(app.steps["worker"])
    assert install(install(app)) is app
    assert len(app.steps["worker"]) == steps
    (step,) = [step for step in app.steps["worker"] if step.name == "aicache"]
    parent = type("Parent", (), {"app": app, "steps": []})()
    step(parent).start(parent)


def test_stopping_drops_the_main_process_s_connections(make: Make, valkey: EmbeddedServer, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    app = make(aicache_url=valkey.url, aicache_budget_ms=2000)
    task = app.task(base=CachedTask, cache={}, name="stopping")(lambda_body)
    (step,) = [step for step in app.steps["worker"] if step.name == "aicache"]
    parent = type("Parent", (), {"app": app, "steps": []})()
    running = step(parent)
    running.start(parent)
    assert task("a") == "a"
    running.stop(parent)
    assert (task("a"), task.cache.last.status) == ("a", "hit")
