"""Faults in what a stream says: where they come, what they change, how they end."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tpo_mp.errors import BackendFailure, ConnectionCut, TpoError
from tpo_mp.simulator.fault_frames import broken, emptied, miscounted, spoilt, struck
from tpo_mp.simulator.orders import FaultOrder, fault_of


def event(told: object) -> bytes:
    """An event with this JSON."""
    return b"data: " + json.dumps(told).encode() + b"\n\n"


def said(text: str) -> bytes:
    """A piece of a chat."""
    return event({"id": "x", "choices": [{"index": 0, "delta": {"content": text}}]})


FRAMES = [
    (event({"role": "assistant"}), False),
    (said("a"), True),
    (said("b"), True),
    (said("c"), True),
    (event({"usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}}), False),
    (b"data: [DONE]\n\n", False),
]


def taken(words: str) -> tuple[bytes, TpoError | None]:
    """All that goes before the end, and the end."""
    out = b""
    frames: Iterator[tuple[bytes, int]] = struck(iter(FRAMES), fault_of(words, "x"))
    try:
        for data, _ in frames:
            out += data
    except TpoError as error:
        return out, error
    return out, None


WHOLE = b"".join(data for data, _ in FRAMES)
TWO = b"".join(data for data, _ in FRAMES[:3])


@pytest.mark.parametrize(
    ("words", "kind", "reason"),
    [
        ("disconnect_after=2", ConnectionCut, "simulated_disconnect"),
        ("reset_after=2", ConnectionCut, ConnectionCut.RESET),
        ("error_after=2", BackendFailure, "server_error"),
        ("truncate_after=2", None, ""),
    ],
)
def test_end_comes_after_exactly_so_many_tokens(
    words: str, kind: type[TpoError] | None, reason: str
) -> None:
    """What went before is untouched; a truncated stream ends as if that were all."""
    out, error = taken(words)
    assert out == TWO
    if kind is None:
        assert error is None
    else:
        assert isinstance(error, kind)
        assert error.reason == reason


def test_fault_after_more_tokens_than_there_are_changes_nothing() -> None:
    """The stream is over before it."""
    for kind in ("disconnect", "truncate", "duplicate", "malformed", "empty", "error", "reset"):
        assert taken(f"{kind}_after=3") == (WHOLE, None)


def test_duplicate_says_one_event_twice() -> None:
    """The one after the tokens that were counted."""
    out, _ = taken("duplicate_after=1")
    assert out == WHOLE.replace(said("b"), said("b") + said("b"))


def test_empty_event_says_nothing() -> None:
    """All its other fields stay."""
    out, _ = taken("empty_after=1")
    assert out.count(b"\n\n") == WHOLE.count(b"\n\n")
    changed = json.loads(out.split(b"\n\n")[2].removeprefix(b"data: "))
    assert changed == {"id": "x", "choices": [{"index": 0, "delta": {"content": ""}}]}


@pytest.mark.parametrize(
    "told",
    [
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hi"}},
        {"type": "response.output_text.delta", "delta": "hi", "item_id": "i"},
        {"choices": [{"text": "hi", "index": 0}]},
    ],
)
def test_every_dialects_texts_are_emptied(told: dict[str, object]) -> None:
    """And nothing else: types and ids are as they were."""
    assert json.loads(emptied(json.dumps(told).encode())) == json.loads(
        json.dumps(told).replace('"hi"', '""')
    )


def test_wrong_usage_does_not_add_up() -> None:
    """In a stream's last events and in a whole body; the answer itself is untouched."""
    out, _ = taken("wrong_usage")
    assert out.startswith(TWO.split(b"\n\n")[0])
    (usage,) = (json.loads(e[6:])["usage"] for e in out.split(b"\n\n") if b"usage" in e)
    assert usage["prompt_tokens"] + usage["completion_tokens"] != usage["total_tokens"]
    body = json.dumps({"content": "usage", "usage": {"input_tokens": 4, "output_tokens": 9}})
    assert json.loads(spoilt(body.encode(), FaultOrder("wrong_usage"))) == {
        "content": "usage", "usage": {"input_tokens": 4, "output_tokens": 19},
    }  # fmt: skip
    assert miscounted(b'{"content": "used"}') == b'{"content": "used"}'


def test_broken_event_stays_one_event() -> None:
    """So that a reader meets bad JSON, not a bad stream."""
    assert broken(b'data: {"a": "b"}\n\n').count(b"\n\n") == 1
    assert broken(b'{"a": "b"}') == b'{"a": '


def test_faults_of_time_and_writing_leave_the_words_alone() -> None:
    """They are somebody else's."""
    for words in ("stall_after=1", "trickle", "split", "coalesce", "slow"):
        assert taken(words) == (WHOLE, None)
