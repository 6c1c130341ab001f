"""Hostile and damaged bytes: whatever lies in the store, the codec answers with a `PayloadError` and little memory."""

from __future__ import annotations

import ast
import json
import pickle
import random
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aicache_tasks import bounds, frame, local, values
from aicache_tasks import codec as codec_module
from aicache_tasks.codec import Codec, Tokens, make_tombstone, peek_header, tombstone_token
from aicache_tasks.errors import CorruptPayload, ForeignPayload, NotStorable, PayloadError
from aicache_tasks.records import EntryMeta

DIGEST = bytes(range(32))
OTHER_DIGEST = bytes(range(1, 33))
TOKENS = Tokens(b"ns-token", b"op-token", ((b"tag-digest-16-by", b"tagtoken"),))
CODECS = ("none", "zlib", "zstd")
VALUE = {"items": [1, (2.5, {"a"}), {3: None}], "text": "the same words again " * 30}
MIB = 2**20


def sealed(compression: str = "zstd", value: Any = VALUE, digest: bytes = DIGEST) -> bytes:
    codec = Codec(compression=compression, threshold_bytes=100)
    meta = EntryMeta("m", {"input_tokens": 1}, 0.5, 6, 7)
    return codec.seal(
        codec.dump(value), digest=digest, tokens=TOKENS, created_ms=1, fresh_ms=2, expires_ms=3, meta=meta
    ).data


def forged(body: bytes, *, raw_bytes: int, codec: int, meta: bytes = b"\x90") -> bytes:
    """Return a frame that is sound but for what is in it: what someone who may write to the server could plant."""
    head = struct.pack(
        ">2sBB8sBBBBIIQQQ32s8sH",
        b"\xa1\xca", 1, 1, b"ns-token", codec, 1, 0, 0, 0, raw_bytes, 1, 2, 3, DIGEST, b"op-token", len(meta),
    )  # fmt: skip
    rest = meta + body
    return head + struct.pack(">I", zlib.crc32(head + rest)) + rest


def read_all(data: bytes) -> Any:
    """Read as a look-up does."""
    codec = Codec()
    opened = codec.open(data, DIGEST)
    codec.meta(opened)
    return codec.load(codec.inflate(opened))


def refused(data: bytes) -> PayloadError | None:
    try:
        read_all(data)
    except PayloadError as error:
        return error
    return None


