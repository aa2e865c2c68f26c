"""What control groups say of memory, in both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tpo_mp.supervisor import memory_room
from tpo_mp.supervisor.memory_room import MemoryRoom

TWO = {
    "memory.max": "1000", "memory.current": "100", "memory.events": "oom 2\noom_kill 2",
    "app/memory.max": "max", "app/memory.current": "90",
    "app/one/memory.max": "500", "app/one/memory.current": "400",
    "app/one/memory.stat": "anon 300\ninactive_file 60\nactive_file 40",
}  # fmt: skip
ONE = {
    "memory/app/one/memory.limit_in_bytes": "500",
    "memory/app/one/memory.usage_in_bytes": "400",
    "memory/app/one/memory.stat": "inactive_file 1\ntotal_inactive_file 60\ntotal_active_file 40",
    "memory/app/memory.limit_in_bytes": "9223372036854771712",
    "memory/app/memory.usage_in_bytes": "450",
    "memory/app/memory.oom_control": "oom_kill_disable 0\noom_kill 2",
}


@pytest.mark.parametrize(
    ("files", "own"), [(TWO, "0::/app/one"), (ONE, "4:memory:/app/one")], ids=["v2", "v1"]
)
def test_the_narrowest_group_counts(files: dict[str, str], own: str, tmp_path: Path) -> None:
    """Without the pages of files; a limit of its own or of those above."""
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "own").write_text(own + "\n")
    where = tmp_path / "groups", tmp_path / "own"
    assert memory_room.limit_bytes(*where) == 500
    assert memory_room.room(*where) == MemoryRoom(500, 300)
    assert memory_room.kills(*where) == 2


def test_where_nobody_says_there_is_no_limit(tmp_path: Path) -> None:
    """Nor is there where it is rubbish."""
    where = tmp_path, tmp_path / "own"
    assert (memory_room.room(*where), memory_room.kills(*where)) == (None, 0)
    (tmp_path / "memory.max").write_bytes(b"\xff many")
    (tmp_path / "memory.current").write_text("-4")
    assert memory_room.room(*where) is None
