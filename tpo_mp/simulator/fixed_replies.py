"""Whole chat replies of a model that always says the same, read, counted and written in one pass.

A load test asks for nothing else, and what it tests is not the simulator: of a reply only the id,
the moment and the counts change from request to request, so the rest is written once.

Invariants: a reply is what ``SimulatedProvider.generate`` and ``dress.plain_chat`` make of the same
request, byte for byte but for id and moment; whatever is not so plain, and whatever is wrong, is
left to them.  What is remembered is bounded.
"""

from __future__ import annotations

import sys
from time import time
from typing import Final, NamedTuple

from tpo_mp.dialects.canonical import ModelReply, TextBlock, TokenUsage
from tpo_mp.dialects.openai_chat_plain import PlainMessage, read_plain
from tpo_mp.types import Usage

from .catalog import traits_of
from .cutting import FixedAnswers
from .dress import plain_chat
from .ids import chat_id
from .tokens import PER_MESSAGE, PER_REPLY, count

MOST_WRITTEN: Final = 256
"""Pairs of a model and a limit whose reply is remembered."""
MOST_WRITTEN_CHARS: Final = 8_192
"""Longest text and longest model name of one of them."""
_BEFORE: Final = b'{"id":"","object":"chat.completion","created":0'
_USAGE: Final = b'"usage":{"prompt_tokens":'
_TOTAL: Final = b',"total_tokens":'


class FixedReply(NamedTuple):
    """A reply: its body, its counts and why it ends."""

    body: bytes
    usage: Usage
    finish_reason: str


class _Written(NamedTuple):
    """What does not change of a reply: up to the prompt's count, up to the total, and the rest."""

    begin: bytes
    middle: bytes
    end: bytes
    completion: int
    finish_reason: str
    most_bytes: int


class FixedReplies:
    """Answers to the plain chat requests of one simulated provider."""

    __slots__ = ("_answers", "_written")

    def __init__(self, answers: FixedAnswers) -> None:
        self._answers = answers
        self._written: dict[tuple[str, int | None], _Written | None] = {}

    @property
    def remembered(self) -> int:
        """Replies that are written but for what changes."""
        return len(self._written)

    def reply_to(self, body: bytes) -> FixedReply | None:
        """Answer a request for a whole reply; None: it is not so plain.

        Raises ``InvalidRequest`` for the body's size.
        """
        asked = read_plain(body)
        if asked is None or not (asked.n is None or asked.n == 1):
            return None
        key = asked.model, asked.max_tokens
        written = self._written[key] if key in self._written else self._write(*key)
        if written is None or len(body) > written.most_bytes:
            return None  # a token has at least a byte: only a longer body can be too long
        begin, middle, end, completion, finish_reason, _ = written
        prompt = prompt_of(asked.messages)
        said = b'{"id":"%b","object":"chat.completion","created":%d%b%d%b%d%b' % (
            chat_id(), time(), begin, prompt, middle, prompt + completion, end
        )  # fmt: skip
        return FixedReply(said, Usage(prompt, completion), finish_reason)

    def _write(self, model: str, limit: int | None) -> _Written | None:
        """Write what does not change, by writing a reply to an empty prompt and taking it apart."""
        if len(self._written) >= MOST_WRITTEN:
            self._written.clear()
        traits, written = traits_of(model), None
        within = not traits.most_output or (limit or 0) <= traits.most_output
        if within and traits.kind in ("any", "chat") and not traits.reasons:
            written = _taken_apart(model, self._answers, limit, traits.context or sys.maxsize)
        if len(model) <= MOST_WRITTEN_CHARS:
            self._written[model, limit] = written
        return written


def _taken_apart(
    model: str, answers: FixedAnswers, limit: int | None, most_bytes: int
) -> _Written | None:
    choice, completion, _ = answers.cut(limit)
    said = choice.blocks[0]
    if not isinstance(said, TextBlock) or len(said.text) > MOST_WRITTEN_CHARS:
        return None
    usage = TokenUsage(0, completion)
    whole = plain_chat(ModelReply(id="", model=model, choices=(choice,), usage=usage))
    if whole is None or not whole.startswith(_BEFORE):
        return None
    # Nothing that a client or a text could say stands behind the counts.
    begin, mark, counts = whole[len(_BEFORE) :].rpartition(_USAGE)
    middle, total, end = counts.partition(_TOTAL)
    return _Written(
        begin + mark,
        middle.removeprefix(b"0") + total,
        end.removeprefix(b"%d" % completion),
        completion,
        choice.stop or "end",
        most_bytes,
    )


def prompt_of(messages: list[PlainMessage]) -> int:
    """Tokens of a prompt; what ``tokens.prompt_tokens`` counts of the same request."""
    total, instructed, talking = PER_REPLY, False, False
    for message in messages:
        total += count(message.content)
        if talking or message.role != "system":
            talking = True
            total += PER_MESSAGE
        else:
            instructed = True  # instructions at the beginning are one message
    return total + PER_MESSAGE if instructed else total
