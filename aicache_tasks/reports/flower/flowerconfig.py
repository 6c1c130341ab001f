"""
A configuration file for Flower that only installs the tab.

In: ``celery -A app flower --conf=…/flowerconfig.py``, which runs this file.   Out: Flower with the tab.
"""

from aicache_tasks.reports.flower import install_tab

install_tab()
