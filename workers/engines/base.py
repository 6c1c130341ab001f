"""
What an AI operation needs from the thing that answers it.

In: `EngineRequest`.   Out: `Completion`, or an `EngineError`.   Pure.

EngineError                  no answer that could be used
├── FailedReply              the engine says that it failed
├── EmptyReply               no text at all
├── RefusedReply             the engine, or a filter in front of it, would not answer
├── TruncatedReply           cut off by a limit
└── UnparsableReply          not in the form that was asked for

Every error is made from ``(operation, detail)`` alone, so that it comes back whole through Celery's JSON results.
None holds a prompt, a text or a reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, Protocol

FinishReason = Literal["stop", "length", "content_filter", "refusal", "error"]

NO_ANSWER: Final = "NO_ANSWER"
"""The reply to a question that the text does not answer; the prompt asks for it by this name."""


class EngineRequest(NamedTuple):
    """One AI operation: as a prompt for a model, and in its parts for an engine that needs no prompt."""

    operation: str
    system: str
    prompt: str
    parameters: Mapping[str, Any]
    text: str
    question: str | None = None


class Completion(NamedTuple):
    """What an engine answered.

    ``usage`` counts in units that its names say (``input_tokens``, ``output_words``); ``model`` is the one that
    answered, which may differ from the one that was asked.
    """

    text: str
    usage: Mapping[str, int] | None
    model: str
    finish_reason: FinishReason


class Engine(Protocol):
    """Something that answers AI operations.

    ``name``, ``model`` and ``sampling`` are part of the cache key: two engines that may answer differently must
    differ in one of them.
    """

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def sampling(self) -> Mapping[str, Any]: ...

    def complete(self, request: EngineRequest) -> Completion:
        """Answer *request*.

        Raises:
            EngineError: there is no answer; any other exception is a bug of the engine.
        """


class EngineError(RuntimeError):
    """There is no answer that could be used.

    Args:
        operation: such as ``summarize``.
        detail: what is wrong, without any text of the prompt or the reply.
    """

    def __init__(self, operation: str, detail: str) -> None:
        super().__init__(operation, detail)
        self.operation, self.detail = operation, detail

    def __str__(self) -> str:
        return f"{self.operation}: {self.detail}"


class FailedReply(EngineError):  # noqa: N818 - read as a noun in handlers
    """The engine says that it failed."""


class EmptyReply(EngineError):  # noqa: N818 - read as a noun in handlers
    """The engine answered with no text."""


class RefusedReply(EngineError):  # noqa: N818 - read as a noun in handlers
    """The engine, or a filter in front of it, would not answer."""


class TruncatedReply(EngineError):  # noqa: N818 - read as a noun in handlers
    """The reply was cut off by a limit."""


class UnparsableReply(EngineError):  # noqa: N818 - read as a noun in handlers
    """The reply is not in the form that was asked for."""
