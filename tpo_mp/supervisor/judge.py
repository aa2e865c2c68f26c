"""Watches beats and deadlines: who hangs, who overstays, who is dead.

Two steps to every killing: SIGABRT, so that ``faulthandler`` writes a traceback (with SIGCONT, for
a stopped process takes no signal), then SIGKILL after the grace.  A process that could not run for
want of CPU is not hung (``beats``).

Invariants: a hung child loses its berth at the first step, so its replacement is up before the
second; a seat is vacated only after its process was reaped.
"""

from __future__ import annotations

import signal

from tpo_mp.shm.plane import Plane, SeatState

from .beats import CpuProbe
from .hands import Context
from .state import Child, Intent

REFUSALS = (2, 3)
"""Exit codes of a child that will not boot however often it is tried."""


def judge(context: Context, plane: Plane, probe: CpuProbe, now: float) -> None:
    """Look at every child once."""
    for child in context.house.children:
        lines = plane.seat(child.seat)
        child.state = SeatState(min(lines.state, SeatState.STOPPED))
        if not child.booted and child.state >= SeatState.PARKED:
            _booted(context, child)
        child.watch.look(lines.beat, now, child.pid, probe)
        if child.condemned:
            _finish(context, child, now)
        else:
            _weigh(context, child, now)
            _warn(context, child, now)


def _booted(context: Context, child: Child) -> None:
    child.booted = True
    for berth in context.house.berths:
        if berth.refused and berth.role == child.role and child.started_at > (berth.died_at or 0.0):
            # A later start of the same kind: what was said of the code on disk is no longer true.
            berth.refused, berth.last_words = False, ""


def _weigh(context: Context, child: Child, now: float) -> None:
    times = context.times
    if child.watch.blamed_s >= (times.silence_s if child.booted else times.boot_s):
        _condemn(context, child, "hung" if child.booted else "hung at boot", now)
    elif child.stop_by is not None:
        if now >= child.stop_by:
            _kill(context, child)
    elif child.drain_by is not None and now >= child.drain_by:
        context.tell(child, Intent.STOP, now)


def _warn(context: Context, child: Child, now: float) -> None:
    """Say that a process lags, at half of the silence that would condemn it; and its return."""
    lags = child.booted and child.watch.blamed_s >= context.times.silence_s / 2
    if lags is child.lagging or child.condemned:
        return
    child.lagging = lags
    context.events(
        f"{'worker' if child.role == 'shard' else 'control'}_{'lags' if lags else 'beats_again'}",
        "warning" if lags else "info", where=child.berth, pid=child.pid, seat=child.seat,
        silent_s=round(child.watch.silence_s(now), 2) if lags else None,
    )  # fmt: skip


def _condemn(context: Context, child: Child, why: str, now: float) -> None:
    context.events(
        "worker_hangs" if child.role == "shard" else "control_hangs", "error",
        pid=child.pid, seat=child.seat, why=why,
        silent_s=round(child.watch.silence_s(now), 2), action="abort",
    )  # fmt: skip
    child.condemned, child.aborted_at = why, now
    context.hands.signal(child, signal.SIGABRT)
    context.hands.signal(child, signal.SIGCONT)
    _leave_berth(context, child, now)


def _finish(context: Context, child: Child, now: float) -> None:
    if child.aborted_at is not None and now - child.aborted_at >= context.times.kill_grace_s:
        _kill(context, child)


def _kill(context: Context, child: Child) -> None:
    if not child.killed:
        child.killed = True
        context.events("killing", "warning", pid=child.pid, seat=child.seat)
        context.hands.signal(child, signal.SIGKILL)


def bury(context: Context, child: Child, status: int, now: float) -> None:
    """Record a reaped child's death and clear its seat."""
    house = context.house
    house.children.remove(child)
    house.left_at[child.seat] = now
    words = context.hands.last_words(child)
    context.hands.vacate(child)
    berth = house.berth_of(child)
    expected = child.intent >= Intent.DRAIN and not child.condemned
    if expected and status == 0:
        context.events("process_ended", pid=child.pid, seat=child.seat, role=child.role)
        return
    context.events(
        f"{'worker' if child.role == 'shard' else 'control'}_died",
        "warning" if expected else "error",
        where=child.berth, pid=child.pid, seat=child.seat,
        **_cause(child, status), lived_s=round(now - child.started_at, 2), last_words=words or None,
    )  # fmt: skip
    if berth is not None:
        berth.refused = not child.booted and status in REFUSALS
        berth.last_words = words or _summary(child, status)
    _leave_berth(context, child, now)


def _leave_berth(context: Context, child: Child, now: float) -> None:
    berth = context.house.berth_of(child)
    if berth is None:
        return
    if child is berth.successor:
        berth.successor = None
        context.house.roll_failure = f"{berth.name}: the replacement died: {berth.last_words}"
        berth.intensity.died(now, now - child.started_at, refused=berth.refused)
        return
    berth.child = None
    berth.died_at = now
    berth.restarts += 1
    context.house.restarts += 1
    berth.boot_failures = 0 if child.booted else berth.boot_failures + 1
    berth.intensity.died(now, now - child.started_at, refused=berth.refused)
    pause_s = berth.intensity.pause_s(now)
    if berth.intensity.level:
        context.events("backing_off", "error", where=berth.name, pause_s=round(pause_s, 1))


def _cause(child: Child, status: int) -> dict[str, str | int | None]:
    if status >= 0:
        return {"exit_code": status}
    name = signal.Signals(-status).name
    if name == "SIGKILL" and not child.killed:
        return {"signal": name, "hint": "not sent by us, perhaps out of memory"}
    return {"signal": name, "hint": child.condemned or None}


def _summary(child: Child, status: int) -> str:
    return ", ".join(str(part) for part in _cause(child, status).values() if part is not None)
