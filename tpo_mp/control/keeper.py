"""The one thread that touches the disk.

The loop hands jobs over and goes on; the thread runs all that wait as one batch (one write per log,
one transaction), and hands the answers back to the loop in one call.

Invariants: the loop never waits for the thread.  What is queued is bounded by ``full``, which the
loop asks before it takes more from the rings: a slow disk fills rings, not memory.  An exception of
a job is that job's failure; one of the thread itself ends the process.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from tpo_mp.observe.log import FilteringBoundLogger
from tpo_mp.store.shelf import Shelf, ShelfState

T = TypeVar("T")

MAX_QUEUED_BYTES = 64 << 20
MAX_QUEUED_JOBS = 16_384
BATCH = 512
TICK_S = 1.0
JOB_BYTES = 256


@dataclass(frozen=True, slots=True)
class _Job:
    work: Callable[[Shelf], Any]
    done: Callable[[Any], None] | None
    cost: int
    writes: bool


class Keeper:
    """Runs jobs on the shelf; every method is called from the loop's thread."""

    def __init__(
        self,
        open_shelf: Callable[[], Shelf],
        loop: asyncio.AbstractEventLoop,
        log: FilteringBoundLogger,
        *,
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self.state: ShelfState | None = None
        """Fill levels as of the last tick."""
        self._open_shelf = open_shelf
        self._loop = loop
        self._log = log
        self._on_crash = on_crash
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._queued_bytes = 0
        self._queued_jobs = 0
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        """Open the shelf, in the thread, and begin."""
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether the caller should stop taking work in."""
        return self._queued_bytes > MAX_QUEUED_BYTES or self._queued_jobs > MAX_QUEUED_JOBS

    def submit(
        self,
        work: Callable[[Shelf], T],
        done: Callable[[T | None], None] | None = None,
        *,
        cost: int = 0,
        writes: bool = False,
    ) -> None:
        """Queue a job; ``done`` gets its result on the loop, ``None`` if it failed.

        ``cost`` is the bytes the job holds.  A job that ``writes`` keyed tables also fails when its
        transaction does.
        """
        job = _Job(work, done, cost + JOB_BYTES, writes)
        self._queued_bytes += job.cost
        self._queued_jobs += 1
        self._queue.put(job)

    def close(self, timeout_s: float) -> bool:
        """Finish what is queued and close the shelf; false when that took too long."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            shelf = self._open_shelf()
            self._work(shelf)
        except BaseException as error:  # noqa: BLE001 - reported to the loop, which ends the process
            self._call(self._on_crash, error)

    def _work(self, shelf: Shelf) -> None:
        tick_at = 0.0
        running = True
        while running:
            batch = self._take(tick_at - time.monotonic())
            running = None not in batch
            jobs = [job for job in batch if job is not None]
            results = [self._result(job, shelf) for job in jobs]
            committed = shelf.commit()
            state = None
            if time.monotonic() >= tick_at:
                tick_at = time.monotonic() + TICK_S
                shelf.tick()
                state = shelf.state()
            if jobs or state is not None:
                self._call(self._deliver, jobs, results, committed, state)
        shelf.close()

    def _take(self, timeout_s: float) -> list[_Job | None]:
        batch: list[_Job | None] = []
        with suppress(Empty):
            batch.append(self._queue.get(timeout=max(0.001, timeout_s)))
            while len(batch) < BATCH and batch[-1] is not None:
                batch.append(self._queue.get_nowait())
        return batch

    def _result(self, job: _Job, shelf: Shelf) -> Any:
        try:
            return job.work(shelf)
        except Exception as error:  # noqa: BLE001 - one bad job must not stop the store
            self._log.error("store_job_failed", error=type(error).__name__, exc_info=error)
            return None

    def _call(self, what: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *args)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            return

    # -- back on the loop -----------------------------------------------------------------------

    def _deliver(
        self, jobs: list[_Job], results: list[Any], committed: bool, state: ShelfState | None
    ) -> None:
        if state is not None:
            self.state = state
        self._queued_jobs -= len(jobs)
        for job, result in zip(jobs, results, strict=True):
            self._queued_bytes -= job.cost
            if job.done is None:
                continue
            try:
                job.done(None if job.writes and not committed else result)
            except Exception as error:  # noqa: BLE001 - an answer that cannot be given is a defect
                self._on_crash(error)
