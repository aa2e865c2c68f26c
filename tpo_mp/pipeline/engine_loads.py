"""What engines say of their load and slots, for one process; see ``shm.engine_load``.

Invariants: a look costs one look at a row a hundred times a second and backend; nobody waits.
"""

from __future__ import annotations

from typing import Final

from tpo_mp.ports import Env
from tpo_mp.shm.engine_load import EngineLoad, load_row, read_engine, read_slots, slots_row

LOOK_S: Final = 0.01


class EngineLoads:
    """The newest readings, by backend."""

    def __init__(self, env: Env) -> None:
        self._look = env.ledger.look
        self._clock = env.clock
        self._known: dict[str, tuple[float, EngineLoad | None]] = {}
        self._slots: dict[str, tuple[float, int]] = {}

    def of(self, name: str) -> EngineLoad | None:
        """One backend's; ``None``: nothing is known."""
        now = self._clock()
        known = self._known.get(name)
        if known is not None and now < known[0]:
            return known[1]
        found = read_engine(self._look(load_row(name)), now)
        self._known[name] = (now + LOOK_S, found)
        return found

    def slots(self, name: str) -> int:
        """How many slots one backend says it has, or ``NONE_KEPT``; 0: that is not known."""
        now = self._clock()
        known = self._slots.get(name)
        if known is not None and now < known[0]:
            return known[1]
        found = read_slots(self._look(slots_row(name)), now)
        self._slots[name] = (now + LOOK_S, found)
        return found
