"""``simulate models``: the catalogue as a table and as JSON."""

from __future__ import annotations

import json

from click.testing import CliRunner

from tpo_mp.commands.simulate_models import COMMAND
from tpo_mp.errors import ExitCode
from tpo_mp.simulator.catalog import MODELS


def test_the_catalogue_is_listed_without_a_server() -> None:
    """Every model there is, and nothing else."""
    told = CliRunner().invoke(COMMAND, ["--format", "json"])
    assert told.exit_code == ExitCode.OK
    assert [row["id"] for row in json.loads(told.output)] == list(MODELS)


def test_a_kind_narrows_the_list() -> None:
    """Embedding models say how long their vectors are."""
    told = CliRunner().invoke(COMMAND, ["--kind", "embedding"])
    lines = told.output.splitlines()
    assert any(line.split() == ["text-embedding-3-large", "embedding", "3072", "numbers"]
               for line in lines)  # fmt: skip
    assert all("embedding" in line for line in lines)
