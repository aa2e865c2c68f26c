"""Gemini's ``generateContent``, as its servers speak it: requests in, replies and streams out.

Only the server's side is here: nobody asks an upstream in this dialect.  A stream is events; the
JSON array that clients get without ``alt=sse`` is made of them by the surface.

Source: Gemini API reference (``v1beta``).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import orjson

from tpo_mp.types import Usage

from .body import RoutedHead, typed
from .canonical import (
    Block,
    BlockStart,
    BlockStop,
    ImageBlock,
    ModelReply,
    ModelRequest,
    RefusalBlock,
    ReplyChoice,
    ReplyEnd,
    ReplyFailed,
    ReplyStart,
    ReplyStop,
    ReplyUsage,
    SignatureDelta,
    StreamEvent,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    TokenUsage,
    ToolInputDelta,
    ToolUseBlock,
)
from .gemini_request import NAME, request_to_canonical
from .gemini_wire import FINISH, error_body, error_event, error_status, event, usage_out

__all__ = [
    "NAME", "GeminiRequest", "StreamEncoder", "decode_request", "embedding_list", "error_body",
    "error_event", "error_status", "reply_from_canonical", "request_to_canonical", "token_count",
    "usage_of",
]  # fmt: skip

TOKEN_IDS: Final = 256_000
"""Size of the vocabulary whose numbers log probabilities name."""


class GeminiRequest(RoutedHead, gc=False):
    """The typed part of a request, as the surface writes it from the path."""

    model: str
    stream: bool | None = None

    @property
    def affinity(self) -> str | None:
        """Nothing in this dialect names a client."""
        return None

    @property
    def usage_wanted(self) -> bool:
        """Every reply shows usage."""
        return True


_decode_request = msgspec.json.Decoder(GeminiRequest).decode


def decode_request(body: bytes) -> GeminiRequest:
    """Check a request body; raises ``InvalidRequest`` naming the field."""
    return typed(_decode_request, body)


class _Counts(msgspec.Struct, rename="camel"):
    prompt_token_count: int = -1
    candidates_token_count: int = 0
    thoughts_token_count: int = 0


class _Counted(msgspec.Struct, rename="camel"):
    usage_metadata: _Counts | None = None


def usage_of(body: bytes) -> Usage | None:
    """The counts of a whole reply; raises ``ValueError`` when it is none."""
    found = msgspec.json.decode(body, type=_Counted).usage_metadata
    if found is None:
        return None
    said = found.candidates_token_count + found.thoughts_token_count
    return Usage(found.prompt_token_count, said)


def reply_from_canonical(
    reply: ModelReply,
    request: ModelRequest | None = None,  # noqa: ARG001 - every codec's signature
) -> bytes:
    """Write a whole reply."""
    candidates = [_candidate(choice, index) for index, choice in enumerate(reply.choices)]
    return orjson.dumps(_wire(reply.id, reply.model, candidates, reply.usage or TokenUsage()))


def token_count(tokens: int) -> bytes:
    """Answer ``countTokens``."""
    details = [{"modality": "TEXT", "tokenCount": tokens}]
    return orjson.dumps({"totalTokens": tokens, "promptTokensDetails": details})


def embedding_list(vectors: list[bytes], batch: bool) -> bytes:
    """Answer ``embedContent`` (one vector, as a JSON array) or its batch."""
    if batch:
        return b'{"embeddings":[%b]}' % b",".join(b'{"values":%b}' % v for v in vectors)
    return b'{"embedding":{"values":%b}}' % vectors[0]


def _wire(
    reply_id: str, model: str, candidates: list[dict[str, Any]], usage: TokenUsage
) -> dict[str, Any]:
    return {
        "candidates": candidates,
        "usageMetadata": usage_out(usage),
        "modelVersion": model,
        "responseId": reply_id,
    }


def _candidate(choice: ReplyChoice, index: int) -> dict[str, Any]:
    out: dict[str, Any] = {"content": {"parts": [_part(b) for b in choice.blocks], "role": "model"}}
    out["finishReason"] = FINISH[choice.stop or "end"]
    if choice.logprobs:
        rows = choice.logprobs
        out["avgLogprobs"] = sum(row["logprob"] for row in rows) / len(rows)
        out["logprobsResult"] = {
            "topCandidates": [
                {"candidates": [_logprob(top) for top in row["top_logprobs"]]} for row in rows
            ],
            "chosenCandidates": [_logprob(row) for row in rows],
        }
    return out | {"index": index}


def _logprob(row: dict[str, Any]) -> dict[str, Any]:
    number = int.from_bytes(bytes(row["bytes"])[:4], "big") % TOKEN_IDS
    return {"token": row["token"], "tokenId": number, "logProbability": row["logprob"]}


def _part(block: Block) -> dict[str, Any]:
    if isinstance(block, ToolUseBlock):
        return {"functionCall": {"name": block.name, "args": _arguments(block.arguments)}}
    if isinstance(block, ThinkingBlock):
        signed = {"thoughtSignature": block.signature} if block.signature else {}
        return {"text": block.text, "thought": True, **signed}
    if isinstance(block, ImageBlock):
        return {"inlineData": {"mimeType": block.media_type, "data": block.data}}
    assert isinstance(block, TextBlock | RefusalBlock)
    return {"text": block.text}


def _arguments(written: str) -> Any:
    try:
        return orjson.loads(written or "{}")
    except orjson.JSONDecodeError:
        return {}


class StreamEncoder:
    """Canonical events to events that are each a reply of their own.

    A call is told whole, as Google does; the last event has the reasons and the final counts.
    """

    __slots__ = ("_calls", "_id", "_model", "_said", "_stops", "_usage")

    def __init__(self, request: ModelRequest) -> None:
        self._model = request.model
        self._id = ""
        self._usage = TokenUsage()
        self._said = 0
        self._calls: dict[tuple[int, int], ToolUseBlock] = {}
        self._stops: dict[int, str] = {}

    def encode(self, event: StreamEvent) -> bytes:
        """The bytes of one event; empty where this dialect says nothing."""
        if isinstance(event, TextDelta):
            self._said += 1
            return self._tell({"text": event.text}, event.choice)
        if isinstance(event, ThinkingDelta):
            return self._tell({"text": event.text, "thought": True}, event.choice)
        if isinstance(event, SignatureDelta):
            part = {"text": "", "thought": True, "thoughtSignature": event.signature}
            return self._tell(part, event.choice)
        if isinstance(event, ToolInputDelta | BlockStart | BlockStop):
            return self._call(event)
        if isinstance(event, ReplyStart):
            self._id, self._model = event.id, event.model
            self._usage = event.usage or TokenUsage()
        elif isinstance(event, ReplyStop):
            self._stops[event.choice] = FINISH[event.stop]
        elif isinstance(event, ReplyUsage):
            self._usage = event.usage
        elif isinstance(event, ReplyEnd):
            return self._end()
        elif isinstance(event, ReplyFailed):
            return error_event(event.error)
        return b""

    def _call(self, event: ToolInputDelta | BlockStart | BlockStop) -> bytes:
        at = (event.choice, event.index)
        if isinstance(event, BlockStart):
            if isinstance(event.block, ToolUseBlock):
                self._calls[at] = event.block
        elif isinstance(event, ToolInputDelta):
            self._said += 1
            begun = self._calls[at]
            self._calls[at] = ToolUseBlock(begun.id, begun.name, begun.arguments + event.json)
        elif at in self._calls:
            return self._tell(_part(self._calls.pop(at)), event.choice)
        return b""

    def _tell(self, part: dict[str, Any], choice: int) -> bytes:
        candidate = {"content": {"parts": [part], "role": "model"}, "index": choice}
        usage = TokenUsage(self._usage.prompt, self._said, self._usage.cached)
        return event(_wire(self._id, self._model, [candidate], usage))

    def _end(self) -> bytes:
        candidates = [
            {"content": {"parts": [{"text": ""}], "role": "model"}, "finishReason": why,
             "index": choice}
            for choice, why in sorted(self._stops.items())
        ]  # fmt: skip
        return event(_wire(self._id, self._model, candidates, self._usage))
