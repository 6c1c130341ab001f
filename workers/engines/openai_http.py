"""
The SDK's client, made safe: a deadline for every byte, bounded replies, no setting of the surroundings.

In: a request's body.   Out: the body of a reply with status 200, or `AttemptFailed`.   Importing this loads the SDK.

HTTP clients bound each read, so that a server that drips can hold a caller for ever: here each read of a socket gets
what is left of the attempt. Every request has a connection of its own: what a server sends after a reply, or too late,
is nobody's answer. Its headers are made here, so that what the SDK reads from ``OPENAI_CUSTOM_HEADERS``,
``OPENAI_ORG_ID`` and the like goes nowhere. Redirects are not followed: one could send a prompt to another host.
"""

from __future__ import annotations

import ssl
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final

import httpcore2
import httpx2
import openai

from workers.engines.base import RejectedRequest, TimedOut, Unavailable, UnparsableReply
from workers.engines.deadline import addresses, turns
from workers.engines.openai_reply import failure_of
from workers.engines.openai_settings import OpenAISettings
from workers.engines.retrying import AttemptFailed

MAX_REPLY_BYTES: Final = 4 * 1024 * 1024
ATTEMPT_ENDS: Final[ContextVar[float]] = ContextVar("attempt_ends")
"""When the attempt that runs here gives up, by `time.monotonic`."""
_HEADERS: Final = (
    (b"accept", b"application/json"),
    (b"accept-encoding", b"identity"),
    (b"connection", b"close"),
    (b"content-type", b"application/json"),
    (b"user-agent", f"OpenAI/Python {openai.__version__}".encode("ascii")),
)
_PIECE_BYTES: Final = 65_536
_PLAIN: Final = frozenset({"", "identity", "utf-8"})
"""Content encodings that encode nothing; the last is none at all, but servers say it."""
_NO_KEY: Final = "none"  # the SDK insists on one; no request carries it


class UnreadableReply(Exception):  # noqa: N818 - a reply, not an error of ours
    """A reply is too large or was compressed unasked: reading on could take any amount of memory."""


class RefusedByStatus(Exception):  # noqa: N818 - a reply, not an error of ours
    """A reply has a status from 300 on.

    The SDK would make an error of it, and while it reads the body it swallows every exception: a soft time limit too.
    """

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(status)
        self.status, self.headers, self.body = status, headers, body


class Client:
    """The way to one server, shared by the threads of one process.

    Raises:
        SettingsError: the key cannot be read.
    """

    def __init__(self, settings: OpenAISettings) -> None:
        transport = _Transport(settings)
        http_client = httpx2.Client(transport=transport, trust_env=False, follow_redirects=False)
        self._sdk = _SDK(
            api_key=_NO_KEY, base_url=settings.base_url, max_retries=0, timeout=None, http_client=http_client
        )
        weakref.finalize(self, self._sdk.close)

    def close(self) -> None:
        """Close all connections, of answers that are under way too."""
        self._sdk.close()

    def send(self, operation: str, body: dict[str, Any], ends: float) -> bytes:
        """Return the reply to *body*.

        Args:
            operation: for the errors.
            body: of a chat completion.
            ends: when to give up, by `time.monotonic`.

        Raises:
            AttemptFailed: there is none, or its status is not 2xx.
            RejectedRequest: *body* holds text that UTF-8 cannot carry.
            UnparsableReply: it cannot be read.
        """
        given_s = max(0.0, ends - time.monotonic())
        token = ATTEMPT_ENDS.set(ends)
        try:
            return self._sdk.chat.completions.with_raw_response.create(**body).content
        except RefusedByStatus as error:
            raise failure_of(operation, error.status, error.headers, error.body, time.time()) from None
        except httpcore2.TimeoutException:
            raise AttemptFailed(TimedOut(operation, f"no whole reply within {given_s:.3g} s"), again=True) from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError, openai.APIConnectionError) as error:
            raise AttemptFailed(Unavailable(operation, f"connection: {type(error).__name__}"), again=True) from None
        except UnreadableReply as error:
            raise UnparsableReply(operation, f"the server's reply is {error}") from None
        except UnicodeEncodeError:  # it holds the whole request
            raise RejectedRequest(operation, "a text of the request cannot be encoded as UTF-8") from None
        finally:
            ATTEMPT_ENDS.reset(token)


