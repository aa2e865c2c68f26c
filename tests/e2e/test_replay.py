"""Dead letters asked again: over HTTP and by ``tpo-mp replay``, on a gateway of two workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.support.gateway import ROOT, Gateway
from tests.support.messages import CHAT
from tests.support.raw import RawClient, RawReply, ask, chat
from tests.support.toml import ECHO, NO_RETRIES, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for
from tpo_mp.pipeline.replay import SILENT, UNDER_WAY


@pytest.fixture
def gateway(start_gateway: StartGateway, upstream: Upstream) -> Gateway:
    """An upstream that can be told to fail, and the echo."""
    return start_gateway(config=ECHO + backend("up", upstream.base_url), workers=2)


def fail(gateway: Gateway, upstream: Upstream, path: str, body: dict[str, Any]) -> str:
    """Make a call that fails at the upstream; answers the id of its letter."""
    upstream.play("status", status=500)
    known = {entry["request_id"] for entry in letters(gateway)}
    gateway.ask(path, body)
    wait_for(lambda: {e["request_id"] for e in letters(gateway)} - known, 10, "the letter")
    upstream.play("answer")
    (found,) = {entry["request_id"] for entry in letters(gateway)} - known
    return str(found)


def letters(gateway: Gateway) -> list[dict[str, Any]]:
    """Open letters, newest first; a busy control may ask to come back."""
    reply = wait_for(
        lambda: (seen := gateway.ask("/api/v1/dlq")).status == 200 and seen, 10, "the letters"
    )
    found: list[dict[str, Any]] = reply.json()["entries"]
    return found


def test_a_look_at_letters_waits_for_a_control_that_stands_still(
    gateway: Gateway, upstream: Upstream
) -> None:
    """As for any slow disk: a moment is no reason to be told to come back."""
    letter = fail(gateway, upstream, CHAT, chat("keep", "up"))
    control = int(gateway.status()["control"]["pid"])

    def waits() -> bool:
        os.kill(control, signal.SIGSTOP)
        try:
            asked = pool.submit(ask, gateway.url, f"/api/v1/dlq/{letter}")
            began = time.monotonic()
            wait_for(lambda: asked.done() or time.monotonic() - began > 0.3, 5, "a moment")
        finally:
            os.kill(control, signal.SIGCONT)
        return asked.result().status == 200

    with ThreadPoolExecutor(1) as pool:
        # Not at the first try where the whole machine stands still for longer.
        assert any(waits() for _ in range(5))


def replay(gateway: Gateway, *args: str) -> subprocess.CompletedProcess[str]:
    """Run ``tpo-mp replay`` against the gateway."""
    command = [sys.executable, "-m", "tpo_mp", "replay", "--url", gateway.url, "--delay-ms", "0"]
    return subprocess.run(
        [*command, "--max-retries", "5", *args],
        capture_output=True, text=True, timeout=100, check=False, cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def post(gateway: Gateway, path: str, method: str = "POST") -> RawReply:
    """Ask without a body; again where control has not answered, or heard of an end, in time."""

    def told() -> RawReply | None:
        with RawClient(gateway.url) as client:
            reply = client.request(method, path, {"Content-Length": "0"})
        busy = reply.status in (409, 503) and reply.json()["error"]["code"] in (UNDER_WAY, SILENT)
        return None if busy else reply

    return wait_for(told, 20, "control to answer", every_s=0.1)


def replay_all(
    gateway: Gateway, asked: dict[str, Any], head: dict[str, str] | None = None
) -> dict[str, Any]:
    """Have letters replayed over HTTP; asked for again where control does not answer in time."""

    def told() -> RawReply | None:
        reply = gateway.ask("/api/v1/dlq/replay", asked, head)
        return reply if reply.status == 200 else None

    found: dict[str, Any] = wait_for(told, 20, "control to answer", every_s=0.1).json()
    return found


def settled(gateway: Gateway, *names: str) -> None:
    """Wait until these letters and no others are open: control may hear of an end later."""

    def found() -> bool:
        return {entry["request_id"] for entry in letters(gateway)} == set(names)

    wait_for(found, 10, f"open letters {names}")


ASKED = [
    (CHAT, {"model": "up", "messages": [{"role": "user", "content": "doomed"}]}),
    (CHAT, {"model": "up", "stream": True, "messages": [{"role": "user", "content": "doomed"}]}),
    ("/v1/messages",
     {"model": "up", "max_tokens": 9, "messages": [{"role": "user", "content": "doomed"}]}),
    ("/v1/prompt", {"model": "up", "prompt": "doomed", "session_id": "s"}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), ASKED, ids=["chat", "stream", "messages", "native"])
def test_a_letter_is_asked_again_once(
    gateway: Gateway, upstream: Upstream, path: str, body: dict[str, Any]
) -> None:
    """Whole, in its own dialect, on whichever worker; a second time nothing runs."""
    name = fail(gateway, upstream, path, body)
    before = len(upstream.seen)
    told = post(gateway, f"/api/v1/dlq/{name}/replay").json()
    assert (told["status"], told["ran"]) == ("replayed", True)
    assert told["answer"]["type" if path == "/v1/messages" else "object"]
    assert b"doomed" in upstream.seen[-1].body
    assert len(upstream.seen) == before + 1
    for again in (f"/v1/dlq/replay/{name}", f"/api/v1/dlq/{name}/replay"):
        assert post(gateway, again).json()["ran"] is False
    assert len(upstream.seen) == before + 1
    settled(gateway)
    assert gateway.ask(f"/api/v1/dlq/{name}").json()["status"] == "replayed"


def test_a_replay_that_fails_leaves_one_open_letter(gateway: Gateway, upstream: Upstream) -> None:
    """Its own failure is no second letter; dropped, it is gone from the list."""
    name = fail(gateway, upstream, *ASKED[0])
    upstream.play("status", status=500)
    reply = post(gateway, f"/api/v1/dlq/{name}/replay")
    assert reply.status == 502
    settled(gateway, name)
    assert post(gateway, f"/api/v1/dlq/{name}", "DELETE").json()["status"] == "dropped"
    settled(gateway)
    assert post(gateway, f"/api/v1/dlq/{name}/replay").status == 409


def test_the_command_replays_everything_and_sums_up(
    gateway: Gateway, upstream: Upstream, tmp_path: Path
) -> None:
    """Lines of both kinds, blanks, comments, nonsense; a bar, a summary, an exit code."""
    names = [fail(gateway, upstream, *asked) for asked in ASKED[:3]]
    lines = [json.dumps({"request_id": names[0], "reason": "cut_off"}), "", "# a comment",
             json.dumps({"prompt": "hi", "model": "echo"}),
             json.dumps({"request_id": "00000000-0001-8000-8000-000000000000"})]  # fmt: skip
    (tmp_path / "queue").write_text("\n".join(lines))
    planned = replay(gateway, "-f", str(tmp_path / "queue"), "--dry-run")
    assert planned.returncode == 0
    assert f"POST /api/v1/dlq/{names[0]}/replay" in planned.stdout
    told = replay(gateway, "-f", str(tmp_path / "queue"))
    assert told.returncode == 0, told.stderr
    assert "replayed 2 of 3 in " in told.stdout
    assert "failed 0, skipped 1" in told.stdout
    assert "] 3/3 ok: 2 fail: 0 skip: 1" in told.stderr
    assert replay(gateway, "--all").returncode == 0
    settled(gateway)
    (tmp_path / "queue").write_text("nonsense\n")
    told = replay(gateway, "-f", str(tmp_path / "queue"))
    assert told.returncode == 1
    assert "line 1: neither" in told.stderr


def test_a_sessions_letters_are_asked_in_their_order(gateway: Gateway, upstream: Upstream) -> None:
    """Those of other sessions stay; what fails holds back what came after it."""
    names = []
    for session, text in (("s", "1"), ("other", "2"), ("s", "3")):
        body = {"model": "up", "prompt": f"doomed {text}", "session_id": session}
        names.append(fail(gateway, upstream, "/v1/prompt", body))
    upstream.play("status", status=500)
    asked = {"session_id": "s", "max_age_secs": 600}
    told = replay_all(gateway, asked)
    assert [(one["request_id"], one["status"]) for one in told["letters"]] == [
        (names[0], "failed"), (names[2], "held"),
    ]  # fmt: skip
    upstream.play("answer")
    before = len(upstream.seen)
    told = replay_all(gateway, asked)
    assert (told["replayed"], told["failed"], told["held"]) == (2, 0, 0)
    assert [b"doomed 3" in seen.body for seen in list(upstream.seen)[before:]] == [False, True]
    settled(gateway, names[1])
    assert replay_all(gateway, {"max_age_secs": 0})["letters"] == []
    assert post(gateway, f"/api/v1/dlq/replay/{names[1]}").json()["ran"] is True


def test_a_session_is_one_tenants(start_gateway: StartGateway, upstream: Upstream) -> None:
    """One that fails does not hold back another tenant's session of the same name."""
    config = backend("up", upstream.base_url) + NO_RETRIES + section("[auth]", enabled=True)
    keys = {name: f"key-of-{name}-0123456789" for name in ("anna", "bert", "root")}
    for name, secret in keys.items():
        admin = name == "root"
        config += section("[[auth.keys]]", id=name, tenant=name, secret=secret, admin=admin)
    gateway = start_gateway(config=config, workers=2)
    heads = {name: {"authorization": f"Bearer {secret}"} for name, secret in keys.items()}

    def entries() -> list[dict[str, Any]]:
        reply = gateway.ask("/api/v1/dlq", headers=heads["root"])
        return reply.json()["entries"][::-1] if reply.status == 200 else []

    def there(count: int) -> bool:
        return len(entries()) == count

    upstream.play("status", status=500)
    for number, who in enumerate(("anna", "bert", "anna"), 1):
        body = {"model": "up", "prompt": f"of {who}", "session_id": "same"}
        assert gateway.ask("/v1/prompt", body, heads[who]).status >= 500
        wait_for(partial(there, number), 10, "the letter")
    assert [entry["tenant"] for entry in entries()] == ["anna", "bert", "anna"]
    upstream.play("answer")
    upstream.queue("status", status=500)
    told = replay_all(gateway, {}, heads["root"])
    assert [one["status"] for one in told["letters"]] == ["failed", "replayed", "held"]


