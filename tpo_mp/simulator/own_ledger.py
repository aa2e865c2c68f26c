"""The host's ledger as one simulator of several sees it: its names are its own.

Two backends of one config may have rules or scenarios of the same name; what each counts, and when
each began, is its own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tpo_mp.ports import Cells, Ledger, Watch


class OwnLedger:
    """A ledger whose names end in ``@owner``; implements ``ports.Ledger``."""

    __slots__ = ("_ledger", "_mark")

    def __init__(self, ledger: Ledger, owner: str) -> None:
        self._ledger = ledger
        self._mark = f"@{owner}"

    def ordinal(self, name: str, *, crowd: bool = False) -> int:
        """Count one more; see ``ports.Ledger``."""
        return self._ledger.ordinal(name + self._mark, crowd=crowd)

    def update(self, name: str, change: Callable[[Cells], Cells], *, crowd: bool = False) -> Cells:
        """Change a name's numbers; see ``ports.Ledger``."""
        return self._ledger.update(name + self._mark, change, crowd=crowd)

    def look(self, name: str, *, crowd: bool = False) -> Cells:
        """A name's numbers; see ``ports.Ledger``."""
        return self._ledger.look(name + self._mark, crowd=crowd)

    def watch(self, *names: str, crowd: Sequence[str] = ()) -> Watch:
        """Look at names; see ``ports.Ledger``."""
        others = [name + self._mark for name in crowd]
        return self._ledger.watch(*(name + self._mark for name in names), crowd=others)
