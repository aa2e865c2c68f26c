"""Recorded numbers from a file: a JSON list, or one number after the other.

Numbers are set apart by blanks, commas or lines; what follows ``#`` in a line is a remark.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Final

import orjson

MOST_SAMPLES: Final = 100_000
MOST_BYTES: Final = 4 << 20


def read_samples(path: Path) -> list[float]:
    """The numbers of a file; raises ``ValueError`` saying what is wrong with it."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    if len(text) > MOST_BYTES:
        raise ValueError(f"{path}: over {MOST_BYTES} bytes")
    samples = _json(text, path) if text.lstrip()[:1] == b"[" else _plain(text, path)
    if not samples:
        raise ValueError(f"{path}: no numbers in it")
    if len(samples) > MOST_SAMPLES:
        raise ValueError(f"{path}: over {MOST_SAMPLES} numbers")
    for number in samples:
        if not 0 <= number < math.inf:
            raise ValueError(f"{path}: {number!r} is no number from 0 on")
    return samples


def _json(text: bytes, path: Path) -> list[float]:
    try:
        read = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    for item in read:
        if not isinstance(item, int | float) or isinstance(item, bool):
            raise ValueError(f"{path}: {item!r} is no number")
    return [float(item) for item in read]


def _plain(text: bytes, path: Path) -> list[float]:
    samples = []
    for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
        for word in re.split(r"[\s,]+", line.partition("#")[0].strip()):
            if not word:
                continue
            try:
                samples.append(float(word))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {word[:32]!r} is no number") from error
    return samples
