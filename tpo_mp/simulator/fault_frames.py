"""Faults in what a stream says: events broken, doubled, emptied or miscounted, and its early end.

They are done to the frames before anybody paces them, so a fault that comes after three tokens
does so exactly.

Invariants: frames before the fault are untouched; a broken connection or an error event is the
``TpoError`` that the frames end with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson

from tpo_mp.errors import BackendFailure, ConnectionCut, TpoError

from .orders import FaultOrder

Frame = tuple[bytes, int]
"""One event's bytes, and how many tokens it has."""

_TEXTS: Final = ("content", "text", "delta", "arguments", "partial_json", "thinking", "completion",
                 "reasoning_content", "refusal")  # fmt: skip
"""Fields that hold a piece of what is said, in all dialects."""
_COUNTS_OUT: Final = ("completion_tokens", "output_tokens", "candidatesTokenCount")
_USAGES: Final = ("usage", "usageMetadata")


def struck(frames: Iterator[Frame], fault: FaultOrder) -> Iterator[Frame]:
    """The frames with the fault in them; kinds that belong to time or to writes change nothing."""
    if fault.kind == "wrong_usage":
        return ((_each_event(data, miscounted), tokens) for data, tokens in frames)
    ends = _ENDS.get(fault.kind)
    if ends is not None:
        return _ended(frames, fault.after, ends)
    change = _CHANGES.get(fault.kind)
    return frames if change is None else _changed(frames, fault.after, change)


def spoilt(body: bytes, fault: FaultOrder) -> bytes:
    """A whole body with the fault in it."""
    if fault.kind in ("malformed", "truncate"):
        return broken(body)
    return miscounted(body) if fault.kind == "wrong_usage" else body


def cut(reason: str = "simulated_disconnect") -> ConnectionCut:
    """The end of a connection that tells the client nothing."""
    return ConnectionCut("the simulated provider cut the connection", reason=reason)


def broken(event: bytes) -> bytes:
    """Half an event, or half a body: framed, but no JSON."""
    end = b"\n\n" if event.endswith(b"\n\n") else b""
    half = event[: max(len(event) * 2 // 3, 1)].rstrip(b"\n")
    return half + end


def emptied(data: bytes) -> bytes:
    """The same JSON with nothing said in it."""
    try:
        told = orjson.loads(data)
    except orjson.JSONDecodeError:
        return data
    _blank(told)
    return orjson.dumps(told)


def miscounted(data: bytes) -> bytes:
    """The same JSON with twice the tokens written, so that its counts do not add up."""
    if b'"usage' not in data:
        return data
    try:
        told = orjson.loads(data)
    except orjson.JSONDecodeError:
        return data
    _miscount(told)
    return orjson.dumps(told)


def _ended(
    frames: Iterator[Frame], after: int, ends: Callable[[], TpoError | None]
) -> Iterator[Frame]:
    for met, frame in _met(frames, after):
        if met:
            error = ends()
            if error is not None:
                raise error
            return
        yield frame


def _changed(
    frames: Iterator[Frame], after: int, change: Callable[[bytes], bytes]
) -> Iterator[Frame]:
    done = False
    for met, (data, tokens) in _met(frames, after):
        if met and not done:
            done = True
            yield change(data), tokens
        else:
            yield data, tokens


def _met(frames: Iterator[Frame], after: int) -> Iterator[tuple[bool, Frame]]:
    """Each frame, and whether it has tokens and so many or more went before it."""
    before = 0
    for frame in frames:
        data, tokens = frame
        yield tokens > 0 and bool(data) and before >= after, frame
        before += tokens


def _failure() -> BackendFailure:
    said = "the simulated model failed in the middle of its answer"
    return BackendFailure(said, reason="server_error", status=500)


_ENDS: Final[dict[str, Callable[[], TpoError | None]]] = {
    "disconnect": cut,
    "reset": lambda: cut(ConnectionCut.RESET),
    "error": _failure,
    "truncate": lambda: None,
}
_CHANGES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "malformed": broken,
    "duplicate": lambda data: data + data,
    "empty": lambda data: _each_event(data, emptied),
}


def _each_event(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Change the JSON of every ``data:`` line."""
    lines = data.split(b"\n")
    for at, line in enumerate(lines):
        if line.startswith(b"data:") and b"{" in line:
            lines[at] = b"data: " + change(line[5:].strip())
    return b"\n".join(lines)


def _blank(told: Any) -> None:
    """Empty every text inside, in place."""
    if isinstance(told, dict):
        for name, value in told.items():
            if isinstance(value, str) and name in _TEXTS:
                told[name] = ""
            else:
                _blank(value)
    elif isinstance(told, list):
        for value in told:
            _blank(value)


def _miscount(told: Any) -> None:
    if isinstance(told, list):
        for value in told:
            _miscount(value)
    if not isinstance(told, dict):
        return
    for name, value in told.items():
        if name not in _USAGES:
            _miscount(value)
        elif isinstance(value, dict):
            for count in _COUNTS_OUT:
                if isinstance(value.get(count), int):
                    value[count] = 2 * value[count] + 1
