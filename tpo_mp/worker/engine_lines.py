"""Which backends of a worker are engines of this host, and how it reaches them over shared memory.

Invariants: an engine whose section says ``rings = false`` is asked by HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tpo_mp.http.engine_links import EngineLine, EngineLinks
from tpo_mp.shm.engine_rings import EngineRings
from tpo_mp.shm.handoff import Handoff

from .build import Pipeline


def engine_links(
    handoff: Handoff,
    loop: asyncio.AbstractEventLoop,
    on_crash: Callable[[BaseException], None],
) -> EngineLinks:
    """The worker's ends of its rings with engines."""
    docks = len(handoff.engine_bells)
    return EngineLinks(
        rings=EngineRings.attach(handoff.engine_rings_fd, handoff.seats - 1, docks),
        seat=handoff.seat,
        life=handoff.epoch,
        bells=handoff.engine_bells,
        loop=loop,
        on_crash=on_crash,
    )


def use_lines(links: EngineLinks, pipeline: Pipeline) -> None:
    """Tell backends that are engines of their way there."""
    for engine in pipeline.config.engines:
        backend = pipeline.backends[engine.name]
        if engine.rings and hasattr(backend, "use_line"):
            backend.use_line(EngineLine(links, engine.name))
