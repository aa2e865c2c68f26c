"""Plays recorded answers again, each event at its time.

Requests that were recorded more than once get their answers in turn, counted over all workers;
the last one stays.

Invariants: times count from the request's arrival; a request nobody recorded is told apart before
anything is made up for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import orjson

from tpo_mp.errors import (
    BackendFailure,
    ConfigError,
    InvalidRequest,
    RateLimited,
    Rejected,
    TpoError,
)
from tpo_mp.ports import Ledger
from tpo_mp.types import Call, Usage

from . import recordings
from .pacing import SchedulePace
from .provider import Answered
from .recordings import Recording
from .timer import MicroTimer

_MOST_LINES: Final = 2048


class Replay:
    """The recordings of one file; ``speed`` 2 is twice as fast, 0 does not wait."""

    def __init__(
        self, path: Path, speed: float, ledger: Ledger, timer: MicroTimer, strict: bool
    ) -> None:
        self._found = recordings.indexed(path)
        self._speed = speed
        self._ledger = ledger
        self._timer = timer
        self._strict = strict

    def find(self, call: Call) -> Answered | None:
        """The answer whose turn it is; raises ``InvalidRequest`` when there must be one."""
        asked = orjson.loads(call.body)
        key = recordings.key_for(call.dialect, asked) if isinstance(asked, dict) else ""
        found = self._found.get((key, call.stream))
        if found is None:
            if self._strict:
                raise InvalidRequest(
                    f"this request to {call.model!r} was not recorded", reason="not_recorded"
                )
            return None
        turn = self._ledger.ordinal(f"replay:{key}") if len(found) > 1 else 1
        return answered(found[min(turn, len(found)) - 1])

    def pace(self, call: Call, recording: Recording, delay_s: float) -> SchedulePace:
        """When each event goes."""
        factor = 1 / self._speed if self._speed else 0.0
        began_at = call.upstream_at + delay_s
        steps = ((began_at + at * factor, 1) for at, _ in recording.chunks)
        return SchedulePace(self._timer, steps)


def problems(path: str) -> Iterator[tuple[str, str]]:
    """What is wrong with the file of ``[simulator] replay``."""
    if path:
        try:
            recordings.read(Path(path))
        except ConfigError as error:
            yield "replay", error.message


def answered(recording: Recording) -> Answered:
    """A recording as an answer."""
    usage = Usage(max(recording.prompt_tokens, 0), max(recording.completion_tokens, 0))
    frames = tuple((text.encode(), True) for _, text in recording.chunks)
    return Answered(usage, "", lambda: recording.body, lambda _w, _s: iter(frames),
                    recording=recording)  # fmt: skip


def error_of(recording: Recording) -> TpoError | None:
    """A recorded refusal; ``None`` when it is none."""
    status = recording.status
    if status == 200:
        return None
    kind: type[TpoError] = Rejected if status < 500 else BackendFailure
    if status == 429:
        kind = RateLimited
    lines = b"".join(
        b"%b: %b\r\n" % (name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in recording.headers.items()
        if value.isprintable()
    )
    return kind(
        f"the recorded provider answered {status}",
        reason="recorded_error",
        status=status,
        body=recording.body,
        lines=lines[:_MOST_LINES] if len(lines) <= _MOST_LINES else b"",
    )
