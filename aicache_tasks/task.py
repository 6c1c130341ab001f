"""
`CachedTask`: the task base class.

In: a task's arguments.   Out: what its body would return, from the cache if it is there.

The hook is ``__call__`` with ``super().__call__``, which Celery's worker supports: everything that wraps ``run``
(autoretry, pydantic) stays inside, and a subclass that calls ``super().run`` is looked up once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from celery import Task

from aicache_tasks.directed import Directed
from aicache_tasks.errors import NotCached, SettingsError
from aicache_tasks.fingerprint import fingerprint
from aicache_tasks.policy import AUTO_VERSION, CachePolicy, check_directives
from aicache_tasks.redaction import REQUEST, hides_arguments, redacted_options, redacted_request
from aicache_tasks.runtime import runtime_of
from aicache_tasks.taskcache import TaskCache
from aicache_tasks.work import CURRENT


class _CacheAttribute:
    """``cache=`` in a task's definition, `TaskCache` on the task."""

    def __get__(self, task: Any, owner: type) -> Any:
        if task is None:
            return self
        if task.cache_policy is None:
            return None
        found = task.__dict__.get("_task_cache")
        if found is None:
            found = task.__dict__.setdefault("_task_cache", TaskCache(task))
        return found

    def __set__(self, task: Any, value: Any) -> None:
        raise AttributeError("a task's cache policy is fixed when its class is made: give cache= to the decorator")


class CachedTask(Task):  # type: ignore[type-arg] # generic only in its type stubs
    """A task that looks into the cache before its body runs, if it has ``cache=``; else it is a stock task.

    >>> from celery import Celery
    >>> from aicache_tasks import CachePolicy, CachedTask
    >>> app = Celery("doc", broker="memory://", backend="cache+memory://")
    >>> app.conf.aicache_url = "memory://"
    >>> @app.task(base=CachedTask, cache=CachePolicy(operation="shout", ttl="1h"))
    ... def shout(text):
    ...     return text.upper()
    >>> shout("hello"), shout.cache.last.status, shout("hello"), shout.cache.last.status
    ('HELLO', 'miss', 'HELLO', 'hit')
    """

    abstract = True
    cache_policy: ClassVar[CachePolicy | None] = None
    """The task's policy; set with ``cache=``."""
    body_fingerprint: ClassVar[str | None] = None
    """With ``version="auto"``: of the body that was imported; the file may have changed since."""
    redact_arguments: ClassVar[bool] = False
    """Hide arguments and results of a task that has no policy too."""
    cache = _CacheAttribute()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _adopt_policy(cls)
        _check_inheritance(cls)
        _redact(cls)

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Register the operation when Celery binds the task, with what ``task_annotations`` made of its class."""
        super().on_bound(app)
        _adopt_policy(cls)
        _redact(cls)
        if cls.cache_policy is None:
            return
        if cls.cache_policy.version == AUTO_VERSION and "body_fingerprint" not in cls.__dict__:
            cls.body_fingerprint = fingerprint(cls.run)
        if cls.name:
            operation, name = cls.cache_policy.operation or cls.name, cls.name
            refine = lambda: app.tasks[name].cache.plan  # noqa: E731 - asked for late: the task is not yet there
            runtime_of(app).policies.register(name, operation, cls.cache_policy, refine)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer from the cache, or run the body and store what it returns."""
        if self.cache_policy is None:
            return super().__call__(*args, **kwargs)
        return self.cache.run(super().__call__, args, kwargs)

    def run_directed(self, directives: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the task here, as a direct call does, with checked *directives*."""
        return self.cache.run(super().__call__, args, kwargs, directives)

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Send the task; with a policy its arguments show as ``<redacted>``."""
        if hides_arguments(self):
            options = redacted_options(options)
        return super().apply_async(args, kwargs, *more, **options)

    def replace(self, sig: Any) -> Any:
        """Replace this task by *sig*: what that returns is not this call's answer, and is not stored as it."""
        _do_not_store()
        return super().replace(sig)

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """Retry this task: what it returns nevertheless (``throw=False``) is not stored, or the retry would get it."""
        _do_not_store()
        if self.cache_policy is not None:
            self.cache.retried()
        return super().retry(*args, **kwargs)

    def with_cache(
        self,
        *,
        refresh: bool = False,
        bypass: bool = False,
        no_store: bool = False,
        max_age: Any = None,
        only_if_cached: bool = False,
        ttl: Any = None,
        **unknown: Any,
    ) -> Directed:
        """Return this task with directives for the calls made through it; they travel in the message's headers.

        Args:
            refresh: do not read, compute and store.
            bypass: neither read nor store.
            no_store: read, but do not store.
            max_age: refuse older answers; seconds or ``"10m"``.
            only_if_cached: raise `NotCached` instead of computing.
            ttl: lifetime of what this call stores; seconds or ``"2h"``.

        Raises:
            DirectiveError: unknown, of the wrong kind, or two that contradict each other.
            SettingsError: the task has no ``cache=``.
        """
        if self.cache_policy is None:
            raise SettingsError(f"task {self.name!r} has no cache=: with_cache would do nothing")
        asked: Mapping[str, Any] = {
            "refresh": refresh,
            "bypass": bypass,
            "no_store": no_store,
            "max_age": max_age,
            "only_if_cached": only_if_cached,
            "ttl": ttl,
            **unknown,
        }
        return Directed(self, check_directives(asked))


def _do_not_store() -> None:
    """Keep what the body that runs here returns out of the cache."""
    work = CURRENT.get()
    if work is not None:
        work.no_store = True


def _adopt_policy(cls: type[CachedTask]) -> None:
    """Make ``cache=`` of the class, or of ``task_annotations``, its policy; `NotCached` is no error of such a task."""
    given = cls.__dict__.get("cache", CachedTask.cache)
    if not isinstance(given, _CacheAttribute):
        cls.cache_policy = None if given is None else CachePolicy.of(given)
        del cls.cache
    declared: Any = cls.throws  # Celery takes one class too
    throws = declared if isinstance(declared, tuple) else (declared,)
    if cls.cache_policy is not None and NotCached not in throws:
        cls.throws = (*throws, NotCached)


def _check_inheritance(cls: type[CachedTask]) -> None:
    """Refuse a class with another ``run`` than the one that its policy was written for."""
    if cls.cache_policy is None or "cache_policy" in cls.__dict__:
        return
    for base in cls.__mro__[1:]:
        run = getattr(base, "run", Task.run)
        if getattr(base, "cache_policy", None) is not None and run not in (Task.run, cls.run):
            raise SettingsError(
                f"{cls.__name__} overrides run() but inherits the cache policy of {base.__name__}: give it a policy "
                "of its own with cache=CachePolicy(operation=…), or cache=None"
            )


def _redact(cls: type[CachedTask]) -> None:
    """Choose what a worker shows of the class's calls: nothing, or what a stock task shows."""
    if hides_arguments(cls):
        cls.resultrepr_maxsize = 0
        cls.Request = redacted_request(cls.Request)
    elif cls.Request == REQUEST and "Request" not in cls.__dict__:
        cls.Request, cls.resultrepr_maxsize = Task.Request, Task.resultrepr_maxsize
