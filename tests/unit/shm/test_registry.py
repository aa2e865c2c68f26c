"""The call registry: an open call outlives its process, once, with its body."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.deaths import dies_at
from tpo_mp.errors import Fault
from tpo_mp.shm import registry
from tpo_mp.shm.registry import (
    Registry,
    RegistryWriter,
    SlotFlag,
    SlotState,
)  # fmt: skip
from tpo_mp.shm.registry_layout import (
    HEADER_BYTES,
    INLINE_BYTES,
    MAX_ARENA,
    PAGE_BYTES,
    SLOT_BYTES,
    RegistryGeometry,
)

SEATS = 4  # one worker, a spare, an overlap, control
META = b"meta" * 10


def call_id(n: int) -> bytes:
    """An id."""
    return n.to_bytes(16, "big")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file lies."""
    return tmp_path / "registry"


@pytest.fixture
def calls(path: Path) -> Iterator[Registry]:
    """A registry for a few calls."""
    made = Registry.create_file(path, SEATS, 64)
    yield made
    made.close()


def fill(writer: RegistryWriter, n: int) -> list[int]:
    """Open ``n`` small calls."""
    return [writer.open(call_id(i), META, b"body %d" % i, 0) for i in range(n)]


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 64])
def test_a_host_has_room_for_all_its_calls(workers: int) -> None:
    """The active seats alone hold ``max_open_calls`` and a quarter more, in bounded memory."""
    geometry = RegistryGeometry.of(workers + 3, 16_384)
    assert geometry.slots * workers >= 16_384 * 5 // 4
    assert geometry.arena in (1 << 22, 1 << 23, 1 << 24)
    limit = 128 if workers <= 2 else 512
    assert Registry.size(workers + 3, 16_384) <= limit << 20


def test_an_open_call_becomes_an_orphan_with_all_it_had(calls: Registry) -> None:
    """Every field comes back as it was written."""
    writer = calls.writer(1, 7)
    slot = writer.open(call_id(5), META, b"hello", SlotFlag.ASYNC | SlotFlag.STREAM, 2)
    writer.set_state(slot, SlotState.FIRST_BYTE)
    assert list(calls.orphans()) == []
    assert calls.orphan_seat(1, 7) == 1
    (orphan,) = calls.orphans()
    assert (orphan.seat, orphan.slot, orphan.epoch) == (1, slot, 7)
    assert orphan.call_id == call_id(5)
    assert orphan.state_before is SlotState.FIRST_BYTE
    assert orphan.flags == SlotFlag.ASYNC | SlotFlag.STREAM
    assert orphan.attempts == 2
    assert (orphan.meta, orphan.body) == (META, b"hello")
    assert orphan.started_wall_ms > 1_600_000_000_000


def test_a_closed_call_leaves_nothing(calls: Registry) -> None:
    """Finished is finished; closing twice, or touching it later, changes nothing."""
    writer = calls.writer(0, 1)
    first, second = fill(writer, 2)
    writer.close(first)
    writer.close(first)
    writer.set_state(first, SlotState.SENT)
    assert writer.open_count == 1
    assert calls.orphan_seat(0, 1) == 1
    assert [orphan.slot for orphan in calls.orphans()] == [second]


def test_a_settled_call_is_left_until_it_is_closed(calls: Registry) -> None:
    """It was answered: its occupant closes it behind its record, or control makes that."""
    writer = calls.writer(0, 1)
    settled, closed, left = fill(writer, 3)
    for slot in (settled, closed):
        writer.set_state(slot, SlotState.SETTLED)
    writer.close(closed)
    calls.orphan_seat(0, 1)
    states = {orphan.slot: orphan.state_before for orphan in calls.orphans()}
    assert states == {settled: SlotState.SETTLED, left: SlotState.ACCEPTED}
    slots = fill(calls.writer(0, 2), calls.slots_per_seat - 2)
    assert sorted(slots) == sorted(set(range(calls.slots_per_seat)) - {settled, left})


