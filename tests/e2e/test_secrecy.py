"""What clients say and hear stays out of logs, access lines and every file that need not hold it.

Only dead letters and the table of results may: they are there to give it back.
Each call carries a word of its own, so a failure names the call that leaked.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.e2e.test_replay import post as ask_again
from tests.support.gateway import ROOT, Gateway
from tests.support.messages import CHAT, post
from tests.support.raw import RawClient, chat
from tests.support.rfc6455 import RawSocket
from tests.support.toml import ECHO, NO_RETRIES, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

KEEPERS = ("store/letters/", "store/tables.sqlite")
"""Where payloads are kept, below the state directory."""
SETTINGS = {
    "default": {"access_log": "stdout"},
    "debug": {"access_log": "stdout", "log_level": "debug", "log_format": "json"},
}
FAULTS = ("status", "html", "malformed_json", "malformed_sse", "stream_error", "cut", "short",
          "reset", "no_done")  # fmt: skip


class Words:
    """Hands out words that nothing else contains and remembers whose each one is."""

    def __init__(self) -> None:
        self.owners: dict[bytes, str] = {}

    def of(self, owner: str) -> str:
        """A new word."""
        word = f"canary{secrets.token_hex(8)}"
        self.owners[word.encode()] = owner
        return word

    def found(self, data: bytes) -> set[str]:
        """Whose words these bytes contain."""
        return {owner for word, owner in self.owners.items() if word in data}


def served(gateway: Gateway, words: Words) -> None:
    """Calls that succeed, in every dialect, whole and streamed."""
    asked: list[tuple[str, dict[str, Any]]] = []
    for stream in (False, True):
        for model in ("echo", "up"):
            name = f"{model} {'streamed' if stream else 'whole'}"
            more: dict[str, Any] = {"model": model, "stream": stream, "max_tokens": 64}
            said = [{"role": "user", "content": words.of(f"chat {name}")}]
            asked += [
                (CHAT, more | {"messages": said}),
                (CHAT, more | {"messages": said, "tools": [tool(words.of(f"tool {name}"))]}),
                ("/v1/messages", more | {"messages": said, "system": words.of(f"system {name}")}),
            ]
        asked += [
            ("/v1/completions", {"model": "echo", "prompt": words.of("completion"),
                                 "stream": stream}),
            ("/v1/responses", {"model": "echo", "input": words.of("responses"), "stream": stream}),
        ]  # fmt: skip
    for target in ("/v1/prompt", "/api/v1/stream", "/api/v1/infer"):
        asked.append((target, {"prompt": words.of(target), "session_id": "s"}))
    for target, body in asked:
        reply = gateway.ask(target, body)
        if "tools" not in body or body["model"] != "echo":
            assert reply.status in (200, 202), (target, reply)
    with RawSocket(gateway.url).upgrade("/api/v1/ws") as socket:
        socket.say({"prompt": words.of("socket")})
        socket.until("done")


def tool(word: str) -> dict[str, Any]:
    """A function the model might call."""
    return {"type": "function", "function": {"name": "f", "description": word, "parameters": {}}}


def failed(gateway: Gateway, upstream: Upstream, words: Words) -> None:
    """Calls whose upstream misbehaves and repeats what it was told while it does."""
    for mode in FAULTS:
        for stream in (False, True):
            word = words.of(f"{mode} {'streamed' if stream else 'whole'}")
            reply = None
            if mode == "status":
                reply = {"error": {"message": f"cannot say {word}", "type": "x", "code": word}}
            upstream.play(mode, reply=reply)  # type: ignore[arg-type]
            body = chat(word, model="up", stream=stream)
            with RawClient(gateway.url) as client:
                client.send(post(b"Connection: close", length(body), body=encoded(body)))
                assert client.read_to_end(), mode
            native = words.of(f"native {mode}")
            gateway.ask("/v1/prompt", {"prompt": native, "model": "up"})
    upstream.play("hang")
    with RawClient(gateway.url) as client:
        body = chat(words.of("client left"), model="up")
        before = upstream.counters.aborted
        client.send(post(length(body), body=encoded(body)))
        wait_for(lambda: upstream.counters.open, 10, "the call at the upstream")
    wait_for(lambda: upstream.counters.aborted > before, 10, "the cancelled call")
    upstream.play()


def refused(gateway: Gateway, words: Words) -> None:
    """Requests that never become calls."""
    bodies = [
        chat(words.of("temperature"), temperature=words.of("value")),
        chat(words.of("unknown model"), model="nobody"),
        chat(words.of("role")) | {"messages": [{"role": words.of("a role"), "content": "x"}]},
        chat("x") | {words.of("field"): 1},
    ]
    for body in bodies:
        gateway.ask(CHAT, body)
    for broken in (b'{"model": "echo", "messages": [{"role": "user", "content": "%b', b"%b"):
        raw = broken % words.of("broken JSON").encode()
        with RawClient(gateway.url) as client:
            client.send(post(b"Content-Length: %d" % len(raw), body=raw))
            assert client.read_reply().status == 400
    gateway.ask(f"/v1/models?q={words.of('query')}")
    gateway.ask(f"/v1/stream/sse?prompt={words.of('prompt in a query')}")
    gateway.ask(f"/nowhere?q={words.of('query of nowhere')}")
    for header in ("Authorization", "x-api-key", "api-key", "Cookie"):
        word = words.of(header)
        gateway.ask(CHAT, chat(), {header: f"Bearer {word}" if header[0] == "A" else word})
    with RawClient(gateway.url) as client:
        client.send(b"POST /v1/models HTTP/1.1\r\n" + words.of("framing").encode() + b"\r\n\r\n")
        assert client.read_reply().status == 400


def encoded(body: dict[str, Any]) -> bytes:
    """The JSON of a body."""
    return json.dumps(body).encode()


def length(body: dict[str, Any]) -> bytes:
    """Its length, as a header line."""
    return b"Content-Length: %d" % len(encoded(body))


def files(gateway: Gateway) -> Iterator[tuple[str, bytes]]:
    """Everything below the gateway's folder that can be read, state directory included."""
    for path in sorted(gateway.folder.rglob("*")):
        if path.is_file() and path != gateway.config_path:
            yield str(path.relative_to(gateway.folder)), path.read_bytes()


