"""How much memory this process's control group may still take, and whom the kernel killed for it.

Both versions of control groups are read, from this process's own group up to the root, since each
limit holds.  Pages of files do not count as taken: the kernel gives them up before it kills.

Invariant: what cannot be read costs its fact and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from . import placement

_NO_LIMIT: Final = 1 << 60
"""Version 1 says "no limit" by a number near the largest there is."""
_LIMITS: Final = ("memory.max", "memory.limit_in_bytes")
_USED: Final = ("memory.current", "memory.usage_in_bytes")
_FILES: Final = ("inactive_file", "active_file")
_KILLS: Final = ("memory.events", "memory.oom_control")


class MemoryRoom(NamedTuple):
    """The group with the least room: its limit and what it holds that cannot be given up, bytes."""

    limit: int
    held: int

    @property
    def left(self) -> int:
        """Bytes until its limit."""
        return max(self.limit - self.held, 0)


def limit_bytes(root: Path, own: Path) -> int | None:
    """The least limit; ``None`` when there is none."""
    limits = (_limit(folder) for folder in placement.cgroup_folders(root, own, "memory"))
    return min((limit for limit in limits if limit is not None), default=None)


def room(root: Path | None = None, own: Path | None = None) -> MemoryRoom | None:
    """The group with the least room; ``None`` where no limit holds."""
    found: list[MemoryRoom] = []
    for folder in _folders(root, own):
        limit, used = _limit(folder), _first(folder, _USED)
        if limit is not None and used is not None:
            stat = _table(folder / "memory.stat")
            given_up = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in _FILES)
            found.append(MemoryRoom(limit, max(used - given_up, 0)))
    return min(found, key=lambda one: one.left, default=None)


def kills(root: Path | None = None, own: Path | None = None) -> int:
    """How often the kernel killed in these groups since there was no more memory for them."""
    tables = (_table(folder / name) for folder in _folders(root, own) for name in _KILLS)
    return sum(table.get("oom_kill", 0) for table in tables)


def _folders(root: Path | None, own: Path | None) -> list[Path]:
    return placement.cgroup_folders(root or placement.CGROUP, own or placement.OWN_CGROUP, "memory")


def _limit(folder: Path) -> int | None:
    limit = _first(folder, _LIMITS)
    return None if limit is None or limit >= _NO_LIMIT else limit


def _first(folder: Path, names: tuple[str, ...]) -> int | None:
    for name in names:
        text = _text(folder / name).strip()
        if text.isdigit():
            return int(text)
    return None


def _table(path: Path) -> dict[str, int]:
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
