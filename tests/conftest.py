"""Fixtures of every suite: gateways, upstreams, a real engine, seeds; missing services.

A service that is missing skips on a laptop and fails where ``CI`` is set.
"""

from __future__ import annotations

import fcntl
import gc
import importlib.util
import json
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import settings

from tests.support import javascript, tiny_model
from tests.support.effort import examples
from tests.support.gateway import Gateway
from tests.support.javascript import Node
from tests.support.tiny_model import MlxServer
from tests.support.upstream import Upstream

settings.register_profile("house", deadline=None, print_blob=True, max_examples=examples(100))
settings.load_profile("house")


class StartGateway(Protocol):
    """Starts a gateway that is stopped and checked at the test's end."""

    def __call__(
        self,
        *args: str,
        config: str | Path | None = None,
        workers: int = 1,
        env: dict[str, str] | None = None,
        verb: str = "serve",
    ) -> Gateway: ...


def pytest_configure(config: pytest.Config) -> None:
    """Give each test process cores of its own where there are enough.

    Every gateway pins its shards to the first cores it may use: side by side on a big machine they
    would all want the same two.
    """
    name = os.environ.get("PYTEST_XDIST_WORKER")
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if name is None or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // count
    if share >= 2:
        at = int(name.removeprefix("gw")) * share
        os.sched_setaffinity(0, cores[at : at + share])


def pytest_collection_finish() -> None:
    """Let no collection look at the tests themselves: there are more than ten thousand."""
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let a test that judges times run while no other process of this checkout's suite runs one.

    Who waits to be alone holds the gate, so that the others do not go in before it for ever.
    """
    how = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    room_file = item.config.rootpath / "pyproject.toml"
    with Path(__file__).open("rb") as gate, room_file.open("rb") as room:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, how)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # a child that was only forked holds it, too


def require(present: bool, what: str) -> None:
    """Skip without ``what`` on a laptop, fail without it in CI."""
    if present:
        return
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and this is CI")
    pytest.skip(f"{what} is not installed here")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The run's seed, printed with a failure; ``pytest --randomly-seed=N`` repeats it."""
    number: int = request.config.getoption("randomly_seed", 0)
    print(f"seed: {number}")
    return number


@pytest.fixture
def rng(seed: int) -> random.Random:
    """A random source that the printed seed repeats."""
    return random.Random(seed)


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A folder with a short path: a Unix socket's must fit into 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="tpo-") as folder:
        yield Path(folder)


@pytest.fixture
def start_gateway(short_tmp: Path) -> Iterator[StartGateway]:
    """Start gateways; each still running at the end must stop in good order."""
    with ExitStack() as running:

        def start(*args: str, **options: Any) -> Gateway:
            gateway = Gateway(Path(tempfile.mkdtemp(dir=short_tmp)), *args, **options)
            return running.enter_context(gateway)

        yield start


@pytest.fixture(scope="session")
def echo_gateway(short_tmp: Path) -> Iterator[Gateway]:
    """One two-shard gateway over echo, shared by the tests that only ask it things."""
    with Gateway(short_tmp / "echo", workers=2) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def simulator(short_tmp: Path) -> Iterator[Gateway]:
    """A two-worker ``tpo-mp simulate``: a provider for the tests that only ask it things."""
    with Gateway(short_tmp / "simulator", workers=2, verb="simulate") as gateway:
        yield gateway


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """An upstream that misbehaves on request."""
    with Upstream() as server:
        yield server


@pytest.fixture(scope="session")
def mlx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlxServer]:
    """A real ``mlx_lm`` server over a tiny model; one for all test processes."""
    require(importlib.util.find_spec("mlx_lm") is not None, "mlx-lm")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with _locked(shared / "mlx.lock"):
        server = _join_mlx(shared)
    yield server
    with _locked(shared / "mlx.lock"):
        _leave_mlx(shared)


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """Node with the pinned JavaScript clients, installed by whichever test process is first."""
    found = javascript.find_node()
    require(found is not None, f"node {javascript.OLDEST_MAJOR} or newer")
    assert found is not None
    with _locked(javascript.FOLDER / ".install.lock"):
        failure = javascript.install(found)
    require(not failure, f"the npm packages of tests/js ({failure})")
    yield found
    found.close()


def _join_mlx(shared: Path) -> MlxServer:
    record = shared / "mlx.json"
    if record.exists():
        known = json.loads(record.read_text())
        server = MlxServer(**known["server"])
    else:
        folder = tiny_model.build(shared / "tiny-model")
        server = tiny_model.start_mlx_server(folder, shared / "mlx.log")
        known = {"users": 0}
    facts = {"url": server.url, "model": server.model, "pid": server.pid}
    record.write_text(json.dumps({"users": known["users"] + 1, "server": facts}))
    return server


def _leave_mlx(shared: Path) -> None:
    record = shared / "mlx.json"
    known = json.loads(record.read_text())
    if known["users"] > 1:
        record.write_text(json.dumps(known | {"users": known["users"] - 1}))
        return
    record.unlink()
    os.kill(known["server"]["pid"], signal.SIGKILL)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
