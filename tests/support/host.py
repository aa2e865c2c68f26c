"""A gateway that is about to be hurt: what its supervisor logged, who runs, what it left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from .gateway import ROOT, Gateway
from .gateway import metric as metric  # noqa: PLC0414 - tests that hurt a host ask for it here
from .raw import RawReply
from .wait import wait_for
from .wire import Attempt

TMPFS = Path("/dev/shm")


class Host(Gateway):
    """A gateway with JSON logs; leaving its context needs no good end, but finds every leftover."""

    def __init__(
        self, folder: Path, *args: str, prefix: Sequence[str] = (), **options: Any
    ) -> None:
        """``prefix`` is a command that runs the gateway's, with limits for example."""
        super().__init__(folder, "--log-format", "json", *args, **options)
        self._prefix = list(prefix)

    @property
    def command(self) -> list[str]:
        """The command line it is started with."""
        return [*self._prefix, *super().command]

    def fails(self, timeout_s: float = 60.0) -> tuple[int, float]:
        """Run a gateway that is to give up; answer its exit code and how long it took."""
        self.folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with self.stdout_path.open("wb") as out, self.stderr_path.open("wb") as err:
            done = subprocess.run(
                self.command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, check=False,
                timeout=timeout_s, cwd=ROOT, env=self.environment,
            )  # fmt: skip
        return done.returncode, time.monotonic() - began

    # -- who runs -----------------------------------------------------------------------------

    def slot(self, index: int) -> dict[str, Any]:
        """One slot of the status."""
        found: dict[str, Any] = self.status()["slots"][index]
        return found

    @property
    def control_pid(self) -> int:
        """Process id of control."""
        return int(self.status()["control"]["pid"])

    def warm(self) -> None:
        """Wait until every slot serves and a spare is parked."""

        def calm() -> bool:
            seen = self.status()
            ready = all(slot["state"] == "ready" for slot in [*seen["slots"], seen["control"]])
            return ready and seen["spare"].get("state") == "parked"

        wait_for(calm, 30, "every slot ready and a parked spare", every_s=0.05)

    # -- what the log says --------------------------------------------------------------------

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Lines of the log with that event name, oldest first."""
        found = []
        for line in self.stderr_path.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                event = json.loads(line)
                if not name or event.get("event") == name:
                    found.append(event)
        return found

    def event(self, name: str, timeout_s: float = 10.0, **fields: Any) -> dict[str, Any]:
        """Wait for a line of that name with those fields."""

        def seen() -> dict[str, Any] | None:
            for event in self.events(name):
                if all(event.get(key) == value for key, value in fields.items()):
                    return event
            return None

        found = wait_for(seen, timeout_s, f"event {name} {fields}")
        assert found is not None
        return found

    def logged(self, name: str, times: int, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """Wait until lines of that name are there so many times; answer them."""
        wait_for(
            lambda: len(self.events(name)) >= times, timeout_s, f"event {name}, {times} times",
            every_s=0.002,
        )  # fmt: skip
        return self.events(name)

    # -- the dead-letter queue ----------------------------------------------------------------

    def letters(self) -> list[dict[str, Any]]:
        """Every dead letter."""
        entries: list[dict[str, Any]] = []
        after = ""
        while True:
            page = self.ask_store(f"/api/v1/dlq?limit=1000{after}")
            entries += page["entries"]
            if page.get("next") is None:
                return entries
            after = f"&after={page['next']}"

    def ask_store(self, target: str) -> dict[str, Any]:
        """Ask for what lies in the store, as often as it says that it is not available just now."""
        replies: list[RawReply] = []

        def answered() -> bool:
            replies.append(self.ask(target))
            return replies[-1].status != 503

        wait_for(answered, 30, f"an answer to {target}", every_s=0.05)
        assert replies[-1].status == 200, replies[-1]
        found: dict[str, Any] = replies[-1].json()
        return found

    def lettered(self, ids: set[str], within_s: float) -> None:
        """Wait until exactly those requests have a dead letter, one each."""
        wait_for(lambda: set(self.letters_by_request()) == ids, within_s, "their dead letters")
        assert set(self.letters_by_request().values()) == {1}

    def letters_by_request(self) -> Counter[str]:
        """How many letters each request id has; one call never has two."""
        entries = self.letters()
        calls = Counter(entry["request_id"] for entry in entries)
        assert set(calls.values()) <= {1}, calls
        return Counter(entry["client_request_id"] for entry in entries)

    def check_ledger(
        self, attempts: Iterable[Attempt], accepted: Iterable[str], *, within_s: float
    ) -> None:
        """Fail unless every attempt was answered, refused with an error, or kept as one letter.

        ``accepted`` names the requests that someone behind the gateway saw: those were accepted.
        """
        attempts = list(attempts)
        assert not [a for a in attempts if a.outcome in ("open", "hung")], "no answer, no error"
        unfinished = {a.id for a in attempts if a.outcome == "cut"} & set(accepted)
        wait_for(
            lambda: not unfinished - set(self.letters_by_request()),
            within_s, f"a dead letter for each of {len(unfinished)} unfinished requests",
        )  # fmt: skip
        letters = self.letters_by_request()
        assert not [i for i, n in letters.items() if n > 1], letters

    # -- what is left -------------------------------------------------------------------------

    def shared_names(self) -> set[str]:
        """Names below ``/dev/shm`` that this gateway's state directory leads to."""
        if not TMPFS.is_dir():
            return set()
        links = [link.resolve() for link in self.state_dir.glob("registry*")]
        return {link.name for link in links if link.parent == TMPFS and link.exists()}

    def ports_free(self) -> bool:
        """Whether both ports can be bound again, exclusively."""
        for url in (self.url, self.ops):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", int(url.rpartition(":")[2])))
                except OSError:
                    return False
        return True

    def connections_of(self, pid: int, *ports: int) -> int:
        """How many established connections a process has from or to those ports."""
        try:
            held = psutil.Process(pid).net_connections("tcp")
        except psutil.Error:
            return 0
        return sum(
            c.status == psutil.CONN_ESTABLISHED
            and bool({c.laddr.port, c.raddr.port if c.raddr else 0} & set(ports))
            for c in held
        )

    def end(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 40.0) -> None:
        """Stop with exit code 0 although tracebacks were wanted."""
        session = self.pid
        self.send_signal(number)
        assert self.wait(timeout_s) == 0, self.stderr
        wait_for(lambda: not self.processes() - {session}, 10.0, "no process left")
        self.close()

    def close_unswept(self) -> None:
        """Forget the processes of a run that was killed; its registry is the next run's affair."""
        super().close()

    def close(self) -> None:
        """Kill what is left, and drop the registry that a killed gateway leaves on the tmpfs."""
        super().close()
        for link in self.state_dir.glob("registry*"):
            link.resolve().unlink(missing_ok=True)


def logged_at(event: dict[str, Any]) -> float:
    """Wall-clock time of a line of the log."""
    return datetime.fromisoformat(event["timestamp"]).timestamp()


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to one process."""
    os.kill(pid, number)
