"""The stage that has text kept: only what the config says, and nothing when it says nothing."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.stages.audit import Audit, Config
from tpo_mp.types import Call, Reply

BODY = json.dumps({"messages": [{"role": "user", "content": "what?"}]}).encode()
ANSWER = b'{"choices":[{"message":{"role":"assistant","content":"that."}}]}'


def went(**options: Any) -> tuple[Audit, Call]:
    """One call through the stage, as the chain sends it."""
    stage, call = Audit(msgspec.convert(options, Config), FakeWorld().env), make_call(BODY)
    if hasattr(stage, "before"):
        assert stage.before(call) is None
    if hasattr(stage, "after"):
        assert stage.after(call, Reply(200, ANSWER)) is None
    return stage, call


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompts": True}, ("what?", None, 0)),
        ({"answers": True}, (None, "that.", 0)),
        ({"prompts": True, "answers": True}, ("what?", "that.", 0)),
    ],
)
def test_what_is_switched_on_is_kept_and_nothing_else(options: Any, said: Any) -> None:
    """Each by its own option."""
    _, call = went(**options)
    assert call.audited.said(call, 100) == said


def test_off_it_is_not_there() -> None:
    """The chain finds nothing to call: neither before a call nor after."""
    stage, call = went()
    assert not hasattr(stage, "before")
    assert not hasattr(stage, "after")
    assert call.audited is None


@pytest.mark.parametrize("given", [{"max_bytes": 15}, {"max_bytes": 16_385}, {"prompt": True}])
def test_a_record_has_its_limits(given: dict[str, Any]) -> None:
    """And options there are not are refused."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(given, Config)
