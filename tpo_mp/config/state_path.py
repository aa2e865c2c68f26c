"""Where a gateway keeps its state: one directory per port, unless the operator names one."""

from __future__ import annotations

from pathlib import Path


def default_path(port: int) -> Path:
    """Return the state directory of the host that serves ``port``."""
    return Path.home() / ".local" / "state" / "tpo-mp" / str(port)


def state_path(named: str, port: int) -> Path:
    """Return the directory that was named, or the port's own."""
    return Path(named).expanduser().absolute() if named else default_path(port)
