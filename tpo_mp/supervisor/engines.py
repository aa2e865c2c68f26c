"""The engines of the host: which should run, which do, and when one is started again.

::

    DOWN --start--> LOADING --answers--> READY --ends--> DOWN, after a pause
                       `------ends------> DOWN (BACKING OFF while it must wait, FAILED: never again)
    any  --no longer wanted, or wanted otherwise--> STOPPING --gone--> DOWN

A keeper process (``engine_keeper``) stands between us and each engine; this file starts keepers,
reads what they say and judges by the rule of ``intensity``.  An engine that refuses to start
backs off at once: what is wrong with it (no such file, a port that is taken) may be put right.

Invariants: nothing here waits; an engine that does not start or keeps dying never ends the host; a
keeper that dies takes its engine along; a changed engine is stopped before it is started anew, and
one that did not change is not touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from tpo_mp.config.engines import EngineSection
from tpo_mp.shm.lifeline import IGNORED

from .cradle import clean_environment
from .engine_docks import NO_TICKET, EngineDocks, Ticket, descriptors
from .engine_keeper import ENDED, REFUSED
from .engine_records import kill_engine, read_record, record_path
from .events import EventLog
from .intensity import Intensity, RestartLimits

EngineState: TypeAlias = Literal["down", "loading", "ready", "stopping", "backing off", "failed"]
MoreCpus: TypeAlias = Callable[[EngineSection, Mapping[str, tuple[int, ...]]], tuple[int, ...]]
"""The CPUs of one more engine beside those of others, by name; none is no error."""
KEEPER_GRACE_S = 3.0
QUICK_S = 2.0
READ_BYTES = 65_536
MAX_SAID = 65_536


@dataclass(eq=False, slots=True)
class EngineBerth:
    """One engine: how it is wanted, the keeper it has now, and what became of those before."""

    wanted: EngineSection | None
    intensity: Intensity
    name: str
    running: EngineSection | None = None
    keeper: subprocess.Popen[bytes] | None = None
    state_fd: int = -1
    life_fd: int = -1
    said: bytes = b""
    state: EngineState = "down"
    pid: int | None = None
    restarts: int = 0
    starts: int = 0
    words: str = ""
    started_at: float = 0.0
    ready_at: float | None = None
    stop_by: float | None = None
    told: bytes = b""
    cpus: tuple[int, ...] = ()
    ticket: Ticket = field(default_factory=lambda: NO_TICKET)

    @property
    def shown(self) -> EngineSection | None:
        """The settings it runs by, or would."""
        return self.running or self.wanted


@dataclass(slots=True)
class EngineHouse:
    """Every engine of the host."""

    state_dir: Path
    events: EventLog
    limits: RestartLimits
    docks: EngineDocks
    cpus: dict[str, tuple[int, ...]] = field(default_factory=dict)
    more_cpus: MoreCpus | None = None
    """Where there are cores for an engine that was not there when they were dealt."""
    berths: dict[str, EngineBerth] = field(default_factory=dict)
    stopping: bool = False

    def adopt(self, engines: Sequence[EngineSection], limits: RestartLimits) -> None:
        """Want these engines from now on."""
        self.limits = limits
        wanted = {engine.name: engine for engine in engines}
        for name, engine in wanted.items():
            berth = self.berths.get(name)
            if berth is None:
                self.berths[name] = EngineBerth(engine, Intensity(limits), name)
            elif berth.wanted != engine:
                # Whatever was wrong with it may be what was changed.
                berth.wanted, berth.intensity, berth.words = engine, Intensity(limits), ""
                if berth.state in ("backing off", "failed"):
                    berth.state = "down"
        for name, berth in self.berths.items():
            berth.intensity.limits = limits
            if name not in wanted:
                berth.wanted = None

    @property
    def empty(self) -> bool:
        """Whether no engine runs any more."""
        return all(berth.keeper is None for berth in self.berths.values())

    @property
    def ports(self) -> dict[str, int]:
        """The port of every engine, by its name."""
        found = ((name, berth.shown) for name, berth in self.berths.items())
        return {name: engine.port for name, engine in found if engine is not None}

    def stop(self, now: float, *, quick: bool) -> None:
        """End them all; none is started again."""
        self.stopping = True
        for berth in self.berths.values():
            self._stop(berth, now, b"q" if quick else b"s")

    def turn(self, now: float) -> None:
        """Take one turn: listen, reap, stop and start."""
        for name, berth in list(self.berths.items()):
            self._listen(berth, now)
            self._reap(berth, now)
            wanted = None if self.stopping else berth.wanted
            if berth.keeper is not None:
                if berth.running != wanted:
                    self._stop(berth, now, b"s")
                self._hurry(berth, now)
            elif wanted is None:
                if not self.stopping:
                    del self.berths[name]
            elif berth.state != "failed" and berth.intensity.may_start(now):
                self._start(berth, wanted, now)

    def status(self, now: float) -> list[dict[str, Any]]:
        """Describe every engine for people."""
        return [_row(berth, self.docks, now) for berth in self.berths.values()]

    def missing(self) -> list[str]:
        """Name those that should serve and do not."""
        found = [b for b in self.berths.values() if b.wanted is not None and b.state != "ready"]
        return [f"engine {berth.name}" for berth in found]

    def close(self) -> None:
        """Kill whatever is left, when nobody has the time to end it well."""
        for berth in self.berths.values():
            if berth.keeper is not None:
                self._tell(berth, b"k")
        for berth in self.berths.values():
            if berth.keeper is None:
                continue
            with contextlib.suppress(subprocess.TimeoutExpired):
                berth.keeper.wait(QUICK_S)
            berth.keeper.kill()
            berth.keeper.wait()
            self._sweep(berth)
            self._leave(berth)
            self._let_go(berth)

    def _leave(self, berth: EngineBerth) -> None:
        """Give its dock back: nothing of it lives."""
        ticket, berth.ticket = berth.ticket, NO_TICKET
        self.docks.leave(ticket)

    # start

    def _start(self, berth: EngineBerth, wanted: EngineSection, now: float) -> None:
        berth.intensity.started(now)
        if self.more_cpus is not None and not self.cpus.get(berth.name):
            for gone in self.cpus.keys() - self.berths.keys():
                del self.cpus[gone]
            self.cpus[berth.name] = self.more_cpus(wanted, self.cpus)
        berth.cpus = tuple(self.cpus.get(berth.name, ()))
        if wanted.rings:
            berth.ticket = self.docks.take(berth.name)
        state_fd, theirs_to_say = os.pipe()
        theirs_to_hear, life_fd = os.pipe()
        try:
            keeper = self._spawn(berth, wanted, theirs_to_say, theirs_to_hear)
        except OSError as error:
            os.close(state_fd)
            os.close(life_fd)
            self._leave(berth)
            berth.words = f"cannot start a process: {error.strerror}"
            berth.intensity.died(now, 0.0)
            berth.state = "backing off" if berth.intensity.level else "down"
            self.events("cannot_start_a_process", "error", where=f"engine {berth.name}",
                        reason=str(error))  # fmt: skip
            return
        finally:
            os.close(theirs_to_say)
            os.close(theirs_to_hear)
        os.set_blocking(state_fd, False)
        berth.keeper, berth.running = keeper, wanted
        berth.state_fd, berth.life_fd = state_fd, life_fd
        berth.said, berth.told = b"", b""
        berth.started_at = now
        berth.state = "loading"
        berth.restarts += berth.starts > 0
        berth.starts += 1
        self.events(
            "engine_starting", engine=berth.name, kind=wanted.kind, port=wanted.port,
            model=wanted.model or None,
        )  # fmt: skip

    def _spawn(
        self, berth: EngineBerth, wanted: EngineSection, state_fd: int, life_fd: int
    ) -> subprocess.Popen[bytes]:
        order = {
            "engine": msgspec.to_builtins(wanted, enc_hook=lambda secret: secret.reveal()),
            "state_dir": str(self.state_dir),
            "cpus": list(berth.cpus),
            "state_fd": state_fd,
            "life_fd": life_fd,
            "ticket": dict(berth.ticket),
        }
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        try:
            # An unnamed file, not a pipe: nobody has to wait until it is read.
            with tempfile.TemporaryFile() as request:
                request.write(json.dumps(order).encode())
                request.seek(0)
                return subprocess.Popen(
                    [sys.executable, "-P", "-m", "tpo_mp.supervisor.engine_keeper"],
                    stdin=request, env=clean_environment(os.environ),
                    pass_fds=(state_fd, life_fd, *descriptors(berth.ticket)),
                )  # fmt: skip
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    # listen and reap

    def _listen(self, berth: EngineBerth, now: float) -> None:
        if berth.state_fd < 0:
            return
        with contextlib.suppress(BlockingIOError):
            while part := os.read(berth.state_fd, READ_BYTES):
                berth.said = (berth.said + part)[-MAX_SAID:]
        *lines, berth.said = berth.said.split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                self._heard(berth, json.loads(line), now)

    def _heard(self, berth: EngineBerth, said: dict[str, Any], now: float) -> None:
        berth.words = str(said.get("words", berth.words))
        if "pid" in said:
            berth.pid = int(said["pid"])
        if said.get("state") == "ready" and berth.state == "loading":
            berth.state, berth.ready_at, berth.words = "ready", now, ""
            self.events(
                "engine_ready", engine=berth.name, pid=berth.pid,
                in_s=round(now - berth.started_at, 1),
            )  # fmt: skip

    def _reap(self, berth: EngineBerth, now: float) -> None:
        status = berth.keeper.poll() if berth.keeper is not None else None
        if status is None:
            return
        self._listen(berth, now)  # its last words
        self._sweep(berth)
        stopped = berth.state == "stopping"
        lived_s = now - (berth.ready_at or now)
        if status not in (0, ENDED, REFUSED):
            berth.words = f"its keeper ended with {status}"
        told = {"engine": berth.name, "pid": berth.pid, "lived_s": round(now - berth.started_at, 1)}
        ran = berth.running
        self._leave(berth)
        self._let_go(berth)
        if stopped:
            self.events("engine_stopped", **told)
            berth.state = "down"
            return
        refused = status == REFUSED
        # One that never served failed to boot: the next try will most likely end as this one.
        berth.intensity.died(now, lived_s, refused=refused)
        event = "engine_refused" if refused else "engine_died"
        self.events(event, "error", **told, reason=berth.words or None)
        if ran is not None and self._is_done(ran, status, berth.words):
            berth.state = "failed"
        elif berth.intensity.level:
            berth.state = "backing off"
            self.events(
                "backing_off", "error", where=f"engine {berth.name}",
                pause_s=round(berth.intensity.pause_s(now), 1),
            )  # fmt: skip
        else:
            berth.state = "down"

    @staticmethod
    def _is_done(ran: EngineSection, status: int, words: str) -> bool:
        if status == REFUSED or ran.restart == "always":
            return False
        return ran.restart == "never" or words.startswith("exit code 0")

    def _sweep(self, berth: EngineBerth) -> None:
        """Kill what a keeper left behind that did not end as it should."""
        path = record_path(self.state_dir, berth.name)
        record = read_record(path)
        if record is not None:
            kill_engine(record, passes=1)
            path.unlink(missing_ok=True)

    # stop

    def _stop(self, berth: EngineBerth, now: float, word: bytes) -> None:
        if berth.keeper is None or berth.told in (word, b"q"):
            return
        engine = berth.running
        grace_s = engine.stop_grace_s if engine is not None and word == b"s" else QUICK_S
        berth.state = "stopping"
        berth.stop_by = now + grace_s + KEEPER_GRACE_S
        berth.told = word
        self._tell(berth, word)

    def _hurry(self, berth: EngineBerth, now: float) -> None:
        if berth.stop_by is not None and now >= berth.stop_by and berth.keeper is not None:
            self.events("killing", "warning", pid=berth.keeper.pid, engine=berth.name)
            berth.stop_by = float("inf")
            berth.keeper.kill()

    @staticmethod
    def _tell(berth: EngineBerth, word: bytes) -> None:
        with contextlib.suppress(OSError):  # it ended already
            os.write(berth.life_fd, word)

    @staticmethod
    def _let_go(berth: EngineBerth) -> None:
        for fd in (berth.state_fd, berth.life_fd):
            with contextlib.suppress(OSError):
                os.close(fd)
        berth.state_fd = berth.life_fd = -1
        berth.keeper = berth.running = berth.pid = berth.ready_at = berth.stop_by = None


def _row(berth: EngineBerth, docks: EngineDocks, now: float) -> dict[str, Any]:
    engine = berth.shown
    transport = "rings" if docks.serves(berth.ticket) else "http"
    return {
        "engine": berth.name,
        "kind": engine and engine.kind,
        "model": (engine and engine.model) or None,
        "port": engine and engine.port,
        "state": berth.state,
        "transport": transport if berth.state == "ready" else None,
        "pid": berth.pid,
        "cpus": list(berth.cpus) or None,
        "restarts": berth.restarts,
        "backoff_s": round(berth.intensity.pause_s(now), 1),
        "ready_for_s": None if berth.ready_at is None else round(now - berth.ready_at, 1),
        "last_words": berth.words or None,
    }
