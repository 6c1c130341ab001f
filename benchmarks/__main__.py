"""Answer every question in one run: ``python -m benchmarks --json FILE``."""

from __future__ import annotations

from benchmarks import _run, hit, key, passthrough, rollup, samples, worker
from benchmarks._run import Options, Row

QUESTIONS = (
    (hit, 1.0, 1.0),
    (worker, 0.06, 10.0),
    (passthrough, 1.0, 10.0),
    (key, 0.6, 0.1),
    (samples, 1.0, 10.0),
    (rollup, 0.12, 0.5),
)
"""Each with its part of the rounds and of the calls."""


def measure(options: Options) -> list[Row]:
    """Return the rows of every question, in the order of the table."""
    rows: list[Row] = []
    for question, rounds, calls in QUESTIONS:
        rows += question.measure(options if options.quick else options.scaled(rounds, calls))
    return sorted(rows, key=lambda row: row.row or 99)


if __name__ == "__main__":
    _run.main(measure)
