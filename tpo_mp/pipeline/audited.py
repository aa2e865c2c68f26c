"""What was said in one call, for its record: the newest words of the user, and the answer.

A streamed answer is read while it goes by.  All else is read when the call is booked: its client
has its answer by then and does not wait.

Invariants: a text has ``max_bytes`` of UTF-8 at most, and a reply goes by unchanged; a
body longer than ``MOST_READ`` is not taken apart, so that no turn of the loop is long.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import orjson

from tpo_mp.dialects.prompt_context import question_of
from tpo_mp.types import Call, Dialect, Reply, Tap

from .codecs import GENERATES
from .taps import Tapped, tap

MOST_READ: Final = 256 << 10
INPUT, OUTPUT = 1, 2


class Said(NamedTuple):
    """The two texts, ``None`` when there is none to keep; ``cut`` has a bit for each cut off."""

    input: str | None
    output: str | None
    cut: int


class Audited:
    """Holds on to a call's text until its record is made."""

    __slots__ = ("_body", "_cut", "_max_bytes", "_output", "_reply")

    def __init__(self, body: bytes | None, max_bytes: int) -> None:
        """``body`` is what the client sent, ``None`` when its words are not kept."""
        self._body = body
        self._max_bytes = max_bytes
        self._reply: Reply | None = None
        self._output: str | None = None
        self._cut = False

    def listen(self, call: Call, reply: Reply) -> None:
        """Hear what the model says; of dialects that the gateway does not speak, nothing."""
        if call.dialect not in GENERATES:
            return
        if reply.stream is None:
            self._reply = reply
        else:
            tap(call, reply, Tap.TEXT, self._heard, limit_bytes=self._max_bytes)

    def said(self, call: Call, room: int) -> Said:
        """What to write down, each text in ``room`` bytes; the call is over."""
        room, cut = min(room, self._max_bytes), 0
        asked, answered = None, None
        if self._body is not None:
            asked, was_cut = question(call.dialect, self._body, room)
            cut |= INPUT * was_cut
        if self._reply is not None:
            self._read(call, self._reply)
        if self._output is not None:
            answered, was_cut = within(self._output, room)
            cut |= OUTPUT * (was_cut or self._cut)
        return Said(asked, answered, cut)

    def _read(self, call: Call, reply: Reply) -> None:
        body = reply.body or b""
        if len(body) > MOST_READ:
            self._output, self._cut = body[: self._max_bytes].decode("utf-8", "ignore"), True
        else:
            tap(call, reply, Tap.TEXT, self._heard, limit_bytes=self._max_bytes)

    def _heard(self, seen: Tapped) -> None:
        self._output, self._cut = seen.text, seen.cut


def question(dialect: Dialect, body: bytes, room: int) -> tuple[str, bool]:
    """The newest words of the user, or the body where there are none; and whether that is cut.

    What is newest in a long body is most often at its end: that is the part which stands for it.
    """
    if len(body) > MOST_READ:
        return body[len(body) - room :].decode("utf-8", "ignore"), True
    try:
        asked = question_of(dialect, orjson.loads(body), len(body))
    except ValueError:
        asked = ""
    return within(asked or body.decode("utf-8", "replace"), room)


def within(text: str, room: int) -> tuple[str, bool]:
    """As much of a text's beginning as has room, in bytes, and whether something was cut off."""
    data = text.encode("utf-8", "replace")
    if len(data) <= room:
        return data.decode(), False
    return data[:room].decode("utf-8", "ignore"), True
