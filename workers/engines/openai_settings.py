"""
How to reach a server that speaks OpenAI's protocol, and what to ask it for.

In: ``AICACHE_OPENAI_*`` variables, or keyword arguments.   Out: `OpenAISettings`, checked.

Variables of the SDK (``OPENAI_*``) and of proxies count for nothing: they belong to other programs of the machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from ipaddress import IPv4Address
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from aicache_tasks.errors import SettingsError

PREFIX: Final = "AICACHE_OPENAI_"
DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"
OPENAI_HOST: Final = "api.openai.com"
_OURS: Final = frozenset({"model", "messages", "stream", "n", "response_format"})
_MAX_KEY_BYTES: Final = 16_384
_PORTS: Final[Mapping[str, int]] = MappingProxyType({"http": 80, "https": 443})
_NUMBERS: Final = re.compile(r"(?:\d+\.){3}\d+")
_NO_UTF_8: Final = re.compile(r"[\ud800-\udfff]")


def _about(default: Any, means: str, *, shown: bool = True) -> Any:
    return field(default=default, repr=shown, metadata={"means": means})


@dataclass(frozen=True, kw_only=True)
class OpenAISettings:
    """What an `OpenAIEngine` is made from; each field's variable is its name in capitals after ``AICACHE_OPENAI_``.

    Raises:
        SettingsError: a value is wrong; names its variable and the fix, and never shows a key.

    >>> OpenAISettings(model="llama3.2", base_url="http://127.0.0.1:11434/v1/").base_url
    'http://127.0.0.1:11434/v1'
    """

    model: str = _about("", "The model that is asked. Required.")
    base_url: str = _about(DEFAULT_BASE_URL, "Where the server is; nearly all end in `/v1`.")
    api_key: str | None = _about(None, "The key. Required by OpenAI; most servers of one's own need none.", shown=False)
    api_key_file: str | None = _about(None, "A file that holds the key, read when the first answer is asked for.")
    fallback_model: str | None = _about(None, "Asked when `MODEL` fails for good; its answers are not stored.")
    answered_by: str | None = _about(
        None, "Pattern such as `gpt-4o-mini*`: an answer of another model is not stored. For gateways that swap models."
    )
    server: str | None = _about(None, "What stands for the server in the key; by default its base URL.")
    temperature: float | None = _about(0.0, "0 to 2; `none` sends none, which some models insist on.")
    seed: int | None = _about(None, "Sent where it is set.")
    max_output_tokens: int | None = _about(
        2048, "Longest answer; one that is cut off there is an error. `none`: no limit."
    )
    json_schema: bool = _about(True, "Ask for JSON by schema where the server has it; `0` never asks.")
    extra_body: Mapping[str, Any] | None = _about(
        None, 'JSON object with more fields of a request, such as `{"cache_prompt": false}`.'
    )
    timeout_s: float = _about(100.0, "Seconds for one answer, all attempts and waits together.")
    attempt_timeout_s: float | None = _about(None, "Seconds for one attempt; by default all there are.")
    connect_timeout_s: float = _about(5.0, "Seconds to connect.")
    retries: int = _about(2, "How often a request is sent again.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", checked_url(f"{PREFIX}BASE_URL", self.base_url))
        if self.temperature is not None:
            object.__setattr__(self, "temperature", float(self.temperature))  # 0 and 0.0 are one key
        _check_model(self)
        _check_numbers(self)
        _check_key(self)
        _check_extra_body(self.extra_body or {})

    @property
    def is_openai(self) -> bool:
        """Whether this is OpenAI's own server."""
        return urlsplit(self.base_url).hostname == OPENAI_HOST

    def read_key(self) -> str | None:
        """Return the key, from its file if it is in one; None if there is none.

        Raises:
            SettingsError: the file cannot be read, holds no key, or OpenAI's server would get none.
        """
        if self.api_key is None and self.api_key_file is None and self.is_openai:
            raise _wrong("API_KEY", "is required by OpenAI: set it, or AICACHE_OPENAI_API_KEY_FILE")
        if self.api_key_file is None:
            return self.api_key
        return _sound_key("API_KEY_FILE", _read(self.api_key_file))


def settings_from(environ: Mapping[str, str]) -> OpenAISettings:
    """Return the settings that ``AICACHE_OPENAI_*`` in *environ* make; an empty variable is one that is not set.

    Raises:
        SettingsError: as `OpenAISettings`, and for a variable that there is none of.

    >>> settings_from({"AICACHE_OPENAI_MODEL": "m", "AICACHE_OPENAI_SEED": "7"}).seed
    7
    >>> settings_from({"AICACHE_OPENAI_MODLE": "m"})
    Traceback (most recent call last):
        ...
    aicache_tasks.errors.SettingsError: AICACHE_OPENAI_MODLE: no such variable; did you mean AICACHE_OPENAI_MODEL?
    """
    given = {name.removeprefix(PREFIX): text.strip() for name, text in environ.items() if name.startswith(PREFIX)}
    known = [item.name.upper() for item in fields(OpenAISettings)]
    for name in sorted(given.keys() - set(known)):
        near = get_close_matches(name, known, 1)
        raise _wrong(name, f"no such variable; did you mean {PREFIX}{near[0]}?" if near else "no such variable")
    return OpenAISettings(**{name.lower(): _parsed(name, text) for name, text in given.items() if text})


