"""The acceptance script before gateways that fail in one way each."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scripts import acceptance
from scripts.acceptance import Answer, FailedError, Target

KEY = "sk-the-key-of-this-gateway"


class FakeTarget(Target):
    """Answers by the fields below instead of a gateway."""

    def __init__(self, key: str = "", **options: Any) -> None:
        self.options = type("Options", (), {"model": "m", "api_key": key, "limited": False})()
        vars(self.options).update(options)
        self.wants_key = ""
        self.limit = 1000
        self.limited: dict[str, str] = {"retry-after": "0"}
        self.served = 0
        self.shards = ["0", "1"]
        self.answers: dict[str, Any] = {}

    def once(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, key: str = ""
    ) -> Answer:
        """Answer as a gateway would."""
        sent = (headers or {}).get("Authorization", key or self.options.api_key)
        if self.wants_key and sent != self.wants_key:
            return self.answer(401, {"error": {"message": "no key"}})
        if path in self.answers:
            return self.answer(200, self.answers[path])
        self.served += 1
        if self.served % self.limit == 0:
            return self.answer(429, {"error": {"message": "slow down"}}, self.limited)
        session = (headers or {}).get("X-Session-Id", "0").rpartition("-")[2]
        shard = self.shards[int(session) % len(self.shards)]
        return self.answer(200, {}, {"x-tpo-shard": shard})

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> Answer:
        """One answer."""
        return Answer(status, headers or {}, json.dumps(body).encode())


def test_auth_is_on_exactly_when_a_key_is_given() -> None:
    """On and given, or off and not given; the other two are failures."""
    target = FakeTarget()
    assert acceptance.auth(target).startswith("off")
    target.wants_key = KEY
    with pytest.raises(FailedError, match="auth is on"):
        acceptance.auth(target)
    target = FakeTarget(key=KEY)
    with pytest.raises(FailedError, match="401 wanted"):
        acceptance.auth(target)
    target.wants_key = KEY
    assert acceptance.auth(target).startswith("on")
    target.wants_key = KEY + "-another"
    with pytest.raises(FailedError, match="200 wanted"):
        acceptance.auth(target)


def test_limit_must_say_when_to_come_back() -> None:
    """Met or not, a burst is 200 or 429, and a 429 has a pause that is true."""
    target = FakeTarget()
    assert acceptance.rate_limit(target) == "no limit met in 50 requests"
    target.limit = 5
    assert acceptance.rate_limit(target) == "10 of 50 limited, free again when told"
    target.limited = {}
    with pytest.raises(FailedError, match="when to come back"):
        acceptance.rate_limit(target)
    target.limited = {"retry-after": "60"}
    target.limit = 1
    with pytest.raises(FailedError, match="200 wanted, got 429"):
        acceptance.rate_limit(target)


def test_limit_that_is_expected_must_be_met() -> None:
    """``--limited`` says that there is one."""
    with pytest.raises(FailedError, match="no limit met"):
        acceptance.rate_limit(FakeTarget(limited=True))


def test_pause_of_a_limit_is_waited_for_elsewhere() -> None:
    """The other tests go on behind a limit."""
    target = FakeTarget()
    target.limit = 2
    assert [target.ask("/x").status for _ in range(6)] == [200] * 6


def shards(*states: str) -> dict[str, Any]:
    """A health body with shards in these states."""
    listed = [{"slot": slot, "state": state} for slot, state in enumerate(states)]
    return {"host": {"shards": listed}, "status": "healthy", "version": "1"}


def test_sessions_must_reach_every_shard_and_stay() -> None:
    """A shard that serves and gets nothing is a failure, as is a session that wanders."""
    target = FakeTarget()
    target.answers["/health"] = shards("ready", "ready", "empty")
    assert acceptance.load_balancing(target).startswith("shard 0: ")
    target.answers["/health"] = shards("ready", "ready", "ready")
    with pytest.raises(FailedError, match="sessions reached"):
        acceptance.load_balancing(target)

    class Wandering(FakeTarget):
        def once(self, *args: Any, **more: Any) -> Answer:
            self.shards.reverse()
            return super().once(*args, **more)

    target = Wandering()
    target.answers["/health"] = shards("ready", "ready")
    with pytest.raises(FailedError, match="moved"):
        acceptance.load_balancing(target)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 3}}, "add up"),
        ({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}, "no words"),
        ({"choices": [{"message": {"content": "x"}, "finish_reason": None}]}, "finish"),
    ],
)
def test_answer_must_be_whole(change: dict[str, Any], said: str) -> None:
    """Words, finish reason and usage that adds up; and the bad requests must be refused."""
    target = FakeTarget()
    target.answers[acceptance.CHAT] = {
        "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    } | change
    with pytest.raises(FailedError, match=said or "400 wanted, got 200"):
        acceptance.chat(target)


def test_lines_and_exit_code_tell_the_truth(capsys: pytest.CaptureFixture[str]) -> None:
    """A test that meets nonsense fails with a line, and so does the run."""
    target = FakeTarget(verbose=False)
    target.answers["/"] = [1, 2]
    assert not acceptance.run("root", acceptance.root, target)
    assert capsys.readouterr().out.startswith("FAIL  root            0.0")
    assert acceptance.run("auth", acceptance.auth, target)
    assert acceptance.main(["--url", "http://127.0.0.1:1", "--timeout", "1"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "Tests Passed: 0/9 (0.0%)"
