"""The supervisor or the whole group killed: nobody survives, no accepted call is forgotten."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from random import Random

import psutil
import pytest

from tests.chaos.conftest import StartHost
from tests.support.host import TMPFS, Host, kill
from tests.support.load import Crowd, Load
from tests.support.upstream import Upstream
from tests.support.wait import wait_for

RELAY = """
[[backends]]
name = "up"
kind = "openai"
base_url = "{url}/v1"
models = ["*"]
"""
GONE_S = 1.0
NEXT_START_S = 3.0


def names_on_tmpfs(host: Host) -> set[str]:
    """Everything of this state directory on the tmpfs, linked to or not."""
    key = hashlib.blake2b(os.fsencode(host.state_dir.absolute()), digest_size=6).hexdigest()
    return {path.name for path in TMPFS.glob(f"*{key}*")} if TMPFS.is_dir() else set()


def check_gone(host: Host, slack: float) -> None:
    """No process and no port is left; on the tmpfs only what the next start will harvest."""
    killed_at = time.monotonic()
    supervisor = host.pid
    wait_for(lambda: not host.processes() - {supervisor}, GONE_S * slack, "no process left")
    print(f"all gone {time.monotonic() - killed_at:.3f} s after")
    host.wait()
    wait_for(host.ports_free, 10, "free ports")
    assert names_on_tmpfs(host) == host.shared_names()


def check_clean(host: Host) -> None:
    """Stop in good order; then nothing at all is left of any run."""
    host.end()
    assert names_on_tmpfs(host) == set()
    assert not list(host.state_dir.glob("registry*"))


@pytest.mark.alone
def test_a_killed_supervisor_takes_everyone_along_and_forgets_nothing(
    start_host: StartHost, upstream: Upstream, slack: float
) -> None:
    """Streams break at once; the next start is quick and has them all as dead letters."""
    host = start_host(config=RELAY.format(url=upstream.url))
    host.warm()
    upstream.play(chunks=300, delay_s=0.1, pad_bytes=400)
    with Crowd(host.url, 20, model="up-1") as crowd:
        crowd.flowing()
        kill(host.pid)
        check_gone(host, slack)
        attempts = crowd.ended()
    assert {a.outcome for a in attempts} == {"cut"}, crowd.outcomes()
    host.close_unswept()
    began = time.monotonic()
    host.start()
    print(f"next start took {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < NEXT_START_S * slack
    ids = {a.id for a in attempts}
    host.lettered(ids, 2 * slack)
    wait_for(lambda: len(names_on_tmpfs(host)) <= 1, 5, "the old registry gone")
    check_clean(host)


@pytest.mark.alone
def test_a_supervisor_killed_right_after_a_spawn_leaves_no_orphan(
    start_host: StartHost, rng: Random, slack: float
) -> None:
    """The moment between fork and the child's first lines is no gap: the lifeline is there."""
    proven = 0
    for _ in range(8):
        host = start_host()
        host.warm()
        known = host.processes()
        kill(host.slot(rng.randrange(2))["pid"])
        fresh = wait_for(lambda: max(host.processes() - known, default=0), 20, "a spawn", every_s=0)  # noqa: B023
        wait_for(lambda: rng.random() < 0.3, 5, "a random moment", every_s=0.002)
        title = " ".join(psutil.Process(fresh).cmdline())
        kill(host.pid)
        # It takes its title once it is bound to its parent and has its imports.
        print(f"the child was {title!r}")
        check_gone(host, slack)
        host.close()
        proven += not title.startswith("tpo: shard")  # else it was killed too late
        if proven == 2:
            break
    assert proven == 2


def check_rounds(
    start_host: StartHost, upstream: Upstream, rng: Random, slack: float, rounds: int
) -> None:
    """Start, load, kill the whole group, again and again on one state directory."""
    host = start_host(config=RELAY.format(url=upstream.url), start=False)
    upstream.play(first_s=0.02, delay_s=0.02)
    attempts = []
    for _ in range(rounds):
        host.start()
        with Load(host.url, rng, clients=12, model="up-1", patience_s=20) as load:
            load.more(rng.randrange(5, 40))
            os.killpg(host.pid, signal.SIGKILL)
            check_gone(host, slack)
            load.stop()
        assert load.count("hung") == 0
        attempts += load.attempts
        host.close_unswept()
    host.start()
    accepted = {seen.json()["messages"][-1]["content"].split()[0] for seen in list(upstream.seen)}
    cut = {a.id for a in attempts if a.outcome == "cut"} & accepted
    print(f"{len(attempts)} requests, {len(cut)} unfinished in {rounds} rounds")
    assert cut, "kills met calls under way"
    host.check_ledger(attempts, accepted, within_s=5 * slack)
    check_clean(host)


def test_a_killed_group_leaks_nothing_and_loses_nothing(
    start_host: StartHost, upstream: Upstream, rng: Random, slack: float, mode: dict[str, str]
) -> None:
    """Five rounds: no process, port or shared name is left, and the ledger balances over all."""
    check_rounds(start_host, upstream, rng, slack, 2 if "TPO_PORTABLE" in mode else 5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_killed_groups_leak_nothing(
    start_host: StartHost, upstream: Upstream, rng: Random, slack: float
) -> None:
    """The long form."""
    check_rounds(start_host, upstream, rng, slack, 100)
