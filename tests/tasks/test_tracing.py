"""Spans of OpenTelemetry say how a task's call went, and nothing of its text."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from celery.exceptions import SoftTimeLimitExceeded
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from aicache_tasks import CachedTask, CachePolicy, tracing
from aicache_tasks.records import CallInfo, EntryMeta
from aicache_tasks.testing import EmbeddedServer
from aicache_tasks.tracing import attributes_of
from tests.cluster.nodes import WorkerProcess, wait_until
from tests.tasks.bench_tasks import LoneCelery
from tests.tasks.conftest import end

TIMEOUT_S = 20
CANARY = f"canary{uuid.uuid4().hex}"


class Traced(NamedTuple):
    """A worker that is traced, and the file with its spans."""

    app: Celery
    worker: WorkerProcess
    lines: Path

    def send(self, name: str, text: str, **directives: Any) -> str:
        headers = {"aicache_directives": directives} if directives else None
        result = self.app.send_task(name, (f"{CANARY} {text}",), headers=headers)
        result.get(timeout=TIMEOUT_S, propagate=False)
        return str(result.id)

    def spans(self, task_id: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait for the spans of a task's runs, and return what they say of the cache."""

        def found() -> list[dict[str, Any]]:
            lines = self.lines.read_text().splitlines(keepends=True) if self.lines.exists() else []
            spans = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be half written
            of_task = [span for span in spans if task_id in span["attributes"].values()]
            runs = [span for span in of_task if span["name"].startswith("run/")]
            return [span["attributes"] for span in runs] if len(runs) == count else []

        attributes: list[dict[str, Any]] = wait_until(found, TIMEOUT_S, f"the spans of {task_id}")
        return [{name[8:]: value for name, value in each.items() if name.startswith("aicache.")} for each in attributes]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    lines = tmp_path_factory.mktemp("spans") / "spans.jsonl"
    with EmbeddedServer() as queue, EmbeddedServer() as cache:
        module, env = "tests.tasks.traced_worker", {"SPANS": str(lines)}
        worker = WorkerProcess(module, queue.url, queue.url, cache.url, env=env, name="traced").start()
        app = LoneCelery("caller", broker=queue.url, backend=queue.url, set_as_current=False)
        try:
            worker.ready()
            yield Traced(app, worker, lines)
        finally:
            worker.close()
            end(app)


def test_a_task_s_span_says_how_its_call_went_and_what_that_saved(traced: Traced) -> None:
    missed, hit = (traced.send("paid", "twice") for _ in range(2))
    (first,), (second,) = traced.spans(missed), traced.spans(hit)
    words = ("status", "operation", "reason", "set_status", "source", "spent_tokens", "saved_tokens")
    assert [first.get(word) for word in words] == ["miss", "paid", "key_not_found", "success", None, 890, None]
    assert [second.get(word) for word in words] == ["hit", "paid", None, None, "redis", None, 890]
    assert (first["spent_cost"], second["saved_cost"]) == (0.25, 0.25)
    assert all(first[step] > 0 for step in ("key_ms", "get_ms", "compute_ms", "set_ms", "raw_bytes", "stored_bytes"))
    assert second["saved_s"] == pytest.approx(first["compute_ms"] / 1000)
    assert second["age_s"] > 0
    assert not {"compute_ms", "set_ms", "spent_cost"} & set(second)


def test_a_bypass_a_refusal_a_failure_and_each_try_say_so_too(traced: Traced) -> None:
    (passed,) = traced.spans(traced.send("paid", "passed", bypass=True))
    assert (passed["status"], passed["spent_tokens"]) == ("bypass", 890)
    assert passed["compute_ms"] > 0
    (refused,) = traced.spans(traced.send("paid", "refused", only_if_cached=True))
    assert (refused["status"], refused.get("spent_tokens")) == ("miss", None)
    (failed,) = traced.spans(traced.send("fails", "failed"))
    assert (failed["status"], failed["set_status"], failed["set_reason"]) == ("miss", "skipped", "body_failed")
    tries = traced.spans(traced.send("again", "tries"), 2)
    assert {one["set_status"] for one in tries} == {"skipped", "success"}


def test_a_span_says_how_its_task_s_call_went_and_not_those_that_the_body_makes(traced: Traced) -> None:
    (said,) = traced.spans(traced.send("outer", "outer"))
    assert (said["operation"], said["status"]) == ("outer", "miss")
    assert not [name for name in said if name.startswith("saved")]