def test_an_orphan_says_how_far_its_stream_came(calls: Registry) -> None:
    """The last count, nothing for a call that has none, and -1 where it is not known."""
    writer = calls.writer(0, 1)
    counted, silent, unknown = slots = fill(writer, 3)
    writer.set_sent(counted, 10)
    writer.set_sent(counted, 5 << 32)
    writer.set_sent(unknown, -1)
    calls.orphan_seat(0, 1)
    orphans = {orphan.slot: orphan for orphan in calls.orphans()}
    assert [orphans[slot].bytes_sent for slot in (counted, silent, unknown)] == [5 << 32, 0, -1]
    assert [orphans[slot].body for slot in slots] == [b"body 0", b"body 1", b"body 2"]


def test_a_slot_used_again_starts_at_nothing_sent(calls: Registry) -> None:
    """Inline or from the arena."""
    for body in (b"x", b"x" * 5000):
        writer = calls.writer(0, 1)
        slot = writer.open(call_id(1), META, body, 0)
        writer.set_sent(slot, 99)
        writer.close(slot)
        assert writer.open(call_id(2), META, body, 0) == slot
        assert calls.orphan_seat(0, 1) == 1
        (orphan,) = calls.orphans()
        assert orphan.bytes_sent == 0
        calls.harvested(0, slot)


def test_attempts_are_kept_and_saturate(calls: Registry) -> None:
    """One byte counts them."""
    writer = calls.writer(0, 1)
    a, b = fill(writer, 2)
    writer.set_attempts(a, 3)
    writer.set_attempts(b, 1000)
    calls.orphan_all()
    assert [orphan.attempts for orphan in calls.orphans()] == [3, 255]


def test_bodies_of_any_size_come_back(calls: Registry) -> None:
    """Inside the slot, in the arena, and at every boundary between."""
    writer, bodies = calls.writer(0, 1), []
    edge = INLINE_BYTES - len(META)
    for n in (0, 1, edge, edge + 1, PAGE_BYTES, PAGE_BYTES + 1, 100_000, 3 << 20):
        body = bytes([n % 251]) * n
        slot = writer.open(call_id(n), META, body, 0)
        offset, length = writer.body_ref(slot)
        assert length == n
        assert calls.read_body(0, offset, length) == body
        bodies.append(body)
    calls.orphan_all()
    assert sorted(o.body or b"" for o in calls.orphans()) == sorted(bodies)
    assert not any(o.flags & SlotFlag.TRUNCATED for o in calls.orphans())


def test_a_body_that_finds_no_room_is_cut_and_flagged(calls: Registry) -> None:
    """A full arena costs the body its end, never the call its slot."""
    writer = calls.writer(0, 1)
    small = writer.open(call_id(1), META, b"s" * 5000, 0)
    huge = writer.open(call_id(2), META, b"h" * (MAX_ARENA + 1), SlotFlag.STREAM)
    assert writer.body_ref(huge)[1] < MAX_ARENA
    calls.orphan_all()
    found = {orphan.slot: orphan for orphan in calls.orphans()}
    assert found[small].body == b"s" * 5000
    assert found[huge].flags == SlotFlag.STREAM | SlotFlag.TRUNCATED
    assert found[huge].body == b"h" * (INLINE_BYTES - len(META))


def test_arena_pages_return_when_a_call_closes(calls: Registry) -> None:
    """A thousand large calls one after another all fit."""
    writer = calls.writer(0, 1)
    for n in range(1000):
        slot = writer.open(call_id(n), META, b"x" * (5 << 20), 0)
        assert writer.body_ref(slot)[1] == 5 << 20
        writer.close(slot)


def test_open_calls_never_share_a_byte(calls: Registry, rng: random.Random) -> None:
    """Random opens and closes: every open call's body is intact at the end."""
    writer, bodies = calls.writer(0, 1), dict[int, bytes]()
    for n in range(3000):
        if bodies and rng.random() < 0.45:
            slot = rng.choice(list(bodies))
            writer.close(slot)
            del bodies[slot]
            continue
        body = rng.randbytes(rng.choice((10, 300, 900, 1500, 5000, 40_000)))
        slot = writer.open(call_id(n), META, body, 0)
        assert slot >= 0
        assert slot not in bodies
        bodies[slot] = body
    assert writer.open_count == len(bodies)
    for slot, body in bodies.items():
        offset, length = writer.body_ref(slot)
        assert calls.read_body(0, offset, length) == body[:length]
        assert length == len(body)


