"""Hung or starved: what a silent process is charged with."""

from __future__ import annotations

import errno
import os

import psutil
import pytest

from tpo_mp.supervisor.beats import GRACE_S, MAX_STEP_S, BeatWatch, CpuSample, cpu_sample


def watch(samples: list[CpuSample | None], step_s: float = 0.05) -> BeatWatch:
    """Look once per sample at a counter that never moves."""
    seen, now = BeatWatch(0.0), 0.0
    for sample in samples:
        now += step_s
        seen.look(0, now, 1, lambda _pid, answer=sample: answer)  # type: ignore[misc]
    return seen


def test_a_stopped_process_is_blamed_for_all_of_its_silence() -> None:
    """Sleeping, stopped or blocked without a beat is its own fault."""
    seen = watch([CpuSample(runnable=False, cpu_s=1.0)] * 40)
    assert seen.blamed_s == pytest.approx(2.0)


def test_a_busy_loop_is_blamed_for_the_time_it_ran() -> None:
    """A process that runs all the time and does not beat hangs in a loop."""
    seen = watch([CpuSample(runnable=True, cpu_s=i * 0.05) for i in range(40)])
    assert seen.blamed_s == pytest.approx(1.95 - (GRACE_S - 0.05))


def test_a_starved_process_is_not_blamed() -> None:
    """Runnable, but the kernel gives it no CPU: silence is not its fault."""
    seen = watch([CpuSample(runnable=True, cpu_s=1.0)] * 200)
    assert seen.blamed_s == 0
    assert seen.silence_s(10.0) == pytest.approx(10.0)


def test_a_throttled_process_is_blamed_for_its_share_only() -> None:
    """With a fifth of a CPU, two seconds of silence are 0.4 s of its own."""
    seen = watch([CpuSample(runnable=True, cpu_s=i * 0.01) for i in range(41)])
    assert seen.blamed_s == pytest.approx(0.4 - 0.02)


def test_a_process_that_beat_a_moment_ago_is_not_asked_about() -> None:
    """The kernel is asked only once a beat is missing, and then for all of the silence."""
    asked: list[int] = []

    def probe(pid: int) -> CpuSample:
        asked.append(pid)
        return CpuSample(runnable=False, cpu_s=0.0)

    seen = BeatWatch(0.0)
    for now in (0.05, 0.1, GRACE_S - 0.001):
        seen.look(0, now, 7, probe)
    assert not asked
    seen.look(0, GRACE_S, 7, probe)
    assert asked == [7]
    assert seen.blamed_s == pytest.approx(GRACE_S)


def test_a_beat_forgives_everything() -> None:
    """One movement of the counter starts the account anew."""
    seen = watch([CpuSample(runnable=False, cpu_s=0.0)] * 30)
    seen.look(1, 2.0, 1, lambda _pid: None)
    assert seen.blamed_s == 0
    assert seen.silence_s(2.0) == 0


def test_a_pause_of_the_supervisor_is_not_charged_to_its_children() -> None:
    """After we ourselves stood still for a minute, one look charges a quarter of a second."""
    seen = watch([CpuSample(runnable=False, cpu_s=0.0)], step_s=60.0)
    assert seen.blamed_s == MAX_STEP_S


def test_a_process_that_cannot_be_seen_is_not_charged() -> None:
    """No sample, no blame: it is being reaped."""
    assert watch([None] * 50).blamed_s == 0


@pytest.mark.parametrize("portable", ["", "1"])
def test_the_kernel_tells_about_ourselves(portable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of looking see a running process with CPU time."""
    monkeypatch.setenv("TPO_PORTABLE", portable)
    sample = cpu_sample(os.getpid())
    assert sample is not None
    assert sample.runnable
    assert sample.cpu_s > 0


def test_no_process_no_sample() -> None:
    """A pid that is not there has nothing to show."""
    assert cpu_sample(2**22 + 1) is None


def test_without_a_descriptor_to_look_with_nobody_is_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A supervisor at its limit must neither end nor blame its children."""

    def no_descriptor(_pid: int) -> psutil.Process:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setenv("TPO_PORTABLE", "1")
    monkeypatch.setattr(psutil, "Process", no_descriptor)
    assert cpu_sample(os.getpid()) is None
