"""``tpo-mp simulate benchmark`` against a simulator whose times and faults are known."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import ROOT, Gateway
from tests.support.wait import free_port

CONFIG = """
[simulator]
models = ["*"]
min_tokens = 400
latency = { "timed" = "clockwork" }

[simulator.profiles.clockwork]
first_token_ms = { shape = "fixed", value = 120 }
token_ms = { shape = "fixed", value = 15 }

[[simulator.faults]]
error = "503"
when = { model = "fourth" }
sequence = { every = 4 }

[[simulator.faults]]
error = "500"
when = { model = "cold" }
sequence = { first = 5 }

[[simulator.faults]]
error = "429"
when = { model = "crowd", min_concurrent = 4 }

[[simulator.faults]]
fault = "slow; for=0.05"
when = { model = "crowd" }

[[simulator.faults]]
fault = "truncate_after=1"
when = { model = "cut" }
"""


@pytest.fixture(scope="module")
def provider(short_tmp: Path) -> Iterator[Gateway]:
    """A simulator of two workers."""
    with Gateway(short_tmp / "bench", config=CONFIG, workers=2, verb="simulate") as gateway:
        yield gateway


def benchmark(url: str, *arguments: str) -> tuple[int, str, str]:
    """Run it; exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tpo_mp", "simulate", "benchmark", "--url", url, *arguments],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def measured(provider: Gateway, *arguments: str) -> dict[str, Any]:
    """What it found, having found something."""
    code, out, err = benchmark(provider.url, "--format", "json", *arguments)
    assert code == 0, out + err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "google"])
def test_times_are_no_shorter_than_configured(provider: Gateway, dialect: str) -> None:
    """First token, gaps and whole answers, in each family's stream."""
    found = measured(provider, "-m", "timed", "--stream", "-r", "6", "-c", "3", "--warmup", "0",
                     "--max-tokens", "10", "--dialect", dialect)  # fmt: skip
    assert (found["requests"], found["succeeded"], found["errors"]) == (6, 6, {})
    assert found["ttft_ms"]["p50"] >= 120
    # Late events shorten the gap after them, never the sum of all.
    assert found["latency_ms"]["p50"] >= 120 + 9 * 15 - 1
    assert 0.8 * 15 < found["itl_ms"]["mean"] < found["latency_ms"]["mean"]
    assert found["tokens_per_s"] == pytest.approx(60 / found["seconds"], rel=0.01)


def test_failures_are_counted_by_what_they_are(provider: Gateway) -> None:
    """Every fourth is a 503; good answers still make it a success."""
    found = measured(provider, "-m", "fourth", "-r", "40", "-c", "4", "--warmup", "0")
    assert (found["succeeded"], found["failed"], found["errors"]) == (30, 10, {"503": 10})
    assert found["error_rate"] == 0.25
    assert found["ttft_ms"] == found["itl_ms"] == {}


def test_warming_up_is_not_counted(provider: Gateway) -> None:
    """The first five fail, and are over before the first that counts."""
    found = measured(provider, "-m", "cold", "-r", "8", "-c", "2", "--warmup", "5")
    assert (found["requests"], found["errors"]) == (8, {})


def test_no_more_are_open_than_there_are_clients(provider: Gateway) -> None:
    """The host refuses a fourth at once: three clients never meet that, eight do."""
    three = measured(provider, "-m", "crowd", "-r", "30", "-c", "3", "--warmup", "0")
    eight = measured(provider, "-m", "crowd", "-r", "30", "-c", "8", "--warmup", "0")
    assert three["errors"] == {}
    assert eight["errors"].keys() == {"429"}


def test_it_ends_in_time_and_says_how_many_there_were(provider: Gateway) -> None:
    """With a duration alone there is no other end; embeddings are asked for as well."""
    code, out, err = benchmark(provider.url, "-d", "0.7", "-c", "2", "-t", "embedding",
                               "--format", "csv")  # fmt: skip
    assert code == 0, err
    head, row = csv.reader(out.splitlines())
    found = dict(zip(head, row, strict=True))
    assert found["url"].endswith("/v1/embeddings")
    assert float(found["seconds"]) >= 0.7
    assert int(found["requests"]) == int(found["succeeded"]) > 2
    assert float(found["latency_p50_ms"]) > 0
    assert found["ttft_p50_ms"] == found["errors"] == ""


def test_exit_code_is_1_when_nothing_succeeded(provider: Gateway) -> None:
    """Nobody there, or nothing but broken answers; still a whole report."""
    code, out, err = benchmark(f"http://127.0.0.1:{free_port()}", "-r", "4", "-c", "2",
                               "--warmup", "1")  # fmt: skip
    assert (code, err) == (1, "")
    assert "failed: ClientConnectorError  4" in out
    code, out, _ = benchmark(provider.url, "-m", "cut", "--stream", "-r", "2", "--warmup", "0")
    assert code == 1
    assert "failed: incomplete stream  2" in out
