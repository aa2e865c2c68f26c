"""Public traces of LLM traffic: when requests came, how long they were and their answers.

Read as they are published; which of the three a file is, its first line tells:

::

    Azure      TIMESTAMP,ContextTokens,GeneratedTokens         a date with its time
    BurstGPT   Timestamp,Model,Request tokens,Response tokens,…  seconds; more may follow
    Mooncake   {"timestamp", "input_length", "output_length", "hash_ids"}   milliseconds, JSON lines

Instants count from the first row.  A BurstGPT row without an answer was a failure and is left out.
``hash_ids`` name blocks of 512 tokens of the prompt, so equal beginnings stay equal.

Invariants: what is no row is told with file, line and column; bytes, rows and numbers are bounded;
a row costs its three numbers and its blocks.
Known weakness: a trace has no words; ``prompt_of`` makes some up that count as many tokens by this
simulator's rule, a model's own tokenizer counts about as many.

Source: the traces' own descriptions (Azure/AzurePublicDataset, kvcache-ai/Mooncake,
HPMLL/BurstGPT).
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias

import orjson

from tpo_mp.errors import ConfigError

from .kept_files import KeptFiles

MOST_FILE_BYTES: Final = 256 << 20
MOST_KEPT_BYTES: Final = 64 << 20
"""Of a trace that every worker reads for its lengths."""
MOST_LINE: Final = 1 << 20
MOST_TRACE_ROWS: Final = 1_000_000
MOST_LENGTH: Final = 10_000_000
"""Tokens of one prompt or answer."""
MOST_SPAN_S: Final = 366 * 86_400.0
BLOCK_TOKENS: Final = 512
_FRAME: Final = 7
"""Tokens that frame a question of one message."""
_AZURE: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_BURST: Final = ("Timestamp", "Request tokens", "Response tokens")
_MOONCAKE: Final = ("timestamp", "input_length", "output_length")
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"

TraceColumn: TypeAlias = Literal["prompt_tokens", "answer_tokens"]


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request: seconds after the first, its tokens, and the names of its prompt's blocks."""

    at_s: float
    prompt_tokens: int
    answer_tokens: int
    blocks: tuple[int, ...] = ()


class _Wrong(Exception):
    """A cell is not what its column holds."""

    def __init__(self, column: str, said: str) -> None:
        super().__init__(column, said)
        self.column, self.said = column, said


_Cells: TypeAlias = Mapping[str, Any]


def rows_of(path: Path, for_s: float = math.inf) -> list[TraceRow]:
    """The rows of a trace's first ``for_s`` seconds, in time; raises ``ConfigError``."""
    try:
        size = path.stat().st_size
        if size > MOST_FILE_BYTES:
            raise ConfigError(f"{path}: over {MOST_FILE_BYTES} bytes")
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            found = _read(path, file, for_s)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if not found:
        raise ConfigError(f"{path}: no request is in it")
    found.sort(key=lambda row: row.at_s)
    return found


def _read(path: Path, file: IO[str], for_s: float) -> list[TraceRow]:
    found: list[TraceRow] = []
    first_s: float | None = None
    for number, cells, form in _cells(path, file):
        try:
            instant_s = form.seconds(cells, form.columns[0])
            first_s = instant_s if first_s is None else first_s
            at_s = instant_s - first_s
            if not 0 <= at_s <= MOST_SPAN_S:
                raise _Wrong(form.columns[0], "is before the first row's, or over a year after it")
            if at_s > for_s:
                continue
            row = _row(cells, form, at_s)
        except _Wrong as wrong:
            value = str(cells.get(wrong.column))[:40]
            said = f"{path}: line {number}: column {wrong.column!r}: {value!r} {wrong.said}"
            raise ConfigError(said) from None
        if row is not None:
            found.append(row)
        if len(found) > MOST_TRACE_ROWS:
            said = f"{path}: line {number}: over {MOST_TRACE_ROWS} requests; take fewer seconds"
            raise ConfigError(said)
    return found


def _row(cells: _Cells, form: _Form, at_s: float) -> TraceRow | None:
    _, asked, said = form.columns
    prompt, answer = _length(cells, asked), _length(cells, said)
    if form.fails and not answer:
        return None
    blocks = cells.get("hash_ids") if form.blocks else None
    if blocks is None:
        return TraceRow(at_s, prompt, answer)
    if not isinstance(blocks, list) or not all(type(b) is int and b >= 0 for b in blocks):
        raise _Wrong("hash_ids", "is no list of numbers")
    return TraceRow(at_s, prompt, answer, tuple(blocks))


# -- forms ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Form:
    """One publisher's form: instant, prompt and answer, and what else it means."""

    columns: tuple[str, str, str]
    seconds: Callable[[_Cells, str], float]
    fails: bool = False
    blocks: bool = False


