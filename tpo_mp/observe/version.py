"""Which program runs: its version, how old its files are, and what it can do.

Both ports answer ``/version`` from here, so they cannot disagree.

Invariants: ``BUILD_TIMESTAMP`` is decided once, when a process imports this; features are listed by
file name and entry point, without importing any.
Known weakness: features are listed when they are first asked for, since every installed package is
looked at: a process that an upgrade of its files has outlived may list those of the new ones.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, get_args

from tpo_mp import __version__, registry
from tpo_mp.ports import Door


def newest_file(package: Path) -> str | None:
    """When the newest source file below ``package`` was written, in UTC as RFC 3339 asks.

    An installation writes its files as it unpacks them, or with the times of its archive; a package
    that does not lie in files (a zip archive) has no answer.
    """
    newest = _newest(package)
    if newest is None:
        return None
    return datetime.fromtimestamp(int(newest), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _newest(folder: str | Path) -> float | None:
    """Seconds; a tenth of the work of ``rglob``, as every process does this while it starts."""
    found: list[float] = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                found.append(entry.stat().st_mtime)
            elif entry.is_dir(follow_symlinks=False):
                below = _newest(entry.path)
                found += () if below is None else (below,)
    return max(found, default=None)


BUILD_TIMESTAMP = newest_file(Path(__file__).parent.parent)
"""Of this process's own files."""


@cache
def features() -> tuple[str, ...]:
    """Name what may be configured as ``door/name``, sorted; read off the disk once."""
    doors = get_args(Door)
    return tuple(sorted(f"{door}/{name}" for door in doors for name in registry.names(door)))


def version() -> dict[str, Any]:
    """Make the body of ``/version``."""
    return {
        "name": "tpo-mp",
        "version": __version__,
        "build_timestamp": BUILD_TIMESTAMP,
        "features": features(),
    }
