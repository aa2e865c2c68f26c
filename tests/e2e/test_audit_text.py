"""Prompts and answers in the audit of a running gateway: all that is asked for, and never more."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import RawReply, chat
from tests.support.toml import ECHO
from tests.support.wait import wait_for

AUDIT = "/api/v1/audit"
KEYS = {"team": "key-of-the-team-0123", "admin": "key-of-admin-0123456"}
AUTH = "[auth]\nenabled = true\n" + "".join(
    f'[[auth.keys]]\nid = "{name}"\nsecret = {{ env = "KEY_{name.upper()}" }}\n'
    + ("admin = true\n" if name == "admin" else "")
    for name in KEYS
)
MOST = 64
TEXT = f"[stages.audit]\nprompts = true\nanswers = true\nmax_bytes = {MOST}\n"


class Talk:
    """Calls of a tenant, in three ways, whose words nobody else says."""

    def __init__(self, folder: Path, stage: str) -> None:
        env = {f"KEY_{name.upper()}": value for name, value in KEYS.items()}
        self.gateway = Gateway(folder, config=ECHO + AUTH + stage, workers=2, env=env)
        self.asked: dict[str, str] = {}
        self.shards: set[str] = set()

    def ask(
        self, target: str, value: Any = None, who: str = "admin", session: str = ""
    ) -> RawReply:
        """As somebody, with a header line that is nobody's business."""
        headers = {"authorization": f"Bearer {KEYS[who]}", "x-secret": "the-header-s-own-word"}
        if session:
            headers["x-session-id"] = session
        return self.gateway.ask(target, value, headers)

    def talk(self, rounds: int, session: str = "") -> None:
        """Whole and streamed chats and messages, each on a connection of its own.

        And each in a session of its own, if they have a name: some live on each worker.
        """
        for i in range(rounds):
            for kind in ("whole", "streamed", "messages", "told"):
                words = f"the {kind} matter of plovdiv {len(self.asked)}"
                body = chat(words, stream=kind in ("streamed", "told"))
                path = "/v1/chat/completions"
                if kind in ("messages", "told"):
                    path, body = "/v1/messages", body | {"max_tokens": 50}
                reply = self.ask(path, body, "team", session and f"{session}-{len(self.asked)}")
                assert reply.status == 200, (i, reply.body)
                self.asked[reply.headers["x-tpo-call-id"]] = words
                self.shards.add(reply.headers["x-tpo-shard"])

    def entries(self) -> dict[str, dict[str, Any]]:
        """What the audit says of these calls, when it knows all."""

        def all_of_them() -> dict[str, dict[str, Any]] | None:
            found = {e["id"]: e for e in self.ask(f"{AUDIT}?limit=1000").json()["entries"]}
            return found if self.asked.keys() <= found.keys() else None

        found = wait_for(all_of_them, 15.0, "all calls in the audit")
        return {call_id: found[call_id] for call_id in self.asked}

    def on_disk(self, word: str, *, running: bool = True) -> list[str]:
        """Files of the gateway in which a word stands.

        While it runs, the memory of open calls may be one, on hosts with little shared memory, and
        so may its copy, which is of those that the second's sync met.
        """
        files = [path for path in self.gateway.state_dir.rglob("*") if path.is_file()]
        files = [path for path in files if not running or not path.name.startswith("registry")]
        assert any(path.stat().st_size and path.parent.name == "calls" for path in files)
        return [str(path) for path in files if word.encode() in path.read_bytes()]


@pytest.fixture(scope="module")
def talk(short_tmp: Path) -> Iterator[Talk]:
    """Two workers that keep what is said."""
    made = Talk(short_tmp / "text", TEXT)
    with made.gateway:
        yield made


def test_what_was_said_is_in_the_audit(talk: Talk) -> None:
    """Of both workers' calls, in page and export, over the death of one; no header line is."""
    talk.talk(8, "both")
    assert talk.shards == {"0", "1"}
    for call_id, entry in talk.entries().items():
        said = talk.asked[call_id]
        assert (entry["input"], entry["output"], entry["truncated"]) == (said, [said], []), entry
    os.kill(talk.gateway.worker_pids()[0], signal.SIGKILL)
    talk.talk(2)
    entries = talk.entries()
    assert {e["input"] for e in entries.values()} == set(talk.asked.values())
    export = talk.ask(f"{AUDIT}/export").body.splitlines()
    told = {entry["id"]: entry for entry in map(json.loads, export)}
    assert {call_id: told[call_id] for call_id in entries} == entries
    assert talk.on_disk("plovdiv")
    assert not talk.on_disk("the-header-s-own-word")
    assert not talk.on_disk(KEYS["team"])


def test_long_text_is_cut_and_refused_calls_are_kept(talk: Talk) -> None:
    """Between two letters; a call that failed has a prompt and no answer."""
    long = "жук " * 100
    asked = talk.ask("/v1/chat/completions", chat(long), "team").headers["x-tpo-call-id"]
    failed = talk.ask("/v1/chat/completions", chat("for nobody", model="none"), "team")
    assert failed.status == 404
    talk.asked[asked] = ""
    entry = talk.entries()[asked]
    del talk.asked[asked]
    assert entry["input"] == long.encode()[:MOST].decode("utf-8", "ignore")
    assert entry["output"] == [entry["input"]]
    assert entry["truncated"] == ["input", "output"]
    (entry,) = wait_for(
        lambda: talk.ask(f"{AUDIT}?status=404&model_id=none").json()["entries"], 15.0, "its record"
    )
    assert (entry["input"], entry["output"], entry["truncated"]) == ("for nobody", None, [])


def test_text_is_for_admins_only(talk: Talk) -> None:
    """A tenant's key sees none of it, not even its own."""
    for route in ("", "/export", "/stats", "?tenant=team"):
        reply = talk.ask(AUDIT + route, who="team")
        assert reply.status == 403
        assert b"plovdiv" not in reply.body


def test_off_nothing_of_a_prompt_is_on_disk(short_tmp: Path) -> None:
    """Nor in the audit: not while it runs and not after it has stopped."""
    talk = Talk(short_tmp / "off", f"[stages.audit]\nmax_bytes = {MOST}\n")
    with talk.gateway:
        talk.talk(3)
        for entry in talk.entries().values():
            assert not {"input", "output", "truncated"} & entry.keys()
        assert not talk.on_disk("plovdiv")
    assert not talk.on_disk("plovdiv", running=False)


def test_with_a_key_it_is_sealed_on_disk(short_tmp: Path) -> None:
    """Read as ever, over the death of a worker; locked while the key is away, and back with it."""
    sealing = '[store]\nencryption_keys = ["a key of the audit, long enough for it"]\n'
    talk = Talk(short_tmp / "sealed", TEXT + sealing)
    with talk.gateway as gateway:
        talk.talk(1)
        talk.entries()
        os.kill(gateway.worker_pids()[0], signal.SIGKILL)
        talk.talk(1)
        assert gateway.config_path is not None
        with_key = gateway.config_path.read_text()
        for key_is_there in (True, False, True):
            for call_id, entry in talk.entries().items():
                said = talk.asked[call_id] if key_is_there else None
                assert (entry["input"], entry["locked"]) == (said, not key_is_there), entry
                assert entry["output"] == ([said] if said else None)
            assert not talk.on_disk("plovdiv")
            told = gateway.config_path.read_text()
            gateway.config_path.write_text(
                told.replace(sealing, "") if sealing in told else with_key
            )
            reloaded = gateway.tpo("reload")
            assert reloaded.returncode == 0, reloaded
    assert not talk.on_disk("plovdiv", running=False)
