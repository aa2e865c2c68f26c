"""The queue of one backend: each turn holds a place until it is answered, and none is lost."""

from __future__ import annotations

from typing import Any

from tests.support.fake_env import FakeShares
from tpo_mp.pipeline.lanes import Waiter
from tpo_mp.pipeline.place_queue import TOLD_AGAIN_S, PlaceQueue, Who


class Cried:
    """What was told to whom."""

    def __init__(self) -> None:
        self.turns: list[Who] = []
        self.refused: list[tuple[Who, float, bool]] = []
        self.deaf = False

    def turn(self, who: Who, wait_s: float) -> bool:
        """Note a turn."""
        if not self.deaf:
            self.turns.append(who)
        return not self.deaf

    def refuse(self, who: Who, wait_s: float, *, early: bool) -> bool:
        """Note a refusal."""
        self.refused.append((who, wait_s, early))
        return True


class Queue:
    """A queue on seat 0, and places that seat 1 holds too."""

    def __init__(self, limit: int = 2) -> None:
        self.shares = FakeShares()
        self.share = self.shares.of("b")
        self.theirs = self.shares.other(1).of("b")
        self.cried = Cried()
        self.lives = [(1, 100), (1, 101)]
        self.queue = PlaceQueue(self.share, self.cried, self.lives.__getitem__)
        self.limit = limit
        self.now = 100.0

    def ask(self, number: int, seat: int = 1, **facts: Any) -> None:
        """One more wants a place."""
        waiter = Waiter((seat, number), **({"arrived_at": self.now} | facts))
        self.queue.ask((seat, number), waiter, self.limit, self.now)

    def keep(self, number: int, seat: int = 1) -> None:
        """Its process takes the place over."""
        self.theirs.add(1)
        self.queue.kept((seat, number), self.now)

    def end(self) -> None:
        """A call of seat 1 is over."""
        self.theirs.give(1)
        self.queue.pump(self.now)


def test_a_place_is_held_from_the_turn_to_its_answer() -> None:
    """Never more than the limit, here and there together; never fewer while one waits."""
    queue = Queue(limit=2)
    for number in range(4):
        queue.ask(number)
    assert queue.cried.turns == [(1, 0), (1, 1)]
    assert (queue.share.held, queue.share.wanted) == (2, 2)
    queue.keep(0)
    assert (queue.share.held, queue.share.total()) == (1, 2)
    queue.end()
    assert queue.cried.turns[2:] == [(1, 2)]
    queue.keep(1)
    queue.keep(2)
    queue.end()
    queue.end()
    assert queue.cried.turns[3:] == [(1, 3)]
    queue.keep(3)
    assert (queue.share.held, queue.share.wanted, queue.queue.busy) == (0, 0, False)


def test_asking_again_changes_nothing_and_tells_the_turn_again() -> None:
    """A message more or less does no harm."""
    queue = Queue(limit=1)
    for number in (0, 1, 1, 0):
        queue.ask(number)
    assert queue.cried.turns == [(1, 0), (1, 0)]
    assert (queue.share.held, len(queue.queue)) == (1, 1)
    queue.keep(0)
    queue.queue.kept((1, 0), queue.now)
    assert (queue.share.held, queue.theirs.held) == (0, 1)


def test_a_turn_nobody_answers_is_told_until_it_is() -> None:
    """Also one that found the ring full."""
    queue = Queue(limit=1)
    queue.cried.deaf = True
    queue.ask(0)
    queue.cried.deaf = False
    queue.queue.tick(queue.now + 0.05)
    assert queue.cried.turns == [(1, 0)]
    queue.queue.tick(queue.now + 0.1)
    assert queue.cried.turns == [(1, 0)]
    queue.queue.tick(queue.now + 0.1 + TOLD_AGAIN_S)
    assert queue.cried.turns == [(1, 0)] * 2


def test_the_dead_leave_the_queue_and_their_turns() -> None:
    """Whether they waited or were told."""
    queue = Queue(limit=1)
    queue.ask(0)
    queue.ask(1)
    queue.ask(7, seat=0)
    queue.lives[1] = (2, 200)
    queue.queue.tick(queue.now)
    assert queue.cried.turns == [(1, 0), (0, 7)]
    assert (len(queue.queue), queue.share.held) == (0, 1)


