"""Call ids: unique, parseable, and UUIDs to everyone else."""

from __future__ import annotations

import uuid

import pytest

from tpo_mp.shm.callid import BATCH, CallId, CallIds, to_bytes, to_text


def test_an_id_tells_its_seat_and_epoch() -> None:
    """What the id was made from can be read back, up to the widest values."""
    for seat, epoch in ((0, 1), (66, 0x12345678), (0xFFFF, 0xFFFFFFFF)):
        found = CallIds.parse(CallIds(seat, epoch).new())
        assert found is not None
        assert (found.seat, found.epoch) == (seat, epoch)


def test_an_id_is_a_uuid_of_version_eight() -> None:
    """Others may treat it as any UUID, in its canonical spelling."""
    text = CallIds(3, 9).new()
    assert str(uuid.UUID(text)) == text
    assert uuid.UUID(text).variant == uuid.RFC_4122
    assert text[14] == "8"


def test_ids_do_not_repeat() -> None:
    """Neither within a batch nor across batches; the counter alone tells them apart."""
    ids = CallIds(1, 1)
    made = [ids.new() for _ in range(BATCH * 20)]
    parsed = [CallIds.parse(text) for text in made]
    assert len({found.counter for found in parsed if found}) == len(made)


def test_the_counter_carries_over_its_lower_half_and_wraps() -> None:
    """Group boundaries and the end of the counter change nothing but the counter."""
    ids = CallIds(1, 1)
    for start in ((1 << 14) - BATCH, (1 << 26) - BATCH):
        ids._counter = start
        counters = set()
        for _ in range(2 * BATCH):
            found = CallIds.parse(ids.new())
            assert found is not None
            counters.add(found.counter)
        assert counters == {(start + i) % (1 << 26) for i in range(2 * BATCH)}
        ids._ready.clear()


def test_bytes_and_text_are_the_same_id() -> None:
    """Sixteen bytes there and back."""
    text = CallIds(2, 77).new()
    assert len(to_bytes(text)) == 16
    assert to_text(to_bytes(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        str(uuid.UUID(int=0)),
        "00030000-0007-4000-80ff-ad2da0933cf2",
        "00030000-0007-8000-00ff-ad2da0933cf2",
        "00030000-0007-8000-80ff-AD2DA0933CF2",
        "00030000-0007-8000-80ff-ad2da0933cf2\n",
        "00030000 0007-8000-80ff-ad2da0933cf2",
        "00030000-0007-8000-80ff-ad2da0933cf²",
    ],
)
def test_a_foreign_id_is_not_parsed(text: str) -> None:
    """Any other version, variant, spelling or length is refused."""
    assert CallIds.parse(text) is None


def test_a_known_id_parses_to_its_parts() -> None:
    """The layout is a promise: ids are stored."""
    found = CallIds.parse("00030000-0007-8001-8002-ad2da0933cf2")
    assert found == CallId(seat=3, epoch=7, counter=1 << 14 | 2, random=0xAD2DA0933CF2)
