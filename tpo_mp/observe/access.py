"""Access lines, rendered from call records: one line per finished call, text or JSON.

Lines carry no prompt and no answer.  Whatever a client chose (path, model, ids, its address) is
escaped, so no request can forge a line or move a terminal's cursor.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, Protocol, TypeAlias

import orjson

Form: TypeAlias = Literal["text", "json"]


class RecordView(Protocol):
    """The parts of a call record that an access line shows."""

    @property
    def call_id(self) -> str: ...
    @property
    def finished_at(self) -> float: ...
    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def status(self) -> int: ...
    @property
    def terminal(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def stream(self) -> bool: ...
    @property
    def tenant(self) -> str: ...
    @property
    def key_id(self) -> str: ...
    @property
    def session(self) -> str: ...
    @property
    def client_request_id(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...
    @property
    def bytes_in(self) -> int: ...
    @property
    def bytes_out(self) -> int: ...
    @property
    def duration_s(self) -> float: ...
    @property
    def first_byte_s(self) -> float: ...
    @property
    def attempts(self) -> int: ...
    @property
    def shard(self) -> int: ...
    @property
    def error(self) -> str: ...
    @property
    def peer(self) -> str: ...
    @property
    def cost_usd(self) -> float | None: ...
    @property
    def aside_tokens(self) -> int: ...
    @property
    def cache(self) -> str: ...
    @property
    def guard(self) -> str: ...


def render(record: RecordView, form: Form) -> bytes:
    """One line, newline included."""
    return json_line(record) if form == "json" else text_line(record)


def text_line(record: RecordView) -> bytes:
    """Columns separated by one space; what is unknown is ``-``."""
    return (
        f"{_stamp(record.finished_at)} {_word(record.peer)} {_word(record.tenant)}"
        f' "{_quoted(record.method)} {_quoted(record.path)}" {record.status} {record.terminal}'
        f" {_word(record.model)} {_word(record.backend)} {record.duration_s * 1e3:.3f}ms"
        f" first={_ms(record.first_byte_s)} in={record.bytes_in} out={record.bytes_out}"
        f" tokens={_count(record.prompt_tokens)}/{_count(record.completion_tokens)}"
        f" attempts={record.attempts} shard={record.shard} id={_word(record.call_id)}"
        f" request={_word(record.client_request_id)} error={_word(record.error)}"
        f" cost={_dollars(record.cost_usd)}\n"
    ).encode("utf-8", "backslashreplace")


def json_line(record: RecordView) -> bytes:
    """One JSON object; the encoder escapes control characters."""
    row = {
        "at": _stamp(record.finished_at),
        "call_id": record.call_id,
        "client_request_id": record.client_request_id,
        "peer": record.peer,
        "tenant": record.tenant,
        "key_id": record.key_id,
        "session": record.session,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "terminal": record.terminal,
        "model": record.model,
        "backend": record.backend,
        "stream": record.stream,
        "duration_s": record.duration_s,
        "first_byte_s": record.first_byte_s,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "attempts": record.attempts,
        "shard": record.shard,
        "error": record.error,
        "aside_tokens": record.aside_tokens,
        "cost_usd": record.cost_usd,
        "cache": record.cache,
        "guard": record.guard,
    }
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate from a damaged header
        return orjson.dumps(
            {k: _clean(v) if isinstance(v, str) else v for k, v in row.items()},
            option=orjson.OPT_APPEND_NEWLINE,
        )


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}ms" if seconds > 0 else "-"


def _count(n: int) -> str:
    return str(n) if n >= 0 else "-"


def _dollars(cost: float | None) -> str:
    return "-" if cost is None else f"{cost:.6f}"


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _quoted(text: str) -> str:
    """Escape for a place between double quotes."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(_escape(c) for c in text)


def _word(text: str) -> str:
    """Escape for a column: quoted only when it must be."""
    if not text:
        return "-"
    if text.isprintable() and not {" ", '"', "\\"} & set(text):
        return text
    return f'"{_quoted(text)}"'


def _escape(c: str) -> str:
    if c in '"\\':
        return "\\" + c
    return c if c.isprintable() else c.encode("unicode_escape").decode("ascii")
