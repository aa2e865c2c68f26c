"""A Redis of a test's own: a real server on a socket in a folder, that can be ill."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest

from .wait import wait_for


class RedisServer:
    """One ``redis-server`` without persistence; a context manager."""

    def __init__(self, folder: Path, *options: str) -> None:
        """``options`` are more words of its command line."""
        self.folder = folder
        self._options = options
        self.socket = folder / "redis.sock"
        self._child: subprocess.Popen[bytes] | None = None
        program = shutil.which("redis-server")
        if program is None:
            if os.environ.get("CI"):
                pytest.fail("redis-server is not installed")
            pytest.skip("redis-server is not installed")
        self._program = program

    @property
    def url(self) -> str:
        """What a gateway is told."""
        return f"unix://{self.socket}"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def start(self) -> None:
        """Serve, with nothing in it."""
        self._child = subprocess.Popen(
            [self._program, "--port", "0", "--unixsocket", str(self.socket), "--save", "",
             "--appendonly", "no", "--dir", str(self.folder), "--maxmemory", "64mb",
             *self._options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for(self._answers, 20, "Redis to serve")

    def _answers(self) -> bool:
        try:
            return bool(self.ask("PING"))
        except OSError:
            return False

    def kill(self) -> None:
        """It is gone, and what it held."""
        child, self._child = self._child, None
        if child is not None:
            child.send_signal(signal.SIGCONT)
            child.kill()
            child.wait()

    def stop(self) -> None:
        """It answers nothing any more."""
        assert self._child is not None
        self._child.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It answers again, what it was asked before, too."""
        assert self._child is not None
        self._child.send_signal(signal.SIGCONT)

    def ask(self, *words: str | bytes) -> Any:
        """The reply to one command, over a connection of its own."""
        import redis

        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self.socket))
        client = redis.Redis(unix_socket_path=str(self.socket), socket_timeout=10)
        try:
            return client.execute_command(*words)
        except redis.ConnectionError as e:
            raise OSError(str(e)) from None
        finally:
            client.close()
