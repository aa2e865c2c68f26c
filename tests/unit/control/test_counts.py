"""Counts that outlive the host: written down, put back once, whatever the disk does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.support.fake_env import SilentMetrics
from tests.support.quota_host import QuotaHost
from tpo_mp.control.counts import RESTORED, Counts
from tpo_mp.control.keeper import Keeper
from tpo_mp.shm.ledger import LEAST_ROWS, SharedLedger
from tpo_mp.shm.rows import RowTable
from tpo_mp.store.shelf import Shelf, ShelfOptions
from tpo_mp.types import Quota


class Host:
    """One life of a host: its counts, and control processes that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = RowTable.create(LEAST_ROWS)
        self.ledger = SharedLedger(self.table, SilentMetrics())
        self.host = QuotaHost()
        self.quotas = self.host.seat(0)
        self.crashes: list[BaseException] = []

    def spend(self, amount: float, name: str = "kept:n", since: float = 0.0) -> None:
        """Count."""

        def more(quota: Quota) -> None:
            quota.cells[0] = since
            quota.cells[1] += amount
            quota.cells[2] += 1

        self.quotas.update(name, more)

    @property
    def spent(self) -> float:
        """What is counted."""
        found = self.quotas.look("kept:n")
        return 0.0 if found is None else found.spent()[1]

    def control(self, work: Any = None, *, ends: bool = True) -> Counts:
        """A control process that puts back, does ``work``, and ends in good order, or not."""

        async def run() -> Counts:
            loop = asyncio.get_running_loop()
            keeper = Keeper(
                lambda: Shelf(self.folder, ShelfOptions()), loop, structlog.get_logger(),
                on_crash=self.crashes.append,
            )  # fmt: skip
            keeper.start()
            counts = Counts(self.host.seat(2), self.ledger, keeper, structlog.get_logger())
            await counts.restore()
            if work is not None:
                await work(counts, keeper)
            if ends:
                counts.end()
            assert await loop.run_in_executor(None, keeper.close, 5.0)
            return counts

        made = asyncio.run(run())
        assert not self.crashes
        return made


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Any]:
    """Lives of one host, one after the other."""
    made: list[Host] = []

    def new() -> Host:
        made.append(Host(tmp_path))
        return made[-1]

    yield new
    for host in made:
        host.table.close()
        host.host.close()


def test_counts_come_back_in_the_next_life(hosts: Any) -> None:
    """What workers counted before they were back is added."""
    first = hosts()
    first.spend(70)
    first.control()
    second = hosts()
    second.spend(5)
    assert second.control().restored == 1
    assert second.spent == 75


def test_they_come_back_once(hosts: Any) -> None:
    """A second control process of the same life leaves them as they are."""
    first = hosts()
    first.spend(70)
    first.control()
    second = hosts()
    second.control()
    assert second.control().restored == 0
    assert second.spent == 70
    assert second.ledger.update(RESTORED, lambda cells: cells)[0] == 2


def test_a_tick_writes_what_changed(hosts: Any) -> None:
    """So that a life that ends in the middle has forgotten a second at most."""
    first = hosts()
    first.spend(70)
    first.spend(9, "not kept")

    async def tick(counts: Counts, keeper: Keeper) -> None:
        counts.tick()
        future = asyncio.get_running_loop().create_future()
        keeper.submit(lambda _: None, future.set_result)
        await future
        first.spend(30)  # nobody looks any more

    assert first.control(tick, ends=False).written == 1
    second = hosts()
    second.control()
    assert second.spent == 70


def test_of_two_periods_the_later_one_counts(hosts: Any) -> None:
    """What comes back of a period that is over does not spoil the present one."""
    first = hosts()
    first.spend(70, since=3600.0)
    first.control()
    second = hosts()
    second.spend(5, since=7200.0)
    second.control()
    assert second.spent == 5


def test_a_transaction_that_failed_is_written_again(
    hosts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that was in it."""
    first = hosts()
    first.spend(70)

    def undo(shelf: Shelf) -> None:
        assert shelf._tables is not None
        shelf._tables.rollback()

    async def fail_once(counts: Counts, keeper: Keeper) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Shelf, "commit", lambda _: False)
            counts.tick()
            future = asyncio.get_running_loop().create_future()
            keeper.submit(undo, future.set_result)
            await future

    assert first.control(fail_once).written == 0
    second = hosts()
    second.control()
    assert second.spent == 70
