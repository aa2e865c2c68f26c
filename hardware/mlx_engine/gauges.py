"""What the engine counts, as Prometheus reads it at ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .generation import Generation

_FIRST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Gauges:
    """The engine's metrics, in a registry of their own."""

    def __init__(self, generation: Generation) -> None:
        self._registry = own = CollectorRegistry()
        self.calls = Counter(
            "tpo_mlx_requests_total", "Requests that ended, by outcome.", ("outcome",), registry=own
        )
        self.by_rings = Counter(
            "tpo_mlx_calls_by_rings_total", "Requests that came over shared memory.", registry=own
        )
        self.waiting: Callable[[], float] = lambda: 0
        """How many answers over shared memory wait for their readers."""
        self.prompt = Counter("tpo_mlx_prompt_tokens_total", "Tokens of prompts.", registry=own)
        self.cached = Counter(
            "tpo_mlx_cached_tokens_total", "Tokens of prompts that were remembered.", registry=own
        )
        self.made = Counter("tpo_mlx_generation_tokens_total", "Tokens generated.", registry=own)
        self.first = Histogram(
            "tpo_mlx_time_to_first_token_seconds", "From request to first token.", registry=own,
            buckets=_FIRST_S,
        )  # fmt: skip
        self.between = Histogram(
            "tpo_mlx_time_between_tokens_seconds", "Mean time between the tokens of an answer.",
            registry=own, buckets=_BETWEEN_S,
        )  # fmt: skip
        told = (
            ("tpo_mlx_running", "Sequences that are computed.", lambda: generation.running),
            ("tpo_mlx_waiting", "Sequences that wait.", lambda: generation.waiting),
            ("tpo_mlx_steps", "Steps of the batch so far.", lambda: generation.steps),
            ("tpo_mlx_failures", "Steps that failed so far.", lambda: generation.failures),
            ("tpo_mlx_prompt_cache_bytes", "Bytes of remembered prompts.",
             lambda: generation.remembered_bytes),
            ("tpo_mlx_ring_answers_waiting", "Answers over shared memory whose reader is behind.",
             lambda: self.waiting()),  # noqa: PLW0108 - it is set later
        )  # fmt: skip
        for name, words, read in told:
            Gauge(name, words, registry=own).set_function(read)

    def page(self) -> bytes:
        """The text format."""
        return generate_latest(self._registry)
