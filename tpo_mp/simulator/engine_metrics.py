"""What a simulated engine publishes: the series of vLLM, under its names, labels and buckets.

Two generations of names exist; ``names`` chooses which of those that changed appear (the others
never did): ``new``, ``old``, or ``both``.

::

    new                                        old
    vllm:kv_cache_usage_perc                   vllm:gpu_cache_usage_perc
    vllm:inter_token_latency_seconds           vllm:time_per_output_token_seconds
    vllm:request_time_per_output_token_seconds

Series are made when the engine first is asked, by the process it lives in; gauges of others are 0,
so the host's sum is the engine's own.  Instants are those of the clock the engine runs by.

Source: vLLM's documentation of its metrics, and the series a 0.32 server showed.
``vllm:lora_requests_info`` appears with the first request for an adapter; of its series the newest
is in force, those before it are 0.

Known weakness: metrics of speculative decoding and KV transfer are absent, as on a server that has
neither on; a worker's metrics hold the series of about a dozen engines, those of further ones are
only counted (``tpo_metrics_overflow_total``); a list of adapters is cut after 64 characters, and
beyond 64 such lists it is called ``other``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from time import time
from typing import Final, Literal, TypeAlias

from tpo_mp.ports import Counter, Gauge, Histogram, Metrics

from .engine_steps import EngineRequest, EngineShape, StepEngine

Names: TypeAlias = Literal["new", "old", "both"]

TTFT_S: Final = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40,
                 80, 160, 640, 2560)  # fmt: skip
ITL_S: Final = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
REQUEST_S: Final = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960,
                    1920, 7680)  # fmt: skip
STEP_TOKENS: Final = tuple(2.0**n for n in range(15))
CHOICES: Final = (1, 2, 5, 10, 20)
PREEMPTIONS: Final = (0, 1, 2, 5, 10, 20, 50, 100)
AWAKE: Final = 0
PAUSED: Final = -1
"""Level 0, which is none of vLLM's states."""
SLEEP_STATES: Final = ("awake", "weights_offloaded", "discard_all")
REASONS: Final = ("stop", "length", "abort", "error", "repetition")


