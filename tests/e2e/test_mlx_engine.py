"""Our own MLX engine with a real, tiny model, behind a gateway of two workers."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from tests.conftest import require
from tests.support import mlx_engine, tiny_model
from tests.support.gateway import Gateway
from tests.support.mlx_engine import NAME, MlxEngine
from tests.support.raw import RawClient, RawReply, ask, chat
from tests.support.shards import render
from tests.support.toml import section
from tests.support.wait import free_port, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Bench:
    """The engine and a host in front of it."""

    engine: MlxEngine
    gateway: Gateway

    def ask(self, text: str, **more: Any) -> RawReply:
        """One chat through the gateway, that nothing there answers instead of the engine."""
        body = chat(text, NAME, **{"temperature": 0.8, "max_tokens": 8, **more})
        return self.gateway.ask(CHAT, body)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model."""
    require(importlib.util.find_spec("mlx_lm") is not None, "mlx-lm")
    return tiny_model.build(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def bench(
    model: Path, tmp_path_factory: pytest.TempPathFactory, short_tmp: Path
) -> Iterator[Bench]:
    """One engine for all."""
    log = tmp_path_factory.mktemp("engine") / "log"
    with mlx_engine.serving(model, log, "--max-running", "16") as engine:
        url = f"{engine.url}/v1"
        config = section("[[backends]]", name="up", kind="openai", base_url=url, models=["*"])
        with Gateway(short_tmp / "mlx", config=config, workers=2) as gateway:
            yield Bench(engine, gateway)


def test_sdk_gets_text_usage_and_log_probabilities(bench: Bench) -> None:
    """Whole, with the likeliest tokens first."""
    with OpenAI(base_url=f"{bench.gateway.url}/v1", api_key="unused", max_retries=0) as client:
        reply = client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "say"}], max_tokens=6,
            temperature=0, logprobs=True, top_logprobs=3,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
    (choice,) = reply.choices
    assert choice.finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 6
    assert choice.logprobs is not None
    rows = choice.logprobs.content or []
    assert len(rows) == 6
    for row in rows:
        tops = [top.logprob for top in row.top_logprobs]
        assert tops == sorted(tops, reverse=True)
        assert row.logprob == tops[0], "at temperature 0 the likeliest is taken"


def test_stop_strings_and_choices(bench: Bench) -> None:
    """A stop that the text has ends it before; choices are drawn one by one."""
    whole = bench.ask("speak", seed=5, max_tokens=40, ignore_eos=True).json()
    text = whole["choices"][0]["message"]["content"]
    stop = text[10:13]
    ended = bench.ask("speak", seed=5, max_tokens=40, ignore_eos=True, stop=[stop]).json()
    assert ended["choices"][0]["message"]["content"] == text.split(stop, 1)[0]
    assert ended["choices"][0]["finish_reason"] == "stop"
    assert ended["usage"]["completion_tokens"] < 40
    two = bench.ask("speak", seed=5, n=2, max_tokens=40, ignore_eos=True).json()
    first, second = (choice["message"]["content"] for choice in two["choices"])
    assert first == text
    assert second != text
    assert two["usage"]["completion_tokens"] == 80


def test_client_that_leaves_ends_the_generation(bench: Bench) -> None:
    """Its sequence is out of the batch long before its last token, whole or streamed."""
    engine, asked = bench.engine, 1900

    def left_early(stream: bool) -> bool:
        steps = engine.count("tpo_mlx_steps")
        with RawClient(bench.gateway.url, timeout_s=30) as client:
            body = chat("go on", NAME, stream=stream, max_tokens=asked, ignore_eos=True)
            client.send(render(client.host, body, {}, "fast"))
            wait_for(partial(_went_on, engine, steps + 5), 20, "the first tokens")
        wait_for(lambda: engine.health()["running"] == 0, 20, "the sequence to be given up")
        return engine.count("tpo_mlx_steps") < steps + asked - 100

    for stream in (True, False):
        # A client that stands still meanwhile leaves when all has been said; then another does.
        wait_for(partial(left_early, stream), 20, "an end before the last token")
    wait_for(
        lambda: engine.count('tpo_mlx_requests_total{outcome="cancelled"}') >= 2, 10, "the count"
    )


def test_many_at_once_share_their_steps(bench: Bench) -> None:
    """More than may run at a time, seeded or not: all are answered in far fewer steps."""
    before = bench.engine.count("tpo_mlx_steps")

    def one(number: int) -> int:
        more = {"seed": number} if number % 2 else {}
        reply = bench.ask(f"tell {number}", max_tokens=40, ignore_eos=True, **more)
        assert reply.status == 200, reply.body
        found: int = reply.json()["usage"]["completion_tokens"]
        return found

    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(one, range(48))) == [40] * 48
    assert bench.engine.count("tpo_mlx_steps") - before < 48 * 40 / 2


