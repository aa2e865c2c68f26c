"""How long calls spend in each of the five stages, and which stage an error came from.

A stage's own time is what passes between entering it and going deeper, plus what passes between
coming back and leaving it: the deeper stages' time is theirs.  Inference and stream are timed by
the account, from the request sent upstream to its first byte, and from there to the last.

Invariants: a phase without stages has no marks, so that the default chain pays nothing; each call
that entered a marked phase is observed once when it leaves, however it ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

from tpo_mp.errors import TpoError
from tpo_mp.ports import Histogram, Metrics
from tpo_mp.types import STAGES, Call, Phase, Reply

from .promise import Promise, run

if TYPE_CHECKING:
    Serve: TypeAlias = Callable[[Call], Awaitable[Reply]]

DURATION_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
NAME = "orchestrator_stage_duration_seconds"
TEXT = "Time in a stage; inference ends with the first byte, stream with the last."
MARKED = (Phase.RAG, Phase.POST_PROCESS, Phase.ASSEMBLE)
"""Phases whose own time is that of the stage of their name."""


class StageTimes:
    """Marks the borders of phases while a chain is compiled."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._series: Mapping[str, Histogram] = {
            stage: metrics.histogram(NAME, TEXT, DURATION_S, stage=stage) for stage in STAGES
        }

    def mark(
        self, phase: Phase, layers: Sequence[Any], deeper: Serve, fold: Callable[..., Serve]
    ) -> Serve:
        """Fold the layers of one phase round ``deeper``, with a mark on either side."""
        name = phase.name.lower()
        at = STAGES.index(name)
        series, clock = self._series[name], self._clock
        inside = fold(layers, _Border(clock, at).into(deeper))

        def enter(call: Call) -> Awaitable[Reply]:
            spent = call.spent
            if spent is None:
                spent = call.spent = [0.0] * (len(STAGES) + 1)
            spent[-1] = clock()

            def left(_reply: Reply | None, error: BaseException | None) -> None:
                now = clock()
                series.observe(spent[at] + now - spent[-1])
                spent[at], spent[-1] = 0.0, now
                _blame(error, name)

            return _with(inside, call, left)

        return enter


class _Border:
    """Between a phase and what lies deeper."""

    def __init__(self, clock: Callable[[], float], at: int) -> None:
        self._clock = clock
        self._at = at

    def into(self, deeper: Serve) -> Serve:
        """``deeper``, its time taken out of the phase's."""
        clock, at = self._clock, self._at

        def cross(call: Call) -> Awaitable[Reply]:
            spent = call.spent
            assert spent is not None  # it was entered
            now = clock()
            spent[at] += now - spent[-1]
            spent[-1] = now

            def back(_reply: Reply | None, error: BaseException | None) -> None:
                spent[-1] = clock()
                _blame(error, "inference")

            return _with(deeper, call, back)

        return cross


def _with(
    inner: Serve, call: Call, seen: Callable[[Reply | None, BaseException | None], None]
) -> Promise[Reply]:
    """Run ``inner``, look at its outcome, pass it on."""
    out: Promise[Reply] = Promise()

    def done(reply: Reply | None, error: BaseException | None) -> None:
        seen(reply, error)
        if reply is None:
            out.reject(error or RuntimeError("a stage answered nothing"))
        elif out.done:  # given up meanwhile
            if reply.stream is not None:
                reply.stream.cancel()
        else:
            out.resolve(reply)

    try:
        out.cancel_with = run(inner(call), done)
    except Exception as e:  # noqa: BLE001 - becomes the call's error, as a rejected one does
        done(None, e)
    return out


def _blame(error: BaseException | None, stage: str) -> None:
    if isinstance(error, TpoError) and not error.stage:
        error.stage = stage
