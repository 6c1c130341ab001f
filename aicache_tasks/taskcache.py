"""
``task.cache``: the cache as one task sees it.

In: the task's arguments.   Out: its answer (`TaskCache.run`), or what the cache holds for them.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from time import perf_counter_ns
from typing import Any, NamedTuple

from kombu.exceptions import KombuError
from kombu.serialization import dumps, loads

from aicache_tasks.binding import Bound, make_binder, make_mapper, option_defaults
from aicache_tasks.cache import AIResponseCache
from aicache_tasks.call import Call, Rules
from aicache_tasks.canonical import is_plain
from aicache_tasks.directed import HEADER
from aicache_tasks.errors import DirectiveError, KeyEncodingError, NotCached
from aicache_tasks.fingerprint import fingerprint
from aicache_tasks.mode import Mode
from aicache_tasks.parts import raise_what_steers
from aicache_tasks.policy import AUTO_VERSION, NO_DIRECTIVES, CachePolicy, Directives, directives_from
from aicache_tasks.records import MISS, CacheEntry, CallInfo
from aicache_tasks.runtime import runtime_of
from aicache_tasks.signals import steers
from aicache_tasks.telling import Telling
from aicache_tasks.work import Work

log = logging.getLogger("aicache_tasks")
Body = Callable[..., Any]
Asked = tuple[str | None, Any, tuple[str, ...]]
"""Tenant, vary and tags."""


class Explanation(NamedTuple):
    """Why a call hits or misses. Holds names and sizes, no argument."""

    status: str
    reason: str
    key: str = ""
    operation: str = ""
    version: str | int | None = None
    keyed: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    ttl_s: float = 0.0
    age_s: float = 0.0
    stored_bytes: int = 0
    detail: str = ""
    """Of an error: its class and the server's prefix, such as ``AuthenticationError WRONGPASS``."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is worked out once for a task."""

    policy: CachePolicy
    operation: str
    version: str | int | None
    bind: Callable[..., Bound]
    map: Callable[..., dict[str, Any]] | None
    fixed: Asked
    rules: Rules
    cache: AIResponseCache
    mode: Mode


