"""Folders of documents: what the store has after a look, and what a later look changes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_env import FakeWorld
from tests.unit.control.test_jobs import NowKeeper
from tpo_mp.control import folders as module
from tpo_mp.control.folder_scan import Found
from tpo_mp.control.folders import Folders
from tpo_mp.stages.rag import Config, Folder
from tpo_mp.store import rag_table
from tpo_mp.store.rag_questions import RagChange
from tpo_mp.store.shelf import Shelf, ShelfOptions
from tpo_mp.store.tables import Tables


class House:
    """A shelf, a folder, and the one who reads it into the shelf, who lives as often as asked."""

    def __init__(self, place: Path) -> None:
        self.root = place / "docs"
        self.root.mkdir()
        self.keeper = NowKeeper(Shelf(place / "store", ShelfOptions()))
        self.world = FakeWorld()
        self.said: list[tuple[str, str]] = []
        self.now = time.time() + 3600
        self.again()

    def again(self) -> None:
        """Another control process."""
        self.folders = Folders(
            self.keeper, self, self.world.env.metrics,  # type: ignore[arg-type]
            clock=lambda: self.now,
        )  # fmt: skip

    def warning(self, event: str, **more: Any) -> None:
        """Be a log."""
        self.said.append((event, more.get("file", "")))

    def plan(self, *folders: Folder, **options: Any) -> Config:
        """A configuration; of this folder, unless it names others."""
        chosen = folders or (Folder(name="f", path=str(self.root)),)
        return Config(folders=chosen, **options)

    def look(self, plan: Config | None = None) -> None:
        """One look."""
        chosen = plan or self.plan()
        self.folders.configure(chosen)
        asyncio.run(self.folders.look(chosen))

    def tables(self, work: Any) -> Any:
        """Ask the store."""
        return self.keeper.shelf.with_tables(work)

    def found(self, words: str = "words", tenant: str = "") -> list[str]:
        """Which documents have a word."""
        hits = self.tables(lambda t: rag_table.search(t, tenant, words, 50))
        return sorted(hit.id for hit in hits)

    def loads(self) -> int:
        """How many documents were ever kept."""

        def last(tables: Tables) -> int:
            row = tables.read("SELECT seq FROM sqlite_sequence WHERE name='rag_documents'")
            return int(row.fetchone()[0])

        return int(self.tables(last))

    def write(self, path: str, text: str = "words") -> Path:
        """A file."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A new one."""
    made = House(tmp_path)
    yield made
    made.keeper.shelf.close()


def test_a_folder_is_followed(house: House) -> None:
    """New, changed, moved and removed files; what did not change is not read again."""
    house.write("a.md", "# Alpha\nwords")
    house.write("sub/b.txt")
    house.look()
    assert house.found() == ["f/a.md", "f/sub/b.txt"]
    assert house.tables(lambda t: rag_table.search(t, "", "alpha", 9))[0].title == "Alpha"
    house.write("a.md", "other things now")
    (house.root / "sub/b.txt").rename(house.root / "c.md")
    house.look()
    assert (house.found(), house.found("other")) == (["f/c.md"], ["f/a.md"])
    before = house.loads()
    house.look()
    house.again()
    house.look()
    assert house.loads() == before, "read once, also over the death of a process"
    house.write("c.md", " \n")
    house.look()
    assert house.found() == []
    (house.root / "a.md").unlink()
    house.look()
    assert house.found("other") == []


def test_a_document_of_a_client_is_left_alone(house: House) -> None:
    """Folders change only what came from them."""
    change = RagChange("", "a", "", most_documents=9, most_bytes=999)
    house.tables(lambda t: rag_table.change(t, change.key(), b"words"))
    house.write("a.md")
    house.look()
    house.look(Config())
    assert house.found() == ["a"]


def test_files_of_another_tenant_are_moved_to_it(house: House) -> None:
    """And nobody else finds them: not for a moment after the look that saw the change."""
    house.write("a.md")
    house.look(house.plan(Folder(name="f", path=str(house.root), tenant="one")))
    assert (house.found(tenant="one"), house.found()) == (["f/a.md"], [])
    house.look(house.plan(Folder(name="f", path=str(house.root), tenant="two")))
    assert (house.found(tenant="one"), house.found(tenant="two")) == ([], ["f/a.md"])


def test_what_cannot_be_seen_is_kept_as_it_was(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is away, or a file without permission; what is no text any more goes."""
    file = house.write("a.md")
    house.look()
    house.root.rename(house.root.with_name("away"))
    house.look()
    assert (house.found(), house.said) == (["f/a.md"], [("rag_file_left_out", ".")])
    house.root.with_name("away").rename(house.root)
    file.write_text("more words")

    def refused(*_: Any) -> str:
        raise module.LeftOut("it cannot be read", may_be=True)

    monkeypatch.setattr(module, "read", refused)
    house.look()
    assert house.found() == ["f/a.md"]
    monkeypatch.undo()
    file.write_bytes(b"words \xff")
    for _ in range(3):
        house.look()
    assert house.found() == []
    assert house.said[1:] == [("rag_file_left_out", "a.md")] * 2, "each reason once"


def test_only_what_lies_in_a_folder_that_cannot_be_looked_into_may_be_there_still(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However deep; and what thousands of files are compared with is not the loop's to do."""
    for path in ("a/b/c.md", "a/bb.md", "ab/c.md"):
        house.write(path)
    house.look()
    threads: list[int] = []

    def scan(root: Path, most_files: int) -> Found:
        return Found(unseen=["a/b/"])

    class Seen(module._Seen):
        def compare(self, *args: Any) -> None:
            threads.append(threading.get_ident())
            super().compare(*args)

    monkeypatch.setattr(module, "scan", scan)
    monkeypatch.setattr(module, "_Seen", Seen)
    house.look()
    assert house.found() == ["f/a/b/c.md"]
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


def test_there_is_room_for_no_more_than_the_caps(house: House) -> None:
    """In documents and in bytes; what had no room is read when there is some."""
    for name in "abc":
        house.write(f"{name}.md", "words " * 10)
    house.look(house.plan(max_documents=2))
    assert house.found() == ["f/a.md", "f/b.md"]
    assert house.said == [("rag_file_left_out", "c.md")]
    (house.root / "a.md").unlink()
    house.look(house.plan(max_documents=2))
    assert house.found() == ["f/b.md", "f/c.md"]
    house.write("d.md", "words " * 10)
    house.look(house.plan(max_bytes=150))
    assert house.found() == ["f/b.md", "f/c.md"]


def test_a_file_just_written_waits_for_the_next_look(house: House) -> None:
    """What it said before stays meanwhile."""
    file = house.write("a.md")
    house.look()
    file.write_text("other words")
    house.now = file.stat().st_mtime + module.SETTLED_S / 2
    house.look()
    assert (house.found(), house.found("other")) == (["f/a.md"], [])
    house.now += 3600
    house.look()
    assert house.found("other") == ["f/a.md"]


def test_without_a_store_nothing_happens(house: House) -> None:
    """And the next look finds all."""
    house.write("a.md")
    house.keeper.broken = True
    house.look()
    house.keeper.broken = False
    house.look()
    assert house.found() == ["f/a.md"]
