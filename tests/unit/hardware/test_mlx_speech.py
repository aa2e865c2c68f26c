"""Tokens of a real tokenizer become text, thoughts and calls, whole and in pieces."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.support import tiny_model
from tpo_mp.dialects.canonical import (
    ReplyStop,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)

mlx_lm = pytest.importorskip("mlx_lm")

from hardware.mlx_engine.job import DrawnToken, TokenOdds  # noqa: E402
from hardware.mlx_engine.speech import SpokenAnswer, StopFilter, Voice  # noqa: E402

CALL = '{"name": "weather", "arguments": {"city": "Zürich"}}'


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Voice:
    """The tiny model's tokenizer, taught marks of thoughts and calls."""
    from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
    from mlx_lm.tool_parsers import json_tools
    from transformers import AutoTokenizer

    folder = tiny_model.build_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<think>", "</think>"])
    return Voice(
        TokenizerWrapper(
            tokenizer, BPEStreamingDetokenizer, tool_call_start="<tool_call>",
            tool_call_end="</tool_call>", tool_parser=json_tools.parse_tool_call,
        )
    )  # fmt: skip


def tokens_of(voice: Voice, text: str) -> list[int]:
    """The tokens of a text."""
    found: list[int] = voice.tokenizer.encode(text, add_special_tokens=False)
    return found


def speak(
    voice: Voice, text: str, finish: str = "stop", **options: Any
) -> tuple[SpokenAnswer, list[Any]]:
    """Say a text token by token, and end as a model does."""
    speech, events = SpokenAnswer(voice, **options), []
    tokens = tokens_of(voice, text)
    for n, token in enumerate(tokens):
        last = finish == "length" and n == len(tokens) - 1
        events += speech.hear(DrawnToken(token, "length" if last else None, None))
        if speech.done:
            return speech, events
    if finish == "stop":
        events += speech.hear(DrawnToken(1, "stop", None))
    return speech, events


def said(events: list[Any]) -> str:
    """The text of all pieces."""
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_text_comes_in_pieces_that_make_the_whole(voice: Voice) -> None:
    """Characters of several tokens are said once they are complete."""
    text = "hello Zürich 🎉 and ٗ more"
    speech, events = speak(voice, text)
    assert said(events) == text
    assert "\ufffd" not in "".join(e.text for e in events if isinstance(e, TextDelta))
    assert speech.reply().blocks == (TextBlock(text),)
    assert events[-1] == ReplyStop("end", None, 0)


def test_half_a_character_at_the_end_is_replaced(voice: Voice) -> None:
    """What never becomes a character is one replacement, valid Unicode."""
    tokens = tokens_of(voice, "a🎉")
    speech, events = SpokenAnswer(voice), list[Any]()
    for n, token in enumerate(tokens[:-1]):
        events += speech.hear(DrawnToken(token, "length" if n == len(tokens) - 2 else None, None))
    assert said(events).startswith("a")
    assert "\ufffd" in said(events)
    assert events[-1].stop == "length"
    said(events).encode()


@pytest.mark.parametrize("stop", ["ürich", " 🎉", "e", "lo Zü", "more"])
def test_stop_string_is_found_wherever_its_tokens_end(voice: Voice, stop: str) -> None:
    """Nothing of it is said, nor of what follows."""
    text = "hello Zürich 🎉 and more"
    speech, events = speak(voice, text, stops=[stop])
    assert said(events) == text.split(stop, maxsplit=1)[0]
    assert speech.stopped == stop
    assert speech.reply().stop == "stop_sequence"
    assert speech.reply().stop_sequence == stop


def test_beginning_of_a_stop_string_is_said_after_all(voice: Voice) -> None:
    """At the end, and when it goes on otherwise."""
    _, events = speak(voice, "one two thr", stops=["three", "two too"])
    assert said(events) == "one two thr"


def test_stop_filter_is_the_same_however_text_is_cut(seed: int) -> None:
    """Against a search in the whole text."""
    rng = random.Random(seed)
    for _ in range(2000):
        text = "".join(rng.choices("ab", k=rng.randint(0, 30)))
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 3))]
        places = [text.find(stop) for stop in stops if stop in text]
        wanted = text[: min(places)] if places else text
        filter_, got, rest = StopFilter(stops), "", text
        stopped = None
        while rest and stopped is None:
            cut = rng.randint(1, 4)
            piece, stopped = filter_.feed(rest[:cut])
            got, rest = got + piece, rest[cut:]
        got += "" if stopped else filter_.rest()
        # A stop that ends later may begin earlier: what was said before it was seen stays said.
        assert text.startswith(got), (seed, text, stops)
        if len(stops) == 1:
            assert got == wanted, (seed, text, stops)


def test_thoughts_are_told_apart(voice: Voice) -> None:
    """By the model's own marks, or from the prompt on."""
    speech, events = speak(voice, "<think>so so</think>then")
    assert speech.reply().blocks == (ThinkingBlock("so so"), TextBlock("then"))
    assert "".join(e.text for e in events if isinstance(e, ThinkingDelta)) == "so so"
    assert said(events) == "then"
    speech, _ = speak(voice, "so so</think>then", thinks_first=True)
    assert speech.reply().blocks == (ThinkingBlock("so so"), TextBlock("then"))
    assert voice.thinks_first(tokens_of(voice, "ask<think>"))
    assert not voice.thinks_first(tokens_of(voice, "<think>a</think>"))


def test_calls_come_as_calls(voice: Voice) -> None:
    """Two in a row, after words; the reason to stop says so."""
    text = f"let me see <tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>"
    speech, events = speak(voice, text, tools=[{"type": "function"}])
    words, first, second = speech.reply().blocks
    assert words == TextBlock("let me see ")
    for call in (first, second):
        assert isinstance(call, ToolUseBlock)
        assert (call.name, call.arguments) == ("weather", '{"city":"Zürich"}')
    assert first != second
    assert events[-1] == ReplyStop("tool_use", None, 0)


def test_what_is_no_call_is_text(voice: Voice) -> None:
    """A model may write anything between the marks; nothing is lost."""
    speech, events = speak(voice, "<tool_call>not json</tool_call>after")
    assert said(events) == "not jsonafter"
    assert speech.reply().stop == "end"
    speech, events = speak(voice, f"<tool_call>{CALL[:-4]}", finish="length")
    assert said(events) == CALL[:-4]
    assert speech.reply().stop == "length"


def test_log_probabilities_go_with_their_text(voice: Voice) -> None:
    """Every token has its row, in pieces and in the whole, held back or not."""
    tokens = tokens_of(voice, "hello Zürich 🎉")
    speech, events = SpokenAnswer(voice, stops=["zzz"]), []
    for n, token in enumerate(tokens):
        row = TokenOdds(-0.5 - n, ((token, -0.5 - n), (7, -9.0)))
        events += speech.hear(DrawnToken(token, None, row))
    events += speech.hear(DrawnToken(1, "stop", TokenOdds(-0.1, ())))
    rows = [row for e in events if isinstance(e, TextDelta) for row in e.logprobs or ()]
    assert [row["logprob"] for row in rows] == [-0.5 - n for n in range(len(tokens))]
    assert speech.reply().logprobs == rows
    assert bytes(rows[0]["bytes"]).decode() == rows[0]["token"]
    assert len(rows[0]["top_logprobs"]) == 2
