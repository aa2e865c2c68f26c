"""Which files must be read before a simulator is built."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tpo_mp.backends.simulator import Config
from tpo_mp.simulator import dataset, read_ahead, samples
from tpo_mp.simulator.read_ahead import FILES, ReadAhead, unread


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


def test_new_configuration_waits_until_its_files_were_read_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another thread, once, even if a file is written meanwhile; a newer one waits as well."""
    rows = tmp_path / "rows"
    rows.write_text('{"prompt": "a", "answer": "b"}\n')
    configs = [Config(name="sim", kind="simulator", dataset=str(rows))]
    may_read, threads = threading.Event(), []

    def watched(*asked: object) -> Callable[[], None] | None:
        work = unread(*asked)  # type: ignore[arg-type]

        def read() -> None:
            threads.append(threading.get_ident())
            assert may_read.wait(30)
            if work is not None:
                work()

        return read if work is not None else None

    monkeypatch.setattr(read_ahead, "unread", watched)

    async def go() -> None:
        told = asyncio.Event()
        ahead = ReadAhead(told.set)
        assert ahead.waits(1, configs)
        assert ahead.waits(1, configs)
        assert ahead.waits(2, [])
        assert not told.is_set()
        may_read.set()
        await asyncio.wait_for(told.wait(), 30)
        assert dataset.KEPT.knows(rows)
        assert ahead.ready
        rows.write_text('{"prompt": "another", "answer": "b"}\n')
        assert not ahead.waits(1, configs)
        assert not ahead.ready
        assert not ahead.waits(2, [])
        assert ahead.waits(3, configs)
        told.clear()
        await asyncio.wait_for(told.wait(), 30)

    asyncio.run(go())
    assert len(threads) == 2
    assert threading.get_ident() not in threads
