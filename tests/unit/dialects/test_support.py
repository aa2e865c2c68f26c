"""The table of what translates: read off the codecs, and true."""

from __future__ import annotations

import re

import pytest

from tests.support.dialects import FOUR
from tpo_mp.dialects import support
from tpo_mp.dialects.canonical import Trait
from tpo_mp.errors import NotFound


@pytest.mark.parametrize("name", support.CODECS)
def test_declarations_agree(name: str) -> None:
    """What is approximated is carried; what clients can ask for is carried by their own dialect."""
    codec = support.codec(name)
    assert name == codec.NAME
    assert set(codec.APPROXIMATES) <= codec.CARRIES
    assert set(codec.NAMES) <= codec.CARRIES
    assert re.fullmatch(r"[a-z/_]+", codec.API)


def test_the_table_has_a_cell_for_everything() -> None:
    """One row per trait, one column per dialect, none empty."""
    rows = support.support_table().splitlines()[2:]
    assert len(rows) == len(Trait)
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 1 + len(support.CODECS)
        assert all(cells)


def test_refusals_name_the_clients_field() -> None:
    """A pair's refusals are fields of the client's dialect."""
    assert support.UNSUPPORTED["openai_chat", "anthropic_messages"]["seed"] == "seed"
    assert support.UNSUPPORTED["anthropic_messages", "openai_responses"]["stop sequences"] == (
        "stop_sequences"
    )
    assert {pair for pair in support.UNSUPPORTED if set(pair) <= set(FOUR)} == {
        (a, b) for a in FOUR for b in FOUR if a != b
    }


def test_answers_are_of_four_kinds() -> None:
    """Carried, said in other words, refused, or impossible to ask for."""
    chat, messages = support.codec("openai_chat"), support.codec("anthropic_messages")
    assert support.answer(chat, messages, Trait.SYSTEM) == "yes"
    assert support.answer(chat, messages, Trait.REASONING) == "approx"
    assert support.answer(chat, messages, Trait.SEED) == "refused"
    assert support.answer(messages, chat, Trait.SEED) == ""


def test_an_unknown_dialect_is_an_error() -> None:
    """Names are checked where they are looked up."""
    with pytest.raises(NotFound):
        support.codec("morse")
