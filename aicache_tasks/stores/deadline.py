"""
A socket whose reads and writes end at one deadline.

In: a connected socket and a `time.perf_counter` deadline.   Out: bytes, or `DeadlineExceeded`.

A socket's own timeout starts again with each ``recv``, so that a server which trickles bytes can keep a "50 ms" call
for seconds, and ``SO_RCVTIMEO`` starts again after each signal. `poll` with what is left of the deadline does neither.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, cast

REPLY_GRACE_S = 0.003
"""What a reply gets though the deadline passed before it was read: the process stalled, not the server."""

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class DeadlineExceeded(TimeoutError):  # noqa: N818 - names what happened
    """The deadline passed and a last non-blocking try found nothing."""


class DeadlineSocket:
    """What a driver uses of a socket, with one deadline for all of it.

    Args:
        sock: connected (and past its TLS handshake); made non-blocking here.
        deadline: a `time.perf_counter` value; assign ``deadline`` before each operation.
    """

    __slots__ = ("_overtime", "_pending", "_poll_read", "_recv", "_recv_into", "_sock", "deadline")

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        sock.setblocking(False)
        self._overtime = 0.0
        self._sock, self.deadline = sock, deadline
        self._recv, self._recv_into = sock.recv, sock.recv_into
        self._pending: Callable[[], int] | None = getattr(sock, "pending", None)
        self._poll_read = _poller(sock, for_reading=True)

    def recv_into(self, buffer: Any) -> int:
        """Read into *buffer*; return how many bytes, 0 at the end of the stream."""
        return cast("int", self._receive(self._recv_into, buffer))

    def recv(self, size: int) -> bytes:
        """Return up to *size* bytes, none at the end of the stream."""
        return cast("bytes", self._receive(self._recv, size))

    def sendall(self, data: bytes) -> None:
        """Send all of *data*."""
        now = time.perf_counter()
        if now > self.deadline:
            self.deadline = now + REPLY_GRACE_S
        sent = self._try_send(data)
        while sent < len(data):
            sent += self._await_room(data, sent)

    def is_quiet(self) -> bool:
        """Return whether an idle connection is fit for use: nothing to read, and so not at its end either."""
        return not self._poll_read(0) and not (self._pending and self._pending())

    def _receive(self, receive: Callable[[Any], Any], into: Any) -> Any:
        if (now := time.perf_counter()) > self.deadline:
            self._go_into_overtime(now)
        arrived = True
        while True:
            try:  # before any wait: a server on the same core has often replied by now, and a poll is another call
                return receive(into)
            except _WOULD_BLOCK:
                if not arrived:
                    raise DeadlineExceeded from None
            arrived = self._await_bytes()

    def _go_into_overtime(self, now: float) -> None:
        """Read on for a moment, once: what has arrived is read, and an endless stream still has an end."""
        if self.deadline == self._overtime:
            raise DeadlineExceeded
        self.deadline = self._overtime = now + REPLY_GRACE_S

    def _await_bytes(self) -> bool:
        if self._pending and self._pending():
            return True
        left_s = self.deadline - time.perf_counter()
        return bool(self._poll_read(left_s * 1000 if left_s > 0 else 0))

    def _await_room(self, data: bytes, sent: int) -> int:
        left_s = self.deadline - time.perf_counter()
        if left_s <= 0:
            raise DeadlineExceeded
        _poller(self._sock, for_reading=False)(left_s * 1000)
        return self._try_send(memoryview(data)[sent:])

    def _try_send(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data)
        except _WOULD_BLOCK:
            return 0

    def settimeout(self, timeout_s: float | None) -> None:
        """Do nothing: the deadline rules."""

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._sock.fileno()

    def getpeername(self) -> Any:
        """Return the other end's address."""
        return self._sock.getpeername()

    def getsockname(self) -> Any:
        """Return this end's address."""
        return self._sock.getsockname()

    def shutdown(self, how: int) -> None:
        """Shut the stream down, also when the other end did so already."""
        plain = getattr(socket.socket, "shutdown", None)  # eventlet's sockets have it, their class does not
        with contextlib.suppress(OSError):
            if plain is not None:
                plain(self._sock, how)
            else:
                self._sock.shutdown(how)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def _poller(sock: socket.socket, *, for_reading: bool) -> Callable[[float], Any]:
    """Return a function of milliseconds: true once *sock* is ready. Eventlet takes ``poll`` away."""
    if not hasattr(select, "poll"):
        return lambda wait_ms: any(select.select([sock][:for_reading], [sock][for_reading:], [], wait_ms / 1000))
    poller = select.poll()
    poller.register(sock, select.POLLIN if for_reading else select.POLLOUT)
    return poller.poll
