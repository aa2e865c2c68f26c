"""Recorded numbers: the two forms, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tpo_mp.simulator.distributions import Empirical
from tpo_mp.simulator.samples import read_samples


def test_both_forms_are_read(tmp_path: Path) -> None:
    """A JSON list, or numbers set apart by anything."""
    path = tmp_path / "waits"
    path.write_text("# ms\n1, 2.5\n 3e1 # slow\n\n")
    assert list(read_samples(path)) == [1, 2.5, 30]
    path.write_text("[1, 2.5]")
    assert list(read_samples(path)) == [1, 2.5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no numbers in it"),
        ("# nothing\n", "no numbers in it"),
        ("[]", "no numbers in it"),
        ("1\n2 two", "line 2: 'two' is no number"),
        ("-1", "is no number from 0 on"),
        ("nan", "is no number from 0 on"),
        ("inf", "is no number from 0 on"),
        ("[1, true]", "True is no number"),
        ("[1,", "waits"),
        ("1 " * 100_001, "over 100000 numbers"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, said: str) -> None:
    """With the file's name."""
    path = tmp_path / "waits"
    path.write_text(text)
    with pytest.raises(ValueError, match="waits") as told:
        read_samples(path)
    assert said in str(told.value)


def test_file_that_is_not_there_or_too_long_is_told(tmp_path: Path) -> None:
    """Nothing is read without end."""
    with pytest.raises(ValueError, match="No such file"):
        read_samples(tmp_path / "waits")
    with (tmp_path / "waits").open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(ValueError, match="over 4194304 bytes"):
        read_samples(tmp_path / "waits")


def test_a_file_is_read_once_until_it_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By everything that is built of it."""
    path = tmp_path / "waits"
    path.write_text("3 1 2")
    opened: list[Path] = []
    real = Path.open

    def counted(self: Path, *args: Any, **more: Any) -> Any:
        opened.append(self)
        return real(self, *args, **more)

    monkeypatch.setattr(Path, "open", counted)
    for _ in range(3):
        assert Empirical(file=str(path)).quantile(1.0) == 3
    assert opened == [path]
    with real(path, "w") as file:
        file.write("3 1 2 40")
    assert Empirical(file=str(path)).quantile(1.0) == 40
    assert opened == [path, path]
