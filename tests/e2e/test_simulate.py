"""``tpo-mp simulate``: the command, its ready line, its dialects and what a request may order."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import StartGateway
from tests.support.gateway import ROOT, Gateway
from tests.support.raw import RawClient, build, chat
from tests.support.wait import unhurried

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def test_chat_is_answered_alike_by_every_worker(simulator: Gateway) -> None:
    """The same request says the same, whichever process takes it."""
    replies = [simulator.ask(CHAT, chat("Tell me about rivers", model="gpt-4o")) for _ in range(8)]
    assert {reply.status for reply in replies} == {200}
    said = {json.dumps(reply.json()["choices"]) for reply in replies}
    assert len(said) == 1
    assert len({reply.json()["id"] for reply in replies}) == 8


def test_serve_with_the_backend_alone_works(start_gateway: StartGateway) -> None:
    """``serve --backend simulator``: the catalogue, or the one model that is named."""
    gateway = start_gateway("--backend", "simulator", "--model", "mine")
    assert [model["id"] for model in gateway.ask("/v1/models").json()["data"]] == ["mine"]
    reply = gateway.ask(CHAT, chat("hi", model="mine"))
    assert reply.status == 200
    assert reply.headers["x-tpo-backend"] == "simulator"


def test_seed_changes_what_is_said(start_gateway: StartGateway, simulator: Gateway) -> None:
    """By flag, which wins over the file; the same seed elsewhere says the same."""
    config = "[simulator]\nseed = 3\nmodels = ['gpt-4o']\n"
    other = start_gateway("--seed", "4", config=config, verb="simulate")
    assert [model["id"] for model in other.ask("/v1/models").json()["data"]] == ["gpt-4o"]
    asked = chat("Tell me about rivers", model="gpt-4o")
    first, again = (other.ask(CHAT, asked).json()["choices"] for _ in range(2))
    assert first == again
    assert first != simulator.ask(CHAT, asked).json()["choices"]


def test_simulate_has_one_backend(short_tmp: Path) -> None:
    """A file with backends of its own is refused, with the place to put their options."""
    path = short_tmp / "two.toml"
    path.write_text('[[backends]]\nname = "a"\nkind = "echo"\n')
    done = subprocess.run(
        [sys.executable, "-m", "tpo_mp", "simulate", "--config", str(path), "--port", "0"],
        capture_output=True, text=True, timeout=30, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "backends: tpo-mp simulate has one backend, described by [simulator]" in done.stderr


def test_tokens_come_one_by_one_in_time(start_gateway: StartGateway) -> None:
    """A client has the first words long before the last are due."""
    config = (
        "[simulator]\nstrategy = 'fixed'\ntext = 'one two three four five six'\ntoken_ms = 300\n"
    )
    gateway = start_gateway(config=config, verb="simulate")
    asked = json.dumps(chat("hi", model="gpt-4o", stream=True)).encode()

    def comes() -> None:
        with RawClient(gateway.url) as client:
            began = time.monotonic()
            client.send(build("POST", CHAT, JSON | {"Host": client.host}, asked))
            client.read_head()
            seen, arrived = b"", {}
            for chunk in client.chunks():
                seen += chunk
                arrived[seen.count(b'"content":" ')] = time.monotonic() - began
        assert arrived[1] < arrived[5] - 0.6
        assert arrived[5] > 1.2

    unhurried(comes, 0)  # a client that stood still has all at once


def test_ordered_cut_before_the_answer_leaves_no_byte(simulator: Gateway) -> None:
    """In both lanes: a plain request and a chunked one."""
    body = json.dumps(chat("hi", model="gpt-4o")).encode()
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    for more, sent in (({}, body), ({"transfer-encoding": "chunked"}, None)):
        with RawClient(simulator.url) as client:
            head = JSON | {"Host": client.host, "x-sim-fault": "disconnect"} | more
            client.send(build("POST", CHAT, head, sent) + (b"" if sent else chunked))
            assert client.closed()


def test_bad_order_is_a_bad_request(simulator: Gateway) -> None:
    """In the dialect of the route, naming the header."""
    reply = simulator.ask(CHAT, chat("hi", model="gpt-4o"), {"x-sim-error": "42"})
    assert reply.status == 400
    assert reply.json()["error"]["param"] == "x-sim-error"
    long = simulator.ask(CHAT, chat("hi", model="gpt-4o"), {"x-sim-key": "k" * 300})
    assert long.status == 400


def test_key_stands_for_the_request(simulator: Gateway) -> None:
    """Under the same ``X-Sim-Key`` another body draws the same numbers."""
    said = [
        simulator.ask("/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": prompt,
                                          "max_tokens": 5, "logprobs": 1}, {"x-sim-key": key})
        .json()["choices"][0]["logprobs"]["token_logprobs"]
        for prompt, key in (("a river", "k"), ("a bridge", "k"), ("a river", "other"))
    ]  # fmt: skip
    assert said[0] == said[1] != said[2]
