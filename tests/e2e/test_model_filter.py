"""Backends that serve globs are asked only for models they report, if another one reports it."""

from __future__ import annotations

from pathlib import Path

from tests.support.gateway import Gateway
from tests.support.raw import chat
from tests.support.shards import session_on
from tests.support.toml import ECHO, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

CHAT = "/v1/chat/completions"


def test_calls_go_to_who_has_the_model(short_tmp: Path) -> None:
    """On both workers; what nobody reports goes to anybody, and a list that cannot be had any more
    keeps counting as it was."""
    with Upstream(("g-both", "g-one")) as one, Upstream(("g-both", "g-two")) as two:
        config = (
            section("[pipeline]", stages=[])
            + ECHO
            + backend("one", one.base_url, "g-*")
            + backend("two", two.base_url, "g-*")
            + section("[[routes]]", models=["g-*"], strategy="round_robin", backends=["one", "two"])
            + section("[[routes]]", models=["*"], strategy="weighted")
        )
        with Gateway(short_tmp / "filter", config=config, workers=2) as gateway:
            sessions = session_on(gateway.url, 0), session_on(gateway.url, 1)

            def shares(model: str) -> tuple[int, int]:
                before = one.counters.requests, two.counters.requests
                for n in range(8):
                    headers = {"x-session-id": sessions[n % 2]}
                    assert gateway.ask(CHAT, chat("hi", model), headers).status == 200
                return one.counters.requests - before[0], two.counters.requests - before[1]

            wait_for(lambda: shares("g-two") == (0, 8), 20, "everything at the one that has it")
            wait_for(lambda: shares("g-one") == (8, 0), 20, "what only the other has, there")
            assert shares("g-both") == (4, 4)
            assert shares("g-nobody") == (4, 4)
