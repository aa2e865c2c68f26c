"""Noticing a changed config file."""

from __future__ import annotations

from pathlib import Path

from tpo_mp.supervisor.watch import FileWatch


def test_a_change_counts_once_it_is_still(tmp_path: Path) -> None:
    """Two writes in a row are one change, told 200 ms after the last."""
    path = tmp_path / "tpo.toml"
    path.write_text("a")
    watch = FileWatch(path)
    assert not watch.changed(1.0)
    path.write_text("ab")
    assert not watch.changed(2.0)
    path.write_text("abc")
    assert not watch.changed(2.15)
    assert not watch.changed(2.3)
    assert watch.changed(2.36)
    assert not watch.changed(3.0)


def test_a_file_that_is_gone_for_a_moment_is_no_change(tmp_path: Path) -> None:
    """Editors replace by rename."""
    path = tmp_path / "tpo.toml"
    path.write_text("a")
    watch = FileWatch(path)
    path.unlink()
    assert not watch.changed(1.0)
    path.write_text("b!")
    assert not watch.changed(2.0)
    assert watch.changed(2.3)


def test_a_file_that_appears_is_a_change(tmp_path: Path) -> None:
    """It was missing at start."""
    watch = FileWatch(tmp_path / "late.toml")
    (tmp_path / "late.toml").write_text("a")
    assert not watch.changed(1.0)
    assert watch.changed(1.3)
