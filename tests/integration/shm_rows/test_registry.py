"""The registry under death: every open call of a dead process, whole, exactly once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.shm_rows.actors import payload
from tests.support.actor import StartActor
from tpo_mp.shm.registry import Orphan, Registry

SEATS, MAX_OPEN = 5, 256
SIZES = [0, 10, 260, 942, 943, 2048, 2049, 9000, 70_000, 1 << 20, 260, 5000]


@pytest.fixture
def calls(platform: str, tmp_path: Path) -> Iterator[Registry]:
    """A registry that children inherit."""
    made = Registry.create_file(tmp_path / "registry", SEATS, MAX_OPEN)
    yield made
    made.close()


def number(orphan: Orphan) -> int:
    """The call's number; its meta and body must be that call's."""
    n = int.from_bytes(orphan.call_id, "big")
    assert orphan.meta == payload(n, 40)
    assert orphan.body is not None
    assert orphan.body == payload(n, len(orphan.body))
    return n


def harvest(calls: Registry) -> list[int]:
    """Do as control does: read each orphan, then give its slot back."""
    found = []
    for orphan in calls.orphans():
        found.append(number(orphan))
        calls.harvested(orphan.seat, orphan.slot)
    return found


def test_a_killed_writers_calls_are_orphans_exactly_once(
    calls: Registry, actor: StartActor
) -> None:
    """Open ones with their bodies, closed ones not, and none again after the harvest."""
    common = (calls.fd, SEATS, MAX_OPEN)
    writers = [
        actor("open_calls", *common, seat, 1, SIZES, 100 * seat, fds=(calls.fd,)) for seat in (0, 1)
    ]
    for writer in writers:
        assert writer.said() == "open"
    writers[0].kill()
    assert list(calls.orphans()) == [], "not before the supervisor has said so"
    calls.orphan_seat(0, 1)
    left = [n for n, _ in enumerate(SIZES) if n % 3]
    assert [len(o.body or b"") for o in sorted(calls.orphans(), key=number)] == [
        SIZES[n] for n in left
    ]
    assert sorted(harvest(calls)) == left
    assert harvest(calls) == []
    assert calls.orphan_seat(0, 1) == 0, "marking again finds nothing"
    writers[1].kill()
    calls.orphan_seat(1, 1)
    assert sorted(harvest(calls)) == [100 + n for n, _ in enumerate(SIZES) if (100 + n) % 3]


def test_a_successor_in_the_seat_does_not_touch_them(calls: Registry, actor: StartActor) -> None:
    """The next occupant fills the area while control has not come yet."""
    common = (calls.fd, SEATS, MAX_OPEN, 0)
    first = actor("open_calls", *common, 1, SIZES, 1, fds=(calls.fd,))
    assert first.said() == "open"
    first.kill()
    calls.orphan_seat(0, 1)
    before = sorted(number(orphan) for orphan in calls.orphans())
    second = actor("open_calls", *common, 2, SIZES * 10, 1000, fds=(calls.fd,))
    assert second.said() == "open"
    assert sorted(number(orphan) for orphan in calls.orphans()) == before
    second.kill()
    calls.orphan_seat(0, 2)
    found = Counter(harvest(calls))
    assert set(found.values()) == {1}
    assert [n for n in sorted(found) if n < 1000] == before


def test_a_busy_writer_killed_at_any_moment_leaves_whole_calls(
    calls: Registry, actor: StartActor, rng: random.Random
) -> None:
    """Five kills at random moments: about fifty calls each, all intact, none twice."""
    for epoch in range(1, 6):
        writer = actor("churn_calls", calls.fd, SEATS, MAX_OPEN, 2, epoch, fds=(calls.fd,))
        assert writer.said() == "ready"
        for _ in range(rng.randrange(3000)):
            list(calls.orphans())
            if rng.random() < 0.001:
                break
        writer.kill()
        calls.orphan_seat(2, epoch)
        found = harvest(calls)
        assert len(set(found)) == len(found)
        assert len(found) <= 51


def test_a_writer_killed_while_opening_leaves_all_or_nothing(
    calls: Registry, actor: StartActor
) -> None:
    """SIGKILL at every line of opening a large call."""
    survived, found = False, []
    for event in range(1, 40):
        victim = actor("tear_open", calls.fd, SEATS, MAX_OPEN, 0, event, event, fds=(calls.fd,))
        survived = victim.said() == "survived"
        victim.process.wait()
        calls.orphan_seat(0, event)
        found.append(harvest(calls))
        assert found[-1] in ([], [event])
        if survived:
            break
    assert survived
    assert [] in found
    assert found[-1]


def test_everyone_killed_is_a_cold_start(
    calls: Registry, actor: StartActor, tmp_path: Path
) -> None:
    """The file alone tells the next run what was open; the pages were never synced."""
    writer = actor("open_calls", calls.fd, SEATS, MAX_OPEN, 3, 4, SIZES, 1, fds=(calls.fd,))
    assert writer.said() == "open"
    writer.kill()
    calls.close()
    left = Registry.attach_path(tmp_path / "registry")
    assert left.orphan_all() == sum(1 for n, _ in enumerate(SIZES, 1) if n % 3)
    assert sorted(harvest(left)) == [n for n, _ in enumerate(SIZES, 1) if n % 3]
    left.close()
