"""
The engine for a small language model on this machine, served by `aicache-llm`. English only.

In: `EngineRequest`.   Out: `Completion`, or an `EngineError`.

A model of this size loses the thread of a page and makes up answers to questions that a text does not answer. So the
extractive engine goes first: it picks the sentences that a summary, key points and questions are made from, one
request each for the latter two, and it lets a question pass only with the sentence that answers it. The mood is judged
from the whole text. A larger model needs none of this: ask it with the engine ``openai``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from aicache_tasks import annotate
from aicache_tasks.errors import SettingsError
from workers.engines import extractive
from workers.engines.base import NO_ANSWER, Completion, Engine, EngineError, EngineRequest, UnparsableReply
from workers.engines.deadline import deadline_within
from workers.engines.openai import OpenAIEngine
from workers.engines.openai_settings import OpenAISettings, checked_url
from workers.engines.small_get import get
from workers.operations import usable_text

URL_VARIABLE: Final = "AICACHE_LLM_URL"
MODEL_VARIABLE: Final = "AICACHE_LLM_MODEL"
VERSION: Final = 1
"""Part of the key: raise it whenever what is picked, or how it is asked for, changes."""
SEED: Final = 1
MAX_OUTPUT_TOKENS: Final = 400
TIMEOUT_S: Final = 600.0
"""Long, because answers queue for the one model; a task's soft time limit ends the wait before."""
NAME_S: Final = 5.0
FEWEST_WORDS: Final = 60
MOST_WORDS: Final = 150
"""Bounds of what a summary is made from: less says nothing, and in more the model loses the thread."""
MOODS: Final = ("positive", "negative", "neutral", "mixed")

_SYSTEM: Final = "You are a helpful assistant."
_MOOD: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "type": "object",
        "properties": {
            "sentiment": {"enum": MOODS},
            # llama.cpp's grammars know no bounds of numbers.
            "confidence": {"enum": [0.5, 0.6, 0.7, 0.8, 0.9]},
            # One sentence: it cannot repeat itself until its tokens are spent.
            "explanation": {"type": "string", "pattern": r'^[A-Z][^."\\\n]{20,300}[.]$'},
        },
        "required": ["sentiment", "confidence", "explanation"],
        "additionalProperties": False,
    }
)
_QUESTION: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "type": "object",
        "properties": {
            "question": {"type": "string", "pattern": r'^(Who|What|When|Where|Why|How) [^?"\\\n]{8,120}\?$'},
        },
        "required": ["question"],
        "additionalProperties": False,
    }
)


class _Plan(NamedTuple):
    """What the model is asked, and what becomes of its replies."""

    asked: Sequence[tuple[str, Mapping[str, Any] | None]]
    join: Callable[[Sequence[str]], str]


class LocalEngine:
    """Asks the model behind *asked* in the way that suits a small one.

    Args:
        asked: an engine that sends prompts to a model as they are.
    """

    name: Final = "local"

    def __init__(self, asked: Engine) -> None:
        self._asked = asked
        self.model = asked.model
        picks = extractive.ExtractiveEngine().model
        self.sampling: Mapping[str, Any] = MappingProxyType({**asked.sampling, "picks": picks, "version": VERSION})

    def complete(self, request: EngineRequest) -> Completion:
        """Answer *request*; raises what the engine behind raises.

        What the parts of it took that came before an error is annotated.
        """
        deadline_within(TIMEOUT_S)  # the limit counts from here: what splits the text may have to load first
        plan = _PLANS[request.operation](request, extractive.split(request.text))
        replies: list[Completion] = []
        try:
            return self._joined(self._ask(request, plan, replies), replies)
        except BaseException:
            if replies:
                annotate(model=replies[-1].model, usage=_usage(replies))
            raise

    def _ask(self, request: EngineRequest, plan: _Plan, replies: list[Completion]) -> _Plan:
        """Fill *replies* up to a bad one; return what to make of them."""
        for prompt, schema in plan.asked:
            replies.append(self._asked.complete(request._replace(system=_SYSTEM, prompt=prompt, schema=schema)))
            if not _is_usable(request, replies[-1]):
                return plan._replace(join=lambda texts: texts[-1])  # one bad part makes a bad whole: it is told by it
        return plan

    def _joined(self, plan: _Plan, replies: Sequence[Completion]) -> Completion:
        if not replies:
            return Completion(plan.join([]), None, self.model, "stop")
        text = plan.join([reply.text for reply in replies])
        substitute = any(reply.substitute for reply in replies)
        return replies[-1]._replace(text=text, usage=_usage(replies) or None, substitute=substitute)


def _usage(replies: Sequence[Completion]) -> dict[str, int]:
    return {
        name: sum((reply.usage or {}).get(name, 0) for reply in replies)
        for name in dict.fromkeys(name for reply in replies for name in reply.usage or ())
    }


