"""Lets a stage watch a reply go by: its bytes, its frames or its text.

===========  ===============================================================================
``BYTES``    a raw copy, dropped once it is over its limit
``FRAMES``   how many events there were, the first, the last, and the end of the stream
``TEXT``     what the model said in its first choice, read with the call's dialect, up to a limit
===========  ===============================================================================

A tap is told once how the reply ended: whole, failed or given up.
A whole body is a reply of one frame, and its tap is told at once.

Invariants: nothing is held back, reordered or changed; memory per tap is bounded by its limit;
several taps of one reply share one pass of its bytes; usage and finish reason are the reply's own,
known when a tap is told.
Known weakness: a defect in what a tap does with its findings fails the call, as one in ``after``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeAlias

import msgspec

from tpo_mp.dialects.canonical import ModelReply, RefusalBlock, TextBlock, TextDelta
from tpo_mp.dialects.codec import EventDecoder
from tpo_mp.dialects.sse import EventCutter
from tpo_mp.errors import Cancelled, TpoError
from tpo_mp.types import Call, Reply, Stream, Tap

from .between import Between
from .codecs import GENERATES, codec
from .delivery import UnexpectedError

TAIL_BYTES = 4096
LIMIT_BYTES = 1 << 20


class Tapped:
    """What a tap saw; fields of other taps than the one asked for keep their defaults.

    ``error`` is ``None`` when the reply is whole, ``Cancelled`` when nobody wanted the rest.
    ``body`` is ``None``, and ``text`` what came so far, when there was more than the limit;
    ``cut`` says so.
    """

    __slots__ = ("body", "cut", "error", "first", "frames", "last", "tail", "text")

    def __init__(self) -> None:
        self.error: TpoError | None = None
        self.cut = False
        self.body: bytes | None = None
        self.frames = 0
        self.first = self.last = self.tail = b""
        self.text = ""


Done: TypeAlias = Callable[[Tapped], object]


def tap(call: Call, reply: Reply, kind: Tap, done: Done, *, limit_bytes: int = LIMIT_BYTES) -> None:
    """Watch ``reply`` and tell ``done`` what was seen, once, at its end.

    A stage calls it in ``after`` (or with what ``proceed`` answered) and passes the reply on.
    ``limit_bytes`` bounds what ``BYTES`` and ``TEXT`` keep.
    """
    watch = _WATCHES[kind](call, limit_bytes)
    stream = reply.stream
    if stream is None:
        _look(watch, watch.whole, reply.body or b"")
        watch.close()
        done(watch.seen)
    elif isinstance(stream, _Tapped):
        stream.add(watch, done)
    else:
        tapped = reply.stream = _Tapped(stream)
        tapped.add(watch, done)


def _look(watch: _Watch, see: Callable[[bytes], None], data: bytes) -> bool:
    """Show it what passes; whether it can follow.

    What is not in its dialect after all is ended by its own layer: a tap only looks.
    """
    try:
        see(data)
    except (TpoError, msgspec.MsgspecError, ValueError):
        watch.seen.cut = True
        return False
    return True


class _Watch(Protocol):
    """One tap at work."""

    seen: Tapped

    def whole(self, body: bytes) -> None: ...

    def data(self, chunk: bytes) -> None: ...

    def close(self) -> None: ...


class _Bytes:
    """A raw copy."""

    def __init__(self, _call: Call, limit_bytes: int) -> None:
        self.seen = Tapped()
        self._limit = limit_bytes
        self._parts: list[bytes] = []
        self._size = 0

    def whole(self, body: bytes) -> None:
        self.data(body)

    def data(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._limit:
            self.seen.cut = True
            self._parts = []
        else:
            self._parts.append(chunk)

    def close(self) -> None:
        self.seen.body = None if self.seen.cut else b"".join(self._parts)
        self._parts = []


class _Frames:
    """Counts events; keeps the first, the last and the end."""

    def __init__(self, _call: Call, _limit_bytes: int) -> None:
        self.seen = Tapped()
        self._cutter = EventCutter()

    def whole(self, body: bytes) -> None:
        seen = self.seen
        seen.frames = 1
        seen.first = seen.last = body
        seen.tail = body[-TAIL_BYTES:]

    def data(self, chunk: bytes) -> None:
        seen = self.seen
        for _, data in self._cutter.feed(chunk):
            if not seen.frames:
                seen.first = data
            seen.frames += 1
            seen.last = data
        seen.tail = (seen.tail + chunk)[-TAIL_BYTES:]

    def close(self) -> None:
        """Nothing is kept back."""


class _Text:
    """Reads what the model says; other choices than the first are left out."""

    def __init__(self, call: Call, limit_bytes: int) -> None:
        self.seen = Tapped()
        self._left = limit_bytes
        self._parts: list[str] = []
        self._speaks = call.dialect in GENERATES
        self._dialect = call.dialect
        self._decoder: EventDecoder | None = None

    def whole(self, body: bytes) -> None:
        if self._speaks:
            self._keep(_first_text(codec(self._dialect).reply_to_canonical(body)))

    def data(self, chunk: bytes) -> None:
        if not self._speaks or self.seen.cut:  # nothing more is kept, so nothing more is read
            return
        if self._decoder is None:
            self._decoder = codec(self._dialect).StreamDecoder()
        for event in self._decoder.feed(chunk):
            if type(event) is TextDelta and not event.choice:
                self._keep(event.text)

    def _keep(self, text: str) -> None:
        if self._left <= 0:
            self.seen.cut = self.seen.cut or bool(text)
            return
        self._left -= len(text.encode("utf-8", "surrogatepass"))
        if self._left < 0:
            self.seen.cut = True
            text = text.encode("utf-8", "surrogatepass")[: self._left].decode("utf-8", "ignore")
        self._parts.append(text)

    def close(self) -> None:
        self.seen.text = "".join(self._parts)
        self._parts = []


def _first_text(reply: ModelReply) -> str:
    blocks = reply.choices[0].blocks if reply.choices else ()
    return "".join(b.text for b in blocks if isinstance(b, TextBlock | RefusalBlock))


_WATCHES: dict[Tap, Callable[[Call, int], _Watch]] = {
    Tap.BYTES: _Bytes,
    Tap.FRAMES: _Frames,
    Tap.TEXT: _Text,
}


class _Tapped(Between):
    """A stream on its way through any number of taps."""

    __slots__ = ("_ended", "_follow", "_taps")

    def __init__(self, origin: Stream) -> None:
        super().__init__(origin)
        self._taps: list[tuple[_Watch, Done]] = []
        self._follow: list[_Watch] = []
        self._ended = False

    def add(self, watch: _Watch, done: Done) -> None:
        """One more."""
        self._taps.append((watch, done))
        self._follow.append(watch)

    def cancel(self) -> None:
        super().cancel()
        try:
            self._tell(Cancelled("nobody wanted the rest"))
        except Exception as e:  # noqa: BLE001 - the call is over: only the log can be told
            asyncio.get_running_loop().call_exception_handler(
                {"message": "defect in a tap", "exception": e}
            )

    def data(self, chunk: bytes) -> None:
        sink = self._sink
        if sink is None:
            return
        for watch in self._follow:
            if not _look(watch, watch.data, chunk):
                self._follow = [other for other in self._follow if other is not watch]
        sink.data(chunk)

    def end(self, error: TpoError | None) -> None:
        sink, self._sink = self._sink, None
        try:
            self._tell(error)
        except Exception as e:  # noqa: BLE001 - a defect in a feature fails its call, not the shard
            error = UnexpectedError(e)
        if sink is not None:
            sink.end(error)

    def _tell(self, error: TpoError | None) -> None:
        if self._ended:
            return
        self._ended = True
        defect: Exception | None = None
        for watch, done in self._taps:
            watch.close()
            watch.seen.error = error
            try:
                done(watch.seen)
            except Exception as e:  # noqa: BLE001 - the other taps must hear of the end too
                defect = defect or e
        self._taps, self._follow = [], []
        if defect is not None:
            raise defect
