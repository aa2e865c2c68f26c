"""Processes that import what every one of their kind needs while the configuration is compiled.

A worker and control import for longer than anything else in a start takes, and need the
configuration for none of it.  So they are started with the compiler, and get their handoff later,
over a socket (``shm.late_handoff``).  From there on they are children as any other.

::

    start ──► imports ──► waits ──► handoff: a child of the nursery
                              `───► end of file: nobody needs it, it exits

Invariants: whoever has no handoff serves nobody, maps nothing and lives no longer than its
supervisor; a handoff that one did not take goes to a new process; once the host is ready no such
process is left, so that one started later runs the code that is on the disk then.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

import tpo_mp
from tpo_mp.shm import late_handoff
from tpo_mp.shm.handoff import Handoff
from tpo_mp.shm.lifeline import IGNORED

Role: TypeAlias = Literal["shard", "control"]
PASSED = frozenset({
    "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LOGNAME", "PATH",
    "SHELL", "TEMP", "TERM", "TMP", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV",
    "TPO_FAILPOINTS", "TPO_FAILPOINTS_SEED", "TPO_PORTABLE", "TPO_SYSTEM_ROOT",
    "TPO_TEST",
})  # fmt: skip
PASSED_PREFIXES = ("CUDA_", "HF_", "LC_", "MLX_", "NVIDIA_", "PYTHON", "SSL_CERT_", "XDG_")
MODULES: dict[Role, str] = {"shard": "tpo_mp.worker", "control": "tpo_mp.control"}
_OVERRIDES: dict[Role, str] = {"shard": "TPO_WORKER_MODULE", "control": "TPO_CONTROL_MODULE"}
MOST_EARLY: Final = 8
_WORKERS: Final = ("TPO_WORKERS", "WORKERS")
_COUNTS: Final = frozenset(map(str, range(1, 65)))
REAP_S: Final = 5.0


def clean_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return what of ``env`` a child may see."""
    kept = {
        name: value
        for name, value in env.items()
        if name in PASSED or name.startswith(PASSED_PREFIXES)
    }
    root = Path(tpo_mp.__file__).parents[1]
    if root.name not in {"site-packages", "dist-packages"}:
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), kept.get("PYTHONPATH"))))
    return kept


def module_command(role: Role, env: Mapping[str, str]) -> list[str]:
    """Return the command line of a role; tests may name another module (``TPO_TEST=1`` only)."""
    module = MODULES[role]
    if env.get("TPO_TEST") == "1":
        module = env.get(_OVERRIDES[role], module)
    # -P: a file called json.py in the working directory must not become our json.
    return [sys.executable, "-P", "-m", module]


def early_workers(flags: Mapping[str, Any], cpus: int) -> int:
    """How many workers of a start without a file may import at once; ``cpus``: those we may use."""
    told = (flags.get("workers"), *(os.environ.get(name) for name in _WORKERS))
    given = next((str(value).strip() for value in told if value), "")
    wanted = int(given) if given in _COUNTS else cpus
    return min(wanted, cpus, MOST_EARLY)


class Cradle:
    """Those that wait for their handoff, by role."""

    def __init__(self) -> None:
        self._waiting: dict[Role, list[tuple[subprocess.Popen[bytes], socket.socket]]] = {
            "shard": [], "control": [],
        }  # fmt: skip
        self._leaving: list[subprocess.Popen[bytes]] = []
        self.taken = 0
        """How many got a handoff."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def fill(self, workers: int) -> None:
        """Start control and workers up to so many, as far as the machine lets us.

        None for a role that a test gives to another module.
        """
        wanted: dict[Role, int] = {"shard": workers, "control": 1}
        with suppress(OSError):
            for role, number in wanted.items():
                if module_command(role, os.environ)[-1] == MODULES[role]:
                    while len(self._waiting[role]) < number:
                        self._waiting[role].append(_started(role))

    def take(self, role: Role, handoff: Handoff) -> subprocess.Popen[bytes] | None:
        """The process that has this handoff now, if there was one to give it to."""
        while self._waiting[role]:
            process, end = self._waiting[role].pop(0)
            with end:
                given = late_handoff.give(end, handoff.to_json(), handoff.descriptors())
            if given and process.poll() is None:
                self.taken += 1
                return process
            self._end(process)
        return None

    def empty(self) -> None:
        """End all that wait, without waiting for that."""
        for waiting in self._waiting.values():
            for process, end in waiting:
                end.close()
                self._end(process)
            waiting.clear()

    def reap(self) -> None:
        """Collect those that have ended."""
        self._leaving = [process for process in self._leaving if process.poll() is None]

    def close(self) -> None:
        """End all that wait, and see them gone."""
        self.empty()
        for process in self._leaving:
            with suppress(subprocess.TimeoutExpired):
                process.wait(REAP_S)
        self._leaving.clear()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        self._leaving.append(process)


def _started(role: Role) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, its = socket.socketpair()
    # It inherits the mask: a Ctrl-C must not meet an interpreter that is still starting.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        process = subprocess.Popen(
            module_command(role, os.environ),
            stdin=subprocess.DEVNULL,
            env=clean_environment(os.environ) | {late_handoff.ENV: str(its.fileno())},
            pass_fds=(its.fileno(),),
        )
    except BaseException:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        its.close()
    return process, ours
