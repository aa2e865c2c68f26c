"""A command group whose sub-commands are files of this folder, imported when one is asked for.

``simulate_load.py`` is ``tpo-mp simulate load``: it exports ``COMMAND``, a click command or group
that answers an exit code.  An installed package adds a command of the program by an entry point
in the group ``tpo_mp.commands``; it cannot replace one of ours.

Invariants: running a group without a sub-command imports none of them; installed packages are
looked at for help and for names that are not ours only.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

FILES = ("keys", "replay")
"""Files that are a command of the program, under their own name."""


def _outside() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group="tpo_mp.commands")}


def _loaded(point: EntryPoint) -> click.Command:
    """Import a command that an installed package brings; whatever is wrong with it is one line."""
    about = f"command {point.name!r} ({point.value})"
    try:
        command = point.load()
    except Exception as e:
        raise click.ClickException(f"{about} cannot be loaded: {type(e).__name__}: {e}") from e
    if not isinstance(command, click.Command):
        raise click.ClickException(f"{about} is no command, but {type(command).__name__}")
    return command


class WithFiles(click.Group):
    """The program itself: its own commands, files of this folder, and those from outside."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name all kinds."""
        return sorted({*super().list_commands(ctx), *FILES, *_outside()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one that is a file or comes from outside."""
        if cmd_name not in FILES:
            command = super().get_command(ctx, cmd_name)
            if command is None and (point := _outside().get(cmd_name)):
                command = _loaded(point)
            return command
        command = getattr(importlib.import_module(f"tpo_mp.commands.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command


class FolderGroup(click.Group):
    """A group of the files whose names begin with its own; options of its own only stand alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"invoke_without_command": True} | kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click asks so
        """Name the files."""
        package = importlib.import_module("tpo_mp.commands")
        mark = f"{self.name}_"
        found = [m.name for m in pkgutil.iter_modules(package.__path__) if m.name.startswith(mark)]
        return sorted(name.removeprefix(mark).replace("_", "-") for name in found)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one; ``None`` when there is no such file."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = f"tpo_mp.commands.{self.name}_{cmd_name.replace('-', '_')}"
        command = importlib.import_module(module).COMMAND
        assert isinstance(command, click.Command)
        return command


def stands_alone(context: click.Context) -> bool:
    """Whether a group runs by itself; raises ``UsageError`` for its options before a sub-command.

    The two sets of options never mix, so an option at the wrong place is told, not forgotten.
    """
    name = context.invoked_subcommand
    if name is None:
        return True
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if source is click.core.ParameterSource.COMMANDLINE:
            said = f"{option.opts[0]} is not for {context.command_path} {name}"
            raise click.UsageError(said, ctx=context)
    return False
