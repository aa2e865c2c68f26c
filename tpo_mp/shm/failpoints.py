"""Named places where a test may make a process die, stop, fail or lose something.

::

    TPO_TEST=1 TPO_FAILPOINTS="ring.claimed=kill9:0.01;ring.before_doorbell=drop:1:50"
                               name        action prob                      skip

``prob`` (default 1) is the chance per hit, ``skip`` (default 0) the number of hits let pass
first.  ``TPO_FAILPOINTS_SEED`` makes the dice repeatable.

=========  ==========================================================
kill9      SIGKILL to itself: no clean-up of any kind runs
stop       SIGSTOP to itself: alive but silent
abort      SIGABRT to itself: the death with a traceback
exit       leaves with exit code 0, without an order and without clean-up
spin       a busy loop for ever: runs, and does nothing
raise      ``Fault(reason="failpoint")``
sleep      the thread is blocked for ``SLEEP_S``
drop       ``hit`` answers True: the caller leaves the next step out
=========  ==========================================================

Invariants: off costs one module attribute (``if failpoints.ACTIVE:``); ``TPO_FAILPOINTS`` without
``TPO_TEST=1`` refuses to start, so that no production process ever carries one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeAlias, cast, get_args

from tpo_mp.errors import ConfigError, Fault

Action: TypeAlias = Literal[
    "kill9", "stop", "abort", "exit", "spin", "raise", "sleep", "drop"
]  # fmt: skip
SLEEP_S = 0.05


@dataclass(slots=True)
class _Point:
    action: Action
    prob: float
    skip: int


def _refused(spec: str, why: str) -> ConfigError:
    return ConfigError(f"TPO_FAILPOINTS: {spec!r}: {why}", reason="failpoints")


def _parse_one(spec: str) -> tuple[str, _Point]:
    name, equals, rest = spec.partition("=")
    action, *numbers = rest.split(":")
    if not equals or not name or action not in get_args(Action) or len(numbers) > 2:
        raise _refused(spec, "want name=action[:prob[:skip]]")
    try:
        prob = float(numbers[0]) if numbers else 1.0
        skip = int(numbers[1]) if len(numbers) > 1 else 0
    except ValueError:
        raise _refused(spec, "prob and skip are numbers") from None
    if not 0 <= prob <= 1 or skip < 0:
        raise _refused(spec, "prob is 0..1 and skip is not negative")
    return name, _Point(cast("Action", action), prob, skip)  # checked against get_args above


def _parse(environ: Mapping[str, str]) -> dict[str, _Point]:
    text = environ.get("TPO_FAILPOINTS", "")
    if not text:
        return {}
    if environ.get("TPO_TEST") != "1":
        raise ConfigError("TPO_FAILPOINTS is set without TPO_TEST=1", reason="failpoints")
    return dict(_parse_one(spec.strip()) for spec in text.split(";") if spec.strip())


ACTIVE = False
_points: dict[str, _Point] = {}
_random = Random()  # noqa: S311 - dice for tests


def configure(environ: Mapping[str, str]) -> None:
    """Arm the failpoints ``environ`` names; raises ``ConfigError`` for a bad or unguarded list."""
    # A plain module flag is what makes an unarmed failpoint cost one attribute load.
    global ACTIVE, _points  # noqa: PLW0603
    _points = _parse(environ)
    ACTIVE = bool(_points)
    _random.seed(environ.get("TPO_FAILPOINTS_SEED"))


def hit(name: str) -> bool:
    """Do what is armed at ``name``; True asks the caller to leave out what follows."""
    point = _points.get(name)
    if point is None:
        return False
    if point.skip > 0:
        point.skip -= 1
        return False
    if point.prob < 1 and _random.random() >= point.prob:
        return False
    match point.action:
        case "kill9":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "abort":
            os.abort()
        case "exit":
            os._exit(0)
        case "spin":
            while True:
                pass
        case "raise":
            raise Fault(f"failpoint {name}", reason="failpoint")
        case "sleep":
            time.sleep(SLEEP_S)
        case "drop":
            return True
    return False


configure(os.environ)
