"""Changing the configuration of a running host."""

from __future__ import annotations

import os
import signal
import socket
import subprocess

import pytest

from tests.integration.supervisor.conftest import FakeGateway, Fakes
from tests.support.wait import wait_for
from tpo_mp.supervisor.client import request


def configured(fakes: Fakes, text: str = "[server]\ndrain_s = 20\n", vice: str = "") -> FakeGateway:
    """A gateway that runs from a file."""
    return fakes(config=text, vice=vice)


def rewrite(gateway: FakeGateway, text: str) -> None:
    """Replace the config file."""
    assert gateway.config_path is not None
    gateway.config_path.write_text(text)


def test_a_good_change_is_adopted_by_every_seat(fakes: Fakes) -> None:
    """The answer names the new epoch once everyone has acknowledged it."""
    gateway = configured(fakes)
    rewrite(gateway, "[server]\ndrain_s = 10\n")
    answer = request(gateway.state_dir, "reload")
    assert answer["ok"]
    assert answer["epoch"] == 2
    assert answer["late"] == []
    assert [slot["config_epoch"] for slot in gateway.status()["slots"]] == [2, 2]


@pytest.mark.parametrize("text", ["[server]\ndrain_s = -1\n", "[server]\nwrkers = 1\n", "[[["])
def test_a_bad_file_changes_nothing(fakes: Fakes, text: str) -> None:
    """The command fails with the reason; the old epoch stays."""
    gateway = configured(fakes)
    rewrite(gateway, text)
    done = gateway.tpo("reload")
    assert done.returncode == 1
    assert done.stderr.strip()
    assert gateway.status()["config_epoch"] == 1
    assert gateway.knock()


def test_one_refusal_vetoes_the_change_for_all(fakes: Fakes) -> None:
    """The old configuration comes back under a new epoch, and everyone follows it."""
    gateway = configured(fakes, vice="nack")
    rewrite(gateway, "[server]\ndrain_s = 10\n")
    answer = request(gateway.state_dir, "reload")
    assert answer["ok"] is False
    assert "the fake worker says no" in answer["problems"][0]
    assert answer["epoch"] == 3
    wait_for(
        lambda: [slot["config_epoch"] for slot in gateway.status()["slots"]] == [3, 3],
        5, "the old configuration again",
    )  # fmt: skip


def test_hup_reloads(fakes: Fakes) -> None:
    """Twenty times in a row, each answered in the log."""
    gateway = configured(fakes)
    for epoch in range(2, 8):
        gateway.send_signal(signal.SIGHUP)
        wait_for(lambda: gateway.status()["config_epoch"] == epoch, 10, f"epoch {epoch}")  # noqa: B023
    assert gateway.knock()


def test_a_reload_of_a_host_that_stops_is_refused_at_once(fakes: Fakes) -> None:
    """Nobody waits for an answer that cannot come, however long the drain."""
    gateway = configured(fakes, vice="slow-drain")
    gateway.send_signal(signal.SIGTERM)
    wait_for(lambda: gateway.status()["state"] == "draining", 5, "the drain")
    answer = request(gateway.state_dir, "reload", timeout_s=30)
    assert answer == {"ok": False, "problems": ["the host is stopping"]}
    gateway.send_signal(signal.SIGTERM)
    assert gateway.wait(40) == 0
    gateway.close()


def test_a_reload_under_way_is_answered_when_the_host_stops(fakes: Fakes) -> None:
    """The one who asked learns it from the answer, not from a broken connection."""
    # The reload may be over before the order on a machine that stands still.
    assert any(b"the host is stopping" in stopped_in_a_reload(fakes) for _ in range(4))


def stopped_in_a_reload(fakes: Fakes) -> bytes:
    """What a reload is answered when the host is stopped as soon as it has begun."""
    gateway = configured(fakes, vice="slow-drain")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(gateway.state_dir / "control.sock"))
        client.sendall(b'{"command": "reload"}\n')
        wait_for(lambda: "reloading" in gateway.stderr, 5, "the reload", every_s=0.001)
        gateway.send_signal(signal.SIGTERM)
        answer = client.recv(10_000)
    gateway.send_signal(signal.SIGTERM)
    assert gateway.wait(40) == 0
    gateway.close()
    return answer


def test_signals_to_the_whole_group_do_not_end_the_compiler(fakes: Fakes) -> None:
    """HUP again and again, to everyone: each reload is carried out, none is refused."""
    gateway = configured(fakes)
    for _ in range(4):
        done = gateway.stderr.count("reloaded")
        os.killpg(os.getpgid(gateway.pid), signal.SIGHUP)
        wait_for(lambda: "reloading" in gateway.stderr, 5, "a compiler", every_s=0.001)
        os.killpg(os.getpgid(gateway.pid), signal.SIGHUP)
        wait_for(lambda: gateway.stderr.count("reloaded") > done, 20, "a reload")  # noqa: B023
    assert "reload_refused" not in gateway.stderr
    assert "died" not in gateway.stderr


def test_a_watched_file_reloads_itself(fakes: Fakes) -> None:
    """``supervisor.watch_config`` needs no command."""
    gateway = configured(fakes, "[supervisor]\nwatch_config = true\n")
    rewrite(gateway, "[supervisor]\nwatch_config = true\nkill_grace_s = 2.0\n")
    wait_for(lambda: gateway.status()["config_epoch"] == 2, 10, "the new epoch")


def test_what_needs_a_restart_is_said(fakes: Fakes) -> None:
    """The change is accepted, the ports stay, status lists what waits."""
    gateway = configured(fakes)
    rewrite(gateway, "[server]\nhost = 'localhost'\n")
    answer = request(gateway.state_dir, "reload")
    assert answer["ok"]
    assert answer["restart_for"] == ["host"]
    assert gateway.status()["restart_needed"] == ["server.host changed"]


def test_what_sized_the_shared_memory_cannot_change(fakes: Fakes) -> None:
    """It would fit no process started afterwards."""
    gateway = configured(fakes)
    rewrite(gateway, "[server]\nmax_open_calls = 4242\n")
    answer = request(gateway.state_dir, "reload")
    assert answer["problems"] == ["server.max_open_calls changes at a restart only"]
    assert gateway.status()["config_epoch"] == 1


def test_a_worker_started_after_a_reload_has_the_new_configuration(fakes: Fakes) -> None:
    """The published epoch is what a newcomer reads."""
    gateway = configured(fakes)
    request(gateway.state_dir, "reload")
    request(gateway.state_dir, "restart")
    assert [slot["config_epoch"] for slot in gateway.status()["slots"]] == [2, 2]


def test_a_wrong_config_at_start_is_exit_2_with_file_key_and_reason(fakes: Fakes) -> None:
    """Nothing is started."""
    gateway = fakes(start=False, config="")
    gateway.folder.mkdir(exist_ok=True)
    path = gateway.folder / "bad.toml"
    path.write_text("[server]\ndrain_s = 'soon'\n")
    done = subprocess.run(
        [*gateway.command, "--config", str(path)],
        capture_output=True, text=True, timeout=60, check=False, env=gateway.environment,
    )  # fmt: skip
    assert done.returncode == 2
    assert "drain_s" in done.stderr
    assert done.stdout == ""
    assert not gateway.state_dir.exists()
