"""What is measured: how each target starts, when it is ready, and how it is named.

``direct`` is the upstream itself, ``relay`` the bare relay, ``tpo`` our gateway with its default
pipeline, ``tpo-governed`` with everything on, ``tpo-echo`` answering by itself, ``tpo-messages``
the default pipeline with clients of another dialect than the upstream; the rest are peers.

Invariants: a target that cannot start raises ``Skipped`` with its reason; whatever was started
is ended when its ``with`` block ends.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tpo_mp.supervisor.client import request

from . import configs, peers
from .load import tag
from .machine import ROOT
from .payload import PATH, Payload
from .procs import Cores, NotReadyError, Process, free_port

READY = r"^tpo-mp ready (?P<url>\S+) workers=\d+ pid=\d+ ops=(?P<ops>\S+)"
OURS = {"tpo": "plain", "tpo-governed": "governed", "tpo-echo": "echo", "tpo-messages": "plain",
        "tpo-overload": "overload",
        "tpo-simulator": "simulator", "tpo-simulator-two": "simulator",
        "tpo-simulator-paced": "paced", "tpo-mixed": "mixed", "tpo-batched": "batched",
        "tpo-grouped": "grouped", "tpo-spread": "spread", "tpo-sticky": "sticky",
        "tpo-prefixed": "prefixed", **{mode: mode for mode in configs.REAL}}  # fmt: skip
LABELS = {
    "direct": "no gateway (upstream itself)",
    "relay": "bare relay",
    "tpo": "tpo-mp, plain",
    "tpo-governed": "tpo-mp, governed",
    "tpo-spread": "`round_robin`",
    "tpo-sticky": "`consistent_hash`",
    "tpo-prefixed": "`prefix`",
    "mlx-spread": "two of our MLX engines, `round_robin`",
    "mlx-sticky": "two of our MLX engines, `consistent_hash`",
    "llama_cpp-spread": "two `llama-server` of two slots, `round_robin`",
    "llama_cpp-sticky": "two `llama-server` of two slots, `consistent_hash`",
    "tpo-mixed": "each call at once",
    "tpo-batched": "`batch`",
    "tpo-grouped": "`batch` by the first 64 bytes, waits of 0.5 s",
    "tpo-echo": "tpo-mp, echo backend",
    "tpo-messages": "tpo-mp, Anthropic clients",
    "tpo-overload": "tpo-mp, overloaded",
    "tpo-simulator": "tpo-mp simulate, no latency",
    "tpo-simulator-two": "tpo-mp simulate, 2 workers, no latency",
    "tpo-simulator-paced": "tpo-mp simulate, 2 workers, 100 ms a token",
    "tpo-simulator-boot": "tpo-mp simulate, its start",
    "tpo-simulator-boot-one-core": "tpo-mp simulate, its start on one core",
    "tpo-simulator-arrivals": "tpo-mp simulate, seen by a client",
    "mlx_engine": "our engine process",
    "mlx_lm-server": "mlx_lm's server",
    "vllm-router": "vLLM router",
    "sglang-router": "sglang router",
    "litellm": "LiteLLM",
}


class Skipped(Exception):
    """The target is not here or did not start; the message says why."""


@dataclass(frozen=True, slots=True)
class Live:
    """A target that answers."""

    name: str
    url: str
    process: Process | None = None
    state: Path = Path()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def pids(self) -> list[int]:
        """Answer the processes whose CPU and memory count; none for ``direct``."""
        return self.process.pids() if self.process else []


@dataclass(frozen=True, slots=True)
class Place:
    """Where targets start: their upstream, cores, files, and the peers' directory."""

    upstream: str
    cores: Cores
    work: Path
    peers: Path | None = None

    def version(self, name: str) -> str:
        """Say which version of a peer is measured; ours is in the report's head."""
        return peers.version(peers.PEERS[name], self.peers) if name in peers.PEERS else ""

    @contextlib.contextmanager
    def start(self, name: str, *, workers: int = 1) -> Iterator[Live]:
        """Start a target on the gateway's core and end it with the block."""
        # Peers read their files as another user; only loopback addresses are inside.
        home = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.work))
        home.chmod(0o755)
        try:
            if name == "direct":
                yield Live(name, f"http://{self.upstream}")
            elif name == "relay":
                yield from self._relay(home)
            elif name in OURS:
                yield from self._ours(name, home, workers)
            else:
                yield from self._peer(name, home)
        finally:
            shutil.rmtree(home, ignore_errors=True)

    def _relay(self, home: Path) -> Iterator[Live]:
        argv = [sys.executable, "-m", "benchmarks.relay", "--upstream", self.upstream]
        with self._running(argv, home) as process:
            yield Live("relay", _ready(process, r"^ready (?P<url>\S+)")["url"], process)

    def _ours(self, name: str, home: Path, workers: int) -> Iterator[Live]:
        mode = OURS[name]
        config = home / "tpo.toml"
        env: dict[str, str] = {}
        if mode in configs.REAL:
            text, env = _real(mode, home)
            config.write_text(text)
        else:
            config.write_text(configs.toml(mode, self.upstream))
        verb = "simulate" if mode in configs.SIMULATED else "serve"
        if verb == "serve":
            _refuse_warnings(config)
        argv = [sys.executable, "-m", "tpo_mp", verb, "--config", str(config)]
        argv += ["--host", "127.0.0.1", "--port", "0", "--ops-port", "0"]
        argv += ["--workers", str(workers), "--state-dir", str(home / "state")]
        extra = configs.GOVERNED_EXTRA if mode == "governed" else {}
        with self._running(argv, home, env) as process:
            seen = _ready(process, READY)
            _wait_spare(home / "state")
            _wait_engines(home / "state")
            yield Live(name, seen["url"], process, home / "state", extra)

    def _peer(self, name: str, home: Path) -> Iterator[Live]:
        peer = peers.PEERS[name]
        binary = peers.program(peer, self.peers)
        if binary is None:
            raise Skipped("not installed")
        slot = peers.Slot(free_port(), free_port(), self.upstream, home)
        argv = peers.command(peer, binary, slot)
        with self._running(argv, home, peer.env) as process:
            url = f"http://127.0.0.1:{slot.port}"
            _wait_answer(process, url)
            yield Live(name, url, process)

    @contextlib.contextmanager
    def _running(
        self, argv: list[str], home: Path, env: Mapping[str, str] | None = None
    ) -> Iterator[Process]:
        cores = self.cores.for_gateway()
        process = Process(argv, log=home / "log", cores=cores, env=env, cwd=ROOT)
        try:
            yield process
        finally:
            process.stop()


