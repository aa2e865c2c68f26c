"""Files that options name, read once and kept, because a simulator is built anew when it is told
something.

A file is known by its path, the moment it was last written and its size; one that is written anew
is read anew.

Invariants: what is no plain file is refused unopened (a pipe has no end); what was found wrong is
kept as well, so that nothing is read twice; so many files are kept, the newest; any thread may ask.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from stat import S_ISREG
from threading import Lock
from typing import Final, Generic, TypeAlias, TypeVar

from tpo_mp.errors import ConfigError

T = TypeVar("T")
_Key: TypeAlias = tuple[Path, int, int]
LINES_AT_ONCE: Final = 200
_GIVE_WAY_S: Final = 0.000_05


class KeptFiles(Generic[T]):
    """What ``parse`` makes of files of at most so many bytes; the newest ``most`` are kept."""

    def __init__(self, parse: Callable[[Path], T], *, most: int, most_bytes: int) -> None:
        """``parse`` raises ``ConfigError``."""
        self._parse = parse
        self._most = most
        self._most_bytes = most_bytes
        self._found: dict[_Key, T | ConfigError] = {}
        self._lock = Lock()

    def knows(self, path: Path) -> bool:
        """Whether ``read`` would answer without reading."""
        try:
            key = self._key(path)
        except ConfigError:
            return True  # and what it would answer is that
        with self._lock:
            return key in self._found

    def read(self, path: Path) -> T:
        """What is in a file; raises ``ConfigError`` with its path and the reason."""
        key = self._key(path)
        with self._lock:
            found = self._found.get(key)
        if found is None:
            found = self._outcome(path)
            with self._lock:
                self._found[key] = found
                while len(self._found) > self._most:
                    del self._found[next(iter(self._found))]
        if isinstance(found, ConfigError):
            raise ConfigError(found.message)
        return found

    def _outcome(self, path: Path) -> T | ConfigError:
        try:
            return self._parse(path)
        except ConfigError as error:
            return ConfigError(error.message)  # without the frames that hold what was read
        except OSError as error:
            return ConfigError(f"{path}: {error.strerror}")

    def _key(self, path: Path) -> _Key:
        try:
            stat = path.stat()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{str(path)!r}: {error}") from None
        if not S_ISREG(stat.st_mode):
            raise ConfigError(f"{path}: not a plain file")
        if stat.st_size > self._most_bytes:
            raise ConfigError(f"{path}: over {self._most_bytes} bytes")
        return path, stat.st_mtime_ns, stat.st_size


def giving_way(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1 on, and room for other threads.

    A thread that computes without a pause lets a loop beside it run every 5 ms only.
    """
    for number, line in enumerate(lines, 1):
        if number % LINES_AT_ONCE == 0:
            time.sleep(_GIVE_WAY_S)
        if line.strip():
            yield number, line
