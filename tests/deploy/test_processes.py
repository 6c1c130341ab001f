"""
The services of docker-compose.yml as processes of this machine: the same commands, environments, secrets and health
checks, with hosts, ports and paths of this machine in the place of a container's.

No engine runs here, so that images, networks, users and limits are not tried.
"""

from __future__ import annotations

import base64
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from aicache_tasks.testing import valkey_binary
from tests.deploy.conftest import ROOT, make_secrets
from tests.deploy.test_compose import seconds
from tests.faults import free_port

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]
"""Some tests run seven commands, each of which imports Celery, and the first starts all services before."""

ORDER = ("broker", "cache", "worker", "beat", "flower")
TEXT = "The ferry sails at nine. It carries cars and people. " * 20
IN_A_HURRY = {"AICACHE_ROLLUP_PERIOD_S": "1", "FLOWER_PURGE_OFFLINE_WORKERS": "1"}
"""What is not as in the file: beat asks for a roll-up each second, Flower forgets workers after one."""
CALM = {"AICACHE_BUDGET_MS": "5000", "AICACHE_CONNECT_MS": "5000"}
"""Nor is this: a machine that stalls must not turn hits into faults."""
WATCHER = "user tests on nopass ~* &* +@all\n"
"""Asks each server what it refused."""
GUIDE = (ROOT / "docs" / "deployment.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
ONE_ANSWERS = ("--timeout=60", f"--destination=worker@{socket.gethostname()}")
"""To those who ask for what the only worker has to say: it is waited for, as long as a busy machine takes."""
CELERY_SHOWS = [
    ("worker", "report"),
    ("beat", "report"),
    ("flower", "report"),
    ("worker", "inspect", "conf", *ONE_ANSWERS),
    ("flower", "inspect", "conf", "--json", *ONE_ANSWERS),
    ("worker", "inspect", "stats", *ONE_ANSWERS),
    ("worker", "aicache", "doctor", "--json"),
]
PAGES = ("/", "/workers", "/tasks", "/broker", "/aicache", "/metrics", "/api/workers", "/api/tasks", "/api/aicache")
READY_S = 90.0
STOP_S = 25.0
COMMAND_S = 120.0


class Deployment:
    """Runs services of the resolved file; `down` stops them all."""

    def __init__(self, services: dict[str, Any], folder: Path) -> None:
        self.services, self.folder = services, folder
        self.ports = {"broker": free_port(), "cache": free_port(), "flower": free_port()}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        addresses = [f"--{name}=127.0.0.1:{self.ports[name]}" for name in ("broker", "cache")]
        self.secrets = make_secrets(folder / "secrets", *addresses)
        for acl in self.secrets.glob("*.acl"):
            acl.chmod(0o600)
            acl.write_text(acl.read_text() + WATCHER)
        _stand_ins(folder / "bin")

    def up(self, name: str) -> None:
        """Start a service and wait until it is healthy, as Compose does before it starts what depends on it."""
        home = self.folder / name
        home.mkdir()
        with (home / "log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                self.command(name), env=self.environ(name), cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + READY_S
        while not self.is_healthy(name):
            assert self.running[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, f"{name} is not healthy: {self.log(name)}"
            time.sleep(0.2)

    def command(self, name: str) -> list[str]:
        """Return what the container would run: the image's entrypoint and the service's command."""
        words = [self._here(name, word) for word in self.services[name]["command"]]
        if _is_server(name):
            return [*words, "--port", str(self.ports[name]), "--bind", "127.0.0.1", "--dir", "."]
        (entrypoint,) = re.findall(r"^ENTRYPOINT (.+)", DOCKERFILE, re.MULTILINE)
        return [*(self._here(name, word) for word in json.loads(entrypoint)), *words]

    def environ(self, name: str) -> dict[str, str]:
        """Return the container's environment: nothing of this process's own."""
        given = self.services[name].get("environment") or {}
        said = {key: self._here(name, value) for key, value in given.items() if value is not None}
        path = os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), "/usr/bin", "/bin"])
        here = {"PATH": path, "HOSTNAME": socket.gethostname(), "C_FORCE_ROOT": "1"}
        port = {"FLOWER_PORT": str(self.ports["flower"])} if name == "flower" else {}
        return here | port | IN_A_HURRY | CALM | said

    def is_healthy(self, name: str) -> bool:
        """Run the service's health check."""
        kind, *words = self.services[name]["healthcheck"]["test"]
        words = [self._here(name, word.replace("$$", "$")) for word in words]
        command = ["/bin/sh", "-c", *words] if kind == "CMD-SHELL" else words
        limit_s = seconds(self.services[name]["healthcheck"]["timeout"])
        if _is_server(name):
            command = [command[0], "-p", str(self.ports[name]), *command[1:]]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": self.folder}
        try:
            return (
                subprocess.run(command, env=self.environ(name), timeout=limit_s, check=False, **quiet).returncode == 0
            )
        except subprocess.TimeoutExpired:
            return False

    def stop(self, name: str) -> int:
        """Stop a service as Compose does, and return its exit code; fail if it would have to be killed."""
        process = self.running[name]
        process.send_signal(signal.SIGTERM)
        return process.wait(min(seconds(self.services[name]["stop_grace_period"]), STOP_S))

    def down(self) -> None:
        for process in reversed(self.running.values()):
            process.kill()
            process.wait()

    def log(self, name: str) -> str:
        return (self.folder / name / "log").read_text(errors="replace")[-4000:]

    def url(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def refused(self, server: str) -> list[str]:
        """Return what the server has refused to whom, but to those who tried no login."""
        with self.watch(server) as client:
            return [f"{entry['username']}: {entry['object']}" for entry in client.acl_log()]

    def watch(self, server: str) -> Any:
        import redis

        return redis.Redis(port=self.ports[server], username="tests", password="any", decode_responses=True, protocol=2)

    def run(self, service: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command where the service runs, as ``docker compose run`` does."""
        return self.exec(service, str(ROOT / "deploy" / "with-secrets"), *words)

    def exec(self, service: str, *words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command where the service runs, as ``docker compose exec`` does, with a text for it to read."""
        there = {"env": self.environ(service), "cwd": self.folder, "input": given}
        return subprocess.run(words, **there, capture_output=True, text=True, check=False, timeout=COMMAND_S)

    def of_the_guide(self, begins: str) -> list[list[str]]:
        """Return what each command in the guide that begins so runs in the worker's container."""
        lines = re.findall(rf"^ *{re.escape(begins)} (.+)$", GUIDE, re.MULTILINE)
        return [shlex.split(self._here("worker", line.partition(" < ")[0])) for line in lines]

    def shown_by_flower(self) -> dict[str, str]:
        """Return what Flower's pages hold, by their paths, once it knows the worker's configuration."""
        login, worker = self.url("flower_basic_auth"), f"worker@{socket.gethostname()}"
        eventually(lambda: "redbeat_redis_url" in flower(self, "/api/workers?refresh=1", login)[1])
        found = {path: flower(self, path, login) for path in (*PAGES, f"/worker/{worker}")}
        assert {path: status for path, (status, _) in found.items() if status != 200} == {}
        return {path: text for path, (_, text) in found.items()}

    def _here(self, name: str, text: str) -> str:
        """Return *text* with what is here in the place of what is in the container. A secret that the service was not
        given is not there."""
        given = [secret["source"] for secret in self.services[name].get("secrets", [])]
        text = re.sub(r"/run/secrets/([\w.]+)", lambda m: str(self.secrets / (m[1] if m[1] in given else "x")), text)
        text = text.replace("/app/deploy", str(ROOT / "deploy")).replace("0.0.0.0", "127.0.0.1")
        return text.replace("--port=5555", f"--port={self.ports['flower']}")


def _is_server(name: str) -> bool:
    return name in ("broker", "cache")


def _stand_ins(folder: Path) -> None:
    """Give the programs of Valkey's image their names."""
    folder.mkdir()
    cli = shutil.which("valkey-cli") or shutil.which("redis-cli")
    assert cli, "no valkey-cli or redis-cli; on Debian: apt install redis-tools"
    for name, program in {"valkey-server": valkey_binary(), "valkey-cli": Path(cli)}.items():
        (folder / name).symlink_to(program)


@pytest.fixture(scope="module")
def deployment(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """All services, healthy; in the end each stops in time when it is asked to."""
    deployed = Deployment(config["services"], tmp_path_factory.mktemp("deployment"))
    try:
        for name in ORDER:
            deployed.up(name)
        yield deployed
        assert {name: deployed.stop(name) for name in reversed(ORDER)} == dict.fromkeys(ORDER, 0)
    finally:
        deployed.down()


def eventually(found: Callable[[], Any], within_s: float = 60.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (value := found()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return value


def flower(deployment: Deployment, path: str, login: str = "") -> tuple[int, str]:
    headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login else {}
    request = urllib.request.Request(f"http://127.0.0.1:{deployment.ports['flower']}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def sample(text: str, name: str, **labels: str) -> float:
    """Return the sum of what Prometheus's text says of a metric with these labels."""
    from prometheus_client.parser import text_string_to_metric_families

    samples = [one for family in text_string_to_metric_families(text) for one in family.samples if one.name == name]
    return sum(one.value for one in samples if labels.items() <= one.labels.items())


def ask(deployment: Deployment) -> Any:
    """Return what the worker answers to a task sent from where the worker's settings are."""
    send = (
        "import json, sys; from workers.tasks import summarize; import workers.app;"
        "print(json.dumps(summarize.delay(sys.argv[1]).get(timeout=60)))"
    )
    done = deployment.run("worker", "python", "-c", send, TEXT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def summaries(deployment: Deployment) -> dict[str, Any]:
    """Return what the records say of the last ten minutes, to one who may only look."""
    done = deployment.run("flower", "celery", "-A", "workers.app", "aicache", "summaries", "--since", "10m", "--json")
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    return found


def test_a_task_is_computed_once_and_counted_by_beat_and_shown_by_flower(deployment: Deployment) -> None:
    assert ask(deployment) == ask(deployment)
    with deployment.watch("cache") as client:
        assert [key for key in client.scan_iter() if ":v1:summarize:" in key]
    eventually(lambda: _counted(summaries(deployment)) >= (1, 1))
    status, text = eventually(lambda: _with_hits(deployment))
    assert status == 200
    assert sample(text, "aicache_up") == 1


def test_the_guide_s_command_sends_a_task_and_the_next_one_shows_its_answer(deployment: Deployment) -> None:
    send, show = deployment.of_the_guide("docker compose exec worker")
    sent = deployment.exec("worker", *send)
    assert sent.returncode == 0, sent.stderr
    shown = deployment.exec("worker", *(word.replace("THE_NUMBER", sent.stdout.strip()) for word in show))
    assert shown.returncode == 0, shown.stderr
    assert "'operation': 'summarize'" in shown.stdout


@pytest.mark.parametrize("begins", ["docker compose exec -T worker", "kubectl exec --stdin deployment/worker --"])
def test_an_operator_purges_by_the_guide_s_command(deployment: Deployment, begins: str) -> None:
    ask(deployment)
    (erase,) = deployment.of_the_guide(begins)
    done = deployment.exec("worker", *erase, given=deployment.url("cache_admin_url"))
    assert done.returncode == 0, done.stderr
    with deployment.watch("cache") as client:
        assert [key for key in client.scan_iter() if ":v1:summarize:" in key], "--dry-run"


def _counted(found: Mapping[str, Any]) -> tuple[int, int]:
    rows = [row for row in found.get("rows", []) if row["operation"] == "summarize"]
    return (rows[0]["hits"], rows[0]["misses"]) if rows else (0, 0)


def _with_hits(deployment: Deployment) -> tuple[int, str] | None:
    status, text = flower(deployment, "/metrics", deployment.url("flower_basic_auth"))
    counted = sample(text, "aicache_lookups_total", operation="summarize", status="hit")
    return (status, text) if counted and sample(text, "flower_events_total", type="task-cache-hit") else None


def test_flower_forgets_a_worker_that_was_killed_and_one_that_another_name_replaced(deployment: Deployment) -> None:
    here, there = f"worker@{socket.gethostname()}", "worker@there"
    for last in ("worker-heartbeat", "worker-offline"):
        eventually(lambda: hear(deployment, there, "worker-heartbeat") or there in online(deployment))
        hear(deployment, there, last)
        eventually(lambda: online(deployment) == {here: 1})


def test_flower_forgets_workers_unless_it_is_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "user:password")
    monkeypatch.setattr("aicache_tasks.reports.flower.install_tab", lambda: None)
    config = ROOT / "deploy" / "flowerconfig.py"
    assert runpy.run_path(str(config))["purge_offline_workers"] == 120
    monkeypatch.setenv("FLOWER_PURGE_OFFLINE_WORKERS", "7")
    assert runpy.run_path(str(config))["purge_offline_workers"] == 7


def hear(deployment: Deployment, worker: str, event: str) -> None:
    """Have the broker pass on what a worker says of itself."""
    with Celery(broker=deployment.url("broker_url")) as app, app.events.default_dispatcher(worker) as dispatcher:
        dispatcher.send(event, freq=0.1)


def online(deployment: Deployment) -> dict[str, float]:
    """Return what Flower tells Prometheus of each worker that it knows."""
    text = flower(deployment, "/metrics")[1]
    said = re.findall(r'^flower_worker_online{worker="(.+)"} (.+)', text, re.MULTILINE)
    return {worker: float(value) for worker, value in said}


def test_flower_wants_its_login(deployment: Deployment) -> None:
    login = deployment.url("flower_basic_auth")
    for page in ("/", "/workers", "/tasks", "/aicache", "/api/workers", "/api/aicache"):
        assert flower(deployment, page)[0] == 401
        assert flower(deployment, page, f"{login}x")[0] == 401
    assert flower(deployment, "/aicache", login)[0] == 200


def test_flower_shows_names_and_numbers_without_login_and_nothing_else(deployment: Deployment) -> None:
    """Flower itself leaves these two open; the guide says so."""
    assert flower(deployment, "/healthcheck") == (200, "OK")
    assert flower(deployment, "/metrics")[0] == 200


def test_no_password_shows_in_a_process_list(deployment: Deployment) -> None:
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    for path in deployment.secrets.glob("*_url"):
        (password,) = re.findall(r":(\w{48})@", path.read_text())
        assert password not in shown
    assert deployment.url("flower_basic_auth").split(":")[1] not in shown


def test_no_password_shows_where_celery_and_flower_show_things(deployment: Deployment) -> None:
    ask(deployment)
    places = {f"{name}'s log": (deployment.folder / name / "log").read_text(errors="replace") for name in ORDER}
    for service, *words in CELERY_SHOWS:
        done = deployment.run(service, "celery", "-A", "workers.app", *words)
        assert done.returncode == 0, (words, done.stdout[-3000:], done.stderr)
        places[" ".join(words)] = done.stdout + done.stderr
    shown = deployment.shown_by_flower()
    assert "redbeat_redis_url" in places["report"]
    assert "redbeat_redis_url" in str(shown)
    held = [
        password for path in deployment.secrets.iterdir() for password in re.findall(r"[0-9a-f]{24,}", path.read_text())
    ]
    assert len(held) >= 8
    assert [name for name, text in (places | shown).items() if any(password in text for password in held)] == []


def test_the_servers_refuse_nothing_that_is_needed(deployment: Deployment) -> None:
    ask(deployment)
    for words in (["stats"], ["doctor"], ["invalidate", "--operation", "summarize", "--yes"]):
        done = deployment.run("worker", "celery", "-A", "workers.app", "aicache", *words)
        assert "NOPERM" not in done.stdout + done.stderr
    refused = [entry for server in ("broker", "cache") for entry in deployment.refused(server)]
    assert set(refused) == {"aicache-worker: config|get"}  # the doctor's, which says so and goes on


def test_a_server_wants_a_login_for_anything(deployment: Deployment) -> None:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    for server in ("broker", "cache"):
        with (
            redis.Redis(port=deployment.ports[server], protocol=2, retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.info()


@contextmanager
def stopped(deployment: Deployment, *names: str) -> Iterator[None]:
    """Have the processes of some services do nothing while the body runs."""
    for name in names:
        deployment.running[name].send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for name in names:
            deployment.running[name].send_signal(signal.SIGCONT)


def test_a_health_check_tells_a_service_that_does_not_answer(deployment: Deployment) -> None:
    names = ("broker", "cache", "flower")
    # Beat ends where the broker does not answer for long, and here nobody starts it again.
    with stopped(deployment, "beat", "worker"):
        with stopped(deployment, *names), ThreadPoolExecutor() as threads:
            assert [*threads.map(deployment.is_healthy, names)] == [False] * 3
        for name in names:
            eventually(lambda name=name: deployment.is_healthy(name), READY_S)
    for name in ORDER:
        eventually(lambda name=name: deployment.is_healthy(name), READY_S)


def test_flower_does_not_start_without_a_login(deployment: Deployment) -> None:
    environ = {name: value for name, value in deployment.environ("flower").items() if "BASIC_AUTH" not in name}
    done = subprocess.run(
        deployment.command("flower"),
        env=environ,
        cwd=deployment.folder,
        stderr=subprocess.PIPE,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode != 0
    assert b"FLOWER_BASIC_AUTH is not set" in done.stderr


def test_an_empty_secret_stops_its_service_and_says_which(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    environ = deployment.environ("beat") | {"CELERY_BROKER_URL_FILE": str(tmp_path / "empty")}
    done = subprocess.run(
        deployment.command("beat"), env=environ, stderr=subprocess.PIPE, check=False, timeout=COMMAND_S
    )
    assert done.returncode == 78
    assert b"CELERY_BROKER_URL_FILE" in done.stderr
