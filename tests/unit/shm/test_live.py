"""The live text: replaced whole or not at all, by one of several who try."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import pytest

from tests.support.deaths import dies_at
from tpo_mp.errors import Fault, TooLarge
from tpo_mp.shm import live as live_file
from tpo_mp.shm.live import HALF_BYTES, VERSION_WORD, LiveSegment, LiveText
from tpo_mp.shm.rows import RowTable


@pytest.fixture
def segment() -> Iterator[LiveSegment]:
    """The memory."""
    made = LiveSegment.create()
    yield made
    made.close()


@pytest.fixture
def live(segment: LiveSegment, table: RowTable) -> LiveText:
    """One process's view."""
    return LiveText(segment, table)


@pytest.fixture
def other(segment: LiveSegment, table: RowTable) -> LiveText:
    """Another's."""
    return LiveText(segment, table)


def test_nothing_is_version_zero(live: LiveText) -> None:
    """Before the first text there is none."""
    assert live.version == 0
    assert live.read() == (0, b"")


def test_a_replacement_is_seen_by_everyone(live: LiveText, other: LiveText) -> None:
    """At once, with the next version."""
    for version in range(1, 6):
        text = bytes([version]) * version * 1000
        assert live.replace(version - 1, text)
        assert other.version == version
        assert other.read() == live.read() == (version, text)


def test_who_saw_an_older_version_must_read_again(live: LiveText, other: LiveText) -> None:
    """Two who change the same version: the second is told."""
    assert live.replace(0, b"mine")
    assert not other.replace(0, b"yours")
    assert other.read() == (1, b"mine")
    assert other.replace(1, b"yours")


def test_who_cannot_have_the_lock_changes_nothing(
    live: LiveText, table: RowTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another writes the answer is "not now"."""
    with monkeypatch.context() as patch:
        patch.setattr(table, "acquire", lambda _row, _wait_ns: False)
        assert not live.replace(0, b"text")
    assert live.read() == (0, b"")


def test_a_text_that_does_not_fit_is_refused(live: LiveText) -> None:
    """The largest that does fits whole."""
    with pytest.raises(TooLarge, match=f"{HALF_BYTES + 1} bytes"):
        live.replace(0, b"x" * (HALF_BYTES + 1))
    assert live.version == 0
    assert live.replace(0, b"x" * HALF_BYTES)
    assert live.read() == (1, b"x" * HALF_BYTES)


def test_a_writer_that_dies_leaves_the_old_text_or_the_new(
    live: LiveText, other: LiveText, table: RowTable
) -> None:
    """Whatever line it died at; and the next writer is not hindered."""
    seen = set()
    for event in range(1, 100):
        version, old = live.read()
        new = b"%d" % event * 5000
        died = dies_at(event, partial(other.replace, version, new), live_file)
        table._held.clear()  # the kernel drops a dead process's locks
        found = live.read()
        assert found in ((version, old), (version + 1, new))
        seen.add(found[0] == version)
        if not died:
            break
        assert live.replace(found[0], b"after %d" % event)
    assert seen == {True, False}


def test_a_text_overwritten_while_it_is_read_is_read_again(
    live: LiveText, other: LiveText, segment: LiveSegment
) -> None:
    """A half that is not what the version word says is never taken; the last good copy stands."""
    assert live.replace(0, b"one")
    assert other.read() == (1, b"one")
    segment.words[VERSION_WORD] = 4  # a word that no half agrees with
    assert other.read() == (1, b"one")


def test_another_segment_is_refused(segment: LiveSegment) -> None:
    """A foreign layout is not attached."""
    segment.words[1] = 99
    with pytest.raises(Fault, match="layout"):
        LiveSegment.attach(os.dup(segment.fd))
