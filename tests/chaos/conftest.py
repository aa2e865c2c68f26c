"""Gateways that are going to be hurt, in both modes, and how slow this machine is just now."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.effort import LONG
from tests.support.host import Host

IDLE_START_S = 0.15
"""What a fresh interpreter takes on the machine that the figures are for, when idle."""
MOST_SLACK = 8.0

StartHost = Callable[..., Host]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is chaos; the long forms run with ``TPO_LONG=1`` only."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.chaos)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(120))
            if item.get_closest_marker("slow") and not LONG:
                item.add_marker(pytest.mark.skip(reason="a long form: set TPO_LONG=1"))


@pytest.fixture(params=["native", "portable"])
def mode(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of a gateway: this machine's own paths, or every portable one."""
    return {"TPO_PORTABLE": "1"} if request.param == "portable" else {}


@pytest.fixture
def start_host(short_tmp: Path, mode: dict[str, str], seed: int) -> Iterator[StartHost]:
    """Start hosts of two workers in the test's mode; whatever still runs is killed at the end."""
    with ExitStack() as made:

        def start(*args: str, start: bool = True, **options: Any) -> Host:
            env = mode | {"TPO_FAILPOINTS_SEED": str(seed)} | options.pop("env", {})
            options.setdefault("workers", 2)
            host = Host(Path(tempfile.mkdtemp(dir=short_tmp)), *args, env=env, **options)
            made.callback(host.close)
            if start:
                host.start()
            return host

        yield start


@pytest.fixture
def slack() -> float:
    """How many times longer than on an idle machine things take here and now.

    The figures of the promises are for a machine that does nothing else; a test machine does.
    A short process start shows how fast the cores are, the load how many want them.
    The machines of continuous integration stand still for seconds at times: there it is the most.
    """
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import asyncio"], check=True, timeout=60)
    took_s = time.monotonic() - began
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    factor = min(max(took_s / IDLE_START_S, load, 1.0), MOST_SLACK)
    if os.environ.get("CI"):
        factor = MOST_SLACK
    print(
        f"slack: {factor:.2f} (an interpreter started in {took_s:.3f} s, load {load:.1f} per core)"
    )
    return factor
