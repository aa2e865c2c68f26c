"""No descriptor left, and more connections than a queue holds: slow, never spinning, never down."""

from __future__ import annotations

import json
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.chaos.conftest import StartHost
from tests.support.host import Host, kill
from tests.support.innards import listener, needs_linux
from tests.support.load import Crowd
from tests.support.raw import RawClient, ask, build, chat
from tests.support.wait import wait_for

MOST_CPU = 0.2
SPARE_FDS = 4
QUEUE, LONG_QUEUE, FLOOD = 128, 4096, 256
CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
BODY = json.dumps(chat()).encode()


@contextmanager
def short_queue(host: Host) -> Iterator[None]:
    """Make the queue of the only listener short for as long as the context lasts."""
    with listener(host) as queue:
        queue.listen(QUEUE)
        yield
        queue.listen(LONG_QUEUE)


def cpu_share(pid: int, seconds: float = 1.5) -> float:
    """The share of a core that a process uses over that time."""
    process = psutil.Process(pid)
    before, began = process.cpu_times(), time.monotonic()
    wait_for(lambda: time.monotonic() - began >= seconds, seconds + 5, "the time to pass")
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return used / (time.monotonic() - began)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit")
def test_a_worker_without_descriptors_waits_and_recovers(start_host: StartHost) -> None:
    """Accepting pauses without a busy loop; open connections are served; then all is well."""
    host = start_host(workers=1)
    host.warm()
    worker = host.slot(0)["pid"]
    limits = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        served = stack.enter_context(RawClient(host.url))
        assert served.post_json(CHAT, chat()).status == 200
        fds = len(list(Path(f"/proc/{worker}/fd").iterdir()))
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (fds + SPARE_FDS, limits[1]))
        wait_for(lambda: "accepting_paused" in host.stderr, 5, "a pause")
        late = [stack.enter_context(RawClient(host.url, timeout_s=20)) for _ in range(40)]
        for client in late:
            client.send(build("POST", CHAT, {"Host": client.host, **JSON}, BODY))
        share = cpu_share(worker)
        print(f"used {share:.3f} of a core without a descriptor")
        assert share < MOST_CPU
        assert len(list(Path(f"/proc/{worker}/fd").iterdir())) <= fds + SPARE_FDS
        assert served.post_json(CHAT, chat()).status == 200
        assert ask(host.ops, "/ready").status == 200
        resource.prlimit(worker, resource.RLIMIT_NOFILE, limits)
        for client in late:
            assert client.read_reply().status == 200
    assert host.slot(0)["pid"] == worker
    host.stop()


def connected(client: socket.socket) -> bool:
    """Whether the kernel has answered its first packet."""
    try:
        client.getpeername()
    except OSError:
        return False
    return True


def test_a_queue_that_overflows_and_a_storm_after_it_are_weathered(start_host: StartHost) -> None:
    """More than the backlog holds, then a thousand at once: all served, readiness unmoved."""
    needs_linux()
    host = start_host(workers=1)
    host.warm()
    worker = psutil.Process(host.slot(0)["pid"])
    with ExitStack() as stack:
        with short_queue(host):
            kill(host.pid, signal.SIGSTOP)  # it would take the worker for hung
            worker.suspend()
            waiting = []
            for _ in range(FLOOD):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", host.port))
                waiting.append(client)
            left_out = sum(not connected(client) for client in waiting)
            print(f"{left_out} of {len(waiting)} did not fit")
            assert left_out, "the queue overflows"
            assert ask(host.ops, "/ready").status == 200
        worker.resume()
        kill(host.pid, signal.SIGCONT)
    with Crowd(host.url, 1000, stream=False, patience_s=30) as crowd:
        ready = [ask(host.ops, "/ready").status for _ in range(5)]
        crowd.ended()
    assert crowd.outcomes() == {"ok": 1000}
    assert set(ready) == {200}
    assert host.slot(0)["pid"] == worker.pid
    assert not host.events("worker_hangs")
    host.stop()
