"""Which files must be read before a simulator is built."""

from __future__ import annotations

from pathlib import Path

from tpo_mp.backends.simulator import Config
from tpo_mp.simulator import dataset
from tpo_mp.simulator.read_ahead import FILES, unread


def test_files_of_the_options_and_of_the_config_are_read(tmp_path: Path) -> None:
    """Once; the option wins, and ``None`` gives back to the config."""
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.write_text('{"prompt": "a", "answer": "b"}\n')
    config = Config(name="sim", kind="simulator", dataset=str(first))
    work = unread([config], {"dataset": str(second)})
    assert work is not None
    work()
    assert dataset.KEPT.knows(second)
    assert not dataset.KEPT.knows(first)
    assert unread([config], {"dataset": str(second)}) is None
    for options in ({}, {"dataset": None}):
        assert unread([config], options) is not None
    assert unread([Config(name="sim", kind="simulator")], {}) is None


def test_what_is_wrong_raises_nothing(tmp_path: Path) -> None:
    """It is told by whoever builds; values that no file can have are not looked at."""
    bad = tmp_path / "bad"
    bad.write_text("x")
    options = dict.fromkeys(FILES, str(bad))
    work = unread([object()], options)
    assert work is not None
    work()
    assert unread([object()], options) is None
    values: list[object] = [5, [], "", str(tmp_path / "none"), "a\0b"]
    for value in values:
        assert unread([object()], {"dataset": value}) is None
