"""Entry of a shard process; started by the supervisor only."""

from __future__ import annotations

import gc
import sys

from tpo_mp.shm.lifeline import attach_to_parent, last_words, root_cause


def _boot() -> int:
    gc.disable()  # modules make no garbage worth looking for; ``sweep`` turns it on again
    attached = attach_to_parent(_import)
    from tpo_mp.errors import ExitCode, TpoError
    from tpo_mp.shm import failpoints

    if attached is None:
        return ExitCode.BOOT_FAILED
    handoff, lifeline_fd = attached
    if failpoints.ACTIVE:
        failpoints.hit("sup.after_spawn")

    _import()
    import uvloop
    from aiohttp import http_parser
    from setproctitle import setproctitle

    setproctitle("tpo: shard-spare")
    if not getattr(http_parser, "HttpRequestParserC", None):
        # The one in Python lets requests through that two servers read differently.
        last_words(handoff, "aiohttp's C parser is not active: install aiohttp with its extensions")
        return ExitCode.BOOT_FAILED
    from .shard import main

    try:
        uvloop.run(main(handoff, lifeline_fd))
    except (TpoError, ExceptionGroup) as e:
        cause = root_cause(e)
        if not isinstance(cause, TpoError):
            raise
        last_words(handoff, str(cause))
        return ExitCode.BOOT_FAILED
    return ExitCode.OK


def _import() -> None:
    """Import what every shard needs, before it is asked for."""
    from tpo_mp.http.late_trust import import_aiohttp

    import_aiohttp()
    import uvloop  # noqa: F401

    from . import shard  # noqa: F401


if __name__ == "__main__":
    sys.exit(_boot())