def test_who_leaves_before_its_turn_gets_none() -> None:
    """And who leaves after it gives the place back by its answer."""
    queue = Queue(limit=1)
    for number in range(3):
        queue.ask(number)
    queue.queue.gone((1, 1), queue.now)
    queue.queue.gone((1, 0), queue.now)
    assert (queue.share.held, queue.share.wanted) == (1, 1)
    queue.queue.kept((1, 0), queue.now)
    assert queue.cried.turns == [(1, 0), (1, 2)]


def test_too_late_is_refused_and_gets_no_turn() -> None:
    """At the tick, or when a place comes back."""
    queue = Queue(limit=1)
    queue.ask(0)
    queue.ask(1, deadline=queue.now + 1)
    queue.ask(2, deadline=queue.now + 2)
    queue.keep(0)
    queue.now += 1
    queue.queue.tick(queue.now)
    assert [who for who, *_ in queue.cried.refused] == [(1, 1)]
    queue.now += 1
    queue.end()
    assert [(who, early) for who, _, early in queue.cried.refused] == [
        ((1, 1), False), ((1, 2), False),
    ]  # fmt: skip
    assert queue.cried.turns == [(1, 0)]
    assert queue.share.total() == 0


def served(queue: Queue, numbers: range, every_s: float) -> None:
    """One place, and so often another call has it."""
    for number in numbers:
        queue.now += every_s
        queue.end()
        queue.keep(number)


def test_who_would_wait_too_long_is_refused_at_once() -> None:
    """By the rate at which places came back lately: ten in a second, five in front."""
    queue = Queue(limit=1)
    for number in range(41):
        queue.ask(number)
    queue.keep(0)
    served(queue, range(1, 36), 0.1)
    assert len(queue.queue) == 5
    queue.ask(100, deadline=queue.now + 0.3)
    ((who, wait_s, early),) = queue.cried.refused
    assert (who, early) == ((1, 100), True)
    assert 0.55 < wait_s < 0.65
    queue.ask(101, deadline=queue.now + 0.65)
    queue.ask(102, deadline=queue.now + 0.35, level=3)
    assert len(queue.cried.refused) == 1


def test_those_for_whom_it_came_too_late_tell_how_late_places_may_be() -> None:
    """Nobody else does, when all who waited through a stall had to go."""
    for stall_s, refused in ((0.0, 0), (4.0, 1)):
        queue = Queue(limit=1)
        for number in range(35):
            queue.ask(number)
        queue.keep(0)
        served(queue, range(1, 35), 0.1)
        for number in range(36, 41):
            queue.ask(number, deadline=queue.now + (1 if stall_s else 99))
        served(queue, range(36, 37), 0.1)
        queue.now += stall_s
        queue.queue.tick(queue.now)
        assert len(queue.cried.refused) == 4 * refused
        if not stall_s:
            served(queue, range(37, 41), 0.1)
        queue.cried.refused.clear()
        for number in range(100, 110):
            queue.ask(number, deadline=queue.now + 99)
        queue.ask(200, deadline=queue.now + 2.3)
        assert len(queue.cried.refused) == refused, stall_s


def test_a_few_slow_replies_refuse_nobody() -> None:
    """A hundred calls, and the machine was slow while the first came back: it is no rate yet."""
    queue = Queue(limit=4)
    for number in range(100):
        queue.ask(number, deadline=queue.now + 30)
    for number in range(4):
        queue.keep(number)
    served(queue, range(4, 16), 0.25)
    for number in range(100, 150):
        queue.ask(number, deadline=queue.now + 20)
    assert not queue.cried.refused


def test_a_lost_limit_lets_everybody_in() -> None:
    """A reload took it away: the next who asks says so."""
    queue = Queue(limit=1)
    for number in range(3):
        queue.ask(number)
    queue.limit = 0
    queue.ask(3)
    assert queue.cried.turns == [(1, n) for n in range(4)]
