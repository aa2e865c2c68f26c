"""Whole answers: limits, stops, choices, formats, counts."""

from __future__ import annotations

import json
from typing import Any

from tests.support.fake_codec import asked, finished
from tpo_mp.dialects.canonical import ModelReply, TextBlock
from tpo_mp.simulator.answers import MOST_TEXT, Composer, Speech
from tpo_mp.simulator.tokens import count
from tpo_mp.types import Dialect

FIVE = Speech(strategy="fixed", text="one two three four five")


def answer(speech: Speech, text: str = "hello", **more: Any) -> ModelReply:
    """Compose a chat answer."""
    return finished(Composer(speech).compose(asked(text, **more), Dialect.OPENAI_CHAT, b"k"))


def said(reply: ModelReply, choice: int = 0) -> str:
    """The words of a choice."""
    return "".join(b.text for b in reply.choices[choice].blocks if isinstance(b, TextBlock))


def test_limit_cuts_exactly() -> None:
    """At the limit it ends by itself, below it by length."""
    assert (said(answer(FIVE)), answer(FIVE).choices[0].stop) == (FIVE.text, "end")
    assert answer(FIVE, max_tokens=5).choices[0].stop == "end"
    short = answer(FIVE, max_tokens=2)
    assert (said(short), short.choices[0].stop) == ("one two", "length")
    assert short.usage is not None
    assert short.usage.completion == 2


def test_first_stop_sequence_wins() -> None:
    """The earliest in the text; after the limit it is not reached."""
    stopped = answer(FIVE, stop=["four", "two"])
    assert (said(stopped), stopped.choices[0].stop_sequence) == ("one ", "two")
    assert answer(FIVE, stop=["five"], max_tokens=2).choices[0].stop == "length"


def test_thoughts_spend_the_limit_too() -> None:
    """A reasoning model with a small limit says nothing at all."""
    reply = answer(FIVE, model="o3", max_completion_tokens=4)
    assert (said(reply), reply.choices[0].stop) == ("", "length")
    assert reply.usage is not None
    assert (reply.usage.completion, reply.usage.reasoning) == (4, 4)


def test_choices_are_each_their_own() -> None:
    """And all are counted."""
    reply = answer(Speech(), n=3)
    assert len({said(reply, i) for i in range(3)}) == 3
    assert reply.usage is not None
    assert reply.usage.completion == sum(count(said(reply, i)) for i in range(3))


def test_json_formats_are_json() -> None:
    """Any object, or one that fits."""
    assert json.loads(said(answer(FIVE, response_format={"type": "json_object"})))
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": [1]}}}
    assert said(answer(FIVE, response_format=form)) == "[1]"


def test_echo_of_a_huge_prompt_is_bounded() -> None:
    """As a real model's answer is."""
    assert len(said(answer(Speech(strategy="echo"), "word " * 100_000))) == MOST_TEXT


def test_seed_of_the_request_changes_the_answer_through_its_key() -> None:
    """Same key, same words; another key, others."""
    composer = Composer(Speech())
    texts = [
        said(finished(composer.compose(asked(), Dialect.OPENAI_CHAT, key)))
        for key in (b"a", b"a", b"b")
    ]
    assert texts[0] == texts[1] != texts[2]
