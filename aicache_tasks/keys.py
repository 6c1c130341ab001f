"""
A call → its key.

In: text, operation, options, question, version, tenant, vary.   Out: `CacheKey`, and the keys of the tokens
that an entry depends on.   Pure, but for one timing that goes to the sink.

docs/architecture.md, "Key format", is the specification; tests/data/golden_keys.json holds it in place.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from time import perf_counter_ns
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from aicache_tasks.canonical import encode_parts, register_encoder
from aicache_tasks.errors import SettingsError
from aicache_tasks.records import Sample, SampleSink

__all__ = [
    "BUCKETS",
    "KEY_EXTRAS",
    "CacheKey",
    "CacheKeyGenerator",
    "key_sample",
    "operation_slug",
    "register_encoder",
]

BUCKETS: Final = 64
"""Entries of a namespace are spread over this many hash tags."""

DIGEST_BYTES: Final = 32
"""Length of the digest in a frame."""

_SCHEMA = b"aicache:1:"
_SHOWN_DIGEST_BYTES = 20
_SHOWN_OPERATION = 64
_OPERATIONS_REMEMBERED = 4096
_NAMES = ("namespace", "operation", "version", "tenant", "vary", "text", "question", "options")
_NO_OPTIONS: Mapping[str, Any] = {}
_TIERS: Final[Mapping[str, int]] = {"small": 500, "medium": 5000, "large": 50_000}
_LARGEST_TIER = "xlarge"

KEY_EXTRAS: Final[tuple[Mapping[str, Any], ...]] = tuple(
    MappingProxyType({"has_options": has_options, "has_question": has_question, "size_class": size_class})
    for size_class in ("small", "large")
    for has_question in (False, True)
    for has_options in (False, True)
)
"""What the timing of a key says of its call, by `CacheKey.shape`."""

HashConstructor = Callable[[bytes], Any]


class CacheKey(NamedTuple):
    """What the cache knows a call by. ``digest`` is the full one, padded with zero bytes or cut to 32 bytes."""

    redis_key: str
    digest: bytes
    bucket: int
    operation: str
    text_length: int
    text_tier: str
    shape: int = 0
    """Index of `KEY_EXTRAS`."""


class CacheKeyGenerator:
    """Makes keys. Thread-safe; one per cache.

    Args:
        text_hash_threshold: texts of more characters are of size class ``large`` in the timings.
        hash_algorithm: a name that hashlib knows, or a constructor such as ``hashlib.sha256``; 128 bits or more.
        performance_monitor: told of each key's timing.
        namespace: start of every key.
        secret: 16 to 64 bytes that key the digest, so that a guessed prompt cannot be confirmed from a key.
        text_size_tiers: upper limits in characters of ``small``, ``medium`` and ``large``; above is ``xlarge``.

    Raises:
        SettingsError: one of these is not usable.

    >>> CacheKeyGenerator().generate_cache_key("a text", "summarize", {"max_length": 100})
    '{aicache:1e}:v1:summarize:9ebedbd59e8ddc929f0b719606895bf41de3855d'
    """

    def __init__(
        self,
        text_hash_threshold: int = 1000,
        hash_algorithm: str | HashConstructor = "sha256",
        performance_monitor: SampleSink | None = None,
        *,
        namespace: str = "aicache",
        secret: bytes | None = None,
        text_size_tiers: Mapping[str, int] | None = None,
    ) -> None:
        self.text_hash_threshold, self.namespace = text_hash_threshold, _checked_namespace(namespace)
        self._secret, self._sink = _checked_secret(secret), performance_monitor
        self._new_hash = _hash_constructor(hash_algorithm)
        self._tiers = _checked_tiers(_TIERS if text_size_tiers is None else text_size_tiers)
        self._tags = tuple(f"{{{namespace}:{bucket:02x}}}:" for bucket in range(BUCKETS))
        self._token_pair = lru_cache(_OPERATIONS_REMEMBERED)(self._make_token_pair)

    def generate_cache_key(
        self,
        text: Any,
        operation: str,
        options: Mapping[str, Any] | None = None,
        question: str | None = None,
        *,
        version: str | int | None = None,
        tenant: str | None = None,
        vary: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the whole Redis key of a call, under 200 bytes.

        Args and errors: as `make`.
        """
        return self.key(text, operation, options, question, version=version, tenant=tenant, vary=vary).redis_key

    def key(
        self,
        text: Any,
        operation: str,
        options: Mapping[str, Any] | None,
        question: str | None = None,
        *,
        version: str | int | None = None,
        tenant: str | None = None,
        vary: Mapping[str, Any] | None = None,
    ) -> CacheKey:
        """Return the key of a call, and tell the sink what it took; arguments and errors are those of `make`."""
        started = perf_counter_ns()
        key = self.make(text, operation, options, question, version=version, tenant=tenant, vary=vary)
        if self._sink is not None:
            self._sink.record(key_sample(key, time.time(), perf_counter_ns() - started))
        return key

    def make(
        self,
        text: Any,
        operation: str,
        options: Mapping[str, Any] | None,
        question: str | None = None,
        *,
        version: str | int | None = None,
        tenant: str | None = None,
        vary: Mapping[str, Any] | None = None,
    ) -> CacheKey:
        """Return the key of a call, and tell nobody.

        Args:
            text: usually a str; anything that can be encoded, or None.
            operation: the cache identity of the task.
            options: None is the same as no options.
            question: None is not the same as an empty question.
            version: of the prompt, the model, the code: what makes older answers useless.
            tenant: whose answers these are.
            vary: what else the answer depends on.

        Raises:
            KeyEncodingError: an argument has no encoding; names its path and type.
            TypeError: *operation* is not a str.
        """
        if type(operation) is not str:
            operation = _plain_str("operation", operation)
        options = _NO_OPTIONS if options is None else options
        digest = self._digest((self.namespace, operation, version, tenant, vary, text, question, options))
        length = len(text) if type(text) is str or type(text) is bytes else 0
        return self._cache_key(digest, operation, length, self._shape(length, question is not None, options))

    def text_tier(self, text: str | None) -> str:
        """Return ``small``, ``medium``, ``large`` or ``xlarge``.

        Raises:
            TypeError: *text* is neither a str nor None.

        >>> CacheKeyGenerator().text_tier("x" * 500)
        'medium'
        """
        if text is None:
            return self._tier(0)
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        return self._tier(len(text))

    def token_keys(self, bucket: int, operation: str, tags: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the keys of the tokens of the namespace, the operation and each tag, in this order.

        >>> CacheKeyGenerator().token_keys(47, "summarize")
        ('{aicache:2f}:t:ns', '{aicache:2f}:t:op:summarize')
        """
        pair = self._token_pair(bucket, operation)
        return pair if not tags else (*pair, *(self.tag_key(bucket, self.tag_id(tag)) for tag in tags))

    def namespace_key(self, bucket: int) -> str:
        """Return the key of the namespace's token in *bucket*."""
        return self._tags[bucket] + "t:ns"

    def operation_key(self, bucket: int, operation: str) -> str:
        """Return the key of an operation's token in *bucket*."""
        return f"{self._tags[bucket]}t:op:{operation_slug(operation)}"

    def tag_key(self, bucket: int, tag_id: bytes) -> str:
        """Return the key of a tag's token in *bucket*; *tag_id* is from `tag_id` or from a frame."""
        return f"{self._tags[bucket]}t:tag:{tag_id.hex()}"

    def mode_key(self, bucket: int) -> str:
        """Return the key of the switch in *bucket*: see `aicache_tasks.mode`."""
        return self._tags[bucket] + "t:mode"

    def code_key(self, operation: str, version: str | int | None) -> str:
        """Return the key under which the body's fingerprint of an operation's version lies."""
        said = hashlib.sha256(repr(version).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return f"{self._tags[0]}c:{operation_slug(operation)}:{said}"

    def tag_id(self, tag: str) -> bytes:
        """Return the 16 bytes that stand for *tag*, which may be personal, in keys and frames.

        Raises:
            TypeError: *tag* is not a str.
        """
        name = _plain_str("tag", tag).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(name, digest_size=16, key=self._secret or b"", person=b"aicache:tag").digest()

    @property
    def key_prefix(self) -> str:
        """What every key of the namespace starts with, in every bucket."""
        return f"{{{self.namespace}:"

    def is_entry_key(self, redis_key: str, operation: str | None = None) -> bool:
        """Return whether *redis_key* is an entry of this namespace, and of *operation* if one is given.

        >>> keys = CacheKeyGenerator()
        >>> keys.is_entry_key("{aicache:2f}:v1:qa:9a3c", "q"), keys.is_entry_key("{aicache:2f}:v1:qa:9a3c", "qa")
        (False, True)
        """
        head, _, rest = redis_key.partition("}:v1:")
        shown, colon, _ = rest.partition(":")
        if not colon or not head.startswith(self.key_prefix):
            return False
        return operation is None or shown == operation_slug(operation)

    def _digest(self, parts: tuple[Any, ...]) -> bytes:
        mark, encoding = encode_parts(parts, _NAMES)
        state = self._new_hash(_SCHEMA + mark)
        state.update(encoding)
        digest: bytes = state.digest()
        return digest if self._secret is None else hashlib.blake2b(digest, digest_size=32, key=self._secret).digest()

    def _cache_key(self, digest: bytes, operation: str, length: int, shape: int) -> CacheKey:
        bucket = digest[0] & (BUCKETS - 1)
        redis_key = f"{self._tags[bucket]}v1:{operation_slug(operation)}:{digest[:_SHOWN_DIGEST_BYTES].hex()}"
        full = digest if len(digest) == DIGEST_BYTES else digest[:DIGEST_BYTES].ljust(DIGEST_BYTES, b"\0")
        return CacheKey(redis_key, full, bucket, operation, length, self._tier(length), shape)

    def _tier(self, length: int) -> str:
        for tier, limit in self._tiers:
            if length < limit:
                return tier
        return _LARGEST_TIER

    def _shape(self, length: int, has_question: bool, options: Any) -> int:
        has_options = type(options) is not dict or len(options) > 0
        return has_options + 2 * has_question + 4 * (length > self.text_hash_threshold)

    def _make_token_pair(self, bucket: int, operation: str) -> tuple[str, ...]:
        return self.namespace_key(bucket), self.operation_key(bucket, operation)


def key_sample(key: CacheKey, at_s: float, took_ns: int) -> Sample:
    """Return the timing of *key*, for one that no look-up follows: a look-up's own sample bears its key's."""
    what = key.text_length, key.text_tier
    return Sample(at_s, key.operation, "key", "success", "", took_ns, *what, extra=KEY_EXTRAS[key.shape])


@lru_cache(_OPERATIONS_REMEMBERED)
def operation_slug(operation: str) -> str:
    """Return how keys show *operation*: as it is, or changed and then told apart by ``~`` and 8 hex digits.

    >>> operation_slug("shop.summarize"), operation_slug("shop:summarize")
    ('shop.summarize', 'shop_summarize~03dc6b87')
    """
    shown = re.sub(r"[^A-Za-z0-9_.\-]", "_", operation)[:_SHOWN_OPERATION]
    if shown == operation and shown:
        return shown
    full = hashlib.sha256(operation.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{shown}~{full[:8]}"


def _plain_str(name: str, given: Any) -> str:
    """Return *given* as exactly a str: a ``StrEnum`` names the same operation as its text."""
    if not isinstance(given, str):
        raise TypeError(f"{name} must be a str, not {type(given).__name__}")
    return str.__str__(given)


def _hash_constructor(given: str | HashConstructor) -> HashConstructor:
    try:
        new = _named_hash(given) if isinstance(given, str) else given
        size = new(b"").digest_size
    except (TypeError, ValueError, AttributeError):
        raise SettingsError(f"hash_algorithm: hashlib knows no {given!r}") from None
    if size < 16:
        raise SettingsError(f"hash_algorithm: {given!r} has no fixed digest of 128 bits or more")
    return new


def _named_hash(name: str) -> HashConstructor:
    if name in hashlib.algorithms_guaranteed:
        constructor: HashConstructor = getattr(hashlib, name)  # spares a look-up by name for each key
        return constructor
    return partial(hashlib.new, name)


def _checked_namespace(given: Any) -> str:
    if not isinstance(given, str) or not re.fullmatch(r"[A-Za-z0-9_.\-]{1,32}", given):
        raise SettingsError(f"namespace: {given!r} must be 1 to 32 of A-Z a-z 0-9 _ . -")
    return given


def _checked_secret(given: Any) -> bytes | None:
    if given is not None and (not isinstance(given, bytes) or not 16 <= len(given) <= 64):
        raise SettingsError("secret: must be 16 to 64 bytes")
    return given


def _checked_tiers(given: Any) -> tuple[tuple[str, int], ...]:
    limits = list(given.values()) if isinstance(given, Mapping) and list(given) == list(_TIERS) else []
    if not limits or not all(type(limit) is int and limit > 0 for limit in limits):
        raise SettingsError(f"text_size_tiers: must give {', '.join(_TIERS)} in this order, each an int above 0")
    if sorted(set(limits)) != limits:
        raise SettingsError("text_size_tiers: the limits must rise")
    return tuple(given.items())
