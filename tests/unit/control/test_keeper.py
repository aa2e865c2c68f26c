"""The store's thread: order, failures and bounds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog

from tpo_mp.control import keeper as module
from tpo_mp.control.keeper import Keeper
from tpo_mp.store.shelf import Shelf, ShelfOptions


def run(
    folder: Path,
    test: Callable[[Keeper], Awaitable[None]],
    open_shelf: Callable[[], Shelf] | None = None,
) -> list[BaseException]:
    """Run a test with a keeper; answers what crashed it."""
    crashes: list[BaseException] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        made = Keeper(
            open_shelf or (lambda: Shelf(folder, ShelfOptions())), loop, structlog.get_logger(),
            on_crash=crashes.append,
        )  # fmt: skip
        made.start()
        await test(made)
        assert await loop.run_in_executor(None, made.close, 50.0)

    asyncio.run(main())
    return crashes


async def result(keeper: Keeper, work: Callable[[Shelf], Any], *, writes: bool = False) -> Any:
    """Run one job."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    keeper.submit(work, future.set_result, writes=writes)
    return await asyncio.wait_for(future, 50.0)


def test_jobs_run_in_order_on_another_thread(tmp_path: Path) -> None:
    """Results come back on the loop, in order."""
    seen: list[int] = []

    async def test(keeper: Keeper) -> None:
        for n in range(100):
            keeper.submit(lambda _, n=n: n, seen.append)  # type: ignore[misc]
        name = await result(keeper, lambda _: threading.current_thread().name)
        assert name == "keeper"
        assert seen == list(range(100))

    assert run(tmp_path, test) == []


def test_a_job_that_fails_answers_none(tmp_path: Path) -> None:
    """The thread goes on."""

    async def test(keeper: Keeper) -> None:
        assert await result(keeper, lambda _: 1 // 0) is None
        assert await result(keeper, lambda _: "next") == "next"

    assert run(tmp_path, test) == []


def test_a_write_whose_transaction_fails_answers_none(tmp_path: Path) -> None:
    """A value is acknowledged only once it is committed; reads of the batch still answer."""

    class Uncommitted(Shelf):
        def commit(self) -> bool:
            super().commit()
            return False

    async def test(keeper: Keeper) -> None:
        assert await result(keeper, lambda s: s.put("t", "k", b"v", 9.0), writes=True) is None
        assert await result(keeper, lambda _: "read") == "read"

    assert run(tmp_path, test, lambda: Uncommitted(tmp_path, ShelfOptions())) == []


def test_it_is_full_until_work_is_done(tmp_path: Path) -> None:
    """The loop stops taking work in, and may go on when it is done."""

    async def test(keeper: Keeper) -> None:
        gate = threading.Event()
        keeper.submit(lambda _: gate.wait(50.0))
        keeper.submit(lambda _: None, cost=module.MAX_QUEUED_BYTES)
        assert keeper.full
        gate.set()
        await result(keeper, lambda _: None)
        assert not keeper.full

    assert run(tmp_path, test) == []


def test_a_shelf_that_cannot_be_opened_is_a_crash(tmp_path: Path) -> None:
    """The owner is told; closing does not hang."""

    def refuse() -> Shelf:
        raise RuntimeError("no shelf")

    async def test(_: Keeper) -> None:
        await asyncio.sleep(0)

    assert [str(error) for error in run(tmp_path, test, refuse)] in ([], ["no shelf"])


def test_an_answer_that_cannot_be_given_is_a_crash(tmp_path: Path) -> None:
    """A defect in a callback is not swallowed."""

    async def test(keeper: Keeper) -> None:
        keeper.submit(lambda _: None, lambda _: 1 // 0)
        await result(keeper, lambda _: None)

    assert [type(error) for error in run(tmp_path, test)] == [ZeroDivisionError]
