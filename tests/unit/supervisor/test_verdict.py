"""When the supervisor gives up, and with which code."""

from __future__ import annotations

from tests.support.house import World
from tpo_mp.errors import ExitCode
from tpo_mp.supervisor.verdict import verdict


def fail_boot(world: World, status: int = 1) -> None:
    """Let every slot's booting child die once."""
    world.turn(0.2)
    for slot in world.house.slots:
        world.die(slot.child, status)


def test_three_failed_boots_of_every_slot_end_the_host() -> None:
    """The exit carries the child's own reason."""
    world = World()
    world.hands.words = "ImportError: no such backend"
    for _ in range(2):
        fail_boot(world)
        assert verdict(world.house, world.now, world.now) is None
    fail_boot(world)
    assert verdict(world.house, world.now, world.now) == (
        ExitCode.BOOT_FAILED, "slot 0: ImportError: no such backend",
    )  # fmt: skip


def test_a_refusal_is_believed_at_once() -> None:
    """Exit codes 2 and 3 do not get better by trying again."""
    world = World()
    fail_boot(world, status=3)
    ended = verdict(world.house, world.now, world.now)
    assert ended is not None
    assert ended[0] is ExitCode.BOOT_FAILED


def test_slow_failures_end_the_host_in_time() -> None:
    """One failure each is enough once eight seconds have passed."""
    world = World()
    fail_boot(world)
    assert verdict(world.house, world.now, world.now + 7) is None
    assert verdict(world.house, world.now, world.now + 9) is not None


def test_one_slot_that_boots_keeps_the_host() -> None:
    """The other may fail as often as it likes."""
    world = World()
    world.turn()
    for _ in range(5):
        world.die(world.house.slots[1].child, 1)
        world.turn(0.2)
        world.beat()
        world.turn(0.2)
    assert verdict(world.house, world.now, world.now + 60) is None


def test_a_control_that_cannot_boot_ends_the_start() -> None:
    """Without it the host would never be ready."""
    world = World()
    world.turn()
    world.beat()
    for _ in range(3):
        world.die(world.house.control.child, 1)
        world.turn(0.2)
    ended = verdict(world.house, world.now, world.now)
    assert ended is not None
    assert ended[1].startswith("control")


def test_a_crash_loop_of_every_slot_is_an_exit() -> None:
    """After the third pause in vain of all slots there is nothing left to hope for."""
    world = World()
    world.boot()
    for _ in range(200):
        for slot in world.house.slots:
            if slot.child is not None:
                world.die(slot.child)
        if world.house.spare.child is not None:
            world.die(world.house.spare.child)
        ended = verdict(world.house, None, world.now)
        if ended is not None:
            break
        world.turn(0.2)
    assert ended is not None
    assert ended[0] is ExitCode.CRASH_LOOP
