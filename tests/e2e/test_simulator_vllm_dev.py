"""Adapters, sleep and ranks of simulated engines: one truth for two workers, whichever dies."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing import connection
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.gateway import Gateway
from tests.support.raw import RawClient, RawReply, build, chat, sse_data
from tests.support.toml import backend
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
CLAUDE, COMPLETE = "/v1/messages", "/v1/complete"
PROMPT = "Tell me all that is known about rivers, and bridges across them, and the fish in them."
CONFIG = """
[simulator]
strategy = "fixed"
text = "one two three four five six seven eight nine ten"
models = ["base", "twins", "quick", "long"]
latency = { base = "slow", twins = "twins", long = "slow" }

[[simulator.rules]]
match = { model = "long" }
reply = { text = "LONG" }

[[simulator.rules]]
match = { model = "twins" }
reply = { text = "LONG" }

[simulator.adapters.static]
path = "/adapters/static"

[simulator.engines.slow]
max_num_seqs = 4
max_model_len = 2048
num_gpu_blocks = 256
base_ms = 100

[simulator.engines.twins]
preset = "vllm-8b-h100"
max_num_seqs = 1
data_parallel_size = 2
base_ms = 100
""".replace("LONG", " ".join(["word"] * 600))
GATEWAYS_OWN = """
[[backends]]
name = "sim"
kind = "simulator"
models = ["own"]
strategy = "fixed"
text = "LONG"
latency = { own = "slow" }
engines = { slow = { base_ms = 100, max_num_seqs = 4, max_model_len = 2048 } }

[surfaces.vllm_dev]
""".replace("LONG", " ".join(["word"] * 600))
"""Answers of ``long`` and ``twins`` take a minute: they are under way whatever pauses meanwhile."""


@pytest.fixture(scope="module")
def engines(short_tmp: Path) -> Iterator[Gateway]:
    """A simulator of two workers."""
    with Gateway(
        short_tmp / "dev", "--lora-modules", "flagged=/adapters/flagged",
        config=CONFIG, workers=2, verb="simulate",
    ) as gateway:  # fmt: skip
        yield gateway


@pytest.fixture(autouse=True)
def awake(engines: Gateway) -> Iterator[None]:
    """Whatever a test came to, the next one finds engines that are awake."""
    yield
    assert engines.ask("/wake_up", {}).status == 200
    assert engines.ask("/is_sleeping").json() == {"is_sleeping": False}


@pytest.fixture(scope="module")
def sessions(engines: Gateway) -> list[str]:
    """A session on each worker."""
    found: dict[str, str] = {}
    for number in range(64):
        session = f"session-{number}"
        reply = engines.ask(CHAT, chat("x", model="quick"), {"x-session-id": session})
        found.setdefault(reply.headers["x-tpo-shard"], session)
        if len(found) == 2:
            return list(found.values())
    raise AssertionError(found)


def everywhere(engines: Gateway, sessions: list[str], model: str, **more: Any) -> list[RawReply]:
    """One answer of each worker."""
    told = chat(PROMPT, model=model, **more)
    return [engines.ask(CHAT, told, {"x-session-id": session}) for session in sessions]


def samples(engines: Gateway, name: str) -> list[tuple[dict[str, str], float]]:
    """What ``/metrics`` says of a vLLM series now."""
    page = engines.metrics()
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == f"vllm:{name}"
    ]


def opened(
    engines: Gateway, model: str, stack: ExitStack, headers: dict[str, str] | None = None,
    *, path: str = CHAT, **more: Any,
) -> RawClient:  # fmt: skip
    """A stream, unless ``more`` says otherwise, that was asked for, nothing read yet."""
    client = stack.enter_context(RawClient(engines.url))
    asked = chat(PROMPT, model=model, **{"stream": True, **more})
    if path == COMPLETE:
        del asked["messages"]
        said = f"\n\nHuman: {PROMPT}\n\nAssistant:"
        asked |= {"prompt": said, "max_tokens_to_sample": asked.pop("max_tokens")}
    body = json.dumps(asked).encode()
    head = {"content-type": "application/json", "host": client.host, **(headers or {})}
    client.send(build("POST", path, head, body))
    return client


def begun(client: RawClient) -> RawClient:
    """Wait for a stream's first token."""
    client.read_head()
    next(iter(client.chunks()))
    return client


