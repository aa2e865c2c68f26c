"""Hosts for control's tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.integration.control.host import ControlHost


class StartHost(Protocol):
    """Makes a host with a running control; it is gone at the test's end."""

    def __call__(self, folder: Path | None = None, **options: Any) -> ControlHost: ...


@pytest.fixture
def start_host(tmp_path: Path) -> Iterator[StartHost]:
    """Start hosts, by default in the test's own folder."""
    with ExitStack() as running:

        def start(folder: Path | None = None, **options: Any) -> ControlHost:
            return running.enter_context(ControlHost(folder or tmp_path, **options))

        yield start


@pytest.fixture
def host(start_host: StartHost) -> ControlHost:
    """One host."""
    return start_host()
