"""Time for the HTTP tests."""

from __future__ import annotations

import pytest

from tests.support.fake_net import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the edge, the upstream client and the wheel read."""
    return Clock(monkeypatch)
