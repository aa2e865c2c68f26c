"""Our own MLX engine, as a process on a free port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .raw import ask
from .wait import free_port, wait_for

NAME = "tiny"


@dataclass(frozen=True, slots=True)
class MlxEngine:
    """A running engine."""

    url: str
    pid: int

    def health(self) -> dict[str, Any]:
        """What it says of itself."""
        found: dict[str, Any] = ask(self.url, "/health").json()
        return found

    def count(self, name: str) -> float:
        """The value of one series of its metrics."""
        for line in ask(self.url, "/metrics").body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0


def command(model: Path, port: int, *args: str) -> list[str]:
    """The command line."""
    return [
        sys.executable, "-W", "ignore", "-m", "hardware.mlx_engine", "--model", str(model),
        "--port", str(port), *args,
    ]  # fmt: skip


@contextmanager
def serving(model: Path, log: Path, *args: str) -> Iterator[MlxEngine]:
    """Run one until the block ends."""
    port = free_port()
    with log.open("ab") as out:
        child = subprocess.Popen(
            command(model, port, "--served-model-name", NAME, *args),
            stdout=out, stderr=out, stdin=subprocess.DEVNULL,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
    engine = MlxEngine(f"http://127.0.0.1:{port}", child.pid)

    def settled() -> bool:
        assert child.poll() is None, log.read_text()[-2000:]
        try:
            return ask(engine.url, "/health").status == 200
        except OSError:
            return False

    try:
        wait_for(settled, 60.0, "the engine", every_s=0.05)
        yield engine
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            assert child.wait(20) == 0, log.read_text()[-2000:]
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise
