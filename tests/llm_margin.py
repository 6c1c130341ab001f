"""Loaded by a worker with a soft time limit of seconds: its engine gives up at half of it, not at nine tenths.

A busy machine may take a process's turn away for the few tenths of a second that would lie between the two.
"""

from __future__ import annotations

from workers.engines import deadline

deadline._MARGIN = 0.5  # type: ignore[misc]
