"""Files that options name, read beside the loop before a simulator is built of the options, be they
told over ``/admin`` or in a file that is loaded again.

Invariants: nothing is raised here; what is wrong with a file is told by whoever builds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tpo_mp.errors import ConfigError

from . import dataset, recordings, samples, traces
from .kept_files import KeptFiles

FILES: Final[dict[str, KeptFiles[Any]]] = {"dataset": dataset.KEPT, "replay": recordings.KEPT}
"""Options that name a file, and where what is in it is kept."""
_DEEPEST: Final = 4
"""How far inside ``profiles`` a ``file`` may stand: NAME, cold_start, first_token_ms, file."""


class ReadAhead:
    """Reads what a new configuration names, before it is built.

    Invariants: files are read once for each configuration, even if one is written meanwhile, or
    there would be no end; whoever waits is called once for each reading.
    """

    __slots__ = ("_epoch", "_reading", "_then", "ready")

    def __init__(self, then: Callable[[], None]) -> None:
        """``then`` is called on the loop when something was read."""
        self._then = then
        self._epoch = -1
        self.ready = False
        """Something was read, and nobody has asked since."""
        self._reading: asyncio.Future[None] | None = None

    def waits(self, epoch: int, configs: Iterable[object]) -> bool:
        """Whether the configuration of this epoch must wait; a new one waits for its own files."""
        self.ready = False
        if self._reading is not None:
            return True
        if epoch == self._epoch:
            return False
        self._epoch = epoch
        work = unread(configs, {})
        if work is None:
            return False
        self._reading = asyncio.get_running_loop().run_in_executor(None, work)
        self._reading.add_done_callback(self._was_read)
        return True

    def _was_read(self, _reading: asyncio.Future[None]) -> None:
        self._reading = None
        self.ready = True
        self._then()


def unread(configs: Iterable[object], options: Mapping[str, Any]) -> Callable[[], None] | None:
    """Reads what must be read to build ``configs`` with ``options`` laid over them.

    None: all of it is known.  The answer is to be called in a thread.
    """
    wanted: list[tuple[KeptFiles[Any], Path]] = []
    for config in configs:
        for name, kept in FILES.items():
            told = options.get(name)
            path = getattr(config, name, "") if told is None else told
            if isinstance(path, str) and path and not kept.knows(Path(path)):
                wanted.append((kept, Path(path)))
        found = {*_own(config), *_named(options.get("profiles"), _DEEPEST)}
        # Which of the two a file is, its first line tells whoever reads it.
        for kept in (samples.KEPT, traces.KEPT):
            wanted += [(kept, path) for path in found if not kept.knows(path)]
    if not wanted:
        return None

    def read() -> None:
        for kept, path in wanted:
            with contextlib.suppress(ConfigError):
                kept.read(path)

    return read


def _own(config: object) -> Iterator[Path]:
    """Files of the profiles that a config has."""
    profiles = getattr(config, "profiles", {})
    for profile in profiles.values():
        for _, part in profile.files():
            yield Path(part.file)


def _named(table: object, depth: int) -> Iterator[Path]:
    """What stands under a key ``file`` in a patch, which may be anything."""
    if not depth or not isinstance(table, Mapping):
        return
    for key, value in table.items():
        if key == "file" and isinstance(value, str) and value:
            yield Path(value)
        else:
            yield from _named(value, depth - 1)
