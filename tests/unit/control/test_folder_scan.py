"""A look through a folder: what counts as a document, what is left out, what is never opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tpo_mp.control import folder_scan
from tpo_mp.control.folder_scan import Changing, LeftOut, read, scan, title_of


def write(root: Path, path: str, text: bytes = b"words") -> Path:
    """A file, with its folders."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text)
    return file


def test_texts_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Markdown and plain text, in folders of any name but hidden ones."""
    for path in ("b.md", "a/deep/c.TXT", "a/é.markdown", ".git/x.md", ".hidden.md", "x.pdf", "y"):
        write(tmp_path, path)
    found = scan(tmp_path, 10)
    assert list(found.files) == ["b.md", "a/é.markdown", "a/deep/c.TXT"]
    assert (found.left_out, found.unseen) == ({}, [])
    assert len(set(found.files.values())) == 3
    assert all(read(tmp_path, path, stamp) == "words" for path, stamp in found.files.items())


def test_what_is_no_file_is_left_out_and_said(tmp_path: Path) -> None:
    """Links to files and folders, pipes, and names that are no text; nothing waits for a pipe."""
    root = tmp_path / "root"
    write(tmp_path, "outside/secret.md")
    write(root, "a.md")
    (root / "link.md").symlink_to(tmp_path / "outside/secret.md")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.md")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.md")).write_text("words")
    found = scan(root, 10)
    assert list(found.files) == ["a.md"]
    assert {path: why[:16] for path, why in found.left_out.items()} == {
        "link.md": "it is a symbolic", "folder": "it is a symbolic", "loop": "it is a symbolic",
        "pipe.md": "it is no file", "?.md": "its name is not ",
    }  # fmt: skip
    for path in ("link.md", "pipe.md"):
        with pytest.raises((LeftOut, Changing)):
            read(root, path, found.files["a.md"])


def test_a_look_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In files, bytes of one, depth, and entries that are looked at."""
    for n in range(4):
        write(tmp_path, f"{n}.md")
    write(tmp_path, "big.md", b"x" * 101)
    write(tmp_path, "d/" * 3 + "deep.md")
    monkeypatch.setattr(folder_scan, "MOST_BYTES", 100)
    monkeypatch.setattr(folder_scan, "MOST_DEPTH", 2)
    found = scan(tmp_path, 3)
    assert list(found.files) == ["0.md", "1.md", "2.md"]
    assert set(found.left_out) == {"3.md", "big.md", "d/d/d"}
    monkeypatch.setattr(folder_scan, "ENTRIES_PER_FILE", 1)
    cut = scan(tmp_path, 3)
    assert (cut.files, cut.unseen, list(cut.left_out)) == ({}, [""], ["."])


def test_a_folder_that_cannot_be_looked_into_is_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had may be there still; the folder itself being away is an error."""
    write(tmp_path, "a.md")
    write(tmp_path, "closed/b.md")
    looked = os.scandir

    def refusing(path: Path) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return looked(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = scan(tmp_path, 10)
    assert (list(found.files), found.unseen) == (["a.md"], ["closed/"])
    assert found.left_out == {"closed": "it cannot be read: Permission denied"}
    with pytest.raises(FileNotFoundError):
        scan(tmp_path / "none", 10)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"a\x00b", "é".encode("latin-1")])
def test_what_is_no_text_is_left_out(tmp_path: Path, data: bytes) -> None:
    """Whatever its name says."""
    write(tmp_path, "a.md", data)
    stamp = scan(tmp_path, 10).files["a.md"]
    with pytest.raises(LeftOut) as caught:
        read(tmp_path, "a.md", stamp)
    assert not caught.value.may_be


def test_a_file_that_changed_since_the_look_is_left_for_the_next(tmp_path: Path) -> None:
    """So is one that went."""
    file = write(tmp_path, "a.md")
    stamp = scan(tmp_path, 10).files["a.md"]
    file.write_bytes(b"more words")
    with pytest.raises(Changing):
        read(tmp_path, "a.md", stamp)
    file.unlink()
    with pytest.raises(Changing):
        read(tmp_path, "a.md", stamp)


def test_a_title_is_the_first_heading_or_the_name() -> None:
    """Of whatever length."""
    assert title_of("a/b.md", "text\n#  Opening hours \n# Other") == "Opening hours"
    assert title_of("a/b.c.md", "#\n## Smaller") == "b.c"
    assert len(title_of("b.md", "# " + "x" * 999)) == 256
