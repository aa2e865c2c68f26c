"""Commands in files: found by name, imported when run, their options never mixed with others'."""

from __future__ import annotations

import click
from click.testing import CliRunner

from tpo_mp import cli
from tpo_mp.errors import ExitCode


def test_files_are_commands_and_their_help_names_them() -> None:
    """``simulate --help`` lists ``simulate_health.py``."""
    told = CliRunner().invoke(cli.cli, ["simulate", "--help"])
    assert told.exit_code == ExitCode.OK
    assert "health" in told.output
    assert "models" in told.output


def test_an_option_of_the_group_before_a_command_is_refused() -> None:
    """It would be ignored otherwise."""
    told = CliRunner().invoke(cli.cli, ["simulate", "--seed", "3", "models"])
    assert told.exit_code == ExitCode.USAGE
    assert "--seed is not for cli simulate models" in told.output


def test_an_unknown_command_is_wrong_usage() -> None:
    """Not a traceback."""
    told = CliRunner().invoke(cli.cli, ["simulate", "unheard-of"])
    assert told.exit_code == ExitCode.USAGE
    assert isinstance(told.exception, SystemExit)


def test_every_file_exports_a_command_of_its_name() -> None:
    """The help of each can be asked."""
    group = cli.simulate
    assert isinstance(group, click.Group)
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert CliRunner().invoke(command, ["--help"]).exit_code == ExitCode.OK
