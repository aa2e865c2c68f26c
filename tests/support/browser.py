"""A real browser for tests of pages: headless Chromium, driven over its own debugging protocol.

Source: Chrome DevTools Protocol, domains Page, Runtime and Log.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from aiohttp import ClientSession, ClientWebSocketResponse

from .wait import wait_for

T = TypeVar("T")
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--disable-extensions", "--remote-debugging-port=0",
)  # fmt: skip


def find() -> str | None:
    """Path of a browser, if one is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of one browser with a profile of its own; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._number = 0
        self._socket: ClientWebSocketResponse
        self._session: ClientSession
        self.events: list[dict[str, Any]] = []
        """Everything the browser told unasked: log entries, console calls, requests."""

    def __enter__(self) -> Self:
        binary = find()
        assert binary is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [binary, *FLAGS, f"--user-data-dir={self._folder}", "about:blank"],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            port = wait_for(self._port, 30, "the browser's port")
            self._run(self._connect(port))
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            with suppress(Exception):
                self._run(self._leave())
        finally:
            self._kill()
            self._loop.close()

    def _port(self) -> int | None:
        found = self._folder / "DevToolsActivePort"
        lines = found.read_text().splitlines() if found.exists() else []
        return int(lines[0]) if len(lines) == 2 else None

    def _kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(asyncio.wait_for(work, 30))

    async def _connect(self, port: int) -> None:
        self._session = ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as listed:
            pages = [one for one in await listed.json() if one["type"] == "page"]
        address = pages[0]["webSocketDebuggerUrl"]
        self._socket = await self._session.ws_connect(address, max_msg_size=0)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._ask(f"{domain}.enable")

    async def _leave(self) -> None:
        await self._ask("Browser.close")
        await self._socket.close()
        await self._session.close()

    async def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            told = json.loads(await self._socket.receive_str())
            if told.get("id") == self._number:
                assert "error" not in told, told
                answer: dict[str, Any] = told["result"]
                return answer
            self.events.append(told)

    def open(self, url: str) -> None:
        """Go to an address."""
        self._run(self._ask("Page.navigate", url=url))

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression, promises awaited."""
        found = self._run(
            self._ask(
                "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
            )
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, timeout_s: float = 30.0) -> Any:
        """Wait for an expression to be true; the page may be loading meanwhile."""
        return wait_for(lambda: self.value(expression), timeout_s, expression)

    def complaints(self) -> list[str]:
        """Errors and warnings of the page: script, policy, network."""
        self.value("1")
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event["method"] == "Log.entryAdded":
                if params["entry"].get("level") == "verbose":
                    continue  # advice, such as on password fields
                found.append(str(params["entry"].get("text")))
            elif event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                found.append(str(params["args"]))
        return found

    def requested(self) -> list[str]:
        """Every address the page asked for."""
        self.value("1")
        sent = (e for e in self.events if e["method"] == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]
