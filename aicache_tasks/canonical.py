"""
One value → one byte string, the same in every process and different for every different value.

In: a value of a type listed in docs/key-types.md.   Out: ``P`` or ``T`` and the encoding, or `KeyEncodingError`.

*Plain* values are MessagePack with sorted keys, which costs a few hundred nanoseconds. Every other value is *tagged*:
each node is a tag byte, the length of what follows in eight bytes, and what follows; items of a dict and of a set
are sorted by their encoding. Nothing is ever turned into text by its own ``str()`` or ``repr()``: a type that is not
known is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from msgspec.msgpack import Encoder

from aicache_tasks.errors import KeyEncodingError, SettingsError
from aicache_tasks.keytypes import (
    DICTS,
    LEAVES,
    LISTS,
    SETS,
    Opened,
    Refused,
    Step,
    is_namedtuple,
    node,
    open_value,
    registered,
    show_step,
    type_name,
)

MAX_DEPTH: Final = 200
"""Levels of nesting that a key may have."""

_MAX_SHOWN_PATH = 200
_SCALARS = frozenset({type(None), bool, int, str, bytes})
_STR_ONLY = frozenset({str})

_message_pack = Encoder(order="deterministic").encode

# What reading a value may raise when the value is at fault. Not `Exception`: a soft time limit must pass.
_FAULTS = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, BufferError)


def encode_canonical(value: Any, path: str = "value") -> bytes:
    """Return the canonical encoding of *value*.

    Args:
        value: of any type in docs/key-types.md, or registered with `register_encoder`.
        path: what an error calls the value.

    Raises:
        KeyEncodingError: a part of the value has no encoding; names the part's path and type, never its value.

    >>> encode_canonical([1, "1"]) == encode_canonical((1, "1"))
    True
    >>> encode_canonical({1: "a"}) == encode_canonical({"1": "a"})
    False
    >>> encode_canonical({"image": object()}, "options")
    Traceback (most recent call last):
        ...
    aicache_tasks.errors.KeyEncodingError: options.image cannot be part of a cache key: builtins.object
    """
    plain = _encode_plain(value, (value,), path)
    if plain is not None:
        return b"P" + plain
    return b"T" + _Tagged(path).run(lambda tagged: tagged.encode(value))


def encode_parts(parts: Sequence[Any], names: Sequence[str]) -> tuple[bytes, bytes]:
    """Return the mark (``P`` or ``T``) and the encoding of the list of *parts*; an error's path starts with a name.

    Raises:
        KeyEncodingError: as `encode_canonical`.
    """
    plain = _encode_plain(parts, parts, "arguments")
    if plain is not None:
        return b"P", plain
    return b"T", _Tagged("").run(lambda tagged: tagged.encode_named(names, parts))


def is_plain(value: Any) -> bool:
    """Return whether all types in *value* are those of the plain encoding, dict keys included.

    These are exactly None, bool, int, float (but NaN), str, bytes, list, tuple and dict with str keys; a namedtuple,
    an OrderedDict and a defaultdict count as tuple and dict.

    >>> is_plain({"messages": [{"role": "user"}], "n": 1})
    True
    >>> is_plain({1: "a"})
    False
    """
    return _all_plain((value,), 0)


def register_encoder(kind: type, encode: Callable[[Any], Any], *, name: str | None = None) -> None:
    """Make values of exactly the type *kind* part of keys. Call it where producer and worker both import it.

    Args:
        kind: a class of your own, or of a library.
        encode: returns what tells two values apart, of a type that can be encoded.
        name: stands for the type in the key, by default its module and qualified name.

    Raises:
        SettingsError: the type has an encoding that cannot be replaced.

    >>> from fractions import Fraction
    >>> register_encoder(Fraction, lambda f: (f.numerator, f.denominator))
    >>> encode_canonical(Fraction(1, 2)) == encode_canonical(Fraction(2, 4))
    True
    """
    if kind in LEAVES or kind in DICTS | LISTS | SETS or is_namedtuple(kind):
        raise SettingsError(f"register_encoder: {type_name(kind)} has an encoding, which cannot be replaced")
    registered[kind] = (type_name(kind) if name is None else name, encode)


def _encode_plain(value: Any, parts: Iterable[Any], path: str) -> bytes | None:
    """Return the plain encoding, None for a tagged value. Which it is never depends on how deep the stack is."""
    try:
        return _message_pack(value) if _all_plain(parts, 0) else None
    except (UnicodeEncodeError, OverflowError):
        return None  # lone surrogates, or an int of more than 64 bits: the tagged form has both
    except RuntimeError as fault:
        kind = _runtime_fault(fault)
    raise KeyEncodingError(path, kind)


def _runtime_fault(fault: RuntimeError) -> str:
    return "too deep" if isinstance(fault, RecursionError) else "changed while it was read"


def _is_plain_container(value: Any, kind: type, depth: int) -> bool:
    if kind in DICTS:
        return _STR_ONLY.issuperset(map(type, value)) and _all_plain(value.values(), depth)
    return (kind in LISTS or is_namedtuple(kind)) and _all_plain(value, depth)


def _all_plain(values: Iterable[Any], depth: int) -> bool:
    if depth > MAX_DEPTH:
        return False
    for value in values:
        kind = type(value)
        if kind in _SCALARS or (kind is float and value == value):  # NaN is not: its one form is tagged
            continue
        if not _is_plain_container(value, kind, depth + 1):
            return False
    return True


class _Tagged:
    """One pass over one value. Recursion is two Python frames a level, so that `MAX_DEPTH` fits any worker's stack."""

    __slots__ = ("_active", "_root", "_trail")

    def __init__(self, root: str) -> None:
        self._root = root
        self._trail: list[Step] = []
        self._active: set[int] = set()

    def run(self, encode: Callable[[_Tagged], bytes]) -> bytes:
        """Return what *encode* returns.

        A fault becomes a `KeyEncodingError` outside its handler, so that it does not carry the fault and its text.
        """
        try:
            return encode(self)
        except KeyEncodingError:
            raise
        except Refused as refusal:
            kind = str(refusal)
        except RuntimeError as fault:
            kind = _runtime_fault(fault)
        except _FAULTS as fault:
            kind = f"{type(fault).__name__} while it was read"
        raise KeyEncodingError(self._path(), kind)

    def encode_named(self, names: Sequence[str], parts: Sequence[Any]) -> bytes:
        """Return the encoding of the list *parts*, its indexes shown as *names*."""
        steps: list[Step] = [("field", name) for name in names]
        return self._children(Opened(b"l", zip(steps, parts, strict=True)))

    def encode(self, value: Any) -> bytes:
        """Return the node of *value*."""
        kind = type(value)
        leaf = LEAVES.get(kind)
        if leaf is not None:
            return node(leaf[0], leaf[1](value))
        if id(value) in self._active:
            raise Refused("cycle")
        if len(self._trail) >= MAX_DEPTH:
            raise Refused("too deep")
        opened = open_value(value, kind)
        self._active.add(id(value))
        encoded = self._children(opened)
        self._active.discard(id(value))
        return encoded

    def _children(self, opened: Opened) -> bytes:
        nodes, trail = [], self._trail
        for step, part in opened.parts:  # not popped after a fault: the trail is then its path
            trail.append(step)
            nodes.append(self.encode(part))
            trail.pop()
        if opened.pairs:
            nodes = [key + value for key, value in zip(nodes[::2], nodes[1::2], strict=True)]
        if opened.unordered:
            nodes.sort()
        return node(opened.tag, opened.head + b"".join(nodes))

    def _path(self) -> str:
        path = (self._root + "".join(map(show_step, self._trail))).removeprefix(".")
        return path if len(path) <= _MAX_SHOWN_PATH else path[:_MAX_SHOWN_PATH] + "…"
