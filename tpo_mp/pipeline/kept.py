"""What is kept of an answer, and how it becomes the answer to another call.

An answer is kept as it went to the client, with its tokens, why it ended and its id.  For a call
of the same dialect and form it is sent again byte for byte, under an id of its own; a whole answer
becomes a stream, or the reverse, by the dialect's own codec.

Only answers that are whole are kept: the model came to its end by itself, or to a limit that the
request itself said.  No error, nothing that a filter or a failure cut, and nothing without its
terminal event is one.

Invariants: what cannot be said in the form a call asks for is no answer to it; reading never
raises.
Known weakness: the instant in an answer is that of its making.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from time import time
from typing import Any, Final

import msgspec
import orjson
from msgspec import Struct

from tpo_mp.dialects.gather import GATHERERS, add_event
from tpo_mp.dialects.most_output import most_output
from tpo_mp.dialects.sse import EventCutter
from tpo_mp.dialects.translate import events_of
from tpo_mp.errors import TpoError
from tpo_mp.ports import BackendConfig
from tpo_mp.types import Call, Dialect, Reply, Sink, Usage

from .codecs import GENERATES, codec
from .fingerprint import KEY_BYTES

_VERSION: Final = 2
_SSE: Final = b"text/event-stream; charset=utf-8"
_ENDS: Final = frozenset(
    {"stop", "tool_calls", "function_call", "end_turn", "stop_sequence", "tool_use", "end",
     "completed", "STOP"}
)  # fmt: skip
_LIMITS: Final = frozenset({"length", "max_tokens", "MAX_TOKENS"})
_BROKEN_OFF: Final = "abort"
"""Of an answer that was broken off, whatever its body says."""
_ID: Final = re.compile(rb'"id":\s?"([A-Za-z][A-Za-z0-9]*[-_])?([A-Za-z0-9_.:-]{1,200})"')
_ID_WITHIN: Final = 2048
_UNKNOWN: Final = Usage()
_COUNTED: Final = frozenset({Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS})
"""Dialects whose streams show usage only when asked to."""


class AnswerRecord(Struct, array_like=True, gc=False, frozen=True):
    """One answer, with the body as it was sent."""

    version: int
    stream: bool
    usage_shown: bool
    content_type: bytes
    finish_reason: str
    prompt: int
    completion: int
    cached: int
    body: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(AnswerRecord).decode


class _Choice(Struct, gc=False):
    finish_reason: str | None = None


class _Candidate(Struct, gc=False):
    reason: str | None = msgspec.field(default=None, name="finishReason")


class _Ending(Struct, gc=False):
    """Where the dialects say that and why a whole answer ended."""

    error: Any = None
    status: str | None = None
    stop_reason: str | None = None
    choices: list[_Choice] | None = None
    candidates: list[_Candidate] | None = None


_ending = msgspec.json.Decoder(_Ending).decode
_EMBEDDINGS: Final = frozenset({Dialect.OPENAI_EMBEDDINGS, Dialect.GEMINI_EMBEDDINGS})


def salt_of(backends: Sequence[BackendConfig]) -> int:
    """What the keys of answers by these backends have in common."""
    known = repr([(b.name, b.kind, b) for b in backends]).encode()
    return int.from_bytes(blake2b(known, digest_size=KEY_BYTES).digest(), "little")


def answer_key(fingerprint: bytes, salt: int) -> bytes:
    """The key under which the answer to a call is kept."""
    return (int.from_bytes(fingerprint, "little") ^ salt).to_bytes(KEY_BYTES, "little")


def keep(call: Call, reply: Reply, body: bytes) -> bytes | None:
    """What to keep of a finished reply, of which ``body`` is all bytes; ``None``: nothing."""
    if reply.status != 200 or not _is_whole(call, reply, body):
        return None
    usage = reply.usage or _UNKNOWN
    shown = call.usage_wanted or call.dialect not in _COUNTED or not call.stream
    return _encode(
        AnswerRecord(
            _VERSION, call.stream, shown, reply.content_type, reply.finish_reason, usage.prompt,
            usage.completion, usage.cached, body,
        )
    )  # fmt: skip


class ToldAnswer:
    """An answer in the form that a call asked for, whose id is each call's own."""

    __slots__ = ("_cached", "_completion", "_prefix", "_prompt", "content_type", "finish_reason",
                 "pieces", "size", "stream")  # fmt: skip

    def __init__(
        self, answer: AnswerRecord, stream: bool, content_type: bytes, pieces: list[bytes],
        prefix: bytes,
    ) -> None:  # fmt: skip
        self.stream = stream
        self.content_type = content_type
        self.pieces = pieces
        """What stands between the places of the id, quotes and all."""
        self._prefix = prefix
        self.finish_reason = answer.finish_reason
        self._prompt = answer.prompt
        self._completion = answer.completion
        self._cached = answer.cached
        self.size = sum(map(len, pieces))

    def body(self, call_id: str) -> bytes:
        """Its bytes as the answer to the call of an id."""
        pieces = self.pieces
        if len(pieces) == 1:
            return pieces[0]
        fresh = b'"%b%b"' % (self._prefix, call_id.replace("-", "").encode())
        return fresh.join(pieces)

    def usage(self) -> Usage | None:
        """Tokens that the answer took when it was made, where they are known."""
        if self._prompt < 0 and self._completion < 0:
            return None
        return Usage(self._prompt, self._completion, self._cached)

    def reply(self, call_id: str) -> Reply:
        """It as the reply to the call of an id."""
        body = self.body(call_id)
        stream = KeptStream(body) if self.stream else None
        reply = Reply(200, None if stream else body, stream=stream, content_type=self.content_type)
        reply.finish_reason = self.finish_reason
        reply.usage = self.usage()
        return reply


