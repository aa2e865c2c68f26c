"""How long ``tpo-mp simulate`` with one worker takes until it prints that it is ready.

Bytecode is written on a first start that does not count, as it is on a user's machine.
All processes of a start are on the cores that this one has.  Prints one row as JSON: the median of
the starts in ``boot_s``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .machine import ROOT
from .stats import median

STARTS = 5


def boot_s(folder: Path) -> float:
    """Start one, end it, and answer the seconds to its ready line."""
    environment = {name: value for name, value in os.environ.items() if name != "TPO_CONFIG"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    argv = [sys.executable, "-m", "tpo_mp", "simulate", "--port", "0", "--ops-port", "0"]
    argv += ["--workers", "1", "--state-dir", str(folder / "state")]
    began = time.monotonic()
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            took_s = time.monotonic() - began
        finally:
            process.terminate()
            process.wait(30)
    if not line.startswith(b"tpo-mp ready"):
        raise RuntimeError(f"it did not start: {line!r}")
    return took_s


def main() -> None:
    """Print the row."""
    parser = argparse.ArgumentParser(prog="benchmarks.booting", description=__doc__)
    parser.add_argument("--secs", type=float, default=4.0, help="shorter than two: one start")
    starts = STARTS if parser.parse_args().secs >= 2 else 1
    with tempfile.TemporaryDirectory(prefix="tpo-boot-") as folder:
        boot_s(Path(folder))
        found = [boot_s(Path(folder)) for _ in range(starts)]
    print(json.dumps({"boot_s": round(median(found), 3), "starts": starts, "failed": 0}))


if __name__ == "__main__":
    main()
