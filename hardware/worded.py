"""OpenAI's side of the completions that engines have words of their own for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import time
from typing import Any, ClassVar

from tpo_mp.dialects import openai_completions
from tpo_mp.dialects.canonical import (
    ModelReply,
    ReplyChoice,
    ReplyStart,
    StreamEvent,
    TextBlock,
    TokenUsage,
    unsupported,
)
from tpo_mp.types import Call


class WordedCompletion:
    """One call, and its reply as OpenAI would have said it."""

    TARGET: ClassVar[str]
    LACKS: ClassVar[tuple[str, ...]] = ()
    """Fields of a request that the engine has no words for."""

    def __init__(self, body: bytes, call: Call) -> None:
        self.asked = asked = openai_completions.request_to_canonical(body)
        for name in self.LACKS:
            if name in asked.extra or getattr(asked, name, None) is not None:
                raise unsupported(name, self.TARGET)
        first = asked.messages[0].blocks[0]
        self.prompt = first.text if isinstance(first, TextBlock) else ""
        self._id = call.id
        self._encoder = openai_completions.StreamEncoder(asked)
        self._begun = False

    def options(self, **names: str) -> dict[str, Any]:
        """What was asked for and is called otherwise there, by its name in the one model."""
        found = {theirs: getattr(self.asked, ours) for ours, theirs in names.items()}
        return {name: value for name, value in found.items() if value is not None}

    def said(self, choices: Sequence[ReplyChoice], usage: TokenUsage | None) -> bytes:
        """A whole reply."""
        reply = ModelReply(
            id=self._id,
            model=self.asked.model,
            created=int(time()),
            choices=tuple(choices),
            usage=usage,
        )
        return openai_completions.reply_from_canonical(reply)

    def told(self, events: Iterable[StreamEvent]) -> bytes:
        """The next events of a stream."""
        encode = self._encoder.encode
        head = b""
        if not self._begun:
            self._begun = True
            head = encode(ReplyStart(self._id, self.asked.model, int(time())))
        return head + b"".join([encode(event) for event in events])
