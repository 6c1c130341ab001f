"""A task message's way from producer to worker, as kombu does it."""

from __future__ import annotations

from typing import Any

from kombu import serialization
from kombu.exceptions import DecodeError, EncodeError

SERIALIZERS = ("json", "msgpack", "pickle")
NOT_DELIVERED = (EncodeError, DecodeError)


def send(serializer: str, value: Any) -> bytes | str:
    """Return what goes over the wire; `EncodeError` if the serializer does not take the value."""
    payload: bytes | str = serialization.dumps(value, serializer=serializer)[2]
    return payload


def deliver(serializer: str, payload: bytes | str) -> Any:
    """Return what the task body gets; `DecodeError` if the worker cannot read the payload."""
    content_type, encoding = _CONTENT[serializer]
    return serialization.loads(payload, content_type, encoding, accept=[content_type])


_CONTENT = {
    "json": ("application/json", "utf-8"),
    "msgpack": ("application/x-msgpack", "binary"),
    "pickle": ("application/x-python-serialize", "binary"),
}
