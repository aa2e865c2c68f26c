"""A ring keeps order, room and promises; whatever is damaged is found out, never delivered."""

from __future__ import annotations

import random

import pytest

from tests.support.rings import CAPACITY, SmallRing, number_of, numbered
from tpo_mp.errors import Fault
from tpo_mp.shm import failpoints, ring_reader, ring_writer
from tpo_mp.shm.ring import RingMesh
from tpo_mp.shm.ring_layout import DATA, EPOCH, HEAD, HEADER_BYTES, PROOF, TAIL, ring_capacity
from tpo_mp.shm.ring_writer import FaultyRingWriter, RingWriter


def fill(writer: RingWriter, payload: bytes, *, control: bool = False) -> int:
    """Push until refused; answer how many went in."""
    count = 0
    while writer.push(payload, control=control):
        count += 1
    return count


def test_records_arrive_whole_and_in_order() -> None:
    """What goes in comes out, over several laps, whatever the sizes."""
    small = SmallRing()
    writer, reader = small.writer(), small.reader()
    for number in range(300):
        record = numbered(number, number % 200)
        assert writer.push(record)
        assert reader.drain() == [record]
    assert (reader.corrupt, reader.stale) == (0, 0)


def test_push2_joins_its_two_parts() -> None:
    """Two parts, either possibly empty, are one record."""
    small = SmallRing()
    writer, reader = small.writer(), small.reader()
    assert writer.push2(b"head", memoryview(b"tail"))
    assert writer.push2(b"", b"tail")
    assert writer.push2(b"head", b"")
    assert reader.drain() == [b"headtail", b"tail", b"head"]


def test_push_many_stops_at_the_first_that_does_not_fit() -> None:
    """Its answer is how many went in; the rest is untouched and goes later."""
    small = SmallRing()
    writer, reader = small.writer(), small.reader()
    records = [numbered(number, 100) for number in range(30)]
    sent = writer.push_many(records)
    assert 0 < sent < 30
    assert reader.drain() == records[:sent]
    assert writer.push_many(records[sent:]) == sent
    assert reader.drain() == records[sent : 2 * sent]


def test_push_many_publishes_what_it_wrote_before_a_bad_record() -> None:
    """A record that cannot ever fit raises; those before it are delivered."""
    small = SmallRing()
    writer, reader = small.writer(), small.reader()
    with pytest.raises(ValueError, match="1 to 240 bytes"):
        writer.push_many([b"good", b"x" * 1000])
    assert reader.drain() == [b"good"]