def test_conversation_is_remembered(bench: Bench) -> None:
    """The second turn computes only what is new."""
    first = "tell me of " + "one thing and another " * 12
    said = bench.ask(first, ignore_eos=True).json()
    messages = [
        {"role": "user", "content": first},
        said["choices"][0]["message"],
        {"role": "user", "content": "go on"},
    ]
    again = bench.gateway.ask(
        CHAT, {"model": NAME, "messages": messages, "max_tokens": 4, "temperature": 0.8}
    ).json()
    known = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert known >= said["usage"]["prompt_tokens"] - 16, (said["usage"], again["usage"])


def test_too_long_a_prompt_is_told_as_openai_does(bench: Bench) -> None:
    """With the code that clients cut their history by, and the limit in the words."""
    with (
        OpenAI(base_url=f"{bench.gateway.url}/v1", api_key="unused", max_retries=0) as client,
        pytest.raises(BadRequestError) as told,
    ):
        client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "word " * 3000}], max_tokens=1
        )
    assert told.value.code == "context_length_exceeded"
    assert "2048" in str(told.value)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 99}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ({"logit_bias": {"99999": 1}}, "logit_bias.99999"),
        ({"logit_bias": {"no": 1}}, "logit_bias.no"),
        ({"min_p": "x"}, "min_p"),
        ({"repetition_penalty": -1}, "repetition_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"messages": []}, "messages"),
        ({"model": "other"}, "model"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]},
         "messages[0].content[0]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_input_names_its_field(bench: Bench, change: dict[str, Any], param: str) -> None:
    """Asked directly: a gateway refuses some of it before."""
    body = chat("x", NAME, max_tokens=4) | change
    reply = ask(bench.engine.url, CHAT, body)
    assert reply.status == (404 if "model" in change else 400), reply.body
    error = reply.json()["error"]
    assert error["param"] == param, error
    assert error["message"]
    assert bench.ask("still here").status == 200


def test_other_paths_and_bodies_are_told(bench: Bench) -> None:
    """No page of aiohttp, no traceback."""
    assert ask(bench.engine.url, "/nothing").json()["error"]["message"]
    with RawClient(bench.engine.url) as client:
        broken = client.request("POST", CHAT, {"content-length": "3"}, b"{no")
    assert broken.status == 400
    assert broken.json()["error"]["type"] == "invalid_request_error"


def test_full_queue_says_so(model: Path, tmp_path: Path) -> None:
    """503 and when to come again, while those taken go on; told before anything is sent."""
    args = ("--max-running", "1", "--max-waiting", "1")
    with mlx_engine.serving(model, tmp_path / "log", *args) as engine:
        body = chat("x", NAME, max_tokens=1500, ignore_eos=True, stream=True)

        def refused() -> RawReply | None:
            """What the third is told; it is taken if we stand still until the first is done."""
            wait_for(partial(_taken, engine, 0), 20, "nothing under way")
            with RawClient(engine.url, timeout_s=30) as one, RawClient(engine.url) as two:
                one.send(render(one.host, body, {}, "fast"))
                one.read_head()
                two.send(render(two.host, body, {}, "fast"))
                wait_for(
                    lambda: _taken(engine, 2) or _taken(engine, 0), 20, "two taken, or none left"
                )
                third = ask(engine.url, CHAT, chat("x", NAME, max_tokens=2))
            return third if third.status == 503 else None

        assert int(wait_for(refused, 20, "a full queue").headers["retry-after"]) >= 1


def run(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(args, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (None, "no such folder"),
        ({}, "no config.json"),
        ({"config.json": "{"}, "config.json"),
        ({"config.json": '{"model_type": "llama"}'}, "no safetensors"),
        ({"config.json": '{"model_type": "unheard"}', "model.safetensors": ""}, "unheard"),
    ],
    ids=["missing", "empty", "broken", "no-weights", "architecture"],
)
def test_model_that_cannot_be_loaded_is_one_line(
    tmp_path: Path, make: dict[str, str] | None, words: str
) -> None:
    """And exit code 3."""
    require(importlib.util.find_spec("mlx_lm") is not None, "mlx-lm")
    folder = tmp_path / "model"
    if make is not None:
        folder.mkdir()
        for name, text in make.items():
            (folder / name).write_text(text)
    ended = run(*mlx_engine.command(folder, free_port()))
    assert ended.returncode == 3, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("mlx: ")]
    assert len(lines) == 2, ended.stderr
    assert words in lines[1]
    assert "Traceback" not in ended.stderr


def test_port_that_is_taken_is_one_line(bench: Bench, model: Path) -> None:
    """And exit code 6."""
    port = int(bench.engine.url.rsplit(":", 1)[1])
    ended = run(*mlx_engine.command(model, port))
    assert ended.returncode == 6, ended.stderr
    assert f"127.0.0.1:{port}: it is taken" in ended.stderr


def _went_on(engine: MlxEngine, than: float) -> bool:
    return engine.count("tpo_mlx_steps") > than


def _taken(engine: MlxEngine, number: int) -> bool:
    said = engine.health()
    return bool(said["running"] + said["waiting"] == number)
