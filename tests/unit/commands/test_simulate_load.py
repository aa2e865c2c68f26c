"""``simulate load``: what it refuses before anything is sent."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from tpo_mp.commands.simulate_load import COMMAND
from tpo_mp.errors import ExitCode


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--url", "ftp://127.0.0.1"], "is no http"),
        (["--url", "http://192.0.2.1"], "--anywhere"),
        (["--assert", "speed<3"], "nothing that is measured"),
        (["--rate", "100000", "--for", "80000"], "more than"),
        (["--pattern", "sine"], "Invalid value"),
        (["--rate", "-1"], "Invalid value"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], said: str) -> None:
    """With one line, and the exit code of a wrong use."""
    told = CliRunner().invoke(COMMAND, arguments)
    assert told.exit_code == ExitCode.USAGE
    assert said in told.output
