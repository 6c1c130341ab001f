"""The systemd units: systemd takes them, and they run what docker-compose.yml runs."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.conftest import ROOT
from tests.deploy.test_compose import seconds
from workers.app import HARD_LIMIT_S

pytestmark = pytest.mark.deploy

FOLDER = ROOT / "deploy" / "systemd"
NAMES = sorted(path.name for path in FOLDER.glob("*.service"))
OF_COMPOSE = ("worker", "beat", "flower")
MOST_EXPOSED = 25
"""Of the 100 that ``systemd-analyze security`` gives to a unit with no protection; its words begin with OK under 50."""
PLANTED = {
    "a directive that there is not": ("RestartSec=5", "RestartSeconds=5"),
    "a value that there is not": ("KillMode=mixed", "KillMode=gently"),
    "a section that there is not": ("[Install]", "[Installs]"),
    "a program that there is not": ("/deploy/with-secrets", "/deploy/with-secret"),
}


class Unit(configparser.RawConfigParser):
    """A unit file; names keep their case, and those that repeat become one value of several lines."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
        self.lines = path.read_text().splitlines()
        self.read_string(path.read_text())

    def optionxform(self, optionstr: str) -> str:
        return optionstr

    def all(self, name: str) -> list[str]:
        """Return every value of a name that may repeat."""
        return [line.partition("=")[2] for line in self.lines if line.startswith(f"{name}=")]


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    assert program, "no systemd-analyze; on Debian: apt install systemd"
    return subprocess.run([program, *words], capture_output=True, text=True, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as if /opt/aicache were here, with the commands that it has."""
    opt = tmp_path / "opt"
    (opt / "venv").mkdir(parents=True)
    (opt / "venv" / "bin").symlink_to(Path(sys.executable).parent)
    (opt / "deploy").symlink_to(ROOT / "deploy")
    (opt / "docs").symlink_to(ROOT / "docs")
    for name in NAMES:
        (tmp_path / name).write_text((FOLDER / name).read_text().replace("/opt/aicache", str(opt)))
    return tmp_path


def verify(path: Path) -> tuple[int, str]:
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(path))
    return done.returncode, "\n".join(line for line in done.stderr.splitlines() if path.name in line)


@pytest.mark.parametrize("name", NAMES)
def test_systemd_takes_it(name: str, installed: Path) -> None:
    assert verify(installed / name) == (0, "")


@pytest.mark.parametrize("mistake", PLANTED)
def test_systemd_has_something_to_say_of(mistake: str, installed: Path) -> None:
    right, wrong = PLANTED[mistake]
    path = installed / "aicache-worker.service"
    assert right in path.read_text()
    path.write_text(path.read_text().replace(right, wrong, 1))
    assert verify(path) != (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_hardened(name: str, installed: Path) -> None:
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", str(installed / name))
    assert done.returncode == 0, done.stdout[-600:] + done.stderr


@pytest.mark.parametrize("name", OF_COMPOSE)
def test_it_runs_what_compose_runs(name: str, services: dict[str, Any]) -> None:
    unit = Unit(FOLDER / f"aicache-{name}.service")
    entrypoint, *words = shlex.split(unit["Service"]["ExecStart"])
    assert entrypoint == "/opt/aicache/deploy/with-secrets"
    here = [word.replace("/opt/aicache/venv/bin/", "").replace("%%", "%") for word in words]
    there = [
        word.replace("/app/", "/opt/aicache/").replace("0.0.0.0", "127.0.0.1") for word in services[name]["command"]
    ]
    assert here == there


@pytest.mark.parametrize("name", OF_COMPOSE)
def test_it_has_the_secrets_that_compose_gives_and_no_other(name: str, services: dict[str, Any]) -> None:
    unit = Unit(FOLDER / f"aicache-{name}.service")
    given = dict(credential.split(":") for credential in unit.all("LoadCredential"))
    assert given == {name: f"/etc/aicache/secrets/{name}" for name in given}
    said = dict(assigned.split("=", 1) for assigned in unit.all("Environment"))
    files = {key: value.replace("%d/", "/run/secrets/") for key, value in said.items() if key.endswith("_FILE")}
    environ = services[name]["environment"]
    assert files == {key: value for key, value in environ.items() if key.endswith("_FILE")}
    assert {Path(path).name for path in files.values()} == given.keys()


@pytest.mark.parametrize("name", OF_COMPOSE)
def test_it_reads_the_settings_of_all_and_then_its_own(name: str) -> None:
    unit = Unit(FOLDER / f"aicache-{name}.service")
    assert unit.all("EnvironmentFile") == ["-/etc/aicache/all.env", f"-/etc/aicache/{name}.env"]
    guide = (ROOT / "docs" / "deployment.md").read_text()
    assert "`/etc/aicache/all.env`" in guide
    assert f"`{name}.env`" in guide


@pytest.mark.parametrize("name", OF_COMPOSE)
def test_it_has_the_time_to_stop_that_compose_gives(name: str, services: dict[str, Any]) -> None:
    unit = Unit(FOLDER / f"aicache-{name}.service")
    assert float(unit["Service"]["TimeoutStopSec"]) == seconds(services[name]["stop_grace_period"])
    assert unit["Service"]["KillMode"] == "mixed"  # a worker's children hear of it from the worker


def test_a_worker_may_finish_its_longest_task() -> None:
    assert float(Unit(FOLDER / "aicache-worker.service")["Service"]["TimeoutStopSec"]) > HARD_LIMIT_S


def test_the_guide_gives_the_servers_acl_files_that_they_can_read() -> None:
    """The folder of the secrets is root's alone, and Debian's servers run as users of their own."""
    guide = (ROOT / "docs" / "deployment.md").read_text()
    given = set(re.findall(r"^install -o redis .*/(\w+\.acl) (\S+) ", guide, re.MULTILINE))
    assert given == {(f"{name}.acl", f"/etc/redis/{name}.acl") for name in ("broker", "cache")}
    assert set(re.findall(r"aclfile (/\S+\.acl)", guide)) == {path for _, path in given}


def test_what_listens_listens_on_this_machine_only() -> None:
    for name in NAMES:
        told = re.findall(r"--(?:address|host)=(\S+)", (FOLDER / name).read_text())
        assert set(told) <= {"127.0.0.1"}
