"""The shard is what surfaces were promised, and so is the fake they are tested with."""

from __future__ import annotations

import inspect

import pytest

from tests.support.fake_gateway import FakeGateway
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.worker.owner import Owner

PROMISED = [
    name for name, member in vars(Gateway).items()
    if inspect.isfunction(member) and not name.startswith("_")
]  # fmt: skip


@pytest.mark.parametrize("kept", [Owner, FakeGateway])
@pytest.mark.parametrize("name", PROMISED)
def test_every_promise_is_kept(kept: type, name: str) -> None:
    """By name, by the parameters surfaces pass, and by whether it must be awaited."""
    promised, found = getattr(Gateway, name), getattr(kept, name)
    wanted = inspect.signature(promised).parameters
    given = inspect.signature(found).parameters
    assert list(given)[: len(wanted)] == list(wanted)
    extra = [given[p] for p in list(given)[len(wanted) :]]
    assert all(p.default is not inspect.Parameter.empty for p in extra)
    assert inspect.iscoroutinefunction(found) == inspect.iscoroutinefunction(promised)
