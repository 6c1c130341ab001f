"""
Look for an answer: L1, then one MGET of the entry and its tokens.

In: a `Call`.   Out: a `Hit` or MISS, with the call's status, reason, tokens and timings set, and one `get` sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter_ns
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from aicache_tasks.call import Call
from aicache_tasks.codec import Opened, Tokens, decode_meta, fence_of, tombstone_token
from aicache_tasks.errors import CorruptPayload, StoreError, UnknownPayload
from aicache_tasks.keys import KEY_EXTRAS
from aicache_tasks.local import LocalEntry
from aicache_tasks.monitor import OF_KEY
from aicache_tasks.parts import InternalErrors, Parts, new_token
from aicache_tasks.records import MISS, CacheEntry, EntryMeta, Miss
from aicache_tasks.stores.base import Budget

L1_TRUST_S: Final = 1.0
"""How long an L1 entry answers before the entry and its tokens are read again."""
L1_GRACE_S: Final = 1.0
"""How much longer it answers when they cannot be read."""


def _by_shape(**said: Any) -> tuple[Mapping[str, Any], ...]:
    """Return what a sample says beside its fields, by `CacheKey.shape`."""
    return tuple(MappingProxyType({**said, OF_KEY: of_key}) for of_key in KEY_EXTRAS)


_FROM_REDIS: Final = _by_shape(cache_tier="redis", populated_memory_cache=False)
_FROM_REDIS_KEPT: Final = _by_shape(cache_tier="redis", populated_memory_cache=True)
_FROM_MEMORY: Final = _by_shape(cache_tier="memory")


class Hit(NamedTuple):
    """A stored answer, freshly decoded."""

    value: Any
    opened: Opened
    raw: bytes


class _Rejected(Exception):  # noqa: N818 - never leaves this module
    """An entry that may not answer; its reason."""


class Lookup:
    """Finds entries.

    Args:
        parts: of the cache.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts, self._mode = parts, parts.mode

    def find(self, call: Call, *, quiet: bool = False) -> Hit | Miss:
        """Return the answer of *call* or MISS. Never raises for the store.

        A *quiet* look is an operator's: it is not timed, and finds what is there while the cache is switched off.
        """
        started = perf_counter_ns()
        try:
            hit = self._from_memory(call) or self._from_store(call, quiet)
            shapes = _FROM_MEMORY if call.source == "memory" else _FROM_REDIS_KEPT if call.kept else _FROM_REDIS
            extra = shapes[call.key.shape]
            if call.source == "memory" and self._parts.outbox is not None:
                self._parts.outbox.relieve(call.budget)
        except StoreError as error:
            hit = self._without_store(call, error)
            of_key = KEY_EXTRAS[call.key.shape]
            extra = {"cache_tier": "redis_unavailable", "error": error.detail, OF_KEY: of_key}
        call.get_ns = perf_counter_ns() - started
        if not quiet:
            self._parts.samples.record(call.lookup_sample(self._parts.now_ms() / 1000, extra))
        return hit

    def prepare(self, call: Call) -> None:
        """Fetch what a publish with no look-up before it needs: the tokens in force and the tombstone, if any.

        The call's status is ``disabled`` if the cache is switched off.
        """
        token_keys = self._parts.keys.token_keys(call.key.bucket, call.key.operation, call.tags)
        call.asked_s = self._parts.mono_s()
        found = self._find(call, (call.key.redis_key, *token_keys), quiet=False)
        if found is None:
            self._switched_off(call)
            return
        data, *tokens = found
        call.seen = fence_of(data)
        call.tokens = self._tokens_for(call, token_keys, tokens)

    def _from_memory(self, call: Call, trust_s: float = L1_TRUST_S) -> Hit | Miss:
        local, parts = self._parts.local, self._parts
        if local is None or not call.rules.local or call.directives.refresh:
            return MISS
        kept = local.get(call.key.redis_key)
        if kept is None or parts.mono_s() - kept.verified_s > trust_s:
            return MISS
        try:
            hit = self._accept(call, kept.opened, kept.raw)
        except (_Rejected, CorruptPayload):
            return MISS
        call.source = "memory"
        return hit

    def _from_store(self, call: Call, quiet: bool, *, last: bool = False) -> Hit | Miss:
        token_keys = self._parts.keys.token_keys(call.key.bucket, call.key.operation, call.tags)
        call.asked_s = self._parts.mono_s()
        found = self._find(call, (call.key.redis_key, *token_keys), quiet)
        if found is None:
            return self._switched_off(call)
        data, *tokens = found
        try:
            return self._judge(call, data, tokens)
        except CorruptPayload:
            if not last:  # damage on the way must not remove a good entry
                self._parts.store.close()
                return self._from_store(call, quiet, last=True)
            reason = "corrupt"
        except _Rejected as rejected:
            reason = str(rejected)
        call.seen = fence_of(data)
        if reason == "corrupt":
            self._remove(call, data)
        return self._missed(call, reason, token_keys, tokens)

    def _find(self, call: Call, keys: Sequence[str], quiet: bool) -> list[bytes | None] | None:
        """Return what lies under *keys*, None if the cache is off."""
        is_due = call.asked_s >= self._mode.due_s
        return self._read_if_on(call, keys, quiet) if is_due else self._read(keys, call.budget)

    def _read(self, keys: Sequence[str], budget: Budget) -> list[bytes | None]:
        outbox = self._parts.outbox
        return self._parts.store.read(keys, budget) if outbox is None else outbox.read(keys, budget)

    def _read_if_on(self, call: Call, keys: Sequence[str], quiet: bool) -> list[bytes | None] | None:
        """Read the switch along with *keys*; return None if the cache is off, and not even ask for them if it was."""
        mode = self._mode
        if not quiet and mode.is_still_off(call.budget):
            return None
        *found, value = self._read((*keys, mode.key(call.key.bucket)), call.budget)
        mode.note(value, call.asked_s)
        return None if mode.is_off and not quiet else found

    def _switched_off(self, call: Call) -> Miss:
        call.status = "disabled"
        if self._parts.local is not None:
            self._parts.local.clear()  # it would answer without a look at the switch
        return MISS

    def _judge(self, call: Call, data: bytes | None, tokens: Sequence[bytes | None]) -> Hit:
        """Return the entry in *data* if it may answer.

        Raises:
            _Rejected: it may not; the reason.
            CorruptPayload: damaged or another key's.
        """
        if data is None:
            raise _Rejected("key_not_found")
        if tombstone_token(data) is not None:
            raise _Rejected("invalidated")
        if call.directives.refresh:
            raise _Rejected("")
        try:
            opened = self._parts.codec.open(data, call.key.digest)
        except UnknownPayload:  # a newer deployment's: not ours to remove
            raise _Rejected("key_not_found") from None
        if not self._in_force(call, opened.tokens, tokens):
            raise _Rejected("invalidated")
        hit = self._accept(call, opened, None)
        self._keep(call, hit)
        call.source = "redis"
        return hit

    def _accept(self, call: Call, opened: Opened, raw: bytes | None) -> Hit:
        now_ms = self._parts.now_ms()
        age_ms = max(now_ms - opened.created_ms, 0)
        limit = call.directives.max_age_s
        if now_ms >= opened.expires_ms or (limit is not None and age_ms > limit * 1000):
            raise _Rejected("expired")
        started = perf_counter_ns()
        raw = self._parts.codec.inflate(opened) if raw is None else raw
        value = self._parts.codec.load(raw)
        call.decode_ns = perf_counter_ns() - started
        if not is_valid(self._parts.errors, call, value):
            raise _Rejected("corrupt")
        call.status, call.reason, call.age_ms = "hit", "", age_ms
        call.raw_bytes, call.stored_bytes, call.meta_bytes = opened.raw_bytes, opened.stored_bytes, opened.meta_bytes
        return Hit(value, opened, raw)

    def _in_force(self, call: Call, held: Tokens, tokens: Sequence[bytes | None]) -> bool:
        """Say whether the frame's tokens are those in force."""
        if held.namespace != tokens[0] or held.operation != tokens[1]:
            return False
        if not held.tags:
            return True
        known = dict(zip(map(self._parts.keys.tag_id, call.tags), tokens[2:], strict=True))
        if any(tag not in known for tag, _ in held.tags):
            known |= self._read_tags(call, [tag for tag, _ in held.tags if tag not in known])
        return all(known.get(tag) == token for tag, token in held.tags)

    def _read_tags(self, call: Call, tags: list[bytes]) -> dict[bytes, bytes | None]:
        """Read the tokens of tags that this reader was not told of."""
        keys = [self._parts.keys.tag_key(call.key.bucket, tag) for tag in tags]
        return dict(zip(tags, self._parts.store.read(keys, call.budget), strict=True))

    def _keep(self, call: Call, hit: Hit) -> None:
        local = self._parts.local
        if local is None or not call.rules.local or call.key.text_tier not in self._parts.settings.l1_tiers:
            return
        bare = hit.opened._replace(body=b"")
        local.put(call.key.redis_key, LocalEntry(hit.raw, bare, call.asked_s))
        call.kept = True

    def _missed(self, call: Call, reason: str, token_keys: Sequence[str], tokens: Sequence[bytes | None]) -> Miss:
        """Note the miss, and make the tokens that a later publish must carry."""
        call.missed(reason)
        if self._parts.local is not None:
            self._parts.local.drop(call.key.redis_key)
        if not (call.directives.no_store or call.directives.only_if_cached):
            call.tokens = self._tokens_for(call, token_keys, tokens)
        return MISS

    def _tokens_for(
        self, call: Call, token_keys: Sequence[str], tokens: Sequence[bytes | None]
    ) -> tuple[bytes, ...] | None:
        """Return the tokens in force, making those that are absent; None if the store takes no writes."""
        if all(token is not None for token in tokens):
            return tuple(token for token in tokens if token is not None)
        lives = [0, 0, *[int(call.rules.ttl_s * 1000) or 1] * len(call.tags)]
        fresh = [new_token() for _ in token_keys]
        try:
            return tuple(self._parts.store.ensure(token_keys, fresh, lives, call.budget))
        except StoreError as error:
            call.held = error.reason, error.detail
            return None

    def _remove(self, call: Call, data: bytes | None) -> None:
        self._parts.errors.damaged(call.key.operation)
        try:
            if data is not None:
                self._parts.store.discard(call.key.redis_key, data, call.budget)
        except StoreError as error:
            call.held = error.reason, error.detail

    def _without_store(self, call: Call, error: StoreError) -> Hit | Miss:
        hit = self._from_memory(call, L1_TRUST_S + L1_GRACE_S)
        if hit is MISS:
            call.status, call.reason = "error", error.reason
            call.held = error.reason, error.detail
        return hit


