"""OpenAI responses streams: semantic events to canonical events and back.

Source: OpenAI API reference, responses streaming: each event has a name and a growing
``sequence_number``; items are added and done, parts within them too; the last event repeats the
whole answer: ``response.completed``, ``response.incomplete`` or ``response.failed``.

Invariants: the decoder works from deltas and falls back on the ``done`` events of servers that
send none; the encoder's last event holds exactly what it streamed before.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
from msgspec import Struct

from tpo_mp.errors import InvalidRequest, TpoError

from .body import Fields, Index
from .canonical import (
    Block,
    BlockStart,
    BlockStop,
    ModelRequest,
    OpaqueBlock,
    Ping,
    RedactedBlock,
    RefusalBlock,
    ReplyEnd,
    ReplyFailed,
    ReplyStart,
    ReplyStop,
    ReplyUsage,
    SignatureDelta,
    StopReason,
    StreamEvent,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    TokenUsage,
    ToolInputDelta,
    ToolUseBlock,
    own_id,
)
from .failure import bad_body, of_object, truncated
from .openai_responses_reply import content_out, item_out, outcome, shell_of, stop_of, usage_in
from .openai_responses_request import ID, said_item
from .openai_wire import error_object
from .sse import EventCutter


class _Wire(Struct):
    type: str
    delta: str | Any = None
    output_index: Index = 0
    content_index: Index = 0
    summary_index: Index = 0
    text: str | None = None
    refusal: str | None = None
    arguments: str | None = None
    logprobs: list[dict[str, Any]] | None = None
    item: dict[str, Any] | None = None
    response: dict[str, Any] | None = None
    error: Any = None
    message: str | None = None
    code: str | None = None
    param: str | None = None


_decode = msgspec.json.Decoder(_Wire).decode


class _Open:
    """One block in progress; ``empty`` until a delta came."""

    __slots__ = ("empty", "number", "part", "signed")

    def __init__(self, number: int) -> None:
        self.number = number
        self.empty = True
        self.signed = False
        self.part = 0


class ResponsesDecoder:
    """Semantic events to canonical ones."""

    __slots__ = ("_count", "_cutter", "_open", "_over", "_tools")

    def __init__(self) -> None:
        self._cutter = EventCutter()
        self._open: dict[tuple[int, int], _Open] = {}
        self._count = 0
        self._tools = False
        self._over = False

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """Take bytes, cut anywhere; raises ``BackendFailure`` when they are no such stream."""
        out: list[StreamEvent] = []
        try:
            for _, data in self._cutter.feed(chunk):
                if self._over:
                    break
                if data != b"[DONE]":
                    self._read(_decode(data), out)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise bad_body(f"an event that is none: {e}") from None
        except InvalidRequest as e:
            raise bad_body(f"an event that is none: {e.message}") from None
        return out

    def close(self) -> list[StreamEvent]:
        """The upstream is done."""
        if self._over:
            return []
        self._over = True
        return [ReplyFailed(truncated())]

    def _read(self, wire: _Wire, out: list[StreamEvent]) -> None:
        kind = wire.type
        if kind == "response.output_text.delta":
            block = self._block(wire, TextBlock(""), out)
            if wire.delta:
                out.append(TextDelta(block.number, str(wire.delta), 0, wire.logprobs or None))
        elif kind == "response.function_call_arguments.delta":
            block = self._block(wire, ToolUseBlock("", "", ""), out)
            out.append(ToolInputDelta(block.number, str(wire.delta or "")))
        elif kind.startswith("response.reasoning"):
            self._thoughts(wire, out)
        elif kind == "response.refusal.delta":
            block = self._block(wire, RefusalBlock(""), out)
            out.append(TextDelta(block.number, str(wire.delta or "")))
        elif kind == "response.output_item.added":
            self._item(wire, out)
        elif kind == "response.output_item.done":
            self._item_done(wire, out)
        elif kind == "response.content_part.done":
            self._stop((wire.output_index, wire.content_index), out)
        else:
            self._frame(wire, kind, out)

    def _frame(self, wire: _Wire, kind: str, out: list[StreamEvent]) -> None:
        if kind == "response.created":
            fields = Fields(wire.response or {}, "response")
            reply_id, model = fields.text("id") or "", fields.text("model") or ""
            out.append(ReplyStart(reply_id, model, fields.seconds("created_at")))
        elif kind in ("response.completed", "response.incomplete"):
            self._end(Fields(wire.response or {}, "response"), kind, out)
        elif kind == "response.failed":
            self._over = True
            error = (wire.response or {}).get("error")
            out.append(ReplyFailed(of_object(error)))
        elif kind == "error":
            self._over = True
            flat = {"message": wire.message, "code": wire.code, "param": wire.param}
            out.append(ReplyFailed(of_object(wire.error or flat)))
        elif kind == "response.cancelled":
            self._over = True
            out.append(ReplyFailed(of_object("the response was cancelled")))

    def _block(self, wire: _Wire, block: Block, out: list[StreamEvent]) -> _Open:
        place = (wire.output_index, wire.content_index)
        found = self._open.get(place)
        if found is None:
            found = self._begin(place, block, out)
        found.empty = False
        return found

    def _begin(self, place: tuple[int, int], block: Block, out: list[StreamEvent]) -> _Open:
        found = self._open[place] = _Open(self._count)
        self._count += 1
        out.append(BlockStart(found.number, block))
        return found

    def _stop(self, place: tuple[int, int], out: list[StreamEvent]) -> None:
        found = self._open.pop(place, None)
        if found is not None:
            out.append(BlockStop(found.number))

    def _thoughts(self, wire: _Wire, out: list[StreamEvent]) -> None:
        """Summary parts and raw thoughts; all of an item are one block."""
        if not wire.type.endswith(".delta"):
            return
        part = max(wire.summary_index, wire.content_index)
        wire.content_index = 0
        block = self._block(wire, ThinkingBlock(""), out)
        words = str(wire.delta or "")
        if part != block.part:
            block.part = part
            words = "\n\n" + words
        out.append(ThinkingDelta(block.number, words))

    def _item(self, wire: _Wire, out: list[StreamEvent]) -> None:
        fields = Fields(wire.item or {}, "item")
        kind = fields.need_text("type")
        place = (wire.output_index, 0)
        if kind == "function_call":
            self._tools = True
            call_id, name = fields.need_text("call_id"), fields.need_text("name")
            self._begin(place, ToolUseBlock(call_id, name, ""), out)
        elif kind == "reasoning":
            block = said_item(fields, wire.item or {}, kind)
            redacted = isinstance(block, RedactedBlock)
            found = self._begin(place, block if redacted else ThinkingBlock(""), out)
            found.signed = redacted
        elif kind != "message":
            self._begin(place, OpaqueBlock(kind, wire.item or {}), out)

    def _item_done(self, wire: _Wire, out: list[StreamEvent]) -> None:
        """Whatever the deltas did not say, and the end of the item's blocks."""
        fields = Fields(wire.item or {}, "item")
        kind = fields.need_text("type")
        place = (wire.output_index, 0)
        if place not in self._open and kind in ("function_call", "reasoning"):
            self._item(wire, out)
        found = self._open.get(place)
        if found is not None and kind == "function_call":
            arguments = fields.text("arguments")
            if found.empty and arguments:
                out.append(ToolInputDelta(found.number, arguments))
        elif found is not None and kind == "reasoning":
            if found.empty:
                parts = fields.items("content") or fields.items("summary")
                text = "\n\n".join(Fields(p, "item.summary").text("text") or "" for p in parts)
                if text:
                    out.append(ThinkingDelta(found.number, text))
            signature = fields.text("encrypted_content")
            if signature and not found.signed:
                out.append(SignatureDelta(found.number, signature))
        for place in [place for place in self._open if place[0] == wire.output_index]:
            self._stop(place, out)

    def _end(self, fields: Fields, kind: str, out: list[StreamEvent]) -> None:
        self._over = True
        for place in list(self._open):
            self._stop(place, out)
        stop: StopReason = "tool_use" if self._tools else "end"
        if kind == "response.incomplete":
            reason = fields.inner("incomplete_details").text("reason")
            stop = stop_of("incomplete", reason, ())
        out.append(ReplyStop(stop))
        usage = fields.table("usage")
        if usage is not None:
            out.append(ReplyUsage(usage_in(Fields(usage, "usage"))))
        out.append(ReplyEnd())