def killed(engines: Gateway, slot: int) -> None:
    """One worker dies, and there is another."""
    victim = engines.status()["slots"][slot]["pid"]
    os.kill(victim, signal.SIGKILL)
    wait_for(
        lambda: engines.status()["slots"][slot]["pid"] not in (None, victim)
        and engines.ask("/ready").status == 200,
        20, "a new worker",
    )  # fmt: skip


def load(engines: Gateway, name: str, **more: Any) -> RawReply:
    """Load an adapter."""
    told = {"lora_name": name, "lora_path": f"/adapters/{name}", **more}
    return engines.ask("/v1/load_lora_adapter", told)


def waiting_for(
    engines: Gateway, sessions: list[str], stack: ExitStack, *models: str
) -> list[RawClient]:
    """A stream of each model on each worker, asked for and no more."""
    return [
        opened(engines, model, stack, {"x-session-id": session})
        for model in models
        for session in sessions
    ]


def silent(clients: list[RawClient]) -> bool:
    """Nobody was told anything, for a while."""
    return not connection.wait([client.sock for client in clients], 0.3)


def queued(engines: Gateway, model: str = "base") -> dict[str, float]:
    """Who is in the engine of a model."""
    found = {"running": 0.0, "waiting": 0.0}
    for kind in found:
        for labels, value in samples(engines, f"num_requests_{kind}"):
            found[kind] += value * (labels["model_name"] == model)
    return found


def lined_up(engines: Gateway, stack: ExitStack, *models: str) -> list[RawClient]:
    """Streams of models of one engine, which begins with them when all are there, in this order."""
    wait_for(lambda: queued(engines) == {"running": 0, "waiting": 0}, 20, "an engine at rest")
    assert engines.ask("/sleep?level=0&mode=keep", {}).status == 200
    clients: list[RawClient] = []
    for model in models:
        clients.append(opened(engines, model, stack))
        wait_for(lambda: queued(engines)["waiting"] == len(clients), 20, f"{model} in the queue")
    assert engines.ask("/wake_up", {}).status == 200
    return clients


def seen_together(engines: Gateway, running: str, waiting: str) -> bool:
    """Whether one adapter ran while another waited; a series stays when that is over."""
    return any(
        (of["running_lora_adapters"], of["waiting_lora_adapters"], of["max_lora"])
        == (running, waiting, "1")
        for of, _ in samples(engines, "lora_requests_info")
    )


def asking_whole(engines: Gateway, model: str, stack: ExitStack, session: str) -> RawClient:
    """A whole answer that was asked for."""
    return opened(engines, model, stack, {"x-session-id": session}, stream=False)


def broken_off(client: RawClient) -> None:
    """A stream ends as vLLM ends what it aborts."""
    *_, stop, done = sse_data(b"".join(client.chunks()))
    (choice,) = json.loads(stop)["choices"]
    assert (choice["delta"], choice["finish_reason"], done) == ({}, "abort", b"[DONE]")


def broken_off_whole(client: RawClient) -> dict[str, Any]:
    """A whole answer does; its usage, which is that of what it says."""
    reply = client.read_reply().json()
    (choice,) = reply["choices"]
    tokens = reply["usage"]["completion_tokens"]
    assert choice["finish_reason"] == "abort"
    assert choice["message"]["content"] == " ".join(["word"] * tokens)
    return dict(reply["usage"])


def answered(clients: list[RawClient]) -> None:
    """Each stream comes to its end."""
    for client in clients:
        assert client.read_head()[0] == 200
        assert list(sse_data(b"".join(client.chunks())))[-1] == b"[DONE]"