def mutated(data: bytes, pick: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(pick.randint(1, 4)):
        if not changed:
            break
        at = pick.randrange(len(changed))
        how = pick.randrange(5)
        if how == 0:
            changed[at] ^= 1 << pick.randrange(8)
        elif how == 1:
            changed[at] = pick.randrange(256)
        elif how == 2:
            changed[at : at + pick.randint(1, 40)] = pick.randbytes(pick.randint(0, 40))
        elif how == 3:
            changed += pick.randbytes(pick.randint(1, 40))
        else:
            del changed[max(at, 1) :]
    return bytes(changed)


def mutate_bodies(rounds: int, seed: int) -> int:
    """Load mutated bodies, and frames whose checksum fits the mutation; return how many were refused."""
    pick, codec = random.Random(seed), Codec()
    bodies = [codec.dump(VALUE), codec.dump((1, 2)), codec.dump([VALUE, 2**70, b"x", {1.5: {"y"}}])]
    count = 0
    for _ in range(rounds):
        body = mutated(pick.choice(bodies), pick)
        squeezed = mutated(zstandard.compress(body), pick) if pick.random() < 0.5 else zlib.compress(body)
        count += refused(forged(body, raw_bytes=len(body), codec=0)) is not None
        count += refused(forged(squeezed, raw_bytes=len(body), codec=pick.choice([1, 2]))) is not None
    return count


def mutate_frames(rounds: int, seed: int) -> int:
    """Return how many of *rounds* mutated frames were read although they differ."""
    pick = random.Random(seed)
    frames = [sealed(compression) for compression in CODECS]
    read = 0
    for _ in range(rounds):
        data = pick.choice(frames)
        changed = mutated(data, pick)
        read += changed != data and refused(changed) is None
    return read


class TestDamage:
    @settings(max_examples=1500, deadline=None, database=None)
    @given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"\xa1\xca\x01\x01" + tail))
    @example(b"")
    def test_any_bytes_end_in_a_payload_error(self, data: bytes) -> None:
        with pytest.raises(PayloadError):
            Codec().open(data, DIGEST)
        with pytest.raises(PayloadError):
            peek_header(data, DIGEST)
        assert tombstone_token(data) is None or data[3] == 2

    @settings(max_examples=1500, deadline=None, database=None)
    @given(st.binary(max_size=80), st.sampled_from([0, 1, 2]), st.integers(0, 2**32 - 1) | st.integers(0, 100))
    def test_any_body_and_metadata_end_in_a_value_or_a_payload_error(self, body: bytes, codec: int, size: int) -> None:
        refused(forged(body, raw_bytes=size, codec=codec))
        refused(forged(body, raw_bytes=len(body), codec=0))
        refused(forged(b"\xc0", raw_bytes=1, codec=0, meta=body))

    @settings(max_examples=1500, deadline=None, database=None)
    @given(st.integers(-128, 127), st.binary(max_size=40))
    def test_any_extension_ends_in_a_value_or_a_payload_error(self, code: int, content: bytes) -> None:
        body = b"\xc7" + bytes([len(content), code & 0xFF]) + content
        error = refused(forged(body, raw_bytes=len(body), codec=0))
        assert code in (-1, *range(1, 14)) or isinstance(error, CorruptPayload)

    @pytest.mark.parametrize("compression", CODECS)
    def test_no_flipped_bit_goes_unnoticed(self, compression: str) -> None:
        data = sealed(compression)
        for bit in range(len(data) * 8):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            assert refused(bytes(changed)) is not None, f"bit {bit % 8} of byte {bit // 8}"

    @pytest.mark.parametrize("compression", CODECS)
    def test_no_changed_byte_of_the_header_goes_unnoticed(self, compression: str) -> None:
        data = sealed(compression)
        for at in range(102 + 24):
            for byte in set(range(256)) - {data[at]}:
                assert refused(data[:at] + bytes([byte]) + data[at + 1 :]) is not None, f"byte {at}: {byte}"

    @pytest.mark.parametrize("compression", CODECS)
    def test_no_truncation_or_extension_goes_unnoticed(self, compression: str) -> None:
        data = sealed(compression)
        for size in range(len(data)):
            assert refused(data[:size]) is not None, f"cut at {size}"
        for tail in (b"\0", b"x", data[-1:], data, b"\0" * 102):
            assert isinstance(refused(data + tail), CorruptPayload)

    def test_frames_of_other_keys_are_foreign_whichever_way_they_are_swapped(self) -> None:
        mine, other = sealed(), sealed(digest=OTHER_DIGEST)
        assert isinstance(refused(other), ForeignPayload)
        with pytest.raises(ForeignPayload):
            Codec().open(mine, OTHER_DIGEST)
        assert isinstance(refused(mine[:48] + OTHER_DIGEST + mine[80:]), CorruptPayload)

    def test_random_mutations_of_frames_are_noticed(self) -> None:
        assert mutate_frames(3000, seed=1) == 0

    def test_random_mutations_of_bodies_end_in_a_value_or_a_payload_error(self) -> None:
        assert mutate_bodies(2000, seed=2) > 1000

    @pytest.mark.soak
    @pytest.mark.timeout(300)
    def test_a_hundred_thousand_mutations_are_noticed(self) -> None:
        assert mutate_frames(100_000, seed=3) == 0
        assert mutate_bodies(50_000, seed=4) > 25_000


