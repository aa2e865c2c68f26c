"""The waiting rooms in front of the stages.

An edge bounds calls *waiting in front of* a stage; calls inside a stage hold no place, so ten
thousand open streams are normal.  A call that finds its edge full is shed.
The inference edge counts for the whole host: each shard publishes its own number and adds the
others' up before it lets one more wait.

Invariants: ``enter`` and ``leave`` pair; the host-wide sum never exceeds the capacity by more than
the shards that entered in the same instant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from tpo_mp.config.sections import Edges
from tpo_mp.ports import Metrics
from tpo_mp.types import STAGES

CAPACITY_OF = {
    "rag": "rag_to_assemble",
    "assemble": "assemble_to_inference",
    "inference": "inference_to_post",
    "post_process": "post_to_stream",
    "stream": "stream_output",
}
"""Which configured capacity bounds the room in front of each stage."""


def places(edges: Edges) -> dict[str, int]:
    """The capacity of the room in front of each stage."""
    capacities = msgspec.structs.asdict(edges)
    return {stage: capacities[edge] for stage, edge in CAPACITY_OF.items()}


class Edge:
    """The waiting room in front of one stage."""

    __slots__ = ("_depth", "_open", "_others", "_publish", "_shared_by", "_shown", "capacity",
                 "depth", "stage")  # fmt: skip

    def __init__(
        self,
        stage: str,
        capacity: int,
        metrics: Metrics,
        *,
        publish: Callable[[int], None] = lambda _n: None,
        others: Callable[[], int] = lambda: 0,
        shared_by: int = 1,
    ) -> None:
        """``publish`` tells other shards our number, ``others`` answers the sum of theirs.

        ``shared_by`` shards have one capacity together; metrics, which are added up, show our part.
        """
        self.stage = stage
        self.capacity = capacity
        self.depth = 0
        self._shared_by = shared_by
        self._open = False
        self._publish = publish
        self._others = others
        self._depth = metrics.gauge(
            "orchestrator_queue_depth", "Calls waiting in front of a stage.", stage=stage
        )
        self._shown = metrics.gauge(
            "orchestrator_channel_capacity", "Calls that may wait in front of a stage.", queue=stage
        )

    def open(self) -> None:
        """Calls come from here on: the metrics may show the room."""
        self._open = True
        self._shown.set(self.capacity / self._shared_by)

    def resize(self, capacity: int) -> None:
        """Let more or fewer wait; who waits already stays."""
        self.capacity = capacity
        if self._open:
            self.open()

    def enter(self) -> bool:
        """Take a place; False when the edge is full."""
        self.depth += 1
        self._publish(self.depth)
        if self.depth + self._others() > self.capacity:
            self.depth -= 1
            self._publish(self.depth)
            return False
        self._depth.set(self.depth)
        return True

    def leave(self) -> None:
        """Give the place back."""
        self.depth -= 1
        self._publish(self.depth)
        self._depth.set(self.depth)


def make_edges(
    capacities: Mapping[str, int],
    metrics: Metrics,
    publish: Callable[[int], None],
    others: Callable[[], int],
    workers: int = 1,
) -> dict[str, Edge]:
    """One edge per stage; only inference counts host-wide, over ``workers`` shards."""
    edges = {}
    for stage in STAGES:
        capacity = capacities[CAPACITY_OF[stage]]
        if stage == "inference":
            edges[stage] = Edge(
                stage, capacity, metrics, publish=publish, others=others, shared_by=workers
            )
        else:
            edges[stage] = Edge(stage, capacity, metrics)
    return edges


def resize_edges(edges: Mapping[str, Edge], capacities: Mapping[str, int]) -> None:
    """Apply capacities of another config."""
    for stage, edge in edges.items():
        edge.resize(capacities[CAPACITY_OF[stage]])
