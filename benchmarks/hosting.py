"""What a scenario starts for itself: a program on the gateway's core, until a block ends."""

from __future__ import annotations

import contextlib
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from .bench import Bench
from .machine import ROOT
from .procs import NotReadyError, Process
from .targets import READY


@contextlib.contextmanager
def running(
    bench: Bench, argv: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None,
    grace_s: float = 10.0,
) -> Iterator[Process]:  # fmt: skip
    """Run any program."""
    process = Process(argv, log=log, cores=bench.cores.for_gateway(), env=env, cwd=ROOT)
    try:
        yield process
    finally:
        process.stop(grace_s)


@contextlib.contextmanager
def ours(
    bench: Bench, verb: Literal["serve", "simulate"], name: str, config: str, *,
    ready_s: float = 60.0,
) -> Iterator[tuple[str, Path]]:  # fmt: skip
    """Run one worker of ours; answers its URL and its state directory."""
    home = bench.work / name
    home.mkdir(exist_ok=True)
    (home / "tpo.toml").write_text(config)
    argv = [sys.executable, "-m", "tpo_mp", verb, "--config", str(home / "tpo.toml")]
    argv += ["--port", "0", "--ops-port", "0", "--workers", "1"]
    argv += ["--state-dir", str(home / "state")]
    with running(bench, argv, home / "log") as process:
        yield process.wait_line(READY, ready_s)["url"], home / "state"


def wait_healthy(process: Process, url: str, timeout_s: float) -> None:
    """Wait until ``/health`` answers 200; raises ``NotReadyError``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.popen.poll() is not None:
            raise NotReadyError(f"exit code {process.popen.returncode}: {process.tail()}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
            return
        time.sleep(0.1)
    raise NotReadyError(f"not ready after {timeout_s:g} s: {process.tail()}")
