"""Actors of this suite, and both kinds of platform."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.actor import Actor, StartActor


@pytest.fixture
def actor() -> Iterator[StartActor]:
    """Start actors and leave none behind."""
    with ExitStack() as running:

        def start(verb: str, *args: object, fds: tuple[int, ...]) -> Actor:
            made = Actor("tests.integration.shm_rows.actors", verb, *args, fds=fds)
            running.callback(made.close)
            return made

        yield start


@pytest.fixture(params=["native", "portable"], autouse=True)
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run everything twice: as here, and as where Linux's calls are missing."""
    kind: str = request.param
    if kind == "portable":
        monkeypatch.setenv("TPO_PORTABLE", "1")
    return kind
