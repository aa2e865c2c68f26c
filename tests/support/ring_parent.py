"""This side of the ring tests: the shared memory, the bells, and the child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from multiprocessing import connection
from pathlib import Path
from typing import Any, Self

from tests.support.ring_child import LOG_WORDS, RECHECK_S
from tpo_mp.shm.doorbell import Doorbell
from tpo_mp.shm.plane import Plane
from tpo_mp.shm.ring import RingMesh
from tpo_mp.shm.segment import Segment

ROOT = Path(__file__).parents[2]


class RingPair:
    """Two seats, two bells and a log; ``start`` gives seat 0 or 1 to another process."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.mesh = RingMesh.create(2)
        self.plane = Plane.create(1, 2, bytes(16))
        self.log_segment = Segment.create("ring-log", LOG_WORDS * 8)
        self.log = self.log_segment.words
        self.bells = [Doorbell.create(), Doorbell.create()]
        self.environ = environ
        self.child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            for stream in (self.child.stdin, self.child.stdout):
                if stream is not None:
                    stream.close()
        self.mesh.close()
        self.plane.close()
        self.log_segment.close()
        for bell in self.bells:
            bell.close()

    def start(self, act: str, **more: Any) -> subprocess.Popen[str]:
        """Run one act of ``ring_child``."""
        bells = [bell.fds for bell in self.bells]
        memory = [self.mesh.fd, self.plane.fd, self.log_segment.fd]
        plan = {
            "act": act,
            "rings_fd": self.mesh.fd,
            "plane_fd": self.plane.fd,
            "log_fd": self.log_segment.fd,
            "bells": bells,
            **more,
        }
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.ring_child", json.dumps(plan)],
            cwd=ROOT,
            env={**os.environ, **self.environ},
            pass_fds=[*memory, *(fd for pair in bells for fd in pair)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        return self.child

    def wait(self, seat: int) -> None:
        """Sleep until the seat's bell rings, or the recheck is due."""
        if connection.wait([self.bells[seat].fileno()], RECHECK_S):
            self.bells[seat].clear()

    def order(self, **task: Any) -> None:
        """Have the nursery fork one end."""
        assert self.child is not None
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(task) + "\n")

    def wait_or_death(self, seat: int) -> None:
        """Like ``wait``, and also until the nursery reports a death."""
        assert self.child is not None
        assert self.child.stdout is not None
        bell = self.bells[seat].fileno()
        if bell in connection.wait([bell, self.child.stdout.fileno()], RECHECK_S):
            self.bells[seat].clear()

    def died(self) -> int | None:
        """How the last fork ended, or None while it lives."""
        assert self.child is not None
        assert self.child.stdout is not None
        if not connection.wait([self.child.stdout.fileno()], 0):
            return None
        line = self.child.stdout.readline()
        assert line, "the nursery itself died"
        return int(line)
