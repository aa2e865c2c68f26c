"""Which files must be read before a simulator is built."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tpo_mp.backends.simulator import Config
from tpo_mp.simulator import dataset, samples
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


def test_recorded_waits_of_profiles_are_read_too(tmp_path: Path) -> None:
    """Those of the config and those a change brings, however deep they stand."""
    paths = [tmp_path / name for name in ("own", "cold", "told")]
    for path in paths:
        path.write_text("1 2 3")
    own, cold, told = ({"shape": "empirical", "file": str(path)} for path in paths)
    profile = {"first_token_ms": own, "cold_start": {"first_token_ms": cold}}
    config = msgspec.convert(
        {"name": "sim", "kind": "simulator", "profiles": {"mine": profile}}, Config
    )
    work = unread([config], {"profiles": {"other": {"stalls": {"ms": told}}}})
    assert work is not None
    assert not any(samples.KEPT.knows(path) for path in paths)
    work()
    assert all(samples.KEPT.knows(path) for path in paths)
    assert unread([config], {}) is None
    for odd in (5, {"x": 5}, {"x": {"file": 7}}, {"x": {"file": str(tmp_path / "none")}}):
        assert unread([config], {"profiles": odd}) is None
