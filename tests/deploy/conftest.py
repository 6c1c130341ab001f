"""What the checks of the deployment share: the compose binary, passwords, the file as compose resolves it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("yaml") else ["test_*.py"]
"""In the environments of other tiers, which leave these tests out and have not what they need."""
ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
Run = Callable[..., subprocess.CompletedProcess[str]]


def binary() -> Path:
    """Return the path of Compose itself: the package's own command ends with 0 whatever Compose says."""
    package = importlib.util.find_spec("compose")
    assert package, "these checks need Linux on x86-64 and Python 3.11: there is no Compose of this version for others"
    (folder,) = package.submodule_search_locations or []
    return Path(folder, "docker-compose")


def run_make_secrets(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "deploy" / "make-secrets"), str(folder), *options]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def make_secrets(folder: Path, *options: str) -> Path:
    """Make a folder of passwords, and beside it what the command prints: the line for Compose's ``.env``."""
    done = run_make_secrets(folder, *options)
    assert done.returncode == 0, done.stderr
    folder.with_suffix(".env").write_text(done.stdout)
    return folder


@pytest.fixture(scope="session")
def compose() -> Run:
    """Return a function that runs Compose with arguments, on the project's file unless another is given."""

    def run(*arguments: str, file: Path = FILE, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(binary()), "--project-directory", str(ROOT), "--file", str(file), *arguments],
            env={"PATH": os.environ["PATH"], "HOME": "/nowhere", **environ},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def passwords(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of passwords as `deploy/make-secrets` makes them."""
    return make_secrets(tmp_path_factory.mktemp("deploy") / "secrets")


@pytest.fixture(scope="session")
def config(compose: Run, passwords: Path) -> dict[str, Any]:
    """The file with both profiles, as Compose resolves it."""
    done = compose("--profile", "observe", "config", "--format", "json", DEPLOY_SECRETS=str(passwords))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def services(config: dict[str, Any]) -> dict[str, Any]:
    """Each service of it, by name."""
    found: dict[str, Any] = config["services"]
    return found
