"""Starting, reloading, rolling and stopping a gateway while clients use it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest

from tests.conftest import StartGateway
from tests.support.gateway import Gateway
from tests.support.raw import ClosedEarlyError, RawClient, chat
from tests.support.toml import NO_CACHE, backend
from tests.support.upstream import Upstream
from tests.support.wait import accepts, wait_for

CHAT = "/v1/chat/completions"
ECHO = '[[backends]]\nname = "echo"\nkind = "echo"\nmodels = ["{0}"]\n'


@pytest.fixture
def folder(short_tmp: Path) -> Iterator[Path]:
    """A folder for a gateway that is not meant to start."""
    made = Path(tempfile.mkdtemp(dir=short_tmp))
    yield made
    shutil.rmtree(made)


class Asking:
    """Clients that ask without pause and remember every answer that was not 200."""

    def __init__(self, url: str, clients: int = 3) -> None:
        self.url = url
        self.answered = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def _ask(self, number: int) -> None:
        asked = 0
        while not self._stop.is_set():
            try:
                with RawClient(self.url) as client:
                    asked += 1
                    headers = {"X-Session-Id": f"{number}-{asked}"}
                    reply = client.post_json(CHAT, chat("keep asking"), headers)
            except (OSError, ClosedEarlyError) as exc:
                self.failures.append(repr(exc))
            else:
                self.answered += 1
                if reply.status != 200:
                    self.failures.append(f"{reply.status} {reply.body!r}")


def test_reload_changes_what_is_served_and_fails_nobody(start_gateway: StartGateway) -> None:
    """A changed file is served after ``reload``, on the same processes."""
    gateway = start_gateway(config=ECHO.format("echo"), workers=2)
    assert gateway.config_path is not None
    pids = gateway.worker_pids()
    with Asking(gateway.url) as asking:
        for name in ("one", "two", "three"):
            gateway.config_path.write_text(ECHO.format(f'echo", "{name}'))
            done = gateway.tpo("reload")
            assert done.returncode == 0, done
            for _ in range(6):
                assert gateway.ask(CHAT, chat("hi", model=name)).status == 200
    assert asking.failures == []
    assert asking.answered > 0
    assert gateway.worker_pids() == pids


def test_refused_reload_changes_nothing(start_gateway: StartGateway) -> None:
    """The command fails with path and suggestion; the old config serves on."""
    gateway = start_gateway(config=ECHO.format("echo"))
    assert gateway.config_path is not None
    gateway.config_path.write_text(ECHO.format("echo").replace("models", "modles"))
    done = gateway.tpo("reload")
    assert done.returncode != 0
    assert "modles" in done.stderr
    assert "models" in done.stderr
    assert gateway.ask(CHAT, chat()).status == 200


@pytest.mark.timeout(150)
def test_rolling_restart_replaces_every_worker_and_fails_nobody(
    start_gateway: StartGateway,
) -> None:
    """New processes on the same sockets, with clients asking all the while."""
    gateway = start_gateway(workers=2)
    before = set(gateway.worker_pids())
    with Asking(gateway.url) as asking:
        done = gateway.tpo("restart")
        assert done.returncode == 0, done
    assert asking.failures == []
    assert not before & set(gateway.worker_pids())


def stream(url: str, session: int) -> bytes:
    """Read a whole stream and answer its last event, or nothing if it broke off."""
    try:
        with RawClient(url, timeout_s=20) as client:
            body = chat("a long answer in twenty chunks", model="m", stream=True)
            return client.post_json(CHAT, body, {"X-Session-Id": str(session)}).events[-1]
    except (OSError, ClosedEarlyError):
        return b""


def test_stopping_lets_streams_finish(upstream: Upstream, start_gateway: StartGateway) -> None:
    """Open streams end with their terminal event; new connections are refused at once."""
    args = ("--backend", "openai", "--base-url", upstream.base_url)
    gateway = start_gateway(*args, workers=2)
    told = threading.Event()
    upstream.play(chunks=20, delay_s=0.02, rest_until=told)
    with ThreadPoolExecutor(8) as clients:
        streams = [clients.submit(stream, gateway.url, number) for number in range(8)]
        wait_for(lambda: upstream.counters.open == 8, 10, "eight streams open")
        gateway.send_signal(signal.SIGTERM)
        try:
            wait_for(lambda: not accepts("127.0.0.1", gateway.port), 5, "the port is closed")
            assert upstream.counters.open == 8
        finally:
            told.set()
        assert [ended.result() for ended in streams] == [b"[DONE]"] * 8
    assert gateway.wait() == 0


def test_a_connection_made_while_a_worker_leaves_is_its_own(
    upstream: Upstream, start_gateway: StartGateway
) -> None:
    """It gets the number of a listener that was let go, and nobody closes that a second time."""
    gateway = start_gateway(config=NO_CACHE + backend("m", upstream.base_url, max_concurrent=1))
    told = threading.Event()
    upstream.queue("answer", until=told, keep_alive=False)
    with ThreadPoolExecutor(2) as clients:
        calls = [clients.submit(stream, gateway.url, number) for number in range(2)]
        wait_for(lambda: gateway.metric("tpo_seat_open_calls") == 2, 10, "two calls open")
        gateway.send_signal(signal.SIGTERM)
        try:
            wait_for(lambda: not accepts("127.0.0.1", gateway.port), 5, "the port is closed")
        finally:
            told.set()
        assert [call.result() for call in calls] == [b"[DONE]"] * 2
    assert upstream.counters.connections == 2
    gateway.stop()  # nothing is in its log


def test_second_gateway_on_the_port_says_address_in_use(
    echo_gateway: Gateway, folder: Path
) -> None:
    """Exit code 6 and the address."""
    done = run(folder, "--port", str(echo_gateway.port))
    assert done.returncode == 6, done
    assert str(echo_gateway.port) in done.stderr


def test_second_gateway_on_the_state_directory_says_already_running(echo_gateway: Gateway) -> None:
    """Exit code 5; the running one is not disturbed."""
    done = run(echo_gateway.state_dir, "--port", "0")
    assert done.returncode == 5, done
    assert echo_gateway.ask("/ready").status == 200


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--backend", "ehco"), "echo"),
        (("--host", "0.0.0.0"), "insecure"),
        (("--workers", "none"), "workers"),
        (("--config", "/nowhere/tpo.toml"), "/nowhere/tpo.toml"),
        (("--log-format", "xml"), "json"),
    ],
)
def test_wrong_options_are_exit_code_2_with_a_remedy(
    folder: Path, args: tuple[str, ...], said: str
) -> None:
    """A refused start says what would have been right, without a traceback."""
    done = run(folder, "--port", "0", *args)
    assert done.returncode == 2, done
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def run(state_dir: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run ``serve`` expecting it to end by itself."""
    command = Gateway(state_dir).command[:4]
    return subprocess.run(
        [*command, "--ops-port", "0", "--state-dir", str(state_dir), *args],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_quick_stop_ends_in_time_with_a_stream_open(
    upstream: Upstream, start_gateway: StartGateway
) -> None:
    """INT does not wait for streams."""
    gateway = start_gateway("--backend", "openai", "--base-url", upstream.base_url)
    upstream.play("endless", delay_s=0.02)
    with ThreadPoolExecutor(1) as clients:
        clients.submit(stream, gateway.url, 0)
        wait_for(lambda: upstream.counters.open == 1, 10, "the stream is open")
        gateway.stop(signal.SIGINT, timeout_s=20)
