"""A supervisor and its workers reduced to what control sees of them; control itself is real."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from tests.support.wait import wait_for
from tpo_mp import __version__
from tpo_mp.config.blob import to_blob
from tpo_mp.config.load import load
from tpo_mp.shm import frames
from tpo_mp.shm.callid import CallIds, to_bytes
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.shm.handoff import Handoff
from tpo_mp.shm.metrics import MetricsBlock
from tpo_mp.shm.plane import LAYOUT, Command, HostState, SeatState
from tpo_mp.shm.registry import RegistryWriter
from tpo_mp.shm.segment import portable
from tpo_mp.store.questions import LETTERS, LetterQuery
from tpo_mp.supervisor.beats import BeatWatch
from tpo_mp.supervisor.memory import HostMemory
from tpo_mp.supervisor.state import Child, Intent

ROOT = Path(__file__).parents[3]
WORKERS = 2
SEATS = WORKERS + 3
CONTROL = SEATS - 1
MAX_OPEN = 256
encode = msgspec.msgpack.Encoder().encode


class FakeShard:
    """A worker seat played by the test: its rings, its registry area, its metrics."""

    def __init__(self, host: ControlHost, seat: int, slot: int) -> None:
        self.host = host
        self.seat = seat
        self.epoch = host.memory.occupy(seat, slot, Intent.RUN)
        self.lines = host.memory.plane.seat(seat)
        self.lines.pid = os.getpid()
        self.lines.state = SeatState.READY
        self.ids = CallIds(seat, self.epoch)
        self.registry: RegistryWriter = host.memory.registry.writer(seat, self.epoch)
        self.metrics: MetricsBlock = host.memory.metrics.block(seat, self.epoch)
        self._out = host.memory.rings.writer(seat, CONTROL, self.epoch)
        self._in = host.memory.rings.reader(CONTROL, seat)
        self._token = 0
        self.max_record = self._out.max_record
        if slot >= 0:
            host.memory.plane.set_slot(slot, seat=seat, acceptor=seat)

    def send(self, record: bytes) -> None:
        """Push one record to control, waiting for room."""
        wait_for(lambda: self.offer(record), what="room on the ring to control")

    def offer(self, record: bytes) -> bool:
        """Push one record if there is room."""
        pushed = self._out.push(record)
        self.host.memory.doorbells[CONTROL].ring()
        return pushed

    def finish(self, *call_ids: str) -> None:
        """Report calls as finished, one batch."""
        batch = [record(call_id) for call_id in call_ids]
        self.send(HEAD.pack(Kind.RECORDS, 0) + encode(batch))

    def open(self, body: bytes = b'{"x":1}', *, flags: int = 0, attempts: int = 0) -> str:
        """Accept a call."""
        call_id = self.ids.new()
        meta = encode(frames.SlotMeta("/v1/chat/completions", "m", "team", "s1", "r1", False))
        assert self.registry.open(to_bytes(call_id), meta, body, flags, attempts) >= 0
        return call_id

    def received(self) -> list[bytes]:
        """Everything control sent since."""
        return self._in.drain()

    def ask(self, table: str, key: str) -> tuple[bool, bytes | None]:
        """Read a value, putting pieces together."""
        self._token += 1
        self.send(frames.store_get(self._token, table, key))
        return self._answer()

    def put(
        self, table: str, key: str, value: bytes, ttl_s: float = 60.0, *, begin: int = 0
    ) -> bool:
        """Write a value, or only what of it comes from ``begin`` on."""
        self._token += 1
        step = self.max_record - 512
        for at in range(begin, max(1, len(value)), step):
            more = at + step < len(value)
            piece = value[at : at + step]
            self.send(frames.store_put(self._token, table, key, piece, ttl_s, more, at))
        return self._answer()[0]

    def _answer(self) -> tuple[bool, bytes | None]:
        parts: list[bytes] = []
        seen: list[frames.StoreAnswer] = []

        def whole() -> bool:
            for raw in self.received():
                answer = msgspec.msgpack.decode(frames.payload(raw), type=frames.StoreAnswer)
                assert answer.token == self._token
                seen.append(answer)
                parts.append(answer.value or b"")
            return bool(seen) and not seen[-1].more

        wait_for(whole, what="an answer of the store")
        missing = len(seen) == 1 and seen[0].value is None
        return seen[-1].ok, None if missing else b"".join(parts)

    def letters(self, **query: Any) -> list[dict[str, Any]]:
        """The open dead letters."""
        ok, page = self.ask(LETTERS, LetterQuery(**query).key())
        assert ok
        assert page is not None
        entries: list[dict[str, Any]] = json.loads(page)["entries"]
        return entries

    def letter_ids(self) -> list[str]:
        """Their call ids, sorted."""
        return sorted(entry["request_id"] for entry in self.letters())

    def die(self) -> None:
        """Be reaped by the supervisor."""
        child = _child(self.seat, self.epoch)
        self.host.memory.vacate(child)
        self.host.memory.plane.restarts_total += 1


class ControlHost:
    """The memory of a host, its fake shards and a real control process."""

    def __init__(self, folder: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.state_dir.mkdir(exist_ok=True)
        self.env = dict(env or {})
        self.memory = HostMemory(
            workers=WORKERS, seats=SEATS, install_key=bytes(16), max_open=MAX_OPEN,
            registry=self.state_dir / "registry",
        )  # fmt: skip
        self._lifeline = os.pipe()
        self._listeners: list[socket.socket] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.config_epoch = 0
        self.ops = ""
        self.publish()
        self.shards = [FakeShard(self, seat, seat) for seat in range(WORKERS)]
        self.memory.plane.host_state = HostState.RUNNING

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: object, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            print(self.stderr())
        self.kill()
        self.cut_lifeline()
        for listener in self._listeners:
            listener.close()
        self.memory.close()

    def publish(self, text: str = "") -> int:
        """Publish a configuration; answers its epoch."""
        path = self.folder / "tpo.toml"
        path.write_text(f"[server]\nmax_open_calls = {MAX_OPEN}\n{text}")
        self.config_epoch += 1
        self.memory.publish_config(self.config_epoch, to_blob(load(path, {}, {})))
        return self.config_epoch

    def start(self, *, wait: bool = True, **changes: Any) -> None:
        """Start control as the supervisor would."""
        listener = socket.create_server(("127.0.0.1", 0))
        self._listeners.append(listener)
        self.ops = f"http://127.0.0.1:{listener.getsockname()[1]}"
        handoff = self._handoff(listener, changes)
        fds = {
            handoff.plane_fd, handoff.rings_fd, handoff.metrics_fd, handoff.registry_fd,
            handoff.config_fd, handoff.ops_listener, handoff.lifeline_fd,
            handoff.locks_fd, handoff.ledger_fd, handoff.quotas_fd, handoff.scores_fd,
            handoff.shares_fd,
            *(fd for pair in handoff.doorbells for fd in pair),
        }  # fmt: skip
        with (self.folder / "stderr").open("ab") as err, (self.folder / "stdout").open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tpo_mp.control"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT, pass_fds=fds,
                env=os.environ | self.env | handoff.to_env(),
            )  # fmt: skip
        self.memory.plane.seat(CONTROL).pid = self.process.pid
        if wait:
            wait_for(self._ready, what="control ready", timeout_s=20.0)

    def _ready(self) -> bool:
        assert self.process is not None
        code = self.process.poll()
        assert code is None, f"control ended with {code}: {self.stderr()}"
        return self.memory.plane.seat(CONTROL).state == SeatState.READY

    def _handoff(self, listener: socket.socket, changes: Mapping[str, Any]) -> Handoff:
        memory = self.memory
        fields: dict[str, Any] = {
            "version": __version__, "layout": LAYOUT, "role": "control", "seat": CONTROL,
            "slot": -1, "epoch": memory.occupy(CONTROL, -1, Intent.RUN), "workers": WORKERS,
            "seats": SEATS, "cpu": -1, "supervisor_pid": os.getpid(),
            "plane_fd": memory.plane.fd, "rings_fd": memory.rings.fd,
            "metrics_fd": memory.metrics.fd, "registry_fd": memory.registry.fd,
            "config_fd": memory.config.fd, "locks_fd": memory.ledger.locks_fd,
            "ledger_fd": memory.ledger.fd, "live_fd": -1, "journal_fd": -1,
            "quotas_fd": memory.quotas.fd, "shares_fd": memory.shares.fd,
            "scores_fd": memory.scores.fd,
            "cache_fd": -1, "claims_fd": -1, "prefixes_fd": -1,
            "engine_rings_fd": -1, "engine_bells": [],
            "doorbells": [bell.fds for bell in memory.doorbells], "listeners": [],
            "ops_listener": listener.fileno(), "lifeline_fd": self._lifeline[0],
            "state_dir": str(self.state_dir), "registry_path": str(memory.registry_path),
            "host": "127.0.0.1", "port": 0, "ops_port": 0, "portable": portable(),
        }  # fmt: skip
        return Handoff(**(fields | dict(changes)))

    def kill(self) -> None:
        """End control at once and reap it, as the supervisor would."""
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        process.wait()
        self.memory.vacate(_child(CONTROL, self.memory.plane.seat(CONTROL).epoch, "control"))

    def stop(self, command: Command = Command.STOP) -> int:
        """Command it to end; answers the exit code."""
        assert self.process is not None
        self.memory.plane.seat(CONTROL).command = command
        self.memory.doorbells[CONTROL].ring()
        code = self.process.wait(timeout=30.0)
        self.process = None
        return code

    def cut_lifeline(self) -> None:
        """Be gone, as far as the child can tell."""
        for fd in self._lifeline:
            if fd >= 0:
                os.close(fd)
        self._lifeline = (-1, -1)

    def signal(self, number: signal.Signals) -> None:
        """Signal control."""
        assert self.process is not None
        self.process.send_signal(number)

    def stderr(self) -> str:
        """What control wrote."""
        path = self.folder / "stderr"
        return path.read_text() if path.exists() else ""

    def get(self, path: str) -> tuple[int, bytes, str]:
        """Ask the ops port: status, body, content type."""
        try:
            with urllib.request.urlopen(self.ops + path, timeout=30.0) as answer:
                return answer.status, answer.read(), answer.headers["Content-Type"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), error.headers["Content-Type"]

    def metric(self, name: str) -> float:
        """One series without labels, summed."""
        page = self.get("/metrics")[1].decode()
        values = [line.rpartition(" ")[2] for line in page.splitlines()
                  if line.split("{")[0].split(" ")[0] == name]  # fmt: skip
        return sum(map(float, values))


def record(call_id: str, **changes: Any) -> frames.RecordFrame:
    """A call record."""
    fields: dict[str, Any] = {
        "call_id": call_id, "finished_at": 1.7e9, "started_at": 1.7e9, "method": "POST",
        "path": "/v1/chat/completions", "status": 200, "terminal": "done", "model": "echo",
        "backend": "echo", "stream": False, "tenant": "team", "key_id": "k", "session": "",
        "client_request_id": "", "prompt_tokens": 1, "completion_tokens": 1, "bytes_in": 1,
        "bytes_out": 1, "duration_s": 0.1, "first_byte_s": 0.1, "attempts": 1, "shard": 0,
        "error": "", "peer": "127.0.0.1",
    }  # fmt: skip
    return frames.RecordFrame(**(fields | changes))


def letter_frame(
    call_id: str, body: bytes = b"{}", *, tenant: str = "team", more: bool = False, at: int = 0
) -> bytes:
    """A worker's dead letter, or a piece of one."""
    sent = frames.DeadLetterFrame(
        call_id, "r1", "s1", "shed", 12.5, "m", tenant, "/v1/chat/completions", body, more, at=at
    )
    return frames.frame(Kind.DEAD_LETTER, 0, sent)


def _child(seat: int, epoch: int, role: str = "shard") -> Child:
    return Child(
        seat=seat, epoch=epoch, role=role, generation=1, pid=0, started_at=0.0,  # type: ignore[arg-type]
        watch=BeatWatch(0.0), intent=Intent.RUN,
    )  # fmt: skip
