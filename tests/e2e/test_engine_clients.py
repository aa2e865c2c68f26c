"""Clients of vLLM and llama.cpp, before upstreams that look like these; two workers.

What they say was recorded from the real servers.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import RawClient, build, chat
from tests.support.shards import connect_to, session_on
from tests.support.toml import ECHO, section
from tests.support.upstream import Page, Upstream
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"
KEYS = {"a": "a-key-of-tenant-a-1", "b": "a-key-of-tenant-b-1"}
AUTH = section("[auth]", enabled=True) + "".join(
    section("[[auth.keys]]", id=who, secret=key, tenant=who) for who, key in KEYS.items()
)
TOO_LONG = {
    "error": {
        "code": 400, "message": "the request exceeds the available context size",
        "type": "exceed_context_size_error", "n_prompt_tokens": 5000, "n_ctx": 2048,
    }
}  # fmt: skip
NOT_PARSED = {
    "error": {
        "code": 500, "type": "server_error",
        "message": "[json.exception.type_error.302] type must be string, but is array",
    }
}  # fmt: skip

UNFIT = {
    "error": {
        "code": 500, "type": "server_error",
        "message": "The model produced output that does not match the expected peg-native format",
    }
}  # fmt: skip


NO_LOAD = "llamacpp:requests_processing 0\nllamacpp:requests_deferred 0\n"


def props(slots: int) -> dict[str, Any]:
    """What llama.cpp's server says of itself, abridged."""
    params = {"n_predict": -1, "temperature": 0.8, "id_slot": -1}
    return {
        "default_generation_settings": {"params": params, "n_ctx": 2048}, "total_slots": slots,
        "model_alias": "served", "build_info": "b1-7e4c0a9", "is_sleeping": False,
    }  # fmt: skip


UNASKED = {"enabled": False}
"""Health checks that time out on a busy machine would send calls elsewhere."""


@dataclass(slots=True)
class Bench:
    """A gateway before an upstream for each engine; ``sessions`` live on one worker each."""

    gateway: Gateway
    vllm: Upstream
    small: Upstream
    large: Upstream
    slotted: Upstream
    sessions: tuple[str, str]


@pytest.fixture(scope="module")
def bench(short_tmp: Path) -> Iterator[Bench]:
    """Both llama.cpp servers serve one model, the small one first."""
    with ExitStack() as made:
        vllm, small, large, slotted = (made.enter_context(Upstream()) for _ in range(4))
        for upstream in (vllm, small, large, slotted):
            upstream.pages["/health"] = Page({"status": "ok"})
            upstream.pages["/metrics"] = Page("")
        slotted.pages["/metrics"] = Page(NO_LOAD)
        slotted.pages["/props"] = Page(props(2))
        config = (
            section("[pipeline]", stages=["retry", "breaker"])
            + ECHO
            + section("[[backends]]", name="v", kind="vllm", models=["v"], base_url=vllm.base_url,
                      priority=True, health=UNASKED)
            + section("[[backends]]", name="small", kind="llama_cpp", models=["l"], slots=2,
                      base_url=small.base_url, health=UNASKED)
            + section("[[backends]]", name="large", kind="llama_cpp", models=["l"],
                      base_url=large.base_url, health=UNASKED)
            + "".join(
                section("[[backends]]", name=name, kind="llama_cpp", models=[name], slots=slots,
                        base_url=slotted.base_url, metrics_every_s=0.2,
                        health={"enabled": False, "interval_s": 0.2, "timeout_s": 1})
                for name, slots in (("auto", "auto"), ("wide", 5))
            )
            + section("[[routes]]", models=["l"], strategy="failover", backends=["small", "large"])
            + section("[[routes]]", models=["*"], strategy="weighted")
        )  # fmt: skip
        gateway = made.enter_context(Gateway(short_tmp / "engines", config=config, workers=2))
        sessions = (session_on(gateway.url, 0), session_on(gateway.url, 1))
        yield Bench(gateway, vllm, small, large, slotted, sessions)


def slot_of(bench: Bench, session: str, **more: Any) -> Any:
    """Ask in a session; answers the slot that the server was told."""
    before = len(bench.small.seen)
    reply = bench.gateway.ask(CHAT, chat("hi", "l", **more), {"x-session-id": session})
    assert reply.status == 200, reply
    return bench.small.seen[before].json().get("id_slot")


def slots_told(bench: Bench, model: str) -> set[Any]:
    """Ask in six sessions, of both workers; answers the slots that the server was told."""
    before = len(bench.slotted.seen)
    for session in (f"{session}{n}" for session in bench.sessions for n in range(3)):
        reply = bench.gateway.ask(CHAT, chat("hi", model), {"x-session-id": session})
        assert reply.status == 200, reply
    told = [seen for seen in list(bench.slotted.seen)[before:] if seen.method == "POST"]
    assert len(told) == 6
    return {seen.json().get("id_slot") for seen in told}


