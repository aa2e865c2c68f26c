"""The slot map between two real processes: never torn, whatever its writer dies of."""

from __future__ import annotations

import random
import signal
import time

from tests.support.ring_parent import RingPair
from tests.support.wait import wait_for

KILLS = 100


def test_map_is_never_torn_by_a_writer_killed_at_any_instant(seed: int) -> None:
    """Every map read has one publication's cells; a torn one yields the last good in time."""
    rng = random.Random(seed)
    versions: set[int] = set()
    took: list[float] = []
    with RingPair({}) as pair:
        pair.start("nursery")
        # A writer that got no processor published nothing: more are killed then.
        while len(took) < KILLS or (len(versions) <= KILLS // 2 and len(took) < 10 * KILLS):
            pair.order(
                act="publish_until_killed", largest=100, kill_after_s=rng.uniform(0.0005, 0.004)
            )
            status = None
            while status is None:
                status = pair.died()
                version, cells = pair.plane.read_map()
                assert len(set(cells)) == 1, f"torn map, version {version}"
                versions.add(version)
            assert status == -signal.SIGKILL
            before = time.perf_counter()
            version, cells = pair.plane.read_map()
            assert version % 2 == 0
            assert len(set(cells)) == 1
            took.append(time.perf_counter() - before)
    assert sorted(took)[len(took) // 2] < 1, "a reader waits for the dead"
    assert len(versions) > KILLS // 2, "maps were published in between"


def test_beat_of_another_process_is_seen(seed: int) -> None:
    """A word one process adds to is what another reads, without a fence or a call."""
    with RingPair({}) as pair:
        pair.start("flood", seed=seed)
        first = wait_for(lambda: pair.plane.seat(0).beat, what="first beat")
        wait_for(lambda: pair.plane.seat(0).beat > first, what="next beat")
