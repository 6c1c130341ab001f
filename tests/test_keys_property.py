"""Two promises about every value: different values have different encodings; every process makes the same one."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings

from aicache_tasks.canonical import encode_canonical, is_plain
from tests.key_delivery import NOT_DELIVERED, SERIALIZERS, deliver, send
from tests.key_samples import MESSAGE_VALUES, PLAIN_VALUES, VALUES, near_misses, typed_equal

ROOT = Path(__file__).parent.parent
QUICK = settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
FULL = settings(QUICK, max_examples=10_000)


class Worker:
    """A `key_worker` process with a hash seed of its own."""

    def __init__(self, hash_seed: str) -> None:
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.key_worker"]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, batch: list[tuple[str, bytes | str]]) -> list[tuple[bytes, bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(batch, self._process.stdin)
        self._process.stdin.flush()
        answers: list[tuple[bytes, bytes]] = pickle.load(self._process.stdout)
        return answers

    def close(self) -> None:
        self._process.communicate(timeout=50)


@pytest.fixture(scope="module")
def workers() -> Iterator[tuple[Worker, Worker]]:
    pair = Worker("1"), Worker("2")
    yield pair
    for worker in pair:
        worker.close()


def check_injective(config: settings) -> None:
    seen = {True: 0, False: 0}

    @config
    @given(near_misses())
    @example(({"a": 1}, {"a": True}))
    def check(pair: tuple[Any, Any]) -> None:
        a, b = pair
        equal = typed_equal(a, b)
        seen[equal] += 1
        assert (encode_canonical(a) == encode_canonical(b)) is equal
        assert (encode_canonical({0: a}) == encode_canonical({0: b})) is equal  # never plain

    check()
    assert min(seen.values()) > config.max_examples / 50, f"one side was hardly tried: {seen}"


@pytest.mark.timeout(240)  # ten seconds where nothing else runs
def test_two_values_have_one_encoding_exactly_if_they_are_equal_in_type_and_value() -> None:
    check_injective(QUICK)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_two_values_have_one_encoding_exactly_if_they_are_equal_in_type_and_value_10_000_times() -> None:
    check_injective(FULL)


def check_delivery(config: settings, workers: tuple[Worker, Worker]) -> None:
    """What is delivered has one encoding here, in two workers with other hash seeds, and after a second delivery."""
    delivered = dict.fromkeys(SERIALIZERS, 0)

    @config
    @given(VALUES | MESSAGE_VALUES | PLAIN_VALUES)
    def check(value: Any) -> None:
        batch, expected = [], []
        for serializer in SERIALIZERS:
            try:
                payload = send(serializer, value)
                here = deliver(serializer, payload)
            except NOT_DELIVERED:
                continue
            delivered[serializer] += 1
            batch.append((serializer, payload))
            expected.append((encode_canonical(here),) * 2)
        assert [worker.ask(batch) for worker in workers] == [expected, expected]

    check()
    assert min(delivered.values()) > config.max_examples / 4, f"a serializer delivered hardly anything: {delivered}"


@pytest.mark.timeout(240)  # ten seconds where nothing else runs
def test_a_delivered_value_has_the_same_encoding_in_every_process(workers: tuple[Worker, Worker]) -> None:
    check_delivery(QUICK, workers)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_delivered_value_has_the_same_encoding_in_every_process_10_000_times(workers: tuple[Worker, Worker]) -> None:
    check_delivery(FULL, workers)


@settings(max_examples=300, deadline=None)
@given(PLAIN_VALUES)
def test_a_plain_value_needs_no_delivery_to_be_keyed(value: Any) -> None:
    assert is_plain(value)
    for serializer in SERIALIZERS:
        assert encode_canonical(deliver(serializer, send(serializer, value))) == encode_canonical(value)
