"""
What a reply of a server that speaks OpenAI's protocol says.

In: bytes, or a status with headers and bytes.   Out: a `Completion`, or `AttemptFailed`.   Pure.

Everything in a reply is untrusted: only what has the right form is taken, and no text of it reaches an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from workers.engines.base import (
    Completion,
    EmptyReply,
    EngineError,
    FailedReply,
    FinishReason,
    RateLimited,
    RefusedReply,
    RejectedRequest,
    Unavailable,
    UnknownModel,
    UnparsableReply,
)
from workers.engines.retrying import AttemptFailed, retry_after_s
from workers.engines.thoughts import without_thoughts

_AGAIN: Final = frozenset({408, 409, 425, 429})
_FINISHED: Final[Mapping[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
}
_FILTERED: Final = frozenset({"content_filter", "content_policy_violation"})
_SPENT: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
# What a server may say about a request that is safe to repeat: words of the protocol, nothing that it makes up.
_CODES: Final = frozenset(
    {"context_length_exceeded", "exceed_context_size_error", "invalid_api_key", "model_not_found", *_SPENT}
)
_PARAMS: Final = frozenset(
    {"max_completion_tokens", "max_tokens", "messages", "model", "response_format", "seed", "temperature"}
)
_UNABLE: Final = frozenset({400, 422})
_FORMAT: Final = re.compile(r"response_format|json_schema", re.IGNORECASE)
_MAX_MODEL_CHARS: Final = 200
_MAX_TOKENS: Final = 2**40
_HINTS: Final = {
    401: "check AICACHE_OPENAI_API_KEY",
    403: "check the rights of AICACHE_OPENAI_API_KEY",
    404: "check AICACHE_OPENAI_MODEL, and that AICACHE_OPENAI_BASE_URL is whole (nearly all end in /v1)",
}


class SchemaRefused(AttemptFailed):
    """The server cannot answer by a JSON schema."""


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: Any = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: Any = None


class _Paid(msgspec.Struct):
    model: Any = None
    usage: Any = None


class _Reply(_Paid):
    choices: list[_Choice] | None = None
    error: Any = None


def completion_of(operation: str, asked: str, body: bytes, answered_by: str | None = None) -> Completion:
    """Return what *body*, a reply with status 200, says.

    Args:
        operation: such as ``summarize``.
        asked: the model that was asked.
        body: of the reply.
        answered_by: pattern of models; an answer of another, or of one that the reply does not name, is a substitute.

    Raises:
        AttemptFailed: it ends too early.
        UnparsableReply, EmptyReply, FailedReply: it is no completion, has no choice, or says that it failed.
    """
    try:
        reply = msgspec.json.decode(body, type=_Reply)
    except (ValueError, RecursionError) as error:
        if _ends_early(error, body):
            raise AttemptFailed(Unavailable(operation, "the server's reply ends too early"), again=True) from None
        raise UnparsableReply(operation, "the server's reply is not a chat completion") from None
    if reply.error:
        raise FailedReply(operation, "the server replied with an error under status 200")
    if reply.choices is None:
        raise UnparsableReply(operation, "the server's reply is not a chat completion")
    if not reply.choices:
        raise EmptyReply(operation, "no choices")
    choice = reply.choices[0]
    text = without_thoughts(choice.message.content or "")
    model = _model(reply.model)
    swapped = answered_by is not None and (model is None or not fnmatchcase(model, answered_by))
    return Completion(text, _usage(reply.usage), model or asked, _finish_reason(choice), swapped)


def paid_for(body: bytes) -> tuple[str | None, dict[str, int] | None]:
    """Return the model and the tokens that *body* tells of, also if it is no completion.

    >>> paid_for(b'{"choices": [], "model": "m", "usage": {"prompt_tokens": 9}}')
    ('m', {'input_tokens': 9})
    """
    try:
        reply = msgspec.json.decode(body, type=_Paid)
    except (ValueError, RecursionError):
        return None, None
    return _model(reply.model), _usage(reply.usage)


def _ends_early(error: Exception, body: bytes) -> bool:
    """Return whether *body* is the beginning of JSON: a server that says no length can be cut off unseen."""
    said = str(error)
    return said == "Input data was truncated" or said.endswith(f"(byte {len(body)})")


def _finish_reason(choice: _Choice) -> FinishReason:
    if choice.message.refusal:
        return "refusal"
    given = choice.finish_reason
    return _FINISHED.get(given, "error") if isinstance(given, str) else "error"


def _model(given: Any) -> str | None:
    """Return the name of the model that answered, None if the reply has none that can be used."""
    usable = isinstance(given, str) and 0 < len(given) <= _MAX_MODEL_CHARS and given.isprintable()
    return str(given) if usable else None


def _usage(given: Any) -> dict[str, int] | None:
    """Return the tokens: ``input_tokens`` (of which ``cached_input_tokens``) and ``output_tokens``."""
    if not isinstance(given, dict):
        return None
    details = given.get("prompt_tokens_details")
    counts = {
        "input_tokens": given.get("prompt_tokens"),
        "cached_input_tokens": details.get("cached_tokens") if isinstance(details, dict) else None,
        "output_tokens": given.get("completion_tokens"),
    }
    sound = {name: count for name, count in counts.items() if type(count) is int and 0 <= count < _MAX_TOKENS}
    if not sound.get("cached_input_tokens") or sound["cached_input_tokens"] > sound.get("input_tokens", 0):
        sound.pop("cached_input_tokens", None)
    return sound or None


def failure_of(operation: str, status: int, headers: Mapping[str, str], body: bytes, now: float) -> AttemptFailed:
    """Return what a reply with a *status* from 300 on means.

    Args:
        operation: such as ``summarize``.
        status: of the reply.
        headers: of the reply, names in small letters.
        body: of the reply, whatever it is.
        now: seconds since the epoch.
    """
    said = _said(body)
    if said.get("code") in _FILTERED:
        return AttemptFailed(RefusedReply(operation, f"status {status}, filtered"))
    if _refuses_schema(status, said):
        return SchemaRefused(RejectedRequest(operation, f"status {status}, about response_format"))
    wait_s = retry_after_s(headers, now)
    again = (status in _AGAIN or status >= 500) and headers.get("x-should-retry") != "false"
    again = again and said.get("code") not in _SPENT
    return AttemptFailed(_error(operation, status, said, wait_s), again=again, wait_s=wait_s)


def _said(body: bytes) -> Mapping[str, str]:
    """Return the texts of a reply's error object, which is under ``error``, or the whole; or a text is there."""
    try:
        whole = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return {}
    found = whole.get("error", whole) if isinstance(whole, dict) else None
    if isinstance(found, str):
        return {"message": found}
    return {name: text for name, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}


def _error(operation: str, status: int, said: Mapping[str, str], wait_s: float | None) -> EngineError:
    words = [f"status {status}", *_known(said)]
    if status == 429:
        asked = [] if wait_s is None else [f"retry after {wait_s:.3g} s"]
        return RateLimited(operation, ", ".join([*words, *asked]), wait_s)
    if status in _AGAIN or status >= 500:
        return Unavailable(operation, ", ".join(words))
    if status < 400:
        words.append("a redirect: put where it leads into AICACHE_OPENAI_BASE_URL")
    hint = _HINTS.get(status)
    kind = UnknownModel if status == 404 else RejectedRequest
    return kind(operation, ", ".join([*words, *([hint] if hint else [])]))


def _known(said: Mapping[str, str]) -> list[str]:
    """Return what of an error object may be repeated."""
    code, param = said.get("code"), said.get("param")
    words = [code] if code in _CODES else []
    return [*words, f"about {param}"] if param in _PARAMS else words


def _refuses_schema(status: int, said: Mapping[str, str]) -> bool:
    return status in _UNABLE and any(_FORMAT.search(said.get(name, "")) for name in ("param", "message", "detail"))
