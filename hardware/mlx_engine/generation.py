"""The one thread that touches the model: it batches what is asked, token by token.

MLX's streams belong to threads, so the model is loaded, run and dropped in the thread of
``Generation``.  Others hand it jobs through a queue; what it tells is called on their loop, once a
step for all sequences.  ``mlx_lm``'s ``BatchGenerator`` does the batching.

Invariants: a job that was taken is told an end (its last token or an error) unless it is left; at
most ``running`` sequences are computed at a time and ``waiting`` wait; a job that is left takes no
part in the step after the next; remembered prompts take at most ``cache_bytes``.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, StopSequences, make_stop_sequences

from tpo_mp.errors import BackendFailure, Shed, TpoError

from .job import DrawnToken, Job, TokenOdds
from .loading import Loaded, load
from .memory import PromptMemory
from .sampling import processors_of, sampler_of


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is taken on; bytes and counts."""

    running: int = 32
    waiting: int = 256
    prefill: int = 8
    prefill_tokens: int = 2048
    cache_bytes: int = 1 << 30


class Generation:
    """The thread and its model."""

    def __init__(self, model: str, bounds: Bounds, loop: asyncio.AbstractEventLoop) -> None:
        self._source = model
        self._bounds = bounds
        self._loop = loop
        self._asked: deque[Job] = deque()
        self._left: deque[Job] = deque()
        self._something = threading.Event()
        self._stops = False
        self._jobs: dict[int, Job] = {}
        self._end_tokens = self._no_end = StopSequences()
        self._thread = threading.Thread(target=self._run, name="mlx", daemon=True)
        self.loaded: asyncio.Future[Loaded] = loop.create_future()
        self.broken: asyncio.Future[BaseException] = loop.create_future()
        """Resolved when the thread ends by itself."""
        self.remembered_bytes = 0
        self.steps = 0
        self.failures = 0

    def start(self) -> None:
        """Load the model; ``loaded`` tells when."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread after its step."""
        self._stops = True
        self._something.set()
        self._thread.join(timeout_s)

    @property
    def running(self) -> int:
        """Sequences taken up."""
        return len(self._jobs)

    @property
    def waiting(self) -> int:
        """Jobs not looked at yet."""
        return len(self._asked)

    def ask(self, job: Job) -> None:
        """Take a job up; raises ``Shed`` when too many wait."""
        bounds = self._bounds
        if len(self._jobs) + len(self._asked) >= bounds.running + bounds.waiting:
            raise Shed("the engine's queue is full", reason="queue_full", retry_after_s=1.0)
        self._asked.append(job)
        self._something.set()

    def leave(self, job: Job) -> None:
        """Nobody wants the rest of a job."""
        if not job.over:
            job.over = True
            self._left.append(job)
            self._something.set()

    # -- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            loaded = load(self._source)
            self._on_loop(self.loaded.set_result, loaded)
        except BaseException as e:  # noqa: BLE001 - told to whoever waits
            self._on_loop(self.loaded.set_exception, e)
            return
        try:
            self._generate(loaded)
        except BaseException as e:  # noqa: BLE001 - told to whoever waits
            self._on_loop(self.broken.set_result, e)

    def _on_loop(self, do: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(do, *args)

    def _generate(self, loaded: Loaded) -> None:
        mx.random.seed(secrets.randbits(63))
        self._end_tokens = make_stop_sequences(loaded.tokenizer)
        memory = PromptMemory(self._bounds.cache_bytes)
        batch = self._batch(loaded)
        while not self._stops:
            if not self._jobs and not self._asked and not self._left:
                self._something.wait()
                self._something.clear()
            try:
                self._forget(batch, memory)
                self._take(batch, memory, loaded.vocabulary)
                if self._jobs:
                    self._step(batch, memory)
            except Exception as e:  # noqa: BLE001 - the calls of this step fail, the next go on
                self._fail(e)
                batch = self._batch(loaded)

    def _batch(self, loaded: Loaded) -> BatchGenerator:
        bounds = self._bounds
        return BatchGenerator(
            loaded.model,
            completion_batch_size=bounds.running,
            prefill_batch_size=min(bounds.prefill, bounds.running),
            prefill_step_size=bounds.prefill_tokens,
            stream=mx.default_stream(mx.default_device()),
        )

    def _forget(self, batch: BatchGenerator, memory: PromptMemory) -> None:
        """Take out what nobody wants, but for what was computed of it."""
        gone = []
        while self._left:
            job = self._left.popleft()
            if self._jobs.pop(job.uid, None) is not None:
                gone.append(job.uid)
            else:
                with contextlib.suppress(ValueError):
                    self._asked.remove(job)
        if gone:
            for cache, tokens in batch.remove(gone, return_prompt_caches=True).values():
                if tokens:
                    self._remember(memory, tokens, cache)

    def _take(self, batch: BatchGenerator, memory: PromptMemory, vocabulary: int) -> None:
        """Begin what was asked, as far as there is room in the batch."""
        while self._asked and len(self._jobs) < self._bounds.running:
            job = self._asked.popleft()
            if job.over:
                continue
            tokens = job.tokens
            cache, job.cached = memory.find(tokens)
            (job.uid,) = batch.insert(
                [tokens[job.cached :]],
                max_tokens=[job.most],
                caches=None if cache is None else [cache],
                all_tokens=[tokens[: job.cached]],
                samplers=[sampler_of(job.sampling, vocabulary)],
                logits_processors=[processors_of(job.leaning)],
                stop_sequences=[self._no_end if job.ignore_eos else self._end_tokens],
            )
            self._jobs[job.uid] = job

    def _step(self, batch: BatchGenerator, memory: PromptMemory) -> None:
        """One token for every sequence that generates, and a piece of prompts that wait."""
        _, answers = batch.next()
        self.steps += 1
        told: list[tuple[Job, DrawnToken | TpoError]] = []
        for answer in answers:
            job = self._jobs[answer.uid]
            row = None if job.tops is None else _row(answer, job.tops)
            told.append((job, DrawnToken(answer.token, answer.finish_reason, row)))
            if answer.finish_reason is not None:
                del self._jobs[answer.uid]
                self._remember(memory, answer.all_tokens, answer.prompt_cache)
        if told:
            self._on_loop(_tell, told)

    def _remember(self, memory: PromptMemory, tokens: list[int], cache: list[Any]) -> None:
        memory.keep(tokens, cache)
        self.remembered_bytes = memory.bytes

    def _fail(self, e: Exception) -> None:
        self.failures += 1
        said = BackendFailure(f"the engine failed: {e}"[:300], reason="engine_failed")
        self._on_loop(_tell, [(job, said) for job in self._jobs.values()])
        self._jobs.clear()
        mx.clear_cache()


def _row(answer: Any, tops: int) -> TokenOdds:
    """The log probabilities of a token; here, as they are the thread's."""
    logprobs = answer.logprobs
    likeliest: tuple[tuple[int, float], ...] = ()
    if tops:
        found = mx.argpartition(-logprobs, kth=tops - 1)[:tops]
        numbers: Any = found.tolist()
        values: Any = logprobs[found].tolist()
        pairs = zip(numbers, values, strict=True)
        likeliest = tuple(sorted(pairs, key=lambda pair: -pair[1]))
    return TokenOdds(logprobs[answer.token].item(), likeliest)


def _tell(told: list[tuple[Job, DrawnToken | TpoError]]) -> None:
    """On the loop: tell every job what it has now."""
    for job, what in told:
        if job.over:
            continue
        if isinstance(what, TpoError) or what.finish is not None:
            job.over = True
        job.hear(what)
