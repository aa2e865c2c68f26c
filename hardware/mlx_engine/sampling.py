"""Draws tokens from log probabilities, for a whole batch at once where calls ask for the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, TypeAlias

import mlx.core as mx
from mlx_lm.sample_utils import (
    apply_min_p,
    apply_top_k,
    apply_top_p,
    greedy_sampler,
    make_logits_processors,
    make_sampler,
)

from .job import Leaning, Sampling

LOOKS_BACK: Final = 64
"""Tokens that penalties count."""
Sampler: TypeAlias = Callable[[Any], Any]


def sampler_of(how: Sampling, vocabulary: int) -> Sampler:
    """A sampler; the same one for equal asks without a seed, so that a batch shares it."""
    if how.temperature == 0:
        return greedy_sampler
    if how.top_k >= vocabulary:
        how = how._replace(top_k=0)
    return _shared(how) if how.seed is None else SeededSampler(how)


@lru_cache(maxsize=256)
def _shared(how: Sampling) -> Sampler:
    return make_sampler(
        temp=how.temperature, top_p=how.top_p if how.top_p < 1 else 0.0, min_p=how.min_p,
        top_k=how.top_k,
    )  # fmt: skip


class SeededSampler:
    """Draws of one call, the same for the same seed whatever else is in the batch."""

    def __init__(self, how: Sampling) -> None:
        self._how = how
        self._key = mx.random.key((how.seed or 0) & 0xFFFFFFFFFFFFFFFF)

    def __call__(self, logprobs: Any) -> Any:
        """Draw one token a row."""
        how = self._how
        if how.top_p < 1:
            logprobs = apply_top_p(logprobs, how.top_p)
        if how.min_p:
            logprobs = apply_min_p(logprobs, how.min_p)
        if how.top_k:
            logprobs = apply_top_k(logprobs, how.top_k)
        self._key, key = mx.random.split(self._key)
        return mx.random.categorical(logprobs * (1 / how.temperature), key=key)


def processors_of(how: Leaning) -> list[Any]:
    """What changes the chances before a draw; none for most calls."""
    if how == Leaning():
        return []
    made: list[Any] = make_logits_processors(
        dict(how.bias) or None,
        how.repetition if how.repetition != 1 else None,
        LOOKS_BACK,
        how.presence or None,
        LOOKS_BACK,
        how.frequency or None,
        LOOKS_BACK,
    )
    return made
