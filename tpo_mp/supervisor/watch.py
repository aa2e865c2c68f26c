"""Notices that the config file changed, by looking at it (``supervisor.watch_config``).

Invariant: a change counts once the file has been still for ``DEBOUNCE_S``, since editors write in
several steps; a file that is missing for a moment is not a change.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

DEBOUNCE_S = 0.2
_Stamp: TypeAlias = tuple[int, int, int]


class FileWatch:
    """Watches one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._seen = _stamp(path)
        self._since = 0.0

    def changed(self, now: float) -> bool:
        """Say, once per change, that the file is another than before."""
        stamp = _stamp(self._path)
        if stamp is None:
            return False
        if stamp != self._seen:
            self._seen, self._since = stamp, now
        if self._seen == self._known or now - self._since < DEBOUNCE_S:
            return False
        self._known = self._seen
        return True


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
