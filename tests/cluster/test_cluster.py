"""Answers stay right while processes and servers come and go. Real workers, real servers, real signals.

Redis hands a message out before the worker has written down that it holds it. One that is between the two when either
of them is killed is lost to Celery, so that tests which kill a worker or the broker keep all children busy first.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult
from pytest_celery import CeleryTestBackend, CeleryTestSetup

from tests.cluster import cluster_tasks as ct
from tests.cluster.nodes import WorkerNode, is_running, wait_until

TIMEOUT_S = 60
pytestmark = pytest.mark.timeout(180)
Call = tuple[Any, tuple[Any, ...], Any]


def mixed_calls(count: int, seed: int = 7) -> list[Call]:
    """Return *count* calls, about one in three of them distinct: (task, arguments, right answer)."""
    chance, run = random.Random(seed), uuid.uuid4().hex[:8]
    makers: list[Callable[[int], Call]] = [
        lambda n: _call(ct.count_task, ct.count, f"{run} of " * n, chance.choice(["words", "all"])),
        lambda n: _call(ct.reverse_task, ct.reverse, f"{run} nr {n}"),
        lambda n: _call(ct.powers_task, ct.powers, int(run, 16) + n, chance.randrange(1, 4)),
    ]
    return [chance.choice(makers)(chance.randrange(1, max(2, count // 9))) for _ in range(count)]


def distinct_calls(count: int, task: Any = ct.reverse_task) -> list[Call]:
    """Return *count* calls, each for another cache entry."""
    run = uuid.uuid4().hex[:8]
    return [_call(task, ct.reverse, f"{run} nr {n}") for n in range(count)]


def _call(task: Any, body: Callable[..., Any], *args: Any) -> Call:
    return task, args, body(*args)


def send(calls: list[Call], **options: Any) -> list[AsyncResult[Any]]:
    return [task.apply_async(args, **options) for task, args, _ in calls]


def answers(results: list[AsyncResult[Any]]) -> list[Any]:
    return [result.get(timeout=TIMEOUT_S) for result in results]


def right(calls: list[Call]) -> list[Any]:
    return [answer for _, _, answer in calls]


def finished(results: list[AsyncResult[Any]], client: redis.Redis) -> int:
    """Return how many calls have a stored result."""
    return int(client.exists(*(result.backend.get_key_for_task(result.id) for result in results)))


def await_finished(results: list[AsyncResult[Any]], client: redis.Redis, count: int) -> None:
    """Return once *count* of the calls have a stored result."""
    wait_until(lambda: finished(results, client) >= count, TIMEOUT_S, f"{count} results")


def runs_of(calls: list[Call], client: redis.Redis) -> Counter[str]:
    """Return how often the body of each of *calls* ran, by task and arguments."""
    noted = set(map(as_noted, calls))
    return Counter(ran for ran in client.lrange("bodies", 0, -1) if ran in noted)


def as_noted(call: Call) -> str:
    """Return what the body of *call* notes when it runs."""
    task, args, _ = call
    return f"{task.name}{args!r}"


def kill_child(worker: WorkerNode) -> int:
    """SIGKILL one child of *worker*'s pool and return its process id once it is gone."""

    def killed() -> int | None:
        pid = wait_until(worker.child_pids, what="a pool child")[0]
        with contextlib.suppress(ProcessLookupError):  # it was recycled meanwhile
            os.kill(pid, signal.SIGKILL)
            return int(pid)
        return None

    pid: int = wait_until(killed, what="a child to kill")
    wait_until(lambda: not is_running(pid), what="the child's end")
    return pid


