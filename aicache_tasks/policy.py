"""
What a task's author says about caching, and what a caller says about one call.

In: `CachePolicy` (or a dict with the same names) and ``with_cache`` directives.   Out: checked, frozen records and
the registry of operations.   Pure.
"""

from __future__ import annotations

import fnmatch
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

from aicache_tasks.durations import Duration, parse_duration
from aicache_tasks.errors import DirectiveError, SettingsError

Arguments = Mapping[str, Any]
AUTO_VERSION: Final = "auto"
_MAX_NAME: Final = 512
_MAX_TAGS: Final = 32


@dataclass(frozen=True, kw_only=True)
class CachePolicy:
    """How the answers of one task are cached.

    Args:
        operation: the cache identity; by default the task's name.
        ttl: how long an answer lives: seconds or ``"2h"``; by default what the settings say for the operation.
        version: part of the key; change it with the prompt or the code. ``"auto"`` follows the body's source.
        ignore: names of arguments that do not change the answer.
        tenant: whose answer it is, part of the key: text, or a callable over the bound arguments.
        vary: a callable for what the arguments do not show (model, prompt version, sampling); it takes the bound
            arguments as one mapping, or nothing, and returns a mapping that becomes part of the key.
        tags: names to invalidate by: text such as ``"doc:{doc_id}"``, filled from the arguments, or a callable over
            the bound arguments that returns names.
        text_arg: the parameter that holds the text; by default ``text`` if there is one.
        question_arg: the parameter that holds the question; by default ``question`` if there is one.
        shared: several tasks may have this operation (each of them must say so).
        redact: keep arguments and results out of events, Flower and logs.
        store_if: a callable over the result; a false answer means that it is not stored.
        validate: a callable over the result, at the store and at each load; False or a ValueError means invalid.
        jitter: shorten each lifetime by a random part up to this fraction; by default the setting.
        local: keep answers in the process's memory too, if the settings have it on.

    Raises:
        SettingsError: a value of the wrong kind; names the field.

    >>> CachePolicy(ttl="2h").ttl_s
    7200.0
    """

    operation: str | None = None
    ttl: Duration | None = None
    version: str | int | None = None
    ignore: Sequence[str] = ()
    tenant: str | Callable[..., Any] | None = None
    vary: Callable[..., Any] | None = None
    tags: Sequence[str] | Callable[..., Any] = ()
    text_arg: str | None = None
    question_arg: str | None = None
    shared: bool = False
    redact: bool = True
    store_if: Callable[[Any], Any] | None = None
    validate: Callable[[Any], Any] | None = None
    jitter: float | None = None
    local: bool = True

    def __post_init__(self) -> None:
        _check_name("operation", self.operation)
        object.__setattr__(self, "ignore", _names("ignore", self.ignore))
        if not callable(self.tags):
            object.__setattr__(self, "tags", _names("tags", self.tags))
        for name in ("vary", "store_if", "validate"):
            _check_callable(name, getattr(self, name))
        if self.version is not None and (isinstance(self.version, bool) or not isinstance(self.version, (str, int))):
            raise SettingsError(f"cache version: {self.version!r} is not text or a number")
        if self.tenant is not None and not isinstance(self.tenant, str) and not callable(self.tenant):
            raise SettingsError("cache tenant: must be text or a callable over the arguments")
        if self.jitter is not None and not _is_fraction(self.jitter):
            raise SettingsError(f"cache jitter: {self.jitter!r} is outside 0 to 0.5")
        if self.ttl_s == 0:
            raise SettingsError("cache ttl: must be longer than 0")

    @property
    def ttl_s(self) -> float | None:
        """The lifetime in seconds, None if the settings decide."""
        return None if self.ttl is None else parse_duration(self.ttl, name="cache ttl")

    @classmethod
    def of(cls, given: CachePolicy | Mapping[str, Any]) -> CachePolicy:
        """Return *given* as a policy.

        Raises:
            SettingsError: not a policy nor a mapping of its names.
        """
        if isinstance(given, CachePolicy):
            return given
        if not isinstance(given, Mapping):
            raise SettingsError(f"cache: {type(given).__name__} is neither a CachePolicy nor a dict of its names")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(map(str, given.keys() - known)):
            raise SettingsError(f"cache: unknown name {unknown[0]!r}; known are {', '.join(sorted(known))}")
        return cls(**given)

    def tags_of(self, arguments: Arguments) -> tuple[str, ...]:
        """Return the tags of a call, sorted and without repeats.

        Raises:
            ValueError: a template names an argument that is not there, a tag is not text, or there are over 32.
        """
        if not self.tags:
            return ()
        found = call_with(self.tags, arguments) if callable(self.tags) else [_fill(t, arguments) for t in self.tags]
        found = (found,) if isinstance(found, str) else tuple(found)
        tags = tuple(sorted({tag for tag in found if isinstance(tag, str) and tag}))
        if len(tags) != len(set(found)) or len(tags) > _MAX_TAGS:
            raise ValueError("tags must be 32 non-empty texts at most")
        return tags

    def tenant_of(self, arguments: Arguments) -> str | None:
        """Return whose answer it is, None if nobody's in particular."""
        return call_with(self.tenant, arguments) if callable(self.tenant) else self.tenant

    def vary_of(self, arguments: Arguments) -> Any:
        """Return what the arguments do not show."""
        return call_with(self.vary, arguments) if self.vary is not None else None

    @property
    def fixed_tags(self) -> tuple[str, ...]:
        """The tags that do not depend on the arguments."""
        return () if callable(self.tags) else tuple(t for t in self.tags if "{" not in t)


