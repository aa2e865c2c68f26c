"""The full configuration runs, and each feature in it is on the path of a request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dialects import REPLIES
from tests.support.gateway import ROOT, Gateway
from tests.support.host import metric
from tests.support.raw import chat
from tests.support.redis import RedisServer
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

FULL = (ROOT / "tests/e2e/pipelines/full.toml").read_text()
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def full(short_tmp: Path) -> Iterator[tuple[Gateway, Upstream]]:
    """The full configuration, its upstream's address filled in, and that of a Redis."""
    with Upstream() as upstream, RedisServer(short_tmp / "full-redis") as redis:
        config = FULL.replace("http://127.0.0.1:1/v1", upstream.base_url)
        config = config.replace("redis://127.0.0.1:1/0", redis.url)
        with Gateway(short_tmp / "full", config=config, workers=2) as gateway:
            yield gateway, upstream


def test_each_backend_serves_its_models(full: tuple[Gateway, Upstream]) -> None:
    """The route sends each model where it is served, and the answer says where that was."""
    gateway, upstream = full
    upstream.queue("answer", reply=REPLIES["anthropic_messages"])
    for model, backend in (
        ("claude-1", "claude"), ("echo", "echo"), ("up-1", "upstream"), ("up-2", "upstream"),
        ("sim-1", "simulated"),
        ("sim-engine", "simulated"),
    ):  # fmt: skip
        reply = gateway.ask(CHAT, chat("hi", model=model))
        assert reply.status == 200, reply
        assert reply.headers["x-tpo-backend"] == backend


def test_failure_is_tried_again_and_goes_over(full: tuple[Gateway, Upstream]) -> None:
    """The second backend of the list answers for the first; a single one is asked again."""
    gateway, upstream = full
    for model, backend in (("up-first", "spare"), ("up-2", "upstream")):
        upstream.queue("status", status=503)
        reply = gateway.ask(CHAT, chat("hi", model=model))
        assert (reply.status, reply.headers["x-tpo-backend"]) == (200, backend)
        assert reply.headers["x-tpo-attempts"] == "2"


def test_models_are_literal_names_and_what_globs_report(full: tuple[Gateway, Upstream]) -> None:
    """The list joins every backend's."""
    gateway, upstream = full
    listed = {model["id"] for model in gateway.ask("/v1/models").json()["data"]}
    assert listed == {"echo", "up-first", "up-race", *upstream.models}


def test_answers_are_looked_for_and_kept_in_redis(full: tuple[Gateway, Upstream]) -> None:
    """What no worker's memory has may lie there, and goes there."""
    gateway, _ = full

    def told(name: str, result: str) -> float:
        return metric(gateway.metrics(), name, result=result)

    asked = iter(range(1000))

    def written() -> bool:
        """A Redis that is late leaves a call alone: ask another."""
        body = chat(f"for Redis {next(asked)}", model="echo", temperature=0)
        assert gateway.ask(CHAT, body).status == 200
        looked = told("tpo_cache_tier_lookups_total", "miss")
        return looked > 0 and told("tpo_cache_tier_writes_total", "kept") > 0

    wait_for(written, 20, "an answer in Redis")


def test_weights_share_a_model_between_backends(
    full: tuple[Gateway, Upstream], short_tmp: Path
) -> None:
    """Three to one on one shard is exactly three to one."""
    _, upstream = full
    entry = '[[backends]]\nname = "{0}"\nkind = "openai"\nbase_url = "{1}"\nweight = {2}\n'
    config = entry.format("heavy", upstream.base_url, 3) + entry.format(
        "light", upstream.base_url, 1
    )
    with Gateway(short_tmp / "weights", config=config) as gateway:
        served = [
            gateway.ask(CHAT, chat(f"share {i}", model="up-1")).headers["x-tpo-backend"]
            for i in range(16)
        ]
    assert served.count("heavy") == 12
    assert served.count("light") == 4