class Opener:
    """Its pickle opens a file for writing when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


class TestPlanted:
    def planted(self, marker: Path) -> list[bytes]:
        pickles = [pickle.dumps(Opener(str(marker)), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
        text = json.dumps({"result": "an answer", "cache_hit": True}).encode()
        others = [text, b"", b"null", b"!!python/object/apply:os.system ['true']", b"\x1f\x8b\x08", zlib.compress(text)]
        prefixed = [mark + data for mark in (b"raw:", b"compressed:") for data in (*pickles, zlib.compress(pickles[0]))]
        return pickles + others + prefixed

    def test_other_formats_are_corrupt_and_never_run(self, tmp_path: Path) -> None:
        marker = tmp_path / "it-ran"
        for data in self.planted(marker):
            assert isinstance(refused(data), CorruptPayload)
        assert not marker.exists()

    def test_other_formats_inside_a_sound_frame_are_corrupt_and_never_run(self, tmp_path: Path) -> None:
        marker = tmp_path / "it-ran"
        for data in self.planted(marker):
            for body, codec in ((data, 0), (zlib.compress(data), 1), (zstandard.compress(data), 2)):
                assert isinstance(refused(forged(body, raw_bytes=len(data), codec=codec)), CorruptPayload)
        assert not marker.exists()

    def test_the_planted_pickle_would_have_run(self, tmp_path: Path) -> None:
        marker = tmp_path / "it-ran"
        pickle.loads(pickle.dumps(Opener(str(marker)))).close()
        assert marker.exists()

    def test_no_module_on_the_way_can_run_stored_bytes(self) -> None:
        dangerous = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml", "eval", "exec"}
        for module in (bounds, codec_module, frame, local, values):
            nodes = list(ast.walk(ast.parse(Path(module.__file__).read_text())))
            names = {node.id for node in nodes if isinstance(node, ast.Name)}
            imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
            names |= {alias.name for node in imports for alias in node.names}
            assert not names & dangerous, module.__name__


BOMBS = {
    "zlib, 100 MiB of zeros, size told": "forged(ZLIB_ZEROS, raw_bytes=100 * MIB, codec=1)",
    "zlib, 100 MiB of zeros, size hidden": "forged(ZLIB_ZEROS, raw_bytes=1000, codec=1)",
    "zlib, 100 MiB of zeros, at the limit": "forged(ZLIB_ZEROS, raw_bytes=16 * MIB, codec=1)",
    "zstd, 100 MiB of zeros, size told": "forged(ZSTD_ZEROS, raw_bytes=100 * MIB, codec=2)",
    "zstd, 100 MiB of zeros, size hidden": "forged(ZSTD_ZEROS, raw_bytes=1000, codec=2)",
    "zstd, 100 MiB of zeros, size not in the body": "forged(ZSTD_UNSIZED, raw_bytes=1000, codec=2)",
    "zstd, two frames": "forged(zstandard.compress(b'a') + ZSTD_ZEROS, raw_bytes=1, codec=2)",
    "zstd, states 200 MB": "forged(bytes.fromhex('28b52ffda000c2eb0b') + b'x' * 90, raw_bytes=1000, codec=2)",
    "zstd, states 200 MB, and so does the header": (
        "forged(bytes.fromhex('28b52ffda000c2eb0b') + b'x' * 90, raw_bytes=200_000_000, codec=2)"
    ),
    "zstd, 13 bytes that state exabytes": "forged(bytes.fromhex('28b52ffde06c06060663636363'), raw_bytes=99, codec=2)",
    "zstd, 13 bytes and the longest length": (
        "forged(bytes.fromhex('28b52ffde06c06060663636363'), raw_bytes=2**32 - 1, codec=2)"
    ),
    "arrays 200,000 deep": "plain(b'\\x91' * 200_000 + b'\\xc0')",
    "arrays 50,000 deep": "plain(b'\\x91' * 50_000 + b'\\xc0')",
    "maps 50,000 deep": "plain(b'\\x81\\xa0' * 50_000 + b'\\xc0')",
    "tuples 5,000 deep": "plain(nested(5_000, 1))",
    "sets 5,000 deep": "plain(nested(5_000, 3))",
    "array header of 4 billion": "plain(b'\\xdd\\xff\\xff\\xff\\xff')",
    "array headers of 4 billion, nested": "plain(b'\\xdd\\xff\\xff\\xff\\xff' * 10_000)",
    "map header of 4 billion": "plain(b'\\xdf\\xff\\xff\\xff\\xff')",
    "map headers of 4 billion, nested": "plain(b'\\xdf\\xff\\xff\\xff\\xff\\xa0' * 10_000)",
    "str header of 4 GiB": "plain(b'\\xdb\\xff\\xff\\xff\\xff')",
    "extension header of 4 GiB": "plain(b'\\xc9\\xff\\xff\\xff\\xff\\x01')",
    "16 MiB of empty maps": "squeezed(array(16 * MIB - 5, b'\\x80'))",
    "16 MiB of empty arrays inside a tuple": "squeezed(extension(1, array(16 * MIB - 20, b'\\x90')))",
    "16 MiB of empty arrays inside a datetime": "squeezed(extension(7, array(16 * MIB - 20, b'\\x90')))",
    "4 MiB of empty sets": "squeezed(array(MIB, b'\\xd4\\x02\\x90'))",
    "an int of 1 MiB": "plain(extension(4, b'\\x7f' * MIB))",
    "a Decimal of 1 MiB": "plain(extension(11, b'7' * MIB))",
    "a Decimal with a huge exponent": "plain(extension(11, b'1e999999999'))",
}

CHILD = """
import os, resource, struct, sys, zlib
import zstandard
from aicache_tasks.codec import Codec
from aicache_tasks.errors import PayloadError

LINUX = os.path.exists("/proc/self/clear_refs")
MIB = 2**20
DIGEST = bytes(range(32))

{forged}

def plain(body):
    return forged(body, raw_bytes=len(body), codec=0)

def squeezed(body):
    return forged(zstandard.compress(body), raw_bytes=len(body), codec=2)

def array(count, item):
    return b"\\xdd" + struct.pack(">I", count) + item * count

