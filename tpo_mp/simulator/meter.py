"""What simulated calls count: by endpoint and model, how long they took, how many are under way.

Invariants: labels are routes and configured model names, anything else is ``other``; a call that is
answered at once is counted without ever being under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from tpo_mp.ports import Counter, Histogram, Metrics
from tpo_mp.types import Call, Reply

from .endpoints import PATHS

REQUESTS: Final = "llm_simulation_requests_total"
DURATION: Final = "llm_simulation_duration_seconds"
TOKENS: Final = "llm_tokens_generated_total"
ACTIVE: Final = "llm_active_requests"
ERRORS: Final = "llm_simulation_errors_total"
DURATION_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
MOST_MODELS: Final = 48


class Meter:
    """The counters of one simulated provider in one process."""

    def __init__(self, models: Iterable[str], metrics: Metrics, clock: Callable[[], float]) -> None:
        self._models = set(sorted(models)[:MOST_MODELS])
        self._metrics = metrics
        self._clock = clock
        self._series: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._errors: dict[int, Counter] = {}
        self.active = metrics.gauge(ACTIVE, "Simulated calls under way.")
        self._tokens = metrics.counter(TOKENS, "Tokens of simulated answers.")

    def ended(self, call: Call, status: int, reply: Reply | None) -> None:
        """Count a call that ended."""
        model = call.model if call.model in self._models else "other"
        key = (call.dialect, model)
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = self._made(PATHS.get(call.dialect, call.dialect), model)
        requests, duration = found
        requests.inc()
        duration.observe(self._clock() - call.upstream_at)
        if reply is not None and reply.usage is not None:
            self._tokens.inc(max(reply.usage.completion, 0))
        if status >= 400:
            self._error(status).inc()

    def _made(self, endpoint: str, model: str) -> tuple[Counter, Histogram]:
        return (
            self._metrics.counter(
                REQUESTS, "Simulated calls that ended.", endpoint=endpoint, model=model
            ),
            self._metrics.histogram(
                DURATION, "How long simulated calls took.", DURATION_S,
                endpoint=endpoint, model=model,
            ),
        )  # fmt: skip

    def _error(self, status: int) -> Counter:
        found = self._errors.get(status)
        if found is None:
            found = self._errors[status] = self._metrics.counter(
                ERRORS, "Simulated calls that were refused or failed.", status=str(status)
            )
        return found
