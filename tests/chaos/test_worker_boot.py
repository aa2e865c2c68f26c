"""Workers that do not boot: back-off while others serve, an exit code when nobody does."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from psutil import Process

from tests.chaos.conftest import StartHost
from tests.support.host import Host, kill, logged_at
from tests.support.load import Crowd, Load
from tests.support.stalls import Stalls
from tests.support.wait import wait_for
from tpo_mp import __version__
from tpo_mp.shm.plane import LAYOUT

CRASH = {"TPO_TEST": "1", "TPO_FAILPOINTS": "sup.after_spawn=raise"}
SPACING_S = 0.1


def starts_of(host: Host, where: str) -> list[float]:
    """When a berth's processes were started, by the lines about their deaths."""
    died = [event for event in host.events("worker_died") if event["where"] == where]
    return [logged_at(event) - event["lived_s"] for event in died]


@pytest.mark.alone
def test_workers_that_never_boot_end_the_host_with_the_reason(
    start_host: StartHost, slack: float
) -> None:
    """Exit 3 in under ten seconds, the worker's own words last, no spinning before."""
    host = start_host(start=False, env=CRASH)
    code, took_s = host.fails(60)
    print(f"exit {code} after {took_s:.1f} s")
    assert code == 3
    assert took_s < 10 * slack
    assert "failpoint sup.after_spawn" in host.events("giving_up")[0]["reason"]
    assert host.stdout_path.read_text() == ""
    for slot in ("slot 0", "slot 1"):
        starts = starts_of(host, slot)
        assert 1 <= len(starts) <= 10
        # ``lived_s`` is rounded to 10 ms.
        assert all(later - sooner > SPACING_S - 0.02 for sooner, later in pairwise(starts)), starts
    assert not host.shared_names()


def test_workers_without_the_c_parser_refuse_to_start(start_host: StartHost) -> None:
    """Requests are never parsed by the weaker one: exit 3, and the last line says what to do."""
    env = {"TPO_TEST": "1", "TPO_WORKER_MODULE": "tests.support.without_c_parser"}
    host = start_host(start=False, env=env)
    code, _ = host.fails(60)
    assert code == 3
    assert host.stdout_path.read_text() == "", "it was never ready"
    last = host.stderr.splitlines()[-1]
    assert "aiohttp's C parser is not active: install aiohttp with its extensions" in last


def test_no_variable_of_the_caller_weakens_the_parser(start_host: StartHost) -> None:
    """``AIOHTTP_NO_EXTENSIONS`` is not passed on: the workers come up, which takes the C parser."""
    host = start_host(env={"AIOHTTP_NO_EXTENSIONS": "1"})
    assert host.ask("/v1/models").status == 200
    for pid in host.worker_pids():
        assert "AIOHTTP_NO_EXTENSIONS" not in Process(pid).environ()
    host.end()


@pytest.mark.alone
def test_no_connection_waits_for_a_slot_that_backs_off(
    start_host: StartHost, rng: Random, slack: float
) -> None:
    """One slot keeps dying; of a thousand new connections none waits for it."""
    host = start_host(
        config="[supervisor]\nintensity = 2\nintensity_window_s = 300\nbackoff_min_s = 30\n"
    )
    for deaths in range(1, 4):
        host.warm()
        kill(host.slot(0)["pid"])
        host.logged("worker_died", deaths)
    waits: list[float] = []
    with Stalls() as machine:
        for batch in range(50):
            with Crowd(host.url, 20, prefix=f"batch{batch}", stream=False) as crowd:
                attempts = crowd.ended()
            assert crowd.outcomes() == {"ok": 20}
            waits += [a.ended_at - a.began_at for a in attempts]
    stood_ms = machine.longest_s * 1000
    print(f"slowest of {len(waits)}: {max(waits) * 1000:.0f} ms; a core stood for {stood_ms:.0f}")
    assert host.slot(0)["state"] == "backing off"
    # A shared machine stands still now and then, client and host one after the other; a connection
    # in a queue that nobody accepts from waits for all of the 30 s.
    assert len(waits) == 1000
    assert max(waits) < 0.3 * slack + 2 * machine.longest_s
    assert max(waits) < 15
    assert host.ask("/ready").json()["degraded"]
    assert len(host.events("worker_died")) == 3
    with Load(host.url, rng, clients=4) as load:
        load.more(20)
    host.end()


def _last_words(host: Host) -> str:
    return str(host.events("worker_died")[-1]["last_words"])


def test_a_worker_of_another_version_refuses_to_attach(start_host: StartHost) -> None:
    """It exits before it touches shared memory; the host serves on and says: restart needed."""
    host = start_host(
        config="[supervisor]\nbackoff_max_s = 1.0\n",
        env={"TPO_TEST": "1", "TPO_WORKER_MODULE": "tests.support.other_version"},
    )
    host.warm()
    (host.state_dir / "other-version").touch()
    spare = host.status()["spare"]["pid"]
    victim = host.slot(0)["pid"]
    kill(victim)
    assert host.replaced(0, victim) == spare
    refused = host.event("worker_died", exit_code=3)
    assert "restart needed" in refused["last_words"]
    assert "0.0.0" in refused["last_words"]
    (host.state_dir / "other-version").rename(host.state_dir / "other-layout")
    other = f"restart needed: the code on disk is version {__version__}, layout {LAYOUT + 1}"
    host.event("worker_died", exit_code=3, last_words=other)
    (host.state_dir / "other-layout").rename(host.state_dir / "other-handoff")
    wait_for(lambda: "operations_port" in _last_words(host), 30, "one that cannot read its handoff")
    assert any("restart needed" in why for why in host.status()["restart_needed"])
    with Crowd(host.url, 20, stream=False) as crowd:
        crowd.ended()
    assert crowd.outcomes() == {"ok": 20}
    (host.state_dir / "other-handoff").unlink()
    host.warm()
    assert host.status()["restart_needed"] == [], "the old code is back"
    host.end()
