"""A child process that plays one function of a test's own module, to be stopped or killed.

The module ends in ``play()``; it is run as ``python -m MODULE FUNCTION [ARGUMENTS as JSON]``.
An actor says what it has reached by a line on its output (``say``) and waits for a line on its
input (``hear``).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import psutil

from .wait import wait_for

ROOT = Path(__file__).parents[2]


class Actor:
    """One such process."""

    def __init__(self, module: str, verb: str, *args: object, fds: tuple[int, ...]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, verb, json.dumps(args)],
            cwd=ROOT,
            pass_fds=fds,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def said(self) -> str:
        """Wait for its next line; empty when it died."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        """Freeze it."""
        self.process.send_signal(signal.SIGSTOP)
        status = psutil.Process(self.process.pid).status
        wait_for(lambda: status() == psutil.STATUS_STOPPED, what="actor stopped")

    def kill(self) -> None:
        """End it at once and reap it."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Leave nothing behind."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class StartActor(Protocol):
    """Starts an actor that is gone at the test's end."""

    def __call__(self, verb: str, *args: object, fds: tuple[int, ...]) -> Actor: ...


def say(text: str) -> None:
    """Tell the test."""
    print(text, flush=True)


def hear() -> str:
    """Wait for the test."""
    return sys.stdin.readline()


def play(functions: dict[str, object]) -> None:
    """Run the function that the command line names."""
    act = functions[sys.argv[1]]
    assert callable(act)
    act(*json.loads(sys.argv[2]))
