"""Processes that die or stop while they write shared memory (see ``tests.support.actor``)."""

from __future__ import annotations

import sys
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from msgspec import convert

from tests.support.actor import hear, play, say
from tests.support.deaths import kill_at
from tests.support.fake_env import FakeWorld, SilentMetrics, SilentSeries, make_call
from tpo_mp.errors import RateLimited, Shed
from tpo_mp.ports import Cells
from tpo_mp.shm import registry, rows
from tpo_mp.shm.epochs import ConfigBuffer
from tpo_mp.shm.ledger import SharedLedger
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.shm.quotas import QuotaSegment, SharedQuotas
from tpo_mp.shm.registry import Registry
from tpo_mp.shm.rows import PAYLOAD_BYTES, RowTable
from tpo_mp.shm.segment import Segment
from tpo_mp.stages.rate_limit import Config, RateLimit

BOUNDS = (0.001, 0.01, 0.1)


def patient(table: RowTable) -> SharedLedger:
    """A ledger that waits for as long as a busy machine may keep a holder from its core."""
    return SharedLedger(table, SilentMetrics(), patience_ns=5_000_000_000)


def payload(n: int, size: int) -> bytes:
    """``size`` bytes that only ``n`` has."""
    seed = blake2b(n.to_bytes(16, "big")).digest()
    return (seed * (size // len(seed) + 1))[:size]


def hold_row(fd: int, locks_fd: int, count: int, row: int) -> None:
    """Hold a row's lock until told to go on."""
    with RowTable.attach(fd, locks_fd, count).lock(row) as held:
        say("held" if held else "refused")
        hear()


def tear_row(fd: int, locks_fd: int, count: int, row: int, event: int) -> None:
    """Die by SIGKILL at the ``event``-th line of writing a row."""
    with RowTable.attach(fd, locks_fd, count).lock(row) as held:
        assert held is not None
        held.read()
        kill_at(event, rows)
        held.write(b"n" * PAYLOAD_BYTES)
    sys.settrace(None)
    say("survived")


def count_row(fd: int, locks_fd: int, count: int, row: int, times: int) -> None:
    """Add one to a row ``times`` times, trying again whenever another holds it."""
    table = RowTable.attach(fd, locks_fd, count)
    say("ready")
    hear()
    done = 0
    while done < times:
        with table.lock(row) as held:
            if held is None:
                continue
            n = int.from_bytes(held.read(), "little")
            held.write((n + 1).to_bytes(PAYLOAD_BYTES, "little"))
            done += 1
    say("done")


def flip_row(fd: int, locks_fd: int, count: int, row: int) -> None:
    """Write a row over and over, 56 times the same byte, until killed."""
    table, n = RowTable.attach(fd, locks_fd, count), 0
    say("ready")
    while True:
        n = n % 255 + 1
        with table.lock(row) as held:
            if held is not None:
                held.write(bytes([n]) * PAYLOAD_BYTES)


def ordinals(fd: int, locks_fd: int, count: int, times: int) -> None:
    """Count one name ``times`` times, and say every ordinal."""
    ledger = patient(RowTable.attach(fd, locks_fd, count))
    say("ready")
    hear()
    say(" ".join(str(ledger.ordinal("name")) for _ in range(times)))


def count_for_ever(fd: int, locks_fd: int, count: int) -> None:
    """Count one name until killed."""
    ledger = patient(RowTable.attach(fd, locks_fd, count))
    say("ready")
    while True:
        ledger.ordinal("name")


def _next(cells: Cells) -> Cells:
    n = cells[0] + 1
    return (n, n, n, n)


def write_for_ever(fd: int, locks_fd: int, count: int, event: int) -> None:
    """Write the next number into all cells of a name, until killed or dead at a line."""
    ledger = patient(RowTable.attach(fd, locks_fd, count))
    say("ready")
    if event:
        kill_at(event, rows)
    while True:
        ledger.update("watched", _next)


def let_in(
    fds: list[int], rows: list[int], seats: int, seat: int, options: Any, times: int, told: bool
) -> None:
    """Let calls in until one is refused, or so many; say their number, or each (``told``)."""
    table = RowTable.attach(fds[0], fds[1], rows[0])
    epochs = Segment.attach(fds[3], 8 * seats).words
    quotas = SharedQuotas(
        QuotaSegment.map_inherited(fds[2], seats, rows[1]), table, seat=seat,
        epoch_of=epochs.__getitem__, sharers=2, refused=SilentSeries(),
    )  # fmt: skip
    world = FakeWorld()
    limits = RateLimit(convert(options, Config), replace(world.env, quotas=quotas))
    say("ready")
    hear()
    done = 0
    while done < times:
        try:
            limits.before(make_call(b"{}"))
        except RateLimited:
            break
        except Shed:  # who holds the count waits for a core
            continue
        done += 1
        if told:
            say("in")
    say(str(done))
    hear()


def open_calls(
    fd: int, seats: int, max_open: int, seat: int, epoch: int, sizes: list[int], first: int
) -> None:
    """Open a call per size, close every third, and wait."""
    writer = Registry.attach(fd, seats, max_open).writer(seat, epoch)
    for n, size in enumerate(sizes, first):
        slot = writer.open(n.to_bytes(16, "big"), payload(n, 40), payload(n, size), 0)
        if n % 3 == 0:
            writer.close(slot)
    say("open")
    hear()


def churn_calls(fd: int, seats: int, max_open: int, seat: int, epoch: int) -> None:
    """Open and close calls of all sizes until killed."""
    writer, slots, n = Registry.attach(fd, seats, max_open).writer(seat, epoch), [], 0
    say("ready")
    while True:
        n += 1
        size = (10, 300, 1200, 30_000)[n % 4]
        slots.append(writer.open(n.to_bytes(16, "big"), payload(n, 40), payload(n, size), 0))
        if len(slots) > 50:
            writer.close(slots.pop(n % 50))


def tear_open(fd: int, seats: int, max_open: int, seat: int, epoch: int, event: int) -> None:
    """Die by SIGKILL at the ``event``-th line of opening a large call."""
    writer = Registry.attach(fd, seats, max_open).writer(seat, epoch)
    kill_at(event, registry)
    writer.open(event.to_bytes(16, "big"), payload(event, 40), payload(event, 9000), 0)
    sys.settrace(None)
    say("survived")


def count_metrics(fd: int, seats: int, seat: int, epoch: int, times: int) -> None:
    """Count ``times`` of everything, hold a level, and wait."""
    block = MetricsArena.attach(fd, seats).block(seat, epoch)
    counter = block.counter("calls_total", "Calls.", stage="rag")
    histogram = block.histogram("calls_seconds", "Calls.", BOUNDS)
    block.gauge("calls_open", "Calls.").set(1.0)
    for _ in range(times):
        counter.inc()
        histogram.observe(0.005)
    say("counted")
    hear()


def churn_metrics(fd: int, seats: int, seat: int, epoch: int) -> None:
    """Count calls, then their echo, until killed; make a new series now and then."""
    block, n = MetricsArena.attach(fd, seats).block(seat, epoch), 0
    counter, echo = block.counter("calls_total", "Calls."), block.counter("echoes_total", "Calls.")
    say("ready")
    while True:
        counter.inc()
        echo.inc()
        n += 1
        if n % 100 == 0:
            block.counter("kinds_total", "Kinds.", kind=f"{epoch}-{n}").inc()


def read_config(fd: int, wanted: int) -> None:
    """Read epochs as they appear until ``wanted`` blobs were whole; die of a wrong one."""
    buffer, read = ConfigBuffer.attach(fd), 0
    say("ready")
    while read < wanted:
        newest = buffer.newest()
        for epoch in (newest, newest - 1):
            blob = buffer.read(epoch)
            if blob is not None:
                assert blob == payload(epoch, 100_000), epoch
                read += 1


if __name__ == "__main__":
    play(globals())
