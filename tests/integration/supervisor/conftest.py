"""Gateways whose workers and control are fakes, so that only the supervisor is under test."""

from __future__ import annotations

import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.wait import wait_for

FAKES = {
    "TPO_TEST": "1",
    "TPO_WORKER_MODULE": "tests.support.fake_worker",
    "TPO_CONTROL_MODULE": "tests.support.fake_worker",
}


class FakeGateway(Gateway):
    """A gateway of fake workers; ``prefix`` is a command that runs it, with limits for example."""

    def __init__(
        self, folder: Path, *args: str, prefix: Sequence[str] = (), **options: Any
    ) -> None:
        super().__init__(folder, *args, **options)
        self._prefix = list(prefix)

    @property
    def command(self) -> list[str]:
        """The command line it is started with."""
        return [*self._prefix, *super().command]

    def vice(self, role: str, name: str) -> None:
        """Name the vice of every process of ``role`` started from now on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{role}.vice").write_text(name)

    def knock(self) -> str:
        """Connect once and answer which seat took it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as client:
            client.settimeout(30)
            return b"".join(iter(lambda: client.recv(64), b"")).decode().strip()

    def slot(self, index: int) -> dict[str, Any]:
        """One slot of the status."""
        found: dict[str, Any] = self.status()["slots"][index]
        return found

    def close(self) -> None:
        """Kill what is left, and drop the registry that a killed gateway leaves on the tmpfs."""
        super().close()
        for link in self.state_dir.glob("registry*"):
            link.resolve().unlink(missing_ok=True)

    def end(self) -> None:
        """Stop in good order although tracebacks of its fakes were wanted."""
        self.send_signal(signal.SIGTERM)
        assert self.wait(40) == 0
        self.close()

    def warm(self) -> None:
        """Wait for the parked spare."""
        wait_for(lambda: self.status()["spare"].get("state") == "parked", 10, "a parked spare")


Fakes = Callable[..., FakeGateway]


@pytest.fixture
def fakes(short_tmp: Path) -> Iterator[Fakes]:
    """Make fake gateways; each still running at the end must stop in good order."""
    with ExitStack() as running:

        def make(*args: str, start: bool = True, **options: Any) -> FakeGateway:
            env = FAKES | options.pop("env", {})
            options.setdefault("workers", 2)
            vice = options.pop("vice", "")
            gateway = FakeGateway(Path(tempfile.mkdtemp(dir=short_tmp)), *args, env=env, **options)
            gateway.vice("shard", vice)
            running.callback(gateway.close)  # also when the test fails half-way
            return running.enter_context(gateway) if start else gateway

        yield make
