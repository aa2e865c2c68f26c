"""Query parameters: read once, bounded, refused by name."""

from __future__ import annotations

import pytest

from tpo_mp.errors import InvalidRequest
from tpo_mp.http import query
from tpo_mp.http.head import Head


def head(raw: bytes) -> Head:
    """A head with a query string."""
    made = Head()
    made.query = raw
    return made


def test_parameters_are_decoded_and_may_be_empty() -> None:
    """Percent signs, plus signs and nothing at all."""
    assert query.parameters(head(b"a=1&b=x%20y+z&c=")) == {"a": "1", "b": "x y z", "c": ""}
    assert query.parameters(head(b"")) == {}


def test_parameter_given_twice_is_refused() -> None:
    """Nobody guesses which one was meant."""
    with pytest.raises(InvalidRequest, match="twice"):
        query.parameters(head(b"a=1&a=1"))


@pytest.mark.parametrize("raw", ["-1", "301", "nan", "inf", "soon", ""])
def test_numbers_out_of_range_name_their_parameter(raw: str) -> None:
    """From 0 to the most, and finite."""
    with pytest.raises(InvalidRequest) as refused:
        query.number({"wait": raw}, "wait", 0.0, 300)
    assert refused.value.param == "wait"
    assert query.number({}, "wait", 7.0, 300) == 7.0
    assert query.number({"wait": "2.5"}, "wait", 7.0, 300) == 2.5


@pytest.mark.parametrize("raw", ["0", "201", "1.5", "1e2", "٣", "-1", " 1", "1" * 30])
def test_whole_numbers_out_of_range_name_their_parameter(raw: str) -> None:
    """ASCII digits between the two ends."""
    with pytest.raises(InvalidRequest) as refused:
        query.whole({"limit": raw}, "limit", 20, least=1, most=200)
    assert refused.value.param == "limit"
    assert query.whole({}, "limit", 20, least=1, most=200) == 20
    assert query.whole({"limit": "200"}, "limit", 20, least=1, most=200) == 200


def test_words_are_chosen_from_a_list() -> None:
    """Anything else is refused with the list."""
    assert query.choice({"filter": "error"}, "filter", ("error", "pending")) == "error"
    assert query.choice({}, "filter", ("error",)) is None
    with pytest.raises(InvalidRequest, match="error, pending") as refused:
        query.choice({"filter": "Error"}, "filter", ("error", "pending"))
    assert refused.value.param == "filter"
