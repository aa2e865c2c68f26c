"""Which model names may be metric labels: a client must not fill the page with names it invents.

Names of the config are.  Where a glob lets any name pass, one that an upstream answered for is
learnt, up to ``MAX_LEARNT`` per process; everything else is ``other``.

Invariants: once a label, always a label, so that a series never stops for another name.
"""

from __future__ import annotations

from collections.abc import Iterable

from tpo_mp.shm.metrics import OTHER

MAX_LEARNT = 32


class ModelLabels:
    """The labels of one process; ``known`` is looked up per call."""

    __slots__ = ("_learnt", "known")

    def __init__(self) -> None:
        self.known: set[str] = set()
        self._learnt = 0

    def use(self, configured: Iterable[str]) -> None:
        """Take over the names of a config."""
        self.known.update(configured)

    def label(self, model: str, status: int) -> str:
        """The label of a name that is not known: itself, if it was answered for."""
        if status != 200 or self._learnt >= MAX_LEARNT:
            return OTHER
        self._learnt += 1
        self.known.add(model)
        return model
