"""
One value → one byte string, the same in every process and different for every different value.

In: a value of a type listed in docs/key-types.md.   Out: ``P`` or ``T`` and the encoding, or `KeyEncodingError`.

*Plain* values are MessagePack with sorted keys, which costs a few hundred nanoseconds. Every other value is *tagged*:
each node is a tag byte, the length of what follows in eight bytes, and what follows; items of a dict and of a set
are sorted by their encoding. Nothing is ever turned into text by its own ``str()`` or ``repr()``: a type that is not
known is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from msgspec.msgpack import Encoder

from aicache_tasks.errors import OPTIONS, KeyEncodingError, SettingsError
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
    show_option,
    show_step,
    type_name,
)

MAX_DEPTH: Final = 200
"""Levels of nesting that a key may have."""

MAX_WEIGHT: Final = 64 * 2**20
"""What a key may weigh: its text and bytes, and `VALUE_WEIGHT` for each value; so 2^18 values or 64 MiB at most."""

VALUE_WEIGHT: Final = 256
"""A list that holds one other twice, which does the same, and so on, has 2^n values in n objects: bytes alone are
no limit."""

_MAX_SHOWN_PATH = 200
_TOO_LARGE = "too large"
_FIXED = frozenset({type(None), bool, int})

_message_pack = Encoder(order="deterministic").encode

# What reading a value may raise when the value is at fault. Not `Exception`: a soft time limit must pass.
_FAULTS = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, BufferError)


def encode_canonical(value: Any, path: str = "value") -> bytes:
    """Return the canonical encoding of *value*.

    Args:
        value: of any type in docs/key-types.md, or registered with `register_encoder`.
        path: what an error calls the value.

    Raises:
        KeyEncodingError: a part of the value has no encoding, or weighs too much; names its path and type, never the
            value.

    >>> encode_canonical([1, "1"]) == encode_canonical((1, "1"))
    True
    >>> encode_canonical({1: "a"}) == encode_canonical({"1": "a"})
    False
    >>> encode_canonical({"image": object()}, "options")
    Traceback (most recent call last):
        ...
    aicache_tasks.errors.KeyEncodingError: options.image cannot be part of a cache key: builtins.object
    """
    plain = _encode_plain(value, (path,), (value,))
    if plain is not None:
        return b"P" + plain
    return b"T" + _Tagged(path).run(lambda tagged: tagged.encode(value))


def encode_parts(parts: Sequence[Any], names: Sequence[str]) -> tuple[bytes, bytes]:
    """Return the mark (``P`` or ``T``) and the encoding of the list of *parts*; an error's path starts with a name.

    Raises:
        KeyEncodingError: as `encode_canonical`.
    """
    plain = _encode_plain(parts, names, parts)
    if plain is not None:
        return b"P", plain
    return b"T", _Tagged("").run(lambda tagged: tagged.encode_named(names, parts))


def is_plain(value: Any) -> bool:
    """Return whether all types in *value* are those of the plain encoding, dict keys included.

    These are exactly None, bool, int, float (but NaN), str, bytes, list, tuple and dict with str keys; a namedtuple,
    an OrderedDict and a defaultdict count as tuple and dict. What weighs too much for a key is not looked at further.

    >>> is_plain({"messages": [{"role": "user"}], "n": 1})
    True
    >>> is_plain({1: "a"})
    False
    """
    try:
        _weigh((value,), 0, MAX_WEIGHT)
    except _NotPlain:
        return False
    except Refused:
        return True
    return True


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


class _NotPlain(Exception):  # noqa: N818 - a verdict, never seen outside
    """A value is tagged."""


def _encode_plain(value: Any, names: Sequence[str], parts: Sequence[Any]) -> bytes | None:
    """Return the plain encoding, None for a tagged value. Which it is never depends on how deep the stack is."""
    try:
        if _weigh(parts, 0, MAX_WEIGHT) >= 0:
            return _message_pack(value)
        kind = _TOO_LARGE
    except (_NotPlain, UnicodeEncodeError, OverflowError):
        return None  # lone surrogates, or an int of more than 64 bits: the tagged form has both
    except Refused as refusal:
        kind = str(refusal)
    except RuntimeError as fault:
        kind = _runtime_fault(fault)
    whole = names[0] if len(names) == 1 else "arguments"
    raise KeyEncodingError(_too_large_part(names, parts) if kind == _TOO_LARGE else whole, kind)


def _too_large_part(names: Sequence[str], parts: Sequence[Any]) -> str:
    """Return the name of the part with which the weight passes the limit."""
    left = MAX_WEIGHT
    for name, part in zip(names, parts, strict=True):
        try:
            left = _weigh((part,), 0, left)
        except Refused:
            return name
        if left < 0:
            return name
    return names[-1]


def _runtime_fault(fault: RuntimeError) -> str:
    return "too deep" if isinstance(fault, RecursionError) else "changed while it was read"


def _weigh(values: Collection[Any], depth: int, left: int) -> int:
    """Return what is left of the weight *left* after *values*; below 0 is too much.

    Raises:
        Refused: they weigh too much.
        _NotPlain: one of them is not plain, or lies too deep.
    """
    left -= len(values) * VALUE_WEIGHT
    if left < 0 or depth > MAX_DEPTH:
        raise Refused(_TOO_LARGE) if left < 0 else _NotPlain
    for value in values:
        kind = type(value)
        if kind is str:
            left -= len(value)
        elif (kind is float and value == value) or kind in _FIXED:  # NaN is not plain: its one form is tagged
            continue
        elif kind in DICTS:
            for key in value:
                if type(key) is not str:
                    raise _NotPlain
                left -= len(key)
            left = _weigh(value.values(), depth + 1, left)
        else:
            left = _weigh_other(value, kind, depth + 1, left)
    return left


def _weigh_other(value: Any, kind: type, depth: int, left: int) -> int:
    if kind is bytes:
        return left - len(value)
    if kind in LISTS or is_namedtuple(kind):
        return _weigh(value, depth, left)
    raise _NotPlain


class _Tagged:
    """One pass over one value. Recursion is two Python frames a level, so that `MAX_DEPTH` fits any worker's stack."""

    __slots__ = ("_active", "_left", "_root", "_trail")

    def __init__(self, root: str) -> None:
        self._root = root
        self._trail: list[Step] = []
        self._active: set[int] = set()
        self._left = MAX_WEIGHT

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
            payload = leaf[1](value)
            self._add(len(payload))
            return node(leaf[0], payload)
        if id(value) in self._active:
            raise Refused("cycle")
        if len(self._trail) >= MAX_DEPTH:
            raise Refused("too deep")
        opened = open_value(value, kind)
        self._add(len(opened.head))
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

    def _add(self, payload_bytes: int) -> None:
        self._left -= payload_bytes + VALUE_WEIGHT
        if self._left < 0:
            raise Refused(_TOO_LARGE)

    def _path(self) -> str:
        path, steps = self._root, self._trail
        if not path and steps:
            path, steps = show_step(steps[0]).removeprefix("."), steps[1:]
        if path == OPTIONS and steps:
            path, steps = path + show_option(steps[0]), steps[1:]
        path += "".join(map(show_step, steps))
        return path if len(path) <= _MAX_SHOWN_PATH else path[:_MAX_SHOWN_PATH] + "…"
