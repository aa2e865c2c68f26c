"""A gateway under test: started and stopped as an operator does, then checked for debris.

Every gateway gets free ports and a state directory of its own, and runs in a session of its own,
so that a test can name every process it left behind.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

from tpo_mp.supervisor import client

from .raw import RawClient, RawReply, ask, chat
from .wait import wait_for

READY = re.compile(
    r"^tpo-mp ready (https?://\S+:\d+) workers=(\d+) pid=(\d+) ops=(http://\S+:\d+)$", re.MULTILINE
)
ROOT = Path(__file__).parents[2]


class Gateway:
    """One ``tpo-mp serve``; a context manager that is ready when entered and gone when left.

    ``verb`` may be ``simulate`` instead; ``config`` is TOML text or a file; ``args`` go to the
    command line as they are.
    Leaving the context stops the gateway in good order unless the test already did.
    """

    def __init__(
        self,
        folder: Path,
        *args: str,
        config: str | Path | None = None,
        workers: int = 1,
        env: Mapping[str, str] | None = None,
        ready_s: float = 30.0,
        verb: str = "serve",
    ) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.stdout_path = folder / "stdout"
        self.stderr_path = folder / "stderr"
        self.config_path = config if isinstance(config, Path) else None
        self._config = config
        self.url = ""
        self.ops = ""
        self.workers = workers
        self._verb = verb
        self._args = args
        self.environment = {**os.environ, **(env or {})}
        self._ready_s = ready_s
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is not None:
            self.close()
        elif self._child is not None:
            self.stop()

    @property
    def command(self) -> list[str]:
        """The command line it is started with."""
        command = [sys.executable, "-m", "tpo_mp", self._verb, "--port", "0", "--ops-port", "0"]
        command += ["--workers", str(self.workers), "--state-dir", str(self.state_dir)]
        if self.config_path is not None:
            command += ["--config", str(self.config_path)]
        return [*command, *self._args]

    def start(self) -> None:
        """Start and wait for the ready line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self._config, str):
            self.config_path = self.folder / "tpo.toml"
            self.config_path.write_text(_patient(self._config))
        with self.stdout_path.open("wb") as out, self.stderr_path.open("wb") as err:
            self._child = subprocess.Popen(
                self.command,
                stdout=out, stderr=err, stdin=subprocess.DEVNULL, cwd=ROOT, env=self.environment,
                start_new_session=True,
            )  # fmt: skip
        try:
            ready = wait_for(self._ready, self._ready_s, "the ready line")
        except AssertionError as exc:
            log = self.stderr
            self.close()
            raise AssertionError(f"{exc}\n{log}") from None
        self.url, self.ops = ready[1], ready[4]
        assert int(ready[2]) == self.workers, ready[0]
        assert int(ready[3]) == self.pid, ready[0]

    def _ready(self) -> re.Match[str] | None:
        assert self._child is not None
        code = self._child.poll()
        assert code is None, f"the gateway ended with {code} before it was ready"
        return READY.search(self.stdout_path.read_text())

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        assert self._child is not None, "the gateway is not running"
        return self._child.pid

    @property
    def port(self) -> int:
        """The main port."""
        return int(self.url.rpartition(":")[2])

    @property
    def stderr(self) -> str:
        """The end of what it wrote to stderr."""
        text = self.stderr_path.read_text(errors="replace") if self.stderr_path.exists() else ""
        return text[-20_000:]

    def says(self, pattern: str, timeout_s: float = 10.0) -> re.Match[str]:
        """Wait for a line of its log: other processes may tell of a thing before the log does."""
        try:
            return wait_for(lambda: re.search(pattern, self.stderr), timeout_s, f"{pattern} logged")
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.stderr}") from None

    def tpo(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run another ``tpo-mp`` command against this gateway's state directory.

        A reload is over when it is in force everywhere: the command waits two seconds for that,
        and a worker may stand still for longer.
        """
        done = subprocess.run(
            [sys.executable, "-m", "tpo_mp", *args, "--state-dir", str(self.state_dir)],
            capture_output=True, text=True, timeout=100, cwd=ROOT, env=self.environment,
            check=False,
        )  # fmt: skip
        if args[0] == "reload" and done.returncode == 0:
            wait_for(self.adopted, 20, "the configuration in force everywhere", every_s=0.05)
        return done

    def adopted(self) -> bool:
        """Whether everybody who serves goes by the latest configuration."""
        told = self.status()
        epochs = {
            berth["config_epoch"]
            for berth in (*told["slots"], told["control"])
            if berth["state"] == "ready"
        }
        return epochs == {told["config_epoch"]}

    def status(self) -> dict[str, Any]:
        """What ``tpo-mp status --json`` prints, without an interpreter to start for it."""
        return client.request(self.state_dir, "status", timeout_s=30)

    def worker_pids(self) -> list[int]:
        """Process ids of the shards, by slot."""
        slots: Sequence[Mapping[str, Any]] = self.status()["slots"]
        return [int(slot["pid"]) for slot in slots]

    def processes(self) -> set[int]:
        """Every live process of this gateway, the supervisor included."""
        return _alive(self.pid)

    def ask(
        self, target: str, value: Any = None, headers: dict[str, str] | None = None
    ) -> RawReply:
        """Make one request on a connection of its own.

        A question to a store that does not answer in time is put again, as its answer says.
        """

        def asked() -> RawReply | None:
            reply = ask(self.url, target, value, headers)
            busy = reply.status == 503 and b'"store_unavailable"' in reply.body
            return None if busy and value is None else reply

        return wait_for(asked, 20, "the store to answer", every_s=0.1)

    def delete(self, target: str, headers: dict[str, str] | None = None) -> RawReply:
        """Take something away, on a connection of its own."""
        with RawClient(self.url) as client:
            return client.request("DELETE", target, headers)

    def settle(self) -> None:
        """Wait until every worker has done what it had put off, as the books of answered calls.

        A call is counted one turn of its worker's loop after its answer was sent.
        """
        began = self._beats()
        wait_for(
            # At the first beat that is seen, what was put off may still be behind it in the queue.
            lambda: all(self._beats().get(who, n + 2) >= n + 2 for who, n in began.items()),
            10.0, "two beats of every worker",
        )  # fmt: skip

    def _beats(self) -> dict[tuple[int, int], int]:
        """How often each occupant of a seat has beaten."""
        slots: Sequence[Mapping[str, Any]] = self.status()["slots"]
        return {(one["seat"], one["epoch"]): one["beats"] for one in slots if one["pid"]}

    def metrics(self) -> str:
        """The page of metrics, with all that was answered before it was asked for."""
        self.settle()
        return ask(self.ops, "/metrics").body.decode()

    def metric(self, name: str, **labels: str) -> float:
        """A number that the ops port tells, of all processes together, as ``metrics`` does."""
        return metric(self.metrics(), name, **labels)

    def replaced(self, slot: int, old: int, timeout_s: float = 20.0) -> int:
        """Wait for a serving process in the slot that is not ``old``; answer its pid."""

        def other() -> int:
            seen = self.status()["slots"][slot]
            return seen["pid"] if seen["pid"] not in (None, old) and seen["state"] == "ready" else 0

        return wait_for(other, timeout_s, f"another process in slot {slot}", every_s=0.05)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor only."""
        os.kill(self.pid, number)

    def ended(self) -> bool:
        """Whether the supervisor's process is over."""
        assert self._child is not None
        return self._child.poll() is not None

    def wait(self, timeout_s: float = 40.0) -> int:
        """Wait for the supervisor's end and answer its exit code."""
        assert self._child is not None
        return self._child.wait(timeout_s)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, timeout_s: float = 40.0) -> None:
        """Stop; it must exit 0, leave no process and have met no surprise."""
        assert self._child is not None
        session = self.pid
        self._child.send_signal(number)
        try:
            try:
                code = self._child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                said = self.tpo("status")
                raise AssertionError(
                    f"still there {timeout_s:g} s after {number.name}:\n{said.stdout}{said.stderr}"
                ) from None
            assert code == 0, f"exit code {code}:\n{self.stderr}"
            wait_for(lambda: not _alive(session), 10.0, f"no process left of {session}")
            assert "Traceback (most recent call last)" not in self.stderr, self.stderr
        finally:
            self.close()

    def close(self) -> None:
        """Kill whatever is left, unchecked."""
        if self._child is None:
            return
        session = self._child.pid
        for pid in _alive(session) | {session}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._child.wait(30)
        self._child = None
        if self.stderr:
            print(f"--- stderr of gateway {session} ---\n{self.stderr}", file=sys.stderr)


