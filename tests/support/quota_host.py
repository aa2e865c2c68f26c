"""The quotas of a host in one process: each seat sees them as a process of its own would."""

from __future__ import annotations

from tests.support.fake_env import SilentSeries
from tpo_mp.shm.quotas import QuotaSegment, SharedQuotas
from tpo_mp.shm.rows import RowTable

ROWS = 64
SEATS = 3


class QuotaHost:
    """Three seats, one set of names; ``dies`` is what the supervisor does after a death."""

    def __init__(self) -> None:
        self.table = RowTable.create(8)
        self.segment = QuotaSegment.make(SEATS, ROWS)
        self.epochs = [1] * SEATS
        self.refused = SilentSeries()

    def seat(self, number: int) -> SharedQuotas:
        """What a process on a seat sees."""
        return SharedQuotas(
            self.segment, self.table, seat=number, epoch_of=self.epochs.__getitem__, sharers=2,
            refused=self.refused,
        )  # fmt: skip

    def dies(self, number: int) -> None:
        """The seat's occupant is gone, and with it the locks it held."""
        self.epochs[number] += 1
        self.table._held.clear()

    def close(self) -> None:
        """Leave nothing behind."""
        self.segment.close()
        self.table.close()