def storm(
    count: int, workers: list[WorkerNode], cache_server: CeleryTestBackend, client: redis.Redis
) -> tuple[list[Call], list[Any], list[int]]:
    """Send *count* calls; on their way kill five children and restart the cache server twice."""
    calls = mixed_calls(count)
    results = send(calls)
    killed: list[int] = []
    for step in range(1, 8):
        await_finished(results, client, step * count // 9)
        if step in (2, 5):
            cache_server.restart()
        else:
            killed.append(kill_child(workers[step % 2]))
    return calls, answers(results), killed


def test_the_cluster_answers_pings_under_the_names_of_its_nodes(celery_setup: CeleryTestSetup) -> None:
    assert celery_setup.ready(ping=True, control=True, docker=True)
    names = {worker.hostname() for worker in celery_setup.worker_cluster}
    assert celery_setup.app.control.inspect(destination=sorted(names), timeout=TIMEOUT_S).ping().keys() == names


def test_no_call_is_lost_or_wrong_while_children_are_killed_and_the_cache_restarts(
    workers: list[WorkerNode], cache_server: CeleryTestBackend, notes: redis.Redis
) -> None:
    calls, given, killed = storm(500, workers, cache_server, notes)
    assert given == right(calls)
    assert len(set(killed)) == 5
    assert sum(runs_of(calls, notes).values()) < len(calls), "no call was answered by the cache"
    assert runs_of(calls, notes).keys() == set(map(as_noted, calls))


def test_a_child_killed_between_store_and_acknowledgement_is_answered_from_the_cache(
    celery_setup: CeleryTestSetup, notes: redis.Redis
) -> None:
    calls = distinct_calls(3, task=ct.dies_once_stored_task)
    results = send(calls)
    assert answers(results) == right(calls)
    victims = [int(notes.get(f"died:{result.id}")) for result in results]
    assert len(set(victims)) == 3
    assert not any(map(is_running, victims))
    assert set(runs_of(calls, notes).values()) == {1}, "a redelivered call was paid twice"


def test_answers_survive_the_recycling_of_children_and_entries_do_too(
    workers: list[WorkerNode], notes: redis.Redis
) -> None:
    recycling, calls = workers[1], distinct_calls(40)
    first_children = recycling.child_pids()
    assert answers(send(calls, queue="recycling")) == right(calls)
    paid = runs_of(calls, notes)  # twice where the broker delivered a call again to whom its visibility ran out for
    assert answers(send(calls, queue="recycling")) == right(calls)
    assert wait_until(lambda: set(first_children).isdisjoint(recycling.child_pids()), what="new children")
    assert runs_of(calls, notes) == paid, "a new child did not see the entries of its predecessor"


def test_a_surviving_worker_answers_the_calls_of_a_killed_one(
    celery_setup: CeleryTestSetup, workers: list[WorkerNode], notes: redis.Redis
) -> None:
    calls = distinct_calls(4, task=ct.gated_task)
    results = send(calls)
    wait_until(lambda: len(runs_of(calls, notes)) == 4, TIMEOUT_S, "a call in each of the four children")
    celery_setup.worker_cluster[0].kill()
    notes.rpush("gate", *range(20))
    assert answers(results) == right(calls)
    assert workers[0].returncode == -signal.SIGKILL
    assert sum(runs_of(calls, notes).values()) > 4, "the killed worker had no call to lose"


def test_a_warm_shutdown_loses_no_call_and_repeats_none(workers: list[WorkerNode], notes: redis.Redis) -> None:
    steady, gated = workers[0], distinct_calls(2, task=ct.gated_task)
    before, after = distinct_calls(5), distinct_calls(143)
    calls = [*before, *gated, *after]
    results = send(calls, queue="steady")
    wait_until(lambda: len(runs_of(gated, notes)) == 2, TIMEOUT_S, "a gated call in each of the two children")
    said, told = "worker: Warm shutdown", steady.logs().count("worker: Warm shutdown")
    os.kill(steady.pid, signal.SIGTERM)
    wait_until(lambda: steady.logs().count(said) > told, TIMEOUT_S, "the shutdown")
    notes.rpush("gate", *range(20))
    wait_until(lambda: not steady.running, TIMEOUT_S, "the worker's end")
    assert steady.returncode == 0
    assert finished(results, notes) < len(calls), "the worker had nothing left to leave behind"
    steady.start()
    assert answers(results) == right(calls)
    # A gated call may be delivered again: the broker does not know that it is held for longer than others.
    assert runs_of(before + after, notes) == Counter(map(as_noted, before + after))


def test_calls_before_during_and_after_a_broker_restart_are_all_answered(
    celery_setup: CeleryTestSetup, notes: redis.Redis
) -> None:
    running, calls = distinct_calls(4, task=ct.gated_task), mixed_calls(60)
    results = send(running)
    wait_until(lambda: len(runs_of(running, notes)) == 4, TIMEOUT_S, "a call in each of the four children")
    results += send(calls[:20])
    celery_setup.broker.kill()
    with sending_while_the_broker_is_down(celery_setup.app, calls[20:40]) as during:
        celery_setup.broker.restart()
    notes.rpush("gate", *range(20))
    results += during + send(calls[40:])
    assert answers(results) == right(running + calls)
    ran = runs_of(calls, notes)
    assert answers(send(calls)) == right(calls)
    assert runs_of(calls, notes) == ran, "an entry was lost with the broker"


@contextlib.contextmanager
def sending_while_the_broker_is_down(app: Celery, calls: list[Call]) -> Iterator[list[AsyncResult[Any]]]:
    """Send *calls* in a thread; enter once the broker has refused the first, leave once all are sent."""
    refused = threading.Event()
    results: list[AsyncResult[Any]] = []
    policy = {**ct.CONFIG["task_publish_retry_policy"], "errback": lambda *_: refused.set()}

    def run() -> None:
        app.set_current()  # the current app is the thread's own
        results.extend(send(calls, retry_policy=policy))

    thread = threading.Thread(target=run)
    thread.start()
    assert refused.wait(TIMEOUT_S), "the broker was not down"
    yield results
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
