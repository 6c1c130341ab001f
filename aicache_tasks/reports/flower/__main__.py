"""
``python -m aicache_tasks.reports.flower``: say where the configuration file is that installs the tab.

In: nothing.   Out: a path, for ``celery -A app flower --conf=…``.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.stdout.write(f"{Path(__file__).resolve().with_name('flowerconfig.py')}\n")
