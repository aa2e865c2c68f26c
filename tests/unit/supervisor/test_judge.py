"""Hangs, deadlines and deaths."""

from __future__ import annotations

import re
import signal

from tests.support.house import World
from tpo_mp.shm.plane import HostState
from tpo_mp.supervisor.beats import CpuSample
from tpo_mp.supervisor.state import Intent
from tpo_mp.supervisor.status import restart_needed


def hang(world: World, seconds: float) -> None:
    """Let everyone beat but the worker of seat 0."""
    until = world.now + seconds
    hung = next(child for child in world.house.children if child.seat == 0)
    while world.now < until:
        world.turn()
        world.beat(hung)


def test_a_silent_worker_is_aborted_then_killed() -> None:
    """ABRT and CONT after two seconds, KILL one second later, never earlier."""
    world = World()
    world.boot()
    hang(world, 1.9)
    assert not world.hands.signals
    hang(world, 0.3)
    assert world.hands.signals == [(0, signal.SIGABRT), (0, signal.SIGCONT)]
    hang(world, 0.6)
    assert (0, signal.SIGKILL) not in world.hands.signals
    hang(world, 0.5)
    assert world.hands.signals[2:] == [(0, signal.SIGKILL)]


def test_a_hung_worker_is_replaced_before_it_is_dead() -> None:
    """Its slot goes to the spare with the first signal."""
    world = World()
    world.boot()
    spare = world.house.spare.child
    hang(world, 2.2)
    assert world.house.slots[0].child is spare
    assert world.house.slots[0].served


def test_a_starved_worker_is_left_alone() -> None:
    """Silent for twenty seconds for want of CPU is not hung."""
    world = World()
    world.boot()
    world.probe = CpuSample(runnable=True, cpu_s=1.0)
    hang(world, 20.0)
    assert not world.hands.signals


def test_a_slow_boot_is_no_hang() -> None:
    """A process that is still importing may be silent for longer."""
    world = World()
    world.turn()
    world.turns(5.0)
    assert not world.hands.signals
    world.turns(16.0)
    assert (0, signal.SIGABRT) in world.hands.signals


def test_a_worker_that_ignores_stop_is_killed() -> None:
    """Stop has a deadline too."""
    world = World()
    world.boot()
    world.desired.phase = HostState.STOPPING
    world.turn()
    while not world.hands.signals and world.now < 200:
        world.turn()
        world.beat()
    assert {number for _, number in world.hands.signals} == {signal.SIGKILL}


def test_a_draining_worker_past_its_deadline_is_told_to_stop() -> None:
    """Retiring in a rolling restart does not last for ever."""
    world = World()
    world.boot()
    old = world.house.slots[0].child
    assert old is not None
    world.desired.generation, world.desired.rolling = 1, True
    while (0, Intent.STOP) not in world.hands.commands and world.now < 200:
        world.turn()
        world.beat()
    assert old.drain_by is not None
    assert world.now - old.drain_by < 0.2


def test_an_unexplained_kill_is_called_by_its_name() -> None:
    """SIGKILL not sent by us may be the kernel's, for want of memory."""
    world = World()
    world.boot()
    world.die(world.house.slots[0].child, -signal.SIGKILL)
    assert "signal=SIGKILL" in world.log.getvalue()
    assert "perhaps out of memory" in world.log.getvalue()


def test_a_worker_that_exits_by_itself_counts_as_a_death() -> None:
    """Exit 0 without being asked is unexpected: logged, counted, replaced."""
    world = World()
    world.boot()
    world.die(world.house.slots[0].child, 0)
    assert "exit_code=0" in world.log.getvalue()
    assert world.house.slots[0].restarts == 1
    world.turn()
    assert world.house.slots[0].child is not None


def test_every_reaped_child_leaves_its_seat() -> None:
    """Seats are cleared once, after the reap."""
    world = World()
    world.boot()
    world.die(world.house.slots[1].child)
    assert world.hands.vacated == [1]


def test_last_words_reach_the_berth() -> None:
    """The reason a child gave is kept for the status and the exit line."""
    world = World()
    world.turn()
    world.hands.words = "ConfigError: backends[0] is unknown"
    world.die(world.house.slots[0].child, 1)
    assert world.house.slots[0].last_words == "ConfigError: backends[0] is unknown"


def test_a_process_that_lags_is_reported_before_it_is_condemned() -> None:
    """Once, at half of the silence that a hang takes; so is its return."""
    world = World()
    world.boot()
    hang(world, 1.6)
    assert world.log.getvalue().count("worker_lags") == 1
    assert not world.hands.signals
    world.beat()
    world.turn()
    world.turn()
    assert world.log.getvalue().count("worker_beats_again") == 1
    hang(world, 3.0)
    told = re.findall(r" (worker_\w+) ", world.log.getvalue())
    assert told == ["worker_lags", "worker_beats_again", "worker_lags", "worker_hangs"]


def test_what_a_refusal_said_holds_until_the_next_boot() -> None:
    """The code on disk was another one, and is ours again: nothing needs a restart any more."""
    world = World()
    world.boot()
    world.die(world.house.spare.child)
    world.hands.words = "restart needed: the code on disk is version 9"
    world.turns(0.3)
    world.die(world.house.spare.child, 3)
    assert restart_needed(world.house) == [world.hands.words]
    world.turns(1.2)
    assert world.house.spare.child is not None, "after its pause"
    assert restart_needed(world.house), "one that only starts proves nothing"
    world.beat()
    world.turn()
    assert restart_needed(world.house) == []


def test_only_a_later_start_of_the_same_kind_withdraws_a_refusal() -> None:
    """What control boots with, or what was started before, says nothing of a shard's refusal."""
    world = World()
    world.turn()
    control = world.house.control.child
    assert control is not None
    said = "restart needed: the code on disk is version 9"
    world.hands.words = said
    world.die(world.house.slots[0].child, 3)
    world.beat()
    world.turn()
    assert control.booted
    assert world.house.slots[0].refused
    assert world.house.slots[0].last_words == said
