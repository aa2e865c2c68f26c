"""Anthropic legacy text completions: a transcript in one string, mapped onto messages.

Source: Anthropic API reference, text completions: the prompt alternates ``\\n\\nHuman:`` and
``\\n\\nAssistant:`` and ends with the latter; streamed, each event ``completion`` holds the next
words and the last one the stop reason.

Known weakness: text only; usage has no place in its replies.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import Meta, Struct

from tpo_mp.errors import InvalidRequest
from tpo_mp.types import Usage

from .anthropic_wire import error_body, error_event, error_status, named_event
from .body import (
    Fields,
    RoutedHead,
    parse,
    strip_routing_fields,
    texts,
    typed,
    user_id,
    with_model,
    with_stream,
    wrong,
)
from .canonical import (
    BlockStart,
    BlockStop,
    Message,
    ModelReply,
    ModelRequest,
    Ping,
    RefusalBlock,
    ReplyChoice,
    ReplyEnd,
    ReplyFailed,
    ReplyStart,
    ReplyStop,
    StopReason,
    StreamEvent,
    TextBlock,
    TextDelta,
    Trait,
    own_id,
    require,
)
from .failure import bad_body, of_object, truncated
from .failure import upstream_error as error_to_canonical
from .sse import EventCutter
from .watch import StreamWatch

__all__ = [
    "API", "APPROXIMATES", "CARRIES", "NAME", "NAMES", "CompleteRequest", "StreamDecoder",
    "StreamEncoder", "decode_request", "error_body", "error_event", "error_status",
    "error_to_canonical", "reply_from_canonical", "reply_to_canonical", "request_from_canonical",
    "request_to_canonical", "strip_routing_fields", "usage_of", "watch", "with_model",
    "with_stream",
]  # fmt: skip

NAME = "anthropic_complete"
API = "complete"
ID = "compl_"
CARRIES = frozenset((Trait.SYSTEM, Trait.TURNS, Trait.STOP, Trait.TOP_K))
APPROXIMATES = {Trait.SYSTEM: "written before the first turn"}
NAMES = {Trait.SYSTEM: "prompt", Trait.TURNS: "prompt", Trait.STOP: "stop_sequences",
         Trait.TOP_K: "top_k"}  # fmt: skip
_DEFAULT_MAX_TOKENS = 4096
_TURN = re.compile(r"\n\n(Human|Assistant):")
_STOPS: dict[str, StopReason] = {"stop_sequence": "end", "max_tokens": "length"}


class CompleteRequest(RoutedHead, gc=False):
    """The typed part of a request; bounds are Anthropic's documented ones or wide safety caps."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    prompt: Annotated[str, Meta(min_length=1)]
    max_tokens_to_sample: Annotated[int, Meta(ge=1, le=10_000_000)]
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    stop_sequences: list[str] | None = None
    metadata: Any = None

    @property
    def affinity(self) -> str | None:
        """What keeps a client on one shard."""
        return user_id(self.metadata)

    @property
    def usage_wanted(self) -> bool:
        """This dialect has no place for usage."""
        return False


_decode_request = msgspec.json.Decoder(CompleteRequest).decode


def decode_request(body: bytes) -> CompleteRequest:
    """Check a request body; raises ``InvalidRequest`` naming the field."""
    return typed(_decode_request, body)


def request_to_canonical(body: bytes) -> ModelRequest:
    """Read a whole request; raises ``InvalidRequest`` naming the field."""
    fields = Fields(parse(body))
    system, messages = _turns(fields.need_text("prompt"))
    metadata = fields.table("metadata")
    known: dict[str, Any] = {
        "model": fields.need_text("model"),
        "max_tokens": fields.whole("max_tokens_to_sample"),
        "temperature": fields.number("temperature"),
        "top_p": fields.number("top_p"),
        "top_k": fields.whole("top_k"),
        "stop": texts(fields.take("stop_sequences"), "stop_sequences"),
        "stream": bool(fields.flag("stream")),
    }
    return ModelRequest(
        source=NAME,
        names=NAMES,
        system=system,
        messages=messages,
        user=user_id(metadata),
        metadata=metadata,
        extra=fields.rest(),
        **known,
    )


