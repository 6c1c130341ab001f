"""What lies in the inbox of the summary records, and what of it counts."""

from __future__ import annotations

from typing import Any

from aicache_tasks.batches import Batch, Row, decode_batch

INBOX, STATE = "{aicache:s}:inbox", "{aicache:s}:state"


def batches(client: Any) -> list[Batch]:
    """Return the batches in the inbox, in their order there."""
    return [decode_batch(data) for data in client.lrange(INBOX, 0, -1)]


def rows(found: list[Batch]) -> list[Row]:
    """Return the samples as the roll-up counts them: a batch that came before adds nothing."""
    highest: dict[bytes, int] = {}
    counted: list[Row] = []
    for batch in found:
        if batch.number > highest.get(batch.process, 0):
            highest[batch.process] = batch.number
            counted += batch.rows
    return counted


def counted(found: list[Batch]) -> list[int]:
    """Return the durations of the samples that count, by which tests tell them apart."""
    return [row[5] for row in rows(found)]
