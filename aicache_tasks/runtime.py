"""
The composition root: one `Runtime` per process and application.

In: an application's configuration and the environment.   Out: settings, policies and the cache, made when first used.
Knows Celery only as an object with a ``conf``.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import weakref
from types import MethodType
from typing import Any, Final

from aicache_tasks.cache import AIResponseCache
from aicache_tasks.errors import SettingsError
from aicache_tasks.events import CallEvents
from aicache_tasks.outbox import producer_name
from aicache_tasks.policy import CachePolicy, PolicyRegistry
from aicache_tasks.settings import PREFIX, Settings, hide, mask_url

_RUNTIMES: Final[weakref.WeakKeyDictionary[Any, Runtime]] = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()  # a signal handler that calls a task while its thread is in here must not wait for itself


class Runtime:
    """What the tasks of one application share in this process.

    Args:
        app: the Celery application.
    """

    def __init__(self, app: Any) -> None:
        self._app = weakref.ref(app)
        self.policies = PolicyRegistry()
        self._settings: Settings | None = None
        self._cache: AIResponseCache | None = None
        self._eager_keys: tuple[str, ...] = ()
        self.ships = False
        """Whether timings go to the summary records: the application was given to `install`."""
        self.worker = ""
        """Node name of the worker whose process this is."""
        self.events: CallEvents | None = None
        """What tells monitors of calls; only in a worker that sends events."""

    @property
    def settings(self) -> Settings:
        """The checked settings; read from the application once.

        Raises:
            SettingsError: one of them is wrong.
        """
        if self._settings is None:
            app = self._app()
            assert app is not None, "the application is gone"
            self._settings = read_settings(app)
            hide_secrets(app)
        return self._settings

    @property
    def cache(self) -> AIResponseCache:
        """The cache; made at first use, with no connection yet.

        Raises:
            SettingsError: a setting is wrong, or there is no server.
        """
        if self._cache is None:
            with _LOCK:
                if self._cache is None:
                    made = AIResponseCache(
                        settings=self.settings, policies=self.policies, ship=self.ships, origin=self._origin
                    )
                    if self._cache is None:  # else a signal handler made one meanwhile
                        self._cache = made
        return self._cache

    def _origin(self) -> str:
        return self.worker or producer_name()

    def always_eager(self) -> bool:
        """Say whether tasks of the application run where they are called."""
        app = self._app()
        if app is None:
            return False
        if not self._eager_keys:
            self._eager_keys = tuple(dict.fromkeys(_conf(app)._to_keys("task_always_eager")))
        # The view's own look-up costs microseconds; its maps under its keys are the same answer.
        for mapping in app.conf.maps:
            for key in self._eager_keys:
                if key in mapping:
                    return bool(mapping[key])
        return False

    def send_events(self) -> None:
        """Tell monitors of calls from now on, of the part of them that the settings say."""
        if self.settings.event_sample:
            self.events = CallEvents(self._app(), self.settings.event_sample)

    def close(self) -> None:
        """Drop this process's connections, if it has any."""
        if self._cache is not None:
            self._cache.close()


def runtime_of(app: Any) -> Runtime:
    """Return the runtime of *app* in this process, made when first asked for."""
    found = _RUNTIMES.get(app)
    if found is not None:
        return found
    with _LOCK:
        _watch_forks()
        return _RUNTIMES.setdefault(app, Runtime(app))


def cached_tasks(app: Any) -> list[Any]:
    """Return the tasks of *app* that have a policy, by name."""
    return [task for _, task in sorted(app.tasks.items()) if getattr(task, "cache_policy", None) is not None]


def useless_policies(app: Any) -> list[str]:
    """Return the names of the tasks that were given a policy and do not have the base class that reads it.

    What other packages' tasks call ``cache`` may connect, or raise, when it is touched: no property is read.
    """
    return sorted(name for name, task in app.tasks.items() if _is_policy(inspect.getattr_static(task, "cache", None)))


def _is_policy(given: Any) -> bool:
    """Say whether *given* is a policy, or a dict with names of one and no others, which may be another package's."""
    if not issubclass(type(given), CachePolicy | dict):  # asks *given* itself for nothing
        return False
    try:
        return bool(given) and bool(CachePolicy.of(given))
    except (SettingsError, TypeError, ValueError):
        return False


def name_worker(worker: str) -> None:
    """Tell this process whose it is, where it was not forked from a worker that knew."""
    for runtime in list(_RUNTIMES.values()):
        runtime.worker = runtime.worker or worker


def end_events(*, tell: bool) -> None:
    """Stop telling of calls in this process; see `CallEvents.end`."""
    for runtime in list(_RUNTIMES.values()):
        if runtime.events is not None:
            runtime.events.end(tell=tell)


def reset_runtime(app: Any) -> None:
    """Forget the runtime of *app* and what its tasks made of it, so that changed settings are read; for tests."""
    found = _RUNTIMES.get(app)
    if found is None:
        return
    found._settings, cache, found._cache = None, found._cache, None
    for task in app.tasks.values():
        vars(task).pop("_task_cache", None)
    if cache is not None:
        cache.close()


def _after_fork() -> None:
    global _LOCK  # noqa: PLW0603 - another thread may have held it at the fork
    _LOCK = threading.RLock()


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_after_fork)


def read_settings(app: Any) -> Settings:
    """Return the settings of *app* as they are now; raises `SettingsError` for a wrong one."""
    settings = Settings.from_mapping(_given(app), os.environ)
    if settings.url is None and settings.share_backend:
        settings = settings.updated({"aicache_url": settings.require_url(app.conf.result_backend)})
    return settings


def _given(app: Any) -> dict[str, Any]:
    """Return the ``aicache_*`` settings, whether they have the application's namespace, upper case, or neither."""
    conf = _conf(app)
    least_first = reversed(conf.maps)
    return {name: mapping[key] for mapping in least_first for key, name in _ours(conf, mapping)}


def _conf(app: Any) -> Any:
    """Return the configuration, read: one that is still pending has no maps."""
    _ = app.conf.task_always_eager
    return app.conf


def _ours(conf: Any, mapping: Any) -> list[tuple[str, str]]:
    """Return the keys of ``aicache_*`` settings in *mapping*, each with its plain name."""
    prefix = (conf.prefix or "").lower()
    named = [(key, key.lower().removeprefix(prefix)) for key in mapping if isinstance(key, str)]
    return [(key, name) for key, name in named if name.startswith(PREFIX)]


def hide_secrets(app: Any) -> None:
    """Take passwords out of what ``inspect conf`` and ``celery report`` show of *app*; `Settings` still reads them."""
    conf = _conf(app)
    for key, name in {pair for mapping in conf.maps for pair in _ours(conf, mapping)}:
        hidden = hide(name, conf[key])
        if hidden is not conf[key]:
            conf[key] = hidden
    vars(conf)["table"] = MethodType(_masked_table, conf)  # an attribute that is set would be a setting


def _masked_table(conf: Any, with_defaults: bool = False, censored: bool = True) -> dict[str, Any]:
    """Return the settings as Celery shows them, with the passwords masked of addresses that Celery does not know.

    Such as ``redbeat_redis_url``. Only what is shown is masked: whoever reads the setting needs the password.
    """
    shown = type(conf).table(conf, with_defaults, censored)
    if not censored:
        return dict(shown)
    return {
        name: mask_url(given) if isinstance(given, str) and "://" in given else given for name, given in shown.items()
    }
