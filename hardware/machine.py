"""The facts about a machine that matter for placing processes on it.

Invariant: an absent fact is ``None``, an empty text or an empty tuple, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tpo_mp.supervisor.pinning import Core


@dataclass(frozen=True, slots=True)
class CpuCache:
    """One cache, and the CPUs that share it; ``type`` is data, instruction or unified."""

    level: int
    type: str
    size_bytes: int
    cpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MemoryNode:
    """A memory node: its CPUs inside our mask, and its memory where the kernel says so."""

    number: int
    cpus: tuple[int, ...]
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its driver describes it; ``unified`` when it uses the machine's own memory."""

    index: int
    name: str
    memory_bytes: int | None = None
    node: int | None = None
    unified: bool = False


@dataclass(frozen=True, slots=True)
class CoreKind:
    """Cores of one kind where there are several: performance and efficiency, say."""

    name: str
    cores: int
    cpus: tuple[int, ...] = ()
    caches: tuple[CpuCache, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """All that is known; ``cores`` and ``nodes`` hold only CPUs that we may use.

    ``quota_cpus`` and ``memory_limit_bytes`` are the cgroup's, ``cpuset`` what it allows.
    """

    system: str
    model: str = ""
    online: int = 1
    cores: tuple[Core, ...] = ()
    sockets: int | None = None
    nodes: tuple[MemoryNode, ...] = ()
    caches: tuple[CpuCache, ...] = ()
    kinds: tuple[CoreKind, ...] = ()
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    quota_cpus: float | None = None
    cpuset: tuple[int, ...] | None = None
    gpus: tuple[Gpu, ...] = field(default=())

    @property
    def cpus(self) -> tuple[int, ...]:
        """The CPUs we may use."""
        return tuple(sorted(cpu for core in self.cores for cpu in core.cpus))

    @property
    def threads(self) -> int:
        """Most threads of one core."""
        return max((len(core.cpus) for core in self.cores), default=1)
