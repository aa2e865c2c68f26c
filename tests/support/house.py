"""A supervisor's world without processes: hands that only write down what they were told."""

from __future__ import annotations

import io
import signal
from dataclasses import dataclass, field

from tpo_mp.shm.plane import HostState, SeatState
from tpo_mp.supervisor.beats import BeatWatch, CpuSample
from tpo_mp.supervisor.events import EventLog
from tpo_mp.supervisor.hands import Context
from tpo_mp.supervisor.intensity import RestartLimits
from tpo_mp.supervisor.judge import bury, judge
from tpo_mp.supervisor.reconcile import reconcile
from tpo_mp.supervisor.state import Berth, Child, Desired, House, Intent, Times


class FakeLines:
    """A seat's words."""

    def __init__(self) -> None:
        self.beat = self.config_ack = self.config_nack = 0
        self.state = SeatState.EMPTY


class FakePlane:
    """Seats only."""

    config_epoch = 1

    def __init__(self, seats: int) -> None:
        self.lines = [FakeLines() for _ in range(seats)]

    def seat(self, seat: int) -> FakeLines:
        """The words of one seat."""
        return self.lines[seat]


@dataclass
class FakeHands:
    """Notes every order; ``no_process`` makes spawning fail."""

    plane: FakePlane
    spawned: list[tuple[str, int, Intent]] = field(default_factory=list)
    commands: list[tuple[int, Intent]] = field(default_factory=list)
    signals: list[tuple[int, signal.Signals]] = field(default_factory=list)
    assigned: list[tuple[int, int]] = field(default_factory=list)
    vacated: list[int] = field(default_factory=list)
    words: str = ""
    no_process: bool = False

    def spawn(self, berth: Berth, seat: int, intent: Intent, generation: int, now: float) -> Child:
        """Pretend to start a process."""
        if self.no_process:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        self.spawned.append((berth.name, seat, intent))
        self.plane.lines[seat] = FakeLines()
        return Child(
            seat=seat, epoch=1, role=berth.role, generation=generation,
            pid=1000 + len(self.spawned), started_at=now, watch=BeatWatch(now), intent=intent,
        )  # fmt: skip

    def command(self, child: Child, intent: Intent) -> None:
        """Note a command word."""
        self.commands.append((child.seat, intent))

    def assign(self, child: Child, berth: Berth) -> None:
        """Note a slot word."""
        self.assigned.append((child.seat, berth.index))

    def signal(self, child: Child, number: signal.Signals) -> None:
        """Note a signal."""
        self.signals.append((child.seat, number))

    def vacate(self, child: Child) -> None:
        """Note a cleared seat."""
        self.vacated.append(child.seat)

    def last_words(self, child: Child) -> str:
        """Answer what the test wants said."""
        return self.words


class World:
    """A house, a clock and the two verbs that change it."""

    def __init__(self, workers: int = 2) -> None:
        self.now = 100.0
        self.house = House.build(tuple(range(workers)), RestartLimits())
        self.plane = FakePlane(self.house.seats)
        self.hands = FakeHands(self.plane)
        self.log = io.StringIO()
        self.context = Context(self.house, Times(), self.hands, EventLog(stream=self.log))
        self.desired = Desired()
        self.probe = CpuSample(runnable=False, cpu_s=0.0)

    def turn(self, step_s: float = 0.05) -> None:
        """Let time pass and take one turn of judge and reconcile."""
        self.now += step_s
        judge(self.context, self.plane, lambda _pid: self.probe, self.now)  # type: ignore[arg-type]
        reconcile(self.context, self.desired, self.now)

    def turns(self, seconds: float) -> None:
        """Take turns for a while; who is not silenced beats."""
        until = self.now + seconds
        while self.now < until:
            self.turn()

    def beat(self, *silent: Child) -> None:
        """Let every child beat but these, and boot what is booting."""
        for child in self.house.children:
            lines = self.plane.seat(child.seat)
            if child in silent:
                continue
            lines.beat += 1
            told = {Intent.PARK: SeatState.PARKED, Intent.RUN: SeatState.READY}
            lines.state = told.get(child.intent, lines.state)

    def boot(self) -> None:
        """Run until every slot, control and the spare are there."""
        self.turn()
        self.beat()
        self.turn()
        self.house.ready_at = self.now
        self.turn()
        self.beat()
        self.turn()

    def die(self, child: Child | None, status: int = -9) -> None:
        """Let a child die."""
        assert child is not None
        bury(self.context, child, status, self.now)

    def settle(self) -> None:
        """Take turns with everyone beating until nothing changes."""
        for _ in range(8):
            self.turn()
            self.beat()
            for child in list(self.house.children):
                if child.intent >= Intent.DRAIN:
                    self.die(child, 0)

    @property
    def phase(self) -> HostState:
        """What the operator wants."""
        return self.desired.phase
