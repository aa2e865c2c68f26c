"""The page of dialects is what the codecs declare, and what they declare is what they do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.dialects import PLAIN, body
from tpo_mp.dialects.canonical import Trait
from tpo_mp.dialects.docs import render
from tpo_mp.dialects.support import CODECS, UNSUPPORTED
from tpo_mp.errors import InvalidRequest

PAGE = Path(__file__).parents[3] / "docs" / "dialects.md"


def test_page_is_up_to_date() -> None:
    """`scripts/docs` writes it."""
    assert PAGE.read_text() == render(), "run scripts/docs"


def test_every_dialect_and_trait_is_on_the_page() -> None:
    """Nobody has to read the code for it."""
    page = render()
    assert not [name for name in CODECS if f"`{name}`" not in page]
    assert not [trait for trait in Trait if f"| {trait} |" not in page]


@pytest.mark.parametrize(
    ("client", "backend", "field", "value"),
    [
        ("openai_chat", "anthropic_messages", "n", 2),
        ("openai_chat", "anthropic_messages", "seed", 1),
        ("openai_chat", "openai_responses", "n", 2),
        ("openai_responses", "openai_completions", "tools", [{"type": "function", "name": "f"}]),
    ],
)
def test_field_the_page_refuses_is_refused(
    client: str, backend: str, field: str, value: object
) -> None:
    """The declarations it is made of are the ones that refuse."""
    assert field in UNSUPPORTED[client, backend].values()
    request = CODECS[client].request_to_canonical(body(PLAIN[client], **{field: value}))
    with pytest.raises(InvalidRequest) as caught:
        CODECS[backend].request_from_canonical(request)
    assert caught.value.param == field
