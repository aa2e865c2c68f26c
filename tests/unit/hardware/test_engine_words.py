"""Wordings of engines' own completions: whatever the reads of a stream, the same is said."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from hardware.llama_completion import LlamaCompletion
from hardware.vllm_generate import VllmGenerate
from tpo_mp.errors import BackendFailure, InvalidRequest
from tpo_mp.types import Call

ASKED = json.dumps(
    {"model": "m", "prompt": "pré", "stream": True, "stream_options": {"include_usage": True}}
).encode()
TEXTS = ("pré", "préa", "préaß", "préaß…")
LLAMA = b"".join(
    b"data: %b\n\n" % json.dumps(event).encode()
    for event in (
        *({"content": word, "stop": False} for word in ("a", "ß", "…")),
        {"content": "", "stop": True, "stop_type": "limit", "tokens_evaluated": 4,
         "tokens_predicted": 3},
    )
)  # fmt: skip
GENERATE = b"\n".join(json.dumps({"text": [text]}).encode() for text in TEXTS)


def call() -> Call:
    """A call of which only the number matters."""
    return Call(id="1", model="m", body=ASKED, stream=True, started_at=0.0)


@pytest.mark.parametrize(
    ("made", "stream", "finish"),
    [(LlamaCompletion, LLAMA, "length"), (VllmGenerate, GENERATE, None)],
    ids=["llama", "generate"],
)
def test_reads_of_any_size(
    made: Callable[[bytes, Call], LlamaCompletion | VllmGenerate], stream: bytes, finish: str | None
) -> None:
    """Characters cut in two included."""
    for size in range(1, len(stream) + 1, 3):
        wording = made(ASKED, call())
        pieces = (stream[at : at + size] for at in range(0, len(stream), size))
        out = b"".join([*map(wording.feed, pieces), wording.close()])
        events = [event.removeprefix(b"data: ") for event in out.split(b"\n\n") if event]
        assert events.pop() == b"[DONE]"
        chunks = [json.loads(event) for event in events]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        assert "".join(choice["text"] for choice in choices) == "aß…"
        assert choices[-1]["finish_reason"] == finish


def test_what_is_no_stream_of_theirs() -> None:
    """Refused as the upstream's fault."""
    for made, noise in ((LlamaCompletion, b"data: [1]\n\n"), (VllmGenerate, b"[1]\n")):
        with pytest.raises(BackendFailure):
            made(ASKED, call()).feed(noise)
    with pytest.raises(BackendFailure):
        VllmGenerate(ASKED, call()).feed(b"x" * (9 << 20))
    with pytest.raises(BackendFailure):
        VllmGenerate(ASKED, call()).close()


def test_prompts_in_numbers_cannot_be_said() -> None:
    """The client is told the field."""
    body = json.dumps({"model": "m", "prompt": [1, 2]}).encode()
    for made in (LlamaCompletion, VllmGenerate):
        with pytest.raises(InvalidRequest) as refused:
            made(body, call())
        assert refused.value.param == "prompt"
