"""The other process of the ring tests: ``python -m tests.support.ring_child '{"act": …}'``.

Acts: ``send`` (seeded records, then exit), ``echo`` (all that comes, until the bell's writer asks
it to stop with an empty line on standard input), ``flood`` (numbered records until killed), and
``nursery`` (forks one short-lived end per line of standard input and reports how it died).
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
from itertools import count, cycle
from typing import Any

from tests.support.rings import numbered, random_sizes
from tpo_mp.shm import failpoints
from tpo_mp.shm.doorbell import Doorbell
from tpo_mp.shm.plane import BUCKETS, Plane
from tpo_mp.shm.ring import RingMesh, RingWriter
from tpo_mp.shm.segment import Segment

RECHECK_S = 0.01
MOST_RECORDS = 20_000
LOG_WORDS = 65_536


class RingChild:
    """One process with both ends at hand: it sends on 0→1 and hears on 1→0, or the reverse."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.mesh = RingMesh.attach(plan["rings_fd"], 2)
        self.plane = Plane.attach(plan["plane_fd"])
        self.log = Segment.attach(plan["log_fd"], LOG_WORDS * 8).words
        self.bells = [Doorbell.attach(*fds) for fds in plan["bells"]]
        self.plan = plan

    def run(self) -> None:
        """Do what the plan says."""
        getattr(self, self.plan["act"])()

    def wait(self, seat: int) -> None:
        """Sleep until the seat's bell rings, or the recheck is due."""
        if select.select([self.bells[seat]], [], [], RECHECK_S)[0]:
            self.bells[seat].clear()

    def put(self, writer: RingWriter, record: bytes) -> None:
        """Push, however long the other side takes."""
        while not writer.push(record):
            self.bells[1].ring()
            os.sched_yield()

    def send(self) -> None:
        """Push seeded random records; the bell rings now and then, as at the end of a loop turn."""
        rng = random.Random(self.plan["seed"])
        writer = self.mesh.writer(0, 1, 1)
        for number in range(self.plan["records"]):
            self.put(writer, numbered(number, random_sizes(rng, writer.max_record - 12)))
            if rng.random() < 0.1:
                self.bells[1].ring()
        self.bells[1].ring()

    def echo(self) -> None:
        """Send every record back."""
        reader, writer = self.mesh.reader(0, 1), self.mesh.writer(1, 0, 1)
        while True:
            records = reader.drain()
            while records:
                records = records[writer.push_many(records) :]
                self.bells[0].ring()
            self.wait(1)
            if select.select([sys.stdin], [], [], 0)[0]:
                return

    def flood(self) -> None:
        """Push numbered records for ever, whatever happens to the memory."""
        writer = self.mesh.writer(0, 1, 1)
        rng = random.Random(self.plan["seed"])
        for number in count(1):
            if not writer.push(numbered(number, rng.randrange(300))):
                self.bells[1].ring()
                os.sched_yield()
            self.log[0] = number
            self.plane.words[self.plane.beat_index(0)] += 1

    def nursery(self) -> None:
        """Fork one end per line, so that a thousand deaths cost one import."""
        for line in sys.stdin:
            task = json.loads(line)
            pid = os.fork()
            if pid == 0:
                # No exception may leave the fork: it would read the parent's standard input.
                status = 1
                try:
                    failpoints.configure(task.get("environ", {}))
                    getattr(self, task["act"])(task)
                    status = 0
                finally:
                    os._exit(status)
            if "kill_after_s" in task:
                select.select([], [], [], task["kill_after_s"])
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)

    def write_until_killed(self, task: dict[str, Any]) -> None:
        """Push numbered records; word 0 of the log says how many were confirmed."""
        writer = self.mesh.writer(0, 1, task["epoch"])
        rng = random.Random(task["seed"])
        self.log[0] = 0
        for number in range(MOST_RECORDS):
            self.put(writer, numbered(number, rng.randrange(task.get("largest", 600))))
            self.log[0] = number + 1
            self.bells[1].ring()

    def read_until_killed(self, task: dict[str, Any]) -> None:
        """Drain; log every number handed over, word 0 says how many."""
        reader = self.mesh.reader(0, 1)
        self.log[0] = 0
        while True:
            for record in reader.drain(task["limit"]):
                handed = self.log[0] + 1
                self.log[handed] = int.from_bytes(record[:8], "little")
                self.log[0] = handed
            self.log[LOG_WORDS - 1] = reader.corrupt
            if not reader.pending():
                self.wait(1)

    def publish_until_killed(self, task: dict[str, Any]) -> None:
        """Publish maps whose cells are all the same, a new one every time."""
        for seat in cycle(range(2, task["largest"])):
            self.plane.publish_map([seat] * BUCKETS)


if __name__ == "__main__":
    RingChild(json.loads(sys.argv[1])).run()