def test_an_adapter_is_a_model_of_every_worker_until_it_is_unloaded(
    engines: Gateway, sessions: list[str]
) -> None:
    """Listed with its model, answered in its name, known to a worker that comes later."""
    before = everywhere(engines, sessions, "sql")
    assert [reply.status for reply in before] == [404, 404]
    done = load(engines, "sql")
    assert (done.status, done.body) == (200, b"Success: LoRA adapter 'sql' added successfully.")
    for reply in everywhere(engines, sessions, "sql"):
        assert reply.json()["model"] == "sql"
    killed(engines, 0)
    assert [reply.status for reply in everywhere(engines, sessions, "sql")] == [200, 200]
    for _ in range(6):
        listed = {card["id"]: card for card in engines.ask("/v1/models").json()["data"]}
        assert (listed["sql"]["parent"], listed["sql"]["root"]) == ("base", "/adapters/sql")
        assert "parent" not in listed["base"]
    gone = engines.ask("/v1/unload_lora_adapter", {"lora_name": "sql"})
    assert gone.body == b"Success: LoRA adapter 'sql' removed successfully."
    assert [reply.status for reply in everywhere(engines, sessions, "sql")] == [404, 404]
    assert "sql" not in {card["id"] for card in engines.ask("/v1/models").json()["data"]}


def test_adapters_of_the_configuration_and_of_the_flag_are_models_from_the_start(
    engines: Gateway, sessions: list[str]
) -> None:
    """In the engine they count as those that were loaded; unloaded, they are gone."""
    for name, root in (("static", "/adapters/static"), ("flagged", "/adapters/flagged")):
        cards = {card["id"]: card for card in engines.ask("/v1/models").json()["data"]}
        assert (cards[name]["parent"], cards[name]["root"]) == ("base", root)
        for reply in everywhere(engines, sessions, name):
            assert (reply.status, reply.json()["model"]) == (200, name)
    with ExitStack() as stack:
        answered(lined_up(engines, stack, "static", "flagged"))
    wait_for(lambda: seen_together(engines, "static", "flagged"), 20, "one that waited")
    assert load(engines, "static").json()["error"]["type"] == "InvalidUserInput"
    gone = engines.ask("/v1/unload_lora_adapter", {"lora_name": "flagged"})
    assert gone.status == 200
    assert [reply.status for reply in everywhere(engines, sessions, "flagged")] == [404, 404]
    killed(engines, 0)
    statuses = [reply.status for reply in everywhere(engines, sessions, "flagged")]
    assert statuses == [404, 404]
    assert [reply.status for reply in everywhere(engines, sessions, "static")] == [200, 200]


def test_what_vllm_refuses_is_refused_in_its_words(engines: Gateway) -> None:
    """Twice loaded, never loaded, nameless, for a model that is not there."""
    assert load(engines, "twice").status == 200
    refusals = [
        (load(engines, "twice"), 400, "InvalidUserInput"),
        (load(engines, "base"), 400, "InvalidUserInput"),
        (load(engines, "odd", base_model_name="nobody"), 404, "NotFoundError"),
        (engines.ask("/v1/load_lora_adapter", {"lora_name": "x"}), 400, "InvalidUserInput"),
        (engines.ask("/v1/unload_lora_adapter", {"lora_name": "odd"}), 404, "NotFoundError"),
        (engines.ask("/v1/unload_lora_adapter", {}), 400, "InvalidUserInput"),
    ]
    for reply, status, kind in refusals:
        error = reply.json()["error"]
        assert (reply.status, error["type"], error["code"]) == (status, kind, status)
    assert load(engines, "twice", load_inplace=True).status == 200


def test_adapters_share_the_batch_one_at_a_time_and_no_blocks(engines: Gateway) -> None:
    """With ``max_loras`` 1 a second adapter waits, the model itself does not."""
    assert load(engines, "left").status == load(engines, "right").status == 200
    with ExitStack() as stack:
        answered(lined_up(engines, stack, "left", "right", "base"))  # base: past the one that waits
    wait_for(lambda: seen_together(engines, "left", "right"), 20, "one that waited")

    def cached(model: str) -> int:
        usage = engines.ask(CHAT, chat(PROMPT, model=model)).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached("left") == cached("base") == 16
    assert load(engines, "left", load_inplace=True).status == 200
    assert (cached("left"), cached("left")) == (0, 16)


