"""One table: every way to call a task, cold and hit, on a prefork worker and on one with threads, against stock."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from celery import chain, chord, group

from tests.cluster.nodes import wait_until
from tests.tasks.bench_tasks import Question, counts
from tests.tasks.conftest import Bench

TIMEOUT_S = 30


class Run:
    """One pass over a row: what is called, what came of it, and the ids of the calls whose status counts."""

    def __init__(self, bench: Bench, family: str, x: str) -> None:
        self.tasks, self.x = getattr(bench.app, family), x
        self.redis = counts(bench.app.conf.result_backend)
        self.ids: list[str] = []
        self.local: list[str] = []
        self._runs, self._log = f"runs:{family}:{x}", f"log:{family}:{x}"
        self._log_from, self._runs_from = self.redis.llen(self._log), self.runs()

    def runs(self) -> int:
        return int(self.redis.get(self._runs) or 0)

    def new_runs(self) -> int:
        return self.runs() - self._runs_from

    def see(self, result: Any) -> tuple[str, Any]:
        """Wait for *result*; return its state and its value or error."""
        value = result.get(timeout=TIMEOUT_S, propagate=False)
        self.ids.append(result.id)
        return result.state, f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else value

    def get(self, result: Any) -> Any:
        """Wait for *result*, whose own task is not one of ours; return its value."""
        return result.get(timeout=TIMEOUT_S)

    def after_a_run(self, result: Any) -> str:
        """Return the state of a call that leaves no result, once the worker is done with it."""
        self.ids.append(result.id)
        self.statuses()
        return str(result.state)

    def here(self, task: Any, value: Any) -> Any:
        """Return *value*, which *task* returned in this process, and keep its status."""
        last = task.cache.last if getattr(task, "cache_policy", None) else None
        self.local.append(last.status if last else "none")
        return value

    def log(self, lines: int) -> list[str]:
        """Return what the row's callbacks wrote, once there are so many lines."""
        read = lambda: self.redis.lrange(self._log, self._log_from, -1)  # noqa: E731 - asked for again and again
        wait_until(lambda: len(read()) >= lines, TIMEOUT_S, f"{lines} lines of log")
        return sorted(read())

    def statuses(self) -> list[str]:
        """Return the last status of each call that was seen, as the worker noted it."""
        noted = [wait_until(lambda i=i: self.redis.lrange(f"status:{i}", 0, -1), TIMEOUT_S, "status") for i in self.ids]
        return [*self.local, *(statuses[-1] for statuses in noted)]


class Row(NamedTuple):
    """A way to call tasks.

    ``cold`` and ``hit`` are the runs of bodies in the first and the second pass; ``seen`` the statuses in the second.
    """

    name: str
    call: Callable[[Run], Any]
    cold: int = 1
    hit: int = 0
    seen: tuple[str, ...] = ("hit",)


def _chained(run: Run) -> Any:
    result = chain(run.tasks.shout.s(run.x), run.tasks.shout.s("?"), run.tasks.in_chain.s())()
    return [run.see(result), run.see(result.parent), run.see(result.parent.parent)]


def _immutable_chain(run: Run) -> Any:
    result = (run.tasks.shout.si(run.x) | run.tasks.constant.si(run.x, 5))()
    return [run.see(result), run.see(result.parent)]


def _grouped(run: Run) -> Any:
    result = group(run.tasks.shout.s(f"{run.x}|{n}") for n in range(3))()
    return [run.see(member) for member in result.results]


def _chord(run: Run) -> Any:
    result = chord([run.tasks.shout.s(f"{run.x}|{n}") for n in range(3)], run.tasks.collect.s())()
    return [run.see(result), *(run.see(member) for member in result.parent.results)]


def _chord_that_fails(run: Run) -> Any:
    header = [run.tasks.shout.s(f"{run.x}|1"), run.tasks.fails.s(f"{run.x}|2")]
    result = chord(header, run.tasks.done.si(run.x))()
    value = result.get(timeout=TIMEOUT_S, propagate=False)
    members = [run.see(member) for member in result.parent.results]
    return [result.state, type(value).__name__, members]


def _chain_of_groups(run: Run) -> Any:
    flow = group(run.tasks.shout.s(f"{run.x}|{n}") for n in range(2)) | run.tasks.collect.s() | run.tasks.constant.s(7)
    return run.see(flow())


