"""The waiting rooms of the whole host: how many calls wait in each, and how many may.

Both ports' ``/health`` and ``/api/v1/pipeline/status`` answer from here, so they cannot disagree.
Places are the configuration's, so they stay what they are while a shard is being replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

HOST_WIDE = "inference"
"""The one stage whose waiting room is shared by all shards; every other has one per shard."""
DEPTH_GAUGE = "orchestrator_queue_depth"


class DepthView(Protocol):
    """One series of the depth gauge."""

    @property
    def labels(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def value(self) -> float: ...


class Room(NamedTuple):
    """The room in front of one stage; counts of calls."""

    stage: str
    waiting: int
    capacity: int


def rooms(depths: Iterable[DepthView], places: Mapping[str, int], shards: int) -> list[Room]:
    """Add up the host's rooms, in the order of ``places``.

    ``depths`` are the samples of ``DEPTH_GAUGE``; ``places`` is the configured capacity by stage,
    of one shard or, for ``HOST_WIDE``, of all ``shards``.
    """
    waiting = dict.fromkeys(places, 0.0)
    for sample in depths:
        stage = dict(sample.labels).get("stage", "")
        if stage in waiting:
            waiting[stage] += sample.value
    return [
        Room(stage, int(waiting[stage]), size * (1 if stage == HOST_WIDE else shards))
        for stage, size in places.items()
    ]
