"""Looks through a folder of documents: which files there are, and what one says.

Runs on a thread of its own; nothing here knows a loop.

Invariants: no symbolic link is followed, no device or pipe is waited for, and no more than
``MOST_BYTES`` of a file are read; what is left out is said, with its reason.
"""

from __future__ import annotations

import itertools
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tpo_mp.dialects.rag_shapes import MAX_TEXT_BYTES

SUFFIXES: Final = (".md", ".markdown", ".txt", ".text")
MOST_BYTES: Final = MAX_TEXT_BYTES
MOST_NAME: Final = 256
"""Characters of a path within its folder."""
MOST_DEPTH: Final = 16
ENTRIES_PER_FILE: Final = 10
"""So many entries are looked at for each file that may be there."""
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)


class LeftOut(Exception):
    """A file whose text cannot be had, and why; ``may_be``: what it said before may hold still."""

    def __init__(self, why: str, *, may_be: bool = False) -> None:
        super().__init__(why)
        self.may_be = may_be


class Changing(Exception):
    """A file that is just being written."""


@dataclass(slots=True)
class Found:
    """Files by their path in the folder, with their stamps, and what is left out, with why.

    ``unseen`` are folders that could not be looked into: what they had may be there still.
    """

    files: dict[str, str] = field(default_factory=dict)
    written_at: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)


def scan(root: Path, most_files: int) -> Found:
    """Look at every file, in the order of names; raises ``OSError`` when the folder is away."""
    found = Found()
    entries = most_files * ENTRIES_PER_FILE
    folders = [("", 0)]
    while folders:
        inside, depth = folders.pop()
        try:
            with os.scandir(root / inside) as listed:
                here = sorted(itertools.islice(listed, entries + 1), key=lambda one: one.name)
        except OSError as error:
            if not inside:
                raise
            found.left_out[_printable(inside)] = _why(error)
            found.unseen.append(f"{inside}/")
            continue
        entries -= len(here)
        if entries < 0:
            found.left_out[_printable(inside) or "."] = "there is too much in this folder"
            found.unseen.append("")
            return found
        deeper = []
        for entry in here:
            path = f"{inside}/{entry.name}" if inside else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if depth < MOST_DEPTH:
                    deeper.append((path, depth + 1))
                else:
                    found.left_out[_printable(path)] = "it lies too deep"
            elif entry.name.lower().endswith(SUFFIXES) or entry.is_symlink():
                _look(found, root, path, entry, most_files)
        folders.extend(reversed(deeper))
    return found


def read(root: Path, path: str, stamp: str) -> str:
    """The text of a file that was found; raises ``LeftOut`` or ``Changing``."""
    try:
        fd = os.open(root / path, _FLAGS)
    except FileNotFoundError:
        raise Changing from None
    except OSError as error:
        raise LeftOut(_why(error), may_be=True) from None
    try:
        if stamp_of(root, os.fstat(fd)) != stamp:
            raise Changing
        with open(fd, "rb", closefd=False) as file:
            data = file.read(MOST_BYTES + 1)
        if stamp_of(root, os.fstat(fd)) != stamp:
            raise Changing
    except OSError as error:
        raise LeftOut(_why(error), may_be=True) from None
    finally:
        os.close(fd)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise LeftOut("it is not UTF-8 text") from None
    if "\0" in text:
        raise LeftOut("it is not UTF-8 text")
    return text


def title_of(path: str, text: str) -> str:
    """The first heading of Markdown, else the name of the file."""
    for line in text[:4096].splitlines():
        if line.startswith("# ") and line[2:].strip():
            return line[2:].strip()[:256]
    return path.rpartition("/")[2].rpartition(".")[0][:256]


def stamp_of(root: Path, seen: os.stat_result) -> str:
    """What changes when a file does."""
    return f"{seen.st_mtime_ns}:{seen.st_size}:{seen.st_ino}:{root}"


def _look(found: Found, root: Path, path: str, entry: os.DirEntry[str], most_files: int) -> None:
    shown = _printable(path)
    try:
        seen = entry.stat(follow_symlinks=False)
    except OSError:
        return  # it went meanwhile
    if stat.S_ISLNK(seen.st_mode):
        found.left_out[shown] = "it is a symbolic link"
    elif not stat.S_ISREG(seen.st_mode):
        found.left_out[shown] = "it is no file"
    elif shown != path or len(path) > MOST_NAME:
        found.left_out[shown[:MOST_NAME]] = f"its name is not UTF-8, or over {MOST_NAME} characters"
    elif seen.st_size > MOST_BYTES:
        found.left_out[shown] = f"it has {seen.st_size} bytes, of which {MOST_BYTES} may be"
    elif len(found.files) >= most_files:
        found.left_out[shown] = f"there are {most_files} files before it, which is the most"
    else:
        found.files[path] = stamp_of(root, seen)
        found.written_at[path] = seen.st_mtime


def _printable(path: str) -> str:
    return path.encode("utf-8", "replace").decode()


def _why(error: OSError) -> str:
    return f"it cannot be read: {error.strerror or type(error).__name__}"
