"""The config double buffer: whole blobs or nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import pytest

from tests.support.deaths import dies_at
from tpo_mp.errors import ConfigError, Fault
from tpo_mp.shm import epochs
from tpo_mp.shm.epochs import HALF_BYTES, ConfigBuffer
from tpo_mp.shm.segment import Segment


@pytest.fixture
def buffer() -> Iterator[ConfigBuffer]:
    """An empty buffer."""
    made = ConfigBuffer.create()
    yield made
    made.close()


def test_nothing_is_read_before_it_is_published(buffer: ConfigBuffer) -> None:
    """An empty buffer has no epoch, least of all number zero."""
    assert buffer.newest() == 0
    assert buffer.read(0) is None
    assert buffer.read(1) is None


def test_the_newest_two_epochs_can_be_read(buffer: ConfigBuffer) -> None:
    """A seat may still be building the chain of the epoch before."""
    for epoch in (1, 2, 3, 7):
        buffer.publish(epoch, b"blob %d" % epoch)
    assert buffer.newest() == 7
    assert buffer.read(7) == b"blob 7"
    assert buffer.read(3) == b"blob 3"
    assert buffer.read(2) is None


def test_a_second_mapping_sees_the_blob(buffer: ConfigBuffer) -> None:
    """What the supervisor publishes is what another mapping reads."""
    other = ConfigBuffer.attach(os.dup(buffer.fd))
    buffer.publish(1, b"shared")
    assert other.read(1) == b"shared"
    other.close()


def test_an_empty_and_a_largest_blob_fit(buffer: ConfigBuffer) -> None:
    """Both ends of the size range survive; one byte more is refused."""
    buffer.publish(1, b"")
    buffer.publish(2, b"x" * HALF_BYTES)
    assert buffer.read(1) == b""
    assert buffer.read(2) == b"x" * HALF_BYTES
    with pytest.raises(ConfigError, match="at most"):
        buffer.publish(3, b"x" * (HALF_BYTES + 1))
    assert buffer.read(2) is not None


def test_epochs_only_grow(buffer: ConfigBuffer) -> None:
    """A number that is not new is a defect of the caller."""
    buffer.publish(5, b"five")
    for epoch in (0, 4, 5):
        with pytest.raises(ValueError, match="is not after 5"):
            buffer.publish(epoch, b"again")


def test_a_flipped_bit_is_noticed(buffer: ConfigBuffer) -> None:
    """Neither a changed blob nor a changed length passes for the epoch."""
    buffer.publish(1, b"precious")
    segment = buffer._segment
    segment.map[epochs.DATA_AT + HALF_BYTES] ^= 1
    assert buffer.read(1) is None
    segment.map[epochs.DATA_AT + HALF_BYTES] ^= 1
    assert buffer.read(1) == b"precious"
    for length in (7, 9, 1 << 60):
        segment.words[2 * epochs.HEAD_WORDS + 1] = length
        assert buffer.read(1) is None


def test_a_publisher_that_dies_leaves_the_epoch_before(buffer: ConfigBuffer) -> None:
    """Whatever line it died at: the newest epoch stands, the new one is whole or not there."""
    epoch, lived = 1, False
    buffer.publish(epoch, b"first")
    for event in range(1, 100):
        blob = b"blob %d" % event
        lived = not dies_at(event, partial(buffer.publish, epoch + 1, blob), epochs)
        assert buffer.read(epoch) is not None
        assert buffer.read(epoch + 1) in (None, blob)
        epoch = buffer.newest()
        if lived:
            break
    assert lived


def test_a_foreign_segment_is_refused() -> None:
    """Another layout behind the descriptor is a fault, not a guess."""
    segment = Segment.create("foreign", ConfigBuffer.SIZE)
    with pytest.raises(Fault):
        ConfigBuffer.attach(os.dup(segment.fd))
    segment.close()
