"""What ``tpo-mp status`` shows of the processes, as plain data."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import tpo_mp
from tpo_mp.config.blob import BackendView
from tpo_mp.shm.lifeline import RESTART_NEEDED
from tpo_mp.shm.plane import HostState, Plane, SeatState

from .engines import EngineHouse
from .placement import UNPINNED
from .sockets import Listeners
from .state import Berth, Child, Desired, House, Intent


def status(
    house: House,
    desired: Desired,
    plane: Plane,
    listeners: Listeners,
    backends: Sequence[BackendView],
    state_of: Callable[[str], str],
    engines: EngineHouse,
    started_at: float,
    now: float,
) -> dict[str, Any]:
    """Describe the host; every value is JSON."""
    filling = {id(child) for berth in house.berths for child in (berth.child, berth.successor)}
    return {
        "ok": True,
        "state": HostState(plane.host_state).name.lower(),
        "version": tpo_mp.__version__,
        "supervisor": {"pid": os.getpid(), "uptime_s": round(now - started_at, 1)},
        "host": listeners.host,
        "port": listeners.port,
        "ops_port": listeners.ops_port,
        "config_epoch": plane.config_epoch,
        "restarts": house.restarts,
        "slots": [{"slot": slot.index, **_berth(slot, plane, now)} for slot in house.slots],
        "spare": _berth(house.spare, plane, now),
        "control": _berth(house.control, plane, now),
        "retiring": [
            _child(child, plane, now) for child in house.children if id(child) not in filling
        ],
        "backends": [
            {
                "name": backend.name,
                "kind": backend.kind,
                "models": list(backend.models),
                "state": state_of(backend.name),
            }
            for backend in backends
        ],
        "engines": engines.status(now),
        "rolling": desired.rolling,
        "degraded": degraded(house, engines),
        "restart_needed": restart_needed(house),
    }


def degraded(house: House, engines: EngineHouse) -> list[str]:
    """Name berths and engines that should serve and do not; nothing before the host is ready."""
    if house.ready_at is None:
        return []
    missing = [berth.name for berth in (*house.slots, house.control) if not berth.served]
    spare = house.spare
    missing += engines.missing()
    return missing + (["spare"] if spare.child is None and spare.intensity.level else [])


def restart_needed(house: House) -> list[str]:
    """Name the reasons for a restart: a child found another version or layout than ours."""
    said = {berth.last_words for berth in house.berths if berth.last_words}
    return sorted(words for words in said if words.startswith(RESTART_NEEDED))


def _berth(berth: Berth, plane: Plane, now: float) -> dict[str, Any]:
    described: dict[str, Any] = {
        "pid": None, "seat": None, "epoch": None, "beats": None, "beat_age_s": None,
        "config_epoch": None,
        "open_calls": 0, "loop_lag_us": 0, "version": None,
    }  # fmt: skip
    if berth.child is not None:
        described |= _child(berth.child, plane, now)
    else:
        described["state"] = "backing off" if berth.intensity.level else "down"
    return described | {
        "cpu": None if berth.cpu == UNPINNED else berth.cpu,
        "restarts": berth.restarts,
        "backoff_s": round(berth.intensity.pause_s(now), 1),
        "last_words": berth.last_words or None,
    }


def _child(child: Child, plane: Plane, now: float) -> dict[str, Any]:
    lines = plane.seat(child.seat)
    state = "booting" if child.state is SeatState.EMPTY else child.state.name.lower()
    return {
        "pid": child.pid,
        "seat": child.seat,
        "epoch": child.epoch,
        "state": child.condemned or ("stopping" if child.intent is Intent.STOP else state),
        "beats": lines.beat,
        "beat_age_s": round(child.watch.silence_s(now), 3),
        "config_epoch": lines.config_ack,
        "open_calls": lines.open_calls,
        "loop_lag_us": lines.loop_lag_us,
        "version": tpo_mp.__version__,
    }
