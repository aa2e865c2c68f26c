"""``tpo-mp simulate config``: what it writes is what a simulator then does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.gateway import ROOT, Gateway
from tests.support.raw import ask

HELLO = {"model": "gpt-4-turbo", "messages": [{"role": "user", "content": "Hello"}]}


def config(*arguments: str) -> str:
    """Run it well; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tpo_mp", "simulate", "config", *arguments],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_written_file_is_valid_and_served(short_tmp: Path) -> None:
    """The production profile: limits, prices, a journal; the models are those it lists."""
    path = short_tmp / "c.toml"
    config("init", "-o", str(path), "-p", "production")
    assert config("validate", str(path), "--strict") == f"{path}: ok\n"
    listed = [row["id"] for row in json.loads(config("models", str(path), "-f", "json"))]
    with Gateway(
        short_tmp / "run", "--no-latency", config=path, workers=2, verb="simulate"
    ) as provider:
        served = json.loads(ask(provider.url, "/v1/models").body)["data"]
        assert sorted(model["id"] for model in served) == sorted(listed)
        reply = ask(provider.url, "/v1/chat/completions", HELLO)
        assert reply.headers["x-ratelimit-limit-requests"] == "500"
        assert float(reply.headers["x-sim-cost-usd"]) > 0
        journal = json.loads(ask(provider.url, "/admin/journal").body)
        assert journal["enabled"] is True
        assert [entry["model"] for entry in journal["entries"]][-1:] == ["gpt-4-turbo"]
