"""
A task with directives: what ``with_cache`` returns.

In: a task and checked directives.   Out: calls and signatures that carry them in the message's headers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

HEADER: Final = "aicache_directives"


class Directed:
    """Makes calls of one task with the same directives.

    Args:
        task: a `CachedTask`.
        directives: as `check_directives` returns them.
    """

    __slots__ = ("_directives", "_task")

    def __init__(self, task: Any, directives: Mapping[str, Any]) -> None:
        self._task, self._directives = task, dict(directives)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task here, as calling it does."""
        return self._task.run_directed(self._directives, args, kwargs)

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Send the task, as ``task.delay`` does."""
        return self.apply_async(args, kwargs)

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Send the task, as ``task.apply_async`` does."""
        return self._task.apply_async(args, kwargs, *more, **self._with_header(options))

    def apply(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Run the task here, as ``task.apply`` does."""
        return self._task.apply(args, kwargs, *more, **self._with_header(options))

    def signature(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Return a signature that carries the directives."""
        signature = self._task.signature(args, kwargs, *more, **options)
        return signature.set(headers=self._header(signature.options.get("headers")))

    def s(self, *args: Any, **kwargs: Any) -> Any:
        """Return a signature, as ``task.s`` does."""
        return self.signature(args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Any:
        """Return an immutable signature, as ``task.si`` does."""
        return self.signature(args, kwargs, immutable=True)

    def _header(self, headers: Mapping[str, Any] | None) -> dict[str, Any]:
        return {**(headers or {}), HEADER: self._directives}

    def _with_header(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "headers": self._header(options.get("headers"))}
