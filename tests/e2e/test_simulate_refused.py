"""Files and changes that a simulator cannot take: refused with the place and the reason."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import toml
from tests.support.gateway import ROOT, Gateway

GOOD = '[simulator]\nmodels = ["*"]\n'
WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "a negative latency": ({"first_token_ms": -1}, "first_token_ms", ">= 0"),
    "an unknown distribution": (
        {"profiles": {"x": {"first_token_ms": {"shape": "lognormale", "p50": 1, "p99": 2}}}},
        "profiles.x.first_token_ms.shape",
        "lognormal",
    ),
    "a negative wait in a profile": (
        {"profiles": {"x": {"first_token_ms": {"shape": "fixed", "value": -5}}}},
        "profiles.x.first_token_ms.value",
        ">= 0",
    ),
    "an empty recording of waits": (
        {"profiles": {"x": {"first_token_ms": {"shape": "empirical", "file": "{empty}"}}}},
        "profiles.x.first_token_ms.file",
        "no numbers in it",
    ),
    "scenarios in a circle": (
        {"scenarios": {"a": {"include": ["b"]}, "b": {"include": ["a"]}}},
        "scenarios.b.include",
        "circle",
    ),
}
"""What is written, the place that is named, and what is said of it."""


@pytest.fixture(scope="module")
def running(short_tmp: Path) -> Iterator[Gateway]:
    """Two workers of a sound configuration."""
    folder = Path(tempfile.mkdtemp(dir=short_tmp))
    with Gateway(folder, config=GOOD, workers=2, verb="simulate") as gateway:
        yield gateway


def written(options: Any, empty: Path) -> Any:
    """The options with the name of a file that is there and empty."""
    if isinstance(options, dict):
        return {name: written(value, empty) for name, value in options.items()}
    return str(empty) if options == "{empty}" else options


@pytest.mark.parametrize("name", WRONG)
def test_a_file_is_refused_before_anything_starts(name: str, tmp_path: Path) -> None:
    """One line with the place and the reason, and exit code 2."""
    options, place, said = WRONG[name]
    config, empty = tmp_path / "sim.toml", tmp_path / "empty"
    empty.touch()
    config.write_text(toml.section("[simulator]", **written(options, empty)))
    done = subprocess.run(
        [sys.executable, "-m", "tpo_mp", "simulate", "--config", str(config), "--port", "0",
         "--ops-port", "0", "--state-dir", str(tmp_path / "state")],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = [told for told in done.stderr.splitlines() if place in told]
    assert line.startswith(str(config))
    assert said in line


@pytest.mark.parametrize("name", WRONG)
def test_a_change_is_refused_whole_while_it_runs(name: str, running: Gateway) -> None:
    """With the same words, and nothing of it counts, not even what was sound."""
    options, place, said = WRONG[name]
    empty = running.folder / "empty"
    empty.touch()
    before = running.ask("/admin/config").json() | {"timestamp": 0}
    patch = {"token_ms": 3, **written(options, empty)}
    refused = running.ask("/admin/config", patch)
    assert refused.status == 400, refused.body
    told = refused.json()["error"]["message"]
    assert place in told
    assert said in told
    assert running.ask("/admin/config").json() | {"timestamp": 0} == before
