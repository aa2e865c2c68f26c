"""A host of shards in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.fake_shards import FakeHost

MakeHost = Callable[..., FakeHost]


@pytest.fixture
def make_host() -> Iterator[MakeHost]:
    """Make hosts that are given back at the test's end."""
    made: list[FakeHost] = []

    def make(*args: Any, **options: Any) -> FakeHost:
        made.append(FakeHost(*args, **options))
        return made[-1]

    yield make
    for host in made:
        host.close()


@pytest.fixture
def host(make_host: MakeHost) -> FakeHost:
    """Two shards."""
    return make_host()
