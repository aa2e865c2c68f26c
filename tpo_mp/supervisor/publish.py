"""Tells the workers who serves and who accepts where; the last verb of a turn.

Invariants: words that did not change are not written, so a quiet host costs its workers nothing.
"""

from __future__ import annotations

from tpo_mp.shm.plane import NO_SEAT, Plane

from .hands import Context
from .slotmap import MOVE_AFTER_S, SlotView, acceptors, buckets
from .state import Berth


class Publisher:
    """Writes slot lines and slot map."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._views: list[SlotView] = []

    def publish(self, context: Context, now: float) -> None:
        """Publish what changed since the last turn."""
        slots = context.house.slots
        silences = [_silence_s(slot, now) for slot in slots]
        views = [
            _view(context, slot, silence, now)
            for slot, silence in zip(slots, silences, strict=True)
        ]
        silent = [silence >= context.times.takeover_s for silence in silences]
        for slot, view, acceptor in zip(slots, views, acceptors(views, silent), strict=True):
            self._plane.set_slot(slot.index, seat=view.seat, acceptor=acceptor)
        if views != self._views:
            self._views = views
            self._plane.publish_map(buckets(views))
        if self._plane.restarts_total != context.house.restarts:
            self._plane.restarts_total = context.house.restarts


def _view(context: Context, slot: Berth, silence_s: float, now: float) -> SlotView:
    healthy = slot.served and silence_s < MOVE_AFTER_S
    if healthy:
        _note_return(context, slot, now)
    elif slot.down_at is None:
        slot.down_at = now - silence_s if slot.served else now
    moved = slot.down_at is not None and now - slot.down_at >= MOVE_AFTER_S
    return SlotView(NO_SEAT if slot.child is None else slot.child.seat, healthy, moved)


def _note_return(context: Context, slot: Berth, now: float) -> None:
    slot.down_at = None
    slot.boot_failures = 0
    if slot.died_at is not None and slot.child is not None:
        took_ms = round((now - slot.died_at) * 1000)
        context.events(
            "worker_replaced", slot=slot.index, pid=slot.child.pid, seat=slot.child.seat,
            in_ms=took_ms,
        )  # fmt: skip
        slot.died_at = None


def _silence_s(slot: Berth, now: float) -> float:
    return float("inf") if slot.child is None else slot.child.watch.silence_s(now)