def test_vllm_is_told_the_priority_and_no_client_chooses_its_own(bench: Bench) -> None:
    """Lower is earlier; whole and streamed."""
    for stream in (False, True):
        body = chat("hi", "v", stream=stream, priority=-5)
        assert bench.gateway.ask(CHAT, body).status == 200
        assert bench.vllm.seen[-1].json()["priority"] == 2
    assert "cache_salt" not in bench.vllm.seen[-1].json()  # nobody has a tenant here


def test_each_tenant_has_a_salt_of_its_own(bench: Bench, short_tmp: Path) -> None:
    """The same from both workers, and not the one that a client wrote."""
    config = AUTH + section(
        "[[backends]]", name="v", kind="vllm", models=["v"], base_url=bench.vllm.base_url
    )
    salts: dict[str, set[str]] = {"a": set(), "b": set()}
    with Gateway(short_tmp / "salts", config=config + ECHO, workers=2) as gateway:
        for n in range(12):
            who = "ab"[n % 2]
            headers = {"authorization": f"Bearer {KEYS[who]}", "x-session-id": f"s-{n}"}
            body = chat("hi", "v", cache_salt="mine") if n > 5 else chat("hi", "v", seed=n)
            assert gateway.ask(CHAT, body, headers).status == 200
            salts[who].add(bench.vllm.seen[-1].json()["cache_salt"])
    assert len(salts["a"]) == len(salts["b"]) == 1
    assert salts["a"] != salts["b"]
    assert "mine" not in salts["a"] | salts["b"]


def test_a_session_keeps_its_slot_while_that_is_idle(bench: Bench) -> None:
    """On whichever worker; a third session takes the slot that was not used for longest."""
    first, second = bench.sessions
    one, two = slot_of(bench, first), slot_of(bench, second)
    assert {one, two} == {0, 1}
    for _ in range(3):
        assert (slot_of(bench, first), slot_of(bench, second)) == (one, two)
    assert slot_of(bench, "s-third") == one
    assert slot_of(bench, first) == two  # its own was taken


def test_a_busy_slot_is_not_waited_for_and_comes_back_from_a_dead_worker(bench: Bench) -> None:
    """A call beside a running one of its session is left to the server; a killed worker's slot
    is free again."""
    mine, other = bench.sessions
    slot = slot_of(bench, mine)
    gate = threading.Event()
    bench.small.queue("answer", until=gate)
    with connect_to(bench.gateway.url, 0) as client:
        _ask_on(client, mine)
        wait_for(lambda: bench.small.counters.open == 1, 10, "the first call")
        assert slot_of(bench, mine) is None
        assert slot_of(bench, other) == 1 - slot
        os.kill(int(bench.gateway.status()["slots"][0]["pid"]), signal.SIGKILL)
        wait_for(lambda: bench.small.counters.open == 0, 10, "the call to be cut")
        gate.set()

    def back() -> bool:
        return bool(slot_of(bench, mine) == slot)

    wait_for(back, 20, "the slot")


def test_there_are_as_many_slots_as_the_server_says(bench: Bench) -> None:
    """Its ``/props`` is believed, whatever was configured, and again after it was started anew.

    The account of ``auto`` is kept only while its metrics say that nobody else uses it.
    """
    for model in ("auto", "wide"):
        wait_for(lambda: slots_told(bench, model) == {0, 1}, 20, f"both slots of {model}")  # noqa: B023
    bench.slotted.pages["/props"] = Page(props(3))
    for model in ("auto", "wide"):
        wait_for(lambda: slots_told(bench, model) == {0, 1, 2}, 20, f"a third of {model}")  # noqa: B023
    bench.slotted.pages["/metrics"] = Page(NO_LOAD.replace(" 0", " 4"))
    for model in ("auto", "wide"):
        wait_for(lambda: slots_told(bench, model) == {None}, 20, f"{model} to be left alone")  # noqa: B023
    bench.slotted.pages["/metrics"] = Page("")  # the last look lapses, and nobody knows any more
    wait_for(lambda: slots_told(bench, "wide") == {0, 1, 2}, 30, "the slots that are configured")
    assert slots_told(bench, "auto") == {None}  # a lapse is not taken back