def _is_fraction(given: object) -> bool:
    return isinstance(given, (int, float)) and 0 <= given <= 0.5


def call_with(function: Callable[..., Any], arguments: Arguments) -> Any:
    """Call *function* with *arguments* as one mapping, or with nothing if it takes nothing."""
    return function(arguments) if takes_arguments(function) else function()


@functools.lru_cache(maxsize=1024)
def takes_arguments(function: Callable[..., Any]) -> bool:
    """Say whether `call_with` gives *function* the arguments."""
    try:
        inspect.signature(function).bind({})
    except TypeError:
        return False
    except ValueError:  # a builtin that does not show its signature
        return True
    return True


def _fill(template: str, arguments: Arguments) -> str:
    try:
        return template.format_map(arguments) if "{" in template else template
    except (KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"tag template: no argument for {type(error).__name__}") from None


def _check_name(field: str, name: object) -> None:
    if name is None:
        return
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or re.search(r"[\x00-\x1f\x7f]", name):
        raise SettingsError(f"cache {field}: must be 1 to {_MAX_NAME} printable characters")


def _names(field: str, given: Any) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise SettingsError(f"cache {field}: must be a sequence of names, such as ({given!r},)")
    names = tuple(given)
    for name in names:
        _check_name(field, name if name is not None else "")
    return names


def _check_callable(field: str, given: object) -> None:
    if given is not None and not callable(given):
        raise SettingsError(f"cache {field}: must be callable")


class Directives(NamedTuple):
    """What one caller asks of the cache for one call, in the words of HTTP caching (RFC 9111)."""

    refresh: bool = False
    bypass: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age_s: float | None = None
    ttl_s: float | None = None


NO_DIRECTIVES: Final = Directives()
_SWITCHES: Final = ("refresh", "bypass", "no_store", "only_if_cached")
_DURATIONS: Final = ("max_age", "ttl")
_CONTRADICTIONS: Final = (
    *(("bypass", other) for other in ("refresh", "no_store", "only_if_cached", "max_age", "ttl")),
    ("refresh", "only_if_cached"),
    ("refresh", "max_age"),
    ("no_store", "ttl"),
    ("only_if_cached", "ttl"),
)


