"""The copy of the open calls: it says what is open, and only changes are written."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tpo_mp.control import copyist as module
from tpo_mp.control.copyist import RETRY_S, Copyist
from tpo_mp.shm.open_slots import OpenSlots
from tpo_mp.shm.registry import Registry, SlotFlag
from tpo_mp.store.framing import Disk
from tpo_mp.store.open_copy import CopiedCall, OpenCopy, OpenCopyReader

MARK = (1, 8)
META = b"meta" * 10


class Desk:
    """A registry with one writer, and its copy on a disk that can be told to fail."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry.create_file(folder / "registry", 4, 64)
        self.writer = self.registry.writer(0, 1)
        self.path = folder / "copy"
        self.now = 100.0
        self.writes: list[int] = []
        self.full = False
        self.opened = 0
        self.copyist = Copyist(
            OpenSlots(self.registry), OpenCopy(self.path, Disk(self._write)), 1 << 20,
            clock=lambda: self.now,
        )  # fmt: skip

    def _write(self, fd: int, blob: bytes) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "no space left on device")
        self.writes.append(len(blob))
        return os.write(fd, blob)

    def open(self, body: bytes = b"body") -> int:
        """Accept a call; its number is its id."""
        self.opened += 1
        return self.writer.open(self.opened.to_bytes(16, "big"), META, body, 0)

    def update(self) -> bool:
        """Look and write."""
        return self.copyist.update(MARK)

    def copied(self) -> dict[int, CopiedCall]:
        """What the file says, by the call's number."""
        calls = OpenCopyReader(self.path).calls()
        return {int.from_bytes(call.call_id, "big"): call for call in calls}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A fresh one."""
    made = Desk(tmp_path)
    yield made
    made.copyist.remove()
    made.registry.close()


def test_the_file_says_what_is_open(desk: Desk) -> None:
    """Calls come, go, and take each other's slots; the file follows."""
    first, second = desk.open(b"1"), desk.open(b"2" * 5000)
    assert desk.update()
    assert {n: call.body for n, call in desk.copied().items()} == {1: b"1", 2: b"2" * 5000}
    desk.writer.close(first)
    desk.writer.close(second)
    assert desk.open(b"3") in (first, second)
    assert desk.update()
    assert {n: call.body for n, call in desk.copied().items()} == {3: b"3"}
    assert desk.copyist.calls == 1
    assert desk.copyist.file_bytes == desk.path.stat().st_size


def test_while_nothing_changes_nothing_is_written(desk: Desk) -> None:
    """Neither with open calls nor without any; an idle gateway has no file at all."""
    assert desk.update()
    assert (desk.writes, desk.path.exists()) == ([], False)
    slot = desk.open()
    desk.update()
    before = len(desk.writes)
    assert desk.update()
    desk.writer.set_state(slot, 3)
    assert desk.update()
    assert len(desk.writes) == before
    desk.writer.close(slot)
    desk.update()
    before = len(desk.writes)
    assert desk.update()
    assert len(desk.writes) == before


def test_only_what_changed_is_written(desk: Desk) -> None:
    """One call more among many large ones costs one record."""
    for _ in range(50):
        desk.open(b"x" * 2000)
    desk.update()
    assert sum(desk.writes) > 100_000
    desk.writes.clear()
    desk.open(b"small")
    desk.update()
    assert sum(desk.writes) < 200


