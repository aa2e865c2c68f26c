"""``simulate benchmark``: what it refuses before anything is sent."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from tpo_mp.commands.simulate_benchmark import COMMAND
from tpo_mp.errors import ExitCode


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--url", "ftp://127.0.0.1"], "is no http"),
        (["--url", "http://192.0.2.1"], "--anywhere"),
        (["--type", "embedding", "--stream"], "not streamed"),
        (["--type", "embedding", "--dialect", "google"], "OpenAI's API only"),
        (["--requests", "0"], "Invalid value"),
        (["--concurrency", "10001"], "Invalid value"),
        (["--duration", "-1"], "Invalid value"),
        (["--format", "xml"], "Invalid value"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], said: str) -> None:
    """With one line, and the exit code of a wrong use."""
    told = CliRunner().invoke(COMMAND, arguments)
    assert told.exit_code == ExitCode.USAGE
    assert said in told.output