def check_directives(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the directives that are on, as they travel in a message's headers.

    Raises:
        DirectiveError: unknown, of the wrong kind, or two that contradict each other.

    >>> check_directives({"refresh": True, "ttl": "1h", "bypass": False})
    {'refresh': True, 'ttl': 3600.0}
    """
    if unknown := sorted(set(given) - {*_SWITCHES, *_DURATIONS}):
        raise DirectiveError(f"with_cache: unknown {unknown[0]!r}; known are {', '.join((*_SWITCHES, *_DURATIONS))}")
    on = {
        name: _check_directive(name, value) for name, value in given.items() if value is not None and value is not False
    }
    for one, other in _CONTRADICTIONS:
        if one in on and other in on:
            raise DirectiveError(f"with_cache: {one} and {other} contradict each other")
    return on


def _check_directive(name: str, value: Any) -> Any:
    if name in _SWITCHES:
        if value is not True:
            raise DirectiveError(f"with_cache: {name} is True or False, not {type(value).__name__}")
        return True
    try:
        seconds = parse_duration(value, name=f"with_cache {name}")
    except SettingsError as error:
        raise DirectiveError(str(error)) from None
    if name == "ttl" and seconds == 0:
        raise DirectiveError("with_cache: ttl must be longer than 0; no_store=True keeps an answer out")
    return seconds


def directives_from(given: Mapping[str, Any]) -> Directives:
    """Return checked directives; raises as `check_directives` does."""
    on = check_directives(given)
    return Directives(
        **{name: True for name in _SWITCHES if name in on},
        max_age_s=on.get("max_age"),
        ttl_s=on.get("ttl"),
    )


class PolicyRegistry:
    """The operations of one application and whose they are."""

    def __init__(self) -> None:
        self.revision = 0
        """Rises with every change, so that what was worked out from a policy can be told from what holds now."""
        self._policies: dict[str, CachePolicy] = {}
        self._owners: dict[str, set[str]] = {}
        self._defaults: dict[str, Mapping[str, Any]] = {}
        self._refine: dict[str, Callable[[], object]] = {}

    def register(
        self, owner: str, operation: str, policy: CachePolicy, refine: Callable[[], object] | None = None
    ) -> None:
        """Give *operation* to *owner* (a task's name).

        Args:
            owner: the task's name.
            operation: the cache identity.
            policy: of the task.
            refine: called once, before the policy is first asked for; it calls `refined`.

        Raises:
            SettingsError: another task has it, and not both say ``shared=True``.
        """
        owners = self._owners.setdefault(operation, set())
        if owners - {owner} and not (policy.shared and self._policies[operation].shared):
            other = min(owners - {owner})
            raise SettingsError(
                f"tasks {other!r} and {owner!r} both have the cache operation {operation!r}: give one of them another "
                "operation=, or say shared=True in both if their answers are the same"
            )
        owners.add(owner)
        self._policies[operation] = policy
        self.revision += 1
        if refine is not None:
            self._refine[operation] = refine

    def refined(self, operation: str, policy: CachePolicy, defaults: Mapping[str, Any]) -> None:
        """Note what only the task itself can say: its version by name, and the defaults of its options."""
        self._refine.pop(operation, None)
        self._policies[operation], self._defaults[operation] = policy, dict(defaults)
        self.revision += 1

    def find(self, operation: str) -> CachePolicy | None:
        """Return the policy of *operation*, None if it has none."""
        if (refine := self._refine.pop(operation, None)) is not None:
            refine()
        return self._policies.get(operation)

    def filled(self, operation: str, options: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Return *options* as the task's own call has them: defaults filled in, ignored names left out."""
        policy = self._policies.get(operation)
        if policy is None:
            return options
        filled = {**self._defaults.get(operation, {}), **(options or {})}
        return {name: value for name, value in filled.items() if name not in policy.ignore} if policy.ignore else filled

    def operations(self) -> list[str]:
        """Return the registered operations, sorted."""
        return sorted(self._policies)

    def tags(self) -> set[str]:
        """Return the tags that policies name outright."""
        return {tag for policy in self._policies.values() for tag in policy.fixed_tags}


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the *names* that the shell-style *pattern* matches whole, sorted: ``q`` does not match ``qa``."""
    return sorted(name for name in names if fnmatch.fnmatchcase(name, pattern))
