"""Every frame that crosses a ring comes out as it went in, and an older peer reads a newer one."""

from __future__ import annotations

from typing import Any, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.errors import BY_CODE, from_wire
from tpo_mp.shm import frames
from tpo_mp.shm.frames import HEAD, Kind, decoder, frame

FRAMES = sorted(frames._Frame.__subclasses__(), key=lambda kind: kind.__name__)
TEXT = st.text(max_size=50)
SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    bytes: st.binary(max_size=200),
    int: st.integers(-(1 << 62), 1 << 62),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    type(None): st.none(),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Draw values of a frame field's type."""
    if hint in SIMPLE:
        return SIMPLE[hint]
    parts: tuple[Any, ...] = getattr(hint, "__args__", ())
    if getattr(hint, "__origin__", None) is tuple:
        return st.tuples(*(values(p) for p in parts))
    if getattr(hint, "__origin__", None) is list:
        return st.lists(values(parts[0]), max_size=4)
    return st.one_of(*(values(p) for p in parts))


@pytest.mark.parametrize("kind", FRAMES, ids=lambda kind: kind.__name__)
@given(data=st.data(), stream=st.integers(0, (1 << 32) - 1))
def test_frames_round_trip(kind: Any, data: st.DataObject, stream: int) -> None:
    """Fields, head and payload."""
    hints = get_type_hints(kind)
    made = kind(**{name: data.draw(values(hints[name])) for name in kind.__struct_fields__})
    record = frame(Kind.CALL, stream, made)
    assert frames.head(record) == (Kind.CALL, stream)
    assert decoder(kind).decode(frames.payload(record)) == made


@pytest.mark.parametrize("kind", FRAMES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_frames_may_grow_at_the_end(kind: Any, data: st.DataObject) -> None:
    """A field an older process does not know is skipped."""
    hints = get_type_hints(kind)
    made = kind(**{name: data.draw(values(hints[name])) for name in kind.__struct_fields__})
    grown = msgspec.msgpack.encode([*msgspec.structs.astuple(made), "new", {"x": 1}])
    assert decoder(kind).decode(grown) == made


def test_kinds_fit_their_byte_and_differ() -> None:
    """The first byte says what follows."""
    assert all(0 < kind < 256 for kind in Kind)
    assert HEAD.size == 5


@given(st.sampled_from(sorted(BY_CODE)), TEXT, TEXT, st.none() | TEXT,
       st.none() | st.floats(0, 1e6), st.integers(400, 599), st.binary(max_size=99))  # fmt: skip
def test_errors_cross_as_what_they_are(
    code: str, reason: str, message: str, param: str | None, retry: float | None, status: int,
    lines: bytes,
) -> None:  # fmt: skip
    """Class, reason, words, field, retry time, status and header lines."""
    error = BY_CODE[code](
        message, reason=reason, param=param, retry_after_s=retry, status=status, lines=lines
    )
    again = from_wire(msgspec.msgpack.decode(msgspec.msgpack.encode(error.to_wire())))
    assert type(again) is type(error)
    assert again.to_wire() == error.to_wire()
    assert str(again) == message