def _nested_chord_in_chain(run: Run) -> Any:
    flow = run.tasks.shout.s(run.x) | chord([run.tasks.shout.s("a"), run.tasks.shout.s("b")], run.tasks.collect.s())
    return run.see(flow())


def _linked(run: Run) -> Any:
    result = run.tasks.shout.apply_async((run.x,), link=run.tasks.shout.s("??").set(link=[run.tasks.done.s()]))
    return [run.see(result), run.log(1)]


def _error_linked(run: Run) -> Any:
    result = run.tasks.fails.apply_async((run.x,), link_error=run.tasks.done.si(run.x))
    return [run.see(result), run.log(1)]


def _unread(run: Run) -> Any:
    result = run.tasks.unread.apply_async((run.x,), link=run.tasks.done.si(run.x))
    lines = run.log(1)
    run.ids.append(result.id)
    return [result.state, lines]


def _watched(run: Run) -> Any:
    return [run.see(run.tasks.watched.delay(run.x)), run.log(3)]


def _watched_failure(run: Run) -> Any:
    return [run.see(run.tasks.watched.delay(run.x, fail=True)), run.log(3)]


def _wrong_arguments(run: Run) -> Any:
    with pytest.raises(TypeError) as caught:
        run.tasks.shout.delay(run.x, "!", "one too many")
    return str(caught.value)


def _leaves_state(run: Run) -> Any:
    result = run.tasks.leaves_state.delay(run.x)
    run.after_a_run(result)
    wait_until(lambda: result.state != "PENDING", TIMEOUT_S, "the state")
    return result.state, result.info


def _by_dict(run: Run) -> Any:
    from celery import Signature

    sent = Signature.from_dict(dict(run.tasks.shout.s(run.x)), app=run.tasks.app)
    return run.see(sent.apply_async())


def _eager_chord(run: Run) -> Any:
    result = chord([run.tasks.shout.s(f"{run.x}|{n}") for n in range(2)], run.tasks.collect.s()).apply()
    return run.here(run.tasks.collect, result.get())


def _expired(run: Run) -> Any:
    result = run.tasks.shout.apply_async((run.x,), expires=-10)
    value = result.get(timeout=TIMEOUT_S, propagate=False)
    return result.state, type(value).__name__


