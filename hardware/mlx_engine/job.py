"""What is asked of the thread that generates, and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from tpo_mp.errors import TpoError

MOST_TOP: Final = 20
"""Alternatives per token that may be asked for, as OpenAI has it."""


class Sampling(NamedTuple):
    """How tokens are drawn; equal ones are drawn in one step for the whole batch.

    ``temperature`` 0 takes the likeliest.  A ``seed`` gives a call draws of its own.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None


class Leaning(NamedTuple):
    """What changes the chances before a token is drawn; penalties look back 64 tokens."""

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()


class TokenOdds(NamedTuple):
    """One token: its log probability (natural) and the likeliest ones with theirs."""

    logprob: float
    tops: tuple[tuple[int, float], ...]


class DrawnToken(NamedTuple):
    """A token of a job; ``finish`` is ``stop`` after the model's own end, ``length`` at the cap."""

    token: int
    finish: str | None
    row: TokenOdds | None


@dataclass(slots=True, eq=False)
class Job:
    """One sequence.  ``hear`` is called on the loop: with tokens, or with what went wrong."""

    tokens: list[int]
    most: int
    sampling: Sampling
    leaning: Leaning
    hear: Callable[[DrawnToken | TpoError], None]
    tops: int | None = None
    """``None``: no log probabilities are wanted."""
    ignore_eos: bool = False
    uid: int = -1
    cached: int = 0
    """Tokens of the prompt that were remembered, known with the first token."""
    over: bool = False
    """Nothing more is told: it is finished, or nobody wants it any more."""
