"""The short-lived child that validates and compiles the configuration.

It reads ``{"path": …, "flags": {…}, "starting": …}`` on standard input, writes the blob to standard
output, or one line per problem to standard error and exits 2; a sound start may have something to
say there as well.  Outputs go to unnamed files, so that nobody has to read a pipe while it runs.

Invariants: the blob is never looked into, but for ``process_view``; only this child sees the full
environment, because it resolves ``{ env = … }`` secrets.  Signals that mean the supervisor reach
the whole group: the child lives with them blocked, and ends by itself or by SIGKILL.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tpo_mp
from tpo_mp.shm.lifeline import IGNORED

TIMEOUT_S = 30.0
MAX_PROBLEM_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Compiled:
    """The result: a blob, or the reasons why there is none."""

    blob: bytes
    problems: tuple[str, ...]
    exit_code: int


class Compilation:
    """One run of the compiler child."""

    def __init__(
        self, path: Path | None, flags: Mapping[str, Any], now: float, *, starting: bool = False
    ) -> None:
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the result is taken
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        self._give_up_at = now + TIMEOUT_S
        with tempfile.TemporaryFile() as request:
            asked = {"path": path and str(path), "flags": dict(flags), "starting": starting}
            request.write(json.dumps(asked).encode())
            request.seek(0)
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "tpo_mp.config"],
                    stdin=request, stdout=self._out, stderr=self._err, env=_environment(),
                )  # fmt: skip
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def wait(self) -> Compiled:
        """Wait for the result (before the loop runs)."""
        try:
            self._process.wait(TIMEOUT_S)
        except BaseException as error:
            # Ctrl-C reaches us alone: the child must not outlive us.
            self._process.kill()
            self._process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        return self._take()

    def poll(self, now: float) -> Compiled | None:
        """Return the result when it is there; kills a compiler that takes too long."""
        if self._process.poll() is None:
            if now >= self._give_up_at:
                self._process.kill()
            return None
        return self._take()

    def cancel(self) -> None:
        """Drop the run."""
        self._process.kill()
        self._process.wait()
        self._out.close()
        self._err.close()

    def _take(self) -> Compiled:
        with self._out as out, self._err as err:
            out.seek(0)
            err.seek(0)
            blob = out.read()
            text = err.read(MAX_PROBLEM_BYTES).decode(errors="replace")
        status = self._process.returncode
        problems = tuple(filter(None, text.splitlines()))
        if status != 0 and not problems:
            problems = (f"the configuration compiler ended with {status}",)
        return Compiled(blob if status == 0 else b"", problems, status)


def _environment() -> dict[str, str]:
    root = Path(tpo_mp.__file__).parents[1]
    inherited = os.environ.get("PYTHONPATH")
    if root.name in {"site-packages", "dist-packages"}:
        return dict(os.environ)
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, (str(root), inherited)))}