def _turns(prompt: str) -> tuple[tuple[TextBlock, ...], tuple[Message, ...]]:
    """The transcript as turns; what the assistant already said stays its last words."""
    parts = _TURN.split(prompt)
    if len(parts) == 1:
        raise wrong("prompt", r"a transcript that begins with \n\nHuman:")
    before = parts[0].strip()
    messages: list[Message] = []
    for who, words in zip(parts[1::2], parts[2::2], strict=True):
        role: Literal["user", "assistant"] = "user" if who == "Human" else "assistant"
        said = words.strip()
        if said:
            messages.append(Message(role, (TextBlock(said),), "prompt"))
    return ((TextBlock(before),) if before else ()), tuple(messages)


def request_from_canonical(request: ModelRequest) -> bytes:
    """Write a whole request; raises ``InvalidRequest`` for what a transcript cannot say."""
    require(request, NAME, CARRIES)
    prompt = "\n\n".join(block.text for block in request.system)
    for message in request.messages:
        who = "Assistant" if message.role == "assistant" else "Human"
        words = "".join(b.text for b in message.blocks if isinstance(b, TextBlock))
        prompt += f"\n\n{who}: {words}"
    if not request.messages or request.messages[-1].role != "assistant":
        prompt += "\n\nAssistant:"
    limit = request.max_tokens
    out: dict[str, Any] = {
        "model": request.model,
        "prompt": prompt,
        "max_tokens_to_sample": _DEFAULT_MAX_TOKENS if limit is None else limit,
    }
    options = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop_sequences": list(request.stop) or None,
        "metadata": {"user_id": request.user} if request.user else None,
        "stream": request.stream or None,
    }
    out |= {name: value for name, value in options.items() if value is not None}
    return orjson.dumps(out | (request.extra if request.source == NAME else {}))


# -- replies ----------------------------------------------------------------------------------


def reply_to_canonical(body: bytes) -> ModelReply:
    """Read an upstream's whole reply; raises ``BackendFailure`` when it is not one."""
    try:
        fields = Fields(parse(body))
        words = fields.need_text("completion")
        reason = fields.text("stop_reason")
        stop = _stop(reason, fields.text("stop")) if reason else None
        return ModelReply(
            id=fields.text("id") or "",
            model=fields.text("model") or "",
            choices=(ReplyChoice((TextBlock(words),) if words else (), stop),),
            source=NAME,
        )
    except InvalidRequest as e:
        raise bad_body(f"no completion: {e.message}") from None


def _stop(reason: str, sequence: str | None) -> StopReason:
    """Ending at the next human turn is this dialect's ordinary end."""
    if reason == "stop_sequence" and sequence not in (None, "\n\nHuman:"):
        return "stop_sequence"
    return _STOPS.get(reason, "end")


def reply_from_canonical(
    reply: ModelReply,
    request: ModelRequest | None = None,  # noqa: ARG001 - every codec's signature
) -> bytes:
    """Write a whole reply; only words fit."""
    choice = reply.choices[0] if reply.choices else ReplyChoice(())
    words = [b.text for b in choice.blocks if isinstance(b, TextBlock | RefusalBlock)]
    stop, sequence = choice.stop, choice.stop_sequence
    return orjson.dumps(_wire(reply.id, reply.model, "".join(words), stop, sequence))


def _wire(
    reply_id: str, model: str, words: str, stop: StopReason | None, sequence: str | None
) -> dict[str, Any]:
    length = stop in ("length", "context", "abort")  # not at its end, and no word says why
    return {
        "type": "completion",
        "id": own_id(reply_id, ID),
        "completion": words,
        "stop_reason": None if stop is None else "max_tokens" if length else "stop_sequence",
        "stop": sequence,
        "model": model,
    }