def test_a_replay_that_is_killed_loses_nothing(gateway: Gateway, upstream: Upstream) -> None:
    """The letters it had not come to are there; the second run does the rest."""
    names = [fail(gateway, upstream, *ASKED[0]) for _ in range(4)]
    command = [sys.executable, "-m", "tpo_mp", "replay", "--all", "--url", gateway.url,
               "--delay-ms", "600000"]  # fmt: skip
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: len(letters(gateway)) == 3, 20, "one replay")
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
    left = {entry["request_id"] for entry in letters(gateway)}
    assert left < set(names)
    before = len(upstream.seen)
    done = replay(gateway, "--all")
    assert "replayed 3 of 3" in done.stdout
    assert len(upstream.seen) == before + 3
    settled(gateway)


def test_a_replay_killed_while_it_asks_leaves_a_letter_that_says_so(
    gateway: Gateway, upstream: Upstream
) -> None:
    """Its backend may have done the work: the letter stays, and is marked."""
    name = fail(gateway, upstream, *ASKED[0])
    upstream.play("hang")
    before = len(upstream.seen)
    command = [sys.executable, "-m", "tpo_mp", "replay", "--all", "--url", gateway.url]
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: len(upstream.seen) > before, 20, "the question")
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
    told = f"/api/v1/dlq/{name}"
    wait_for(lambda: gateway.ask(told).json()["repeated"], 10, "its mark")
    assert gateway.ask(told).json()["status"] == "open"
    upstream.play("answer")
    assert "replayed 1 of 1" in replay(gateway, "--all").stdout
    again = gateway.ask(told).json()
    assert (again["status"], again["attempts"], again["repeated"]) == ("replayed", 2, True)
    assert len({seen.headers["idempotency-key"] for seen in list(upstream.seen)[before:]}) == 1
