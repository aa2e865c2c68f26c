"""Tags of a call: plain words, each once, and not too many."""

from __future__ import annotations

import pytest

from tpo_mp.dialects.tags import MOST, tags_of
from tpo_mp.errors import InvalidRequest


@pytest.mark.parametrize(
    ("said", "tags"),
    [
        (b"nightly", ("nightly",)),
        (b" nightly ,team:search,, nightly", ("nightly", "team:search")),
        (b"", ()),
        (b"me@here/1.0", ("me@here/1.0",)),
    ],
)
def test_words_are_read_in_their_order(said: bytes, tags: tuple[str, ...]) -> None:
    """Blanks and repetitions count for nothing."""
    assert tags_of(said) == tags


@pytest.mark.parametrize("said", [b"two words", b"x" * 65, b"caf\xe9", b'"q"', b"a,b;c"])
def test_what_is_no_word_is_told(said: bytes) -> None:
    """With the name of the header."""
    with pytest.raises(InvalidRequest) as refused:
        tags_of(said)
    assert refused.value.param == "x-tpo-tags"


def test_there_are_so_many_at_most() -> None:
    """A record has little room."""
    words = [b"t%d" % n for n in range(MOST + 1)]
    assert len(tags_of(b",".join(words[:MOST]))) == MOST
    with pytest.raises(InvalidRequest, match="at most"):
        tags_of(b",".join(words))
