"""The ring as a state machine: it behaves like a deque, and under damage like a lossy one."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support.effort import examples
from tests.support.rings import SmallRing, number_of, numbered
from tpo_mp.shm.ring import RingMesh
from tpo_mp.shm.ring_layout import DATA, MAX_CAPACITY, RETRY_NS

SIZES = st.one_of(st.integers(0, 60), st.integers(0, 228), st.sampled_from([3, 4, 5, 19, 20, 21]))
BATCHES = st.lists(SIZES, max_size=12)


class RingLikeDeque(RuleBasedStateMachine):
    """Every record accepted comes out once, in order; refusal changes nothing."""

    @initialize(capacity=st.sampled_from([1024, 2048]))
    def birth(self, capacity: int) -> None:
        """Start empty."""
        self.ring = SmallRing(capacity)
        self.epoch = 1
        self.writer = self.ring.writer(self.epoch)
        self.reader = self.ring.reader()
        self.model: deque[bytes] = deque()
        self.stale = 0
        self.next = 0

    def record(self, size: int) -> bytes:
        """Make the next record."""
        self.next += 1
        return numbered(self.next, size)

    @rule(size=SIZES, control=st.booleans())
    def push(self, size: int, control: bool) -> None:
        """One record; it must fit when ``free`` says so and no edge is near."""
        record = self.record(size)
        room = self.writer.free()
        accepted = self.writer.push(record, control=control)
        assert accepted or room < 2 * (len(record) + 32)
        if accepted:
            self.model.append(record)

    @rule(size=SIZES, cut=st.integers(0, 240))
    def push_in_two(self, size: int, cut: int) -> None:
        """One record in two parts."""
        record = self.record(size)
        if self.writer.push2(record[:cut], memoryview(record)[cut:]):
            self.model.append(record)

    @rule(sizes=BATCHES)
    def push_batch(self, sizes: list[int]) -> None:
        """Several at once."""
        records = [self.record(size) for size in sizes]
        self.model.extend(records[: self.writer.push_many(records)])

    @rule(limit=st.integers(1, 40))
    def drain(self, limit: int) -> None:
        """Some of what is there, in order."""
        expected = [self.model.popleft() for _ in range(min(limit, len(self.model)))]
        assert self.reader.drain(limit) == expected

    @rule()
    def reader_dies(self) -> None:
        """Its successor starts empty."""
        words = self.ring.segment.words
        words[16] = words[8]
        self.reader = self.ring.reader()
        self.model.clear()
        self.stale = 0

    @rule()
    def writer_dies(self) -> None:
        """Its successor goes on; what was committed is older than the ring and will be dropped."""
        self.epoch += 1
        self.writer = self.ring.writer(self.epoch)
        self.stale += len(self.model)
        self.model.clear()

    @invariant()
    def nothing_is_damaged(self) -> None:
        """No record ever fails its checksum, and room is never negative."""
        if hasattr(self, "ring"):
            assert self.reader.corrupt == 0
            assert self.reader.stale <= self.stale
            assert 0 <= self.writer.free() <= self.ring.capacity

    def teardown(self) -> None:
        """Whatever happened, the rest comes out."""
        if hasattr(self, "ring"):
            assert self.reader.drain(10_000) == list(self.model)
            assert self.reader.stale == self.stale
            self.ring.segment.close()


class DamagedRing(RuleBasedStateMachine):
    """Bytes flip at random: every record that comes out is genuine, new, and in order."""

    @initialize()
    def birth(self) -> None:
        """Start empty."""
        self.ring = SmallRing()
        self.writer = self.ring.writer()
        self.reader = self.ring.reader()
        self.next = 0
        self.last = 0

    def take(self, limit: int = 256) -> list[int]:
        """Drain and check."""
        numbers = [number_of(record) for record in self.reader.drain(limit)]
        for number in numbers:
            assert self.last < number <= self.next
            self.last = number
        return numbers

    @rule(size=SIZES)
    def push(self, size: int) -> None:
        """Full or not, it must not raise."""
        self.next += 1
        self.writer.push(numbered(self.next, size))

    @rule(sizes=BATCHES)
    def push_batch(self, sizes: list[int]) -> None:
        """Several at once."""
        records = [numbered(self.next + 1 + k, size) for k, size in enumerate(sizes)]
        self.next += len(records)
        self.writer.push_many(records)

    @rule(limit=st.integers(1, 40))
    def drain(self, limit: int) -> None:
        """Nothing false, nothing twice."""
        self.take(limit)

    @rule(place=st.integers(64, DATA + 1023), flip=st.integers(1, 255))
    def damage(self, place: int, flip: int) -> None:
        """Flip bits anywhere behind the ring's constants."""
        self.ring.segment.buf[place] ^= flip

    @rule(
        place=st.sampled_from([64, 65, 66, 70, 72, 76, 80, 87, 128, 129, 130, 135]),
        flip=st.integers(1, 255),
    )
    def damage_index(self, place: int, flip: int) -> None:
        """Flip bits of the indices, where it hurts most."""
        self.ring.segment.buf[place] ^= flip

    def teardown(self) -> None:
        """Once the damage ends, traffic passes again within a few laps."""
        if not hasattr(self, "ring"):
            return
        for _ in range(32):
            self.push(60)
            self.take()
        self.push(60)
        assert self.take() == [self.next]
        self.ring.segment.close()


TestRingLikeDeque = RingLikeDeque.TestCase
TestDamagedRing = DamagedRing.TestCase
TestRingLikeDeque.settings = settings(
    max_examples=examples(150), stateful_step_count=60, deadline=None
)
TestDamagedRing.settings = settings(
    max_examples=examples(300), stateful_step_count=40, deadline=None
)


def test_figures_hold() -> None:
    """A drain that meets damage never stalls a loop for more than a millisecond of retrying."""
    assert RETRY_NS <= 1_000_000
    assert RingMesh.size(2) == 2 * (DATA + MAX_CAPACITY)
