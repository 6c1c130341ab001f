"""
From what a caller of the façade names to a key, tags and rules, with the help of the operation's policy.

In: text, operation, options, question, and the parts of an identity that the caller gave.   Out: `CacheKey`, tags,
`Rules`. What does not depend on the call is worked out once for an operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from aicache_tasks.call import Rules
from aicache_tasks.keys import CacheKey, CacheKeyGenerator
from aicache_tasks.policy import CachePolicy, PolicyRegistry
from aicache_tasks.settings import Settings

Options = Mapping[str, Any] | None
_NO_POLICY: Final = CachePolicy()
_MAX_NAMES: Final = 10_000


class Known(NamedTuple):
    """What policy and settings say about one operation. ``asks``: the policy has callables over the arguments."""

    revision: int
    policy: CachePolicy
    rules: Rules
    registered: bool
    asks: bool


class Identities:
    """The operations that this process has used, and how their calls are keyed.

    Args:
        settings: of the cache.
        policies: of the application.
        keys: makes the keys.
    """

    def __init__(self, settings: Settings, policies: PolicyRegistry, keys: CacheKeyGenerator) -> None:
        self._settings, self._policies, self._keys = settings, policies, keys
        self._known: dict[str, Known] = {}
        self._tags: set[str] = set()

    def of(self, operation: str) -> Known:
        """Return what is known of *operation*; worked out again when the registry has changed."""
        known = self._known.get(operation)
        if known is not None and known.revision == self._policies.revision:
            return known
        policy = self._policies.find(operation)
        known = self._work_out(operation, policy or _NO_POLICY, registered=policy is not None)
        if len(self._known) < _MAX_NAMES or operation in self._known:
            self._known[operation] = known
        return known

    def key(
        self,
        known: Known,
        text: Any,
        operation: str,
        options: Options,
        question: str | None,
        version: str | int | None,
        tenant: str | None,
        vary: Any = None,
    ) -> CacheKey:
        """Return the key of a call, untimed; what the caller left out comes from the policy.

        Raises:
            KeyEncodingError: an argument has no encoding.
        """
        policy = known.policy
        if known.registered:
            options = self._policies.filled(operation, options)
        if known.asks:
            arguments = _arguments(policy, text, options, question)
            tenant = policy.tenant_of(arguments) if tenant is None else tenant
            vary = policy.vary_of(arguments) if vary is None else vary
        elif tenant is None:
            tenant = policy.tenant_of({})
        version = policy.version if version is None else version
        return self._keys.make(text, operation, options, question, version=version, tenant=tenant, vary=vary)

    def tags(
        self,
        known: Known,
        text: Any,
        operation: str,
        options: Options,
        question: str | None,
        tags: Sequence[str] | None,
    ) -> tuple[str, ...]:
        """Return the tags of a call: *tags* if the caller gave them, else the policy's.

        Raises:
            ValueError: they are no tags.
        """
        policy = known.policy
        if tags is None and not policy.tags:
            return ()
        if tags is not None:
            names = CachePolicy(tags=lambda: tags).tags_of({})
        else:
            options = self._policies.filled(operation, options)
            names = policy.tags_of(_arguments(policy, text, options, question))
        self.remember(names)
        return names

    def remember(self, tags: Iterable[str]) -> None:
        """Remember *tags* for `used_tags`, up to a bound."""
        for tag in tags:
            if len(self._tags) < _MAX_NAMES:
                self._tags.add(tag)

    def used(self) -> set[str]:
        """Return the operations that are registered, have a lifetime in the settings, or were used here."""
        return {*self._policies.operations(), *self._settings.ttls, *self._known}

    def used_tags(self) -> set[str]:
        """Return the tags that policies name outright or that were used here."""
        return {*self._policies.tags(), *self._tags}

    def rules(self, operation: str, policy: CachePolicy) -> Rules:
        """Return what *policy* and the settings say about storing answers of *operation*."""
        settings, ttl_s = self._settings, policy.ttl_s
        return Rules(
            settings.ttls.get(operation, settings.ttl) if ttl_s is None else ttl_s,
            settings.jitter if policy.jitter is None else policy.jitter,
            policy.store_if,
            policy.validate,
            policy.local,
        )

    def longest_ttl_s(self, operation: str | None) -> float:
        """Return the longest that an answer of *operation* may live, of any if it is None."""
        policies = [self._policies.find(op) for op in self._policies.operations() if operation in (None, op)]
        own = [policy.ttl_s for policy in policies if policy is not None and policy.ttl_s is not None]
        table = self._settings.ttls
        by_table = table.values() if operation is None else [table.get(operation, self._settings.ttl)]
        return max(self._settings.ttl, *own, *by_table)

    def _work_out(self, operation: str, policy: CachePolicy, *, registered: bool) -> Known:
        asks = policy.vary is not None or callable(policy.tenant)
        rules = self.rules(operation, policy)
        return Known(self._policies.revision, policy, rules, registered, asks)


def _arguments(policy: CachePolicy, text: Any, options: Options, question: str | None) -> dict[str, Any]:
    arguments = {**(options or {}), policy.text_arg or "text": text}
    return arguments if question is None else {**arguments, policy.question_arg or "question": question}
