"""Requests over a limit that wait for their turn, counted on the whole host.

One name of the ledger per caller: how many wait, and when the last of them will have had its turn.
A process that dies takes its waiting requests along without saying so; they are forgotten when the
line would have been empty, so a place is never lost for longer than the line is.

Known weakness: until then the line is shorter than configured.
"""

from __future__ import annotations

from tpo_mp.ports import Cells, Ledger


class WaitingLine:
    """The lines of a provider's callers; ``most`` wait in each, instants are the host's clock's."""

    def __init__(self, ledger: Ledger, most: int) -> None:
        self._ledger = ledger
        self._most = most

    def join(self, name: str, now: float, wait_s: float) -> bool:
        """Take a place for at least ``wait_s``; False: none is left."""
        joined = False

        def take(cells: Cells) -> Cells:
            nonlocal joined
            waiting, until = (cells[0], cells[1]) if now <= cells[1] else (0.0, 0.0)
            joined = waiting < self._most
            if not joined:
                return cells
            return (waiting + 1, max(until, now + wait_s), 0.0, 0.0)

        self._ledger.update(_own(name), take, crowd=True)
        return joined

    def stay(self, name: str, until: float) -> None:
        """Somebody in the line waits until then."""
        self._ledger.update(
            _own(name), lambda cells: (cells[0], max(cells[1], until), 0.0, 0.0), crowd=True
        )

    def leave(self, name: str) -> None:
        """Give the place back."""
        self._ledger.update(
            _own(name), lambda cells: (max(cells[0] - 1, 0.0), *cells[1:]), crowd=True
        )


def _own(name: str) -> str:
    return f"{name}:line"
