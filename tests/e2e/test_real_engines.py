"""Real engines with tiny models, started and kept by the host: one suite for every kind.

MLX must run; llama.cpp and vLLM where they are installed (``scripts/test --engines``).
"""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.support import engines
from tests.support.engines import MODEL, Installed
from tests.support.gateway import Gateway
from tests.support.raw import RawClient, RawReply, ask, chat
from tests.support.shards import render
from tests.support.toml import NO_CACHE, section
from tests.support.wait import wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SMALL = {"mlx": 6000, "llama_cpp": 12_000, "vllm": 6000}
"""Tokens of context of the engine that is asked first; the other one has twice as many."""
LEAD = "\u00e2"
"""How the tokenizer writes the byte E2, which begins a character of three bytes."""


class Pair:
    """A host of two workers that keeps a small and a large engine of one kind."""

    def __init__(self, gateway: Gateway, installed: Installed) -> None:
        self.gateway = gateway
        self._installed = installed
        self.context = SMALL[installed.kind]
        self._ports: dict[str, int] = {}

    def row(self, name: str) -> dict[str, Any]:
        """What ``status`` says of an engine."""
        rows: list[dict[str, Any]] = self.gateway.status()["engines"]
        return next(row for row in rows if row["engine"] == name)

    def ready(self, name: str, but: int | None = None) -> dict[str, Any] | None:
        """The row of an engine that serves, once its process is another one than ``but``."""
        row = self.row(name)
        assert row["state"] != "failed", self.gateway.stderr
        return row if row["state"] == "ready" and row["pid"] != but else None

    def series(self, name: str, series: str) -> float:
        """Something the engine itself counts."""
        # Asked once, since that takes a process each time: a quick engine is done meanwhile.
        port = self._ports.get(name) or self._ports.setdefault(name, self.row(name)["port"])
        page = ask(f"http://127.0.0.1:{port}", "/metrics").body.decode()
        lines = [
            line for line in page.splitlines() if line.startswith((f"{series} ", f"{series}{{"))
        ]
        assert lines, page
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def running(self, name: str) -> float:
        """Sequences it computes."""
        return self.series(name, self._installed.running)

    def steps(self, name: str) -> float:
        """Steps it took."""
        return self.series(name, self._installed.steps)

    def chat(self, text: str, **more: Any) -> RawReply:
        """One chat at temperature 0."""
        return self.ask(CHAT, chat(text, MODEL, **{"max_tokens": 8, "temperature": 0, **more}))

    def turn(self, session: str, text: str) -> tuple[str, int]:
        """One chat in a session; answers its worker, and how much the engine remembered."""
        with RawClient(self.gateway.url, timeout_s=90) as client:
            body = chat(text, MODEL, max_tokens=2, temperature=0)
            reply = client.post_json(CHAT, body, {"x-session-id": session})
        assert reply.status == 200, reply.body
        assert reply.headers["x-tpo-backend"] == "small"
        cached = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return reply.headers["x-tpo-shard"], cached

    def back(self) -> bool:
        """Whether calls go to the small one, which control must have found well."""
        reply = self.chat(f"again {os.urandom(4).hex()}")
        assert reply.status == 200, reply.body
        return reply.headers["x-tpo-backend"] == "small"

    def ask(self, target: str, body: dict[str, Any]) -> RawReply:
        """Ask with the patience that a slow engine needs."""
        with RawClient(self.gateway.url, timeout_s=90) as client:
            return client.post_json(target, body)


@pytest.mark.parametrize("kind", ["mlx", "llama_cpp", "vllm"])
def test_two_engines_of_a_kind_kept_by_the_host(kind: str, tmp_path: Path) -> None:
    """They chat, speak broken characters, are left, are too small, die and come back."""
    found = engines.find(kind)
    if isinstance(found, str):
        require(kind != "mlx", "mlx-lm")
        pytest.skip(found)
    model = found.model(tmp_path / "model")
    routed = section("[[routes]]", models=[MODEL], backends=["small", "large"], strategy="failover")
    config = routed + NO_CACHE
    config += "".join(
        section("[[engines]]", name=name, kind=kind, model=str(model), models=[MODEL],
                args=found.args(context), env=found.env)
        for name, context in (("small", SMALL[kind]), ("large", 2 * SMALL[kind]))
    )  # fmt: skip
    env = {"PATH": found.path}
    with Gateway(tmp_path / "host", config=config, workers=2, env=env, ready_s=90) as gateway:
        pair = Pair(gateway, found)
        for name in ("small", "large"):
            wait_for(partial(pair.ready, name), engines.START_S, f"{name} to load")
        _chats_whole_and_streamed(pair)
        _passes_on_characters_that_are_broken(pair, model)
        if kind == "llama_cpp":
            _keeps_sessions_in_slots(pair)
        _cancels_what_nobody_waits_for(pair)
        _asks_the_larger_one(pair)
        _goes_on_while_one_is_restarted(pair)


