"""``python -m tpo_mp.control``: started by the supervisor alone, handoff in the environment."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys

SWITCH_S = 0.0005
"""Longest the store's thread may keep the loop's thread waiting for the interpreter."""


def main() -> int:
    """Run the control process; answers its exit code."""
    # Signals reach the whole process group, also while the imports still run.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)

    import asyncio

    import setproctitle
    import uvloop

    from tpo_mp.errors import ExitCode
    from tpo_mp.shm.lifeline import attach_to_parent

    attached = attach_to_parent(_import)
    if attached is None:
        return ExitCode.BOOT_FAILED
    handoff, _ = attached
    setproctitle.setproctitle("tpo: control")
    sys.setswitchinterval(SWITCH_S)
    # Where control shares a core with a shard it gets its part of it, but never interrupts the
    # shard the moment it wakes.
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    _import()
    from .process import ControlProcess

    async def serve() -> int:
        return await ControlProcess(handoff, asyncio.get_running_loop()).run()

    return uvloop.run(serve())


def _import() -> None:
    """Import what control needs, before it is asked for."""
    gc.disable()  # modules make no garbage worth looking for
    from tpo_mp.http.late_trust import import_aiohttp

    import_aiohttp()
    from . import process  # noqa: F401

    gc.enable()


if __name__ == "__main__":
    sys.exit(main())
