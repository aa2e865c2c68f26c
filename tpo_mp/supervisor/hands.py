"""What judge and reconcile may do to the world; tests give them other hands."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Protocol

from . import placement
from .events import EventLog
from .memory import HostMemory
from .spawn import Nursery
from .state import Berth, Child, House, Intent, Times


class Hands(Protocol):
    """The verbs of the supervisor, none of which waits for a child."""

    def spawn(self, berth: Berth, seat: int, intent: Intent, generation: int, now: float) -> Child:
        """Start a process; raises ``OSError`` when the host cannot."""

    def command(self, child: Child, intent: Intent) -> None:
        """Write the child's command word."""

    def assign(self, child: Child, berth: Berth) -> None:
        """Give a parked child a slot."""

    def signal(self, child: Child, number: signal.Signals) -> None:
        """Send a signal."""

    def vacate(self, child: Child) -> None:
        """Clear up the seat of a reaped child."""

    def last_words(self, child: Child) -> str:
        """Read what the child left to say."""


@dataclass(frozen=True, slots=True)
class RealHands:
    """The hands that touch processes and shared memory."""

    memory: HostMemory
    nursery: Nursery

    def spawn(self, berth: Berth, seat: int, intent: Intent, generation: int, now: float) -> Child:
        """Start a process in ``seat`` for ``berth``."""
        return self.nursery.spawn(seat, berth.role, berth.index, berth.cpu, intent, generation, now)

    def command(self, child: Child, intent: Intent) -> None:
        """Write the command word and ring the doorbell."""
        self.memory.command(child, intent)

    def assign(self, child: Child, berth: Berth) -> None:
        """Write the slot word, and pin the process where its new slot lives."""
        self.memory.assign(child, berth.index)
        placement.pin(child.pid, berth.cpu)

    def signal(self, child: Child, number: signal.Signals) -> None:
        """Send a signal."""
        self.nursery.signal(child, number)

    def vacate(self, child: Child) -> None:
        """Clear up shared memory after a reaped child."""
        self.memory.vacate(child)

    def last_words(self, child: Child) -> str:
        """Read the child's last words."""
        return self.nursery.last_words(child)


@dataclass(slots=True)
class Context:
    """What every verb of the loop shares."""

    house: House
    times: Times
    hands: Hands
    events: EventLog

    def tell(self, child: Child, intent: Intent, now: float) -> None:
        """Move a child's intent to the right and start its deadline; else do nothing."""
        if intent <= child.intent:
            return
        child.intent = intent
        if intent is Intent.DRAIN:
            child.drain_by = now + self.times.drain_s
        elif intent is Intent.STOP:
            control = child.role == "control"
            child.stop_by = now + (self.times.control_stop_s if control else self.times.stop_s)
        self.hands.command(child, intent)

    def retire(self, berth: Berth, intent: Intent, now: float) -> None:
        """Take a berth's child out of it and tell it to go."""
        child, berth.child = berth.child, None
        if child is not None:
            self.tell(child, intent, now)
