"""deploy/health.py, where the machine has a proxy."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading

import pytest

from tests.deploy.conftest import ROOT
from tests.faults import free_port

pytestmark = pytest.mark.deploy


def test_no_proxy_is_asked_whether_flower_is_healthy() -> None:
    """Docker puts its client's proxies into the environment of every container."""
    here = {"http_proxy": f"http://127.0.0.1:{free_port()}", "PYTHONPATH": ""}
    with http.server.HTTPServer(("127.0.0.1", 0), Flower) as flower:
        threading.Thread(target=flower.serve_forever, args=[0.01], daemon=True).start()
        command = [sys.executable, str(ROOT / "deploy" / "health.py"), "flower"]
        done = subprocess.run(
            command, env=here | {"FLOWER_PORT": str(flower.server_port)}, capture_output=True, check=False
        )
        flower.shutdown()
    assert (done.returncode, done.stderr) == (0, b"")


class Flower(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthcheck" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""
