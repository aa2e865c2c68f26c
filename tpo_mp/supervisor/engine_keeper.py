"""The process that keeps one engine: starts it, asks whether it serves, and ends all of it.

``tpo: engine-NAME`` stands between the supervisor and a program that we did not write.  It leads
the engine through one life and ends with it; whether there is another life the supervisor decides.

::

    stdin        {"engine": {…}, "state_dir": …, "cpus": […], "state_fd": n, "life_fd": n,
                  "ticket": {…} as ``engine_docks`` has it}   JSON
    state_fd     one JSON line per change: {"state": "loading", "pid": n} · {"state": "ready"} ·
                 {"words": "why it ends"}
    life_fd      readable = end: "s" in good order, "q" at once, end of file: the supervisor is gone
    exit code    0 told to end · 1 the engine ended · 2 it cannot be started here

The engine has a session and a group of its own, recorded before it is waited for
(``engine_records``).  It is killed with its keeper (``PR_SET_PDEATHSIG``), ended by it when the
supervisor is gone, by the supervisor when the keeper is, and by the next start when both are.

Invariants: one thread, and nothing in it waits for the engine, a log reader or a disk; after the
engine's end no process of its group, nor any that fell to us, is left; signals meant for the
supervisor's group are ignored.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import psutil
from setproctitle import setproctitle

from tpo_mp.config.engines import (
    ENGINE_RINGS,
    HEALTH_PATH,
    HOST,
    EngineCommand,
    EngineRefused,
    EngineSection,
    command_of,
    port_is_free,
)
from tpo_mp.config.values import Secret
from tpo_mp.shm.lifeline import IGNORED, MAX_WORDS, PR_SET_PDEATHSIG

from . import memory_room, placement
from .engine_docks import NO_TICKET, Ticket, descriptors
from .engine_log import EngineLog
from .engine_probe import EngineProbe
from .engine_records import TOKEN, EngineRecord, kill_engine, record_path, write_record

ENDED, REFUSED = 1, 2
TURN_S = 0.25
LOAD_INTERVAL_S = 0.25
PROBE_S = 5.0
WARM_UP_S = 120.0
MEMORY_S = 1.0
GROUP_LEFT = 0.02
"""Share of its group's memory limit that is left when an engine that has most of it is ended."""
READ_BYTES = 65_536
LAST_READS = 32
"""More than a pipe holds: who still writes then is not waited for."""
ORPHANED_GRACE_S = 1.0
"""What an engine gets to end in when its supervisor is gone: whoever starts next wants its port."""
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class KeeperOrder:
    """What the supervisor asks of a keeper."""

    engine: EngineSection
    state_dir: Path
    cpus: tuple[int, ...]
    state_fd: int
    life_fd: int
    ticket: Ticket


def read_order(raw: bytes) -> KeeperOrder:
    """Read standard input."""
    asked = json.loads(raw)
    engine = msgspec.convert(
        asked["engine"], EngineSection, dec_hook=lambda _kind, text: Secret(text)
    )
    return KeeperOrder(
        engine, Path(asked["state_dir"]), tuple(asked["cpus"]), asked["state_fd"], asked["life_fd"],
        asked["ticket"],
    )  # fmt: skip


