"""Wait for a condition, never for a time."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from .raw import ClosedEarlyError

T = TypeVar("T")
FIXED_PORTS = range(20_000, 32_000)
"""Below what Linux, macOS and Windows give to whoever asks for any."""


def wait_for(
    condition: Callable[[], T | None],
    timeout_s: float = 10.0,
    what: str = "condition",
    *,
    every_s: float = 0.01,
) -> T:
    """Poll until ``condition()`` is true and answer its value; a failure names ``what``.

    On a machine that is asked for more than it has, the time is as many times longer; in
    continuous integration, whose machines stand still at times, it is so from the start.
    """
    began = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited_s = time.monotonic() - began
        if waited_s > timeout_s and waited_s > timeout_s * crowded():
            raise AssertionError(f"not within {waited_s:.1f} s: {what}; last seen: {value!r}")
        time.sleep(every_s)


def crowded() -> float:
    """How many processes want each core, from 1 to 4."""
    if os.environ.get("CI"):
        return 4.0
    return min(max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0), 4.0)


async def until(
    condition: Callable[[], T | None],
    timeout_s: float = 10.0,
    what: str = "condition",
    *,
    every_s: float = 0.001,
) -> T:
    """Let the loop run until ``condition()`` is true, as ``wait_for`` does without a loop."""
    began = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited_s = time.monotonic() - began
        if waited_s > timeout_s and waited_s > timeout_s * crowded():
            raise AssertionError(f"not within {waited_s:.1f} s: {what}; last seen: {value!r}")
        await asyncio.sleep(every_s)


def unhurried(attempt: Callable[[], T], within_s: float, tries: int = 5) -> T:
    """Answer what ``attempt`` does, made again where it failed and took longer than it should.

    For what has to be done in a span that a machine may stand still for: what failed then has
    shown nothing.
    """
    for left in reversed(range(tries)):
        began = time.monotonic()
        try:
            return attempt()
        except (AssertionError, OSError, ClosedEarlyError):
            took_s = time.monotonic() - began
            if took_s < within_s or not left:
                raise
            print(f"made again: it failed, but it took {took_s:.2f} s")
    raise AssertionError("no try")


def quickest(try_s: Callable[[], float], times: int, under_s: float) -> list[float]:
    """Try ``times``, and on a crowded machine more, until one took less; answer what each took."""
    took: list[float] = []
    while len(took) < times or min(took) >= under_s:
        took.append(try_s())
        assert len(took) < 8 * times or min(took) < under_s, f"none under {under_s} s: {took}"
    return took


def wait_still(
    value: Callable[[], T], still_s: float, timeout_s: float = 10.0, what: str = "value"
) -> T:
    """Poll until ``value()`` stayed the same for ``still_s`` and answer it."""
    seen, since = value(), time.monotonic()
    deadline = since + timeout_s * crowded()
    while time.monotonic() - since < still_s:
        time.sleep(0.01)
        now = value()
        if now != seen:
            seen, since = now, time.monotonic()
        if time.monotonic() > deadline:
            raise AssertionError(f"not still within {timeout_s} s: {what}; last seen: {seen!r}")
    return seen


def accepts(host: str, port: int) -> bool:
    """Say whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(5.0)
        return probe.connect_ex((host, port)) == 0


def free_port() -> int:
    """Name a port that was free a moment ago, for programs that cannot pick their own.

    None of those that the kernel gives away by itself, to other listeners and to clients: it is
    still free when it is used, however late.
    """
    while True:
        port = secrets.choice(FIXED_PORTS)  # every test process has the same seed
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