def keeps(name: str) -> bool:
    """Say whether that file is one of those that may hold payloads."""
    return name.removeprefix("state/").startswith(KEEPERS)


@pytest.mark.parametrize("level", SETTINGS)
def test_no_text_of_a_call_is_written_down(
    start_gateway: StartGateway, upstream: Upstream, level: str
) -> None:
    """By no process, whether calls succeed, fail or are refused: nothing is left at its end."""
    config = ECHO + backend("up", upstream.base_url)
    config += section("[observability]", **SETTINGS[level])
    gateway = start_gateway(config=config, workers=2)
    words = Words()
    served(gateway, words)
    failed(gateway, upstream, words)
    refused(gateway, words)
    records = gateway.state_dir / "store/calls"
    wait_for(lambda: size(records) > 5_000, 10, "the call records")
    gateway.stop()
    everything = dict(files(gateway))
    told = {name: words.found(data) for name, data in everything.items()}
    assert not {name: whose for name, whose in told.items() if whose and not keeps(name)}
    kept = set[str]().union(*(whose for name, whose in told.items() if keeps(name)))
    assert {"/api/v1/infer", "cut streamed"} <= kept, "they are searched in the right places"
    lines = everything["stdout"].decode().splitlines()
    assert sum(CHAT in line for line in lines) > len(FAULTS) * 2, "access lines were written"


