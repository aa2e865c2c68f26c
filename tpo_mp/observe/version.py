"""Which program runs: its version, how old its files are, and what it can do.

Both ports answer ``/version`` from here, so they cannot disagree.

Invariants: ``BUILD_TIMESTAMP`` is decided once, when a process imports this; features are listed by
file name and entry point, without importing any.
"""

from __future__ import annotations

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
    times = [file.stat().st_mtime for file in package.rglob("*.py")]
    if not times:
        return None
    return datetime.fromtimestamp(int(max(times)), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
