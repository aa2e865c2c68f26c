"""A worker of a few lines for the supervisor's tests: beats, obeys, and misbehaves on request.

It answers every accepted connection with its seat and closes it.  A file ``shard.vice`` or
``control.vice`` beside the state directory names a vice of the processes started from then on:

=============  ============================================================
crash-boot     exits 1 before it is ready
refuse         exits 3 with last words before it is ready
nack           refuses every configuration after its first
slow-drain     drains only when told to stop
hang-boot      never finishes its boot
=============  ============================================================
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from pathlib import Path

from tpo_mp.shm.handoff import Handoff
from tpo_mp.shm.lifeline import bind_to_parent, last_words
from tpo_mp.shm.plane import Command, Plane, SeatState

TURN_S = 0.02


class FakeWorker:
    """One process; its loop is one ``select`` per turn."""

    def __init__(self, handoff: Handoff, lifeline_fd: int, vice: str) -> None:
        self.handoff = handoff
        self.vice = vice
        self.lifeline_fd = lifeline_fd
        self.plane = Plane.attach(handoff.plane_fd)
        self.lines = self.plane.seat(handoff.seat)
        self.listeners = [socket.socket(fileno=fd) for fd in dict.fromkeys(handoff.listeners)]
        self.bell_fd = handoff.doorbells[handoff.seat][0]

    def run(self) -> int:
        """Live until told to stop, or drained."""
        self.lines.state = SeatState.BOOTING
        self.lines.config_ack = self.plane.config_epoch
        while True:
            self.lines.beat += 1
            command = Command(self.lines.command)
            if command in (Command.DRAIN, Command.STOP):
                self.leave_listeners()
            if command is Command.STOP or (command is Command.DRAIN and self.vice != "slow-drain"):
                self.lines.state = SeatState.STOPPED
                return 0
            self.lines.state = {
                Command.PARK: SeatState.PARKED,
                Command.DRAIN: SeatState.DRAINING,
            }.get(command, SeatState.READY)
            self.adopt_config()
            self.turn()

    def adopt_config(self) -> None:
        """Acknowledge the newest epoch, or refuse it."""
        epoch = self.plane.config_epoch
        if self.lines.config_ack >= epoch or self.lines.config_nack == epoch:
            return
        if self.vice == "nack" and epoch % 2 == 0:
            last_words(self.handoff, "the fake worker says no")
            self.lines.config_nack = epoch
        else:
            self.lines.config_ack = epoch

    def turn(self) -> None:
        """Wait for work for one turn and do it."""
        mine = [one.fileno() for one in self.accepting()]
        ready, _, _ = select.select([self.bell_fd, self.lifeline_fd, *mine], [], [], TURN_S)
        if self.lifeline_fd in ready:
            os._exit(1)
        if self.bell_fd in ready:
            os.read(self.bell_fd, 1 << 16)
        self.serve_queue()

    def accepting(self) -> list[socket.socket]:
        """Name the listeners this seat accepts on now."""
        if self.lines.command == Command.PARK or self.handoff.role == "control":
            return []
        slots = range(len(self.handoff.listeners))
        seat = self.handoff.seat
        mine = {self.handoff.listeners[s] for s in slots if self.plane.slot_acceptor(s) == seat}
        return [one for one in self.listeners if one.fileno() in mine]

    def leave_listeners(self) -> None:
        """Take what is queued on its own listeners, then close every copy."""
        self.serve_queue()
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()

    def serve_queue(self) -> None:
        """Answer every queued connection."""
        for listener in self.accepting():
            while True:
                try:
                    client, _ = listener.accept()
                except BlockingIOError:
                    break
                client.sendall(b"seat %d\n" % self.handoff.seat)
                client.close()


def vice_of(handoff: Handoff) -> str:
    """Read the vice of this role, asked anew at every start."""
    path = Path(handoff.state_dir).parent / f"{handoff.role}.vice"
    return path.read_text().strip() if path.exists() else ""


def main() -> int:
    """Start, with the vice the test asks for."""
    handoff = Handoff.from_env()
    lifeline_fd = bind_to_parent(handoff)
    vice = vice_of(handoff)
    if vice == "crash-boot":
        raise RuntimeError("born to die")
    if vice == "refuse":
        last_words(handoff, "restart needed: the code on disk is another version")
        return 3
    while vice == "hang-boot":
        time.sleep(1)
    return FakeWorker(handoff, lifeline_fd, vice).run()


if __name__ == "__main__":
    sys.exit(main())