def left_s() -> float:
    """Return the seconds that the attempt has left.

    Raises:
        httpcore2.ReadTimeout: none.
    """
    left = ATTEMPT_ENDS.get() - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout("the deadline has passed")
    return left


class _SDK(openai.OpenAI):
    @property
    def default_headers(self) -> dict[str, str | openai.Omit]:
        """Return none of the surroundings: one that cannot be sent, or that asks for a form, breaks the request."""
        return {"Content-Type": "application/json"}


class _Transport(httpx2.BaseTransport):
    def __init__(self, settings: OpenAISettings) -> None:
        key, by_tls = settings.read_key(), settings.base_url.startswith("https:")
        self._authorization = [] if key is None else [(b"authorization", b"Bearer " + key.encode("ascii"))]
        self._pool = httpcore2.ConnectionPool(
            ssl_context=ssl.create_default_context() if by_tls else None,  # takes tens of milliseconds
            max_connections=None,
            network_backend=_Backend(settings.connect_timeout_s),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        url, body = request.url, request.read()
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        size = str(len(body)).encode("ascii")
        headers = [(b"host", url.netloc), (b"content-length", size), *_HEADERS, *self._authorization]
        reply = self._pool.handle_request(httpcore2.Request(request.method, target, headers=headers, content=body))
        assert isinstance(reply.stream, Iterable)
        response = httpx2.Response(reply.status, headers=reply.headers, stream=_Bounded(reply.stream))
        if response.status_code >= 300:
            raise RefusedByStatus(response.status_code, response.headers, _error_body(response))
        if _is_compressed(response):
            response.close()
            raise UnreadableReply("compressed, though asked not to be")
        return response

    def close(self) -> None:
        self._pool.close()


def _is_compressed(response: httpx2.Response) -> bool:
    return response.headers.get("content-encoding", "").strip().lower() not in _PLAIN


def _error_body(response: httpx2.Response) -> bytes:
    """Return what an error says, nothing where that cannot be read, or not in time: its status says the most."""
    try:
        return b"" if _is_compressed(response) else response.read()
    except (UnreadableReply, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException):
        return b""
    finally:
        response.close()


class _Bounded(httpx2.SyncByteStream):
    """A reply's body; ends in `UnreadableReply` when it is too large."""

    def __init__(self, stream: Iterable[bytes]) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._stream:
            size += len(chunk)
            if size > MAX_REPLY_BYTES:
                raise UnreadableReply(f"over {MAX_REPLY_BYTES} bytes")
            yield chunk

    def close(self) -> None:
        close = getattr(self._stream, "close", None)
        if close is not None:
            close()


class _Backend(httpcore2.NetworkBackend):
    """Plain sockets whose every step ends when the attempt does."""

    def __init__(self, connect_timeout_s: float) -> None:
        self._connect_timeout_s, self._plain = connect_timeout_s, httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Try each address of *host*; all of them together get the seconds to connect."""
        ends = time.monotonic() + min(self._connect_timeout_s, left_s())
        refused: Exception = httpcore2.ConnectTimeout("no connection in time")
        for address, share_s in turns(_addresses(host, port), ends):
            try:
                return _Stream(self._plain.connect_tcp(address, port, share_s, local_address, socket_options))
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                refused = error
        raise refused


def _addresses(host: str, port: int) -> list[str]:
    try:
        return addresses(host, port)
    except OSError as error:
        raise httpcore2.ConnectError("the host's name has no address") from error


class _Stream(httpcore2.NetworkStream):
    """A connection whose every step ends when the attempt does."""

    def __init__(self, plain: httpcore2.NetworkStream) -> None:
        self._plain = plain

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._plain.read(max_bytes, left_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE_BYTES):
            self._plain.write(buffer[start : start + _PIECE_BYTES], left_s())

    def close(self) -> None:
        self._plain.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._plain.start_tls(ssl_context, server_hostname, left_s()))

    def get_extra_info(self, info: str) -> Any:
        return self._plain.get_extra_info(info)
