"""Logs of rare events: structlog, set up once per process, on standard error.

Nothing is logged per request: access lines are rendered from call records (``access``), which costs
a tenth.  Values are data, never format strings, so no text of a client can forge a line.
Of an exception its kind and its places are told, never its words: they may be a client's.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import extract_tb
from typing import Any, Final, Literal, TextIO, TypeAlias, cast


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Let a package be missing for as long as the context lasts, unless it is there already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


with _absent("rich"):  # 70 ms of every start, for tracebacks, of which ``_places`` leaves nothing
    import structlog
    from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

__all__ = ["FilteringBoundLogger", "Format", "configure"]

Format: TypeAlias = Literal["json", "pretty"]
_MOST_CAUSES: Final = 8
_MOST_PLACES: Final = 32


def configure(
    form: Format, level: str = "info", *, process: str = "", stream: TextIO | None = None
) -> FilteringBoundLogger:
    """Set the process's log up and answer its logger; a second call replaces the first.

    ``process`` is put on every line, for instance ``shard-03``.
    """
    out = stream or sys.stderr
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _places,
        _one_line,
    ]
    if form == "json":
        processors.append(structlog.processors.JSONRenderer(sort_keys=False))
    else:
        processors.append(structlog.dev.ConsoleRenderer(colors=out.isatty(), pad_event_to=0))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
        ),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    logger = structlog.get_logger()
    bound = logger.bind(process=process) if process else logger.bind()
    return cast("FilteringBoundLogger", bound)  # get_logger is typed Any


def _places(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace ``exc_info``, an exception or True, by kinds and places: its own, its causes'."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["exception"] = "\n".join(_told(error))
    return event


def _told(error: BaseException | None) -> Iterator[str]:
    for _ in range(_MOST_CAUSES):
        if error is None:
            return
        kind = type(error)
        yield f"{kind.__module__}.{kind.__qualname__}"
        for frame in extract_tb(error.__traceback__)[-_MOST_PLACES:]:
            yield f"  {frame.filename}:{frame.lineno} in {frame.name}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape control characters: one event is one line in either format."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception" and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode("ascii")
    return event
