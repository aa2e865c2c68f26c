"""Names of backends come and go with configurations, and the host's memory of them too."""

from __future__ import annotations

import fcntl
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

from tests.conftest import StartGateway
from tests.support.gateway import Gateway
from tests.support.innards import descriptors, needs_linux, shared
from tests.support.raw import chat
from tests.support.toml import ECHO, section
from tests.support.wait import wait_for
from tpo_mp.shm.shares import LINES, LOCK_ROW, NAME_BYTES, ShareSegment

CONFIG = ECHO.replace('"echo"', '"{name}"', 1) + "max_concurrent = 4\n"


def keepers(gateway: Gateway, name: str) -> int:
    """How many seats have a use for a name; none when nobody ever had."""
    memory = shared(gateway, ShareSegment.NAME)
    words = memoryview(memory).cast("Q")
    try:
        seats = words[2]
        digest = blake2b(name.encode(), digest_size=NAME_BYTES).digest()
        names = [memory[64 + n * NAME_BYTES : 64 + (n + 1) * NAME_BYTES] for n in range(LINES)]
        if digest not in names:
            return 0
        first = (64 + LINES * NAME_BYTES) // 8 + seats
        line = first + names.index(digest) * (2 + 2 * seats)
        return sum(words[line + 2 + seats : line + 2 + 2 * seats])
    finally:
        words.release()
        memory.close()


def test_a_backend_that_is_gone_is_forgotten(start_gateway: StartGateway) -> None:
    """By every worker, once its last configuration is; the one that came instead is known."""
    needs_linux()
    gateway = start_gateway(config=CONFIG.format(name="first"), workers=2)
    assert gateway.config_path is not None
    for name in ("second", "third", "fourth"):
        gateway.config_path.write_text(CONFIG.format(name=name))
        told = gateway.tpo("reload")
        assert told.returncode == 0, told
        assert gateway.ask("/v1/chat/completions", chat("hi")).status == 200
    assert keepers(gateway, "backend:fourth") >= 2
    wait_for(lambda: keepers(gateway, "backend:second") == 0, 50, "the second one forgotten")
    assert keepers(gateway, "backend:fourth") >= 2


def test_a_reload_is_not_refused_because_a_worker_stands_still(start_gateway: StartGateway) -> None:
    """One that names things meanwhile holds the others up, and they have their turn after it."""
    needs_linux()
    gateway = start_gateway(config=CONFIG.format(name="first"), workers=2)
    assert gateway.config_path is not None
    gateway.config_path.write_text(CONFIG.format(name="second"))
    locks = Path(f"/proc/{gateway.pid}/fd/{descriptors(gateway.pid, 'tpo-locks')[0]}")
    with locks.open("r+b") as held, ThreadPoolExecutor(1) as pool:
        fcntl.lockf(held, fcntl.LOCK_EX, 1, LOCK_ROW)
        told = pool.submit(gateway.tpo, "reload")
        wait_for(lambda: gateway.status()["config_epoch"] == 2, 20, "the new configuration")
        for _ in range(3):
            gateway.settle()
        assert not told.done()
        fcntl.lockf(held, fcntl.LOCK_UN, 1, LOCK_ROW)
        assert told.result().returncode == 0, told.result()
    assert keepers(gateway, "backend:second") >= 2
    assert gateway.status()["config_epoch"] == 2


def test_the_scores_of_backends_that_are_gone_make_room(start_gateway: StartGateway) -> None:
    """Two configurations of 200 backends have more names than there are lines; a worker dies."""

    def config(kind: str) -> str:
        return "".join(
            section("[[backends]]", name=f"{kind}-{n}", kind="echo", models=[f"{kind}-{n}"])
            for n in range(200)
        )

    gateway = start_gateway(config=config("old"), workers=2)
    assert gateway.config_path is not None
    assert gateway.ask("/v1/chat/completions", chat("hi", "old-7")).status == 200
    for _ in range(4):  # both workers look at all of them
        assert gateway.ask("/api/v1/providers").status == 200
    pid = gateway.worker_pids()[0]
    os.kill(pid, signal.SIGKILL)
    gateway.replaced(0, pid)
    gateway.config_path.write_text(config("new"))
    told = gateway.tpo("reload")
    assert told.returncode == 0, told
    assert gateway.ask("/v1/chat/completions", chat("hi", "new-199")).status == 200

    def counted() -> bool:
        listed = gateway.ask("/api/v1/providers").json()["providers"]
        (entry,) = (one for one in listed if one["name"] == "new-199")
        return bool(entry["successes"] == 1)

    wait_for(counted, 20, "the call counted")
    assert gateway.metric("tpo_scores_refused_total") == 0