def _is_usable(request: EngineRequest, reply: Completion) -> bool:
    try:
        usable_text(request, reply)
    except EngineError:
        return False
    return True


def make_engine() -> LocalEngine:
    """Return the engine that asks the server at ``AICACHE_LLM_URL``.

    ``AICACHE_LLM_MODEL`` is the model's name as the server prints it. With it a key needs no server; without it the
    server is asked once in each process.

    Raises:
        SettingsError: the URL is not set, or wrong, or nothing that names a model answers there.
        MissingExtraError: a package that picks sentences is not installed.
    """
    url = os.environ.get(URL_VARIABLE)
    if not url:
        raise SettingsError(f"{URL_VARIABLE} is required by the engine local: the URL that aicache-llm prints")
    return engine_at(url, os.environ.get(MODEL_VARIABLE) or served_model(url))


def engine_at(url: str, model: str) -> LocalEngine:
    """Return the engine that asks *model* at *url*; an answer of any other model is not stored."""
    settings = OpenAISettings(
        base_url=checked_url(URL_VARIABLE, url),
        model=model,
        server="aicache-llm",  # the same file answers the same on every port
        answered_by=model.replace("[", "[[]"),
        seed=SEED,
        max_output_tokens=MAX_OUTPUT_TOKENS,
        timeout_s=TIMEOUT_S,
    )
    return LocalEngine(OpenAIEngine(settings))


def served_model(url: str) -> str:
    """Return the name of the model that the server at *url* has.

    Raises:
        SettingsError: none says so within five seconds, or *url* is none.
    """
    checked = checked_url(URL_VARIABLE, url)
    try:
        return msgspec.json.decode(get(f"{checked}/models", NAME_S), type=_Models).data[0].id
    except OSError as error:
        raise _no_server(checked, str(error) or type(error).__name__) from None
    except (ValueError, IndexError, RecursionError) as error:  # whose words may be the server's
        raise _no_server(checked, type(error).__name__) from None


def _no_server(url: str, detail: str) -> SettingsError:
    return SettingsError(f"{URL_VARIABLE}: no model server at {url}: {detail}")


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def _summary(request: EngineRequest, sentences: Sequence[str]) -> _Plan:
    words = request.parameters["max_length"]
    picked = extractive.summarize(sentences, max(FEWEST_WORDS, min(words, MOST_WORDS))) or request.text
    length = "one short sentence" if words < FEWEST_WORDS else "two short sentences"
    return _Plan([(f"Summarize in {length}:\n\n{picked}", None)], "".join)


def _mood(request: EngineRequest, sentences: Sequence[str]) -> _Plan:
    asked = "Is the mood of this text positive, negative, neutral or mixed? Explain in one sentence."
    return _Plan([(f"{asked}\n\n{request.text}", _MOOD)], "".join)


def _points(request: EngineRequest, sentences: Sequence[str]) -> _Plan:
    picked = extractive.key_sentences(sentences, request.parameters["max_points"])
    asked = [(f"Shorten this sentence. Keep names and numbers.\n\n{sentence}", None) for sentence in picked]
    return _Plan(asked, _lines)


def _questions(request: EngineRequest, sentences: Sequence[str]) -> _Plan:
    picked = extractive.key_sentences(sentences, request.parameters["num_questions"])
    asked = [(f"{sentence}\n\nWrite one question about this.", _QUESTION) for sentence in picked]
    return _Plan(asked, lambda replies: _lines([_field("questions", reply, "question") for reply in replies]))


def _answer(request: EngineRequest, sentences: Sequence[str]) -> _Plan:
    assert request.question is not None
    found = extractive.find_answer(request.question, sentences)
    asked = [(f"{found}\n\nQuestion: {request.question}\nAnswer in one full sentence.", None)] if found else []
    return _Plan(asked, lambda replies: "".join(replies) or ("" if found else NO_ANSWER))


_PLANS: Final[Mapping[str, Callable[[EngineRequest, Sequence[str]], _Plan]]] = MappingProxyType(
    {"summarize": _summary, "sentiment": _mood, "key_points": _points, "questions": _questions, "qa": _answer}
)


def _lines(replies: Sequence[str]) -> str:
    """Return one line for each reply that says something that none before it says."""
    return "\n".join(f"- {line}" for line in dict.fromkeys(_one_line(replies)))


def _one_line(replies: Sequence[str]) -> Iterator[str]:
    return (line for reply in replies if (line := " ".join(reply.split())))


def _field(operation: str, reply: str, name: str) -> str:
    try:
        found = json.loads(reply)[name]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UnparsableReply(operation, "not the JSON that was asked for") from None
    return found if isinstance(found, str) else ""
