"""Each dialect has its codec, found by name."""

from __future__ import annotations

import pytest

from tpo_mp.dialects import support
from tpo_mp.pipeline.codecs import GENERATES, codec
from tpo_mp.types import Dialect


@pytest.mark.parametrize("dialect", Dialect)
def test_every_dialect_has_a_codec(dialect: Dialect) -> None:
    """The parts that a passed-through call needs."""
    found = codec(dialect)
    assert found is codec(dialect)
    for part in ("decode_request", "usage_of", "error_body", "error_event", "error_status"):
        assert callable(getattr(found, part)), part


def test_what_generates_is_what_the_dialects_say() -> None:
    """The table of the docs and the translation know the same dialects."""
    assert {str(dialect) for dialect in GENERATES} == set(support.CODECS)


@pytest.mark.parametrize("dialect", sorted(GENERATES))
def test_codec_of_a_generating_dialect_bears_its_name(dialect: Dialect) -> None:
    """The name in a call and the codec's own are the same."""
    assert dialect == codec(dialect).NAME
    assert codec(dialect) is support.CODECS[dialect]
