"""The timer wheel: on time, never early, and no entry looked at more often than it must be."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.http.wheel import GRAIN_S, Wheel

NEVER = float("inf")


@dataclass(eq=False)
class Entry:
    """Something with a deadline; notes when it expired."""

    deadline: float = NEVER
    filed_at: float = 0.0
    expired_at: list[float] = field(default_factory=list)
    now: float = 0.0

    def expire(self) -> None:
        """Note the time."""
        self.expired_at.append(self.now)


class Turned:
    """A wheel and its clock."""

    def __init__(self) -> None:
        self.wheel = Wheel()
        self.now = (self.wheel._turned + 1) * GRAIN_S
        self.entries: list[Entry] = []

    def add(self, after_s: float) -> Entry:
        """File a new entry."""
        entry = Entry(self.now + after_s)
        self.entries.append(entry)
        self.wheel.add(entry, self.now)
        return entry

    def advance(self, seconds: float) -> None:
        """Turn once, as late as it may be."""
        self.now += seconds
        for entry in self.entries:
            entry.now = self.now
        self.wheel.tick(self.now)

    @property
    def filings(self) -> int:
        """How many places are taken on the wheel."""
        return sum(len(bucket) for bucket in self.wheel._buckets.values())


def test_entry_expires_once_after_its_deadline() -> None:
    """Not before, and at most a bucket late."""
    turned = Turned()
    entry = turned.add(1.0)
    for _ in range(40):
        turned.advance(GRAIN_S)
    assert len(entry.expired_at) == 1
    late = entry.expired_at[0] - (turned.now - 40 * GRAIN_S + 1.0)
    assert -1e-6 <= late <= 2 * GRAIN_S + 1e-6  # sums of floats, far from zero
    assert turned.filings == 0


def test_deadline_moved_later_needs_no_filing() -> None:
    """Assigning it is enough."""
    turned = Turned()
    entry = turned.add(0.2)
    entry.deadline += 5.0
    turned.advance(1.0)
    assert not entry.expired_at
    for _ in range(120):
        turned.advance(GRAIN_S)
    assert len(entry.expired_at) == 1


def test_entry_without_a_deadline_is_dropped_when_looked_at() -> None:
    """A connection that waits for nothing costs nothing."""
    turned = Turned()
    entry = turned.add(0.2)
    entry.deadline = NEVER
    turned.advance(1.0)
    assert turned.filings == 0
    entry.deadline = turned.now + 0.1
    turned.wheel.add(entry, turned.now)
    turned.advance(0.3)
    assert len(entry.expired_at) == 1


def test_deadlines_that_move_back_and_forth_do_not_pile_up() -> None:
    """Each move to an earlier time files again; the older filings go when they come up."""
    turned = Turned()
    entry = turned.add(2.9)
    for _ in range(500):
        entry.deadline = turned.now + 0.1
        turned.wheel.add(entry, turned.now)
        entry.deadline = turned.now + 3.0
        turned.wheel.add(entry, turned.now)
        turned.advance(GRAIN_S)
    for _ in range(70):
        entry.deadline = turned.now + 3.0
        turned.advance(GRAIN_S)
    assert turned.filings == 1
    assert not entry.expired_at


def test_entry_may_file_itself_again_while_it_expires() -> None:
    """A periodic entry goes on."""
    turned = Turned()

    class Again(Entry):
        """Wants to be told every 100 ms."""

        def expire(self) -> None:
            """Note it, and ask again."""
            super().expire()
            self.deadline = self.now + 0.1
            turned.wheel.add(self, self.now)

    entry = Again(turned.now + 0.1)
    turned.entries.append(entry)
    turned.wheel.add(entry, turned.now)
    for _ in range(100):
        turned.advance(GRAIN_S)
    assert 25 <= len(entry.expired_at) <= 50
    assert turned.filings == 1


def test_wheel_that_stood_still_for_hours_catches_up() -> None:
    """A suspended machine wakes with everything due."""
    turned = Turned()
    entries = [turned.add(s) for s in (0.1, 1.0, 2.9)]
    turned.advance(5000.0)
    assert all(len(e.expired_at) == 1 for e in entries)


@given(
    st.lists(
        st.tuples(st.floats(0.0, 8.0), st.floats(0.001, 1.0), st.booleans()),
        min_size=1, max_size=60,
    )
)  # fmt: skip
def test_whatever_moves_expiry_is_on_time(moves: list[tuple[float, float, bool]]) -> None:
    """Against one entry's own clock: never early, and not later than a bucket and a tick."""
    turned = Turned()
    entry = Entry()
    turned.entries.append(entry)
    for after_s, step_s, forget in moves:
        entry.deadline = NEVER if forget else turned.now + after_s
        if not forget:
            turned.wheel.add(entry, turned.now)
        wanted, seen = entry.deadline, len(entry.expired_at)
        turned.advance(step_s)
        if len(entry.expired_at) > seen:
            assert turned.now >= wanted
        elif turned.now - step_s > wanted + GRAIN_S:
            raise AssertionError("missed")
        if wanted + GRAIN_S <= turned.now:
            assert len(entry.expired_at) == seen + 1
