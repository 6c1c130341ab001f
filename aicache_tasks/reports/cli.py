"""
``celery -A app aicache …``: the group of commands. Every ``celery`` command imports this module.

In: the entry point of the group ``celery.commands``.   Out: `aicache`, whose commands are imported when they are used.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import click
from celery.bin.base import handle_preload_options

COMMANDS: Final = (
    *("stats", "summaries", "top", "rollup", "export", "report"),
    *("peek", "explain", "invalidate", "purge", "doctor", "metrics"),
)
"""Each is in a module of its name in `aicache_tasks.reports.commands`."""


class Commands(click.Group):
    """Commands by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return the command *name*, imported now."""
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"aicache_tasks.reports.commands.{name}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that *args* begin with; for a misspelt one the error says what is near."""
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            ctx.fail(f"no command {args[0][:40]!r}; {hint}")
        return super().resolve_command(ctx, args)


# On the group and not on its commands: Celery gives an application's preload options to the commands beside its own,
# and the decorator of Celery 5.6 fails where they are not.
@click.group(cls=Commands)
@click.pass_context
@handle_preload_options
def aicache(ctx: click.Context, **_: Any) -> None:
    """What the cache of AI results did and saved."""