def test_a_full_area_answers_minus_one(calls: Registry) -> None:
    """The caller sheds; a close makes room again."""
    writer = calls.writer(0, 1)
    slots = fill(writer, calls.slots_per_seat)
    assert sorted(slots) == list(range(calls.slots_per_seat))
    assert writer.open(call_id(1), META, b"", 0) == -1
    assert writer.open(call_id(1), META, b"x" * 5000, 0) == -1
    writer.close(slots[3])
    assert writer.open(call_id(1), META, b"x" * 5000, 0) == slots[3]


def test_too_long_a_meta_is_refused_before_anything_is_taken(calls: Registry) -> None:
    """It would not come back whole."""
    writer = calls.writer(0, 1)
    with pytest.raises(ValueError, match="meta"):
        writer.open(call_id(1), b"m" * (INLINE_BYTES + 1), b"", 0)
    assert writer.open_count == 0
    slot = writer.open(call_id(1), b"m" * INLINE_BYTES, b"body", 0)
    calls.orphan_all()
    (orphan,) = calls.orphans()
    assert (orphan.slot, orphan.meta, orphan.body) == (slot, b"m" * INLINE_BYTES, b"body")


def test_only_the_dead_occupants_calls_are_orphaned(calls: Registry) -> None:
    """Other seats, and a later occupation of the same seat, go on."""
    fill(calls.writer(0, 1), 2)
    fill(calls.writer(1, 1), 3)
    fill(calls.writer(0, 2), 4)
    assert calls.orphan_seat(0, 1) == 2
    assert {(o.seat, o.epoch) for o in calls.orphans()} == {(0, 1)}
    assert calls.orphan_seat(0, 2) == 4


def test_control_has_no_area(calls: Registry) -> None:
    """Its death orphans nothing; it cannot open calls."""
    assert calls.orphan_seat(SEATS - 1, 1) == 0
    with pytest.raises(IndexError):
        calls.writer(SEATS - 1, 1)


def test_a_successor_leaves_orphans_alone_until_they_are_harvested(calls: Registry) -> None:
    """Neither their slots nor their pages are written before control has the dead letter."""
    old = calls.writer(0, 1)
    bodies = [bytes([n]) * (1 << 20) for n in range(10)]
    for n, body in enumerate(bodies):
        old.open(call_id(n), META, body, 0)
    calls.orphan_seat(0, 1)
    new = calls.writer(0, 2)
    assert new.open_count == 0
    slots = [new.open(call_id(99), META, b"new" * 100_000, 0) for _ in range(20)]
    orphans = list(calls.orphans())
    assert [orphan.body for orphan in orphans] == bodies
    assert not set(slots) & {orphan.slot for orphan in orphans}
    for orphan in orphans:
        calls.harvested(orphan.seat, orphan.slot)
    assert list(calls.orphans()) == []
    assert new.reclaim() == 10
    for slot in slots:
        new.close(slot)
    assert new.open_count == 0
    largest = new.open(call_id(1), META, b"x" * (16 << 20), 0)
    assert new.body_ref(largest)[1] == 16 << 20, "all pages came back"


def test_a_full_area_takes_harvested_slots_by_itself(calls: Registry) -> None:
    """Nobody has to call ``reclaim``."""
    fill(calls.writer(0, 1), 2)
    calls.orphan_seat(0, 1)
    new = calls.writer(0, 2)
    fill(new, calls.slots_per_seat - 2)
    assert new.open(call_id(1), META, b"", 0) == -1
    for orphan in list(calls.orphans()):
        calls.harvested(orphan.seat, orphan.slot)
    assert new.open(call_id(1), META, b"", 0) >= 0


def test_a_full_arena_takes_harvested_pages_by_itself(calls: Registry) -> None:
    """A body is not cut while pages wait to be taken back."""
    calls.writer(0, 1).open(call_id(1), META, b"x" * (16 << 20), 0)
    calls.orphan_seat(0, 1)
    new = calls.writer(0, 2)
    cut = new.open(call_id(1), META, b"y" * 5000, 0)
    assert new.body_ref(cut)[1] < 5000
    (orphan,) = calls.orphans()
    calls.harvested(orphan.seat, orphan.slot)
    whole = new.open(call_id(1), META, b"y" * 5000, 0)
    assert new.body_ref(whole)[1] == 5000


