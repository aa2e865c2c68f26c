"""Stages alone: each is built as a shard builds it, and has a figure."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.machine import ROOT
from benchmarks.stages import CASES


def test_every_case_is_measured() -> None:
    """However short: a stage that asks more of its environment than is there would end it."""
    argv = [sys.executable, "-m", "benchmarks.stages", "--secs", "0.01"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    told = json.loads(done.stdout)
    assert set(told) == {f"{name}_us" for name in CASES}
