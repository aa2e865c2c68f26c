"""Power lost: every process and the tmpfs are gone at once, the disk has what was synced.

The synced files are told from the others by nothing here: what is proven is that no letter depends
on the registry, not that a disk keeps its promises.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

from tests.chaos.conftest import StartHost
from tests.chaos.test_supervisor_killed import RELAY, check_clean, check_gone
from tests.support.host import Host
from tests.support.load import Crowd
from tests.support.upstream import Upstream
from tests.support.wait import wait_for, wait_still
from tpo_mp.shm.registry_layout import copy_name
from tpo_mp.store.open_copy import OpenCopyReader

ALWAYS = '\n[store]\ndurability = "always"\n'


def copied(host: Host) -> int:
    """How many calls are on disk."""
    return sum(len(OpenCopyReader(path)) for path in host.state_dir.glob(copy_name()))


def lose_power(host: Host, slack: float) -> None:
    """Kill the whole group, and take the registry away."""
    os.killpg(host.pid, signal.SIGKILL)
    check_gone(host, slack)
    registry = host.state_dir / "registry"
    registry.resolve().unlink()
    host.close_unswept()


def check_letters(host: Host, ids: set[str], slack: float) -> None:
    """One letter each, after this boot and after the next."""
    for _ in range(2):
        host.start()
        host.lettered(ids, 3 * slack)
        wait_for(lambda: not list(host.state_dir.glob(copy_name())), 3 * slack, "the copy removed")
        assert host.letters_by_request() == Counter(ids)
        check_clean(host)


def test_calls_open_at_the_last_sync_become_letters(
    start_host: StartHost, upstream: Upstream, slack: float
) -> None:
    """Twenty streams and nothing else is lost; each is a dead letter, once."""
    host = start_host(config=RELAY.format(url=upstream.url))
    host.warm()
    upstream.play(chunks=10)
    with Crowd(host.url, 30, model="up-1", prefix="done") as done:
        assert {a.outcome for a in done.ended()} == {"ok"}
    upstream.play(chunks=400, delay_s=0.1)
    with Crowd(host.url, 20, model="up-1") as crowd:
        crowd.flowing()
        wait_for(lambda: copied(host) == 20, 3 * slack, "all on disk")
        lose_power(host, slack)
        ids = {a.id for a in crowd.ended()}
    check_letters(host, ids, slack)


def test_with_always_a_call_is_on_disk_before_its_upstream_sees_it(
    start_host: StartHost, upstream: Upstream, slack: float
) -> None:
    """Power goes the moment the upstream has seen them all; none is missing."""
    host = start_host(config=RELAY.format(url=upstream.url) + ALWAYS)
    host.warm()
    upstream.play(first_s=30.0)
    with Crowd(host.url, 12, model="up-1", stream=False) as crowd:
        wait_for(
            lambda: len(upstream.seen) == 12, 5 * slack, "every request upstream", every_s=0.001
        )
        lose_power(host, slack)
        ids = {a.id for a in crowd.ended()}
    check_letters(host, ids, slack)


def test_an_idle_gateway_writes_no_copy(start_host: StartHost, slack: float) -> None:
    """After its last call the file lies still, and a clean stop removes it."""
    host = start_host()
    host.warm()
    assert not list(host.state_dir.glob(copy_name()))
    with Crowd(host.url, 5, text="word " * 200, stream=False) as crowd:
        crowd.ended()

    def state() -> list[tuple[int, int]]:
        files = [path.stat() for path in host.state_dir.glob(copy_name())]
        return [(file.st_size, file.st_mtime_ns) for file in files]

    wait_for(lambda: copied(host) == 0, 10 * slack, "a copy of nothing")
    wait_still(state, 2.5, 10 * slack, "the copy")
    assert copied(host) == 0
    check_clean(host)