def test_slots_that_keep_nothing_are_left_to_the_server(bench: Bench) -> None:
    """It is seen to empty idle ones, and said once; one started in its place is tried again."""
    pages, asked = bench.slotted.pages, bench.slotted.pages_asked
    before = pages["/metrics"], pages["/props"]
    pages["/metrics"], pages["/props"] = Page(NO_LOAD), Page(props(2))
    wait_for(lambda: slots_told(bench, "auto") == {0, 1}, 20, "both slots")
    done = {"n_ctx": 2048, "is_processing": False, "id_task": 1, "n_prompt_tokens": 0}
    pages["/slots"] = Page([{"id": 0, **done}, {"id": 1, **done, "n_prompt_tokens": 34}])
    wait_for(lambda: slots_told(bench, "auto") == {None}, 20, "the server to be left to choose")
    assert slots_told(bench, "wide") == {0, 1}
    bench.gateway.says("slots_not_kept backend=auto")
    seen = len(asked)
    wait_for(lambda: sum(a.path == "/slots" for a in list(asked)[seen:]) > 3, 20, "new looks")
    assert bench.gateway.stderr.count("slots_not_kept backend=auto") == 1
    del pages["/slots"]
    assert slots_told(bench, "auto") == {None}
    pages["/props"] = Page({})
    seen = len(asked)
    wait_for(lambda: sum(a.path == "/props" for a in list(asked)[seen:]) > 4, 20, "new looks")
    pages["/props"] = Page(props(2))
    wait_for(lambda: slots_told(bench, "auto") == {0, 1}, 20, "both slots again")
    pages["/metrics"], pages["/props"] = before


def test_a_prompt_that_is_too_long_goes_to_the_larger_one(bench: Bench) -> None:
    """It blames no backend; where none is larger the client reads what the server said."""
    bench.small.queue("status", status=400, reply=TOO_LONG)
    reply = bench.gateway.ask(CHAT, chat("long", "l"))
    assert (reply.status, reply.headers["x-tpo-backend"]) == (200, "large")
    bench.small.queue("status", status=400, reply=TOO_LONG)
    bench.large.queue("status", status=400, reply=TOO_LONG)
    reply = bench.gateway.ask(CHAT, chat("longer", "l"))
    assert (reply.status, reply.json()["error"]["n_ctx"]) == (400, 2048)
    shown = bench.gateway.ask("/api/v1/providers/small").json()
    assert (shown["breaker"], shown["consecutive_failures"], shown["failures"]) == ("closed", 0, 0)


def test_a_body_it_does_not_parse_is_the_clients_fault(bench: Bench) -> None:
    """llama.cpp says 500 then; nobody is asked again, and no breaker counts."""
    bench.small.queue("status", status=500, reply=NOT_PARSED)
    before = bench.small.counters.requests, bench.large.counters.requests
    assert bench.gateway.ask(CHAT, chat("odd", "l")).status == 400
    after = bench.small.counters.requests, bench.large.counters.requests
    assert (after[0] - before[0], after[1] - before[1]) == (1, 0)
    assert bench.gateway.ask("/api/v1/providers/small").json()["failures"] == 0


def test_what_a_model_wrote_blames_no_server(bench: Bench) -> None:
    """llama.cpp refuses text that is no UTF-8, after it was computed: nobody computes it again."""
    before = bench.small.counters.requests, bench.large.counters.requests
    bench.small.queue("status", status=500, reply=UNFIT)
    reply = bench.gateway.ask(CHAT, chat("noise", "l"))
    assert (reply.status, reply.json()["error"]["code"]) == (502, "unfit_output")
    after = bench.small.counters.requests, bench.large.counters.requests
    assert (after[0] - before[0], after[1] - before[1]) == (1, 0)
    shown = bench.gateway.ask("/api/v1/providers/small").json()
    assert (shown["consecutive_failures"], shown["failures"]) == (0, 0)


@pytest.mark.parametrize(
    "error",
    [
        {"code": 400, "type": "BadRequestError", "param": "input_tokens",
         "message": "This model's maximum context length is 2048 tokens. However, your prompt"},
        {"code": "context_length_exceeded", "type": "invalid_request_error", "param": "messages",
         "message": "this prompt has 9000 tokens, and the model takes 2048"},
    ],
    ids=["vllm", "openai"],
)  # fmt: skip
def test_other_words_for_a_prompt_that_is_too_long(bench: Bench, error: dict[str, Any]) -> None:
    """vLLM's, and those of whoever follows OpenAI."""
    bench.small.queue("status", status=400, reply={"error": error})
    reply = bench.gateway.ask(CHAT, chat("long", "l"))
    assert (reply.status, reply.headers["x-tpo-backend"]) == (200, "large")


def _ask_on(client: RawClient, session: str) -> None:
    body = json.dumps(chat("long", "l")).encode()
    headers = {"Host": client.host, "Content-Type": "application/json", "X-Session-Id": session}
    client.send(build("POST", CHAT, headers, body))
