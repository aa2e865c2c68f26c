"""Every dialect has its codec, found by name and loaded when it is asked for."""

from __future__ import annotations

import pytest

from tpo_mp.pipeline.codecs import GENERATES, codec
from tpo_mp.types import Dialect


@pytest.mark.parametrize("dialect", list(Dialect))
def test_every_dialect_has_a_codec(dialect: Dialect) -> None:
    """The same one each time."""
    found = codec(dialect)
    assert codec(dialect) is found
    assert callable(found.usage_of)


@pytest.mark.parametrize("dialect", sorted(GENERATES))
def test_dialects_that_generate_can_be_translated(dialect: Dialect) -> None:
    """Both ways of a request."""
    found = codec(dialect)
    assert callable(found.request_to_canonical)
    assert callable(found.request_from_canonical)
    assert found.watch() is not found.watch()
