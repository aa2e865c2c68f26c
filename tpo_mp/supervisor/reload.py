"""Changes the configuration of a running host, or leaves it wholly as it was.

::

    IDLE --request--> COMPILING --blob--> ADOPTING --every ack--> IDLE: done
                          |                   |----2 s of silence--> IDLE: done, named as late
                          |                   `----one NACK-------> IDLE: old blob, new epoch
                          `--problems--> IDLE: refused, nothing published

Invariants: the loop never waits here; one reload at a time, and requests during one are answered by
one more run; a veto republishes the previous blob under a new epoch, so epochs only grow; time in
which the supervisor itself stood still is no silence of a worker's.
Known weakness: what was sized at start (workers, ports, shared memory) changes at a restart only;
it is reported, not applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tpo_mp.config.blob import ProcessView, process_view
from tpo_mp.errors import ConfigError
from tpo_mp.shm.lifeline import RESTART_NEEDED

from .beats import MAX_STEP_S
from .compiling import Compilation, Compiled
from .hands import Context
from .memory import HostMemory
from .state import Child

ACK_WAIT_S = 2.0
FIXED = ("host", "port", "workers", "ops_port", "state_dir")
"""Fields of ``[server]`` that only a restart applies; until then the old ones stay in force."""
SIZED = ("max_open_calls", "cache_bytes")
"""Fields of ``[server]`` that the shared memory was sized by: a change would fit no new child."""

Answer: TypeAlias = dict[str, Any]
Compile: TypeAlias = Callable[[float, Mapping[str, int]], Compilation]
"""Begins to compile at a time, for engines that have these ports."""
Reply: TypeAlias = Callable[[Answer], None]


@dataclass(slots=True)
class _Adoption:
    epoch: int
    blob: bytes
    view: ProcessView
    waiting: list[Child]
    looked_at: float
    silent_s: float = 0.0


class Reloader:
    """Runs reloads one after the other."""

    def __init__(
        self,
        memory: HostMemory,
        blob: bytes,
        compile_now: Compile,
        adopted: Callable[[ProcessView], None],
    ) -> None:
        self.blob = blob
        self.view = process_view(blob)
        self.restart_for: list[str] = []
        self.last: Answer = {}
        self._memory = memory
        self._compile = compile_now
        self._adopted = adopted
        self._started = self.view
        self._requests: list[Reply] = []
        self._serving: list[Reply] = []
        self._compilation: Compilation | None = None
        self._adoption: _Adoption | None = None

    @property
    def busy(self) -> bool:
        """Say whether a reload is under way or asked for."""
        return bool(self._requests or self._compilation or self._adoption)

    def request(self, reply: Reply) -> None:
        """Ask for a reload; ``reply`` gets its result."""
        self._requests.append(reply)

    def turn(self, context: Context, now: float) -> None:
        """Take the reload as far as it goes without waiting."""
        if self._adoption is not None:
            self._collect(context, self._adoption, now)
        elif self._compilation is not None:
            compiled = self._compilation.poll(now)
            if compiled is not None:
                self._compilation = None
                self._publish(context, compiled, now)
        elif self._requests:
            self._serving, self._requests = self._requests, []
            context.events("reloading")
            try:
                self._compilation = self._compile(now, self._ports())
            except OSError as error:
                self._finish(context, ok=False, problems=[f"cannot compile: {error}"])

    def _ports(self) -> dict[str, int]:
        """Engines that nobody gave a port keep the one they were given by chance."""
        return {engine.name: engine.port for engine in self.view.engines}

    def close(self, why: str) -> None:
        """Drop a run that is under way, and answer whoever waits for one."""
        if self._compilation is not None:
            self._compilation.cancel()
        self._compilation = self._adoption = None
        waiting, self._serving, self._requests = [*self._serving, *self._requests], [], []
        for reply in waiting:
            reply({"ok": False, "problems": [why]})

    def _publish(self, context: Context, compiled: Compiled, now: float) -> None:
        try:
            view = process_view(compiled.blob) if compiled.exit_code == 0 else None
        except (ConfigError, ValueError) as error:
            # The compiler child runs the code on disk, which may be newer than ours.
            view, compiled = None, Compiled(b"", (f"{RESTART_NEEDED}: {error}",), 2)
        if view is None:
            self._finish(context, ok=False, problems=list(compiled.problems))
            return
        fixed = self._changed(view, SIZED)
        if bool(view.server.tls.cert_file) != bool(self._started.server.tls.cert_file):
            fixed.append("tls")  # workers that start later would speak it, the others would not
        if fixed:
            problems = [f"server.{name} changes at a restart only" for name in fixed]
            self._finish(context, ok=False, problems=problems)
            return
        epoch = self._memory.plane.config_epoch + 1
        waiting = [child for child in context.house.children if child.serving]
        try:
            self._memory.publish_config(epoch, compiled.blob)
        except ConfigError as error:  # larger than its buffer
            self._finish(context, ok=False, problems=[str(error)])
            return
        self._adoption = _Adoption(epoch, compiled.blob, view, waiting, now)

    def _collect(self, context: Context, adoption: _Adoption, now: float) -> None:
        still = []
        for child in adoption.waiting:
            lines = self._memory.plane.seat(child.seat)
            if child not in context.house.children or lines.config_ack >= adoption.epoch:
                continue
            if lines.config_nack == adoption.epoch:
                self._veto(context, adoption, child)
                return
            still.append(child)
        adoption.waiting = still
        adoption.silent_s += min(now - adoption.looked_at, MAX_STEP_S)
        adoption.looked_at = now
        if still and adoption.silent_s < ACK_WAIT_S:
            return
        self._adoption = None
        self.blob, self.view = adoption.blob, adoption.view
        self.restart_for = self._changed(adoption.view, FIXED)
        self._adopted(adoption.view)
        self._finish(
            context, ok=True, epoch=adoption.epoch, late=[child.seat for child in still],
            warnings=list(adoption.view.warnings), restart_for=self.restart_for,
        )  # fmt: skip

    def _changed(self, view: ProcessView, names: tuple[str, ...]) -> list[str]:
        was, now = self._started.server, view.server
        return [name for name in names if getattr(was, name) != getattr(now, name)]

    def _veto(self, context: Context, adoption: _Adoption, child: Child) -> None:
        self._adoption = None
        epoch = adoption.epoch + 1
        self._memory.publish_config(epoch, self.blob)
        words = context.hands.last_words(child) or "no reason given"
        self._finish(
            context, ok=False, epoch=epoch, problems=[f"seat {child.seat} refused: {words}"]
        )

    def _finish(self, context: Context, *, ok: bool, **fields: Any) -> None:
        self.last = {"ok": ok, **fields}
        told = {name: str(value) for name, value in fields.items() if value not in ([], None)}
        context.events("reloaded" if ok else "reload_refused", "info" if ok else "error", **told)
        serving, self._serving = self._serving, []
        for reply in serving:
            reply(self.last)
