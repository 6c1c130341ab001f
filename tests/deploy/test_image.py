"""The Dockerfile: what a linter says of it, and what it installs. Nothing here builds it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.conftest import ROOT

pytestmark = pytest.mark.deploy

DOCKERFILE = ROOT / "Dockerfile"
LOCKS = ROOT / "requirements"


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    hadolint = Path(sys.executable).with_name("hadolint")
    return subprocess.run([str(hadolint), "--no-color", str(path)], capture_output=True, text=True, check=False)


def test_the_linter_has_nothing_to_say() -> None:
    done = lint(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_would_say_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.read_text().replace("bookworm\n", "bookworm\nRUN cd /tmp\n", 1))
    assert "DL3003" in lint(tmp_path / "Dockerfile").stdout


def test_it_runs_as_nobody_special_from_a_pinned_image() -> None:
    images = re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert len(images) == 2
    assert {re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", image) is not None for image in images} == {True}
    assert re.findall(r"^USER (\S+)", DOCKERFILE.read_text(), re.MULTILINE) == ["10001:10001"]


def test_it_installs_what_the_lock_names_by_hash_and_builds_nothing() -> None:
    installs = [line for line in DOCKERFILE.read_text().splitlines() if " install " in line]
    locked, own = installs
    assert {"--require-hashes", "--only-binary=:all:", "--no-deps", "requirements/runtime.lock"} <= {*locked.split()}
    assert {"--no-deps", "--no-index", "--no-build-isolation"} <= {*own.split()}


def test_each_file_that_it_copies_is_there_and_in_the_build_context() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        word
        for line in re.findall(r"^COPY (?!--)(.+)", DOCKERFILE.read_text(), re.MULTILINE)
        for word in line.split()[:-1]
    ]
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / name).exists() for name in copied)


def test_what_is_run_here_are_the_versions_of_the_image() -> None:
    runtime, here = (pins(LOCKS / f"{name}.lock") for name in ("runtime", "deploy"))
    assert runtime - here == set()


def pins(lock: Path) -> set[str]:
    return set(re.findall(r"^\S+==\S+", lock.read_text(), re.MULTILINE))
