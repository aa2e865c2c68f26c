"""What is (``House``) and what should be (``Desired``): the two values reconcile compares.

::

    host    RUNNING --TERM--> DRAINING --deadline, second TERM--> STOPPING --all gone--> exit
                    --INT, QUIT--------------------------------->
    child   PARK --promote--> RUN --replaced, drain--> DRAIN --deadline--> STOP --grace--> (KILL)
            one that hangs is *condemned*: ABRT + CONT, and KILL after the grace

Invariants: an intent only moves to the right; one child per seat; a condemned, dead or retiring
child fills no berth, so its replacement never waits for its end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, TypeAlias

from tpo_mp.shm.plane import HostState, SeatState

from .beats import BeatWatch
from .intensity import Intensity, RestartLimits
from .placement import UNPINNED

Role: TypeAlias = Literal["shard", "control"]
NO_SLOT = -1
EXTRA_SEATS = 2
"""A warm spare, and one overlap for a retiring process."""
REST_S = 0.2
"""How long a seat stays empty: control, which the death wakes, looks at its mail within 50 ms."""


class Intent(IntEnum):
    """What a child was told to do, in the order it may be told."""

    PARK = 0
    RUN = 1
    DRAIN = 2
    STOP = 3


@dataclass(frozen=True, slots=True)
class Times:
    """The spans the judge and reconcile go by, in seconds."""

    silence_s: float = 2.0
    kill_grace_s: float = 1.0
    takeover_s: float = 0.2
    boot_s: float = 20.0
    drain_s: float = 30.0
    stop_s: float = 0.8
    control_stop_s: float = 3.0


@dataclass(eq=False, slots=True, kw_only=True)
class Child:
    """One process of ours, from spawn to reap; ``berth`` names the last one it filled."""

    seat: int
    epoch: int
    role: Role
    generation: int
    pid: int
    started_at: float
    watch: BeatWatch
    berth: str = ""
    intent: Intent = Intent.RUN
    state: SeatState = SeatState.EMPTY
    booted: bool = False
    lagging: bool = False
    drain_by: float | None = None
    stop_by: float | None = None
    aborted_at: float | None = None
    killed: bool = False
    condemned: str = ""

    @property
    def serving(self) -> bool:
        """Say whether it takes calls for its berth."""
        return self.state is SeatState.READY and self.intent is Intent.RUN and not self.condemned


@dataclass(eq=False, slots=True)
class Berth:
    """A slot of the session map, or the spare's or control's berth, and its history."""

    name: str
    role: Role
    intensity: Intensity
    index: int = NO_SLOT
    cpu: int = UNPINNED
    child: Child | None = None
    successor: Child | None = None
    down_at: float | None = None
    died_at: float | None = None
    boot_failures: int = 0
    refused: bool = False
    restarts: int = 0
    last_words: str = ""

    @property
    def served(self) -> bool:
        """Say whether its child takes calls."""
        return self.child is not None and self.child.serving


@dataclass(slots=True)
class Desired:
    """What the operator wants."""

    phase: HostState = HostState.RUNNING
    generation: int = 0
    rolling: bool = False
    drain_by: float = float("inf")


@dataclass(slots=True)
class House:
    """What is: every child, and the berths they fill."""

    slots: list[Berth]
    spare: Berth
    control: Berth
    children: list[Child] = field(default_factory=list)
    left_at: dict[int, float] = field(default_factory=dict)
    """When a seat's last occupant was reaped."""
    ready_at: float | None = None
    restarts: int = 0
    roll_failure: str = ""

    @classmethod
    def build(cls, cpus: tuple[int, ...], limits: RestartLimits) -> House:
        """Return the empty house of ``len(cpus)`` slots."""
        return cls(
            slots=[
                Berth(f"slot {index}", "shard", Intensity(limits), index, cpu)
                for index, cpu in enumerate(cpus)
            ],
            spare=Berth("spare", "shard", Intensity(limits)),
            control=Berth("control", "control", Intensity(limits)),
        )

    @property
    def control_seat(self) -> int:
        """The seat after the last worker seat."""
        return len(self.slots) + EXTRA_SEATS

    @property
    def seats(self) -> int:
        """How many seats the host has."""
        return self.control_seat + 1

    @property
    def berths(self) -> list[Berth]:
        """Every berth a child can fill: slots, the spare's, control's."""
        return [*self.slots, self.spare, self.control]

    @property
    def shards(self) -> list[Child]:
        """Every worker process, whatever it does."""
        return [child for child in self.children if child.role == "shard"]

    def berth_of(self, child: Child) -> Berth | None:
        """Return the berth ``child`` fills or is about to fill, if any."""
        for berth in self.berths:
            if child is berth.child or child is berth.successor:
                return berth
        return None

    def free_seat(self, role: Role, now: float) -> int | None:
        """Return an empty seat for ``role``, or None while there is none that may be used.

        Of a worker's, the one that has been empty longest: what its last occupant sent to control
        is lost when it is taken, so control gets ``REST_S`` to read it.
        """
        taken = {child.seat for child in self.children}
        if role == "control":
            return None if self.control_seat in taken else self.control_seat
        empty = [seat for seat in range(self.control_seat) if seat not in taken]
        never = float("-inf")
        seat = min(empty, key=lambda seat: self.left_at.get(seat, never), default=None)
        return None if seat is None or now < self.left_at.get(seat, never) + REST_S else seat
