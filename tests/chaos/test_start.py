"""Starting: in under three seconds, ready when it says so, and a clear no when it cannot."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.chaos.conftest import StartHost
from tests.conftest import require
from tests.support.host import Host
from tests.support.load import Crowd
from tests.support.mounts import can_mount, tmpfs
from tests.support.raw import RawClient
from tests.support.wait import accepts, free_port, wait_for

COLD_START_S = 3.0
REFUSAL_S = 2.0


@pytest.mark.alone
def test_a_cold_start_takes_three_seconds_and_tells_the_truth(
    start_host: StartHost, slack: float
) -> None:
    """Whoever asks during the boot gets a connection that waits, or 503, never a false yes."""
    port = free_port()
    host = start_host("--port", str(port), start=False, workers=2)
    host.folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with host.stdout_path.open("wb") as out, host.stderr_path.open("wb") as err:
        child = subprocess.Popen(
            host.command, stdout=out, stderr=err, env=host.environment, start_new_session=True
        )
    try:
        wait_for(lambda: accepts("127.0.0.1", port), 20, "the port")
        answers = []

        def ready() -> bool:
            with RawClient(f"http://127.0.0.1:{port}") as client:
                answers.append(client.request("GET", "/ready").status)
            return answers[-1] == 200

        wait_for(ready, 30, "readiness")
        took_s = time.monotonic() - began
        print(f"ready after {took_s:.2f} s")
        assert took_s < COLD_START_S * slack
        assert {slot["state"] for slot in host.status()["slots"]} == {"ready"}
        assert set(answers[:-1]) <= {503}, answers
        wait_for(lambda: "tpo-mp ready" in host.stdout_path.read_text(), 10, "the ready line")
    finally:
        child.terminate()
        assert child.wait(20) == 0


@pytest.mark.alone
@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ("[server]\nmax_bdy_bytes = 1\n", "server.max_bdy_bytes", "max_body_bytes"),
        ("[server]\nmax_body_bytes = 1\n", "server.max_body_bytes", "1024"),
        ("[server]\nport = \n", "tpo.toml", "line 2"),
        ('[[backends]]\nname = "a"\nkind = "telepathy"\n', "backends[0].kind", "telepathy"),
    ],
)
def test_a_wrong_config_is_refused_with_file_key_and_reason(
    start_host: StartHost, slack: float, text: str, key: str, reason: str
) -> None:
    """Exit 2 in under two seconds, before anything was bound or started."""
    host = start_host(start=False)
    host.folder.mkdir(parents=True, exist_ok=True)
    host.config_path = host.folder / "tpo.toml"
    host.config_path.write_text(text)
    code, took_s = host.fails()
    print(f"{took_s:.2f} s: {host.stderr}")
    assert code == 2
    assert took_s < REFUSAL_S * slack
    for part in (str(host.config_path), key, reason):
        assert part in host.stderr
    assert "Traceback" not in host.stderr
    assert not host.state_dir.exists() or not list(host.state_dir.iterdir())


def check_no_memory(host: Host) -> None:
    """A host without room for its memory says so and leaves nothing; no process dies of it."""
    code, _ = host.fails()
    print(host.stderr)
    assert code == 3
    assert "Traceback" not in host.stderr
    assert "Fatal" not in host.stderr
    assert "memory" in host.stderr
    assert host.stdout_path.read_text() == ""
    assert not host.shared_names()
    assert not [path for path in host.state_dir.iterdir() if path.name.startswith("registry")]


def test_shared_memory_that_does_not_fit_is_refused(start_host: StartHost) -> None:
    """A limit on sizes: allocation fails at the start, not a write in the middle of a call."""
    check_no_memory(start_host(start=False, prefix=["prlimit", "--fsize=1048576"]))


def test_a_state_directory_without_room_is_refused(start_host: StartHost) -> None:
    """The registry lies on a tmpfs of 64 KiB: no bus error, one line."""
    require(can_mount(), "the right to mount")
    host = start_host(start=False)
    with tmpfs(host.state_dir, "64k"):
        check_no_memory(host)


def test_a_small_shared_memory_mount_is_no_obstacle(start_host: StartHost) -> None:
    """A container has 64 MiB of it: the registry lies in the state directory then, and is said."""
    require(can_mount(), "the right to mount")
    script = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    host = start_host(prefix=["unshare", "--mount", "sh", "-c", script, "sh"])
    passed_over = host.event("registry_on_disk")
    assert passed_over["no_room_on"] == "/dev/shm"
    assert (host.state_dir / "registry").is_file()
    assert not (host.state_dir / "registry").is_symlink()
    with Crowd(host.url, 20, stream=False) as crowd:
        crowd.ended()
    assert crowd.outcomes() == {"ok": 20}
    host.end()
    assert not (host.state_dir / "registry").exists()


def test_ports_that_are_taken_are_named(start_host: StartHost) -> None:
    """A second host on the same port, and on the same state directory, gets its own exit code."""
    first = start_host(workers=1)
    second = start_host("--port", str(first.port), start=False, workers=1)
    code, _ = second.fails()
    assert code == 6
    assert f"address in use: 127.0.0.1:{first.port}" in second.stderr
    third = start_host(start=False, workers=1)
    third.state_dir = Path(first.state_dir)
    code, _ = third.fails()
    assert code == 5
    assert "already running" in third.stderr
    assert first.ask("/ready").status == 200
    first.stop()