def ask(url: str, timeout_s: float = 5.0) -> int:
    """Send one request and answer its status; 0 when nothing came back."""
    at = urlsplit(url)
    before, after = Payload(tag()).pieces(url)
    head, _, start = before.partition(b"\r\n\r\n")
    lines = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:]]
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=timeout_s)
    try:
        connection.request("POST", PATH, start + b"0" * 12 + after, dict(lines))
        reply = connection.getresponse()
        reply.read()
        return reply.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _refuse_warnings(config: Path) -> None:
    """Skip a configuration that names something this build would ignore: its name would lie."""
    argv = [sys.executable, "-m", "tpo_mp", "check", "--strict", "--config", str(config)]
    out = subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False)
    if out.returncode:
        raise Skipped("; ".join((out.stderr or out.stdout).strip().splitlines()))


def _ready(process: Process, pattern: str, timeout_s: float = 30.0) -> Mapping[str, str]:
    try:
        return process.wait_line(pattern, timeout_s).groupdict()
    except NotReadyError as error:
        raise Skipped(str(error)) from error


def _wait_spare(state: Path, timeout_s: float = 30.0) -> None:
    """Wait until the warm spare has booted: its start is no request's cost."""
    deadline = time.monotonic() + timeout_s
    while request(state, "status")["spare"]["state"] != "parked":
        if time.monotonic() > deadline:
            raise Skipped(f"no warm spare after {timeout_s:g} s")
        time.sleep(0.05)


def _real(mode: str, home: Path) -> tuple[str, dict[str, str]]:
    """The configuration of real engines, their model made, and the path that finds them."""
    from tests.support import engines

    found = engines.find(configs.REAL[mode][0])
    if isinstance(found, str):
        raise Skipped(found)
    return configs.real(mode, str(found.model(home / "model"))), {"PATH": found.path}


def _wait_engines(state: Path, timeout_s: float = 120.0) -> None:
    """Wait until every engine of the gateway serves."""
    deadline = time.monotonic() + timeout_s
    while wanting := [e for e in request(state, "status")["engines"] if e["state"] != "ready"]:
        if time.monotonic() > deadline:
            words = "; ".join(f"{e['engine']}: {e['last_words']}" for e in wanting)
            raise Skipped(f"no engine after {timeout_s:g} s: {words}")
        time.sleep(0.1)


def _wait_answer(process: Process, url: str, timeout_s: float = 90.0) -> None:
    """Wait until a peer answers a request with 200; peers print nothing to rely on."""
    deadline = time.monotonic() + timeout_s
    status = 0
    while time.monotonic() < deadline:
        status = ask(url)
        if status == 200:
            return
        if process.popen.poll() is not None:
            raise Skipped(f"exit code {process.popen.returncode}: {process.tail()}")
        time.sleep(0.2)
    raise Skipped(f"no answer after {timeout_s:g} s (last status {status}): {process.tail()}")
