"""Logs of rare events: structlog, set up once per process, on standard error.

Nothing is logged per request: access lines are rendered from call records (``access``), which costs
a tenth.  Values are data, never format strings, so no text of a client can forge a line.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal, TextIO, TypeAlias, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

Format: TypeAlias = Literal["json", "pretty"]


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
    ]
    if form == "json":
        processors += [
            structlog.processors.format_exc_info,
            _one_line,
            structlog.processors.JSONRenderer(sort_keys=False),
        ]
    else:
        processors += [
            _one_line,
            structlog.dev.ConsoleRenderer(
                colors=out.isatty(),
                pad_event_to=0,
                # The default, where rich is installed, prints locals: prompts and secrets.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
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


def _one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape control characters: one event is one line in either format."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception" and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode("ascii")
    return event
