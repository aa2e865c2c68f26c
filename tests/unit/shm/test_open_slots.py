"""Open calls, read beside a living writer: whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tpo_mp.shm import open_slots as module
from tpo_mp.shm.open_slots import OpenSlots
from tpo_mp.shm.registry import Registry, RegistryWriter, SlotFlag, SlotState

SEATS = 4
META = b"meta" * 10


def call_id(n: int) -> bytes:
    """An id."""
    return n.to_bytes(16, "big")


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[Registry]:
    """A registry for a few calls."""
    made = Registry.create_file(tmp_path / "registry", SEATS, 64)
    yield made
    made.close()


@pytest.mark.parametrize("size", [0, 7, 934, 935, 100_000])
def test_an_open_call_is_copied_whole(calls: Registry, size: int) -> None:
    """Id, flags, meta and body, inline or from the arena."""
    slots = OpenSlots(calls)
    writer = calls.writer(1, 7)
    slot = writer.open(call_id(5), META, b"b" * size, SlotFlag.ASYNC | SlotFlag.STREAM, 2)
    place = slots.place(1, slot)
    assert list(slots.scan()) == [place]
    call = slots.read(place)
    assert call is not None
    assert (call.call_id, call.meta, call.body) == (call_id(5), META, b"b" * size)
    assert call.flags == SlotFlag.ASYNC | SlotFlag.STREAM
    assert slots.scan() == {place: call.started_ns}


def test_only_unfinished_calls_are_seen(calls: Registry) -> None:
    """Open ones in every state, and those without a letter yet that is due."""
    slots = OpenSlots(calls)
    writer = calls.writer(0, 1)
    seen = []
    for n, state in enumerate(SlotState):
        slot = writer.open(call_id(n), META, b"x", 0)
        writer.set_state(slot, state)
        if state in (1, 2, 3, 4, 7):
            seen.append(slots.place(0, slot))
        else:
            assert slots.read(slots.place(0, slot)) is None
    assert sorted(slots.scan()) == sorted(seen)


def test_a_slot_that_is_used_again_shows_another_instant(calls: Registry) -> None:
    """The scan alone tells that a call has gone and another has come."""
    slots = OpenSlots(calls)
    writer = calls.writer(0, 1)
    slot = writer.open(call_id(1), META, b"one", 0)
    before = slots.scan()
    writer.close(slot)
    assert slots.scan() == {}
    assert writer.open(call_id(2), META, b"two", 0) == slot
    assert slots.scan().keys() == before.keys()
    assert slots.scan() != before


class _Meddler(OpenSlots):
    """Changes the slot at one of the reader's steps."""

    def __init__(self, calls: Registry, writer: RegistryWriter, slot: int, step: int) -> None:
        super().__init__(calls)
        self.writer, self.slot, self.step = writer, slot, step
        self.body = b""

    def _open(self, at: int) -> bool:
        self.step -= 1
        if self.step == 0:
            self.writer.close(self.slot)
            if self.body:
                assert self.writer.open(call_id(9), META, self.body, 0) == self.slot
        return super()._open(at)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("again", [b"", b"other", b"o" * 50_000])
@pytest.mark.parametrize("size", [5, 50_000])
def test_a_call_that_changes_while_it_is_read_is_not_copied(
    calls: Registry, step: int, again: bytes, size: int
) -> None:
    """Closed, or closed and reopened, between two steps: nothing rather than a mixture."""
    writer = calls.writer(0, 1)
    slot = writer.open(call_id(1), META, b"1" * size, 0)
    slots = _Meddler(calls, writer, slot, step)
    slots.body = again
    assert slots.read(slots.place(0, slot)) is None


def test_a_slot_that_makes_no_sense_is_skipped(calls: Registry) -> None:
    """Lengths and places are checked."""
    slots = OpenSlots(calls)
    slot = calls.writer(0, 1).open(call_id(1), META, b"x" * 5000, 0)
    at = calls.geometry.base(0) + slot * 1024
    calls.segment.map[at + 12 : at + 16] = b"\xff\xff\xff\xff"
    assert slots.read(slots.place(0, slot)) is None
    calls.segment.map[at + 12 : at + 16] = b"\1\0\0\0"
    calls.segment.map[at + 32 : at + 34] = b"\xff\xff"
    assert slots.read(slots.place(0, slot)) is None


def test_it_works_with_fences_too(calls: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of processors that reorder."""
    monkeypatch.setattr(module, "FENCED", True)
    slots = OpenSlots(calls)
    slot = calls.writer(0, 1).open(call_id(1), META, b"x", 0)
    assert slots.read(slots.place(0, slot)) is not None


def test_a_count_of_bytes_that_moves_does_not_spoil_the_copy(
    calls: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that is being sent all the while is copied whole."""
    slots, writer = OpenSlots(calls), calls.writer(0, 1)
    slot = writer.open(call_id(5), META, b"body", SlotFlag.STREAM)
    looked = slots._open
    counts = iter(range(100, 110))

    def moving(at: int) -> bool:
        writer.set_sent(slot, next(counts))
        return looked(at)

    monkeypatch.setattr(slots, "_open", moving)
    call = slots.read(slots.place(0, slot))
    assert call is not None
    assert call.body == b"body"
