"""A gateway in front of the simulator, for tests that ask both the same."""

from __future__ import annotations

from pathlib import Path

from .gateway import Gateway

FRONT = """
[[backends]]
name = "openai"
kind = "openai"
base_url = "{url}/v1"
api_key = "sk-of-the-gateway"
models = ["gpt-*", "o*", "text-*", "nope-*"]
apis = ["chat", "completions", "embeddings", "responses"]

[[backends]]
name = "anthropic"
kind = "anthropic"
base_url = "{url}/v1"
api_key = "sk-ant-of-the-gateway"
models = ["claude-*"]
apis = ["messages", "count_tokens", "complete"]

[stages.cache]
enabled = false
"""


def front_of(simulator: Gateway, folder: Path, workers: int = 2) -> Gateway:
    """A gateway whose upstreams are the simulator, in each dialect's own API."""
    return Gateway(folder, config=FRONT.format(url=simulator.url), workers=workers)
