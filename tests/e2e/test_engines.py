"""Real model servers behind the gateway say what they say when asked directly.

``mlx_lm`` runs wherever its package does; llama-server and vLLM run where they are installed.
Each has its server to itself: a seed means little while others draw from it.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionUserMessageParam

from tests.conftest import require
from tests.support import engines, mlx_engine, tiny_model
from tests.support.gateway import Gateway
from tests.support.toml import section

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]
SESSIONS = [f"s-{number}" for number in range(6)]


@dataclass(frozen=True, slots=True)
class Engine:
    """A model server and a host of two shards in front of it."""

    url: str
    model: str
    gateway: Gateway


@contextmanager
def mlx_alone(folder: Path) -> Iterator[tuple[str, str]]:
    """A tiny model of our own making."""
    require(importlib.util.find_spec("mlx_lm") is not None, "mlx-lm")
    server = tiny_model.start_mlx_server(tiny_model.build(folder / "model"), folder / "log")
    try:
        yield server.url, server.model
    finally:
        os.kill(server.pid, signal.SIGKILL)


@contextmanager
def mlx_own(folder: Path) -> Iterator[tuple[str, str]]:
    """The same model in our own engine."""
    require(importlib.util.find_spec("mlx_lm") is not None, "mlx-lm")
    with mlx_engine.serving(tiny_model.build(folder / "model"), folder / "log") as engine:
        yield engine.url, mlx_engine.NAME


@contextmanager
def installed(kind: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Whatever is installed here."""
    found = engines.find(kind)
    if isinstance(found, str):
        pytest.skip(found)
    with engines.serving(found, folder) as url:
        yield url, engines.MODEL


@pytest.fixture(scope="module", params=["mlx", "mlx_engine", "llama_cpp", "vllm"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, short_tmp: Path
) -> Iterator[Engine]:
    """Each in turn."""
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind)
    ours = {"mlx": mlx_alone, "mlx_engine": mlx_own}.get(kind)
    with ours(folder) if ours else installed(kind, folder) as (url, model):
        config = section(
            "[[backends]]", name="up", kind="openai", base_url=f"{url}/v1", models=["*"]
        )
        with Gateway(short_tmp / f"engine-{kind}", config=config, workers=2) as gateway:
            yield Engine(url, model, gateway)


def client_of(url: str) -> OpenAI:
    """The unmodified SDK."""
    return OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=60)


def said(client: OpenAI, model: str, seed: int, session: str, *, stream: bool) -> str:
    """Ask once, hot enough that the seed decides; the whole text."""
    words: ChatCompletionUserMessageParam = {"role": "user", "content": "tell me something"}
    headers = {"X-Session-Id": session}
    if not stream:
        reply = client.chat.completions.create(
            model=model, messages=[words], max_tokens=24, temperature=0.9, seed=seed,
            extra_headers=headers,
        )  # fmt: skip
        return reply.choices[0].message.content or ""
    events = client.chat.completions.create(
        model=model, messages=[words], max_tokens=24, temperature=0.9, seed=seed, stream=True,
        extra_headers=headers,
    )  # fmt: skip
    return "".join(e.choices[0].delta.content or "" for e in events if e.choices)


def test_same_seed_same_text_through_any_shard(engine: Engine) -> None:
    """Whole and streamed, local and forwarded; another seed says something else."""
    with client_of(engine.url) as direct, client_of(engine.gateway.url) as through:
        for stream in (False, True):
            wanted = said(direct, engine.model, 7, "x", stream=stream)
            other = said(direct, engine.model, 8, "x", stream=stream)
            assert len(wanted) > 10
            assert other != wanted, "the engine does not mind the seed"
            for session in SESSIONS:
                assert said(through, engine.model, 7, session, stream=stream) == wanted
            assert said(through, engine.model, 8, SESSIONS[0], stream=stream) == other


def test_glob_lists_what_the_engine_lists(engine: Engine) -> None:
    """Name by name, and each can be asked for."""
    with client_of(engine.url) as direct, client_of(engine.gateway.url) as through:
        wanted = {model.id for model in direct.models.list()}
        assert {model.id for model in through.models.list()} == wanted
        assert all(through.models.retrieve(name).id == name for name in wanted)
