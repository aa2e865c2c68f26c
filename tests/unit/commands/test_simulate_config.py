"""``simulate config``: files written once, checked, shown and listed."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from tpo_mp import cli
from tpo_mp.errors import ExitCode


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's settings."""
    for name in ("HOST", "PORT", "PROVIDER", "MODEL"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: object) -> Result:
    """Run a sub-command as the program would."""
    words = ["simulate", "config", *map(str, arguments)]
    return CliRunner().invoke(cli.cli, words, standalone_mode=False)


def code(*arguments: object) -> Any:
    """Run the whole program; its exit code."""
    with pytest.raises(SystemExit) as end:
        cli.main(["simulate", "config", *map(str, arguments)])
    return end.value.code


def test_a_file_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless it is told to go; the refusal is one line."""
    path = tmp_path / "c.toml"
    path.write_text("mine")
    assert code("init", "-o", path) == ExitCode.FAILED
    assert path.read_text() == "mine"
    assert capsys.readouterr().err == f"tpo-mp: {path}: there already; --force overwrites it\n"
    assert code("init", "-o", path, "-p", "minimal", "--force") == ExitCode.OK
    assert tomllib.loads(path.read_text())["simulator"]["token_ms"] == 20


def test_where_it_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is not there, and a name that promises another format."""
    assert code("init", "-o", tmp_path / "no" / "c.toml") == ExitCode.FAILED
    assert "No such file" in capsys.readouterr().err
    assert code("init", "-o", tmp_path / "c.yaml") == ExitCode.USAGE
    assert ".toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[simulator]\nmin_tokens = -4\n", ["simulator.min_tokens", "= -4", ">= 1"]),
        ("[simulator]\nseeed = 4\n", ["simulator.seeed", "unknown key", "'seed'"]),
        ('[simulator]\nlatency = { "*" = "gpt4o@2026" }\n', ["latency.*", "'gpt4o@2026'"]),
        ('[simulator]\nscenario = "full_outrage"\n', ["scenario", "full_outrage"]),
        ('[simulator]\ndataset = "not-there.jsonl"\n', ["dataset", "not-there.jsonl", "No such"]),
        ("[simulator\n", ["line 1"]),
    ],
)
def test_what_is_wrong_is_told_with_place_value_and_reason(
    text: str, told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2."""
    path = tmp_path / "c.toml"
    path.write_text(text)
    assert code("validate", path) == ExitCode.USAGE
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert [word for word in told if word not in lines[0]] == []


def test_what_is_shown_is_the_same_in_every_form_and_loads_again(tmp_path: Path) -> None:
    """And is what it was made of."""
    path, again = tmp_path / "c.toml", tmp_path / "again.toml"
    path.write_text('[simulator]\nseed = 9\napi_keys = ["hidden"]\nadmin_api_key = "hidden"\n')
    shown = {form: run("show", path, "-f", form).output for form in ("toml", "yaml", "json")}
    tree = json.loads(shown["json"])
    assert tomllib.loads(shown["toml"]) == yaml.safe_load(shown["yaml"]) == tree
    assert tree["simulator"]["seed"] == 9
    assert tree["simulator"]["api_keys"] == ["***"]
    assert tree["surfaces"]["simulator_admin"]["admin_api_key"] == "***"
    assert "hidden" not in shown["yaml"] + shown["toml"] + shown["json"]
    again.write_text(shown["toml"])
    assert run("show", again).output == shown["toml"]


def test_models_have_the_timing_and_the_price_of_the_file(tmp_path: Path) -> None:
    """First match wins; what is not known of a model is a dash."""
    path = tmp_path / "c.toml"
    path.write_text(
        '[simulator]\nmodels = ["gpt-4o", "house-7b", "text-embedding-3-large"]\n'
        "first_token_ms = 200\n"
        'latency = { "gpt-*" = "gpt-4o@2026" }\n'
        'prices = { "house-*" = { input = 0.25, output = 1 } }\n'
    )
    lines = [line.split() for line in run("models", path).output.splitlines()]
    assert lines[1:] == [
        ["gpt-4o", "chat", "128000", "16384", "-", "gpt-4o@2026", "2.5", "10.0"],
        ["house-7b", "any", "-", "-", "-", "200", "+", "0", "ms", "0.25", "1.0"],
        [
            "text-embedding-3-large",
            "embedding",
            "-",
            "-",
            "3072",
            "200",
            "+",
            "0",
            "ms",
            "0.13",
            "0.0",
        ],
    ]
    rows = json.loads(run("models", path, "-f", "json", "--kind", "embedding").output)
    assert [row["id"] for row in rows] == ["text-embedding-3-large"]
