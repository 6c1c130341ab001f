"""
The tab "AI cache" in Flower: what the cache did and saved, beside Flower's own pages.

In: a Flower process that is reading its configuration.   Out: the same with one tab more.

    celery -A app flower --conf="$(python -m aicache_tasks.reports.flower)"

or, in a ``flowerconfig.py`` of one's own, `install_tab`. ``snapshot`` is what the page shows, as JSON data, ``feed``
reads it without holding Flower up, ``view`` answers requests, ``tab`` puts all of it into Flower.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from aicache_tasks.checks import switch

SUPPORTED: Final = "2.2."
"""Start of the versions of Flower that the tab was tried with."""
CONFIG_FILE: Final = Path(__file__).resolve().with_name("flowerconfig.py")
"""A configuration file for Flower that only installs the tab."""
INVALIDATE_VARIABLE: Final = "AICACHE_FLOWER_INVALIDATE"

log = logging.getLogger("aicache_tasks")


def install_tab(*, allow_invalidation: bool | None = None) -> bool:
    """Add the tab to the Flower of this process, before it starts; return whether that could be done.

    Of another version of Flower one line is logged, and it runs as it is. Calling it twice is calling it once.

    Args:
        allow_invalidation: let people invalidate an operation, after a confirmation. None: as the environment variable
            ``AICACHE_FLOWER_INVALIDATE`` says, by default not.

    Raises:
        SettingsError: the variable holds something else than 1 or 0.
    """
    allowed = _from_environ() if allow_invalidation is None else allow_invalidation
    try:
        import flower

        version = str(flower.__version__)
        if not version.startswith(SUPPORTED):
            log.warning("aicache: no tab in Flower %s: it is made for %sx", version[:40], SUPPORTED)
            return False
        from aicache_tasks.reports.flower.tab import add_tab
    except (ImportError, AttributeError) as error:  # another Flower, or none
        log.warning("aicache: no tab in Flower: %s", error)
        return False
    add_tab(allow_invalidation=allowed)
    return True


def _from_environ() -> bool:
    return bool(switch(INVALIDATE_VARIABLE, os.environ.get(INVALIDATE_VARIABLE, "0")))
