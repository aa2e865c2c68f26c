"""The README does what it says: every line a reader would copy is run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.gateway import ROOT, Gateway
from tests.support.raw import sse_data

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """List the README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def here(text: str, gateway: Gateway) -> str:
    """Put the running gateway's ports for the ones the README names."""
    return text.replace("http://127.0.0.1:8080", gateway.url).replace(
        "http://127.0.0.1:9090", gateway.ops
    )


CURLS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("curl")]


@pytest.mark.parametrize("line", CURLS)
def test_curl_line_of_the_readme_answers(echo_gateway: Gateway, line: str) -> None:
    """Each curl line succeeds and prints something."""
    require(shutil.which("curl") is not None, "curl")
    done = subprocess.run(
        here(line.replace("curl ", "curl --fail-with-body ", 1), echo_gateway),
        shell=True, capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert done.stdout.strip()
    if '"stream": true' in line:
        assert sse_data(done.stdout)[-1] == b"[DONE]"


def test_readme_has_the_lines_this_file_runs() -> None:
    """A README without examples would pass everything else."""
    assert len(CURLS) >= 5
    assert len(blocks("python")) == 2
    assert len(blocks("toml")) == 1


@pytest.mark.parametrize(
    ("block", "printed"), [(0, "hello from the SDK"), (1, "three little words\n")]
)
def test_script_of_the_readme_runs(echo_gateway: Gateway, block: int, printed: str) -> None:
    """The Python blocks print the words they sent."""
    script = here(blocks("python")[block], echo_gateway)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == printed, done


def test_config_of_the_readme_is_valid(tmp_path: Path) -> None:
    """The TOML block passes ``check --strict``."""
    config = tmp_path / "tpo.toml"
    config.write_text(blocks("toml")[0])
    done = subprocess.run(
        [sys.executable, "-m", "tpo_mp", "check", "--strict", "--config", str(config)],
        capture_output=True, text=True, timeout=30, check=False, cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "SECOND_API_KEY": "sk-test"},
    )  # fmt: skip
    assert done.returncode == 0, done


def test_files_the_readme_names_exist() -> None:
    """Every script, folder and document in the README is there."""
    named = set(
        re.findall(r"`((?:scripts|tpo_mp|hardware|tests|benchmarks|\.github)/[\w./-]*)`", README)
    )
    named |= set(re.findall(r"\]\(([\w./-]+)\)", README))
    assert not sorted(path for path in named if not (ROOT / path).exists())
