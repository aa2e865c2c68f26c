"""Desired against actual: who is started, promoted, replaced and retired."""

from __future__ import annotations

from tests.support.house import World
from tpo_mp.shm.plane import HostState, SeatState
from tpo_mp.supervisor.state import REST_S, Intent


def test_a_cold_start_starts_slots_and_control_but_no_spare() -> None:
    """The spare waits until the host is ready."""
    world = World()
    world.turn()
    assert [name for name, _, _ in world.hands.spawned] == ["slot 0", "slot 1", "control"]
    assert [seat for _, seat, _ in world.hands.spawned] == [0, 1, 4]


def test_a_ready_host_keeps_one_parked_spare() -> None:
    """Exactly one spare, told to park."""
    world = World()
    world.boot()
    world.turns(1.0)
    assert world.hands.spawned[3:] == [("spare", 2, Intent.PARK)]


def test_a_dead_worker_is_replaced_by_the_spare_and_a_new_spare_follows() -> None:
    """The parked process gets slot and command at once, then its berth is filled again."""
    world = World()
    world.boot()
    spare = world.house.spare.child
    world.die(world.house.slots[0].child)
    world.turn()
    assert world.house.slots[0].child is spare
    assert world.hands.assigned == [(2, 0)]
    assert (2, Intent.RUN) in world.hands.commands
    world.beat()
    world.turn()
    world.turn()
    # The seat of the dead one rests: control reads what it sent.
    assert world.hands.spawned[-1] == ("spare", 3, Intent.PARK)


def test_a_seat_is_taken_again_when_control_could_read_what_was_sent_from_it() -> None:
    """The one that has been empty longest, and none that was left a moment ago."""
    house = World().house
    assert house.free_seat("shard", 10.0) == 0
    house.left_at = {0: 9.0, 1: 8.0, 2: 10.0, 3: 9.5}
    assert house.free_seat("shard", 10.0) == 1
    house.left_at[1] = house.left_at[0] = house.left_at[3] = 9.9
    assert house.free_seat("shard", 10.0) is None
    assert house.free_seat("shard", 9.9 + REST_S) == 0
    assert house.free_seat("control", 10.0) == house.control_seat


def test_without_a_spare_a_new_process_is_started() -> None:
    """Two deaths at once: one slot gets the spare, the other a fresh process."""
    world = World()
    world.boot()
    for slot in world.house.slots:
        world.die(slot.child)
    world.turn()
    assert all(slot.child is not None for slot in world.house.slots)
    assert world.hands.spawned[-1][0] == "slot 1"


def test_a_crashing_slot_backs_off_while_the_other_serves() -> None:
    """After the sixth quick death nothing is started for a second."""
    world = World()
    world.boot()
    while world.house.slots[0].intensity.level == 0:
        if world.house.slots[0].child is not None:
            world.die(world.house.slots[0].child)
        world.turn(0.2)
        world.beat()
    starts = len(world.hands.spawned)
    world.turn()
    assert world.house.slots[0].child is None
    assert len(world.hands.spawned) == starts
    assert world.house.slots[1].served
    world.turn(1.0)
    assert world.house.slots[0].child is not None


def test_a_host_without_processes_left_tries_again_later() -> None:
    """A failed fork is a logged death of the berth, not of the supervisor."""
    world = World()
    world.boot()
    world.die(world.house.spare.child)
    world.hands.no_process = True
    world.die(world.house.slots[0].child)
    world.turn(0.2)
    assert world.house.slots[0].child is None
    assert "cannot_start_a_process" in world.log.getvalue()
    world.hands.no_process = False
    world.turn(0.2)
    assert world.house.slots[0].child is not None


