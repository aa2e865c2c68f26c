"""Keeps the counts that outlive the host: writes down what changed, and puts it back at a start.

Once a second the keeper's thread looks at the quotas and writes the counts that changed.  They are
put back by the first control process of a host, before it is ready, and so before the host says
that it is; what workers counted meanwhile is added.  A later one finds the quotas as they are.

Invariants: a host that dies forgets at most the last second, one that is stopped nothing; counts
are put back once, at most: a control process that dies over it leaves the rest forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

from tpo_mp.observe.log import FilteringBoundLogger
from tpo_mp.pipeline.allowance import joined
from tpo_mp.ports import Cells
from tpo_mp.shm.ledger import SharedLedger
from tpo_mp.shm.quotas import SharedQuotas
from tpo_mp.shm.quotas_kept import KeptRow, KeptRows, restore
from tpo_mp.store.counts import CountTable
from tpo_mp.store.shelf import Shelf

from .keeper import Keeper

EVERY_S: Final = 1.0
TIDY_S: Final = 3600.0
PATIENCE_S: Final = 5.0
"""A disk that takes longer to answer does not keep the host from serving."""
RESTORED: Final = "counts:restored"


class Counts:
    """The counts of one host; lives on the loop, works on the keeper's thread."""

    def __init__(
        self,
        quotas: SharedQuotas,
        ledger: SharedLedger,
        keeper: Keeper,
        log: FilteringBoundLogger,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._quotas = quotas
        self._rows = KeptRows(quotas)
        self._ledger = ledger
        self._keeper = keeper
        self._log = log
        self._clock = clock
        self._busy = False
        self._due_at = 0.0
        self._tidy_at = 0.0
        self._table: CountTable | None = None
        self.restored = 0
        self.written = 0

    async def restore(self) -> None:
        """Put back what an earlier host wrote down, unless that was done already."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(count: int | None) -> None:
            if count is None:
                self._log.error("counts_not_restored")
            self.restored = count or 0
            if not over.done():
                over.set_result(None)

        self._keeper.submit(self._put_back, done)
        try:
            await asyncio.wait_for(over, PATIENCE_S)
        except TimeoutError:
            self._log.error("counts_late", waited_s=PATIENCE_S)

    def tick(self) -> None:
        """Write down what changed in the last second."""
        if self._busy or self._clock() < self._due_at:
            return
        self._busy = True
        self._due_at = self._clock() + EVERY_S

        def done(count: int | None) -> None:
            self._busy = False
            if count is None:
                self._rows.forget()  # the transaction failed: all of it again
            else:
                self.written += count

        self._keeper.submit(self._write_down, done, writes=True)

    def end(self) -> None:
        """Write down what is left; nobody counts any more."""
        self._keeper.submit(self._write_down, writes=True)

    # -- on the keeper's thread -------------------------------------------------------------------

    def _put_back(self, shelf: Shelf) -> int:
        table = shelf.counts
        if table is None or not self._first():
            return 0
        return restore(self._quotas, (KeptRow(*row) for row in table.kept()), joined)

    def _first(self) -> bool:
        """Whether no control process of this host has been here."""

        def once(cells: Cells) -> Cells:
            return (cells[0] + 1, *cells[1:])

        return self._ledger.update(RESTORED, once)[0] == 1

    def _write_down(self, shelf: Shelf) -> int | None:
        table = shelf.counts
        if table is None:
            return 0
        if table is not self._table:
            self._table = table  # a new database knows nothing yet
            self._rows.forget()
        rows = self._rows.changed()
        if rows:
            table.keep(rows)
        if self._clock() >= self._tidy_at:
            self._tidy_at = self._clock() + TIDY_S
            table.tidy()
        return len(rows)
