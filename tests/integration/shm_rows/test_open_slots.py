"""Open calls read beside a worker that opens and closes them as fast as it can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.shm_rows.actors import payload
from tests.support.actor import StartActor
from tpo_mp.shm.open_slots import OpenSlots
from tpo_mp.shm.registry import Registry

SEATS, MAX_OPEN = 5, 256
WANTED = 10_000


@pytest.fixture
def calls(platform: str, tmp_path: Path) -> Iterator[Registry]:
    """A registry that children inherit."""
    made = Registry.create_file(tmp_path / "registry", SEATS, MAX_OPEN)
    yield made
    made.close()


def test_a_busy_writers_calls_are_copied_whole_or_not_at_all(
    calls: Registry, actor: StartActor
) -> None:
    """Inline and from the arena; every copy's meta and body are those of its id."""
    slots = OpenSlots(calls)
    writer = actor("churn_calls", calls.fd, SEATS, MAX_OPEN, 1, 1, fds=(calls.fd,))
    assert writer.said() == "ready"
    whole = changed = 0
    sizes: set[int] = set()
    while whole < WANTED or not changed:
        for place, started_ns in slots.scan().items():
            call = slots.read(place)
            if call is None:
                changed += 1
                continue
            n = int.from_bytes(call.call_id, "big")
            assert call.started_ns >= started_ns
            assert call.meta == payload(n, 40)
            assert call.body == payload(n, (10, 300, 1200, 30_000)[n % 4])
            sizes.add(len(call.body))
            whole += 1
    print(f"{whole} whole, {changed} changed meanwhile")
    assert sizes == {10, 300, 1200, 30_000}