def test_a_rolling_restart_replaces_everyone_one_slot_at_a_time() -> None:
    """Spare, slots in turn, control; never two successors; the old one drains after the swap."""
    world = World()
    world.boot()
    old = set(world.house.children)
    world.desired.generation, world.desired.rolling = 1, True
    for _ in range(20):
        world.settle()
        assert sum(slot.successor is not None for slot in world.house.slots) <= 1
        assert all(slot.child is not None for slot in world.house.slots)
    assert not world.desired.rolling
    assert not old & set(world.house.children)
    assert all(child.generation == 1 for child in world.house.children)
    assert world.house.spare.child is not None


def test_the_replacement_is_up_before_the_old_worker_drains() -> None:
    """No drain command before the successor is ready."""
    world = World()
    world.boot()
    world.desired.generation, world.desired.rolling = 1, True
    world.turn()
    world.turn()
    first = world.house.slots[0]
    assert first.successor is not None
    assert (0, Intent.DRAIN) not in world.hands.commands
    world.beat()
    world.turn()
    assert (0, Intent.DRAIN) in world.hands.commands


def test_a_replacement_that_dies_leaves_the_old_worker_in_place() -> None:
    """The rolling restart fails; the slot still serves."""
    world = World()
    world.boot()
    world.desired.generation, world.desired.rolling = 1, True
    world.turn()
    world.turn()
    slot = world.house.slots[0]
    world.hands.words = "restart needed: other version"
    world.die(slot.successor, 3)
    assert slot.served
    assert "other version" in world.house.roll_failure


def test_a_worker_that_dies_while_its_successor_boots_is_succeeded_at_once() -> None:
    """The booting successor takes the slot."""
    world = World()
    world.boot()
    world.desired.generation, world.desired.rolling = 1, True
    world.turn()
    world.turn()
    slot = world.house.slots[0]
    successor = slot.successor
    world.die(slot.child)
    world.turn()
    assert slot.child is successor
    assert slot.successor is None


def test_a_drain_tells_workers_to_drain_and_the_spare_to_stop() -> None:
    """What never served has nothing to finish; control goes on."""
    world = World()
    world.boot()
    world.desired.phase, world.desired.drain_by = HostState.DRAINING, world.now + 30
    world.turn()
    assert sorted(world.hands.commands) == [
        (0, Intent.DRAIN), (1, Intent.DRAIN), (2, Intent.STOP),
    ]  # fmt: skip


def test_control_stops_after_the_last_worker() -> None:
    """It writes down what the workers leave."""
    world = World()
    world.boot()
    world.desired.phase, world.desired.drain_by = HostState.DRAINING, world.now + 30
    world.turn()
    for child in world.house.shards:
        assert (4, Intent.STOP) not in world.hands.commands
        world.die(child, 0)
        world.turn()
    assert (4, Intent.STOP) in world.hands.commands


def test_control_is_restarted_while_workers_still_drain() -> None:
    """Records of the last calls need it."""
    world = World()
    world.boot()
    world.desired.phase, world.desired.drain_by = HostState.DRAINING, world.now + 30
    world.turn()
    world.die(world.house.control.child)
    world.turn(0.2)
    assert world.house.control.child is not None


def test_the_drain_deadline_turns_into_stop() -> None:
    """Whoever still drains then is told to stop."""
    world = World()
    world.boot()
    world.desired.phase, world.desired.drain_by = HostState.DRAINING, world.now + 1
    world.turn()
    world.beat()
    world.turn(1.0)
    assert world.phase is HostState.STOPPING
    assert (0, Intent.STOP) in world.hands.commands


def test_a_dead_worker_is_not_replaced_while_draining() -> None:
    """The host is on its way out."""
    world = World()
    world.boot()
    world.desired.phase, world.desired.drain_by = HostState.DRAINING, world.now + 30
    world.turn()
    starts = len(world.hands.spawned)
    world.die(world.house.shards[0])
    world.turns(1.0)
    assert len(world.hands.spawned) == starts


def test_a_berth_that_is_parked_is_not_served() -> None:
    """Only a ready child takes calls."""
    world = World()
    world.boot()
    assert world.house.spare.child is not None
    assert world.house.spare.child.state is SeatState.PARKED
    assert not world.house.spare.served
