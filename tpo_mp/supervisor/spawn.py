"""How a child process starts: what it inherits, and nothing else.

``subprocess.Popen`` of a fresh interpreter with ``pass_fds``, from the main thread
(``PR_SET_PDEATHSIG`` follows the thread that forked).  Never ``multiprocessing``, never a fork of
this process: the child must share no state but what the handoff names.

Invariants: children get an allow-listed environment, so no provider key lies in theirs; their
standard error is ours; their standard input is empty.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import tpo_mp
from tpo_mp.shm.handoff import Handoff
from tpo_mp.shm.lifeline import IGNORED, words_path
from tpo_mp.shm.plane import LAYOUT

from . import placement
from .beats import BeatWatch
from .cradle import Cradle, clean_environment, module_command
from .memory import HostMemory
from .sockets import Listeners
from .state import Child, Intent, Role

REAP_S = 5.0


class Nursery:
    """Starts, signals and reaps child processes."""

    def __init__(
        self, memory: HostMemory, listeners: Listeners, state_dir: Path, cradle: Cradle
    ) -> None:
        self._memory = memory
        self._listeners = listeners
        self.state_dir = state_dir
        self.cradle = cradle
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._lifeline_fd, self._held_fd = os.pipe()
        self._listener_fds = [listener.fileno() for listener in listeners.slots]

    def spawn(
        self,
        seat: int,
        role: Role,
        slot: int,
        cpu: int,
        intent: Intent,
        generation: int,
        now: float,
    ) -> Child:
        """Start the occupant of ``seat``; raises ``OSError`` when the host has no process left."""
        words_path(str(self.state_dir), seat).unlink(missing_ok=True)
        epoch = self._memory.occupy(seat, slot, intent)
        handoff = self._handoff(seat, role, slot, cpu, epoch)
        process = self.cradle.take(role, handoff) or _started(role, handoff)
        self._processes[process.pid] = process
        self._memory.plane.seat(seat).pid = process.pid
        placement.pin(process.pid, cpu)
        return Child(
            seat=seat,
            epoch=epoch,
            role=role,
            generation=generation,
            pid=process.pid,
            started_at=now,
            watch=BeatWatch(now),
            intent=intent,
        )

    def signal(self, child: Child, number: signal.Signals) -> None:
        """Signal a child; its pid cannot have been reused, since only ``reap`` frees it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, number)

    def reap(self, child: Child) -> int | None:
        """Return the child's exit status (negative: the signal) once it is gone."""
        status = self._processes[child.pid].poll()
        if status is not None:
            del self._processes[child.pid]
        return status

    def reap_strangers(self) -> None:
        """Collect who was not needed; as process 1 of a container, the dead that others left us."""
        self.cradle.reap()
        if os.getpid() != 1:
            return
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if found.si_pid in self._processes:
                    return  # its turn comes in ``reap``
                os.waitpid(found.si_pid, 0)

    def last_words(self, child: Child) -> str:
        """Return the line the child left, or nothing."""
        try:
            path = words_path(str(self.state_dir), child.seat)
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def close(self) -> None:
        """Kill and reap whatever is left, and cut the lifeline."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            # One that the kernel cannot end (a dead disk) is left to whoever inherits it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(REAP_S)
        self._processes.clear()
        os.close(self._held_fd)
        os.close(self._lifeline_fd)

    def _handoff(self, seat: int, role: Role, slot: int, cpu: int, epoch: int) -> Handoff:
        memory, listeners = self._memory, self._listeners
        return Handoff(
            version=tpo_mp.__version__,
            layout=LAYOUT,
            role=role,
            seat=seat,
            slot=slot,
            epoch=epoch,
            workers=memory.plane.workers,
            seats=memory.plane.seats,
            cpu=cpu,
            supervisor_pid=os.getpid(),
            plane_fd=memory.plane.fd,
            rings_fd=memory.rings.fd,
            metrics_fd=memory.metrics.fd,
            registry_fd=memory.registry.fd,
            config_fd=memory.config.fd,
            locks_fd=memory.ledger.locks_fd,
            ledger_fd=memory.ledger.fd,
            quotas_fd=memory.quotas.fd,
            live_fd=memory.live.fd,
            journal_fd=memory.journal.fd,
            shares_fd=memory.shares.fd,
            scores_fd=memory.scores.fd,
            cache_fd=memory.cache.fd,
            claims_fd=memory.claims.fd,
            prefixes_fd=memory.prefixes.fd,
            engine_rings_fd=memory.engine_rings.fd,
            engine_bells=[bell.fds for bell in memory.engine_bells],
            doorbells=[bell.fds for bell in memory.doorbells],
            listeners=self._listener_fds if role == "shard" else [],
            ops_listener=listeners.ops.fileno() if role == "control" else -1,
            lifeline_fd=self._lifeline_fd,
            state_dir=str(self.state_dir),
            registry_path=str(memory.registry_path),
            host=listeners.host,
            port=listeners.port,
            ops_port=listeners.ops_port,
            portable=placement.portable(),
        )


def _started(role: Role, handoff: Handoff) -> subprocess.Popen[bytes]:
    # The child inherits the mask: a Ctrl-C must not meet an interpreter that is still starting.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        return subprocess.Popen(
            module_command(role, os.environ),
            stdin=subprocess.DEVNULL,
            env=clean_environment(os.environ) | handoff.to_env(),
            pass_fds=handoff.descriptors(),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