def test_nothing_that_was_said_lies_in_the_clear_where_it_is_sealed(
    start_gateway: StartGateway, upstream: Upstream
) -> None:
    """Not in letters, results, kept responses, batch jobs or copies of open calls."""
    config = ECHO + backend("up", upstream.base_url)
    config += section("[store]", encryption_keys=[secrets.token_hex(16)], durability="always")
    gateway = start_gateway(config=config, workers=2)
    words = Words()
    served(gateway, words)
    failed(gateway, upstream, words)
    prompts = [words.of(f"prompt {n} of a batch") for n in range(3)]
    job = gateway.ask("/api/v1/batch", {"prompts": prompts, "model": "echo"}).json()
    said = words.of("result")
    result = gateway.ask("/api/v1/infer", {"prompt": said, "model": "echo"}).json()["request_id"]

    def answers() -> bool:
        told = gateway.ask(f"/api/v1/batch/{job['job_id']}/results").body
        return all(prompt.encode() in told for prompt in prompts)

    wait_for(answers, 20, "the answers of the batch")
    wait_for(lambda: said.encode() in gateway.ask(f"/api/v1/result/{result}").body, 20, "a result")
    gateway.stop()
    everything = dict(files(gateway))
    assert any(keeps(name) and b"\xc1\x01" in data for name, data in everything.items())
    told = {name: words.found(data) for name, data in everything.items()}
    assert not {name: whose for name, whose in told.items() if whose}


def size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def test_no_prompt_is_written_down_where_letters_are_redacted(
    start_gateway: StartGateway, upstream: Upstream
) -> None:
    """By calls that fail and calls whose worker is killed, with the open calls synced meanwhile."""
    config = ECHO + backend("up", upstream.base_url) + NO_RETRIES
    config += section("[store]", dead_letter_bodies="redacted", durability="always")
    gateway = start_gateway(config=config, workers=2)
    words = Words()
    upstream.play("status", status=500)
    for stream in (False, True):
        body = chat(words.of("chat"), model="up", stream=stream, max_tokens=77)
        assert gateway.ask(CHAT, body).status >= 500
    asked = {"prompt": words.of("native"), "model": "up", "session_id": "s"}
    gateway.ask("/v1/prompt", asked)
    upstream.play("hang")
    with RawClient(gateway.url) as client:
        body = chat(words.of("killed"), model="up", max_tokens=77)
        client.send(post(length(body), body=encoded(body)))
        wait_for(lambda: upstream.counters.open, 20, "the call at the upstream")
        wait_for(lambda: list(gateway.state_dir.rglob("registry.synced-*")), 20, "the copy")
        held = written(gateway)
        for pid in gateway.worker_pids():
            os.kill(pid, signal.SIGKILL)
    entries = wait_for(lambda: open_letters(gateway, 4), 30, "the letters")
    for entry in entries:
        told = gateway.ask(f"/api/v1/dlq/{entry['request_id']}").json()
        assert told["redacted"], told
        assert told["payload"]["max_tokens"] in (77, 256), "its numbers are there"
        refused = ask_again(gateway, f"/api/v1/dlq/{entry['request_id']}/replay")
        assert (refused.status, refused.json()["error"]["code"]) == (409, "letter_redacted")
    command = [sys.executable, "-m", "tpo_mp", "replay", "--all", "--url", gateway.url]
    told = subprocess.run(
        [*command, "--delay-ms", "0"], capture_output=True, text=True, timeout=60, check=False,
        cwd=ROOT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (told.returncode, "failed 0, skipped 4" in told.stdout) == (0, True), told
    assert told.stderr.count("was not kept: there is nothing to ask") == 4
    held += written(gateway)
    gateway.stop()
    held += written(gateway)
    assert any(b"max_tokens" in data for data in held), "the letters are searched"
    assert not words.found(b"".join(held))


def written(gateway: Gateway) -> list[bytes]:
    """What a loss of power would leave of it now."""
    found = []
    for path in gateway.state_dir.rglob("*"):
        if "store" in path.parts or "synced" in path.name:
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # renamed meanwhile
                found.append(path.read_bytes())
    return found


def open_letters(gateway: Gateway, least: int) -> list[dict[str, Any]]:
    """The open letters, once there are so many."""
    reply = gateway.ask("/api/v1/dlq")
    entries: list[dict[str, Any]] = reply.json()["entries"] if reply.status == 200 else []
    return entries if len(entries) >= least else []
