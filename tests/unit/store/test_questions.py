"""Keys of dead-letter questions."""

from __future__ import annotations

import pytest

from tpo_mp.store.questions import LetterQuery


@pytest.mark.parametrize(
    "query",
    [
        LetterQuery(),
        LetterQuery(limit=5, after=17),
        LetterQuery(tenant='we "quote"'),
        LetterQuery(session="s", since=1.5, oldest=True),
    ],
)
def test_a_query_survives_its_key(query: LetterQuery) -> None:
    """Both sides read the same query."""
    assert LetterQuery.from_key(query.key()) == query


@pytest.mark.parametrize(
    "key", ["", "0001-uuid", "{", '{"limit":0}', '{"limit":99999}', '{"sql":"drop"}', "{}x"]
)
def test_other_keys_are_no_query(key: str) -> None:
    """A call id or a malformed query is not taken for one."""
    assert LetterQuery.from_key(key) is None
