"""Deals the cores of a machine out to workers and to engines, so that none is dealt twice.

Pure: it is told the cores and answers a plan.  An engine gets whole cores, those of the memory
node that its GPU hangs on or of the one with the most left; workers get one core each, all of
them on one memory node where it holds them, since they share memory all the time.  Where cores
run out, workers share cores by their threads; where that does not do either, nobody is pinned.

Invariants: no CPU is in two places of a plan; an engine and a worker never share a core.
Known weakness: what else runs on the machine is not known here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

UNPINNED = -1


@dataclass(frozen=True, slots=True)
class Core:
    """One core: the threads of it that we may use, its memory node and its last-level cache."""

    cpus: tuple[int, ...]
    node: int = 0
    cache: int = 0


@dataclass(frozen=True, slots=True)
class EngineNeed:
    """What an engine asks for: ``cores`` (0: an even share of what is left), near ``node``."""

    name: str
    cores: int = 0
    node: int | None = None


@dataclass(frozen=True, slots=True)
class PinningPlan:
    """The CPU of each slot, the CPUs of each engine, and one sentence about both.

    ``short``: engines that get fewer cores than they ask for.
    """

    slots: tuple[int, ...]
    engines: Mapping[str, tuple[int, ...]]
    reason: str
    short: tuple[str, ...] = ()

    @property
    def pinned(self) -> bool:
        """Whether it binds anybody."""
        return UNPINNED not in self.slots


def unpinned(workers: int, engines: Sequence[EngineNeed], reason: str) -> PinningPlan:
    """The plan that leaves everybody where the kernel puts him."""
    short = tuple(need.name for need in engines if need.cores)
    return PinningPlan((UNPINNED,) * workers, {n.name: () for n in engines}, reason, short)


def assign(cores: Sequence[Core], workers: int, engines: Sequence[EngineNeed] = ()) -> PinningPlan:
    """Deal ``cores`` out; an engine gets fewer than it asks for before a worker gets none."""
    if workers > sum(len(core.cpus) for core in cores):
        return unpinned(workers, engines, "off: fewer CPUs than workers")
    left = sorted(cores, key=lambda core: (core.node, core.cache, core.cpus))
    room = len(left) - _cores_for(left, workers, len(engines))
    if engines and room < len(engines):
        return unpinned(workers, engines, "off: fewer cores than workers and engines")
    given: dict[str, tuple[int, ...]] = {}
    short: list[str] = []
    for turn, need in enumerate(engines):
        others = len(engines) - turn - 1
        fair = room // (others + 1)
        count = min(need.cores or fair, room - others)
        if count < need.cores:
            short.append(need.name)
        taken = _near(left, count, need.node)
        gone = frozenset(taken)
        left = [core for core in left if core not in gone]
        room -= count
        given[need.name] = tuple(cpu for core in taken for cpu in core.cpus)
    slots = _threads_in_order(left)[:workers]
    return PinningPlan(slots, given, _sentence(workers, len(left), short), tuple(short))


def deal_rest(
    cores: Sequence[Core], taken: Collection[int], engines: Sequence[EngineNeed]
) -> dict[str, tuple[int, ...]]:
    """Deal whole cores of which no CPU is taken out to engines that came later; some get none."""
    left = [core for core in cores if not set(core.cpus) & set(taken)]
    given: dict[str, tuple[int, ...]] = {}
    for turn, need in enumerate(engines):
        fair = len(left) // (len(engines) - turn)
        found = _near(left, min(need.cores or fair, len(left)), need.node) if left else []
        left = [core for core in left if core not in found]
        given[need.name] = tuple(cpu for core in found for cpu in core.cpus)
    return given


def _cores_for(cores: Sequence[Core], workers: int, engines: int) -> int:
    """How many cores the workers keep: one each, or as few as hold them if there are too few."""
    if workers + engines <= len(cores):
        return workers
    held, count = 0, 0
    for size in sorted(len(core.cpus) for core in cores):
        if held >= workers:
            break
        held, count = held + size, count + 1
    return count


def _near(cores: Sequence[Core], count: int, node: int | None) -> list[Core]:
    """Take ``count`` cores: those of ``node`` or of the roomiest one first, whole caches first."""
    sizes = Counter(core.node for core in cores)
    caches = Counter((core.node, core.cache) for core in cores)
    home = node if node in sizes else max(sizes, key=lambda n: (sizes[n], n))

    def rank(core: Core) -> tuple[bool, int, int, int, tuple[int, ...]]:
        # From the end, as workers are dealt from the front.
        rest = -caches[core.node, core.cache]
        return (core.node != home, -core.node, rest, -core.cache, core.cpus)

    return sorted(cores, key=rank)[:count]


def _threads_in_order(cores: Sequence[Core]) -> tuple[int, ...]:
    """The CPUs as workers get them: one thread of every core first, and a node before the next.

    The node with most cores left comes first: engines, and their traffic of memory, are elsewhere.
    """
    sizes = Counter(core.node for core in cores)
    first = max(sizes, key=lambda node: (sizes[node], -node))
    ranked = [
        (rank, core.node != first, core.node, core.cache, cpu)
        for core in cores
        for rank, cpu in enumerate(core.cpus)
    ]
    return tuple(entry[-1] for entry in sorted(ranked))


def _sentence(workers: int, cores: int, short: Sequence[str]) -> str:
    text = "one core per worker" if workers <= cores else "one thread per worker"
    return f"{text}; fewer cores than asked for: {', '.join(short)}" if short else text
