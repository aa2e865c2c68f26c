"""Run scenarios and write their reports; then render the whole page.

The gateway under test runs on the first core, the upstream and the load on the second, so the
figures are per core and the load never takes the gateway's time.
``--quick`` is a smoke run and ``--only`` a partial one: their figures go to ``build/`` and never
into the report.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from . import machine, plots, render
from .bench import Bench, Options, say
from .procs import Cores
from .report import Report, Series
from .scenario import NAMES, find
from .targets import OURS

RESULTS = Path(__file__).resolve().parent / "results"
PARTIAL = machine.ROOT / "build" / "bench"
OPEN_FILES = 65_536


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("scenario", nargs="*", help=f"of {', '.join(NAMES)}; default all")
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", help="where scripts/bench-peers put them"
    )
    parser.add_argument(
        "--vllm", type=Path, metavar="PROGRAM", help="a real `vllm`, to compare with"
    )
    parser.add_argument(
        "--only", default="", metavar="TARGET,...", help="measure these targets only"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--secs", type=float, default=4.0, help="length of one measurement")
    parser.add_argument("--conns", type=int, default=64)
    parser.add_argument(
        "--quick", action="store_true", help="one round of one second, not reported"
    )
    parser.add_argument("--load", choices=("auto", "wrk", "raw"), default="auto")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    options = parser.parse_args(argv)
    unknown = set(options.scenario) - set(NAMES)
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    if options.rounds < 1 or options.secs <= 0 or options.conns < 1:
        parser.error("--rounds, --secs and --conns must be positive")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for; 1 when a scenario measured nothing or a request to us failed."""
    words = parse(argv)
    options = Options(
        rounds=1 if words.quick else words.rounds,
        secs=1.0 if words.quick else words.secs,
        conns=words.conns,
        quick=words.quick,
        peers=words.peers.resolve() if words.peers else None,
        vllm=words.vllm,
        only=tuple(name for name in words.only.split(",") if name),
    )
    out = words.out or (PARTIAL if options.quick or options.only else RESULTS)
    cores = Cores.choose()
    raise_file_limit()
    # Whatever we start must end with us, also when a service manager ends us.
    signal.signal(signal.SIGTERM, _leave)
    if cores.pinned:
        os.sched_setaffinity(0, {cores.load})
    bad = 0
    with tempfile.TemporaryDirectory(prefix="tpo-bench-") as work:
        Path(work).chmod(0o755)
        for name in words.scenario or NAMES:
            report = measure(name, options, cores, Path(work), words.load)
            say(f"{name}: {report.save(out)}")
            bad |= not any(series.rows for series in report.targets.values())
            bad |= bool(report.failed(target for target in report.targets if target in OURS))
    if out == RESULTS:
        if not plots.available():
            say("no pictures: matplotlib is not installed (the extra 'bench')")
        say(f"report: {render.render(RESULTS)}")
    return int(bad)


def measure(name: str, options: Options, cores: Cores, work: Path, kind: str) -> Report:
    """Run one scenario with an upstream of its own."""
    scenario = find(name)
    say(f"{name}: {scenario.title}")
    with Bench.open(options, cores, work, kind) as bench:
        targets: dict[str, Series] = scenario.run(bench)
        load = bench.load.kind
    return Report(
        scenario=name,
        title=scenario.title,
        date=machine.now(),
        quick=options.quick,
        machine=machine.facts(),
        versions=machine.versions(),
        method={
            "text": scenario.method,
            "load": load,
            "conns": options.conns,
            "rounds": options.rounds,
            "secs": options.secs,
            "realtime": int(realtime()),
            "gateway_core": cores.gateway if cores.pinned else "unpinned",
            "load_core": cores.load if cores.pinned else "unpinned",
        },
        targets=targets,
    )


def realtime() -> bool:
    """Whether what is measured goes before all else on this machine (``chrt``)."""
    policy = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    return policy is not None and policy in (os.SCHED_FIFO, os.SCHED_RR)


def raise_file_limit() -> None:
    """Allow many open files, as far as this user may."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = hard if hard == resource.RLIM_INFINITY else max(OPEN_FILES, hard)
    for limit in ((OPEN_FILES, highest), (hard, hard)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            return


def _leave(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
