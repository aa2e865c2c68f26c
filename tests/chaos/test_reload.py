"""Reloads under load: good ones disturb nobody, bad ones change nothing."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, suppress
from random import Random

from tests.chaos.conftest import StartHost
from tests.support.host import Host, kill
from tests.support.load import Crowd, Load, flowing
from tests.support.raw import chat
from tests.support.shards import connect_to, render, session_on
from tests.support.wait import wait_for

TIMES = 20
CONFIG = """
[server]
drain_s = {drain_s}

[[backends]]
name = "echo"
kind = "echo"
models = ["echo", "echo-{drain_s}"]
delay_ms = 20

[pipeline.edges]
rag_to_assemble = {edge}
"""


UNBUILDABLE = """
[[backends]]
name = "up"
kind = "openai"
base_url = "https://127.0.0.1:9/v1"
ca_file = "{path}"
models = ["echo"]
"""


def config(number: int) -> str:
    """The n-th of many configurations, no two of them alike."""
    return CONFIG.format(drain_s=10 + number, edge=500 + number)


def test_twenty_reloads_under_load_fail_nothing(
    start_host: StartHost, rng: Random, mode: dict[str, str]
) -> None:
    """No request fails, no stream drops, and each change is adopted by every process."""
    group = "TPO_PORTABLE" in mode
    times = TIMES // 4 if group else TIMES
    host = start_host(config=config(0))
    assert host.config_path is not None
    with (
        Load(host.url, rng, clients=12) as load,
        ExitStack() as running,
    ):
        crowd = flowing(running, lambda: Crowd(host.url, 20, text="w " * 150, prefix="long"))
        for number in range(1, times + 1):
            host.config_path.write_text(config(number))
            # To the supervisor, or to everyone, the child that compiles included.
            os.killpg(host.pid, signal.SIGHUP) if group else host.send_signal(signal.SIGHUP)
            host.logged("reloaded", number)
        # A worker that stood still when it was told is behind for a moment.
        wait_for(host.adopted, 20, "the last configuration everywhere", every_s=0.05)
        models = {model["id"] for model in host.ask("/v1/models").json()["data"]}
        assert models == {"echo", f"echo-{10 + times}"}
        status = host.status()
        epochs = {slot["config_epoch"] for slot in [*status["slots"], status["control"]]}
        assert epochs == {status["config_epoch"]} == {times + 1}
        load.more(20)
        load.stop()
        print(load.outcomes(), crowd.outcomes())
        assert not load.failed()
        crowd.ended()
    assert crowd.outcomes() == {"ok": 20}
    assert not host.events("worker_died")
    host.stop()


def test_a_bad_config_keeps_the_old_and_says_so(start_host: StartHost, rng: Random) -> None:
    """Of a broken file nothing is adopted; ``reload`` fails with the reason; calls go on."""
    host = start_host(config=config(0))
    assert host.config_path is not None
    with Load(host.url, rng, clients=6) as load:
        for broken in ("[server]\ndrain_s = -1\n", "[[["):
            host.config_path.write_text(broken)
            done = host.tpo("reload")
            assert done.returncode == 1, done
            assert done.stderr.strip(), "a reason"
        assert host.status()["config_epoch"] == 1
        load.more(20)
        host.config_path.write_text(config(1))
        assert host.tpo("reload").returncode == 0
        load.more(20)
        load.stop()
        assert not load.failed()
    assert len(host.events("reload_refused")) == 2
    host.stop()


def test_what_one_worker_cannot_build_is_vetoed_for_all(start_host: StartHost, rng: Random) -> None:
    """Valid as far as the text goes: a shard finds the file missing, and the old chain stays."""
    host = start_host(config=config(0))
    host.warm()
    assert host.config_path is not None
    missing = host.folder / "none.pem"
    with Load(host.url, rng, clients=8) as load:
        host.config_path.write_text(UNBUILDABLE.format(path=missing))
        done = host.tpo("reload")
        assert done.returncode == 1, done
        assert str(missing) in done.stderr
        assert "refused" in done.stderr, "by a process, not by the compiler"
        load.more(20)
        assert {m["id"] for m in host.ask("/v1/models").json()["data"]} == {"echo", "echo-10"}
        # The old configuration comes back as a new epoch, which everyone acknowledges.
        wait_for(
            lambda: {slot["config_epoch"] for slot in host.status()["slots"]} == {3},
            5, "the old configuration everywhere",
        )  # fmt: skip
        load.stop()
        assert not load.failed()
    assert not host.events("worker_died")
    host.stop()


def test_a_worker_that_dies_in_a_reload_does_not_hold_it_up(start_host: StartHost) -> None:
    """Stopped, it cannot acknowledge; it dies while it is asked; its successor is up to date."""
    host = start_host(config=config(0))
    host.warm()
    assert host.config_path is not None
    victim = host.slot(0)["pid"]
    host.config_path.write_text(config(1))
    kill(victim, signal.SIGSTOP)
    host.send_signal(signal.SIGHUP)
    wait_for(lambda: host.status()["config_epoch"] == 2, 5, "the new configuration published")
    assert not host.events("reloaded") or host.events("worker_hangs")
    with suppress(ProcessLookupError):  # stopped for longer than a hung worker may be
        kill(victim)
    host.event("reloaded")
    host.replaced(0, victim)
    wait_for(
        lambda: {slot["config_epoch"] for slot in host.status()["slots"]} == {2},
        5, "the new configuration everywhere",
    )  # fmt: skip
    host.end()


def test_a_call_is_served_under_the_config_that_admitted_it(start_host: StartHost) -> None:
    """A shard that has not heard of a new model yet is sent a call for it: it catches up first."""
    host = start_host(config=config(0))
    assert host.config_path is not None
    met = 0
    for number in range(1, 41):  # more than eight where each was stopped for too long
        host.warm()
        host.config_path.write_text(config(number))
        session = {"X-Session-Id": session_on(host.url, 1)}
        server = host.slot(1)
        with connect_to(host.url, 0) as client:
            kill(server["pid"], signal.SIGSTOP)
            host.send_signal(signal.SIGHUP)
            epoch = wait_for(lambda: _adopted(host, number + 1), 5, "the owner's adoption")  # noqa: B023
            client.send(render(client.host, chat("x", f"echo-{10 + number}"), session, "fast"))
            # The owner is done with that turn: the call lies in the ring, if it was sent at all.
            assert host.ask("/live").status == 200
            behind = host.slot(1)["config_epoch"] < epoch
            with suppress(ProcessLookupError):  # stopped for longer than a hung worker may be
                kill(server["pid"], signal.SIGCONT)
            reply = client.read_reply("POST")
        assert reply.status == 200, reply
        # A slot that is silent for too long loses its sessions, and the owner serves by itself.
        met += behind and reply.headers["x-tpo-shard"] == "1"
        host.logged("reloaded", number)
        if met and number >= 8:
            break
    print(f"{met} of {number} calls met a shard that was behind")
    assert met > 0
    host.end()


def _adopted(host: Host, epoch: int) -> int:
    return epoch if host.slot(0)["config_epoch"] == epoch else 0
