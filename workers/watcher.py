"""
The last one to leave: ends what a killed supervisor could not end itself.

In: on stdin, one process group id a line and, when all went well, `bye`.   Out: at the end of stdin without a `bye`,
no process of those groups is left and the folder given as argument is gone.

It is a process and a session of its own, so that neither Ctrl-C nor the supervisor's death reaches it. Only the
supervisor holds the other end of the pipe: the kernel closes it, however the supervisor ended.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time

GRACE_S = 6.0
POLL_S = 0.05


def alive(group: int) -> bool:
    """Return whether a process of *group* is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says this of a group of which only zombies are left
        return False
    return True


def signal_group(group: int, number: int) -> None:
    """Send signal *number* to every process of *group*, if any is left."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def end_groups(groups: list[int], grace_s: float = GRACE_S) -> None:
    """Ask each group to end, and kill what is left after *grace_s* seconds."""
    for group in groups:
        signal_group(group, signal.SIGTERM)
    deadline, pause = time.monotonic() + grace_s, threading.Event()
    while any(map(alive, groups)) and time.monotonic() < deadline:
        pause.wait(POLL_S)
    for group in groups:
        signal_group(group, signal.SIGKILL)


def main(folder: str) -> None:
    """Follow the supervisor's list until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    lines = [line.strip() for line in sys.stdin]
    if "bye" in lines:
        return
    end_groups([int(line) for line in reversed(lines) if line.isdigit()])
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