def test_full_ring_refuses_and_recovers() -> None:
    """A full ring says no without blocking, and takes records again once drained."""
    small = SmallRing()
    writer, reader = small.writer(), small.reader()
    count = fill(writer, b"x" * 48)
    assert count == (CAPACITY - CAPACITY // 8) // 64
    assert writer.free() == 0
    assert not writer.push(b"x" * 48)
    assert len(reader.drain()) == count
    assert writer.free() == CAPACITY - CAPACITY // 8
    assert writer.push(b"x")


def test_last_eighth_is_kept_for_control_records() -> None:
    """Credit and cancel pass when data does not."""
    small = SmallRing()
    writer, reader = small.writer(), small.reader()
    data = fill(writer, b"d" * 48)
    assert fill(writer, b"c" * 48, control=True) == CAPACITY // 8 // 64
    assert not writer.push(b"d")
    assert [r[:1] for r in reader.drain()] == [b"d"] * data + [b"c"] * (CAPACITY // 8 // 64)


@pytest.mark.parametrize("size", [0, CAPACITY // 4 - 15])
def test_impossible_sizes_are_the_callers_mistake(size: int) -> None:
    """An empty record, or one over a quarter of the ring, raises and writes nothing."""
    small = SmallRing()
    writer, reader = small.writer(), small.reader()
    with pytest.raises(ValueError, match="1 to 240 bytes"):
        writer.push(b"x" * size)
    with pytest.raises(ValueError, match="1 to 240 bytes"):
        writer.push2(b"", b"x" * size)
    assert reader.drain() == []


def test_largest_record_always_fits_an_empty_ring() -> None:
    """Wherever tail stands, a quarter of the ring plus padding finds room."""
    small = SmallRing()
    writer, reader = small.writer(), small.reader()
    for step in range(64):
        assert writer.push(b"y" * (step % 40 + 1))
        reader.drain()
        record = bytes([step]) * writer.max_record
        assert writer.push(record)
        assert reader.drain() == [record]


def test_drain_honours_its_limit() -> None:
    """A limited drain leaves the rest for the next."""
    small = SmallRing()
    writer, reader = small.writer(), small.reader()
    for number in range(7):
        writer.push(bytes([number]))
    assert reader.drain(3) == [b"\0", b"\1", b"\2"]
    assert reader.pending()
    assert len(reader.drain()) == 4
    assert not reader.pending()


def test_head_moves_before_records_are_handed_over() -> None:
    """A consumer that dies after a drain leaves nothing to be delivered twice."""
    small = SmallRing()
    writer, reader = small.writer(), small.reader()
    writer.push(b"once")
    reader.drain()
    assert small.segment.words[HEAD] == small.segment.words[TAIL]
    assert small.reader().drain() == []


def test_claimed_but_unpublished_record_is_not_seen() -> None:
    """A producer that dies before it stores tail leaves nothing; its successor writes over it."""
    small = SmallRing()
    reader = small.reader()
    for point in ("ring.claimed", "ring.payload_half", "ring.before_commit", "ring.after_commit"):
        armed = {"TPO_TEST": "1", "TPO_FAILPOINTS": f"{point}=raise"}
        failpoints.configure(armed)
        try:
            faulty = FaultyRingWriter(small.segment, 0, small.capacity, 1)
            with pytest.raises(Fault, match=point):
                faulty.push(b"half a record")
        finally:
            failpoints.configure({})
        assert reader.drain() == []
        assert small.writer(2).push(b"whole")
        assert reader.drain() == [b"whole"]
    assert reader.corrupt == 0


@pytest.mark.parametrize("size", [1, 16, 33])
def test_every_damaged_byte_of_an_unread_record_is_found_out(size: int) -> None:
    """Flip each byte in turn: the record is delivered genuine or counted, never false."""
    for place in range(HEADER_BYTES + size):
        small = SmallRing()
        writer, reader = small.writer(), small.reader()
        record = numbered(7, size)[:size]
        writer.push(record)
        small.segment.buf[DATA + place] ^= 0x40
        found = reader.drain()
        harmless = 4 <= place < 12  # sequence and epoch: the consumer knows both without reading
        assert found == ([record] if harmless else [])
        assert reader.corrupt == (0 if harmless else 1)
        assert writer.push(b"next")
        assert reader.drain() == [b"next"]


@pytest.mark.parametrize("word", [TAIL, HEAD, EPOCH, PROOF])
@pytest.mark.parametrize("bit", [3, 4, 6, 9, 10, 11, 20, 40, 63])
def test_damaged_index_heals_and_delivers_nothing_twice(word: int, bit: int) -> None:
    """Any flipped bit of any index: order is kept, nothing is false, and traffic goes on."""
    small = SmallRing()
    writer, reader = small.writer(), small.reader()
    seen: list[int] = []
    for number in range(200):
        if number == 100:
            small.segment.words[word] ^= 1 << bit
        writer.push(numbered(number, 30))
        if number % 3 == 0:
            seen += map(number_of, reader.drain())
    writer.republish()
    seen += map(number_of, reader.drain())
    assert seen == sorted(set(seen))
    assert seen[-1] >= 190


def test_damage_without_further_traffic_heals_by_republishing() -> None:
    """A tail that lost its record shows it again when the producer rechecks."""
    small = SmallRing()
    writer, reader = small.writer(), small.reader()
    writer.push(b"waiting")
    small.segment.words[TAIL] = 0
    assert reader.drain() == []
    writer.republish()
    assert reader.drain() == [b"waiting"]


def test_unread_records_of_a_dead_seat_are_dropped_and_counted() -> None:
    """After ``reset_seat`` what the dead producer left is stale; its successor's records pass."""
    mesh = RingMesh.create(3)
    reader = mesh.reader(0, 1)
    old = mesh.writer(0, 1, 1)
    old.push(b"read in time")
    assert reader.drain() == [b"read in time"]
    old.push(b"too late")
    mesh.reset_seat(0)
    mesh.writer(0, 1, 3).push(b"new")
    assert reader.drain() == [b"new"]
    assert (reader.stale, reader.corrupt) == (1, 0)


def test_records_for_a_dead_seat_do_not_reach_its_successor() -> None:
    """After ``reset_seat`` the new consumer starts with nothing, and the live producer goes on."""
    mesh = RingMesh.create(3)
    writer = mesh.writer(0, 1, 1)
    fill(writer, b"for the dead")
    mesh.reset_seat(1)
    successor = mesh.reader(0, 1)
    assert successor.drain() == []
    assert writer.push(b"for the living")
    assert successor.drain() == [b"for the living"]


def test_records_for_a_dead_heir_wait_for_its_successor() -> None:
    """Nobody else owns what was sent to it; what it sent is stale all the same."""
    mesh = RingMesh.create(3)
    writer, answers = mesh.writer(0, 2, 1), mesh.writer(2, 0, 1)
    writer.push(b"a dead letter")
    answers.push(b"an answer")
    asker = mesh.reader(2, 0)
    mesh.reset_seat(2, heir=2)
    assert mesh.reader(0, 2).drain() == [b"a dead letter"]
    mesh.writer(2, 0, 3).push(b"another answer")
    assert asker.drain() == [b"another answer"]
    assert asker.stale == 1


def test_reset_of_a_dead_seat_mends_a_damaged_tail() -> None:
    """A dead producer's tail that makes no sense is put where its consumer stands."""
    mesh = RingMesh.create(2)
    reader, writer = mesh.reader(0, 1), mesh.writer(0, 1, 1)
    writer.push(b"one")
    assert reader.drain() == [b"one"]
    mesh.segment.words[TAIL] ^= 1 << 50
    mesh.reset_seat(0)
    mesh.writer(0, 1, 2).push(b"two")
    assert reader.drain() == [b"two"]


def test_reset_empties_a_ring_without_live_ends() -> None:
    """Both ends gone: nothing old is left for either successor."""
    mesh = RingMesh.create(2)
    mesh.writer(0, 1, 1).push(b"old")
    mesh.reset(0, 1)
    reader = mesh.reader(0, 1)
    mesh.writer(0, 1, 2).push(b"new")
    assert reader.drain() == [b"new"]
    assert reader.stale == 0


def test_rings_of_a_mesh_do_not_touch_each_other() -> None:
    """Each ordered pair has its own bytes; the mesh's size is exactly theirs."""
    mesh = RingMesh.create(4)
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    for a, b in pairs:
        writer = mesh.writer(a, b, 1)
        fill(writer, f"{a}>{b}".encode() * 300)
    for a, b in pairs:
        reader = mesh.reader(a, b)
        assert set(reader.drain()) == {f"{a}>{b}".encode() * 300}
        assert reader.corrupt == 0
    with pytest.raises(ValueError, match="no ring from seat 2 to seat 2"):
        mesh.writer(2, 2, 1)


@pytest.mark.parametrize(
    ("seats", "capacity"), [(2, 256), (5, 256), (16, 256), (19, 128), (35, 32), (67, 32)]
)
def test_rings_share_64_mib(seats: int, capacity: int) -> None:
    """32 to 256 KiB each, a power of two."""
    assert ring_capacity(seats) == capacity * 1024


def test_mesh_of_another_size_is_refused() -> None:
    """Attaching with the wrong number of seats maps nothing."""
    mesh = RingMesh.create(2)
    with pytest.raises(Fault, match="bytes long"):
        RingMesh.attach(mesh.fd, 3)
    assert RingMesh.attach(mesh.fd, 2).reader(0, 1).drain() == []


def test_mesh_of_another_layout_is_refused() -> None:
    """The right size but not our magic is a fault, not a ring."""
    mesh = RingMesh.create(2)
    mesh.segment.words[0] = 0
    with pytest.raises(Fault, match="another layout"):
        RingMesh.attach(mesh.fd, 2)


@pytest.mark.parametrize("fenced", [False, True])
def test_fenced_and_unfenced_ends_speak_the_same_ring(
    fenced: bool, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    """The fence changes when a store is seen, never what is stored."""
    monkeypatch.setattr(ring_writer, "FENCED", fenced)
    monkeypatch.setattr(ring_reader, "FENCED", fenced)
    small = SmallRing()
    writer, reader = small.writer(), small.reader()
    for number in range(100):
        record = numbered(number, rng.randrange(200))
        assert writer.push(record)
        assert writer.push_many([b"a", b"b"]) == 2
        assert writer.push2(b"c", b"d")
        assert reader.drain() == [record, b"a", b"b", b"cd"]


def test_positions_pass_four_gib() -> None:
    """The sequence wraps with the low 32 bits of the position; nothing else notices."""
    small = SmallRing()
    start = (1 << 32) - 512
    small.segment.words[TAIL] = small.segment.words[HEAD] = start
    writer, reader = small.writer(), small.reader()
    for number in range(50):
        assert writer.push(numbered(number, 40))
        assert reader.drain() == [numbered(number, 40)]
    assert small.segment.words[TAIL] > 1 << 32
    assert reader.corrupt == 0


def test_consumer_that_skipped_to_a_false_tail_comes_back() -> None:
    """Tail damaged forward, read, true again: once it is proven, traffic goes on."""
    small = SmallRing()
    writer, reader = small.writer(), small.reader()
    writer.push(b"a")
    small.segment.words[TAIL] += 512
    assert reader.drain() == [b"a"]
    assert reader.corrupt == 1
    writer.republish()
    assert reader.drain() == []
    writer.push(b"b")
    assert reader.drain() == [b"b"]
