"""Several tokens in one event, as providers send them.

Invariants: texts joined are what they were; an event joins no two blocks or choices; an event that
has no token is never moved past one that has.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from tpo_mp.dialects.canonical import StreamEvent, TextDelta, ThinkingDelta, ToolInputDelta

from .events import Paced


def chunked(events: Iterator[Paced], sizes: Iterator[int]) -> Iterator[Paced]:
    """Join tokens of the same block into events of so many tokens each.

    A block that ends sooner ends the event; the rest of its size goes to the next.
    """
    left = 0
    joined: Paced | None = None
    for event, tokens in events:
        if not tokens:
            if joined is not None:
                yield joined
                joined = None
            yield event, 0
            continue
        if left <= 0:
            left = next(sizes)
        left -= tokens
        both = None if joined is None else _joined(joined[0], event)
        if joined is not None and both is not None:
            joined = both, joined[1] + tokens
        else:
            if joined is not None:
                yield joined
            joined = event, tokens
        if left <= 0:
            yield joined
            joined = None
    if joined is not None:
        yield joined


def _joined(one: StreamEvent, other: StreamEvent) -> StreamEvent | None:
    """Both in one, if they belong to one block; None: they do not."""
    if isinstance(one, TextDelta) and isinstance(other, TextDelta):
        rows = None if one.logprobs is None else [*one.logprobs, *(other.logprobs or ())]
        more: StreamEvent = replace(one, text=one.text + other.text, logprobs=rows)
    elif isinstance(one, ThinkingDelta) and isinstance(other, ThinkingDelta):
        more = replace(one, text=one.text + other.text)
    elif isinstance(one, ToolInputDelta) and isinstance(other, ToolInputDelta):
        more = replace(one, json=one.json + other.json)
    else:
        return None
    return more if (one.index, one.choice) == (other.index, other.choice) else None
