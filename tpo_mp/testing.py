"""A pytest plugin: the fixture ``llm_simulator``, a provider that answers what a test tells it to.

The simulator is a process of its own, started once per session when a test first asks for it; each
test finds it without rules and without a journal.  The plugin comes with the package; where entry
points are switched off, ``pytest_plugins = ["tpo_mp.testing"]`` loads it.

Invariants: nothing of a gateway is imported into the test process; a simulator that does not start
fails the test with what it said; it is stopped at the end of the session.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from multiprocessing import connection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

ARGS: Final = "llm_simulator_args"
READY_S: Final = 30.0
_READY: Final = re.compile(r"tpo-mp ready (http://\S+) ")
_ASK_S: Final = 10.0
_STOP_S: Final = 10.0


class LlmSimulator:
    """A running simulator, and what tests tell it.

    ``base_url`` is where it is; OpenAI's and Gemini's clients take ``base_url + "/v1"`` and
    ``base_url``, Anthropic's takes ``base_url``.
    """

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self._failures: list[dict[str, Any]] = []
        self._rules: list[dict[str, Any]] = []
        self._number = count(1)

    def reply_with(
        self,
        text: str | None = None,
        *,
        tool_calls: Sequence[Mapping[str, Any]] = (),
        error: str | int = "",
        fault: str = "",
        times: int = 0,
        **match: Any,
    ) -> None:
        """Answer requests so from now on; the newest rule is asked first.

        ``match`` is what they must be: ``model``, ``contains``, ``regex``, ``turn``,
        ``tool_result``; ``tool_calls`` are ``{"name": …, "arguments": {…}}``; ``times`` 0 is for
        ever.  Raises ``ValueError`` for what the simulator does not take.
        """
        reply: dict[str, Any] = {"tool_calls": list(tool_calls), "error": error, "fault": fault}
        if text is not None:
            reply["text"] = text
        self._tell(self._failures, [self._rule(match, reply, times), *self._rules])

    def fail_next(self, times: int = 1, error: str | int = 500, **match: Any) -> None:
        """Refuse the next requests, whatever else is told; several orders come in turn.

        ``error`` is a status or what ``X-Sim-Error`` says.
        """
        self._tell([*self._failures, self._rule(match, {"error": error}, times)], self._rules)

    def strict(self) -> None:
        """Refuse what no rule matches, until the test ends."""
        self.configure(strict=True)

    def configure(self, **options: Any) -> None:
        """Change options of ``[simulator]`` until the test ends; ``None`` gives one back.

        Raises ``ValueError`` for what the simulator does not take.
        """
        self.ask("POST", "/admin/config", options)

    @property
    def journal(self) -> list[dict[str, Any]]:
        """The requests of this test so far, the last one last."""
        entries: list[dict[str, Any]] = self.ask("GET", "/admin/journal")["entries"]
        return entries

    def reset(self) -> None:
        """Forget rules, options and journal."""
        options = self.ask("GET", "/admin/config")["changed"]
        self._failures, self._rules = [], []
        self.ask("POST", "/admin/config", dict.fromkeys(options) | {"journal": {"enabled": True}})
        self.ask("DELETE", "/admin/journal")

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request with a JSON answer; raises ``ValueError`` when it is refused."""
        url = urlsplit(self.base_url)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=_ASK_S)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, path, sent, {"content-type": "application/json"})
            reply = connection.getresponse()
            told = json.loads(reply.read())
        finally:
            connection.close()
        if reply.status != 200:
            raise ValueError(told["error"]["message"])
        return told

    def _rule(
        self, match: Mapping[str, Any], reply: Mapping[str, Any], times: int
    ) -> dict[str, Any]:
        """A rule that counts apart from all others."""
        name = f"test-{os.getpid()}-{next(self._number)}"
        return {"name": name, "match": match, "reply": reply, "times": times}

    def _tell(self, failures: list[dict[str, Any]], rules: list[dict[str, Any]]) -> None:
        self.configure(rules=[*failures, *rules])
        self._failures, self._rules = failures, rules


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the plugin."""
    parser.addini(ARGS, "More arguments of `tpo-mp simulate`.", default="")


@pytest.fixture(scope="session")
def llm_simulator_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the session's simulator is."""
    more = shlex.split(request.config.getini(ARGS))
    with tempfile.TemporaryDirectory(prefix="tpo-mp-") as folder:
        yield from _running(Path(folder), more)


@pytest.fixture
def llm_simulator(llm_simulator_url: str) -> LlmSimulator:
    """The session's simulator, with nothing of earlier tests."""
    simulator = LlmSimulator(llm_simulator_url)
    simulator.reset()
    return simulator


def _running(folder: Path, more: Sequence[str]) -> Iterator[str]:
    command = [
        sys.executable, "-m", "tpo_mp", "simulate", "--port", "0", "--ops-port", "0",
        "--workers", "1", "--state-dir", str(folder / "state"), *more,
    ]  # fmt: skip
    log = folder / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
    try:
        assert process.stdout is not None
        url = _ready_url(process.stdout.fileno(), time.monotonic() + READY_S)
        if url is None:
            said = log.read_text(errors="replace")[-2000:].strip()
            pytest.fail(f"tpo-mp simulate did not start: {said}", pytrace=False)
        yield url
    finally:
        _stop(process)


def _ready_url(stdout: int, until: float) -> str | None:
    """The URL of the ready line; ``None``: it did not come in time."""
    said = b""
    while True:
        # Not select: it takes no descriptor above 1023, and a test process may have more.
        readable = connection.wait([stdout], max(until - time.monotonic(), 0))
        chunk = os.read(stdout, 4096) if readable else b""
        said += chunk
        found = _READY.search(said.decode(errors="replace"))
        if found is not None:
            return found[1]
        if not chunk:
            return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
