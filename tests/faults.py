"""A TCP proxy that breaks replies in the ways that networks and servers do, and a port that never answers."""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

DELAY_S = 0.2
TRICKLE_S = 0.04
_RESET = struct.pack("ii", 1, 0)

Fault = Callable[["FaultProxy", socket.socket, bytes], bool]
"""What is done with a reply; False ends the connection."""


class FaultProxy:
    """Stands between a client and a server; `fault` says what happens to replies from now on.

    Args:
        port: the real server's port on the loopback address.
        tls: speak TLS to the client, with a certificate that nobody signed.
    """

    def __init__(self, port: int, *, tls: bool = False) -> None:
        self._target = ("127.0.0.1", port)
        self.fault: Fault = healthy
        self.connects = 0
        self._tls = _tls_context() if tls else None
        self._links: list[socket.socket] = []
        self._stopping = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        return f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it
        self._accepting.join()

    def wait(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connects += 1
            self._links.append(near)
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            held.callback(near.close)
            far = held.enter_context(socket.create_connection(self._target))
            if self._tls:
                near = held.enter_context(self._tls.wrap_socket(near, server_side=True))
            while self._pass_on(near, far):
                pass

    def _pass_on(self, near: socket.socket, far: socket.socket) -> bool:
        pending = isinstance(near, ssl.SSLSocket) and near.pending()
        ready = [near] if pending else select.select([near, far], [], [])[0]
        if near in ready:
            request = near.recv(65536)
            far.sendall(request)
            return bool(request)
        reply = far.recv(65536)
        return bool(reply) and self.fault(self, near, reply)


def _tls_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).parent / "data" / "localhost.pem")
    return context


def healthy(proxy: FaultProxy, client: socket.socket, reply: bytes) -> bool:
    return send(client, reply)


def slow(proxy: FaultProxy, client: socket.socket, reply: bytes) -> bool:
    proxy.wait(DELAY_S)
    return send(client, reply)


def half_then_silence(proxy: FaultProxy, client: socket.socket, reply: bytes) -> bool:
    return send(client, reply[: len(reply) // 2])


def half_then_reset(proxy: FaultProxy, client: socket.socket, reply: bytes) -> bool:
    send(client, reply[: len(reply) // 2])
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return False


def half_then_end(proxy: FaultProxy, client: socket.socket, reply: bytes) -> bool:
    send(client, reply[: len(reply) // 2])
    return False


def dropped(proxy: FaultProxy, client: socket.socket, reply: bytes) -> bool:
    return True


def trickled(proxy: FaultProxy, client: socket.socket, reply: bytes) -> bool:
    for byte in reply:
        if not send(client, bytes([byte])):
            return False
        proxy.wait(TRICKLE_S)
    return True


def answers(canned: bytes) -> Fault:
    """Return a fault that answers *canned* to everything."""
    return lambda proxy, client, reply: send(client, canned)


def send(link: socket.socket, data: bytes) -> bool:
    with contextlib.suppress(OSError):
        link.sendall(data)
        return True
    return False


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """Yield the URL of a port whose backlog is full: a connection attempt there gets no answer at all."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(8):
            filler = held.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield f"redis://127.0.0.1:{port}/0"


def free_port() -> int:
    """Return a port that nobody listens on, and that no client of anybody's is given until it is used."""
    while True:
        port = secrets.choice(range(20_000, 32_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def eventually(is_true: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait until *is_true*, and fail after *within_s*."""
    deadline = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.005)