def test_a_task_with_no_policy_has_its_span_as_it_was(traced: Traced) -> None:
    assert traced.spans(traced.send("plain", "plain")) == [{}]


def test_no_text_is_in_a_span(traced: Traced) -> None:
    traced.spans(traced.send("paid", "seen"))
    assert CANARY not in traced.lines.read_text().lower()


# In this process.


@pytest.fixture
def shout(make: Callable[..., Celery]) -> Any:
    return make().task(base=CachedTask, cache=CachePolicy(operation="traced-shout"), name="traced-shout")(upper)


def upper(text: str) -> str:
    return text.upper()


def ran(task: Any, text: str) -> Any:
    """Return what *task* returns when it is run as a worker runs it; raises what it raises."""
    trace_task = build_tracer(task.name, task, eager=True, propagate=True, app=task.app)
    return trace_task(str(uuid.uuid4()), (text,), {}, {"is_eager": False}).retval


@pytest.fixture
def span() -> Iterator[ReadableSpan]:
    with TracerProvider().get_tracer("tests").start_as_current_span("request") as made:
        assert isinstance(made, ReadableSpan)
        yield made


def test_a_direct_call_leaves_the_span_of_whoever_calls_alone(shout: Any, span: ReadableSpan) -> None:
    shout("text"), shout("text")
    assert not span.attributes
    ran(shout, "text")
    assert span.attributes is not None
    assert span.attributes["aicache.status"] == "hit"


def test_an_eager_call_leaves_the_span_that_is_open_alone(shout: Any, span: ReadableSpan) -> None:
    def nest(text: str) -> str:
        return str(shout.apply((text,)).get(disable_sync_subtasks=False))

    outer = shout.app.task(base=CachedTask, cache=CachePolicy(operation="nest"), name="nest")(nest)
    outer.apply(("text",)), shout.apply(("text",)), shout.apply((7,))  # a miss, a hit, and a body that raises
    assert not span.attributes
    ran(outer, "another")
    assert span.attributes is not None
    assert (span.attributes["aicache.operation"], span.attributes["aicache.status"]) == ("nest", "miss")


def test_a_span_that_is_not_recorded_is_not_asked_for_more(shout: Any) -> None:
    assert not trace.get_current_span().is_recording()
    assert ran(shout, "text") == "TEXT"


def test_what_the_api_raises_is_warned_of_once_and_no_task_s_matter(
    shout: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise LookupError("canary")

    monkeypatch.setitem(sys.modules, tracing.API, SimpleNamespace(get_current_span=broken))
    assert [ran(shout, "text") for _ in range(3)] == ["TEXT"] * 3
    warnings = [record.getMessage() for record in caplog.records if "spans" in record.getMessage()]
    assert warnings == ["aicache: spans of 'traced-shout' say nothing: LookupError"]


def test_a_soft_time_limit_passes_through(shout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def late() -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setitem(sys.modules, tracing.API, SimpleNamespace(get_current_span=late))
    with pytest.raises(SoftTimeLimitExceeded):
        ran(shout, "text")


def test_nothing_is_imported_for_it() -> None:
    program = (
        "import sys; from celery import Celery; from aicache_tasks import CachedTask, CachePolicy, install\n"
        "app = install(Celery('lone', broker='memory://', set_as_current=False)); app.conf.aicache_disabled = True\n"
        "def upper(text): return text.upper()\n"
        "task = app.task(base=CachedTask, cache=CachePolicy())(upper)\n"
        "assert task.apply(('a',)).get() == 'A'\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=TIMEOUT_S)


def test_an_attribute_that_says_nothing_is_left_out() -> None:
    assert attributes_of(CallInfo("disabled", "", "shout", ""), EntryMeta()) == {
        "aicache.status": "disabled",
        "aicache.operation": "shout",
    }


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, 7),
        ({"input_tokens": 3, "cached_input_tokens": 2, "output_tokens": 4}, 7),
        ({"input_tokens": 3, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 20, "output_tokens": 4}, 37),
        ({"input_tokens": 0, "prompt_tokens": 3}, 3),
        ({"pages": 3}, None),
    ],
)
def test_a_token_counts_once_under_each_provider_s_names(usage: dict[str, int], tokens: int | None) -> None:
    said = attributes_of(CallInfo("hit", "", "shout", ""), EntryMeta(usage=usage))
    assert said.get("aicache.saved_tokens") == tokens
