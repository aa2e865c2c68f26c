"""Builds one host of a compiled configuration, runs its loop, and clears everything away.

Order matters: lock the state directory (the config's port names it), bind the ports, make the
memory, and only then start processes.  With ``port = 0`` the ports come first.

Invariants: whatever fails before the loop leaves nothing behind and is one line with an exit code;
after the loop no process, socket or file of ours is left, but for calls nobody could harvest.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from tpo_mp.config.blob import ProcessView, process_view
from tpo_mp.config.state_path import state_path
from tpo_mp.errors import ExitCode
from tpo_mp.shm.registry import Registry

from . import placement
from .cradle import Cradle
from .engine_docks import EngineDocks
from .engine_records import clear_leftovers
from .engines import EngineHouse
from .events import EventLog
from .hands import Context, RealHands
from .loop import HostLoop, Parts, limits_of, times_of
from .memory import HostMemory
from .pinning import PinningPlan
from .reload import Compile
from .sdnotify import ServiceNotifier
from .signals import SignalQueue
from .sockets import Listeners, open_listeners
from .spawn import Nursery
from .state import House
from .statedir import StateDir


def run(blob: bytes, config_path: Path | None, compile_now: Compile, cradle: Cradle) -> int:
    """Run a host until it ends; return the exit code.  Raises ``TpoError`` or ``OSError``."""
    with contextlib.ExitStack() as stack:
        return _run(stack, blob, config_path, compile_now, cradle)


def _run(
    stack: contextlib.ExitStack,
    blob: bytes,
    config_path: Path | None,
    compile_now: Compile,
    cradle: Cradle,
) -> int:
    view = process_view(blob)
    events = EventLog(view.observability.log_format, view.observability.log_level)
    for warning in view.warnings:
        events("config_warning", "warning", warning=warning)
    plan = _deal(view, events)
    house = House.build(plan.slots, limits_of(view))
    state_dir, listeners = _claim(stack, view, len(plan.slots), events)
    memory = _memory(stack, view, house, state_dir, events)
    signals = SignalQueue()
    stack.callback(signals.close)
    nursery = Nursery(memory, listeners, state_dir.path, cradle)
    stack.callback(nursery.close)
    for name in clear_leftovers(state_dir.path):
        events("old_engine_killed", "warning", engine=name)
    docks = EngineDocks(memory.engine_rings, memory.engine_bells, memory.doorbells)
    engines = EngineHouse(
        state_dir.path, events, limits_of(view), docks, dict(plan.engines), placement.more(plan)
    )
    stack.callback(engines.close)
    service = ServiceNotifier()
    stack.callback(service.close)
    context = Context(house, times_of(view), RealHands(memory, nursery), events)
    memory.publish_config(1, blob)
    supervisor = HostLoop(
        Parts(
            context, memory, nursery, listeners, signals, service, state_dir, config_path, blob,
            compile_now, engines,
        )
    )  # fmt: skip
    stack.callback(supervisor.close)
    code, reason = supervisor.run()
    if code is not ExitCode.OK:
        events("giving_up", "error", exit_code=int(code), reason=reason)
    return int(code)


def _deal(view: ProcessView, events: EventLog) -> PinningPlan:
    """Deal the cores out to workers and engines; tell of engines that get fewer than they ask."""
    needs = placement.needs_of(view.engines)
    workers = view.server.workers
    if workers == "auto":
        cores = len(placement.cores())
        workers = placement.beside(needs, cores, placement.auto_workers())
    plan = placement.deal(workers, needs)
    for name in plan.short:
        events("engine_gets_fewer_cores", "warning", engine=name, pinning=plan.reason)
    return plan


def _claim(
    stack: contextlib.ExitStack, view: ProcessView, workers: int, events: EventLog
) -> tuple[StateDir, Listeners]:
    """Lock the state directory and bind the ports, whichever can come first."""
    server = view.server
    state_dir = None
    if server.state_dir or server.port:
        state_dir = StateDir(_state_path(view, server.port))
        stack.callback(state_dir.close)
    listeners = open_listeners(
        server.host, server.port, server.ops_port, slots=workers,
        shared=not placement.balances(), ops_explicit=view.ops_port_given,
    )  # fmt: skip
    stack.callback(listeners.close)
    if listeners.ops_moved:
        events("ops_port_taken", "warning", wanted=server.ops_port, using=listeners.ops_port)
    if state_dir is None:
        state_dir = StateDir(_state_path(view, listeners.port))
        stack.callback(state_dir.close)
    return state_dir, listeners


def _state_path(view: ProcessView, port: int) -> Path:
    return state_path(view.server.state_dir, port)


def _memory(
    stack: contextlib.ExitStack,
    view: ProcessView,
    house: House,
    state_dir: StateDir,
    events: EventLog,
) -> HostMemory:
    wanted = Registry.size(house.seats, view.server.max_open_calls)
    registry = state_dir.new_registry(wanted)
    if state_dir.passed_over:
        events(
            "registry_on_disk", "warning", wanted_bytes=wanted, path=str(registry),
            no_room_on=state_dir.passed_over,
        )  # fmt: skip
    # Linked first: whatever happens from here on, the next start finds the file.
    state_dir.link_registry(registry)
    try:
        memory = HostMemory(
            workers=len(house.slots),
            seats=house.seats,
            install_key=state_dir.install_key(),
            max_open=view.server.max_open_calls,
            cache_bytes=view.server.cache_bytes,
            registry=registry,
            engines=len(view.engines),
        )
    except BaseException:
        state_dir.drop_registry()
        raise
    stack.callback(memory.close)

    def drop_registry() -> None:
        if memory.nothing_left_open():
            state_dir.drop_registry(memory.registry.run)

    stack.callback(drop_registry)
    return memory
