"""vLLM's own routes of a simulator: tokens there and back on any worker, and the host's load."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import ask, build, chat
from tests.support.shards import connect_to
from tests.support.wait import wait_for

CONFIG = """
[simulator]
models = ["gpt-4o", "slow"]
latency = { "slow" = "endless" }

[simulator.profiles.endless]
first_token_ms = { shape = "fixed", value = 0 }
token_ms = { shape = "fixed", value = 60000 }
"""
MANY = 16
TEXT = "Größe: 漢字 \u2028 and\n\n  some  \t_words_ 😀 end. " * 40


@pytest.fixture(scope="module")
def provider(short_tmp: Path) -> Iterator[Gateway]:
    """A simulator of two workers."""
    with Gateway(short_tmp / "vllm", config=CONFIG, workers=2, verb="simulate") as gateway:
        yield gateway


def both(provider: Gateway) -> bool:
    """Whether both workers answer."""
    asked = [ask(provider.url, "/v1/chat/completions", chat("x", model="gpt-4o"))
             for _ in range(8)]  # fmt: skip
    return len({reply.headers["x-tpo-shard"] for reply in asked}) == 2


def test_tokens_come_back_as_the_text_from_either_worker(provider: Gateway) -> None:
    """Exactly, and they are as many as usage says."""
    told = ask(provider.url, "/tokenize", {"prompt": TEXT, "return_token_strs": True}).json()
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert "".join(told["token_strs"]) == TEXT
    for _ in range(12):  # connections are spread over both workers
        reply = ask(provider.url, "/detokenize", {"tokens": told["tokens"], "model": "gpt-4o"})
        assert reply.json() == {"prompt": TEXT}
    asked = ask(provider.url, "/v1/chat/completions", chat(TEXT, model="gpt-4o")).json()
    body = {"model": "gpt-4o", "messages": chat(TEXT)["messages"]}
    counted = ask(provider.url, "/tokenize", body).json()["count"]
    assert counted == asked["usage"]["prompt_tokens"] == told["count"] + 7


def test_load_is_the_host_s_whoever_is_asked_and_whoever_dies(provider: Gateway) -> None:
    """Streams under way on both workers; those of a worker that is killed are over."""

    def loads() -> set[int]:
        return {ask(provider.url, "/load").json()["server_load"] for _ in range(8)}

    with ExitStack() as open_streams:
        clients = [
            open_streams.enter_context(connect_to(provider.url, n % 2, model="gpt-4o"))
            for n in range(MANY)
        ]
        shards: list[str] = []
        for number, client in enumerate(clients):
            head = {"content-type": "application/json", "Host": client.host}
            body = chat(f"hello number {number}", model="slow", stream=True)
            client.send(build("POST", "/v1/chat/completions", head, json.dumps(body).encode()))
            _, headers, _ = client.read_head()
            shards.append(headers["x-tpo-shard"])
        assert len(set(shards)) == 2
        wait_for(lambda: loads() == {MANY}, 10, "every worker to count all streams")
        victim = provider.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        left = MANY - shards.count("0")
        wait_for(lambda: loads() == {left}, 20, "the dead worker's streams to be over")
    wait_for(lambda: loads() == {0}, 20, "no stream to be left")
    wait_for(lambda: both(provider), 30, "the other worker to be there again")
