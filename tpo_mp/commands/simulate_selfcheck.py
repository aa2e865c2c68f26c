"""``tpo-mp simulate selfcheck``: whether simulated times are what was configured.

The *sampler* is checked in processes of this command: quantiles of a million calls of every preset,
and of the profiles of ``--config``.  The *transport* is checked through a real client: a simulator
is started, streams are asked of it at low load, and each token's arrival is compared with its
schedule.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from tpo_mp.config.load import load
from tpo_mp.errors import ExitCode
from tpo_mp.simulator import accuracy, plots
from tpo_mp.simulator.accuracy import Finding
from tpo_mp.simulator.arrivals import WORD, Arrivals, Asking, measure
from tpo_mp.simulator.latency import LatencyOptions
from tpo_mp.simulator.presets import PRESETS
from tpo_mp.simulator.profiles import Profile, ProfileSchedule

from .asking import failed

MODEL: Final = "selfcheck"
LAG_P99_MS: Final = 2.0
READY_S: Final = 60.0
_CONFIG: Final = """
[simulator]
models = ["{model}"]
strategy = "fixed"
text = "{text}"
latency = {{ "*" = "{preset}" }}
"""


@click.command("selfcheck")
@click.option("--config", "-c", "config_path", type=click.Path(path_type=Path),
              help="Check the profiles of this file too.")  # fmt: skip
@click.option("--profile", "-p", "only", multiple=True, metavar="NAME",
              help="Draw from this preset or profile only; may be repeated [all].")  # fmt: skip
@click.option("--draws", type=click.IntRange(1_000, 100_000_000), default=1_000_000,
              show_default=True, help="Calls drawn from each.")  # fmt: skip
@click.option("--requests", type=click.IntRange(0, 1_000_000), default=1_000, show_default=True,
              help="Streams asked of a real simulator; 0 leaves that out.")  # fmt: skip
@click.option("--at-once", type=click.IntRange(1, 1_000), default=10, show_default=True,
              help="Streams under way at a time.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(2, 1_000), default=12, show_default=True,
              help="Tokens of each.")  # fmt: skip
@click.option("--via", default="fast@design", show_default=True, metavar="NAME",
              help="Preset that the real simulator has.")  # fmt: skip
@click.option("--svg", type=click.Path(path_type=Path), help="Write the picture to this file.")
@click.option("--html", type=click.Path(path_type=Path), help="Write picture and tables there.")
def COMMAND(  # noqa: N802 - the name every file of this folder exports
    config_path: Path | None, only: tuple[str, ...], draws: int, requests: int, at_once: int,
    tokens: int, via: str, svg: Path | None, html: Path | None,
) -> int:  # fmt: skip
    """Compare simulated times with the configured ones; exit code 1 when they differ."""
    known = _profiles(config_path)
    for name in (*only, via):
        if name not in known:
            raise click.UsageError(f"no preset or profile is named {name!r}")
    if via not in PRESETS or PRESETS[via].profile.tokens_per_chunk[1] != 1:
        raise click.UsageError(f"--via takes a preset whose tokens go one by one, not {via!r}")
    chosen = {name: known[name] for name in only or known}
    findings = _sampler(chosen, draws)
    curves: list[plots.Curve] = []
    if requests:
        told, curves = _transport(via, requests, at_once, tokens)
        findings += told
    report = "\n\n".join([table(findings), *(plots.text_plot(curve) for curve in curves)])
    click.echo(report)
    wrong = sum(not finding.right for finding in findings)
    click.echo(f"\n{len(findings)} comparisons, {wrong or 'none'} beyond tolerance")
    picture = plots.svg(curves) if curves else ""
    if svg is not None:
        svg.write_text(picture)
    if html is not None:
        html.write_text(plots.page("tpo-mp simulate selfcheck", picture, report))
    return ExitCode.FAILED if wrong else ExitCode.OK


def table(findings: list[Finding]) -> str:
    """The comparisons, one a line."""
    rows = [("profile", "what", "configured", "found", "off", "allowed", "")]
    for f in findings:
        form = ".2%" if f.configured else ".4f"
        off, allowed = format(f.off, form), format(f.allowed, form)
        configured = f"{f.configured:.3f}" if f.configured else ""
        rows.append((f.subject, f.what, configured, f"{f.found:.3f}", off, allowed,
                     "ok" if f.right else "WRONG"))  # fmt: skip
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n < 2 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _profiles(path: Path | None) -> dict[str, Profile]:
    """Presets, and the profiles of a config; raises ``ConfigError``."""
    found = {name: preset.profile for name, preset in PRESETS.items()}
    if path is not None:
        config = load(path, {"simulate": True}, {})
        for backend in config.backends:
            if isinstance(backend, LatencyOptions):
                found |= backend.profiles
    return found


def _sampler(profiles: Mapping[str, Profile], draws: int) -> list[Finding]:
    """Draw in as many processes as there are cores."""
    told: dict[str, list[Finding]] = {}
    spawn = multiprocessing.get_context("spawn")
    _say(f"sampler: {draws} calls of each of {len(profiles)} profiles")
    with ProcessPoolExecutor(mp_context=spawn) as pool:
        jobs = {
            pool.submit(accuracy.sampler, name, profile, draws): name
            for name, profile in profiles.items()
        }
        for number, job in enumerate(as_completed(jobs), 1):
            told[jobs[job]] = job.result()
            _say(f"sampler: {number} of {len(jobs)}: {jobs[job]}")
    return [finding for name in profiles for finding in told[name]]


def _transport(
    preset: str, requests: int, at_once: int, tokens: int
) -> tuple[list[Finding], list[plots.Curve]]:
    """Ask a simulator that is started for it."""
    profile = PRESETS[preset].profile
    with simulator(preset, tokens) as (host, port):
        schedule = ProfileSchedule(profile)
        asking = Asking(host, port, MODEL, schedule, tokens, requests, at_once)
        done = 0
        began = time.monotonic()

        def progress(more: int) -> None:
            nonlocal done
            done += more
            if done % max(requests // 10, 1) == 0:
                _say(f"transport: {done} of {requests} streams, {time.monotonic() - began:.0f} s")

        seen = asyncio.run(measure(asking, progress))
    if not seen.first:
        raise failed(f"none of {requests} streams was answered whole")
    return judge(preset, profile, seen), [
        plots.Curve(f"{preset}: first token", sorted(seen.first), accuracy.first_token(profile)),
        plots.Curve(
            f"{preset}: further tokens", sorted(seen.gaps), accuracy.further_token(profile)
        ),
        plots.Curve("arrival minus schedule", sorted(seen.lags)),
    ]


def judge(preset: str, profile: Profile, seen: Arrivals) -> list[Finding]:
    """What the client saw against what was configured."""
    lags = sorted(seen.lags)
    p99 = accuracy.quantile_of(lags, 0.99)
    subject = f"{preset}, transport"
    return [
        Finding(subject, "lag p50 ms", 0.0, accuracy.quantile_of(lags, 0.5), p99, LAG_P99_MS, True),
        Finding(subject, "lag p99 ms", 0.0, p99, p99, LAG_P99_MS, p99 <= LAG_P99_MS),
        Finding(subject, "lag least ms (early below 0)", 0.0, lags[0], lags[0], 0.0, lags[0] >= 0),
        Finding(subject, "lag streams lost", 0.0, seen.failed, seen.failed, 0.0, not seen.failed),
        accuracy.kolmogorov(subject, "first token", seen.first, accuracy.first_token(profile)),
        accuracy.kolmogorov(subject, "token", seen.gaps, accuracy.further_token(profile)),
    ]


@contextmanager
def simulator(preset: str, tokens: int) -> Iterator[tuple[str, int]]:
    """A real ``tpo-mp simulate`` of one worker, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="tpo-selfcheck-") as folder:
        config = Path(folder) / "simulator.toml"
        text = " ".join([WORD] * tokens)
        config.write_text(_CONFIG.format(model=MODEL, text=text, preset=preset))
        argv = [sys.executable, "-m", "tpo_mp", "simulate", "--config", str(config), "--port", "0"]
        argv += ["--ops-port", "0", "--workers", "1", "--state-dir", str(Path(folder) / "state")]
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield _address(process, log)
        finally:
            process.terminate()
            process.wait(READY_S)


def _address(process: subprocess.Popen[bytes], log: Path) -> tuple[str, int]:
    _say("transport: starting a simulator")
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        ready = re.search(r"^tpo-mp ready (\S+)", log.read_text(errors="replace"), re.MULTILINE)
        if ready:
            url = urlsplit(ready[1])
            return url.hostname or "", url.port or 80
        time.sleep(0.05)
    raise failed(f"the simulator did not start: {log.read_text(errors='replace')[-400:]}")


def _say(told: str) -> None:
    click.echo(told, err=True)
