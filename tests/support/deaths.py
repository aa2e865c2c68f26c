"""Die between any two lines: run code until its n-th line in one file, then stop it there.

An exception stands for the death, so memory stays as the line before left it.
``kill_at`` does it with a real SIGKILL, for child processes.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any


class Died(BaseException):
    """The process would be gone here."""


def dies_at(event: int, act: Callable[[], object], module: ModuleType) -> bool:
    """Run ``act`` up to its ``event``-th line in ``module``; answer whether it died there."""

    def die() -> None:
        raise Died

    before = sys.gettrace()
    sys.settrace(_tracer(event, module, die))
    try:
        act()
    except Died:
        return True
    finally:
        sys.settrace(before)
    return False


def kill_at(event: int, module: ModuleType) -> None:
    """Arm this process: its ``event``-th line in ``module`` from now on is its last."""
    sys.settrace(_tracer(event, module, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def _tracer(event: int, module: ModuleType, die: Callable[[], None]) -> Any:
    left = event

    def trace(frame: FrameType, what: str, arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != module.__file__:
            return None
        if what == "line":
            left -= 1
            if left == 0:
                die()
        return trace

    return trace
