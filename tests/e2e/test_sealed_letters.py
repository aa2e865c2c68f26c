"""Requests that lie on the disk are sealed: keys that are rotated, taken away and brought back.

Two workers; what is read is every file below the state directory, as after a loss of power.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import StartGateway
from tests.e2e.test_replay import fail, letters, post, replay, settled
from tests.support.gateway import Gateway
from tests.support.messages import CHAT
from tests.support.raw import RawClient, build, chat
from tests.support.toml import ECHO, NO_RETRIES, backend, section
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

KEYS = {
    "OLD_KEY": "an old key, thirty-two characters",
    "NEW_KEY": "a new key of thirty-two or more",
}
KEYS = {name: key + "!" for name, key in KEYS.items()}


class Sealed:
    """A gateway whose keys can be changed."""

    def __init__(self, start: StartGateway, upstream: Upstream, folder: Path) -> None:
        self._path = folder / "sealed.toml"
        self.more = ""
        self._text = ECHO + backend("up", upstream.base_url) + NO_RETRIES
        self.write("OLD_KEY")
        self.gateway = start(config=self._path, workers=2, env=KEYS)

    def write(self, *names: str) -> None:
        """Name other keys in the file."""
        keys: Sequence[Any] = [{"env": name} for name in names]
        store = section("[store]", durability="always", encryption_keys=keys)
        self._path.write_text(self._text + store + self.more)

    def reload(self, *names: str) -> None:
        """Take other keys while it runs."""
        self.write(*names)
        told = self.gateway.tpo("reload")
        assert told.returncode == 0, told

    def restart(self, *names: str) -> None:
        """End in good order, and begin with other keys."""
        self.gateway.stop()
        self.write(*names)
        self.gateway.start()

    def said(self, name: str) -> str | None:
        """What the letter says that its client had said; ``None`` when it is locked."""
        told = self.gateway.ask(f"/api/v1/dlq/{name}").json()
        assert told["locked"] is (told["payload"] is None), told
        return told["payload"] and str(told["payload"]["messages"][0]["content"])


def on_disk(gateway: Gateway) -> bytes:
    """All that is written, the registry excepted, which is memory."""
    files = (p for p in gateway.state_dir.rglob("*") if "store" in p.parts or "synced" in p.name)
    return b"".join(path.read_bytes() for path in files if path.is_file())


def test_letters_are_sealed_and_keys_may_change(
    start_gateway: StartGateway, upstream: Upstream, tmp_path: Path
) -> None:
    """A reload brings a new key; what its predecessor sealed opens while that one is there."""
    host = Sealed(start_gateway, upstream, tmp_path)
    gateway = host.gateway
    first = fail(gateway, upstream, CHAT, chat("first canary", model="up"))
    host.reload("NEW_KEY", "OLD_KEY")
    second = fail(gateway, upstream, CHAT, chat("second canary", model="up"))
    assert (host.said(first), host.said(second)) == ("first canary", "second canary")

    host.restart("NEW_KEY")
    assert (host.said(first), host.said(second)) == (None, "second canary")
    refused = post(gateway, f"/api/v1/dlq/{first}/replay")
    assert (refused.status, refused.json()["error"]["code"]) == (409, "letter_locked")
    assert post(gateway, f"/api/v1/dlq/{second}/replay").json()["ran"]
    told = replay(gateway, "--all")
    assert "failed 0, skipped 1" in told.stdout, told
    assert "sealed with a key that the gateway does not have" in told.stderr

    host.restart()
    assert host.said(first) is None
    plain = fail(gateway, upstream, CHAT, chat("third canary", model="up"))
    written = on_disk(gateway)
    assert b"first canary" not in written
    assert b"second canary" not in written
    assert b"third canary" in written, "the letters are searched"

    host.restart("OLD_KEY")
    assert (host.said(first), host.said(plain)) == ("first canary", "third canary")
    before = len(upstream.seen)
    assert post(gateway, f"/api/v1/dlq/{first}/replay").json()["ran"]
    assert b"first canary" in upstream.seen[before].body
    settled(gateway, plain)


def test_open_calls_are_sealed_and_wait_for_their_key(
    start_gateway: StartGateway, upstream: Upstream, tmp_path: Path
) -> None:
    """Power is lost, and the key with it: the call is a letter once the key is back."""
    host = Sealed(start_gateway, upstream, tmp_path)
    gateway = host.gateway
    upstream.play("hang")
    with RawClient(gateway.url) as client:
        body = json.dumps(chat("lost canary", model="up")).encode()
        client.send(build("POST", CHAT, {"Host": "x", "Content-Type": "application/json"}, body))
        wait_for(lambda: upstream.counters.open, 20, "the call at the upstream")
        copies = list(gateway.state_dir.glob("registry.synced-*"))
        assert copies
        assert b"lost canary" not in on_disk(gateway)
        registry = (gateway.state_dir / "registry").resolve()
        os.killpg(gateway.pid, signal.SIGKILL)
        gateway.close()
        registry.unlink()
    host.write()
    gateway.start()
    assert letters(gateway) == []
    host.restart("NEW_KEY", "OLD_KEY")
    (entry,) = wait_for(lambda: letters(gateway), 20, "the letter")
    assert host.said(entry["request_id"]) == "lost canary"
    wait_for(lambda: not copies[0].exists(), 20, "the copy removed")
    assert b"lost canary" not in on_disk(gateway)


def test_the_scheduler_asks_a_letter_whose_key_is_back(
    start_gateway: StartGateway, upstream: Upstream, tmp_path: Path
) -> None:
    """Tried in vain while its key was away, also by hand, it is asked once a reload brings it.

    The worker that found it locked is dead by then.
    """
    host = Sealed(start_gateway, upstream, tmp_path)
    gateway = host.gateway
    first = fail(gateway, upstream, CHAT, chat("first canary", model="up"))
    host.reload("NEW_KEY")
    second = fail(gateway, upstream, CHAT, chat("second canary", model="up"))
    host.more = section("[store.replay]", enabled=True, concurrency=1)
    host.reload("NEW_KEY")
    wait_for(lambda: [e["request_id"] for e in letters(gateway)] == [first], 20, "one replayed")
    assert [b"second canary" in seen.body for seen in list(upstream.seen)[-1:]] == [True]
    refused = post(gateway, f"/api/v1/dlq/{first}/replay")
    assert refused.json()["error"]["code"] == "letter_locked"
    pid = gateway.worker_pids()[0]
    os.kill(pid, signal.SIGKILL)
    gateway.replaced(0, pid)
    host.reload("NEW_KEY", "OLD_KEY")
    wait_for(lambda: letters(gateway) == [], 20, "the other one replayed, too")
    assert b"first canary" in list(upstream.seen)[-1].body
    told = gateway.ask(f"/api/v1/dlq/{first}").json()
    assert (told["status"], told["attempts"]) == ("replayed", 1), second