def _number(cells: _Cells, column: str, factor: float = 1.0) -> float:
    given = cells.get(column)
    value = math.nan
    if not isinstance(given, bool):
        with suppress(ValueError, TypeError):
            value = float(given)  # type: ignore[arg-type]  # whatever it is not is caught
    if not math.isfinite(value):
        raise _Wrong(column, "is no number")
    return value * factor


def _date(cells: _Cells, column: str) -> float:
    try:
        moment = datetime.fromisoformat(str(cells.get(column)).strip())
    except ValueError:
        raise _Wrong(column, "is no date with a time such as 2023-11-16 18:15:46.68") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _length(cells: _Cells, column: str) -> int:
    value = _number(cells, column)
    if not 0 <= value <= MOST_LENGTH or value != int(value):
        raise _Wrong(column, f"is no number of tokens from 0 to {MOST_LENGTH}")
    return int(value)


_FORMS: Final = (_Form(_AZURE, _date), _Form(_BURST, _number, fails=True))
_LINES: Final = _Form(_MOONCAKE, lambda c, column: _number(c, column, 1e-3), blocks=True)


def _cells(path: Path, file: IO[str]) -> Iterator[tuple[int, _Cells, _Form]]:
    """Each row's cells by column, its line, and the form of the file."""
    lines = _bounded(path, file)
    start = next(lines, "")
    if start.lstrip().startswith("{"):
        yield from _json_lines(path, start, lines)
        return
    header = [name.strip() for name in start.lstrip("\ufeff").strip().split(",")]
    form = next((f for f in _FORMS if set(f.columns) <= set(header)), None)
    if form is None:
        known = "; ".join(",".join(f.columns) for f in (*_FORMS, _LINES))
        raise ConfigError(
            f"{path}: line 1: {start.strip()[:80]!r} is the head of no trace known: {known}"
        )
    reader = csv.reader(lines)
    try:
        for cells in reader:
            if not cells:
                continue
            number = reader.line_num + 1
            if len(cells) < len(header):
                column = header[len(cells)]
                raise ConfigError(f"{path}: line {number}: column {column!r} is missing")
            yield number, dict(zip(header, cells, strict=False)), form
    except csv.Error as error:
        raise ConfigError(f"{path}: line {reader.line_num + 1}: {error}") from None


def _json_lines(
    path: Path, start: str, lines: Iterable[str]
) -> Iterator[tuple[int, _Cells, _Form]]:
    yield 1, _object(path, 1, start), _LINES
    for number, line in enumerate(lines, 2):
        if line.strip():
            yield number, _object(path, number, line), _LINES


def _object(path: Path, number: int, line: str) -> _Cells:
    try:
        cells = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {number}: column {error.colno}: {error.msg}") from None
    if not isinstance(cells, dict):
        raise ConfigError(f"{path}: line {number}: is no JSON object")
    return cells


def _bounded(path: Path, file: IO[str]) -> Iterator[str]:
    number = 0
    while line := file.readline(MOST_LINE + 1):
        number += 1
        if len(line) > MOST_LINE:
            raise ConfigError(f"{path}: line {number}: over {MOST_LINE} characters")
        yield line


# -- words ----------------------------------------------------------------------------------------


def prompt_of(row: TraceRow, number: int) -> str:
    """Words that make a question of the row's tokens; rows share beginnings as their blocks do.

    A row without blocks shares nothing with any other; ``number`` is its own.
    """
    left = max(row.prompt_tokens - _FRAME, 1)
    parts = []
    for at in range(0, left, BLOCK_TOKENS):
        index = at // BLOCK_TOKENS
        named = row.blocks[index] if index < len(row.blocks) else -1 - number
        parts.append(_block(named, index if named < 0 else 0, min(left - at, BLOCK_TOKENS)))
    return "".join(parts)


@lru_cache(maxsize=256)
def _block(name: int, index: int, tokens: int) -> str:
    """A block's words: a blank and three letters are a token, in a text of any length."""
    value = 2 * (abs(name) * 4096 + index) + (name < 0)
    words: list[str] = []
    while value or not words:
        value, word = divmod(value, len(_LETTERS) ** 3)
        words.append(" " + "".join(_LETTERS[word // 26**n % 26] for n in (2, 1, 0)))
    return "".join(words[:tokens]) + " and" * max(tokens - len(words), 0)


# -- lengths --------------------------------------------------------------------------------------


def _lengths(path: Path) -> Mapping[TraceColumn, Sequence[float]]:
    rows = rows_of(path)
    return {
        "prompt_tokens": array("d", sorted(float(row.prompt_tokens) for row in rows)),
        "answer_tokens": array("d", sorted(float(row.answer_tokens) for row in rows)),
    }


KEPT: Final = KeptFiles(_lengths, most=4, most_bytes=MOST_KEPT_BYTES)


def lengths_of(path: Path, column: TraceColumn) -> Sequence[float]:
    """The lengths in a trace, rising; raises ``ValueError`` saying what is wrong with it."""
    try:
        return KEPT.read(path)[column]
    except ConfigError as error:
        raise ValueError(error.message) from None