def test_sleep_ends_what_runs_and_lets_what_comes_wait_on_every_worker(
    engines: Gateway, sessions: list[str]
) -> None:
    """Also on one that is started meanwhile; it is awake when both its parts are."""
    assert [reply.status for reply in everywhere(engines, sessions, "base")] == [200, 200]
    with ExitStack() as stack:
        clients = waiting_for(engines, sessions, stack, "long")
        for client in clients:
            begun(client)
        whole = [asking_whole(engines, "long", stack, session) for session in sessions * 2]
        wait_for(lambda: queued(engines, "long") == {"running": 4, "waiting": 2}, 20, "a full one")
        slept = engines.ask("/sleep?level=2", {})
        assert (slept.status, slept.json()) == (200, {"status": "sleeping", "level": 2})
        assert queued(engines, "long") == {"running": 0, "waiting": 0}
        for client in clients:
            broken_off(client)
        spent = [int(broken_off_whole(client)["completion_tokens"]) for client in whole]
        assert sorted(tokens > 0 for tokens in spent) == [False, False, True, True]
    killed(engines, 1)
    assert engines.ask("/tokenize", {"prompt": "a b"}).status == 200

    def states() -> set[str]:
        return {
            labels["sleep_state"]
            for labels, value in samples(engines, "engine_sleep_state")
            if value
        }

    wait_for(lambda: states() <= {"discard_all"}, 10, "engines that are told to sleep")
    with ExitStack() as stack:
        clients = waiting_for(engines, sessions, stack, "base", "quick")
        wait_for(lambda: queued(engines) == {"running": 0, "waiting": 2}, 20, "who wait")
        half = engines.ask("/wake_up?tags=weights", {})
        assert half.json() == {"status": "sleeping", "tags": ["weights"]}
        assert engines.ask("/is_sleeping").json() == {"is_sleeping": True}
        assert silent(clients)
        whole = engines.ask("/wake_up?tags=kv_cache", {})
        assert whole.json() == {"status": "awake", "tags": ["kv_cache"]}
        assert engines.ask("/is_sleeping").json() == {"is_sleeping": False}
        answered(clients)
    with ExitStack() as stack:
        begun(opened(engines, "long", stack))
        assert engines.ask("/reset_prefix_cache", {}).json() == {"success": False}
    wait_for(lambda: queued(engines, "long")["running"] == 0, 20, "an engine at rest")
    assert engines.ask("/reset_prefix_cache", {}).json() == {"success": True}
    again = everywhere(engines, sessions, "base")[0].json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_what_was_broken_off_is_told_in_every_dialect_and_kept_by_nobody(
    engines: Gateway, short_tmp: Path
) -> None:
    """By a gateway's own engine, and by one that it relays; asked again, both begin anew."""
    own = backend("relayed", f"{engines.url}/v1", "long") + GATEWAYS_OWN
    with Gateway(short_tmp / "aborts", config=own) as gateway, ExitStack() as stack:
        for model, engine in (("own", gateway), ("long", engines)):
            told = {"temperature": 0, "max_tokens": 500}
            streams = [begun(opened(gateway, model, stack, path=p, **told)) for p in (CHAT, CLAUDE)]
            whole = [
                opened(gateway, model, stack, path=path, stream=False, top_p=0.9, **told)
                for path in (CHAT, CLAUDE, COMPLETE)
            ]
            full = {"running": 4, "waiting": 1}
            wait_for(lambda: queued(engine, model) == full, 20, "all of them")  # noqa: B023
            assert engine.ask("/sleep", {}).status == 200
            broken_off(streams[0])
            events = [json.loads(data) for data in sse_data(b"".join(streams[1].chunks()))]
            assert [event["type"] for event in events][-2:] == ["message_delta", "message_stop"]
            assert events[-2]["delta"] == {"stop_reason": None, "stop_sequence": None}
            broken_off_whole(whole[0])
            assert whole[1].read_reply().json()["stop_reason"] is None
            assert whole[2].read_reply().json()["stop_reason"] == "max_tokens"
            assert engine.ask("/wake_up", {}).status == 200
            for path in (CHAT, CLAUDE, COMPLETE):
                for more in {}, {"top_p": 0.9}:
                    again = opened(gateway, model, stack, path=path, **told, **more)
                    assert again.read_head()[1]["x-tpo-cache"] == "miss"
                    again.close()


