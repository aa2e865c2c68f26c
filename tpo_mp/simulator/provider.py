"""The core both ways in share: a request's bytes to an answer in the same dialect.

Invariants: an answer is composed whole before its first byte, so a stream and a whole reply say
the same; what may take longer than a moment (choices, inputs) is made in steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from tpo_mp.dialects import anthropic_messages, gemini, gemini_request, openai_embeddings
from tpo_mp.dialects.body import parse
from tpo_mp.dialects.canonical import (
    ModelReply,
    ModelRequest,
    ThinkingBlock,
    TokenUsage,
)
from tpo_mp.dialects.codec import Codec
from tpo_mp.errors import InvalidRequest, Rejected
from tpo_mp.types import Dialect, Usage

from . import dress, prompts, strictness, vectors
from .answers import Composer, Speech
from .breaking_off import said_of
from .catalog import traits_of
from .fault_frames import Frame
from .fixed_replies import FixedReplies
from .orders import ErrorOrder, FaultOrder
from .recordings import Recording
from .rendering import CachedTokens, RenderedFrames, told
from .rules import RuleBook
from .seeds import key_of, key_of_bytes, stream_of
from .tokens import prompt_tokens

VECTORS_AT_ONCE: Final = 2

_OUTPUT_FIELDS: Final = {
    Dialect.OPENAI_RESPONSES: "max_output_tokens",
    Dialect.ANTHROPIC_COMPLETE: "max_tokens_to_sample",
    Dialect.GEMINI: "generationConfig.maxOutputTokens",
}
"""What each dialect calls the most tokens of an answer, where not ``max_tokens``."""


class Answered(Struct, frozen=True):
    """An answer: its counts, and how to write it whole or as a stream's frames.

    ``key`` draws whatever else is drawn for it; ``hidden`` are tokens thought and not shown;
    ``fault`` is what a rule wants to happen to it.
    ``recording`` is where it comes from, if not from here.
    ``requests`` (one per prompt) and ``reply`` are what was asked and is said, where something is
    generated.
    """

    usage: Usage
    finish_reason: str
    body: Callable[[], bytes]
    frames: Callable[[bool, Iterator[int] | None], Iterator[Frame]]
    key: bytes = b""
    hidden: int = 0
    fault: FaultOrder | None = None
    requests: Sequence[ModelRequest] = ()
    reply: ModelReply | None = None
    cached: CachedTokens = field(default_factory=CachedTokens)
    recording: Recording | None = None


class RefusalOrdered(Exception):
    """A rule wants this request refused so."""

    def __init__(self, order: ErrorOrder) -> None:
        super().__init__(order)
        self.order = order


class SimulatedProvider:
    """One simulated provider; ``speech`` is what its models say, ``rules`` come first."""

    def __init__(self, speech: Speech, rules: RuleBook | None = None) -> None:
        self._seed = speech.seed
        self._rules = rules
        self._composer = Composer(speech)
        self.fixed: FixedReplies | None = None
        """Answers to plain chats in one pass, where they depend on nothing else."""
        if rules is None and self._composer.fixed is not None:
            self.fixed = FixedReplies(self._composer.fixed)

    def key(self, model: str, body: bytes, word: str) -> bytes:
        """The key of a request's random numbers; ``word``, if any, stands for its body."""
        return key_of(self._seed, {"key": word, "model": model} if word else parse(body))

    def generate(
        self,
        codec: Codec,
        dialect: Dialect,
        body: bytes,
        key: str,
        drawn: bytes = b"",
        salt: Callable[[bytes], bytes] = bytes,
    ) -> Generator[None, None, Answered]:
        """Answer a generation request, in steps of one choice; ``drawn`` is its key, if known.

        ``salt`` makes the key of what is said out of the request's own.

        Raises ``Rejected`` naming the field at fault.
        """
        if dialect is Dialect.OPENAI_COMPLETIONS:
            requests, echo = prompts.requests_of(codec, body)
        else:
            requests, echo = [codec.request_to_canonical(body)], False
        request = requests[0]
        _check_model(request.model, dialect)
        _check_context(request, len(body))
        _check_output(request, dialect)
        strictness.check(request, dialect, body)
        drawn = drawn or self.key(request.model, body, key)
        rules = self._rules
        scripted = None if rules is None else rules.reply_to(request)
        if scripted is not None and scripted.error is not None:
            raise RefusalOrdered(scripted.error)
        compose, said = self._composer.compose, salt(drawn)
        reply = yield from compose(request, dialect, said, scripted)
        if echo or len(requests) > 1:
            replies = [reply]
            for number, other in enumerate(requests[1:], 1):
                replies.append((yield from compose(other, dialect, _next(said, number), scripted)))
            reply = prompts.together(requests, replies, echo)
        usage = reply.usage or TokenUsage()
        cached = CachedTokens()

        def whole() -> bytes:
            return _written(codec, dialect, request, told(reply, cached))

        def frames(usage_wanted: bool, sizes: Iterator[int] | None) -> Iterator[Frame]:
            asked = request
            if request.usage_wanted != usage_wanted:
                asked = replace(request, usage_wanted=usage_wanted)
            return RenderedFrames(codec, dialect, asked, reply, sizes, cached)

        stop = reply.choices[0].stop or "end"
        hidden = 0 if not usage.reasoning or _thoughts_shown(reply) else usage.reasoning
        spent = Usage(usage.prompt, usage.completion)
        fault = None if scripted is None else scripted.fault
        return Answered(spent, stop, whole, frames, drawn, hidden, fault, requests, reply, cached)

    def broken_off(
        self, answered: Answered, codec: Codec, dialect: Dialect, shown: int, spent: int
    ) -> Generator[None, None, Answered]:
        """An answer of which only ``shown`` tokens were said, ``spent`` are counted; in steps."""
        assert answered.reply is not None
        request, cached = answered.requests[0], answered.cached
        reply = yield from said_of(answered.reply, shown, spent)
        spoken = Usage(answered.usage.prompt, spent)

        def whole() -> bytes:
            return _written(codec, dialect, request, told(reply, cached))

        return replace(
            answered, usage=spoken, finish_reason="abort", body=whole, reply=reply, hidden=0
        )

    def count(self, codec: Codec, dialect: Dialect, body: bytes) -> Answered:
        """Count a conversation's tokens, as the same conversation's ``usage`` will."""
        if dialect is Dialect.GEMINI_COUNT:
            tokens = prompt_tokens(gemini_request.counted(body))
            counted = gemini.token_count(tokens)
        else:
            tokens = prompt_tokens(codec.request_to_canonical(body))
            counted = anthropic_messages.token_count(tokens)
        drawn = key_of_bytes(self._seed, body)
        return Answered(Usage(tokens, 0), "", lambda: counted, lambda _w, _s: iter(()), drawn)

    async def embed(self, dialect: Dialect, body: bytes) -> Answered:
        """Embed texts."""
        if dialect is Dialect.GEMINI_EMBEDDINGS:
            return await self._embed_contents(body)
        request = openai_embeddings.decode_request(body)
        size = vectors.size_of(request)
        inputs = vectors.texts_of(request)
        listed: list[bytes] = []
        tokens = 0
        for index, item in enumerate(inputs):
            if index % VECTORS_AT_ONCE == 0 and index:
                await asyncio.sleep(0)  # one vector is well under a millisecond, 2 048 are not
            tokens += vectors.tokens_of(item)
            vector = vectors.vector(self._seed, request.model, item, size)
            listed.append(vectors.entry(request, index, vector))
        answer = vectors.answer(request.model, listed, tokens)
        drawn = key_of_bytes(self._seed, body)
        return Answered(Usage(tokens, 0), "", lambda: answer, lambda _w, _s: iter(()), drawn)

    async def _embed_contents(self, body: bytes) -> Answered:
        """Embed what Gemini's clients send."""
        asked, batch = gemini_request.embeddings_of(body)
        listed: list[bytes] = []
        tokens = 0
        for index, item in enumerate(asked):
            if index % VECTORS_AT_ONCE == 0 and index:
                await asyncio.sleep(0)
            size = vectors.size_of_content(item)
            vectors.check_content(item, len(asked))
            tokens += vectors.tokens_of(item.text)
            listed.append(vectors.vector(self._seed, item.model, item.text, size).json())
        answer = gemini.embedding_list(listed, batch)
        drawn = key_of_bytes(self._seed, body)
        return Answered(Usage(tokens, 0), "", lambda: answer, lambda _w, _s: iter(()), drawn)