def test_harvest_of_a_live_call_is_refused(calls: Registry) -> None:
    """Only an orphan's slot can be given back by control."""
    (slot,) = fill(calls.writer(0, 1), 1)
    calls.harvested(0, slot)
    assert calls.orphan_seat(0, 1) == 1


def test_a_cold_start_finds_what_everyone_left(path: Path) -> None:
    """The file alone is enough, whatever geometry the new run has; orphans stay orphans."""
    before = Registry.create_file(path, SEATS, 64)
    fill(before.writer(0, 1), 3)
    fill(before.writer(2, 9), 2)
    before.orphan_seat(2, 9)
    before.close()
    left = Registry.attach_path(path)
    assert left.orphan_all() == 3
    assert left.orphan_all() == 0
    assert len(list(left.orphans())) == 5
    left.close()


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(1 << 16), b"TPOREGS1" + bytes(1 << 16)])
def test_a_foreign_file_is_refused(path: Path, content: bytes) -> None:
    """Not ours, cut short or of another version: a fault, and the file is left as it is."""
    path.write_bytes(content)
    with pytest.raises(Fault, match="is not a call registry"):
        Registry.attach_path(path)
    assert path.read_bytes() == content


def test_another_geometry_is_refused(calls: Registry) -> None:
    """A process started with other numbers must not write here."""
    with pytest.raises(Fault):
        Registry.attach(os.dup(calls.fd), SEATS, 1 << 15)
    calls.segment.words[3] += 1
    with pytest.raises(Fault, match="another layout"):
        Registry.attach(os.dup(calls.fd), SEATS, 64)


@pytest.mark.parametrize(("offset", "length"), [(0, 10), (34, 1 << 40), (1 << 40, 1)])
def test_a_reference_outside_the_area_is_refused(calls: Registry, offset: int, length: int) -> None:
    """A peer's frame cannot make us read elsewhere."""
    with pytest.raises(Fault, match="outside"):
        calls.read_body(0, offset, length)


@pytest.mark.parametrize("size", [200, 5000], ids=["inline", "arena"])
def test_an_occupant_that_dies_in_open_leaves_all_or_nothing(calls: Registry, size: int) -> None:
    """Whatever line it died at: no orphan, or one with its whole body; no page is lost."""
    found, died = 0, True
    for event in range(1, 200):
        writer = calls.writer(0, event)
        body = bytes([event]) * size
        died = dies_at(event, partial(writer.open, call_id(7), META, body, 0), registry)
        calls.orphan_seat(0, event)
        orphans = list(calls.orphans())
        assert [(o.epoch, o.meta, o.body) for o in orphans] in ([], [(event, META, body)])
        for orphan in orphans:
            calls.harvested(orphan.seat, orphan.slot)
            found += 1
        if not died:
            break
    assert not died
    assert found >= 1
    last = calls.writer(0, 500)
    whole = last.open(call_id(1), META, b"x" * (16 << 20), 0)
    assert last.body_ref(whole)[1] == 16 << 20


def test_a_supervisor_that_dies_while_orphaning_is_repeated(calls: Registry) -> None:
    """Every call is an orphan once, with the state it had, after the walk at the cold start."""
    for event in range(1, 200):
        writer = calls.writer(0, event)
        for slot, state in zip(fill(writer, 3), (1, 2, 3), strict=True):
            writer.set_state(slot, state)
        died = dies_at(event, partial(calls.orphan_seat, 0, event), registry)
        calls.orphan_all()
        orphans = list(calls.orphans())
        assert sorted(orphan.state_before for orphan in orphans) == [1, 2, 3]
        for orphan in orphans:
            calls.harvested(orphan.seat, orphan.slot)
        if not died:
            break
    assert not died


def test_damage_never_raises(calls: Registry, rng: random.Random) -> None:
    """Random bytes in the slots cost those calls, not the walk."""
    fill(calls.writer(0, 1), 200)
    base = HEADER_BYTES
    for _ in range(5000):
        at = base + rng.randrange(220 * SLOT_BYTES)
        calls.segment.map[at] = rng.randrange(256)
    calls.orphan_all()
    for orphan in calls.orphans():
        assert orphan.body is None or len(orphan.body) <= MAX_ARENA * 2
    calls.writer(0, 2).open(call_id(1), META, b"x", 0)
