"""Files are read once, told apart by what a directory says of them, and bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tpo_mp.errors import ConfigError
from tpo_mp.simulator.kept_files import LINES_AT_ONCE, KeptFiles, giving_way


class Counted:
    """A parser that counts; a file that says ``bad`` is."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, path: Path) -> str:
        """Answer the text."""
        self.times += 1
        text = path.read_text()
        if text == "bad":
            raise ConfigError(f"{path}: bad")
        return text


def test_a_file_is_read_again_only_when_it_was_written(tmp_path: Path) -> None:
    """Also one of the same length at another moment."""
    parse, path = Counted(), tmp_path / "a"
    kept = KeptFiles(parse, most=2, most_bytes=100)
    path.write_text("one")
    os.utime(path, ns=(1, 1))
    assert not kept.knows(path)
    assert [kept.read(path), kept.read(path)] == ["one", "one"]
    assert (parse.times, kept.knows(path)) == (1, True)
    path.write_text("two")
    os.utime(path, ns=(2, 2))
    assert not kept.knows(path)
    assert kept.read(path) == "two"


def test_what_is_wrong_is_found_once(tmp_path: Path) -> None:
    """And told each time."""
    parse, path = Counted(), tmp_path / "a"
    kept = KeptFiles(parse, most=2, most_bytes=100)
    path.write_text("bad")
    for _ in range(2):
        with pytest.raises(ConfigError, match="bad"):
            kept.read(path)
    assert (parse.times, kept.knows(path)) == (1, True)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    """So many of them."""
    kept = KeptFiles(Counted(), most=2, most_bytes=100)
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
        kept.read(path)
    assert [kept.knows(path) for path in paths] == [False, True, True]


def test_what_is_no_plain_file_is_refused_unopened(tmp_path: Path) -> None:
    """A pipe would never end; neither would a device."""
    pipe, long = tmp_path / "pipe", tmp_path / "long"
    os.mkfifo(pipe)
    long.write_text("x" * 101)
    parse = Counted()
    kept = KeptFiles(parse, most=2, most_bytes=100)
    for path, said in (
        (pipe, "not a plain file"), (tmp_path, "not a plain file"),
        (Path("/dev/zero"), "not a plain file"), (long, "over 100 bytes"),
        (tmp_path / "none", "No such file"), (Path("a\0b"), "null"),
    ):  # fmt: skip
        assert kept.knows(path)
        with pytest.raises(ConfigError, match=said):
            kept.read(path)
    assert parse.times == 0


def test_lines_keep_their_numbers() -> None:
    """Blank ones are counted and left out."""
    lines = [b"a\n", b" \n", b"b\n", *[b"c\n"] * LINES_AT_ONCE]
    found = list(giving_way(lines))
    assert found[:3] == [(1, b"a\n"), (3, b"b\n"), (4, b"c\n")]
    assert len(found) == LINES_AT_ONCE + 2
