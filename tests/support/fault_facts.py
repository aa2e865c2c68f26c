"""A request as fault rules ask about it, with every answer chosen by the test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.support.fake_env import make_call
from tpo_mp.types import Call


@dataclass
class FakeFacts:
    """What a test says that a request is like."""

    call: Call = field(default_factory=lambda: make_call(b"{}", model="gpt-4o"))
    said: str = ""
    prompt: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    under_way: int = 1
    drawn: bytes = b"key"
    tried: int = 0

    def text(self) -> str:
        """What it says."""
        return self.said

    def tokens(self) -> int:
        """How long it is."""
        return self.prompt

    def header(self, name: str) -> str | None:
        """One of its headers."""
        return self.headers.get(name)

    def concurrent(self) -> int:
        """How many there are."""
        return self.under_way

    def key(self) -> bytes:
        """What its numbers come from."""
        return self.drawn

    def tries(self) -> int:
        """How often it was tried."""
        return self.tried


def facts(body: bytes = b"{}", **more: Any) -> FakeFacts:
    """A request; ``model``, ``stream`` and ``dialect`` are its call's."""
    call = {name: more.pop(name) for name in ("model", "stream", "dialect") if name in more}
    return FakeFacts(make_call(body, **{"model": "gpt-4o"} | call), **more)
