"""From a request to the whole answer: what is said, called, cut, counted and why it ends.

Invariants: the answer depends on the request and the seed alone, but for ids and the time; its
token counts are those of ``tokens``; nothing is said beyond ``max_tokens`` or a stop sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from random import Random
from time import time
from typing import Final

import orjson

from tpo_mp.dialects.body import Fields
from tpo_mp.dialects.canonical import (
    Block,
    ModelReply,
    ModelRequest,
    ReplyChoice,
    TextBlock,
    TokenUsage,
    Trait,
)
from tpo_mp.errors import InvalidRequest
from tpo_mp.types import Dialect

from . import texts, thoughts
from .cutting import FixedAnswers, within
from .dataset import hash_of
from .ids import reply_id
from .logprobs import rows_of
from .rules import Scripted
from .seeds import stream_of
from .tokens import count, pieces, prompt_tokens
from .toolcalls import calls_of, newest_user_text
from .values import fitting

MOST_TEXT: Final = 131_072
"""Characters of one answer, which only an echo could exceed."""


MOST_LEAST: Final = 16_384
"""Tokens that a request may demand at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """What the operator chose a simulated model to say, and how much; ``seed`` moves all draws.

    ``lengths`` may draw how long a model's answer is; else it is from least to most.
    ``answers`` are those of a data set, by the hash of their prompt.
    """

    seed: int = 0
    strategy: texts.Strategy = "template"
    text: str = ""
    least_tokens: int = 10
    most_tokens: int = 500
    lengths: Callable[[str, Random], int | None] | None = None
    answers: Mapping[bytes, str] | None = None


class Composer:
    """Composes answers to generation requests."""

    def __init__(self, speech: Speech) -> None:
        self._speech = speech
        self.fixed = FixedAnswers(speech.text[:MOST_TEXT]) if _always_alike(speech) else None
        """What is said to whoever asks for words alone; None: it depends on more."""

    def compose(
        self,
        request: ModelRequest,
        dialect: Dialect,
        key: bytes,
        scripted: Scripted | None = None,
    ) -> Generator[None, None, ModelReply]:
        """The whole reply, made in steps of one choice; raises ``InvalidRequest``.

        ``scripted`` is what a rule says instead of what would be made up.
        """
        thoughts.check(request, dialect)
        choices, completion, reasoning = [], 0, 0
        for number in range(request.n or 1):
            choice, used, thought = self._choice(request, dialect, key, number, scripted)
            choices.append(choice)
            completion += used
            reasoning += thought
            yield
        return ModelReply(
            id=reply_id(dialect),
            model=request.model,
            choices=tuple(choices),
            usage=TokenUsage(prompt_tokens(request), completion, reasoning=reasoning),
            created=int(time()),
            source=request.source,
        )

    def _choice(
        self,
        request: ModelRequest,
        dialect: Dialect,
        key: bytes,
        number: int,
        scripted: Scripted | None,
    ) -> tuple[ReplyChoice, int, int]:
        """One choice, its tokens in all, and those of its thoughts."""
        if scripted is not None and scripted.speaks:
            return _told(request, dialect, scripted)
        if self.fixed is not None and _asks_for_words(request, dialect):
            return self.fixed.choice(request)
        prompt = newest_user_text(request)
        limit = request.max_tokens
        blocks: list[Block] = []
        used = 0
        # A stream of numbers is dear to begin, so none is begun that is not drawn from.
        if thoughts.effort_of(request, dialect):
            thought = thoughts.think(request, dialect, prompt, stream_of(key, "thoughts", number))
            thought, used, cut = thoughts.cut(thought, limit)
            seal = stream_of(key, "signature", number)
            blocks += thoughts.shown(request, dialect, thought, seal)
            if cut:
                return ReplyChoice(tuple(blocks), "length"), used, used
        calls = calls_of(request, dialect, key) if request.tools or request.tool_choice else ()
        if calls:
            spoken = sum(count(call.arguments) + count(call.name) for call in calls)
            return ReplyChoice((*blocks, *calls), "tool_use"), used + spoken, used
        text = self._text(request, prompt, key, number)
        left = None if limit is None else limit - used
        said, stop, sequence = within(text[:MOST_TEXT], left, request.stop)
        blocks.append(TextBlock(said))
        rows = None
        if request.logprobs is not None:
            rows = rows_of(pieces(said), request.logprobs, stream_of(key, "logprobs", number))
        choice = ReplyChoice(tuple(blocks), stop, sequence, rows)
        return choice, used + count(said), used

    def _text(self, request: ModelRequest, prompt: str, key: bytes, number: int) -> str:
        speech = self._speech
        form = request.response_format
        if form is not None and form.schema:
            value = fitting(form.schema, stream_of(key, "json", number), _schema_field(request))
            return orjson.dumps(value).decode()
        least = _least(request)
        said = None if speech.answers is None else speech.answers.get(hash_of(prompt))
        if said is None:
            said = self._made_up(request, prompt, least, key, number)
        if least:
            said = texts.lengthened(said, least)
        if form is not None:
            return orjson.dumps({"answer": said}).decode()
        return said

    def _made_up(
        self, request: ModelRequest, prompt: str, least: int, key: bytes, number: int
    ) -> str:
        """What the strategy says, in at least about so many tokens where it makes up words."""
        speech = self._speech
        if speech.strategy in texts.UNDRAWN:
            return prompt if speech.strategy == "echo" else speech.text
        random = stream_of(key, "text", number)
        length = speech.lengths(request.model, random) if speech.lengths is not None else None
        if length is None:
            length = texts.length_of(random, speech.least_tokens, speech.most_tokens)
        if request.max_tokens is not None:
            # What is cut off anyway need not be said; a text has over half its length.
            length = min(length, 2 * request.max_tokens + 16)
        return texts.say(speech.strategy, prompt, max(length, least), random, speech.text)