def entry_of(call: Call, hit: Hit, now_ms: int) -> CacheEntry:
    """Return *hit*, the answer of *call*, as people see it."""
    opened = hit.opened
    try:
        meta = decode_meta(opened.meta_bytes)
    except CorruptPayload:  # written by another deployment: the answer itself is sound
        meta = EntryMeta()
    return CacheEntry(
        value=hit.value,
        age_s=call.age_s,
        ttl_s=max(opened.expires_ms - now_ms, 0) / 1000,
        raw_bytes=opened.raw_bytes,
        stored_bytes=opened.stored_bytes,
        compute_s=meta.compute_ns / 1e9,
        model=meta.model,
        usage=meta.usage,
        cost=meta.cost,
        key=call.key.redis_key,
        operation=call.key.operation,
        source="memory" if call.source == "memory" else "redis",
        prices=meta.prices,
    )


def is_valid(errors: InternalErrors, call: Call, value: Any) -> bool:
    """Ask the policy's ``validate``: False or any exception means invalid; other than ValueError it is warned of."""
    validate = call.rules.validate
    if validate is None:
        return True
    try:
        return validate(value) is not False
    except (ValueError, AssertionError):
        return False
    except Exception as error:  # noqa: BLE001 - the user's code must not fail a paid answer
        errors.hook_failed("validate", call.key.operation, error)
        return False
