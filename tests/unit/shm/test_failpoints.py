"""Failpoints do exactly what is armed, and nothing at all in production."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tpo_mp.errors import ConfigError, Fault
from tpo_mp.shm import failpoints


@pytest.fixture(autouse=True)
def _disarmed_afterwards() -> Iterator[None]:
    """No armed point outlives its test."""
    yield
    failpoints.configure({})


def arm(text: str, **more: str) -> None:
    """Arm a list, as a test's environment would."""
    failpoints.configure({"TPO_TEST": "1", "TPO_FAILPOINTS": text, **more})


def test_nothing_is_armed_without_the_variable() -> None:
    """Off is the default, and a hit is then nothing."""
    failpoints.configure({"TPO_TEST": "1"})
    assert not failpoints.ACTIVE
    assert not failpoints.hit("ring.claimed")


def test_armed_outside_a_test_refuses_to_start() -> None:
    """A production process never carries one."""
    with pytest.raises(ConfigError, match="without TPO_TEST=1"):
        failpoints.configure({"TPO_FAILPOINTS": "ring.claimed=kill9"})


@pytest.mark.parametrize(
    "text",
    [
        "ring.claimed",
        "=kill9",
        "a=explode",
        "a=drop:often",
        "a=drop:2",
        "a=drop:1:-1",
        "a=drop:1:1:1",
    ],
)
def test_bad_lists_are_refused_by_name(text: str) -> None:
    """The message shows the offending entry."""
    with pytest.raises(ConfigError, match="TPO_FAILPOINTS: '"):
        arm(text)


def test_only_the_named_point_acts() -> None:
    """Others pass."""
    arm("a=drop; b=raise ;")
    assert failpoints.ACTIVE
    assert failpoints.hit("a")
    assert not failpoints.hit("c")
    with pytest.raises(Fault, match="failpoint b"):
        failpoints.hit("b")


def test_skip_lets_the_first_hits_pass() -> None:
    """``a=drop:1:3`` acts from the fourth hit on."""
    arm("a=drop:1:3")
    assert [failpoints.hit("a") for _ in range(5)] == [False, False, False, True, True]


def test_probability_is_repeatable_by_seed() -> None:
    """The same seed gives the same hits, and about as many as asked."""
    runs = []
    for _ in range(2):
        arm("a=drop:0.3", TPO_FAILPOINTS_SEED="7")
        runs.append([failpoints.hit("a") for _ in range(1000)])
    assert runs[0] == runs[1]
    assert 200 < sum(runs[0]) < 400


@pytest.mark.parametrize(
    ("action", "number"), [("kill9", signal.SIGKILL), ("stop", signal.SIGSTOP)]
)
def test_deadly_actions_signal_the_process_itself(
    action: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No clean-up of any kind runs before them."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, what: sent.append((pid, what)))
    arm(f"a={action}")
    failpoints.hit("a")
    assert sent == [(os.getpid(), number)]


def test_abort_leaves_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """``abort`` is the death that faulthandler reports."""
    called: list[bool] = []
    monkeypatch.setattr(os, "abort", lambda: called.append(True))
    arm("a=abort")
    failpoints.hit("a")
    assert called == [True]


def test_exit_leaves_without_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """``exit`` is a process that goes by itself, with a code that says all is well."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    arm("a=exit")
    failpoints.hit("a")
    assert codes == [0]


def test_sleep_blocks_the_thread_for_its_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole loop stalls, as a slow disk would make it."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    arm("a=sleep")
    assert not failpoints.hit("a")
    assert slept == [failpoints.SLEEP_S]