def _always_alike(speech: Speech) -> bool:
    return speech.strategy == "fixed" and speech.answers is None


def _asks_for_words(request: ModelRequest, dialect: Dialect) -> bool:
    """Whether a request wants neither thoughts nor tools, no format and nothing of its own."""
    return not (
        request.tools
        or request.tool_choice
        or request.response_format
        or request.logprobs is not None
        or request.extra
        or thoughts.effort_of(request, dialect)
    )


def _least(request: ModelRequest) -> int:
    """The tokens an answer must have: all there may be with ``ignore_eos``, or ``min_tokens``.

    Both are vLLM's own fields; raises ``InvalidRequest`` when they are no such values.
    """
    extra = request.extra
    if "ignore_eos" not in extra and "min_tokens" not in extra:
        return 0
    fields = Fields(extra)
    whole, least = fields.flag("ignore_eos"), fields.whole("min_tokens") or 0
    limit = request.max_tokens
    if least < 0 or (limit is not None and least > limit):
        raise InvalidRequest("min_tokens must be from 0 to max_tokens", param="min_tokens")
    if whole and limit is not None:
        least = limit
    return min(least, MOST_LEAST)


def _told(
    request: ModelRequest, dialect: Dialect, scripted: Scripted
) -> tuple[ReplyChoice, int, int]:
    """A rule's words and calls, within the request's limits."""
    said, stop, sequence = within(scripted.text or "", request.max_tokens, request.stop)
    calls = scripted.blocks(dialect)
    blocks: list[Block] = [TextBlock(said)] if said or not calls else []
    if calls and stop == "end":
        blocks += calls
        stop = "tool_use"
        used = sum(count(call.arguments) + count(call.name) for call in calls)
    else:
        used = 0
    return ReplyChoice(tuple(blocks), stop, sequence), used + count(said), 0


def _schema_field(request: ModelRequest) -> str:
    return request.names.get(Trait.JSON_SCHEMA, "response_format")
