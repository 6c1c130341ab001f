"""
One small GET that ends in time, with the standard library alone: a process that only makes keys needs no SDK.

In: a URL, and seconds.   Out: the body of a reply with status 200.

Each read of the socket gets what is left of the time: a server that drips holds nobody. No proxy is asked, and no
redirect is followed.
"""

from __future__ import annotations

import io
import socket
import ssl
import time
from http.client import HTTPException, HTTPResponse
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from workers.engines.deadline import addresses, turns

MAX_BYTES: Final = 1 << 20


def get(url: str, timeout_s: float) -> bytes:
    """Return what *url* holds, up to 1 MiB; what is cut off is not told from what is whole.

    Args:
        url: as `checked_url` returns it.
        timeout_s: for all of it, but for a name server that does not answer.

    Raises:
        OSError: there is no whole reply in time (`TimeoutError`), it is too large, or its status is not 200.
    """
    ends, parts = time.monotonic() + timeout_s, urlsplit(url)
    with _connected(parts, ends) as connection:
        head = f"GET {parts.path or '/'} HTTP/1.0\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        connection.settimeout(_left_s(ends))
        connection.sendall(head.encode("ascii"))
        return _body(_Timely(connection, ends))


def _connected(parts: SplitResult, ends: float) -> socket.socket:
    by_tls, host = parts.scheme == "https", parts.hostname or ""
    port = parts.port or (443 if by_tls else 80)
    plain = _opened(host, port, ends)
    if not by_tls:
        return plain
    try:
        plain.settimeout(_left_s(ends))
        return ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def _opened(host: str, port: int, ends: float) -> socket.socket:
    refused: OSError = TimeoutError("no connection in time")
    for address, share_s in turns(addresses(host, port), ends):
        try:
            return socket.create_connection((address, port), share_s)
        except OSError as error:
            refused = error
    raise refused


def _left_s(ends: float) -> float:
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError("no whole reply in time")
    return left


class _Timely(io.RawIOBase):
    """What `HTTPResponse` takes for a socket: each of its reads gets what is left of the time."""

    def __init__(self, connection: socket.socket, ends: float) -> None:
        self._connection, self._ends = connection, ends

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(_left_s(self._ends))
        return self._connection.recv_into(buffer)


def _body(connection: Any) -> bytes:
    try:
        response = HTTPResponse(connection)
        response.begin()
        if response.status != 200:
            raise OSError(f"status {response.status}")
        body = response.read(MAX_BYTES + 1)
    except HTTPException as error:
        raise OSError(f"no reply of HTTP ({type(error).__name__})") from None
    if len(body) > MAX_BYTES:
        raise OSError("the reply is too large")
    return body
