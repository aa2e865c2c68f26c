"""A process that stands still while it holds the locks of shared rows: nobody waits for it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from signal import SIGKILL, SIGSTOP

import pytest

from tests.chaos.conftest import StartHost
from tests.support.host import Host, metric
from tests.support.innards import descriptors, needs_linux
from tests.support.raw import chat
from tests.support.shards import CHAT, connect_to
from tests.support.toml import ECHO, section
from tests.support.wait import wait_for
from tpo_mp.pipeline.limits import OVERALL_NAME
from tpo_mp.shm.ledger import LEDGER_ROWS
from tpo_mp.shm.quotas import NAMED_SHARE, SET_ROWS, QuotaSegment, digest_of

ANSWER_S = 0.05
EACH = 60
LIMIT = 4 * EACH + 20
"""So near that little is taken ahead: each shard asks the host again and again."""
CONFIG = ECHO + section("[stages.rate_limit]", **{"global": {"rph": LIMIT}})
HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(fd, fcntl.LOCK_EX, 1, int(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


def lock_of(host: Host, name: str) -> int:
    """The byte of the locks that guards a limit's row."""
    sets = QuotaSegment.rows_for(host.workers + 3) // SET_ROWS
    number = int.from_bytes(digest_of(name)[:8], "little")
    return LEDGER_ROWS + number % (sets // NAMED_SHARE)


@contextmanager
def row_held(host: Host, name: str) -> Iterator[None]:
    """Let a stopped process hold that row for as long as the context lasts."""
    path = f"/proc/{host.pid}/fd/{descriptors(host.pid, 'tpo-locks')[0]}"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path, str(lock_of(host, name))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        holder.send_signal(SIGSTOP)
        yield
    finally:
        holder.send_signal(SIGKILL)
        holder.communicate(timeout=60)


@pytest.mark.alone
def test_nobody_waits_for_a_stopped_holder_of_a_row(start_host: StartHost, slack: float) -> None:
    """The limit of the whole host is held: both shards answer at once, if only with a no."""
    needs_linux()
    host = start_host(config=CONFIG)
    host.warm()
    with ExitStack() as opened:
        clients = [opened.enter_context(connect_to(host.url, shard)) for shard in (0, 1)]

        def ask() -> tuple[set[int], list[float]]:
            statuses, took = set(), []
            for client in clients * EACH:
                began = time.monotonic()
                statuses.add(client.post_json(CHAT, chat("x")).status)
                took.append(time.monotonic() - began)
            return statuses, sorted(took)

        assert ask()[0] == {200}
        with row_held(host, OVERALL_NAME):
            statuses, took = ask()
            page = host.ask("/metrics").body.decode()
        given_up = metric(page, "tpo_quotas_refused_total")
        print(f"{given_up:.0f} updates given up, {statuses}, last {took[-3:]}")
        assert given_up > 0, "the row was not held"
        assert statuses <= {200, 429, 503}
        # One wait per shard is in there; the machine itself may stand still for a moment.
        assert took[-2] < ANSWER_S * slack
        assert took[-1] < 10 * ANSWER_S * slack
        wait_for(lambda: 503 not in ask()[0], 10, "a host that serves as before")
    assert host.status()["restarts"] == 0
    host.stop()
