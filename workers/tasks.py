"""
The AI operations as Celery tasks, and several of them at once.

In: text and options.   Out: ``{operation, success, result | sentiment | key_points | questions, metadata}``.

A response holds no time and no trace of the cache: a hit equals what was computed. How a call went is in
``self.request.aicache`` of the worker and in ``task.cache.last`` of a direct call.

The tasks are shared: they belong to whichever Celery application is set up (`workers.app` is one).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, Final

from celery import shared_task

from aicache_tasks import CachedTask, CachePolicy, annotate
from workers.engines import current_engine
from workers.engines.base import EngineError
from workers.operations import (
    OPTIONS,
    PROMPT_VERSIONS,
    InputError,
    check_option,
    check_question,
    check_text,
    is_complete,
    make_request,
    make_response,
)

MAX_BATCH: Final = 50
_PREFIX: Final = "workers."
_ITEM_FIELDS: Final = frozenset({"operation", "text", "question", "options"})


def engine_identity() -> dict[str, Any]:
    """Return what the arguments do not show and the answer depends on; part of every key."""
    engine = current_engine()
    return {"engine": engine.name, "model": engine.model, "sampling": dict(engine.sampling)}


def _policy(operation: str) -> CachePolicy:
    """Return the policy of *operation*; its lifetime comes from the settings."""
    return CachePolicy(
        operation=operation, version=PROMPT_VERSIONS[operation], vary=engine_identity, store_if=is_complete
    )


@shared_task(base=CachedTask, cache=_policy("summarize"), name="workers.summarize")
def summarize(text: str, max_length: int = OPTIONS["summarize"].default) -> dict[str, Any]:
    """Summarize *text* (10 to 10,000 characters) in *max_length* words (10 to 500) at most.

    Raises:
        InputError: an argument is outside its limits.
        EngineError: the engine gave no answer that could be used.
    """
    return _answer("summarize", text, value=max_length)


@shared_task(base=CachedTask, cache=_policy("sentiment"), name="workers.sentiment")
def sentiment(text: str) -> dict[str, Any]:
    """Judge the mood of *text*: ``{sentiment, confidence, explanation}``, confidence from 0 to 1.

    Raises:
        InputError, EngineError: as `summarize`.
    """
    return _answer("sentiment", text)


@shared_task(base=CachedTask, cache=_policy("key_points"), name="workers.key_points")
def key_points(text: str, max_points: int = OPTIONS["key_points"].default) -> dict[str, Any]:
    """List up to *max_points* (1 to 20) points of *text*.

    Raises:
        InputError, EngineError: as `summarize`.
    """
    return _answer("key_points", text, value=max_points)


@shared_task(base=CachedTask, cache=_policy("questions"), name="workers.questions")
def questions(text: str, num_questions: int = OPTIONS["questions"].default) -> dict[str, Any]:
    """Write up to *num_questions* (1 to 20) questions that *text* answers.

    Raises:
        InputError, EngineError: as `summarize`.
    """
    return _answer("questions", text, value=num_questions)


@shared_task(base=CachedTask, cache=_policy("qa"), name="workers.qa")
def qa(text: str, question: str) -> dict[str, Any]:
    """Answer *question* from *text*.

    A question that the text does not answer gets ``success: False``, ``result: None`` and the reason ``no_answer`` in
    the metadata, and is not stored.

    Raises:
        InputError, EngineError: as `summarize`.
    """
    return _answer("qa", text, question=question)


@shared_task(base=CachedTask, bind=True, redact_arguments=True, name="workers.batch")
def batch(self: Any, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """Run 1 to 50 operations, one after the other in this process; each of them uses the cache by itself.

    A bad item, or one whose engine gives no usable answer, fails alone. Items that ask for the same are run once. For
    items side by side send them as a ``group`` of the tasks above.

    Args:
        self: the task.
        requests: each ``{"operation", "text", "question"?, "options"?}``.

    Returns:
        ``{total_requests, completed, failed, results}``, where each result is ``{request_index, status, response,
        error}``, its status ``completed`` or ``failed``.

    Raises:
        InputError: not a list of 1 to 50 items.
    """
    _check_batch(requests)
    done: dict[str, dict[str, Any]] = {}
    results = [{"request_index": i, **_run_item(self.app, item, done)} for i, item in enumerate(requests)]
    failed = sum(result["status"] == "failed" for result in results)
    return {
        "total_requests": len(results),
        "completed": len(results) - failed,
        "failed": failed,
        "results": results,
    }


def _check_batch(requests: object) -> None:
    if not isinstance(requests, (list, tuple)) or not 1 <= len(requests) <= MAX_BATCH:
        raise InputError("requests", f"must be a list of 1 to {MAX_BATCH} items")


def _run_item(app: Any, item: object, done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the outcome of *item*, from *done* if the same was asked before."""
    # Only what an item can cause: time limits, Retry and our own bugs concern the whole batch.
    try:
        operation, arguments = parse_item(item)
        same = json.dumps([operation, arguments], sort_keys=True)
        if same not in done:
            done[same] = _outcome(app.tasks[_PREFIX + operation], arguments)
    except InputError as error:
        return _failed(error)
    return copy.deepcopy(done[same])


def _outcome(task: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"status": "completed", "response": task(**arguments), "error": None}
    except EngineError as error:
        return _failed(error)


def _failed(error: Exception) -> dict[str, Any]:
    return {"status": "failed", "response": None, "error": f"{type(error).__name__}: {error}"}


def parse_item(item: object) -> tuple[str, dict[str, Any]]:
    """Return the operation of a batch item and its task's checked arguments, defaults filled in.

    Raises:
        InputError: it has not the form that `batch` says, or an argument is outside its limits.

    >>> parse_item({"operation": "key_points", "text": "It rained all day."})
    ('key_points', {'text': 'It rained all day.', 'max_points': 5})
    """
    if not isinstance(item, Mapping):
        raise InputError("request", f"must be an object, not {type(item).__name__}")
    operation = item.get("operation")
    if not isinstance(operation, str) or operation not in PROMPT_VERSIONS:
        raise InputError("operation", f"must be one of {', '.join(PROMPT_VERSIONS)}")
    if item.keys() - _ITEM_FIELDS:
        raise InputError("request", f"may hold {', '.join(sorted(_ITEM_FIELDS))} only")
    arguments: dict[str, Any] = {"text": check_text(item.get("text")), **_options(operation, item.get("options"))}
    if operation == "qa":
        arguments["question"] = check_question(item.get("question"))
    elif item.get("question") is not None:
        raise InputError("question", f"{operation} takes none")
    return operation, arguments


def _options(operation: str, given: object) -> dict[str, int]:
    if given is None:
        return check_option(operation)
    if not isinstance(given, Mapping):
        raise InputError("options", f"must be an object, not {type(given).__name__}")
    known = OPTIONS.get(operation)
    if given.keys() - ({known.name} if known else set()):
        raise InputError("options", f"{operation} takes {known.name if known else 'none'} only")
    return check_option(operation, given.get(known.name) if known else None)


def _answer(operation: str, text: object, question: object = None, value: object = None) -> dict[str, Any]:
    """Ask the engine and return the response."""
    request = make_request(operation, text, question, value)
    engine = current_engine()
    completion = engine.complete(request)
    annotate(model=completion.model, usage=completion.usage)
    return make_response(request, completion, engine.name)
