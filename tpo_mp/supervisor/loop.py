"""The supervisor's loop: wait → apply → reap → judge → reconcile → publish, once per turn.

One thread and one blocking wait.  A turn takes under a millisecond; nothing in it waits for a
child, a client of the control socket, a log reader or the service manager.

Invariants: ``apply`` only changes what is desired; ``reconcile`` alone starts and retires; the loop
ends when the phase says so and no child is left, or when ``verdict`` gives up.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from tpo_mp.config.blob import ProcessView
from tpo_mp.errors import ExitCode
from tpo_mp.shm.plane import HostState

from .beats import cpu_sample
from .ctl import CommandSocket, Respond
from .engine_board import EngineBoard
from .engines import EngineHouse
from .events import Level, write_line
from .hands import Context
from .intensity import RestartLimits
from .judge import bury, judge
from .memory import HostMemory
from .publish import Publisher
from .reconcile import reconcile
from .reload import Compile, Reloader
from .sdnotify import ServiceNotifier
from .signals import SignalQueue
from .sockets import Listeners
from .spawn import Nursery
from .state import Desired, Times
from .statedir import StateDir
from .status import status
from .verdict import verdict
from .watch import FileWatch

TURN_MS = 100
BUSY_TURN_MS = 10
QUICK_STOP_S = 0.8
STOPPING = "the host is stopping"


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop works with; ``serve`` makes it and clears it away."""

    context: Context
    memory: HostMemory
    nursery: Nursery
    listeners: Listeners
    signals: SignalQueue
    service: ServiceNotifier
    state_dir: StateDir
    config_path: Path | None
    blob: bytes
    compile_now: Compile
    engines: EngineHouse


