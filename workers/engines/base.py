"""
What an AI operation needs from the thing that answers it.

In: `EngineRequest`.   Out: `Completion`, or an `EngineError`.   Pure.

EngineError                  no answer that could be used
├── FailedReply              the engine says that it failed
├── EmptyReply               no text at all
├── RefusedReply             the engine, or a filter in front of it, would not answer
├── TruncatedReply           cut off by a limit
├── UnparsableReply          not in the form that was asked for
├── RejectedRequest          the server will not take the request: key, model or settings are wrong
│   └── UnknownModel         it has no such model, or the address is wrong
└── Unavailable              no reply: later there may be one
    ├── RateLimited          too many requests; ``retry_after_s`` says when to come back, if the server does
    └── TimedOut             not within the time that there was

Every error is made from its arguments alone, so that it comes back whole through Celery's JSON results. None holds a
prompt, a text or a reply.
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
    schema: Mapping[str, Any] | None = None
    """JSON schema of the reply, for an engine that can be held to one."""


class Completion(NamedTuple):
    """What an engine answered.

    ``usage`` counts in units that its names say (``input_tokens``, ``output_words``); ``model`` is the one that
    answered, which may differ from the one that was asked. ``substitute`` says that it is not the one of the key: such
    an answer is not stored.
    """

    text: str
    usage: Mapping[str, int] | None
    model: str
    finish_reason: FinishReason
    substitute: bool = False


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


class RejectedRequest(EngineError):  # noqa: N818 - read as a noun in handlers
    """The server will not take the request: sent again, it would not be taken either."""


class UnknownModel(RejectedRequest):
    """The server has no such model, or is not at this address."""


class Unavailable(EngineError):  # noqa: N818 - names a state
    """There is no reply, after all attempts; later there may be one: ``autoretry_for=(Unavailable,)``."""


class RateLimited(Unavailable):
    """The server has had too many requests.

    Args:
        operation: such as ``summarize``.
        detail: what is wrong.
        retry_after_s: when the server wants to be asked again, None if it does not say.
    """

    def __init__(self, operation: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(operation, detail)
        self.args, self.retry_after_s = (operation, detail, retry_after_s), retry_after_s


class TimedOut(Unavailable):
    """There was no whole reply within the time that there was."""