def test_sleep_that_waits_lets_calls_end(engines: Gateway, sessions: list[str]) -> None:
    """It is answered when those are who came before it; bad orders change nothing."""
    with ExitStack() as stack:
        client = begun(opened(engines, "base", stack))
        assert engines.ask("/sleep?mode=wait", {}).json() == {"status": "sleeping", "level": 1}
        assert queued(engines) == {"running": 0, "waiting": 0}
        assert list(sse_data(b"".join(client.chunks())))[-1] == b"[DONE]"
    for path in ("/sleep?level=3", "/sleep?mode=hold", "/wake_up?part=x"):
        assert engines.ask(path, {}).status == 400
    assert engines.ask("/wake_up?tags=all", {}).json() == {"status": "sleeping", "tags": ["all"]}
    with ExitStack() as stack:
        clients = waiting_for(engines, sessions, stack, "base", "quick")
        wait_for(lambda: queued(engines) == {"running": 0, "waiting": 2}, 20, "who wait")
        assert silent(clients)
        assert engines.ask("/wake_up", {}).status == 200
        answered(clients)


def test_what_is_kept_stands_still_until_it_is_woken(engines: Gateway, sessions: list[str]) -> None:
    """Streams of both workers, and who comes meanwhile; nobody is refused, all go on."""
    with ExitStack() as stack:
        for client in waiting_for(engines, sessions, stack, "long"):
            begun(client)
        assert engines.ask("/sleep?level=1&mode=keep", {}).status == 200
        assert engines.ask("/is_sleeping").json() == {"is_sleeping": True}
        wait_for(lambda: queued(engines, "long") == {"running": 0, "waiting": 2}, 20, "rest")
        later = waiting_for(engines, sessions, stack, "base", "quick")
        wait_for(lambda: queued(engines) == {"running": 0, "waiting": 2}, 20, "who wait")
        assert silent(later)
        assert engines.ask("/wake_up", {}).status == 200
        answered(later)
        wait_for(lambda: queued(engines, "long") == {"running": 2, "waiting": 0}, 20, "them go on")
    wait_for(lambda: queued(engines, "long") == {"running": 0, "waiting": 0}, 20, "their end")


def test_ranks_have_a_batch_each_and_a_request_may_name_one(engines: Gateway) -> None:
    """Two run at once on two ranks; whoever names a busy one waits there."""

    def running() -> dict[str, float]:
        found = samples(engines, "num_requests_running")
        return {of["engine"]: value for of, value in found if of["model_name"] == "twins"}

    def waiting() -> dict[str, float]:
        found = samples(engines, "num_requests_waiting")
        return {of["engine"]: value for of, value in found if of["model_name"] == "twins"}

    with ExitStack() as stack:
        for _ in range(2):
            begun(opened(engines, "twins", stack))
        wait_for(lambda: running() == {"0": 1, "1": 1}, 10, "one on each rank")
        opened(engines, "twins", stack, {"X-data-parallel-rank": "1"})
        opened(engines, "twins", stack, {"X-data-parallel-rank": "1"})
        wait_for(lambda: waiting().get("1", 0) >= 1, 10, "somebody to wait for rank 1")
        assert waiting()["0"] == 0
    odd = engines.ask(CHAT, chat(PROMPT, model="twins"), {"X-data-parallel-rank": "2"})
    assert (odd.status, odd.json()["error"]["param"]) == (400, "x-data-parallel-rank")
