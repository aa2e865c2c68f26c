"""Recorded numbers from a file: a JSON list, or one number after the other.

Numbers are set apart by blanks, commas or lines; what follows ``#`` in a line is a remark.

Invariants: a file is read once, until it is written anew; what is kept of it is a double a number.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import orjson

from tpo_mp.errors import ConfigError

from .kept_files import KeptFiles

MOST_SAMPLES: Final = 100_000
MOST_BYTES: Final = 4 << 20


def read_samples(path: Path) -> Sequence[float]:
    """The numbers of a file, rising; raises ``ValueError`` saying what is wrong with it."""
    try:
        return KEPT.read(path)
    except ConfigError as error:
        raise ValueError(error.message) from None


def _parsed(path: Path) -> Sequence[float]:
    with path.open("rb") as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{path}: over {MOST_BYTES} bytes")
    try:
        samples = _json(text, path) if text.lstrip()[:1] == b"[" else _plain(text, path)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not samples:
        raise ConfigError(f"{path}: no numbers in it")
    if len(samples) > MOST_SAMPLES:
        raise ConfigError(f"{path}: over {MOST_SAMPLES} numbers")
    for number in samples:
        if not 0 <= number < math.inf:
            raise ConfigError(f"{path}: {number!r} is no number from 0 on")
    return array("d", sorted(samples))


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


KEPT: Final = KeptFiles(_parsed, most=32, most_bytes=MOST_BYTES)