class TaskCache:
    """The cache of one task.

    Args:
        task: a `CachedTask` with a policy.
    """

    def __init__(self, task: Any) -> None:
        self._task, self._runtime = task, runtime_of(task.app)
        self._operation = self.policy.operation or task.name
        self._telling = Telling(task, self._runtime)
        self._plan: _Plan | None = None

    # What operators and producers call.

    @property
    def policy(self) -> CachePolicy:
        """The task's policy."""
        policy: CachePolicy = self._task.cache_policy
        return policy

    @property
    def last(self) -> CallInfo | None:
        """How this thread's last call of the task went, None before the first."""
        return self._telling.last

    # These speak of a call as a worker gets it, with its arguments as the serializer delivers them. What only asks, or
    # invalidates, leaves no key timing: figures are of the tasks' work, not of who looks at it.

    def key(self, /, *args: Any, **kwargs: Any) -> str:
        """Return the Redis key of a call; raises `KeyEncodingError` for an argument that cannot be keyed."""
        return self._call(args, kwargs, NO_DIRECTIVES).key.redis_key

    def peek(self, /, *args: Any, **kwargs: Any) -> CacheEntry | None:
        """Return the entry of a call. Runs nothing.

        None if there is none, the call cannot be keyed, the server does not answer, or the cache is off and has none.
        """
        if self._has_no_server():
            return None
        try:
            call = self._call(args, kwargs, Directives(only_if_cached=True))
        except KeyEncodingError:
            return None
        cache = self.plan.cache
        hit = cache.find(call, quiet=True)
        return None if hit is MISS else cache.entry(call, hit)

    def set(self, value: Any, /, *args: Any, **kwargs: Any) -> bool:
        """Store *value* as the answer of a call; return whether it is stored."""
        call = self._call(args, kwargs, NO_DIRECTIVES)
        self.plan.cache.samples.keyed(call.key, call.key_ns)
        self.plan.cache.store_now(call, value)
        self.plan.cache.samples.acknowledge(call.budget)
        return call.set_status == "success"

    def invalidate(self, /, *args: Any, **kwargs: Any) -> bool:
        """Take the answer of a call out of force; return whether there was one.

        Raises:
            StoreError: it could not be done; the answer is still there.
        """
        return self.plan.cache.invalidate_call(self._call(args, kwargs, NO_DIRECTIVES))

    def explain(self, /, *args: Any, **kwargs: Any) -> Explanation:
        """Say why a call would hit, miss or bypass. Runs no body, stores nothing.

        Raises:
            TypeError: the task cannot be called like this.
        """
        if self._has_no_server():
            return Explanation("disabled", "", operation=self._operation)
        plan = self.plan
        args, kwargs = self._delivered(args, kwargs)
        text, question, options = plan.bind(*args, **kwargs)
        try:
            call = self._keyed(plan, args, kwargs, Directives(only_if_cached=True))
        except Exception as error:  # noqa: BLE001 - whatever vary=, tenant= or tags= raise, the call would bypass
            return Explanation("bypass", _why_not(error), operation=plan.operation, version=plan.version)
        names = [n for n, v in (("text", text), ("question", question)) if v is not None]
        return self._explained(plan, call, (*names, *map(str, options)))

    def _explained(self, plan: _Plan, call: Call, keyed: tuple[str, ...]) -> Explanation:
        hit = plan.cache.find(call, quiet=True)
        return Explanation(
            status="disabled" if plan.mode.is_off else call.status,
            reason=call.reason if hit is MISS and not plan.mode.is_off else "",
            key=call.key.redis_key,
            operation=plan.operation,
            version=plan.version,
            keyed=keyed,
            ignored=tuple(plan.policy.ignore),
            tags=call.tags,
            ttl_s=plan.rules.ttl_s,
            age_s=call.age_s,
            stored_bytes=call.stored_bytes,
            detail=call.held[1] if call.held is not None and call.status == "error" else "",
        )

    def _has_no_server(self) -> bool:
        settings = self._runtime.settings
        return settings.disabled and settings.url is None

    # What the task calls.

    def run(
        self,
        body: Body,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        directives: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the stored answer, or what *body* returns."""
        if directives is not None:
            return self._run(body, args, kwargs, directives_from(directives), None)
        request = self._task.request_stack.top  # what `task.request` says, sooner
        if (
            request is None
            or request.called_directly
            or isinstance(request.__dict__.get("aicache"), CallInfo)  # the request is an outer call's
        ):
            return self._run(body, args, kwargs, NO_DIRECTIVES, None)
        return self._run(body, args, kwargs, _from_headers(request.headers, self._task.name), request)

    def _run(
        self, body: Body, args: tuple[Any, ...], kwargs: dict[str, Any], directives: Directives, request: Any
    ) -> Any:
        if self._is_off(request):
            return self._past(self._past_info("disabled"), None, body, args, kwargs, directives, request)
        plan = self.plan
        if plan.mode.is_off and plan.mode.is_still_off(plan.cache.parts.budget()):
            plan.cache.passed_over(plan.operation, "disabled")
            return self._past(self._past_info("disabled"), plan.cache, body, args, kwargs, directives, request)
        call = self._begin(plan, args, kwargs, directives)
        if isinstance(call, str):
            return self._past(self._past_info("bypass", call), plan.cache, body, args, kwargs, directives, request)
        hit = plan.cache.find(call)
        info = call.info()
        self._telling.note(info, request)
        if plan.cache.samples.are_durable and (hit is not MISS or directives.only_if_cached):
            plan.cache.samples.acknowledge(call.budget)
        if hit is not MISS:
            self._telling.returned(info, request, call.took)
            return hit.value
        if call.status == "disabled":
            return self._past(self._past_info("disabled"), plan.cache, body, args, kwargs, directives, request)
        self._refuse_to_compute(directives, info, request)
        return self._compute(plan, call, body, args, kwargs, request)

    def _past_info(self, status: str, reason: str = "") -> CallInfo:
        return CallInfo(status, reason, self._operation, "")

    def _past(
        self,
        info: CallInfo,
        cache: AIResponseCache | None,
        body: Body,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        directives: Directives,
        request: Any,
    ) -> Any:
        """Run the body with no look-up and no store; it is paid all the same. *cache* is None if there may be none."""
        self._telling.note(info, request)
        self._refuse_to_compute(directives, info, request)
        work = Work()
        try:
            value = work.run(body, args, kwargs)
        except BaseException:
            self._telling.raised(self._worked_past(info, cache, work, request), request, work.meta)
            raise
        self._telling.returned(self._worked_past(info, cache, work, request), request, work.meta)
        return value

    def _worked_past(self, info: CallInfo, cache: AIResponseCache | None, work: Work, request: Any) -> CallInfo:
        info = info._replace(compute_ms=work.compute_ns / 1e6)
        self._telling.note(info, request)
        if cache is not None:
            cache.computed_past(self._operation, info.status, work)
        return info

    def _refuse_to_compute(self, directives: Directives, info: CallInfo, request: Any) -> None:
        if directives.only_if_cached:
            self._telling.raised(info, request)
            raise NotCached(f"no entry for this call of {self._operation}")

    def _compute(
        self, plan: _Plan, call: Call, body: Body, args: tuple[Any, ...], kwargs: dict[str, Any], request: Any
    ) -> Any:
        """Run the body and store its answer before it is returned: a redelivery is then not paid twice."""
        work = Work()
        try:
            value = work.run(body, args, kwargs)
        except BaseException:
            plan.cache.computed(call, work)
            plan.cache.skip(call, "body_failed")
            info = call.info()
            self._telling.note(info, request)
            self._telling.raised(info, request, call.took)
            plan.cache.samples.acknowledge(call.budget)
            raise
        plan.cache.computed(call, work)
        plan.cache.publish(call, value)
        info = call.info()
        self._telling.note(info, request)
        plan.cache.samples.acknowledge(call.budget)
        self._telling.returned(info, request, call.took)
        return value

    def retried(self) -> None:
        """Take note that the task is retried, whatever its body returns: its call is not over."""
        self._telling.retried()

    def _is_off(self, request: Any) -> bool:
        """Say whether the cache is switched off for the call; one that is off needs no server."""
        settings = self._runtime.settings
        if settings.disabled:
            return True
        in_worker = request is not None and not request.is_eager
        return not in_worker and not settings.eager and self._runtime.always_eager()

    def _begin(self, plan: _Plan, args: tuple[Any, ...], kwargs: dict[str, Any], directives: Directives) -> Call | str:
        """Return the call, or why it bypasses the cache: the caller asked for it, or it cannot be keyed."""
        if directives.bypass:
            return plan.cache.bypassed(plan.operation)
        try:
            return self._keyed(plan, args, kwargs, directives)
        except Exception as error:  # whatever vary=, tenant= or tags= raise, the body still runs
            expected = isinstance(error, (TypeError, ValueError))  # cannot be keyed, a wrong call, a tag with no text
            if steers(error) or (plan.cache.parts.errors.strict and not expected):
                raise
            return plan.cache.bypassed(plan.operation, error)

    # From arguments to a call.

    @property
    def plan(self) -> _Plan:
        """What is worked out once for the task; raises `SettingsError`."""
        if self._plan is None:
            self._plan = self._make_plan()
        return self._plan

    def _make_plan(self) -> _Plan:
        task, policy, operation = self._task, self.policy, self._operation
        self._runtime.policies.register(task.name, operation, policy)  # a class may have had no name when it was bound
        cache = self._runtime.cache
        signature = inspect.signature(task.run)
        binder = make_binder(
            signature, text_arg=policy.text_arg, question_arg=policy.question_arg, ignore=policy.ignore
        )
        asks = any(callable(part) for part in (policy.tenant, policy.vary, policy.tags)) or bool(policy.tags)
        version = (task.body_fingerprint or fingerprint(task.run)) if policy.version == AUTO_VERSION else policy.version
        mapper = make_mapper(signature) if asks else None
        fixed: Asked = (None if callable(policy.tenant) else policy.tenant, None, ())
        defaults = option_defaults(signature, text_arg=policy.text_arg, question_arg=policy.question_arg)
        self._runtime.policies.refined(operation, replace(policy, version=version), defaults)
        rules, mode = cache.rules(operation, policy), cache.parts.mode
        return _Plan(policy, operation, version, binder, mapper, fixed, rules, cache, mode)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], directives: Directives) -> Call:
        """Return the call that a worker would get."""
        args, kwargs = self._delivered(args, kwargs)
        return self._keyed(self.plan, args, kwargs, directives)

    def _keyed(self, plan: _Plan, args: tuple[Any, ...], kwargs: dict[str, Any], directives: Directives) -> Call:
        """Return the call whose body sees exactly these arguments."""
        started = perf_counter_ns()
        text, question, options = plan.bind(*args, **kwargs)
        tenant, vary, tags = plan.fixed if plan.map is None else _asked(plan, args, kwargs)
        cache = plan.cache
        key = cache.keys.make(text, plan.operation, options, question, version=plan.version, tenant=tenant, vary=vary)
        if tags:
            cache.used(tags)
        call = Call(key, tags, plan.rules, cache.parts.budget(), directives)
        call.key_ns = perf_counter_ns() - started
        return call

    def _delivered(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments as the task's serializer would deliver them, so that both ends have one key."""
        task = self._task
        dump = getattr(task, "_dump_pydantic_arguments", None)
        if dump is not None:
            args, kwargs = dump(args, kwargs)
        if is_plain(args) and (not kwargs or is_plain(kwargs)):
            return args, kwargs
        handled = sys.exc_info()[1]
        try:
            content_type, encoding, data = dumps([list(args), kwargs], serializer=task.serializer)
            sent_args, sent_kwargs = loads(data, content_type, encoding, accept={content_type})
        except (KombuError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise_what_steers(error, handled)
            return args, kwargs  # cannot be sent, so that no worker has another key for it
        return tuple(sent_args), sent_kwargs


def _asked(plan: _Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked:
    """Return what the policy's callables and templates give for these arguments."""
    assert plan.map is not None
    arguments = plan.map(*args, **kwargs)
    return plan.policy.tenant_of(arguments), plan.policy.vary_of(arguments), plan.policy.tags_of(arguments)


def _why_not(error: Exception) -> str:
    """Say why a call cannot be keyed, without a text that may quote an argument; raises what steers a task."""
    if steers(error):
        raise error
    if isinstance(error, KeyEncodingError):
        return str(error)
    return f"vary=, tenant= or tags= raised {type(error).__name__}"


def _from_headers(headers: Any, task_name: str) -> Directives:
    """Return a message's directives. Messages are not trusted: what makes no sense is left out, and logged."""
    given = headers.get(HEADER) if isinstance(headers, Mapping) else None
    if given is None:
        return NO_DIRECTIVES
    if isinstance(given, Mapping):
        with suppress(DirectiveError, TypeError, ValueError, ArithmeticError, RecursionError):
            return directives_from(given)
    log.warning("aicache: a message for task %r has cache directives that make no sense; they are ignored", task_name)
    return NO_DIRECTIVES
