"""``tpo-mp simulate selfcheck``: the whole of it, small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.gateway import ROOT

CONFIG = """
[simulator.profiles.mine]
first_token_ms = { shape = "uniform", low = 10, high = 20 }
"""


def test_selfcheck_draws_asks_a_simulator_and_reports(tmp_path: Path) -> None:
    """Own profiles too; the exit code says what the table says; progress is on stderr."""
    config, picture, page = (tmp_path / name for name in ("c.toml", "p.svg", "p.html"))
    config.write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, "-m", "tpo_mp", "simulate", "selfcheck", "--config", str(config),
         "--profile", "mine", "--profile", "groq-70b@2023", "--draws", "20000",
         "--requests", "60", "--tokens", "4", "--svg", str(picture), "--html", str(page)],
        capture_output=True, text=True, timeout=120, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    # How late tokens come is the host's affair here; that none is early or lost is ours.
    lines = [line.split() for line in done.stdout.splitlines() if "  " in line]
    assert done.returncode == ("WRONG" in done.stdout)
    assert any(told.startswith("mine first token") for told in map(" ".join, lines))
    early = next(line for line in lines if "least" in line)
    lost = next(line for line in lines if "lost" in line)
    assert (early[-1], lost[-1]) == ("ok", "ok"), done.stdout
    assert "o measured, . configured" in done.stdout
    assert "transport: 60 of 60 streams" in done.stderr
    assert picture.read_text().startswith("<svg")
    assert "<pre>" in page.read_text()
