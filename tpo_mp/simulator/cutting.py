"""Where an answer ends: at a stop sequence or a limit of tokens.

Invariants: a cut text is a beginning of the whole one; of a text that never changes, the ways to
cut it off are remembered, up to a number.
"""

from __future__ import annotations

from typing import Final

from tpo_mp.dialects.canonical import ModelRequest, ReplyChoice, StopReason, TextBlock

from .tokens import LONGEST, count, pieces

MOST_CUTS: Final = 64
"""Ways to cut off that are remembered of one text."""
MOST_MARKS: Final = 256
"""Characters of the stop sequences of a way that is remembered."""


def within(
    text: str, limit: int | None, stop: tuple[str, ...]
) -> tuple[str, StopReason, str | None]:
    """A text up to its first stop sequence or its limit of tokens, whichever comes first."""
    ends = [(at, mark) for mark in stop if mark and (at := text.find(mark)) >= 0]
    reason: StopReason = "end"
    sequence = None
    if ends:
        at, sequence = min(ends)
        text, reason = text[:at], "stop_sequence"
    if limit is not None:
        parts = pieces(text[: LONGEST * (limit + 2)])
        if len(parts) > limit:
            return "".join(parts[:limit]), "length", None
    return text, reason, sequence


class FixedAnswers:
    """The choices of a model that always says the same, by where a request cuts it off."""

    __slots__ = ("_known", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._known: dict[tuple[int | None, tuple[str, ...]], tuple[ReplyChoice, int, int]] = {}

    def choice(self, request: ModelRequest) -> tuple[ReplyChoice, int, int]:
        """The choice, its tokens, and that none of them is a thought."""
        return self.cut(request.max_tokens, request.stop)

    def cut(self, limit: int | None, marks: tuple[str, ...] = ()) -> tuple[ReplyChoice, int, int]:
        """The same, of a request with this limit and these stop sequences."""
        key = limit, marks
        found = self._known.get(key)
        if found is None:
            said, stop, sequence = within(self._text, *key)
            found = ReplyChoice((TextBlock(said),), stop, sequence), count(said), 0
            if len(self._known) < MOST_CUTS and sum(map(len, marks)) <= MOST_MARKS:
                self._known[key] = found
        return found
