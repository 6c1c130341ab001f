"""
One small GET that ends in time, with the standard library alone: a process that only makes keys needs no SDK.

In: a URL, and seconds.   Out: the body of a reply with status 200.

The reply is read to the end of its connection, each piece in what is left of the time, and only then looked at: a
server that drips holds nobody. No proxy is asked, and no redirect is followed.
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
_PIECE_BYTES: Final = 65_536


def get(url: str, timeout_s: float) -> bytes:
    """Return what *url* holds, up to 1 MiB with its headers.

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
        return _body(_read(connection, ends))


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


def _read(connection: socket.socket, ends: float) -> bytes:
    received = bytearray()
    while True:
        connection.settimeout(_left_s(ends))
        piece = connection.recv(_PIECE_BYTES)
        if not piece:
            return bytes(received)
        received += piece
        if len(received) > MAX_BYTES:
            raise OSError("the reply is too large")


def _left_s(ends: float) -> float:
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError("no whole reply in time")
    return left


class _Received:
    """A connection of which everything has been read."""

    def __init__(self, received: bytes) -> None:
        self._received = received

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._received)


def _body(received: bytes) -> bytes:
    connection: Any = _Received(received)
    try:
        response = HTTPResponse(connection)
        response.begin()
        if response.status != 200:
            raise OSError(f"status {response.status}")
        return response.read()
    except HTTPException as error:
        raise OSError(f"no reply of HTTP ({type(error).__name__})") from None