def test_any_history_ends_in_what_is_open(
    desk: Desk, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random traffic, with the file written anew again and again and the disk failing at times."""
    monkeypatch.setattr(module, "SLACK_BYTES", 2000)
    live: dict[int, int] = {}
    for _ in range(600):
        if live and rng.random() < 0.5:
            number = rng.choice(list(live))
            desk.writer.close(live.pop(number))
        elif len(live) < 40:
            slot = desk.open(b"b" * rng.randrange(1500))
            live[desk.opened] = slot
        desk.full = rng.random() < 0.05
        asked = rng.sample(list(live.values()), min(3, len(live)))
        if rng.random() < 0.3 and desk.copyist.add(asked, MARK) and asked:
            told = desk.copied()
            assert all(n in told for n, slot in live.items() if slot in asked)
        if rng.random() < 0.3 and desk.update() and desk.path.exists():
            assert desk.copied().keys() == live.keys()
        desk.now += RETRY_S / 3
    desk.full, desk.now = False, desk.now + RETRY_S
    assert desk.update()
    assert desk.copied().keys() == live.keys()


def test_the_file_stays_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traffic for ever never makes it longer than twice what is open and the slack."""
    monkeypatch.setattr(module, "SLACK_BYTES", 10_000)
    longest = 0
    keep = desk.open(b"kept")
    for _ in range(300):
        slot = desk.open(b"x" * 900)
        desk.update()
        longest = max(longest, desk.path.stat().st_size)
        desk.writer.close(slot)
    assert longest < 10_000 + 2 * 1100 + 1100
    desk.update()
    assert list(desk.copied()) == [1]
    desk.writer.close(keep)


def test_bodies_beyond_the_cap_are_left_out_and_counted(desk: Desk) -> None:
    """Their calls become letters all the same, flagged; counted once however often written."""
    desk.copyist.cap_bytes = 10_000
    slots = [desk.open(b"x" * 4000) for _ in range(4)]
    desk.update()
    copied = desk.copied()
    assert [len(call.body) for call in copied.values()].count(4000) == 2
    cut = [call for call in copied.values() if not call.body]
    assert [call.flags for call in cut] == [SlotFlag.TRUNCATED] * 2
    assert (desk.copyist.cut, desk.copyist.calls) == (2, 4)
    desk.copyist._file.close()
    desk.update()
    assert desk.copyist.cut == 2
    for slot in slots:
        desk.writer.close(slot)
    desk.open(b"x" * 4000)
    desk.update()
    assert (desk.copyist.cut, len(desk.copied()[5].body)) == (2, 4000)


def test_a_failed_disk_is_tried_again_later_with_everything(desk: Desk) -> None:
    """Not at once, not as if nothing had happened, and nobody is told that it was synced."""
    desk.open()
    desk.full = True
    assert not desk.update()
    desk.full = False
    assert not desk.update(), "not before the pause is over"
    assert not desk.copyist.add([0], MARK)
    assert (desk.copyist.errors, desk.copyist.broken) == (1, True)
    desk.now += RETRY_S
    assert desk.copyist.add([0], MARK)
    assert (desk.copyist.errors, desk.copyist.broken) == (1, False)
    assert list(desk.copied()) == [1]


def test_a_failure_that_left_nothing_to_write_is_over(desk: Desk) -> None:
    """The calls ended before the disk had room again: there is no file, and none is missing."""
    desk.full = True
    slot = desk.open()
    assert not desk.update()
    assert desk.copyist.broken
    desk.writer.close(slot)
    assert desk.update()
    assert not desk.copyist.broken
    assert not desk.path.exists()


def test_asked_calls_are_synced_without_looking_at_the_others(desk: Desk) -> None:
    """What is there already is not written twice."""
    first = desk.open()
    assert desk.copyist.add([first], MARK)
    second, _ = desk.open(), desk.open()
    assert desk.copyist.add([first, second], MARK)
    assert list(desk.copied()) == [1, 2]
    before = len(desk.writes)
    assert desk.copyist.add([first, second], MARK)
    assert len(desk.writes) == before
    assert desk.update()
    assert list(desk.copied()) == [1, 2, 3]


def test_at_the_end_a_file_stays_only_for_what_is_open(desk: Desk) -> None:
    """A clean end leaves none, even one that an earlier control process had written."""
    slot = desk.open()
    desk.update()
    desk.open()
    desk.copyist.end(MARK)
    assert list(desk.copied()) == [1, 2]
    desk.writer.close(slot)
    desk.writer.close(slot + 1)
    desk.copyist.end(MARK)
    assert not desk.path.exists()