def ask_sure(
    gateway: Gateway,
    text: str,
    headers: dict[str, str] | None = None,
    *,
    through: RawClient | None = None,
    **more: Any,
) -> RawReply:
    """Ask for a chat at temperature 0: the same question gets the same answer.

    On a connection of its own, or ``through`` one that is there.
    """
    ask_one = gateway.ask if through is None else through.post_json
    body = chat(text, "up-1", **{"temperature": 0, **more})
    return ask_one("/v1/chat/completions", body, headers)


def metric(page: str, name: str, **labels: str) -> float:
    """Sum the samples of a metric whose labels include those."""
    total = 0.0
    for line in page.splitlines():
        match = re.fullmatch(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)", line)
        if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
            total += float(match[2])
    return total


def _patient(config: str) -> str:
    """Let upstreams fail as often in a row as a test likes, unless it is about that."""
    asks = "breaker" in config or re.search(r"^stages\s*=", config, re.MULTILINE)
    return config if asks else f"{config}\n[stages.breaker]\nthreshold = 1000\n"


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return -1


def _alive(session: int) -> set[int]:
    """Name the processes of a session that are not zombies."""
    found = set()
    for pid in psutil.pids():
        if _session(pid) == session:
            try:
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    found.add(pid)
            except psutil.NoSuchProcess:
                continue
    return found