def _written(codec: Codec, dialect: Dialect, request: ModelRequest, reply: ModelReply) -> bytes:
    """A whole reply with all that its provider adds."""
    plain = dress.plain_chat(reply) if dialect is Dialect.OPENAI_CHAT else None
    if plain is not None:
        return plain
    extra = dress.reply_extra(dialect, request, reply)
    return codec.reply_from_canonical(replace(reply, extra=extra), request)


def _thoughts_shown(reply: ModelReply) -> bool:
    for choice in reply.choices:
        for block in choice.blocks:
            if isinstance(block, ThinkingBlock) and block.text:
                return True
    return False


def _next(key: bytes, number: int) -> bytes:
    """The key of a further prompt of the same request."""
    return stream_of(key, "prompt", number).randbytes(16)


def _check_context(request: ModelRequest, size: int) -> None:
    """Refuse a prompt that is longer than the model's context, as providers do."""
    most = traits_of(request.model).context
    if not most or size <= most:
        return  # a token has at least a byte
    tokens = prompt_tokens(request)
    if tokens > most:
        said = (
            f"This model's maximum context length is {most} tokens. "
            f"However, your messages resulted in {tokens} tokens."
        )
        raise InvalidRequest(said, reason="context_length_exceeded", param="messages")


def _check_output(request: ModelRequest, dialect: Dialect) -> None:
    """Refuse to be asked for more than the model writes, as providers do."""
    most, wanted = traits_of(request.model).most_output, request.max_tokens or 0
    if most and wanted > most:
        field = _OUTPUT_FIELDS.get(dialect, "max_tokens")
        said = f"{field} is too large: {wanted}, and {request.model} writes at most {most} tokens"
        raise InvalidRequest(said, reason="invalid_value", param=field)


def _check_model(model: str, dialect: Dialect) -> None:
    kind = traits_of(model).kind
    wanted = "completion" if dialect is Dialect.OPENAI_COMPLETIONS else "chat"
    if kind not in ("any", wanted):
        said = f"the model {model!r} is a model for {kind}s, which this endpoint does not serve"
        raise Rejected(said, reason="model_not_supported", param="model", status=404)
