"""When to give up: nothing boots, or everything keeps dying.

Invariants: while one slot serves, nothing here ends the host; before the first ready line a failed
boot is ``BOOT_FAILED`` with the child's own reason, within ``BOOT_PATIENCE_S``; after it, a crash
loop of every slot is ``CRASH_LOOP``.
"""

from __future__ import annotations

from tpo_mp.errors import ExitCode

from .state import Berth, House

BOOT_TRIES = 3
BOOT_PATIENCE_S = 8.0


def verdict(
    house: House, first_failure_at: float | None, now: float
) -> tuple[ExitCode, str] | None:
    """Return how and why to end, or None."""
    if any(slot.served for slot in house.slots) and house.ready_at is not None:
        return None
    if house.ready_at is None:
        late = first_failure_at is not None and now - first_failure_at >= BOOT_PATIENCE_S
        if all(_hopeless(slot, late) for slot in house.slots):
            return ExitCode.BOOT_FAILED, _reason(house.slots)
        if _hopeless(house.control, late):
            return ExitCode.BOOT_FAILED, _reason([house.control])
    elif all(slot.intensity.looping for slot in house.slots):
        return ExitCode.CRASH_LOOP, _reason(house.slots)
    return None


def _hopeless(berth: Berth, late: bool) -> bool:
    if berth.child is not None and berth.child.booted:
        return False
    tries = 1 if berth.refused or late else BOOT_TRIES
    return berth.boot_failures >= tries


def _reason(berths: list[Berth]) -> str:
    told = [f"{berth.name}: {berth.last_words}" for berth in berths if berth.last_words]
    return told[0] if told else f"{berths[0].name} does not start"