def extension(code, content):
    return b"\\xc9" + struct.pack(">IB", len(content), code) + content

def nested(depth, code):
    head = lambda size: b"\\x91\\xc9" + struct.pack(">IB", size, code)
    body, parts = 2, []
    for _ in range(depth):
        parts.append(head(body))
        body += 7
    return b"".join(reversed(parts)) + b"\\x91\\xc0"

def zeros(compressor):
    return b"".join([compressor.compress(bytes(MIB)) for _ in range(100)]) + compressor.flush()

def kib(name):
    if not LINUX:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1])

ZLIB_ZEROS = zeros(zlib.compressobj(9))
ZSTD_ZEROS = zeros(zstandard.ZstdCompressor().compressobj(size=100 * MIB))
ZSTD_UNSIZED = zeros(zstandard.ZstdCompressor().compressobj())

def read_all(data):
    codec = Codec()
    opened = codec.open(data, DIGEST)
    codec.meta(opened)
    codec.load(codec.inflate(opened))

for expression in sys.stdin.read().splitlines():
    data = eval(expression)
    if LINUX:
        open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
    before, outcome = kib("VmRSS"), "a value"
    try:
        read_all(data)
    except PayloadError as error:
        outcome = type(error).__name__
    print(outcome, kib("VmHWM") - before, len(data))
"""


@pytest.fixture(scope="module")
def bomb_outcomes() -> dict[str, tuple[str, int, int]]:
    """Set every bomb off in one child: outcome, memory in KiB, bytes in the store."""
    source = CHILD.format(forged=textwrap.dedent(_source_of_forged()))
    child = subprocess.run(
        [sys.executable, "-c", source],
        input="\n".join(BOMBS.values()),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert child.returncode == 0, child.stderr
    lines = [line.rsplit(" ", 2) for line in child.stdout.splitlines()]
    return {name: (what, int(kib), int(size)) for name, (what, kib, size) in zip(BOMBS, lines, strict=True)}


def _source_of_forged() -> str:
    tree = ast.parse(Path(__file__).read_text())
    return next(ast.unparse(node) for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "forged")


TOKENS_OF_EVERY_KIND = [
    *[None, 7, 200, 70_000, 2**40, -3, -100, -1000, -(2**20), -(2**40), 1.5, 2**64, 2**200, 1j],
    *["", "a" * 31, "a" * 32, "ä" * 200, "a" * 70_000, "\ud800", "\ud800" * 100, b"", b"x" * 300, b"x" * 70_000],
    *[[], {}, (), {1: 2}, {1}, [[]] * 20, [[]] * 70_000, {str(n): n for n in range(20)}],
    {str(n): n for n in range(70_000)},
]


class TestCounting:
    """Bodies over 64 KiB are counted before they are decoded; the count must see what the decoder would make."""

    @pytest.mark.parametrize("item", TOKENS_OF_EVERY_KIND, ids=range(len(TOKENS_OF_EVERY_KIND)))
    def test_every_kind_of_value_is_passed_over_to_its_exact_end(self, item: Any) -> None:
        body = Codec().dump([item, item, b"end"])
        at = 0
        while at < len(body):
            at, last = at + bounds.token_bytes(body, at), at
        assert (at, body[last:]) == (len(body), b"\xc4\x03end")

    def test_a_long_list_at_the_limit_is_stored_and_read_and_one_value_more_is_refused(self) -> None:
        codec, items = Codec(), [1] * (bounds.MAX_VALUES - 1)
        raw = codec.dump(items)
        assert codec.load(raw) == items
        with pytest.raises(NotStorable, match="too_large"):
            codec.dump([*items, 1])
        with pytest.raises(CorruptPayload):
            codec.load(b"\xdd" + struct.pack(">I", bounds.MAX_VALUES) + raw[5:] + b"\x01")


class TestBombs:
    @pytest.mark.parametrize("name", BOMBS)
    def test_a_bomb_is_corrupt_and_takes_little_memory(
        self, name: str, bomb_outcomes: dict[str, tuple[str, int, int]]
    ) -> None:
        outcome, grown_kib, _ = bomb_outcomes[name]
        assert outcome == "CorruptPayload"
        assert grown_kib < 2 * 16 * 1024  # zlib collects what it inflates in pieces and joins them at the end

    def test_the_zstd_bomb_is_as_small_as_bombs_are(self, bomb_outcomes: dict[str, tuple[str, int, int]]) -> None:
        assert bomb_outcomes["zstd, 100 MiB of zeros, size told"][2] < 10_000

    def test_a_tombstone_is_no_bomb(self) -> None:
        assert isinstance(refused(make_tombstone(b"12345678")), CorruptPayload)
