"""Brings what is to what should be: the only code that starts or retires a process.

Every turn, for every berth: fill it if it is empty and may be started, replace what is of an old
generation (replacement first, one slot at a time), keep one warm spare.

Invariants: nothing here waits; a turn may do little and is asked again; what cannot be done now
(no free seat, no process left on the host, backing off) simply stays undone.
"""

from __future__ import annotations

from tpo_mp.shm.plane import HostState

from .hands import Context
from .state import Berth, Child, Desired, Intent


def reconcile(context: Context, desired: Desired, now: float) -> None:
    """Take one turn."""
    if desired.phase is HostState.STOPPING or now >= desired.drain_by:
        desired.phase = HostState.STOPPING
        _empty(context, Intent.STOP, now)
    elif desired.phase is HostState.DRAINING:
        _empty(context, Intent.DRAIN, now)
        _keep_control(context, desired, now)
    else:
        for slot in context.house.slots:
            _fill(context, slot, desired, now)
        _keep_control(context, desired, now)
        if context.house.ready_at is not None:
            _roll(context, desired, now)
            _keep_spare(context, desired, now)


def _empty(context: Context, intent: Intent, now: float) -> None:
    """Retire every worker; control goes last, since it writes down what they left."""
    house = context.house
    for berth in (*house.slots, house.spare):
        berth.child = berth.successor = None
    for child in house.shards:
        # What never served has nothing to finish.
        idle = child.intent is Intent.PARK or not child.booted
        context.tell(child, Intent.STOP if idle else intent, now)
    if not house.shards:
        context.retire(house.control, Intent.STOP, now)


def _fill(context: Context, slot: Berth, desired: Desired, now: float) -> None:
    if slot.child is None and slot.successor is not None:
        slot.child, slot.successor = slot.successor, None
    if slot.child is not None or not slot.intensity.may_start(now):
        return
    spare = context.house.spare
    if spare.child is not None and not spare.child.condemned:
        slot.child, spare.child = spare.child, None
        slot.child.berth = slot.name
        context.hands.assign(slot.child, slot)
        context.tell(slot.child, Intent.RUN, now)
        slot.intensity.started(now)
    else:
        slot.child = _start(context, slot, Intent.RUN, desired, now)


def _keep_control(context: Context, desired: Desired, now: float) -> None:
    control = context.house.control
    if desired.phase is not HostState.RUNNING and not context.house.shards:
        context.retire(control, Intent.STOP, now)
    elif control.child is None and control.intensity.may_start(now):
        control.child = _start(context, control, Intent.RUN, desired, now)


def _keep_spare(context: Context, desired: Desired, now: float) -> None:
    house, spare = context.house, context.house.spare
    # While slots are being replaced the free seat is theirs.
    calm = all(slot.served for slot in house.slots) and not desired.rolling
    if calm and spare.child is None and spare.intensity.may_start(now):
        spare.child = _start(context, spare, Intent.PARK, desired, now)


def _roll(context: Context, desired: Desired, now: float) -> None:
    """Replace one child of an old generation: spare first, then the slots, then control."""
    house = context.house
    if not desired.rolling:
        return
    if house.spare.child is not None and _old(house.spare.child, desired):
        context.retire(house.spare, Intent.STOP, now)
    for slot in house.slots:
        if slot.successor is not None:
            _swap(context, slot, now)
            return
    for slot in house.slots:
        if slot.served and slot.child is not None and _old(slot.child, desired):
            slot.successor = _start(context, slot, Intent.RUN, desired, now)
            return
    failing = [berth.name for berth in house.slots if not berth.served and berth.intensity.level]
    if failing:
        house.roll_failure = f"{failing[0]} keeps dying"
    control = house.control.child
    if control is None or not control.serving:
        return
    if _old(control, desired):
        # Control has one seat and no overlap: workers answer "unavailable" for that moment.
        context.retire(house.control, Intent.STOP, now)
    elif all(slot.served for slot in house.slots):
        desired.rolling = False


def _swap(context: Context, slot: Berth, now: float) -> None:
    if slot.successor is not None and slot.successor.serving:
        context.retire(slot, Intent.DRAIN, now)
        slot.child, slot.successor = slot.successor, None


def _old(child: Child, desired: Desired) -> bool:
    return child.generation < desired.generation


def _start(
    context: Context, berth: Berth, intent: Intent, desired: Desired, now: float
) -> Child | None:
    house = context.house
    seat = house.free_seat(berth.role, now)
    if seat is None or not berth.intensity.may_start(now):
        return None
    berth.intensity.started(now)
    try:
        child = context.hands.spawn(berth, seat, intent, desired.generation, now)
    except OSError as error:
        berth.intensity.died(now, 0.0)
        berth.last_words = f"cannot start a process: {error.strerror}"
        context.events("cannot_start_a_process", "error", where=berth.name, reason=str(error))
        return None
    child.berth = berth.name
    house.children.append(child)
    return child
