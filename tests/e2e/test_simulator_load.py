"""``tpo-mp simulate load`` against a simulator: sent in time, counted, judged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.gateway import ROOT, Gateway

CONFIG = """
[simulator]
models = ["*"]

[[simulator.faults]]
error = "503"
when = { model = "fourth" }
sequence = { every = 4 }

[[simulator.faults]]
fault = "truncate_after=1"
when = { model = "cut" }
"""


@pytest.fixture(scope="module")
def provider(short_tmp: Path) -> Iterator[Gateway]:
    """A simulator of two workers."""
    with Gateway(short_tmp / "load", config=CONFIG, workers=2, verb="simulate") as gateway:
        yield gateway


def load(provider: Gateway, *arguments: str) -> tuple[int, dict[str, str], str]:
    """Run it; exit code, the table, and what it told meanwhile."""
    done = subprocess.run(
        [sys.executable, "-m", "tpo_mp", "simulate", "load", "--url", provider.url, *arguments],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip
    rows = (line.rsplit("  ", 1) for line in done.stdout.splitlines())
    return done.returncode, {row[0].strip(): row[1] for row in rows}, done.stderr


def test_every_fourth_failure_is_counted(provider: Gateway) -> None:
    """Forty requests, ten failures, exactly; the assertion that says less fails."""
    code, told, progress = load(
        provider, "--rate", "20", "--for", "2", "--model", "fourth",
        "--assert", "error_rate<=0.25", "--assert", "error_rate<0.25",
    )  # fmt: skip
    assert code == 1
    assert (told["sent"], told["answered"], told["failed: 503"]) == ("40", "30", "10")
    assert told["error_rate <= 0.25"] == "holds"
    assert told["error_rate < 0.25"] == "FAILS"
    assert "sent" in progress


def test_load_that_holds_exits_well(provider: Gateway) -> None:
    """A ramp of streams, in the other dialect."""
    code, told, _ = load(
        provider, "--pattern", "ramp", "--rate", "5", "--to", "35", "--for", "1", "--stream",
        "--dialect", "anthropic", "--assert", "error_rate<=0", "--assert", "latency_p99<20000",
        "--assert", "throughput>0", "--quiet",
    )  # fmt: skip
    assert code == 0, told
    assert told["answered"] == "20"


def test_stream_without_its_end_is_a_failure(provider: Gateway) -> None:
    """Though its status is 200."""
    code, told, _ = load(
        provider, "--rate", "5", "--for", "1", "--stream", "--model", "cut",
        "--assert", "error_rate<1",
    )  # fmt: skip
    assert code == 1
    assert told["failed: incomplete stream"] == "5"


def test_a_trace_says_when_and_how_long(provider: Gateway, tmp_path: Path) -> None:
    """Twenty times as fast, with its lengths, counted by the server; the rest of a trace is left.

    A request that had gone out before its time would have been answered by then.
    """
    rows = [(0, 40, 9), (1000, 2000, 3), (20_000, 700, 30), (90_000, 50, 50)]
    lines = (
        json.dumps({"timestamp": at, "input_length": asked, "output_length": said, "hash_ids": [1]})
        for at, asked, said in rows
    )
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines))

    def tokens() -> list[float]:
        page = provider.metrics()
        counted = {"tpo_prompt_tokens_total": 0.0, "llm_tokens_generated_total": 0.0}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name in counted:
                    counted[sample.name] += sample.value
        return list(counted.values())

    before = tokens()
    code, told, _ = load(
        provider, "--trace", str(path), "--speed", "20", "--for", "1.5", "--model", "traced",
        "--stream", "--assert", "error_rate<=0", "--quiet",
    )  # fmt: skip
    assert code == 0, told
    assert (told["sent"], told["answered"]) == ("3", "3")
    assert float(told["throughput"].removesuffix("/s")) <= 3 / 1.0
    used = [after - was for after, was in zip(tokens(), before, strict=True)]
    assert used == [2740, 42]


def test_a_trace_that_is_none_is_told(provider: Gateway, tmp_path: Path) -> None:
    """With its place, and before anything is sent; a pattern beside it is a contradiction."""
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,12,many\n")
    code, told, said = load(provider, "--trace", str(path))
    assert (code, told) == (2, {})
    assert f"{path}: line 2: column 'GeneratedTokens': 'many' is no number" in said
    code, _, said = load(provider, "--trace", str(path), "--rate", "5")
    assert code == 2
    assert "--rate and --trace" in said
