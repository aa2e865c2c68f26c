"""OpenAI legacy completion streams: chunks to canonical events and back.

Source: OpenAI API reference, completions: chunks of ``text_completion``, ``data: [DONE]`` ends.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
from msgspec import Struct

from tpo_mp.errors import InvalidRequest

from .body import Index, Seconds
from .canonical import (
    BlockStart,
    BlockStop,
    ModelRequest,
    Ping,
    ReplyEnd,
    ReplyFailed,
    ReplyStart,
    ReplyStop,
    ReplyUsage,
    StreamEvent,
    TextBlock,
    TextDelta,
    TokenUsage,
    own_id,
)
from .failure import bad_body, of_object, truncated
from .openai_completions_body import ID, finish_of, logprobs_in, logprobs_out
from .openai_wire import (
    DONE,
    FINISH_OF_STOP,
    STOP_OF_FINISH,
    TokenCounts,
    error_event,
    usage_out,
)
from .sse import EventCutter


class _Choice(Struct):
    index: Index = 0
    text: str | None = None
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class _Chunk(Struct):
    id: str | None = None
    model: str | None = None
    created: Seconds | None = None
    choices: list[_Choice] | None = None
    usage: TokenCounts | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class CompletionDecoder:
    """Chunks to events; each choice is one text block."""

    __slots__ = ("_cutter", "_open", "_over", "_started", "_stopped")

    def __init__(self) -> None:
        self._cutter = EventCutter()
        self._open: set[int] = set()
        self._stopped: set[int] = set()
        self._started = False
        self._over = False

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """Take bytes, cut anywhere; raises ``BackendFailure`` when they are no such stream."""
        out: list[StreamEvent] = []
        for _, data in self._cutter.feed(chunk):
            if self._over:
                break
            if data == b"[DONE]":
                self._end(out)
                break
            try:
                self._read(_decode(data), out)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
                raise bad_body(f"a chunk that is none: {e}") from None
            except InvalidRequest as e:
                raise bad_body(f"a chunk that is none: {e.message}") from None
        return out

    def close(self) -> list[StreamEvent]:
        """The upstream is done."""
        if self._over:
            return []
        self._over = True
        return [ReplyFailed(truncated())]

    def _end(self, out: list[StreamEvent]) -> None:
        self._over = True
        if not self._started:
            out.append(ReplyFailed(truncated()))
            return
        for choice in sorted(self._open - self._stopped):
            out += [BlockStop(0, choice), ReplyStop("end", None, choice)]
        out.append(ReplyEnd())

    def _read(self, chunk: _Chunk, out: list[StreamEvent]) -> None:
        if chunk.error:
            self._over = True
            out.append(ReplyFailed(of_object(chunk.error)))
            return
        if not self._started:
            self._started = True
            created = int(chunk.created or 0)
            out.append(ReplyStart(chunk.id or "", chunk.model or "", created))
        for choice in chunk.choices or ():
            self._choice(choice, out)
        if chunk.usage is not None:
            out.append(ReplyUsage(chunk.usage.canonical()))

    def _choice(self, choice: _Choice, out: list[StreamEvent]) -> None:
        number = choice.index
        if number in self._stopped:
            return
        if choice.text:
            if number not in self._open:
                self._open.add(number)
                out.append(BlockStart(0, TextBlock(""), number))
            logprobs = logprobs_in(choice.logprobs, "logprobs")
            out.append(TextDelta(0, choice.text, number, logprobs))
        if choice.finish_reason:
            self._stopped.add(number)
            if number in self._open:
                out.append(BlockStop(0, number))
            out.append(ReplyStop(STOP_OF_FINISH.get(choice.finish_reason, "end"), None, number))


class CompletionEncoder:
    """Events to chunks; thoughts and tool calls have no place in them."""

    __slots__ = ("_head", "_offsets", "_usage", "_usage_wanted")

    def __init__(self, request: ModelRequest) -> None:
        """Only whether ``request`` wants usage matters."""
        self._usage_wanted = request.usage_wanted
        self._usage: TokenUsage | None = None
        self._offsets: dict[int, int] = {}
        self._head = b""

    def encode(self, event: StreamEvent) -> bytes:
        """The bytes of one event; empty where this dialect says nothing."""
        if isinstance(event, TextDelta):
            offset = self._offsets.get(event.choice, 0)
            self._offsets[event.choice] = offset + len(event.text)
            rows = event.logprobs
            columns = None if rows is None else logprobs_out(rows, offset)
            return self._chunk(event.choice, event.text, columns, None)
        if isinstance(event, ReplyStart):
            head: dict[str, Any] = {
                "id": own_id(event.id, ID),
                "object": "text_completion",
                "created": event.created,
                "model": event.model,
            }
            head |= event.extra or {}
            self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
            self._usage = event.usage
        elif isinstance(event, ReplyStop):
            return self._chunk(event.choice, "", None, finish_of(FINISH_OF_STOP[event.stop]))
        elif isinstance(event, ReplyUsage):
            self._usage = event.usage
        elif isinstance(event, ReplyEnd):
            return self._end()
        elif isinstance(event, ReplyFailed):
            return error_event(event.error)
        elif isinstance(event, Ping):
            return b": ping\n\n"
        return b""

    def _chunk(
        self, choice: int, text: str, logprobs: dict[str, Any] | None, finish: str | None
    ) -> bytes:
        entry = {"text": text, "index": choice, "logprobs": logprobs, "finish_reason": finish}
        return self._head + orjson.dumps(entry) + b"]}\n\n"

    def _end(self) -> bytes:
        if not self._usage_wanted or self._usage is None:
            return DONE
        return self._head + b'],"usage":' + orjson.dumps(usage_out(self._usage)) + b"}\n\n" + DONE