def _chats_whole_and_streamed(pair: Pair) -> None:
    wait_for(pair.back, 30, "calls to go to the engine that is asked first")
    whole = pair.chat("hello")
    assert whole.status == 200, whole.body
    assert whole.headers["x-tpo-backend"] == "small"
    text = whole.json()["choices"][0]["message"]["content"]
    usage = whole.json()["usage"]
    assert text
    assert usage["completion_tokens"] > 1
    streamed = pair.chat("hello", stream=True, stream_options={"include_usage": True})
    assert streamed.events[-1] == b"[DONE]"
    chunks = [json.loads(event) for event in streamed.events[:-1]]
    deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == text
    assert chunks[-1]["usage"]["completion_tokens"] == usage["completion_tokens"]


def _passes_on_characters_that_are_broken(pair: Pair, model: Path) -> None:
    """Half characters all over: what is streamed is what was said whole, and it is UTF-8."""
    words = model if model.is_dir() else model.parent
    tokenizer = json.loads((words / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    bias = {str(vocabulary[letter]): 100 for letter in (LEAD, "a")}
    asked = {
        "model": MODEL, "prompt": "hello", "max_tokens": 40, "temperature": 1, "seed": 3,
        "logit_bias": bias,
    }  # fmt: skip
    whole = pair.ask(COMPLETIONS, asked)
    streamed = pair.ask(COMPLETIONS, asked | {"stream": True})
    assert streamed.status == 200, streamed.body
    events = [event.decode("utf-8", "strict") for event in streamed.events]
    told = [json.loads(event) for event in events if event != "[DONE]"]
    if b"does not match the expected" in whole.body:
        # llama.cpp's server takes no such text; that is no failure of anybody.
        assert whole.status == 502
        assert "error" in told[-1], streamed.body
    else:
        assert whole.status == 200, whole.body
        assert events[-1] == "[DONE]", streamed.body
        assert "\ufffd" in whole.json()["choices"][0]["text"]
        said = "".join(t["choices"][0].get("text") or "" for t in told if t["choices"])
        assert {"a", "\ufffd"} == set(said)
    assert pair.gateway.ask("/api/v1/providers/small").json()["failures"] == 0


def _keeps_sessions_in_slots(pair: Pair) -> None:
    """Two sessions of two workers say the same: left to itself the server takes one slot for it."""

    def apart() -> tuple[str, ...] | None:
        sessions, text = (os.urandom(8).hex(), os.urandom(8).hex()), os.urandom(64).hex()
        (one, _), (other, cached) = (pair.turn(session, text) for session in sessions)
        # How the template begins is known to every slot that was used.
        return (*sessions, text) if one != other and cached < len(text) // 8 else None

    *sessions, text = wait_for(apart, 60, "two sessions in slots of their own")
    for _ in range(2):
        for session in sessions:
            assert pair.turn(session, text)[1] > len(text) // 8


def _cancels_what_nobody_waits_for(pair: Pair) -> None:
    # A machine that stands still may miss a whole call: another one is made then.
    for stream in (True, False):
        assert any(_is_cancelled(pair, stream) for _ in range(4))


def _is_cancelled(pair: Pair, stream: bool) -> bool:
    """Leave a call that runs; answers whether the engine did less than all of it."""
    asked = pair.context - 500
    before = pair.steps("small")
    with RawClient(pair.gateway.url, timeout_s=60) as client:
        body = chat("go on", MODEL, stream=stream, max_tokens=asked, ignore_eos=True)
        client.send(render(client.host, body, {}, "fast"))
        began = lambda: pair.running("small") == 1 or pair.steps("small") > before  # noqa: E731
        wait_for(began, 30, "the call to run")
    wait_for(lambda: pair.running("small") == 0, 30, "the call to be given up")
    return pair.steps("small") - before < asked - 100


def _asks_the_larger_one(pair: Pair) -> None:
    """Too long for the first, then for both: no blame, and the engine's own words."""
    long = pair.chat("hello " * (pair.context // 2))
    assert (long.status, long.headers.get("x-tpo-backend")) == (200, "large"), long.body
    longer = pair.chat("hello " * (2 * pair.context))
    assert longer.status == 400, longer.body
    assert "context" in longer.json()["error"]["message"]
    for name in ("small", "large"):
        shown = pair.gateway.ask(f"/api/v1/providers/{name}").json()
        assert (shown["breaker"], shown["failures"]) == ("closed", 0)


def _goes_on_while_one_is_restarted(pair: Pair) -> None:
    first = pair.row("small")["pid"]
    os.kill(first, signal.SIGKILL)
    after = pair.chat("anybody there")
    assert after.status == 200, after.body
    again = wait_for(partial(pair.ready, "small", first), engines.START_S, "another engine")
    assert again["restarts"] == 1

    wait_for(pair.back, 30, "traffic to come back")
