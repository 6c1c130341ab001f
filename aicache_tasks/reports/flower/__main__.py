"""
``python -m aicache_tasks.reports.flower``: say where the configuration file is that installs the tab.

In: nothing.   Out: a path, for ``celery -A app flower --conf=…``.
"""

from __future__ import annotations

import sys

from aicache_tasks.reports.flower import CONFIG_FILE

if __name__ == "__main__":
    sys.stdout.write(f"{CONFIG_FILE}\n")
