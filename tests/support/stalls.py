"""How long the cores of this machine stood still while a test judged times.

One small process on each core sleeps for a few milliseconds over and over; what it oversleeps is
time in which nothing ran there that the test could have asked for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Self

_WATCH = """
import os, select, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
print(flush=True)
longest, seen = 0.0, time.monotonic()
while not select.select([sys.stdin], [], [], 0.005)[0]:
    now = time.monotonic()
    longest, seen = max(longest, now - seen - 0.005), now
print(max(longest, time.monotonic() - seen - 0.005))
"""


class Stalls:
    """Watch every core from entering to leaving; ``longest_s`` is known afterwards."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._watchers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        for core in sorted(os.sched_getaffinity(0)):
            command = [sys.executable, "-c", _WATCH, str(core)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._watchers.append(subprocess.Popen(command, **pipes))  # type: ignore[call-overload]
        for watcher in self._watchers:
            watcher.stdout.readline()  # type: ignore[union-attr]
        return self

    def __exit__(self, *exc: object) -> None:
        for watcher in self._watchers:
            said, _ = watcher.communicate(timeout=60)
            self.longest_s = max(self.longest_s, float(said))