class HostLoop:
    """Runs one host until it is told, or forced, to end."""

    def __init__(self, parts: Parts) -> None:
        self.desired = Desired()
        self._parts = parts
        self._context = parts.context
        self._house = parts.context.house
        self._plane = parts.memory.plane
        self._publisher = Publisher(self._plane)
        self._engine_board = EngineBoard(parts.memory.ledger)
        self._started_at = monotonic()
        self._first_failure_at: float | None = None
        self._restart_replies: list[Respond] = []
        self._watch: FileWatch | None = None
        self._reloader = Reloader(parts.memory, parts.blob, parts.compile_now, self.adopt)
        self._tls = bool(self._reloader.view.server.tls.cert_file)
        self._commands = CommandSocket(parts.state_dir, self.command)
        self.adopt(self._reloader.view)

    def close(self) -> None:
        """Close what the loop itself opened."""
        self._reloader.close(STOPPING)
        self._commands.close()

    def adopt(self, view: ProcessView) -> None:
        """Go by the spans of a new configuration from now on."""
        self._context.times = times_of(view)
        self._context.events.log_format = view.observability.log_format
        self._context.events.least = view.observability.log_level
        self._parts.listeners.give_up_dead_peers(view.server.dead_peer_s, view.server.slow_reader_s)
        limits = limits_of(view)
        self._parts.engines.adopt(view.engines, limits)
        for berth in self._house.berths:
            berth.intensity.limits = limits
        path = self._parts.config_path
        if not view.supervisor.watch_config or path is None:
            self._watch = None
        elif self._watch is None:
            self._watch = FileWatch(path)

    def run(self) -> tuple[ExitCode, str]:
        """Loop; return how it ended and why."""
        while True:
            self._wait()
            now = monotonic()
            self._apply(now)
            self._reap(now)
            judge(self._context, self._plane, cpu_sample, now)
            reconcile(self._context, self.desired, now)
            self._keep_engines(now)
            self._publish(now)
            ended = self._verdict(now)
            if ended is not None:
                return ended

    # wait

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._parts.signals.fileno(), select.POLLIN)
        for fd in self._commands.filenos():
            poll.register(fd, select.POLLIN)
        poll.poll(TURN_MS if self._settled() else BUSY_TURN_MS)

    def _settled(self) -> bool:
        house = self._house
        return (
            self.desired.phase is HostState.RUNNING
            and not self.desired.rolling
            and not self._reloader.busy
            and all(berth.served for berth in (*house.slots, house.control))
        )

    # apply

    def _apply(self, now: float) -> None:
        for number in self._parts.signals.take():
            self._obey(number, now)
        self._commands.turn(now)
        if self._watch is not None and self._watch.changed(now):
            self._context.events("config_file_changed")
            self._reload(_nobody, now)
        if self.desired.phase is HostState.RUNNING:
            self._reloader.turn(self._context, now)

    def _obey(self, number: signal.Signals, now: float) -> None:
        self._context.events("signal", signal=number.name)
        if number is signal.SIGTERM:
            self.stop(now, quick=self.desired.phase is HostState.DRAINING)
        elif number in (signal.SIGINT, signal.SIGQUIT):
            self.stop(now, quick=True)
        elif number is signal.SIGHUP:
            self._reload(_nobody, now)
        elif number is signal.SIGUSR2:
            self._restart(_nobody)

    def stop(self, now: float, *, quick: bool) -> None:
        """Desire the end: after a drain, or at once."""
        first = self.desired.phase is HostState.RUNNING
        if quick:
            self.desired.phase = HostState.STOPPING
            self._context.times = replace(self._context.times, control_stop_s=QUICK_STOP_S)
        elif first:
            self.desired.phase = HostState.DRAINING
            self.desired.drain_by = now + self._context.times.drain_s
        self._plane.host_state = self.desired.phase
        if first:
            self._reloader.close(STOPPING)
            # The port closes when the last worker has emptied and closed its copies.
            self._parts.listeners.close_slots()
            self._parts.service.stopping()
            self._context.events("stopping" if quick else "draining")

    def _reload(self, reply: Respond, now: float) -> None:
        if self.desired.phase is not HostState.RUNNING:
            reply({"ok": False, "problems": [STOPPING]})
            return
        # Before the host is ready the service manager waits for its first READY, not for this one.
        told = self._house.ready_at is not None
        if told:
            self._parts.service.reloading(now)

        def done(answer: dict[str, Any]) -> None:
            if told and self.desired.phase is HostState.RUNNING:
                self._parts.service.ready("serving")
            reply(answer)

        self._reloader.request(done)

    def _restart(self, reply: Respond) -> None:
        if self._house.ready_at is None or self.desired.phase is not HostState.RUNNING:
            reply({"ok": False, "error": "the host is not running"})
            return
        if not self.desired.rolling:
            self.desired.generation += 1
            self.desired.rolling = True
            self._house.roll_failure = ""
            self._context.events("rolling_restart", generation=self.desired.generation)
        self._restart_replies.append(reply)

    def command(self, request: dict[str, Any], respond: Respond) -> None:
        """Carry out one request of the control socket."""
        now = monotonic()
        match request.get("command"):
            case "status":
                respond(self.status(now))
            case "reload":
                self._reload(respond, now)
            case "restart":
                self._restart(respond)
            case "stop":
                self.stop(now, quick=request.get("quick") is True)
                respond({"ok": True})
            case unknown:
                respond({"ok": False, "error": f"unknown command {unknown!r}"})

    def status(self, now: float) -> dict[str, Any]:
        """Describe the host and the last reload."""
        shown = status(
            self._house, self.desired, self._plane, self._parts.listeners,
            self._reloader.view.backends, self._parts.memory.state_of, self._parts.engines,
            self._started_at, now,
        )  # fmt: skip
        reloader = self._reloader
        fixed = [f"server.{name} changed" for name in reloader.restart_for]
        return shown | {
            "url": self._parts.listeners.url(tls=self._tls),
            "restart_needed": shown["restart_needed"] + fixed,
            "last_reload": reloader.last or None,
            "state_dir": str(self._parts.state_dir.path),
        }

    # reap

    def _reap(self, now: float) -> None:
        for child in list(self._house.children):
            exit_status = self._parts.nursery.reap(child)
            if exit_status is None:
                continue
            bury(self._context, child, exit_status, now)
            if not child.booted and self._first_failure_at is None:
                self._first_failure_at = now
        self._parts.nursery.reap_strangers()

    # engines

    def _keep_engines(self, now: float) -> None:
        engines = self._parts.engines
        quick = self.desired.phase is HostState.STOPPING
        # Calls that are let finish may be theirs.
        if self.desired.phase is not HostState.RUNNING and not self._house.shards:
            engines.stop(now, quick=quick)
        engines.turn(now)
        self._engine_board.tell(engines, now)

    # publish

    def _publish(self, now: float) -> None:
        if self.desired.phase is HostState.RUNNING:
            # While draining the map stays as it was: who is left finishes what it has.
            self._publisher.publish(self._context, now)
        self._plane.host_state = (
            HostState.STARTING
            if self._house.ready_at is None and self.desired.phase is HostState.RUNNING
            else self.desired.phase
        )
        if self._house.ready_at is None and self.desired.phase is HostState.RUNNING:
            self._announce(now)
        self._answer_restarts()
        self._parts.service.ping(now)

    def _announce(self, now: float) -> None:
        house, listeners = self._house, self._parts.listeners
        if not all(berth.served for berth in (*house.slots, house.control)):
            return
        house.ready_at = now
        cradle = self._parts.nursery.cradle
        cradle.empty()
        self._plane.host_state = HostState.RUNNING
        line = ready_line(listeners, len(house.slots), tls=self._tls)
        write_line(sys.stdout, line)
        self._parts.service.ready("serving")
        took_ms = round((now - self._started_at) * 1000)
        self._context.events("ready", boot_ms=took_ms, imported_early=cradle.taken)

    def _answer_restarts(self) -> None:
        failure = self._house.roll_failure
        if self.desired.phase is not HostState.RUNNING:
            failure = failure or STOPPING
        if failure:
            self.desired.rolling = False
        if self.desired.rolling or not self._restart_replies:
            return
        for reply in self._restart_replies:
            reply({"ok": not failure, "error": failure} if failure else {"ok": True})
        level: Level = "error" if failure else "info"
        self._context.events("rolling_restart_ended", level, failure=failure or None)
        self._restart_replies.clear()

    # the end

    def _verdict(self, now: float) -> tuple[ExitCode, str] | None:
        if self.desired.phase is not HostState.RUNNING:
            ended = not self._house.children and self._parts.engines.empty
            return (ExitCode.OK, "stopped") if ended else None
        return verdict(self._house, self._first_failure_at, now)


def ready_line(listeners: Listeners, workers: int, *, tls: bool) -> str:
    """Return the one line that others wait for; its form is a contract."""
    return (
        f"tpo-mp ready {listeners.url(tls=tls)} workers={workers} pid={os.getpid()} "
        f"ops={listeners.ops_url}"
    )


def times_of(view: ProcessView) -> Times:
    """Return the spans a configuration asks for."""
    options = view.supervisor
    return Times(
        silence_s=options.beat_silence_s,
        kill_grace_s=options.kill_grace_s,
        takeover_s=options.takeover_ms / 1000,
        drain_s=view.server.drain_s,
    )


def limits_of(view: ProcessView) -> RestartLimits:
    """Return the restart limits a configuration asks for."""
    options = view.supervisor
    return RestartLimits(
        deaths=options.intensity,
        window_s=options.intensity_window_s,
        backoff_min_s=options.backoff_min_s,
        backoff_max_s=options.backoff_max_s,
    )


def _nobody(_answer: dict[str, Any]) -> None:
    """Take an answer nobody waits for."""
