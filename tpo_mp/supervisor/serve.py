"""``tpo-mp serve``: compile the configuration, and run a host of it.

The child that compiles is started first; while it works, the first workers and control import what
they need (``cradle``), and so does the host.

Invariants: whatever fails before the loop leaves nothing behind and is one line with an exit code;
an interrupt leaves no child.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from setproctitle import setproctitle

from tpo_mp.errors import ExitCode, TpoError

from .compiling import Compilation
from .cradle import Cradle, early_workers
from .events import write_line
from .limits import set_limits


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the command line said; ``flags`` go to the compiler child as they are."""

    config_path: Path | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)


def serve(options: ServeOptions) -> int:
    """Run a host until it ends; return the exit code."""
    setproctitle("tpo: supervisor")
    os.umask(0o077)
    set_limits()
    config_path = options.config_path and options.config_path.absolute()

    def compile_now(now: float, ports: Mapping[str, int]) -> Compilation:
        return Compilation(config_path, {**options.flags, "engine_ports": dict(ports)}, now)

    try:
        with Cradle() as cradle:
            starting = Compilation(config_path, options.flags, monotonic(), starting=True)
            try:
                early = config_path is None  # a file may be wrong: who wrote it is told first
                if early:
                    cradle.fill(1)
                from .host import run
                from .placement import auto_workers

                if early:
                    cradle.fill(early_workers(options.flags, auto_workers()))
            except BaseException:
                starting.cancel()
                raise
            compiled = starting.wait()
            for problem in compiled.problems:
                write_line(sys.stderr, problem)
            if compiled.exit_code != 0:
                refused = compiled.exit_code == ExitCode.USAGE
                return int(ExitCode.USAGE if refused else ExitCode.BOOT_FAILED)
            return run(compiled.blob, config_path, compile_now, cradle)
    except TpoError as error:
        write_line(sys.stderr, f"tpo-mp: {error.message}")
        return int(getattr(error, "exit_code", ExitCode.BOOT_FAILED))
    except OSError as error:  # a state directory we may not write, no process left, a full disk
        write_line(sys.stderr, f"tpo-mp: cannot start: {error}")
        return int(ExitCode.BOOT_FAILED)
