"""Which engine processes of this host run, written where the next start finds it.

``DIR/engine-NAME.run`` holds one JSON object: the process that leads the engine's group, when that
process began (seconds since 1970, as the kernel tells it), and a random token that every process of
the engine has in its environment as ``TPO_ENGINE_TOKEN``.

Invariants: nothing is killed but a group whose leader began at the moment written down, and
processes that have the token, so a number that was given to somebody else kills nobody.
Known weakness: a process that made itself a new environment and left the group, or whose leader is
gone, is not found.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

TOKEN = "TPO_ENGINE_TOKEN"  # noqa: S105 - the name of a mark, no credential
_SAME_S = 0.1
_PASSES = 50
_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """One engine's group: its leader, when that began, and the mark of its members."""

    name: str
    pid: int
    started_at: float
    token: str

    @classmethod
    def of(cls, name: str, pid: int, token: str) -> EngineRecord:
        """Describe a process that was just started."""
        try:
            started_at = psutil.Process(pid).create_time()
        except psutil.Error:
            started_at = 0.0
        return cls(name, pid, started_at, token)


def record_path(state_dir: Path, name: str) -> Path:
    """Where an engine's record lies."""
    return state_dir / f"engine-{name}.run"


def write_record(state_dir: Path, record: EngineRecord) -> None:
    """Write it whole or not at all."""
    path = record_path(state_dir, record.name)
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(json.dumps(asdict(record)))
    fresh.replace(path)


def read_record(path: Path) -> EngineRecord | None:
    """Read one; ``None`` for what is damaged or not there."""
    try:
        found = json.loads(path.read_text())
        return EngineRecord(
            str(found["name"]), int(found["pid"]), float(found["started_at"]), str(found["token"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def clear_leftovers(state_dir: Path) -> list[str]:
    """Kill whatever earlier runs left of their engines; name those of which something lived."""
    killed = []
    for path in sorted(state_dir.glob("engine-*.run")):
        record = read_record(path)
        if record is not None and kill_engine(record):
            killed.append(record.name)
        path.unlink(missing_ok=True)
    return killed


def kill_engine(record: EngineRecord, passes: int = _PASSES) -> int:
    """Kill every process of an engine until none is left; answer how many there were at first."""
    first = 0
    for turn in range(passes):
        living = list(_members(record))
        first = first or len(living)
        if not living:
            break
        for process in living:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        if turn + 1 < passes:
            time.sleep(_PAUSE_S)  # the kernel is ending them
    return first


def _members(record: EngineRecord) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if _in_group(process, record) or _marked(process, record.token):
                yield process


def _in_group(process: psutil.Process, record: EngineRecord) -> bool:
    """Whether it leads the group, or is in it while the leader is there to be known again."""
    if os.getpgid(process.pid) != record.pid:
        return False
    try:
        return _same(psutil.Process(record.pid), record)
    except psutil.NoSuchProcess:
        return False


def _same(process: psutil.Process, record: EngineRecord) -> bool:
    return abs(process.create_time() - record.started_at) < _SAME_S


def _marked(process: psutil.Process, token: str) -> bool:
    return bool(token) and process.environ().get(TOKEN) == token