def variables() -> list[tuple[str, str, str]]:
    """Return name, default and meaning of every variable, for the documentation."""
    return [(PREFIX + f.name.upper(), _shown(f.default), f.metadata["means"]) for f in fields(OpenAISettings)]


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(int(default))
    return (
        "" if default in (None, "") or default == {} else f"{default:g}" if isinstance(default, float) else str(default)
    )


def _wrong(name: str, detail: str) -> SettingsError:
    colon = "" if detail.startswith("is ") else ":"
    return SettingsError(f"{PREFIX}{name}{colon} {detail}")


def _parsed(name: str, text: str) -> Any:
    parse = _PARSERS.get(name)
    return text if parse is None else parse(name, text)


def _number(name: str, text: str) -> float | None:
    if name == "TEMPERATURE" and text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise _wrong(name, "must be a number") from None


def _whole(name: str, text: str) -> int | None:
    if name == "MAX_OUTPUT_TOKENS" and text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise _wrong(name, "must be a whole number") from None


def _switch(name: str, text: str) -> bool:
    found = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(text.lower())
    if found is None:
        raise _wrong(name, "must be 1 or 0")
    return found


def _object(name: str, text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong(name, "must be a JSON object") from None
    if not isinstance(found, dict):
        raise _wrong(name, "must be a JSON object")
    return found


_PARSERS: Final[Mapping[str, Callable[[str, str], Any]]] = MappingProxyType(
    {
        "TEMPERATURE": _number,
        "TIMEOUT_S": _number,
        "ATTEMPT_TIMEOUT_S": _number,
        "CONNECT_TIMEOUT_S": _number,
        "SEED": _whole,
        "MAX_OUTPUT_TOKENS": _whole,
        "RETRIES": _whole,
        "JSON_SCHEMA": _switch,
        "EXTRA_BODY": _object,
    }
)


def checked_url(variable: str, given: str) -> str:
    """Return *given* in the one form that stands for it in a key: host in small letters, no usual port, no last slash.

    Args:
        variable: that holds it.
        given: may hold a password, so that no message shows it.

    Raises:
        SettingsError: it is no URL of HTTP, or holds more than a scheme, a host, a port and a path.

    >>> checked_url("URL", "HTTPS://API.Example.com:443/v1/")
    'https://api.example.com/v1'
    """
    try:
        parts = urlsplit(given)
        port = parts.port
        if _NUMBERS.fullmatch(parts.hostname or ""):
            IPv4Address(parts.hostname)
    except ValueError:
        raise _no_url(variable) from None
    usual, sendable = _PORTS.get(parts.scheme), given.isascii() and given.isprintable() and " " not in given
    if usual is None or not parts.hostname or port == 0 or not sendable:
        raise _no_url(variable)
    if "@" in parts.netloc or "?" in given or "#" in given:
        raise SettingsError(f"{variable}: must hold no user, password, query or fragment: set AICACHE_OPENAI_API_KEY")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{'' if port in (None, usual) else f':{port}'}{parts.path.rstrip('/')}"


def _no_url(variable: str) -> SettingsError:
    return SettingsError(f"{variable}: must be a URL such as https://api.openai.com/v1 or http://127.0.0.1:11434/v1")


def _check_model(settings: OpenAISettings) -> None:
    if not settings.model:
        raise _wrong("MODEL", "is required: name the model, such as gpt-4o-mini or llama3.2")
    if settings.fallback_model == settings.model:
        raise _wrong("FALLBACK_MODEL", "must be another model than AICACHE_OPENAI_MODEL")
    for name in ("model", "fallback_model", "server"):
        if _NO_UTF_8.search(getattr(settings, name) or ""):
            raise _wrong(name.upper(), "must be text in UTF-8")


def _check_numbers(settings: OpenAISettings) -> None:
    if settings.temperature is not None and not 0 <= settings.temperature <= 2:
        raise _wrong("TEMPERATURE", "must be from 0 to 2, or none")
    if settings.max_output_tokens is not None and settings.max_output_tokens < 1:
        raise _wrong("MAX_OUTPUT_TOKENS", "must be 1 or more, or none")
    if not 0 <= settings.retries <= 10:
        raise _wrong("RETRIES", "must be from 0 to 10")
    for name in ("timeout_s", "attempt_timeout_s", "connect_timeout_s"):
        seconds = getattr(settings, name)
        if seconds is not None and not 0 < seconds <= 86_400:  # not a NaN either
            raise _wrong(name.upper(), "must be seconds, more than 0 and a day at most")


def _check_key(settings: OpenAISettings) -> None:
    if settings.api_key is not None and settings.api_key_file is not None:
        raise _wrong("API_KEY", "and AICACHE_OPENAI_API_KEY_FILE are both set: unset one")
    if settings.api_key is not None:
        _sound_key("API_KEY", settings.api_key)


def _sound_key(name: str, key: str) -> str:
    # What HTTP cannot carry would otherwise end in an error that quotes it.
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise _wrong(name, "must hold one key in one line of ASCII, without spaces")
    return key


def _read(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return file.read(_MAX_KEY_BYTES).decode("ascii", "replace").strip()
    except OSError as error:
        raise _wrong("API_KEY_FILE", f"{path} cannot be read ({type(error).__name__})") from None


def _check_extra_body(extra: Mapping[str, Any]) -> None:
    if taken := sorted(_OURS & extra.keys()):
        raise _wrong("EXTRA_BODY", f"must not hold {', '.join(taken)}")
    try:
        json.dumps(extra, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise _wrong("EXTRA_BODY", "must be JSON in UTF-8: no NaN, no half of a surrogate pair") from None
