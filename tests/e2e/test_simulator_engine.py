"""A simulated engine behind two workers: one batch, one queue, one cache, and metrics that move."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import StartGateway
from tests.support.gateway import Gateway
from tests.support.raw import RawClient, build, chat, sse_data
from tests.support.shards import session_on
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
PROMPT = (
    "Tell me all that is known about rivers, and the bridges across them, and the fish in them."
)
WORDS = "one two three four five six seven eight nine ten"
ENGINES = f"""
[simulator]
strategy = "fixed"
text = "{WORDS}"
models = ["quick", "small-*", "slow-*", "slower-*", "claude-haiku-4-5"]
latency = {{ "small-*" = "small", "slow-*" = "slow", "slower-*" = "slower", "claude-*" = "nim-8b" }}

[[simulator.rules]]
match = {{ model = "small-batch" }}
reply = {{ text = "{" ".join(["word"] * 600)}" }}

[simulator.engines.small]
max_num_seqs = 2
max_waiting = 3
max_model_len = 2048
num_gpu_blocks = 256
base_ms = 30
metric_names = "both"

[simulator.engines.slow]
preset = "vllm-8b-h100"
max_num_seqs = 1
base_ms = 300

[simulator.engines.slower]
preset = "vllm-8b-h100"
max_num_seqs = 1
base_ms = 2000
"""


@pytest.fixture(scope="module")
def engines(short_tmp: Path) -> Iterator[Gateway]:
    """A simulator of two workers whose models have engines."""
    with Gateway(short_tmp / "engines", config=ENGINES, workers=2, verb="simulate") as gateway:
        yield gateway


def levels(gateway: Gateway, model: str, *, settled: bool = True) -> dict[str, float]:
    """The vLLM series of one model, by name and what else labels them."""
    found: dict[str, float] = {}
    page = gateway.metrics() if settled else gateway.ask("/metrics").body.decode()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.labels.get("model_name") == model and "le" not in sample.labels:
                more = "".join(
                    f" {value}"
                    for label, value in sample.labels.items()
                    if label in ("reason", "finished_reason")
                )
                found[sample.name.removeprefix("vllm:") + more] = sample.value
    return found


@pytest.fixture(scope="module")
def sessions(engines: Gateway) -> list[str]:
    """A session on each worker."""
    return [session_on(engines.url, shard, model="quick") for shard in (0, 1)]


def opened(gateway: Gateway, model: str, **more: Any) -> RawClient:
    """A stream that was asked for, nothing read yet."""
    client = RawClient(gateway.url)
    body = json.dumps(chat(PROMPT, model=model, stream=True, **more)).encode()
    head = {"content-type": "application/json", "host": client.host}
    client.send(build("POST", CHAT, head, body))
    return client


def text_of(client: RawClient) -> str:
    """All the words of a stream, to its end."""
    data = list(sse_data(b"".join(client.chunks())))
    assert data[-1] == b"[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in data[:-1]]
    return "".join(delta.get("content", "") for delta in deltas)


def test_batch_and_queue_are_the_hosts(engines: Gateway, sessions: list[str]) -> None:
    """Two run and three wait, however many workers there are; others are refused and counted."""
    model = "small-batch"

    def found(running: int, waiting: int) -> bool:
        level = levels(engines, model)
        return (
            level.get("num_requests_running") == running
            and level.get("num_requests_waiting") == waiting
        )

    with ExitStack() as leave:
        running = [leave.enter_context(opened(engines, model)) for _ in range(2)]
        wait_for(lambda: found(2, 0), 20, "a full batch")
        assert engines.ask("/sleep?level=0&mode=keep", {}).status == 200  # so nothing hurries
        try:
            wait_for(lambda: found(2, 0), 20, "a full batch that stands still")
            short = [leave.enter_context(opened(engines, model, max_tokens=1)) for _ in range(3)]
            wait_for(lambda: found(2, 3), 20, "a full queue")
            statuses = [
                engines.ask(CHAT, chat(PROMPT, model=model), {"x-session-id": session}).status
                for session in sessions * 3
            ]
            assert statuses == [503] * 6
            assert found(2, 3)
        finally:
            assert engines.ask("/wake_up", {}).status == 200
        for client in running:
            client.close()
        for client in short:
            assert client.read_head()[0] == 200
            assert text_of(client) == "word"
    wait_for(lambda: found(0, 0), 20, "an engine at rest")
    after = levels(engines, model)
    assert after["admission_rejections_total queue_full"] == 6
    assert after["request_success_total length"] == 3
    assert after["request_success_total abort"] == 2
    assert after["gpu_cache_usage_perc"] == after["kv_cache_usage_perc"] == 0


def test_refusal_is_the_providers_own(engines: Gateway) -> None:
    """A 503 with an error body; a request the engine could never run is a 400 with its field."""
    long = engines.ask(CHAT, chat(PROMPT, model="small-long", max_tokens=4000))
    assert long.status == 400
    assert long.json()["error"]["param"] == "max_tokens"
    odd = engines.ask(CHAT, chat(PROMPT, model="small-long", priority=3))
    assert odd.json()["error"]["param"] == "priority"


def test_same_prompt_is_cached_the_second_time(engines: Gateway) -> None:
    """Whole and streamed, by whichever worker; a salt keeps others out."""

    def cached(**more: Any) -> int:
        usage = engines.ask(CHAT, chat(PROMPT, model="small-cache", **more)).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached() == 0
    assert {cached() for _ in range(6)} == {16}
    assert cached(cache_salt="mine") == 0
    wanted = chat(PROMPT, model="small-cache", stream=True, stream_options={"include_usage": True})
    events = [json.loads(e) for e in sse_data(engines.ask(CHAT, wanted).body) if e != b"[DONE]"]
    assert events[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 16
    message = {"model": "claude-haiku-4-5", "max_tokens": 50,
               "messages": [{"role": "user", "content": PROMPT}]}  # fmt: skip
    headers = {"anthropic-version": "2023-06-01"}
    reads = [
        engines.ask("/v1/messages", message, headers).json()["usage"]["cache_read_input_tokens"]
        for _ in range(2)
    ]
    assert reads == [0, 16]


def test_client_that_leaves_frees_its_place(engines: Gateway) -> None:
    """The one who ran and those who waited; each is counted as an abort."""
    model = "slower-abort"
    with ExitStack() as leave:
        for _ in range(3):
            leave.enter_context(opened(engines, model))

        def busy() -> bool:
            level = levels(engines, model)
            return (level.get("num_requests_running"), level.get("num_requests_waiting")) == (1, 2)

        wait_for(busy, 20, "one running and two waiting")
        assert levels(engines, model)["kv_cache_usage_perc"] > 0

    def idle() -> bool:
        level = levels(engines, model)
        return level["num_requests_running"] + level["num_requests_waiting"] == 0

    wait_for(idle, 20, "an empty engine")
    level = levels(engines, model)
    assert level["request_success_total abort"] == 3
    assert level["generation_tokens_total"] < 25  # of 30, had they run to their ends
    assert level["kv_cache_usage_perc"] == 0


def test_streams_go_on_when_their_engines_worker_is_killed(engines: Gateway) -> None:
    """Each word once; the engine begins anew in another worker."""
    victim = engines.status()["slots"][0]
    with ExitStack() as leave:
        clients = [
            leave.enter_context(opened(engines, f"slow-kill-{number}")) for number in range(8)
        ]
        shards = [client.read_head()[1]["x-tpo-shard"] for client in clients]
        os.kill(victim["pid"], signal.SIGKILL)
        said = [
            text_of(client)
            for client, shard in zip(clients, shards, strict=True)
            if shard != str(victim["slot"])
        ]
    assert said == [WORDS] * len(said)
    wait_for(lambda: engines.status()["slots"][0]["pid"] != victim["pid"], 20, "a new worker")
    assert engines.ask(CHAT, chat(PROMPT, model="small-after")).status == 200


def test_engine_serves_behind_a_gateway_too(start_gateway: StartGateway) -> None:
    """The same table, as one of a gateway's backends."""
    gateway = start_gateway("--backend", "simulator", config=ENGINES, workers=2)
    usages = [
        gateway.ask(CHAT, chat(PROMPT, model="small-x", seed=number)).json()["usage"]
        for number in range(4)
    ]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert cached == [0, 16, 16, 16]
    assert levels(gateway, "small-x")["generation_tokens_total"] == 40
