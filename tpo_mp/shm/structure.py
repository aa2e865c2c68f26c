"""What the memory of every structure has: a segment that opens with the words it is known by.

::

    0   magic u64 | layout u64 | further words of ``HEAD`` | seats u64 where each seat has a part
        then what the structure draws

The supervisor makes it, before any other process maps it; whoever inherits its descriptor refuses a
segment of another size or with other words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from .segment import Segment


class Structure:
    """One segment of a structure; ``NAME`` says in errors, and to the kernel, what lies there."""

    NAME: ClassVar[str]
    HEAD: ClassVar[tuple[int, ...]]

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self.fd = segment.fd
        self.map = segment.map
        self.words = segment.words

    def close(self) -> None:
        """Unmap."""
        self._segment.close()


class FixedStructure(Structure):
    """One of ``SIZE`` bytes, whatever the host."""

    SIZE: ClassVar[int]

    @classmethod
    def create(cls) -> Self:
        """Make the host's (supervisor only); raises ``Fault`` when the memory is not there."""
        return cls(Segment.create(f"tpo-{cls.NAME}", cls.SIZE).signed(*cls.HEAD))

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Map an inherited one; raises ``Fault`` when it is not ours."""
        return cls(Segment.attach(fd, cls.SIZE).checked(cls.NAME, *cls.HEAD))


class SeatStructure(Structure, ABC):
    """One that has a part for each seat."""

    def __init__(self, segment: Segment, seats: int) -> None:
        super().__init__(segment)
        self.seats = seats

    @staticmethod
    @abstractmethod
    def size(seats: int) -> int:
        """Bytes of the segment."""

    @classmethod
    def create(cls, seats: int) -> Self:
        """Make the host's (supervisor only); raises ``Fault`` when the memory is not there."""
        made = Segment.create(f"tpo-{cls.NAME}", cls.size(seats))
        return cls(made.signed(*cls.HEAD, seats), seats)

    @classmethod
    def attach(cls, fd: int, seats: int) -> Self:
        """Map an inherited one; raises ``Fault`` when it is not ours."""
        return cls(Segment.attach(fd, cls.size(seats)).checked(cls.NAME, *cls.HEAD, seats), seats)
