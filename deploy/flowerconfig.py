"""
Flower's configuration: its own, and the tab "AI cache".

In: FLOWER_* variables; without FLOWER_BASIC_AUTH Flower does not start.   Out: Flower with the tab, behind a login.
"""

import os
import sys

from aicache_tasks.reports.flower import install_tab

if not os.environ.get("FLOWER_BASIC_AUTH"):
    sys.exit("flower: FLOWER_BASIC_AUTH is not set (user:password): whoever reaches Flower could stop workers")

# Else /metrics shows a killed worker as online, and one that another name replaced as offline, until Flower restarts.
purge_offline_workers = int(os.environ.get("FLOWER_PURGE_OFFLINE_WORKERS", "120"))

install_tab()
