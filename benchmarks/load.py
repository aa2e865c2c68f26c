"""Load on a URL, and what it measured: wrk when it is installed, our own client otherwise.

wrk gets a generated script: the request is three strings joined, the counter between them is
new each time, and the summary is written as JSON instead of being read out of prose.
Both run on the core of the load, with one thread.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from .machine import ROOT
from .payload import DIGITS, PATH, Payload
from .plan import Outcome, Phase, Plan
from .procs import cpu_s, on_cores

_SCRIPT = """\
local before = {before}
local after = {after}
local n = 0
local format = string.format
request = function()
  n = n + 1
  return before .. format("%0{digits}d", {number}) .. after
end
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(format(
    '\\n@@{{"requests":%d,"micros":%d,"p50":%d,"p90":%d,"p99":%d,"max":%d,"non2xx":%d,"errors":%d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(90),
    latency:percentile(99), latency.max, e.status, e.connect + e.read + e.write + e.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the load looks like; ``distinct`` is after how many requests they repeat, 0: never."""

    conns: int = 64
    stream: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    path: str = PATH
    distinct: int = 0


class Load:
    """The generator this machine has, pinned to ``cores``."""

    def __init__(self, cores: Sequence[int], work: Path, kind: str = "auto") -> None:
        """Choose ``wrk`` or ``raw`` (our own client); ``auto`` prefers wrk."""
        found = shutil.which("wrk")
        if kind == "wrk" and not found:
            raise FileNotFoundError("wrk is not installed")
        self.kind = "wrk" if found and kind != "raw" else "raw"
        self.cores = cores
        self.work = work

    def run(self, url: str, shape: Shape, secs: float, pids: Sequence[int] = ()) -> Outcome:
        """Send unique requests for ``secs`` and measure them."""
        if self.kind == "wrk":
            return self._wrk(url, shape, secs, pids)
        phase = Phase(secs=secs)
        return self.phases(url, shape, [phase], pids)[0]

    def phases(
        self, url: str, shape: Shape, phases: Sequence[Phase], pids: Sequence[int] = ()
    ) -> list[Outcome]:
        """Run our own client through phases over the same connections."""
        plan = Plan(
            url=url,
            tag=tag(),
            conns=shape.conns,
            phases=list(phases),
            pids=list(pids),
            stream=shape.stream,
            extra=dict(shape.extra),
            path=shape.path,
            distinct=shape.distinct,
        )
        limit = sum(phase.secs for phase in phases) + 90
        with on_cores(self.cores):
            out = subprocess.run(
                [sys.executable, "-m", "benchmarks.client"],
                input=msgspec.json.encode(plan),
                capture_output=True,
                timeout=limit,
                cwd=ROOT,
                check=False,
            )
        if out.returncode:
            raise RuntimeError(f"load client: {out.stderr.decode(errors='replace')[-800:]}")
        return msgspec.json.decode(out.stdout, type=list[Outcome])

    def _wrk(self, url: str, shape: Shape, secs: float, pids: Sequence[int]) -> Outcome:
        script = self.work / "load.lua"
        payload = Payload(tag(), shape.stream, shape.extra, path=shape.path)
        script.write_text(lua(payload, url, shape.distinct))
        argv = ["wrk", "-t1", f"-c{shape.conns}", f"-d{max(1, round(secs))}s", "--timeout", "30s"]
        argv += ["-s", str(script)]
        before = cpu_s(pids)
        with on_cores(self.cores):
            out = subprocess.run(
                [*argv, url + shape.path],
                capture_output=True,
                text=True,
                timeout=secs + 60,
                check=False,
            )
        return from_wrk(out.stdout, cpu_s(pids) - before)


def tag() -> str:
    """Answer a word no other run has used."""
    return secrets.token_hex(4)


def lua(payload: Payload, url: str, distinct: int = 0) -> str:
    """Write the wrk script that sends ``payload``."""
    before, after = payload.pieces(url)
    # A JSON string of ASCII is a Lua string too; long brackets would eat the carriage returns.
    return _SCRIPT.format(
        before=json.dumps(before.decode()), after=json.dumps(after.decode()), digits=DIGITS,
        number=f"n % {distinct}" if distinct else "n",
    )  # fmt: skip


def from_wrk(text: str, cpu: float) -> Outcome:
    """Read the line our script writes at the end of a wrk run."""
    _, mark, rest = text.partition("\n@@")
    if not mark:
        raise RuntimeError(f"wrk did not finish: {text[-400:]}")
    seen = json.loads(rest.splitlines()[0])
    return Outcome(
        requests=seen["requests"],
        secs=seen["micros"] / 1e6,
        rps=seen["requests"] / max(seen["micros"], 1) * 1e6,
        p50_ms=seen["p50"] / 1e3,
        p90_ms=seen["p90"] / 1e3,
        p99_ms=seen["p99"] / 1e3,
        max_ms=seen["max"] / 1e3,
        non2xx=seen["non2xx"],
        errors=seen["errors"],
        cpu_s=cpu,
    )
