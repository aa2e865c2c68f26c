"""A real ``mlx_lm`` server as a backend of kind ``mlx``: its faults are not the clients'."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import chat
from tests.support.tiny_model import MlxServer
from tests.support.toml import NO_CACHE, section
from tests.support.upstream import Page, Upstream

CHAT = "/v1/chat/completions"
pytestmark = pytest.mark.engine


@dataclass(slots=True)
class Bench:
    """Two workers before the engine, and before an upstream that fails as the engine does."""

    gateway: Gateway
    broken: Upstream


@pytest.fixture(scope="module")
def bench(mlx: MlxServer, short_tmp: Path) -> Iterator[Bench]:
    """Calls for ``b`` meet the broken one first."""
    with Upstream() as broken:
        broken.pages["/health"] = Page({"status": "ok"})
        config = (
            NO_CACHE
            + section("[[backends]]", name="broken", kind="mlx", models=["b", "only"],
                      base_url=broken.base_url)
            + section("[[backends]]", name="real", kind="mlx", models=["*"],
                      base_url=mlx.base_url)
            + section("[[routes]]", models=["b"], strategy="failover",
                      backends=["broken", "real"])
            + section("[[routes]]", models=["only"], strategy="weighted", backends=["broken"])
            + section("[[routes]]", models=["*"], strategy="weighted", backends=["real"])
        )  # fmt: skip
        with Gateway(short_tmp / "mlx-client", config=config, workers=2) as gateway:
            yield Bench(gateway, broken)


def asked(**more: Any) -> dict[str, Any]:
    """A chat under a name that the engine does not have."""
    return chat("hello", model="whatever", max_tokens=4, temperature=0) | more


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"top_p": None, "seed": None, "presence_penalty": None, "stop": None, "logprobs": None},
        {"max_tokens": None, "max_completion_tokens": 3},
    ],
)
def test_any_name_and_null_are_taken(bench: Bench, more: dict[str, Any]) -> None:
    """The engine itself would fetch a model of that name, and refuses each null."""
    reply = bench.gateway.ask(CHAT, asked(**more))
    assert reply.status == 200, reply.body
    assert reply.json()["usage"]["completion_tokens"] in (3, 4)


def test_streams_that_ask_for_nothing_end_well(bench: Bench) -> None:
    """The engine itself breaks off."""
    reply = bench.gateway.ask(CHAT, asked(stream=True, stream_options={}))
    assert reply.status == 200
    assert reply.body.rstrip().endswith(b"data: [DONE]")


def test_log_probabilities_tell_of_which_token(bench: Bench) -> None:
    """The engine itself tells the number alone."""
    reply = bench.gateway.ask(CHAT, asked(logprobs=True)).json()
    told = reply["choices"][0]["logprobs"]["content"]
    assert told
    assert all(isinstance(row["token"], str) for row in told)


def test_several_choices_are_refused_and_named(bench: Bench) -> None:
    """They would be one."""
    reply = bench.gateway.ask(CHAT, asked(n=2))
    assert (reply.status, reply.json()["error"]["param"]) == (400, "n")


def test_what_the_engine_refuses_is_an_error_of_the_dialect(bench: Bench) -> None:
    """Its own is a bare string."""
    reply = bench.gateway.ask(CHAT, asked(top_k=-5))
    assert reply.status == 400
    assert "top_k" in reply.json()["error"]["message"]


def test_an_engine_whose_thread_died_is_passed_over(bench: Bench) -> None:
    """It answers 404 from then on, which would be the client's fault."""
    before = bench.broken.counters.requests
    died = {"error": "generation thread died"}
    bench.broken.play("status", status=404, reply=died)
    reply = bench.gateway.ask(CHAT, asked(model="b"))
    assert reply.status == 200, reply.body
    assert bench.broken.counters.requests > before
    alone = bench.gateway.ask(CHAT, asked(model="only"))
    assert alone.status in (502, 503), alone.body
