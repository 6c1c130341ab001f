"""
The engine for every server that speaks OpenAI's chat completions: OpenAI, Ollama, vLLM, llama.cpp and others.

In: `EngineRequest`.   Out: `Completion`, or an `EngineError` within the task's time limit.

The SDK is loaded, and its client made, when a process asks for its first answer: a key needs neither, and connections
do not survive a fork.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from aicache_tasks import annotate
from aicache_tasks.errors import MissingExtraError
from workers.engines.base import Completion, EngineError, EngineRequest, Unavailable, UnknownModel
from workers.engines.deadline import deadline_within
from workers.engines.openai_reply import SchemaRefused, completion_of, paid_for
from workers.engines.openai_settings import OpenAISettings, settings_from
from workers.engines.retrying import AttemptFailed, with_retries

if TYPE_CHECKING:
    from workers.engines.openai_http import Client

_log: Final = logging.getLogger("workers.engines")
_PACKAGES: Final = ("openai", "httpx2", "httpcore2")
_LOG_VARIABLE: Final = "OPENAI_LOG"


class OpenAIEngine:
    """Asks one server, and another of its models if the first fails for good.

    Safe to share between threads and greenlets; after a fork each process makes connections of its own.

    Args:
        settings: where and what to ask.
    """

    name: Final = "openai"

    def __init__(self, settings: OpenAISettings) -> None:
        self.settings = settings
        self.model = settings.model
        self.sampling: Mapping[str, Any] = MappingProxyType(
            {
                "server": settings.server or settings.base_url,
                "temperature": settings.temperature,
                "seed": settings.seed,
                "max_output_tokens": settings.max_output_tokens,
                "json_schema": settings.json_schema,
                "extra_body": settings.extra_body,
                # Without it keys stay as they are; with it what was kept before is not used: it may be another model's.
                **({} if settings.answered_by is None else {"answered_by": settings.answered_by}),
            }
        )
        self._clients: dict[int, Client] = {}
        self._without_schema: set[str] = set()

    def __repr__(self) -> str:
        return f"OpenAIEngine(model={self.model!r}, base_url={self.settings.base_url!r})"

    def complete(self, request: EngineRequest) -> Completion:
        """Answer *request*; ``substitute`` is set if it was not the model of the key that answered.

        What a reply took that is no answer is annotated.

        Raises:
            EngineError: there is no answer; when it is because of time, before the task's soft limit.
            SettingsError: the key cannot be read.
            MissingExtraError: the SDK is not installed.
        """
        deadline = deadline_within(self.settings.timeout_s)
        try:
            return self._answer(request, self.model, deadline)
        except (Unavailable, UnknownModel) as error:
            if self.settings.fallback_model is None or time.monotonic() >= deadline:
                raise
            return self._fall_back(request, error, deadline)

    def close(self) -> None:
        """Close this process's connections; the next answer makes new ones."""
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def _fall_back(self, request: EngineRequest, error: EngineError, deadline: float) -> Completion:
        assert self.settings.fallback_model is not None
        _log.warning("model %s failed, its fallback is asked: %s", self.model, error)
        try:
            return self._answer(request, self.settings.fallback_model, deadline)._replace(substitute=True)
        except EngineError as second:
            raise error from second

    def _answer(self, request: EngineRequest, model: str, deadline: float) -> Completion:
        return with_retries(lambda: self._attempt(request, model, deadline), self.settings.retries, deadline)

    def _attempt(self, request: EngineRequest, model: str, deadline: float) -> Completion:
        """Ask once; by a schema first, unless the server has refused one for *model*."""
        schema = request.schema if self.settings.json_schema and model not in self._without_schema else None
        ends = min(deadline, time.monotonic() + (self.settings.attempt_timeout_s or self.settings.timeout_s))
        try:
            reply = self._send(request, model, schema, ends)
        except SchemaRefused:
            if schema is None:
                raise
            reply = self._send(request, model, None, ends)
            self._without_schema.add(model)
        try:
            return completion_of(request.operation, model, reply, self.settings.answered_by)
        except EngineError:
            named, usage = paid_for(reply)
            annotate(model=named or model, usage=usage)
            raise

    def _send(self, request: EngineRequest, model: str, schema: Mapping[str, Any] | None, ends: float) -> bytes:
        client = self._client()
        try:
            return client.send(request.operation, self._body(request, model, schema), ends)
        except (AttemptFailed, EngineError):
            raise
        except BaseException:
            self._clients.pop(os.getpid(), None)  # interrupted anywhere: it is used no more, and closed when let go
            raise

    def _body(self, request: EngineRequest, model: str, schema: Mapping[str, Any] | None) -> dict[str, Any]:
        settings = self.settings
        # OpenAI's newer models refuse the older name, other servers do not know the newer one.
        limit = "max_completion_tokens" if settings.is_openai else "max_tokens"
        form = {"name": request.operation, "strict": True, "schema": schema}
        body = {
            "model": model,
            "messages": [{"role": "system", "content": request.system}, {"role": "user", "content": request.prompt}],
            "temperature": settings.temperature,
            "seed": settings.seed,
            limit: settings.max_output_tokens,
            "response_format": None if schema is None else {"type": "json_schema", "json_schema": form},
            "extra_body": settings.extra_body,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _client(self) -> Client:
        """Return this process's client; what a fork inherited is left to the parent."""
        pid = os.getpid()
        if pid not in self._clients:
            return self._clients.setdefault(pid, _client_class()(self.settings))
        return self._clients[pid]


def from_environment() -> OpenAIEngine:
    """Return the engine that ``AICACHE_OPENAI_*`` describes.

    Raises:
        SettingsError: a variable is wrong, or the model is not named.
    """
    return OpenAIEngine(settings_from(os.environ))


def _client_class() -> type[Client]:
    level = os.environ.pop(_LOG_VARIABLE, None)  # of others; the SDK would set up logging by it when it loads
    try:
        from workers.engines.openai_http import Client
    except ModuleNotFoundError as missing:
        if missing.name not in _PACKAGES:
            raise
        raise MissingExtraError("openai", "openai") from None
    finally:
        if level is not None:
            os.environ[_LOG_VARIABLE] = level
    return Client
