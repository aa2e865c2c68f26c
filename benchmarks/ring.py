"""Ring round trips per second between two processes on two cores; prints one JSON line.

Method: this process keeps ``--in-flight`` records under way to a second one, which drains and
sends each back; both spin, each on its own core (where cores can be chosen), without doorbells.
One round trip is two pushes and two drained records, checksums included; ``batched`` sends what a
drain brought by one ``push_many``, the others record by record.
The figure is the best of the windows that ``--secs`` is cut into, because anything else on the
machine only takes away; the median is printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from timeit import repeat

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tpo_mp.shm.ring import RingMesh, RingReader, RingWriter  # noqa: E402 - runs uninstalled too

WINDOW_S = 0.1
STOP = b"stop"


def pin(cpu: int) -> None:
    """Stay on one core where the system allows it."""
    if cpu >= 0:
        os.sched_setaffinity(0, {cpu})


def cores() -> tuple[int, int]:
    """Pick two cores, or -1 where there is no choice."""
    if not hasattr(os, "sched_getaffinity"):
        return -1, -1
    mine = sorted(os.sched_getaffinity(0))
    return (mine[0], mine[1]) if len(mine) > 1 else (-1, -1)


def push_all(writer: RingWriter, records: list[bytes], *, batched: bool) -> None:
    """Send every record, one by one or together, however full the ring."""
    if batched:
        while records:
            records = records[writer.push_many(records) :]
        return
    push = writer.push
    for record in records:
        while not push(record):
            pass


def echo(rings_fd: int, cpu: int, batched: int) -> None:
    """Send everything back until told to stop, or orphaned."""
    pin(cpu)
    mesh = RingMesh.attach(rings_fd, 2)
    reader, writer = mesh.reader(0, 1), mesh.writer(1, 0, 1)
    parent = os.getppid()
    idle = 0
    while True:
        records = reader.drain()
        if records:
            if records[-1] == STOP:
                return
            push_all(writer, records, batched=bool(batched))
        else:
            idle += 1
            if idle % 100_000 == 0 and os.getppid() != parent:
                return


def window(
    writer: RingWriter, reader: RingReader, payload: bytes, in_flight: int, *, batched: bool
) -> float:
    """Round trips per second over one window; all records are home again at its end."""
    clock = time.perf_counter
    push_all(writer, [payload] * in_flight, batched=batched)
    home = 0
    started = clock()
    end = started + WINDOW_S
    while clock() < end:
        records = reader.drain()
        if records:
            push_all(writer, records, batched=batched)
            home += len(records)
    elapsed = clock() - started
    away = in_flight
    while away:
        away -= len(reader.drain())
    return home / elapsed


def one_process(payload: bytes) -> dict[str, int]:
    """Price of one push and its drain in nanoseconds, without a second process."""
    mesh = RingMesh.create(2)
    writer, reader = mesh.writer(0, 1, 1), mesh.reader(0, 1)
    batch = [payload] * 64

    def single() -> None:
        for record in batch:
            writer.push(record)
        reader.drain()

    def many() -> None:
        writer.push_many(batch)
        reader.drain()

    def price(step: object) -> int:
        assert callable(step)
        return round(min(repeat(step, number=50, repeat=7)) / 50 / 64 * 1e9)

    return {"push_and_drain_ns": price(single), "push_many_and_drain_ns": price(many)}


def two_processes(
    payload: bytes, in_flight: int, secs: float, cpus: tuple[int, int], *, batched: bool
) -> list[float]:
    """Rates of all windows between this process and a new one."""
    mesh = RingMesh.create(2)
    argv = [sys.executable, __file__, "--echo", str(mesh.fd), str(cpus[1]), str(int(batched))]
    child = subprocess.Popen(argv, pass_fds=[mesh.fd])
    try:
        writer, reader = mesh.writer(0, 1, 1), mesh.reader(1, 0)
        window(writer, reader, payload, in_flight, batched=batched)  # the child starts in this one
        windows = max(1, round(secs / WINDOW_S))
        rates = [
            window(writer, reader, payload, in_flight, batched=batched) for _ in range(windows)
        ]
        writer.push(STOP, control=True)
        child.wait(10)
    finally:
        child.kill()
        child.wait()
    assert reader.corrupt == 0
    return rates


def measure(secs: float, in_flight: int, payload_bytes: int) -> dict[str, object]:
    """Measure every figure of the line."""
    payload = (bytes(range(256)) * (payload_bytes // 256 + 1))[:payload_bytes]
    cpus = cores()
    pin(cpus[0])
    single, batched = (
        two_processes(payload, in_flight, secs / 2, cpus, batched=together)
        for together in (False, True)
    )
    return {
        "scenario": "ring",
        "round_trips_per_s": round(max(single)),
        "round_trips_per_s_median": round(statistics.median(single)),
        "batched_round_trips_per_s": round(max(batched)),
        "batched_round_trips_per_s_median": round(statistics.median(batched)),
        "in_flight": in_flight,
        "payload_bytes": payload_bytes,
        "windows": len(single),
        "cpus": list(cpus),
        **one_process(payload),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def main() -> None:
    """Parse arguments; ``--echo`` is the second process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--secs", type=float, default=3.0, help="seconds to measure (0.1 to 60)")
    parser.add_argument("--in-flight", type=int, default=64, help="records under way (1 to 256)")
    parser.add_argument("--payload", type=int, default=64, help="record bytes (1 to 16000)")
    parser.add_argument("--echo", nargs=3, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.echo:
        echo(*args.echo)
        return
    secs = min(max(args.secs, WINDOW_S), 60.0)
    in_flight = min(max(args.in_flight, 1), 256)
    payload = min(max(args.payload, 1), 16_000)
    # 16 KB times 64 is more than a ring: what does not fit is not in flight.
    in_flight = min(in_flight, 200 * 1024 // (payload + 32))
    print(json.dumps(measure(secs, in_flight, payload)))


if __name__ == "__main__":
    main()