class EngineKeeper:
    """One life of one engine."""

    def __init__(self, order: KeeperOrder) -> None:
        self._order = order
        self._engine = order.engine
        self._health_path = path = order.engine.health_path
        asked = f"GET {path} HTTP" if path else ""
        self._log = EngineLog(order.state_dir, order.engine.name, order.engine.log_bytes, asked)
        self._process: subprocess.Popen[bytes] | None = None
        self._output_fd = -1
        self._record: EngineRecord | None = None
        self._probe: EngineProbe | None = None
        self._ask_at = 0.0
        self._weigh_at = 0.0
        self._started_at = monotonic()
        self._answered_at = self._started_at
        self._ready = False
        self._warming = False
        self._words = ""
        self._kill_at: float | None = None
        self._told = False
        self._deaf = False
        self._kills = memory_room.kills()

    def run(self) -> int:
        """Keep the engine until it ends; answer the exit code."""
        try:
            command = command_of(self._engine, self._order.cpus)
            self._start(command)
        except EngineRefused as refusal:
            self._say(words=str(refusal))
            self._log.say(f"cannot start: {refusal}")
            return REFUSED
        while True:
            self._wait()
            now = monotonic()
            if self._gone():
                break
            if self._kill_at is None:
                self._ask(now)
                self._weigh(now)
            elif now >= self._kill_at:
                self._kill_at = float("inf")
                self._signal(signal.SIGKILL)
        return self._close()

    # start

    def _start(self, command: EngineCommand) -> None:
        engine = self._engine
        if command.health_path and engine.health_path == HEALTH_PATH:
            self._health_path = command.health_path
        if not command.argv:
            raise EngineRefused("its command is empty")
        if not port_is_free(engine.port):
            raise EngineRefused(f"port {engine.port} is taken by another program")
        token = secrets.token_hex(8)
        self._log.say(f"starting: {' '.join(command.argv)}")
        try:
            self._process = subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env=self._environment(command, token), start_new_session=True,
                pass_fds=descriptors(self._ticket(command)),
                preexec_fn=_bound_to_us(),  # noqa: PLW1509 - one thread here
            )  # fmt: skip
        except OSError as error:
            said = f"{command.argv[0]}: {error.strerror or error}"
            raise EngineRefused(f"cannot run {said}") from None
        self._record = EngineRecord.of(engine.name, self._process.pid, token)
        write_record(self._order.state_dir, self._record)
        assert self._process.stdout is not None
        self._output_fd = self._process.stdout.fileno()
        os.set_blocking(self._output_fd, False)
        self._say(state="loading", pid=self._process.pid)

    def _environment(self, command: EngineCommand, token: str) -> dict[str, str]:
        engine = self._engine
        own: dict[str, str] = {"PYTHONUNBUFFERED": "1", TOKEN: token}
        if engine.gpus:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, engine.gpus))
            # CUDA's own order is by speed: these are the numbers that nvidia-smi shows.
            own["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        ticket = self._ticket(command)
        if ticket:
            own[ENGINE_RINGS] = json.dumps(ticket)
        given = {name: secret.reveal() for name, secret in engine.env.items()}
        return {**os.environ, **own, **command.env, **given}

    def _ticket(self, command: EngineCommand) -> Ticket:
        """Its dock in shared memory, for an engine that is ours: others have no use for it."""
        return self._order.ticket if command.rings else NO_TICKET

    # wait

    def _wait(self) -> None:
        """Wait for whatever comes first, and for no longer than a turn."""
        poll = select.poll()
        if not self._deaf:
            poll.register(self._order.life_fd, select.POLLIN)
        if self._output_fd >= 0:
            poll.register(self._output_fd, select.POLLIN)
        waiting = self._probe.waits_for if self._probe is not None else None
        if waiting is not None:
            poll.register(*waiting)
        happened = {fd for fd, _ in poll.poll(TURN_S * 1000)}
        if self._output_fd in happened:
            self._read()
        if self._order.life_fd in happened:
            self._end(os.read(self._order.life_fd, 16)[-1:])

    def _read(self) -> None:
        try:
            data = os.read(self._output_fd, READ_BYTES)
        except BlockingIOError:
            return
        self._log.feed(data, monotonic())
        if not data:
            self._output_fd = -1

    def _end(self, word: bytes) -> None:
        self._told = True
        self._deaf = word != b"s"
        grace_s = self._engine.stop_grace_s if word == b"s" else ORPHANED_GRACE_S
        kill_at = monotonic() + (0.0 if word == b"k" else grace_s)
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        self._signal(signal.SIGTERM)

    def _give_up(self, words: str) -> None:
        """End it of our own accord: the supervisor reads why, and decides what follows."""
        self._words = words
        self._log.say(words)
        self._kill_at = monotonic() + min(self._engine.stop_grace_s, ORPHANED_GRACE_S)
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _gone(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    # watch

    def _ask(self, now: float) -> None:
        if self._probe is not None:
            status = self._probe.turn(now)
            if status is None:
                return
            self._probe = None
            self._answer(status, now)
        elif now >= self._ask_at:
            self._probe = self._question(now)
        if self._ready:
            silent_s = now - self._answered_at
            if 0 < self._engine.hung_after_s <= silent_s:
                self._give_up(f"no answer for {silent_s:.0f} s")
        elif now - self._started_at >= self._engine.start_timeout_s:
            self._give_up(f"not ready after {self._engine.start_timeout_s:g} s")

    def _question(self, now: float) -> EngineProbe:
        engine = self._engine
        if not self._warming:
            return EngineProbe(engine.port, self._health_path, now + PROBE_S)
        body = {
            "model": engine.models[0] if engine.models else engine.model,
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 1,
        }
        return EngineProbe(
            engine.port, "/v1/chat/completions", now + WARM_UP_S, json.dumps(body).encode()
        )

    def _answer(self, status: int, now: float) -> None:
        if self._warming:
            # Whatever it says, it was tried: some engines have no chat.
            self._warming = False
            self._log.say(f"warm-up answered {status}")
            self._become_ready(now)
            return
        well = 200 <= status < 300
        if well:
            self._answered_at = now
        if self._ready:
            self._ask_at = now + self._engine.health_interval_s
        elif well and self._engine.warm_up and self._engine.model:
            self._warming = True
        elif well:
            self._become_ready(now)
        else:
            self._ask_at = now + LOAD_INTERVAL_S

    def _become_ready(self, now: float) -> None:
        self._ready = True
        self._answered_at = now
        self._ask_at = now + self._engine.health_interval_s
        self._log.say(f"ready after {now - self._started_at:.1f} s at http://{HOST}:"
                      f"{self._engine.port}")  # fmt: skip
        self._log.aloud = False
        self._say(state="ready")

    def _weigh(self, now: float) -> None:
        if now < self._weigh_at:
            return
        self._weigh_at = now + MEMORY_S
        limit, room = self._engine.memory_limit_bytes, memory_room.room()
        short = room is not None and room.left < GROUP_LEFT * room.limit
        if not limit and not short:
            return
        held = sum(map(_rss, self._family()))
        if 0 < limit < held:
            self._give_up(f"held {held >> 20} MiB of memory, over its limit of {limit >> 20} MiB")
        elif room is not None and short and held > room.held // 2:
            # Sooner than the kernel, which may choose the gateway, and tells nobody why.
            self._give_up(f"held {held >> 20} MiB of memory, and its control group has "
                          f"{room.left >> 20} of {room.limit >> 20} MiB left")  # fmt: skip

    def _family(self) -> list[psutil.Process]:
        try:
            return psutil.Process().children(recursive=True)
        except psutil.Error:
            return []

    # end

    def _close(self) -> int:
        assert self._process is not None
        status = self._process.returncode
        # Whoever is left of the group, and whoever left it and fell to us; before its last words
        # are read, since one of them may go on writing for ever.
        self._signal(signal.SIGKILL)
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                process.kill()
        if self._record is not None:
            kill_engine(self._record)
            record_path(self._order.state_dir, self._engine.name).unlink(missing_ok=True)
        self._read_the_rest()
        if self._told:
            return 0
        words = self._words or f"{self._how(status)}{self._last()}"
        self._say(words=words, status=status)
        self._log.aloud = False
        self._log.say(f"ended: {words}")
        self._log.close()
        return ENDED

    def _read_the_rest(self) -> None:
        poll = select.poll()
        for _ in range(LAST_READS):
            if self._output_fd < 0:
                return
            poll.register(self._output_fd, select.POLLIN)
            if not poll.poll(0):
                return  # somebody that lives on holds the other end
            self._read()

    def _how(self, status: int) -> str:
        room = memory_room.room() if status == -signal.SIGKILL else None
        if room is not None and memory_room.kills() > self._kills:
            return f"killed for memory: its control group may have {room.limit >> 20} MiB"
        return _how(status)

    def _last(self) -> str:
        line = self._log.last_line()
        return f": {line}" if line else ""

    def _say(self, **fields: Any) -> None:
        told = {key: v[:MAX_WORDS] if isinstance(v, str) else v for key, v in fields.items()}
        line = json.dumps(told) + "\n"
        with contextlib.suppress(OSError):  # the supervisor is gone, which the lifeline tells
            os.write(self._order.state_fd, line.encode())


def _how(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _on_linux() -> bool:
    return sys.platform == "linux" and not placement.portable()


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _bound_to_us() -> Callable[[], None]:
    """What the engine's process does before it becomes the engine."""
    libc = ctypes.CDLL(None) if _on_linux() else None
    keeper = os.getpid()

    def before_exec() -> None:
        for number in IGNORED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != keeper:
                os._exit(ENDED)

    return before_exec


def main() -> int:
    """Keep the engine that standard input describes."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    order = read_order(sys.stdin.buffer.read())
    setproctitle(f"tpo: engine-{order.engine.name}")
    if _on_linux():
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if order.cpus and hasattr(os, "sched_setaffinity"):
        # The engine and whatever it starts inherit it.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, order.cpus)
    os.set_inheritable(order.state_fd, False)
    os.set_inheritable(order.life_fd, False)
    return EngineKeeper(order).run()


if __name__ == "__main__":
    sys.exit(main())
