"""The public names: all there, each from one place, and loading neither Celery nor Redis before they are used."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import aicache_tasks

CONTRACT = """
CachedTask CachePolicy install annotate AIResponseCache CacheKeyGenerator CachePerformanceMonitor CacheEntry MISS
NotCached AICacheError SettingsError DirectiveError KeyEncodingError MissingExtraError PayloadError CorruptPayload
UnknownPayload NotStorable StoreError StoreUnavailable StoreRefused BreakerOpen
"""


def run(program: str) -> str:
    """Return what *program* prints in a fresh process."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_names_of_the_contract_are_public() -> None:
    assert set(CONTRACT.split()) <= set(aicache_tasks.__all__)


def test_the_list_of_names_is_sorted_complete_and_without_repeats() -> None:
    constants = [name for name in aicache_tasks.__all__ if name.isupper()]
    classes = [name for name in aicache_tasks.__all__ if name[0].isupper() and not name.isupper()]
    functions = [name for name in aicache_tasks.__all__ if name[0].islower()]
    assert aicache_tasks.__all__ == [*sorted(constants), *sorted(classes), *sorted(functions)]
    assert len(set(aicache_tasks.__all__)) == len(aicache_tasks.__all__)
    assert set(aicache_tasks._HOMES) == set(aicache_tasks.__all__)


@pytest.mark.parametrize("name", aicache_tasks.__all__)
def test_each_name_is_the_one_that_its_module_defines(name: str) -> None:
    home = importlib.import_module(f"aicache_tasks.{aicache_tasks._HOMES[name]}")
    assert getattr(aicache_tasks, name) is getattr(home, name)
    assert name in dir(aicache_tasks)


def test_no_module_has_the_name_of_a_public_function() -> None:
    """Importing such a module would put it in the function's place."""
    modules = {module.name for module in pkgutil.iter_modules(aicache_tasks.__path__)}
    assert modules.isdisjoint(aicache_tasks.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = aicache_tasks.no_such_name


def test_importing_the_package_loads_neither_celery_nor_redis() -> None:
    loaded = run("import sys, aicache_tasks; print(*sorted({m.partition('.')[0] for m in sys.modules}))").split()
    assert {"celery", "kombu", "redis", "msgspec", "zstandard"}.isdisjoint(loaded)


def test_names_that_need_no_celery_do_not_load_it() -> None:
    names = [name for name in aicache_tasks.__all__ if name not in ("CachedTask", "alert_changed", "install")]
    program = f"import sys; from aicache_tasks import {', '.join(names)}; print('celery' in sys.modules)"
    assert run(program) == "False"


def test_a_cache_works_without_celery() -> None:
    program = (
        "import sys; from aicache_tasks import AIResponseCache; cache = AIResponseCache('memory://');"
        "cache.cache_response('t', 'op', {}, 1);"
        "print(cache.get_cached_response('t', 'op', {}), 'celery' in sys.modules)"
    )
    assert run(program) == "1 False"


def test_a_star_import_gives_every_name() -> None:
    assert run(f"from aicache_tasks import *; print(all(n in globals() for n in {aicache_tasks.__all__!r}))") == "True"