def replay(kept: bytes, call: Call) -> Reply | None:
    """The answer to ``call`` that was kept for its key; ``None`` when it cannot be said so."""
    told = tell(kept, call)
    return None if told is None else told.reply(call.id)


def tell(kept: bytes, call: Call) -> ToldAnswer | None:
    """A kept answer in the form that ``call`` asks for; ``None`` when it cannot be said so.

    What is told depends on the call's key, dialect and form (``stream``, ``usage_wanted``) alone.
    """
    try:
        answer = _decode(kept)
        if answer.version != _VERSION:
            return None
        body, content_type = answer.body, answer.content_type
        alike = answer.stream == call.stream
        if not alike or (call.stream and answer.usage_shown != _wants_usage(call)):
            if call.dialect not in GENERATES or call.dialect not in GATHERERS:
                return None
            whole = _gather(answer, call) if answer.stream else body
            body = _spread(whole, call) if call.stream else whole
            content_type = _SSE if call.stream else b"application/json"
    except (TpoError, msgspec.MsgspecError, ValueError, KeyError, TypeError):
        return None
    found = _ID.search(answer.body, 0, _ID_WITHIN)
    if found is None:
        return ToldAnswer(answer, call.stream, content_type, [body], b"")
    prefix, rest = found.groups(b"")
    pieces = body.split(b'"%b%b"' % (prefix, rest))
    return ToldAnswer(answer, call.stream, content_type, pieces, prefix)


class KeptStream:
    """A stream that is all there already."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    def attach(self, sink: Sink) -> None:
        """Say it."""
        body, self._body = self._body, b""
        if body:
            sink.data(body)
            if not self._body:
                sink.end(None)

    def pause(self) -> None:
        """It is written in one piece."""

    def resume(self) -> None:
        """It was written."""

    def cancel(self) -> None:
        """Nothing is under way."""


def _wants_usage(call: Call) -> bool:
    return call.usage_wanted or call.dialect not in _COUNTED


def _is_whole(call: Call, reply: Reply, body: bytes) -> bool:
    if reply.stream is not None or call.stream:
        reasons = [reply.finish_reason]
    else:
        if call.dialect in _EMBEDDINGS:
            return b'"embedding' in body and _ending(body).error is None
        try:
            ended = _ending(body)
        except msgspec.MsgspecError:
            return False
        if ended.error is not None or reply.finish_reason == _BROKEN_OFF:
            return False
        if ended.choices is not None:
            if len(ended.choices) == 1 and ended.choices[0].finish_reason in _ENDS:
                return True  # as mostly
            reasons = [choice.finish_reason or "" for choice in ended.choices]
        elif ended.candidates is not None:
            reasons = [candidate.reason or "" for candidate in ended.candidates]
        else:
            reasons = [ended.stop_reason or ended.status or ""]
    if not reasons:
        return False
    limited = None
    for reason in reasons:
        if reason in _LIMITS:
            if limited is None:
                limited = most_output(call.dialect, call.body, -1) >= 0
            if not limited:
                return False
        elif reason not in _ENDS:
            return False
    return True


def _gather(answer: AnswerRecord, call: Call) -> bytes:
    """A kept stream as a whole answer, with the usage that the stream may not have shown."""
    gatherer = GATHERERS[call.dialect]()
    for _, data in EventCutter().feed(answer.body):
        add_event(gatherer, data)
    body = gatherer.body()
    if call.dialect not in _COUNTED or answer.prompt < 0:
        return body
    whole = orjson.loads(body)
    if not whole.get("usage"):
        completion = max(answer.completion, 0)
        whole["usage"] = {
            "prompt_tokens": answer.prompt,
            "completion_tokens": completion,
            "total_tokens": answer.prompt + completion,
        }
    return orjson.dumps(whole)


def _spread(whole: bytes, call: Call) -> bytes:
    """A whole answer as a stream."""
    spoken = codec(call.dialect)
    reply = spoken.reply_to_canonical(whole)
    if not reply.created:
        reply = msgspec.structs.replace(reply, created=int(time()))
    request = spoken.request_to_canonical(call.body)
    request = msgspec.structs.replace(request, stream=True, usage_wanted=call.usage_wanted)
    encoder = spoken.StreamEncoder(request)
    return b"".join([encoder.encode(event) for event in events_of(reply)])