def upto(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20 … as far as ``most``."""
    series = (lead * 10**power for power in range(10) for lead in (1, 2, 5))
    return tuple(float(bound) for bound in takewhile(lambda bound: bound <= most, series))


class EngineMetrics:
    """The series of one engine."""

    def __init__(
        self, metrics: Metrics, shape: EngineShape, model: str, names: Names, engine: str = "0"
    ) -> None:
        self._metrics = metrics
        self._labels = {"model_name": model, "engine": engine}
        self._new = names in ("new", "both")
        self._old = names in ("old", "both")
        self._counted = (0, 0, 0, 0, 0)
        self._max_loras = str(shape.max_loras)
        self._adapters: Gauge | None = None
        tokens = upto(shape.max_model_tokens)
        self._gauges(shape)
        self._counters()
        self._times()
        h = self._histogram
        self._step_tokens = h("iteration_tokens_total", "Tokens computed by a step.", STEP_TOKENS)
        self._prompt = h("request_prompt_tokens", "Tokens of a prompt.", tokens)
        self._answer = h("request_generation_tokens", "Tokens of an answer.", tokens)
        self._most = h("request_max_num_generation_tokens", "Most tokens an answer had.", tokens)
        self._n = h("request_params_n", "Choices asked for.", CHOICES)
        self._limit = h("request_params_max_tokens", "Tokens a request allows.", tokens)
        self._lost = h("request_num_preemptions", "Preemptions of a request.", PREEMPTIONS)
        self._computed = h(
            "request_prefill_kv_computed_tokens", "Tokens of a prompt not found.", tokens
        )

    # -- what happens ---------------------------------------------------------------------------

    def level(self, engine: StepEngine) -> None:
        """Tell how full the engine is."""
        self._running.set(len(engine.running))
        waiting = len(engine.waiting)
        self._waiting.set(waiting)
        self._by_capacity.set(waiting)
        for usage in self._usage:
            usage.set(engine.kv_usage)
        if engine.adapts:
            self._tell_adapters(engine)

    def _tell_adapters(self, engine: StepEngine) -> None:
        """Say in the labels of a series whose adapters run and wait; its value is when."""
        running = {request.lora for request in engine.running if request.lora}
        waiting = {request.lora for request in engine.waiting if request.lora}
        now = self._gauge(
            "lora_requests_info", "When these adapters were last seen to run and to wait.",
            max_lora=self._max_loras, running_lora_adapters=",".join(sorted(running)),
            waiting_lora_adapters=",".join(sorted(waiting)),
        )  # fmt: skip
        if self._adapters is not None and self._adapters is not now:
            self._adapters.set(0)
        self._adapters = now
        now.set(time())

    def sleeping(self, level: int) -> None:
        """Tell how deep the engine sleeps: a level, ``AWAKE`` or ``PAUSED``."""
        for at, state in enumerate(self._sleep):
            state.set(at == level)

    def stepped(self, engine: StepEngine) -> None:
        """Count the step that was planned."""
        work = engine.work
        self._step_tokens.observe(work.prefill_tokens + work.sequences)

    def spoke(self, request: EngineRequest) -> None:
        """Count a token."""
        if request.generated == 1:
            self._first.observe(request.first_token_at - request.arrived_at)
            return
        for gap in self._gaps:
            gap.observe(request.last_token_at - request.before_at)

    def ended(self, request: EngineRequest, reason: str, n: int, limit: int) -> None:
        """Count a request that ran to its end."""
        self._ends[reason].inc()
        end, first = request.last_token_at, request.first_token_at
        self._e2e.observe(end - request.arrived_at)
        self._queue.observe(request.started_at - request.arrived_at)
        self._inference.observe(end - request.started_at)
        self._prefill.observe(first - request.started_at)
        self._decode.observe(end - first)
        if request.generated > 1:
            for per_token in self._per_token:
                per_token.observe((end - first) / (request.generated - 1))
        self._prompt.observe(request.prompt_tokens)
        self._answer.observe(request.generated)
        self._most.observe(request.generated)
        self._n.observe(n)
        if limit:
            self._limit.observe(limit)
        self._lost.observe(request.preemptions)
        self._computed.observe(request.prompt_tokens - max(request.cached_tokens, 0))

    def aborted(self) -> None:
        """Count a request whose client left."""
        self._ends["abort"].inc()

    def refused(self) -> None:
        """Count a request that found the queue full."""
        self._refusals.inc()

    def counts(self, engine: StepEngine) -> None:
        """Bring the counters up to what the engine has counted."""
        told = engine.counts
        now = (told.prefix_queries, told.prefix_hits, told.preemptions, told.prompt_tokens,
               told.generation_tokens)  # fmt: skip
        if now == self._counted:
            return
        for counter, new, old in zip(self._running_counters, now, self._counted, strict=True):
            if new > old:
                counter.inc(new - old)
        self._cached.inc(now[1] - self._counted[1])
        self._counted = now

    # -- making them ------------------------------------------------------------------------------

    def _gauges(self, shape: EngineShape) -> None:
        g = self._gauge
        self._running = g("num_requests_running", "Requests in the running batch.")
        self._waiting = g("num_requests_waiting", "Requests that wait to run.")
        text = "Requests that wait, by why."
        self._by_capacity = g("num_requests_waiting_by_reason", text, reason="capacity")
        g("num_requests_waiting_by_reason", text, reason="deferred").set(0)
        usage = []
        if self._new:
            usage.append(g("kv_cache_usage_perc", "Share of KV blocks in use, 1 is all."))
        if self._old:
            usage.append(g("gpu_cache_usage_perc", "Share of KV blocks in use, 1 is all."))
        self._usage = usage
        text = "1: it is so."
        self._sleep = [g("engine_sleep_state", text, sleep_state=name) for name in SLEEP_STATES]
        self.sleeping(0)
        g(
            "cache_config_info", "How the KV cache is cut.", block_size=str(shape.block_tokens),
            num_gpu_blocks=str(shape.blocks), enable_prefix_caching=str(shape.prefix_caching),
        ).set(1)  # fmt: skip

    def _counters(self) -> None:
        c = self._counter
        self._running_counters = (
            c("prefix_cache_queries", "Tokens looked up in the prefix cache."),
            c("prefix_cache_hits", "Tokens found in the prefix cache."),
            c("num_preemptions", "Requests that lost their blocks."),
            c("prompt_tokens", "Tokens of prompts."),
            c("generation_tokens", "Tokens of answers."),
        )
        self._cached = c("prompt_tokens_cached", "Tokens of prompts that were not computed.")
        text = "Requests that ended, by why."
        self._ends = {why: c("request_success", text, finished_reason=why) for why in REASONS}
        self._refusals = c("admission_rejections", "Requests refused.", reason="queue_full")

    def _times(self) -> None:
        h = self._histogram
        self._first = h("time_to_first_token_seconds", "From arrival to the first token.", TTFT_S)
        text = "From one token to the next."
        gaps, per_token = [], []
        if self._new:
            gaps.append(h("inter_token_latency_seconds", text, ITL_S))
            per_token.append(
                h("request_time_per_output_token_seconds", "A request's mean gap.", ITL_S)
            )
        if self._old:
            gaps.append(h("time_per_output_token_seconds", text, ITL_S))
        self._gaps, self._per_token = gaps, per_token
        self._e2e = h("e2e_request_latency_seconds", "From arrival to the last token.", REQUEST_S)
        self._queue = h("request_queue_time_seconds", "From arrival to the first step.", REQUEST_S)
        self._inference = h("request_inference_time_seconds", "In the batch.", REQUEST_S)
        self._prefill = h("request_prefill_time_seconds", "First step to first token.", REQUEST_S)
        self._decode = h("request_decode_time_seconds", "First token to last.", REQUEST_S)

    def _gauge(self, name: str, text: str, **more: str) -> Gauge:
        return self._metrics.gauge(f"vllm:{name}", text, **self._labels, **more)

    def _counter(self, name: str, text: str, **more: str) -> Counter:
        return self._metrics.counter(f"vllm:{name}_total", text, **self._labels, **more)

    def _histogram(self, name: str, text: str, bounds: Sequence[float]) -> Histogram:
        return self._metrics.histogram(f"vllm:{name}", text, bounds, **self._labels)