ROWS = (
    Row("delay", lambda r: r.see(r.tasks.shout.delay(r.x))),
    Row("keywords", lambda r: r.see(r.tasks.shout.delay(x=r.x, mark="?"))),
    Row("variadic", lambda r: r.see(r.tasks.both.delay(r.x, "b", "c", sep="+", k="d"))),
    Row("apply_async with options", lambda r: r.see(r.tasks.shout.apply_async((r.x,), countdown=0.01, priority=3))),
    Row("own task id", lambda r: r.see(r.tasks.shout.apply_async((r.x,), task_id=uuid.uuid4().hex))),
    Row("send_task", lambda r: r.see(r.tasks.app.send_task(f"{r.tasks.family}.shout", (r.x,)))),
    Row("signature", lambda r: r.see(r.tasks.shout.s(r.x, mark=".").delay())),
    Row("signature from a dict", _by_dict),
    Row("expired", _expired, 0, 0, ()),
    Row("bind", lambda r: r.see(r.tasks.bound.delay(r.x, y=2))),
    Row("retry, then an answer", lambda r: r.see(r.tasks.third_time.delay(r.x)), 3),
    Row("retry, given up", lambda r: r.see(r.tasks.never.delay(r.x)), 2, 2, ("miss",)),
    Row("autoretry_for", lambda r: r.see(r.tasks.second_time.delay(r.x)), 2),
    Row("typing", _wrong_arguments, 0, 0, ()),
    Row("typing=False, wrong call", lambda r: r.see(r.tasks.untyped.delay(r.x, 2)), 0, 0, ("bypass",)),
    Row("typing=False", lambda r: r.see(r.tasks.untyped.delay(r.x))),
    Row("acks_late", lambda r: r.see(r.tasks.late.delay(r.x))),
    Row("ignore_result", _unread),
    Row("track_started", lambda r: r.see(r.tasks.tracked.delay(r.x))),
    Row("pydantic", lambda r: r.see(r.tasks.modelled.delay(Question(x=r.x, size=2).model_dump()))),
    Row("class-based", lambda r: r.see(r.tasks.whisper.delay(r.x))),
    Row("inherited run", lambda r: r.see(r.tasks.mumble.delay(r.x))),
    Row("shared_task", lambda r: r.see(r.tasks.shared.delay(r.x))),
    Row("task_cls", lambda r: r.see(r.tasks.by_default.delay(r.x))),
    Row("map", lambda r: r.get(r.tasks.shout.map([f"{r.x}|1", f"{r.x}|2"]).delay()), 2, 0, ()),
    Row("starmap", lambda r: r.get(r.tasks.shout.starmap([(f"{r.x}|1", "?"), (f"{r.x}|2", "!")]).delay()), 2, 0, ()),
    Row("chunks", lambda r: r.get(r.tasks.shout.chunks([(f"{r.x}|{n}",) for n in range(4)], 2)()), 4, 0, ()),
    Row("apply", lambda r: r.here(r.tasks.bound, r.tasks.bound.apply((r.x,)).get())),
    Row("direct call", lambda r: r.here(r.tasks.bound, r.tasks.bound(r.x, y=3))),
    Row("direct call of a class", lambda r: r.here(r.tasks.mumble, r.tasks.mumble(r.x))),
    Row("apply with retries", lambda r: r.here(r.tasks.third_time, r.tasks.third_time.apply((r.x,)).get()), 3),
    Row("apply of a chord", _eager_chord, 3),
    Row("apply of a failure", lambda r: r.tasks.fails.apply((r.x,)).state, 1, 1, ()),
    Row("replace", lambda r: r.get(r.tasks.replaced.delay(r.x)), 2, 1, ()),
    Row("apply of replace", lambda r: r.tasks.replaced.apply((r.x,)).get(), 2, 1, ()),
    Row("update_state", lambda r: r.see(r.tasks.progresses.delay(r.x))),
    Row("update_state and Ignore", _leaves_state, 1, 1, ("miss",)),
    Row("Ignore", lambda r: r.after_a_run(r.tasks.ignored.delay(r.x)), 1, 1, ("miss",)),
    # A prefork worker writes FAILURE some time after the message is rejected.
    Row("Reject", lambda r: r.after_a_run(r.tasks.rejected.delay(r.x)) != "SUCCESS", 1, 1, ("miss",)),
    Row("failure", lambda r: r.see(r.tasks.fails.delay(r.x)), 1, 1, ("miss",)),
    Row("unsendable result", lambda r: r.see(r.tasks.unsendable.delay(r.x))[0], 1, 1, ("miss",)),
    Row("handlers", _watched),
    Row("handlers of a failure", _watched_failure, 1, 1, ("miss",)),
    Row("link", _linked, 2),
    Row("link_error", _error_linked, 1, 1, ("miss",)),
    Row("chain", _chained, 3, 0, ("hit", "hit", "hit")),
    Row("immutable chain", _immutable_chain, 2, 0, ("hit", "hit")),
    Row("group", _grouped, 3, 0, ("hit", "hit", "hit")),
    Row("chord", _chord, 4, 0, ("hit", "hit", "hit", "hit")),
    Row("failing chord", _chord_that_fails, 2, 1, ("hit", "miss")),
    Row("chain of a group and more", _chain_of_groups, 4),
    Row("chord in a chain", _nested_chord_in_chain, 4),
    Row("calls itself", lambda r: r.see(r.tasks.factorial.delay(r.x, 4)), 4),
    Row("calls another", lambda r: r.see(r.tasks.quote.delay(r.x)), 2),
    Row("tuples become lists", lambda r: r.see(r.tasks.pair.delay(r.x))),
    Row("tuples stay tuples here", lambda r: r.here(r.tasks.pair, r.tasks.pair(r.x))),
    Row("pickle", lambda r: r.see(r.tasks.pickled.delay(r.x, frozenset({1, 2})))),
    *(
        Row(f"result {what!r}", lambda r, what=what: r.see(r.tasks.constant.delay(r.x, what)))
        for what in (None, 0, False, "", [], {})
    ),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_call_has_the_outcome_of_the_stock_class_cold_and_hit(bench: Bench, row: Row) -> None:
    """C27: the second identical call runs no body and has the same outcome."""
    x = f"{bench.pool}-{uuid.uuid4().hex[:12]}"
    stock = Run(bench, "stock", x)
    expected = row.call(stock)
    assert stock.new_runs() == row.cold
    cold = Run(bench, "cached", x)
    assert row.call(cold) == expected
    assert cold.new_runs() == row.cold
    assert "hit" not in cold.statuses()
    hit = Run(bench, "cached", x)
    assert row.call(hit) == expected
    assert hit.new_runs() == row.hit
    assert tuple(hit.statuses()) == row.seen