class ResponsesEncoder:
    """Canonical events to semantic ones; of several choices only the first fits."""

    __slots__ = ("_block", "_id", "_item", "_output", "_request", "_sequence", "_shell",
                 "_signature", "_stop", "_usage", "_words")  # fmt: skip

    def __init__(self, request: ModelRequest) -> None:
        """``request``'s settings are echoed in the response object."""
        self._request = request
        self._sequence = 0
        self._id = ""
        self._shell: dict[str, Any] = {}
        self._output: list[dict[str, Any]] = []
        self._block: Block | None = None
        self._item = ""
        self._words: list[str] = []
        self._signature = ""
        self._stop: StopReason = "end"
        self._usage: TokenUsage | None = None

    def encode(self, event: StreamEvent) -> bytes:
        """The bytes of one event; empty where they come later."""
        if isinstance(event, TextDelta):
            self._words.append(event.text)
            if isinstance(self._block, RefusalBlock):
                return self._part("response.refusal.delta", delta=event.text)
            return self._part(
                "response.output_text.delta", delta=event.text, logprobs=event.logprobs or []
            )
        if isinstance(event, ToolInputDelta):
            self._words.append(event.json)
            return self._at("response.function_call_arguments.delta", delta=event.json)
        if isinstance(event, ThinkingDelta):
            return self._thought(event.text)
        if isinstance(event, BlockStart):
            return self._begin(event.block)
        if isinstance(event, BlockStop):
            return self._finish()
        if isinstance(event, SignatureDelta):
            self._signature += event.signature
            return b""
        return self._frame(event)

    def _frame(self, event: StreamEvent) -> bytes:
        if isinstance(event, ReplyStart):
            return self._start(event)
        if isinstance(event, ReplyStop):
            self._stop = event.stop
        elif isinstance(event, ReplyUsage):
            self._usage = event.usage
        elif isinstance(event, ReplyEnd):
            return self._end()
        elif isinstance(event, ReplyFailed):
            return self._fail(event.error)
        elif isinstance(event, Ping):
            return b": ping\n\n"
        return b""

    def _event(self, kind: str, **fields: Any) -> bytes:
        wire = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(wire))

    def _at(self, kind: str, **fields: Any) -> bytes:
        """An event about the item in progress."""
        return self._event(kind, output_index=len(self._output), item_id=self._item, **fields)

    def _part(self, kind: str, **fields: Any) -> bytes:
        return self._at(kind, content_index=0, **fields)

    def _start(self, event: ReplyStart) -> bytes:
        self._id = own_id(event.id, ID)
        self._usage = event.usage
        self._shell = shell_of(self._id, event.created, event.model, self._request)
        self._shell |= event.extra or {}
        return self._event("response.created", response=self._shell) + self._event(
            "response.in_progress", response=self._shell
        )

    def _begin(self, block: Block) -> bytes:
        self._block = block
        self._words = []
        self._signature = ""
        item = item_out(block, self._id, len(self._output))
        self._item = str(item.get("id", ""))
        if isinstance(block, OpaqueBlock):
            return self._event(
                "response.output_item.added", output_index=len(self._output), item=item
            )
        item = item | {"status": "in_progress"}
        if isinstance(block, TextBlock | RefusalBlock):
            item["content"] = []
        added = self._event("response.output_item.added", output_index=len(self._output), item=item)
        if isinstance(block, TextBlock | RefusalBlock):
            added += self._part("response.content_part.added", part=content_out(block))
        return added

    def _thought(self, words: str) -> bytes:
        opened = b""
        if not self._words:
            part = {"type": "summary_text", "text": ""}
            opened = self._at("response.reasoning_summary_part.added", summary_index=0, part=part)
        self._words.append(words)
        return opened + self._at(
            "response.reasoning_summary_text.delta", summary_index=0, delta=words
        )

    def _finish(self) -> bytes:
        text = "".join(self._words)
        block, done = self._block, b""
        if isinstance(block, TextBlock):
            block = TextBlock(text)
            done = self._part("response.output_text.done", text=text, logprobs=[])
        elif isinstance(block, RefusalBlock):
            block = RefusalBlock(text)
            done = self._part("response.refusal.done", refusal=text)
        elif isinstance(block, ToolUseBlock):
            block = ToolUseBlock(block.id, block.name, block.arguments + text)
            done = self._at("response.function_call_arguments.done", arguments=block.arguments)
        elif isinstance(block, ThinkingBlock):
            block = ThinkingBlock(text, self._signature)
            if text:
                part = {"type": "summary_text", "text": text}
                done = self._at("response.reasoning_summary_text.done", summary_index=0, text=text)
                done += self._at("response.reasoning_summary_part.done", summary_index=0, part=part)
        if block is None:
            return b""
        if isinstance(block, TextBlock | RefusalBlock):
            done += self._part("response.content_part.done", part=content_out(block))
        item = item_out(block, self._id, len(self._output))
        done += self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._block = None
        return done

    def _end(self) -> bytes:
        response = self._shell | outcome(self._stop, self._output, self._usage)
        return self._event(f"response.{response['status']}", response=response)

    def _fail(self, error: TpoError) -> bytes:
        """The terminal event, and the one that makes SDKs raise."""
        code = "invalid_prompt" if error.status < 500 else "server_error"
        if error.status == 429:
            code = "rate_limit_exceeded"
        told = {"code": code, "message": error.message}
        failed = {"status": "failed", "error": told, "output": self._output}
        return self._event("response.failed", response=self._shell | failed) + error_wire(
            error, self._sequence
        )


def error_wire(error: TpoError, sequence: int) -> bytes:
    """The event ``error``, with its fields both flat and nested: clients read either."""
    flat = {"code": error.reason, "message": error.message, "param": error.param}
    wire = {"type": "error", "sequence_number": sequence, **flat, "error": error_object(error)}
    return b"event: error\ndata: %b\n\n" % orjson.dumps(wire)