def usage_of(body: bytes) -> Usage | None:
    """None: replies of this dialect hold no usage; raises ``ValueError`` when it is no reply."""
    msgspec.json.decode(body, type=dict)
    return None


# -- streams ----------------------------------------------------------------------------------


class _Event(Struct):
    type: str = ""
    id: str | None = None
    model: str | None = None
    completion: str | None = None
    stop_reason: str | None = None
    stop: str | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class CompleteDecoder:
    """Events ``completion`` to canonical ones."""

    __slots__ = ("_cutter", "_open", "_over", "_started")

    def __init__(self) -> None:
        self._cutter = EventCutter()
        self._started = False
        self._open = False
        self._over = False

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """Take bytes, cut anywhere; raises ``BackendFailure`` when they are no such stream."""
        out: list[StreamEvent] = []
        for _, data in self._cutter.feed(chunk):
            if self._over:
                break
            try:
                self._read(_decode(data), out)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
                raise bad_body(f"an event that is none: {e}") from None
        return out

    def close(self) -> list[StreamEvent]:
        """The upstream is done."""
        if self._over:
            return []
        self._over = True
        return [ReplyFailed(truncated())]

    def _read(self, event: _Event, out: list[StreamEvent]) -> None:
        if event.type == "ping":
            out.append(Ping())
        elif event.type == "error":
            self._over = True
            out.append(ReplyFailed(of_object(event.error)))
        elif event.type == "completion":
            if not self._started:
                self._started = True
                out.append(ReplyStart(event.id or "", event.model or ""))
            if event.completion:
                if not self._open:
                    self._open = True
                    out.append(BlockStart(0, TextBlock("")))
                out.append(TextDelta(0, event.completion))
            if event.stop_reason:
                self._over = True
                if self._open:
                    out.append(BlockStop(0))
                stop = _stop(event.stop_reason, event.stop)
                sequence = event.stop if stop == "stop_sequence" else None
                out += [ReplyStop(stop, sequence), ReplyEnd()]


class CompleteEncoder:
    """Canonical events to ``completion`` events; only the words of the first choice fit."""

    __slots__ = ("_id", "_model", "_stop")

    def __init__(self, request: ModelRequest) -> None:  # noqa: ARG002 - every codec's signature
        """Nothing of the request matters."""
        self._id = ""
        self._model = ""
        self._stop: ReplyStop | None = None

    def encode(self, event: StreamEvent) -> bytes:
        """The bytes of one event; empty where this dialect says nothing."""
        if isinstance(event, TextDelta):
            return self._event(event.text, None, None)
        if isinstance(event, ReplyStart):
            self._id, self._model = event.id, event.model
        elif isinstance(event, ReplyStop):
            self._stop = event
        elif isinstance(event, ReplyEnd):
            stop = self._stop or ReplyStop("end")
            return self._event("", stop.stop, stop.stop_sequence)
        elif isinstance(event, ReplyFailed):
            return error_event(event.error)
        elif isinstance(event, Ping):
            return b'event: ping\ndata: {"type":"ping"}\n\n'
        return b""

    def _event(self, words: str, stop: StopReason | None, sequence: str | None) -> bytes:
        return named_event(b"completion", _wire(self._id, self._model, words, stop, sequence))


StreamDecoder = CompleteDecoder
StreamEncoder = CompleteEncoder


# -- the passed-through stream --------------------------------------------------------------------

_MARKS = (b'"stop_reason":"', b'"stop_reason": "', b"event: error", b'"type":"error"')


def watch() -> StreamWatch:
    """A tap; the stream must end with a ``completion`` that has a stop reason."""
    return StreamWatch(_MARKS, _look)


def _look(seen: StreamWatch, _name: bytes, data: bytes) -> None:
    try:
        event = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if event.type == "error":
        seen.failed = True
    elif event.stop_reason:
        seen.ended = True
        seen.finish_reason = event.stop_reason
