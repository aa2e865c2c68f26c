"""``tpo-mp simulate``: the command, its ready line, its dialects and what a request may order."""

from __future__ import annotations

import json

from tests.support.gateway import Gateway
from tests.support.raw import chat

CHAT = "/v1/chat/completions"


def test_chat_is_answered_alike_by_every_worker(simulator: Gateway) -> None:
    """The same request says the same, whichever process takes it."""
    replies = [simulator.ask(CHAT, chat("Tell me about rivers", model="gpt-4o")) for _ in range(8)]
    assert {reply.status for reply in replies} == {200}
    said = {json.dumps(reply.json()["choices"]) for reply in replies}
    assert len(said) == 1
    assert len({reply.json()["id"] for reply in replies}) == 8
