"""What an engine writes: lines, bars, and two files of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tpo_mp.supervisor.engine_log import MAX_LINE, EngineLog, log_path


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., EngineLog]]:
    """Open logs of the engine ``e``; close them after the test."""
    made: list[EngineLog] = []

    def begin(limit_bytes: int = 4096, unsaid: str = "", folder: Path = tmp_path) -> EngineLog:
        made.append(EngineLog(folder, "e", limit_bytes, unsaid))
        return made[-1]

    yield begin
    for log in made:
        log.close()


def lines(folder: Path, ending: str = "") -> list[str]:
    """What is in the file."""
    path = log_path(folder, "e")
    return path.with_name(path.name + ending).read_text().splitlines()


def test_pieces_become_lines_and_the_last_is_kept(
    tmp_path: Path, make: Callable[..., EngineLog]
) -> None:
    """However they were cut; colours are taken out, and our own questions left out."""
    log = make(unsaid="GET /health HTTP")
    for piece in (b"on", b"e\r", b"\ntwo\x1b[31m red\x1b[0m\nGET /health HTTP/1.1 200\n", b"end"):
        log.feed(piece, 0.0)
    assert lines(tmp_path) == ["one", "two red"]
    log.feed(b"", 0.0)
    assert lines(tmp_path) == ["one", "two red", "end"]
    log.feed(b"---\n", 0.0)
    assert log.last_line() == "end"


def test_a_bar_is_a_line_a_second(tmp_path: Path, make: Callable[..., EngineLog]) -> None:
    """However often it redraws itself."""
    log = make()
    for step in range(30):
        log.feed(b"load %d%%\r" % step, step / 10)
    log.feed(b"done\n", 3.0)
    assert lines(tmp_path) == ["load 0%", "load 10%", "load 20%", "done"]


def test_the_file_is_turned_over_at_its_size(
    tmp_path: Path, make: Callable[..., EngineLog]
) -> None:
    """One old one is kept, and neither is larger than the limit, also over a new start."""
    for _ in range(2):
        log = make()
        for number in range(200):
            log.feed(b"line %03d %s\n" % (number, b"x" * 40), 0.0)
        log.close()
    path = log_path(tmp_path, "e")
    sizes = [p.stat().st_size for p in (path, path.with_name(f"{path.name}.1"))]
    assert all(0 < size <= 4096 for size in sizes), sizes
    assert lines(tmp_path)[-1].startswith("line 199")
    assert lines(tmp_path, ".1")[-1][:8] < lines(tmp_path)[0][:8]
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, f"{path.name}.1"]


def test_a_line_without_an_end_is_cut(tmp_path: Path, make: Callable[..., EngineLog]) -> None:
    """It takes no more memory than a line may."""
    log = make(1 << 20)
    for _ in range(10):
        log.feed(b"y" * 1500, 0.0)
    assert max(map(len, lines(tmp_path))) == MAX_LINE


def test_it_is_loud_until_told_otherwise(
    tmp_path: Path, make: Callable[..., EngineLog], capfd: pytest.CaptureFixture[str]
) -> None:
    """On standard error while it loads, and only in the file then."""
    log = make()
    log.feed(b"loading\n", 0.0)
    log.aloud = False
    log.feed(b"serving\n", 0.0)
    assert capfd.readouterr().err == "engine-e | loading\n"
    assert lines(tmp_path) == ["loading", "serving"]


def test_no_folder_to_write_in_costs_lines_only(
    tmp_path: Path, make: Callable[..., EngineLog]
) -> None:
    """What was said last is known all the same."""
    log = make(folder=tmp_path / "absent")
    log.feed(b"out of memory\n", 0.0)
    assert log.last_line() == "out of memory"
