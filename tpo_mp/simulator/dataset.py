"""Answers from a data set: JSON lines of a prompt and what is said to it.

::

    {"prompt": "What is the capital of France?", "answer": "Paris."}

Invariants: a prompt is found by its hash, so a row costs its answer only; file and rows are
bounded; a line that is no row is told with its number.
Known weakness: at boot the file is read whole on the loop, which nobody waits for yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from tpo_mp.errors import ConfigError

from .kept_files import KeptFiles, giving_way

MOST_FILE_BYTES: Final = 64 << 20
MOST_ROWS: Final = 200_000


class DatasetRow(Struct, frozen=True):
    """One line; other fields are ignored."""

    prompt: str
    answer: Annotated[str, Meta(max_length=131_072)]


_decode = msgspec.json.Decoder(DatasetRow).decode


def hash_of(prompt: str) -> bytes:
    """What a prompt is found by; blanks around it do not matter."""
    return blake2b(prompt.strip().encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _parsed(path: Path) -> Mapping[bytes, str]:
    found: dict[bytes, str] = {}
    with path.open("rb") as lines:
        for number, line in giving_way(lines):
            if number > MOST_ROWS:
                raise ConfigError(f"{path}: more than {MOST_ROWS} lines")
            try:
                row = _decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path}: line {number}: {error}") from None
            found.setdefault(hash_of(row.prompt), row.answer)
    if not found:
        raise ConfigError(f"{path}: no prompt is in it")
    return found


KEPT: Final = KeptFiles(_parsed, most=2, most_bytes=MOST_FILE_BYTES)
read: Final = KEPT.read
"""Answers by the hash of their prompt; raises ``ConfigError`` with line and reason."""


def problems(path: str) -> Iterator[tuple[str, str]]:
    """What is wrong with the file of ``[simulator] dataset``."""
    if path:
        try:
            read(Path(path))
        except ConfigError as error:
            yield "dataset", error.message
