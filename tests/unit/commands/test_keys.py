"""``tpo-mp keys``: what it prints where, and that a printed hash lets the key in."""

from __future__ import annotations

import tomllib
from pathlib import Path

from click.testing import CliRunner

from tpo_mp import cli
from tpo_mp.config.api_keys import digest, is_damaged
from tpo_mp.config.load import build
from tpo_mp.errors import ExitCode


def test_new_prints_the_key_and_lines_that_load() -> None:
    """The key alone on stdout, so that it can be piped; the rest is for people."""
    told = CliRunner().invoke(
        cli.cli, ["keys", "new", "team-a", "--admin", "--tenant", "t", "--tier", "premium"]
    )
    assert told.exit_code == ExitCode.OK
    key = told.stdout.strip()
    assert key.startswith("tpo_team-a_")
    assert not is_damaged(key)
    assert key not in told.stderr
    tree = tomllib.loads(told.stderr)
    config = build(tree, {}, {"TPO_KEY_TEAM_A": key}, None)
    (found,) = config.auth.keys
    assert (found.id, found.tenant, found.tier, found.admin) == ("team-a", "t", "premium", True)
    assert config.auth.enabled


def test_hash_of_a_new_key(tmp_path: Path) -> None:
    """With the pepper of a file, as ``[auth]`` reads it."""
    run = CliRunner()
    key = run.invoke(cli.cli, ["keys", "new", "-q"]).stdout
    (tmp_path / "pepper").write_text("spice\n")
    told = run.invoke(
        cli.cli, ["keys", "hash", "--pepper-file", str(tmp_path / "pepper")], input=key
    )
    assert told.stdout.strip() == digest(key.strip().encode(), b"spice").hex()


def test_what_is_no_key_is_refused_in_a_line() -> None:
    """Short ones, damaged ones, names with blanks."""
    run = CliRunner()
    for text in ("short\n", run.invoke(cli.cli, ["keys", "new", "-q"]).stdout[:-2] + "\n"):
        told = run.invoke(cli.cli, ["keys", "hash"], input=text)
        assert told.exit_code == ExitCode.FAILED
        assert text.strip() not in told.output
    assert run.invoke(cli.cli, ["keys", "new", "a b"]).exit_code == ExitCode.USAGE
