"""Record and replay: answers of one server, byte for byte from another, in their own time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import ROOT, Gateway
from tests.support.raw import RawClient, RawReply, ask, build, chat
from tpo_mp.simulator import recordings

CHAT = "/v1/chat/completions"
GEMINI = "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse&key=g-secret"
SECRETS = {"authorization": "Bearer sk-secret", "x-api-key": "ant-secret"}
ASKED: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "whole": (CHAT, chat("rivers", model="gpt-4o"), {}),
    "stream": (CHAT, chat("rivers", model="gpt-4o", stream=True), {}),
    "message": ("/v1/messages", chat("hills", model="claude-haiku-4-5", max_tokens=9), {}),
    "gemini": (GEMINI, {"contents": [{"parts": [{"text": "lakes"}]}]}, {}),
    "vector": ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "x"}, {}),
    "limited": (CHAT, chat("limited", model="gpt-4o"), {"x-sim-error": "429; retry_after=3"}),
}


@dataclass
class Recorded:
    """What passed through the recorder, and its file."""

    path: Path
    replies: dict[str, RawReply]
    again: RawReply
    said: str


@pytest.fixture(scope="module")
def recorded(short_tmp: Path, simulator: Gateway) -> Recorded:
    """Every kind of request, asked through ``simulate record``."""
    path = short_tmp / "recorded.jsonl"
    command = [sys.executable, "-m", "tpo_mp", "simulate", "record", str(path),
               "--upstream", simulator.url, "--port", "0"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    with process:
        url = process.stdout.readline().split()[-1]
        replies = {
            name: ask(url, target, body, SECRETS | more)
            for name, (target, body, more) in ASKED.items()
        }
        again = ask(url, *ASKED["whole"][:2], SECRETS)
        assert ask(url, "/v1/models").status == 200
        process.send_signal(signal.SIGTERM)
        said = process.stdout.read()
        assert process.wait(20) == 0
    return Recorded(path, replies, again, said)


@pytest.fixture(scope="module")
def player(short_tmp: Path, recorded: Recorded) -> Iterator[Gateway]:
    """Two workers that play it, without waiting."""
    args = ("--replay", str(recorded.path), "--replay-speed", "0", "--strict")
    with Gateway(short_tmp / "player", *args, workers=2, verb="simulate") as gateway:
        yield gateway


def test_no_credential_is_in_the_file(recorded: Recorded) -> None:
    """Neither from headers nor from the query; what it passed on unwritten is counted."""
    text = recorded.path.read_text()
    assert "secret" not in text
    assert len(text.splitlines()) == len(ASKED) + 1
    assert f"{len(ASKED) + 1} answers in" in recorded.said
    assert ", 1 passed on" in recorded.said


@pytest.mark.parametrize("name", [name for name in ASKED if name != "whole"])
def test_answers_are_played_byte_for_byte(recorded: Recorded, player: Gateway, name: str) -> None:
    """Without the header that ordered the error, and with the pause it named."""
    target, body, _ = ASKED[name]
    reply, first = player.ask(target, body), recorded.replies[name]
    assert (reply.status, reply.body) == (first.status, first.body)
    if name == "limited":
        assert reply.headers["retry-after"] == "3"


def test_answers_to_the_same_request_come_in_turn(recorded: Recorded, player: Gateway) -> None:
    """On whichever worker; the last one stays."""
    target, body, _ = ASKED["whole"]
    first, second = recorded.replies["whole"].body, recorded.again.body
    assert first != second
    assert [player.ask(target, body).body for _ in range(4)] == [first, second, second, second]


def test_what_was_not_recorded_is_refused(player: Gateway) -> None:
    """By ``--strict``."""
    reply = player.ask(CHAT, chat("something else", model="gpt-4o"))
    assert (reply.status, reply.json()["error"]["code"]) == (400, "not_recorded")


def test_events_keep_their_time_and_timings_can_be_read(
    recorded: Recorded, short_tmp: Path
) -> None:
    """Half as long at twice the speed; the rest of the requests are made up."""
    path = short_tmp / "slow.jsonl"
    found = recordings.read(recorded.path)
    (stream,) = (one for one in found if one.stream and one.model == "gpt-4o")
    texts = [text for _, text in stream.chunks]
    slow = json.loads(recordings.encode(stream))
    slow["chunks"] = [[0.2, "".join(texts[:2])], [1.8, "".join(texts[2:])]]
    path.write_text(json.dumps(slow) + "\n")
    printed = subprocess.run(
        [sys.executable, "-m", "tpo_mp", "simulate", "timings", str(path), "--of", "between"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert printed.stdout == "1600.000\n"
    args = ("--replay", str(path), "--replay-speed", "2")
    with Gateway(short_tmp / "slow", *args, verb="simulate") as gateway:
        assert gateway.ask(CHAT, chat("other", model="gpt-4o")).status == 200
        body = json.dumps(ASKED["stream"][1]).encode()

        def plays() -> bool:
            with RawClient(gateway.url) as client:
                headers = {"host": client.host, "content-type": "application/json"}
                began = time.monotonic()
                client.send(build("POST", CHAT, headers, body))
                client.read_head()
                arrived = [(time.monotonic() - began, chunk) for chunk in client.chunks()]
            assert b"".join(chunk for _, chunk in arrived) == "".join(texts).encode()
            assert arrived[-1][0] >= 0.85
            return arrived[-1][0] - arrived[0][0] > 0.4

        assert any(plays() for _ in range(5))  # a client that stands still has all at once
