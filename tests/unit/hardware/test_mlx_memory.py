"""What was computed of earlier prompts is found by the longest beginning in common."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

pytest.importorskip("mlx_lm")

from hardware.mlx_engine.memory import BLOCK, MOST, PromptMemory


@dataclass
class Layer:
    """A layer's keys and values that knows the tokens it is of."""

    tokens: list[int]
    cuts: bool = True
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = len(self.tokens)

    def is_trimmable(self) -> bool:
        """As ``mlx_lm`` asks."""
        return self.cuts

    def trim(self, n: int) -> int:
        """Forget the last."""
        del self.tokens[len(self.tokens) - n :]
        return n


def keep(memory: PromptMemory, tokens: list[int], *, cuts: bool = True) -> None:
    """Remember a prompt."""
    memory.keep(tokens, [Layer(list(tokens), cuts)])


def find(memory: PromptMemory, tokens: list[int]) -> int:
    """How much is known; what comes back is of just these tokens."""
    cache, known = memory.find(tokens)
    if cache is not None:
        assert cache[0].tokens == tokens[:known]
        assert 0 < known < len(tokens)
    else:
        assert known == 0
    return known


def test_longest_beginning_is_found() -> None:
    """To the token, not to the block; never all of a prompt."""
    memory = PromptMemory(1 << 20)
    prompt = list(range(100))
    keep(memory, prompt)
    assert find(memory, prompt) == 99
    assert find(memory, [*prompt, 7, 8]) == 100
    assert find(memory, [*prompt[:50], -1, -2]) == 50
    assert find(memory, prompt[:30]) == 29
    assert find(memory, [-1, *prompt]) == 0
    assert find(memory, prompt[: BLOCK - 1]) == 0


def test_what_comes_back_is_a_copy() -> None:
    """The batch writes into it."""
    memory = PromptMemory(1 << 20)
    keep(memory, list(range(64)))
    cache, _ = memory.find([*range(64), 1])
    assert cache is not None
    cache[0].tokens.append(-1)
    assert find(memory, [*range(64), 1]) == 64


def test_what_cannot_be_cut_serves_only_those_that_go_on() -> None:
    """Rotating and recurrent states know one length."""
    memory = PromptMemory(1 << 20)
    keep(memory, list(range(64)), cuts=False)
    assert find(memory, [*range(64), 1]) == 64
    assert find(memory, list(range(64))) == 0
    assert find(memory, [*range(60), -1, -2]) == 0


def test_longer_form_takes_the_place_of_the_shorter() -> None:
    """A conversation is remembered once, unless the shorter form cannot be had from the longer."""
    memory = PromptMemory(1 << 20)
    for turns in range(1, 5):
        keep(memory, list(range(32 * turns)))
    assert len(memory) == 1
    assert memory.bytes == 128
    for turns in range(1, 5):
        keep(memory, list(range(1000, 1000 + 32 * turns)), cuts=False)
    assert len(memory) == 5


def test_bounds_hold_and_the_longest_unused_goes() -> None:
    """By bytes and by number."""
    memory = PromptMemory(200)
    for first in (0, 1000, 2000):
        keep(memory, list(range(first, first + 64)))
    assert find(memory, list(range(64))) == 63
    keep(memory, list(range(3000, 3064)))
    assert memory.bytes <= 200
    assert find(memory, list(range(64))) == 63, "it was used a moment ago"
    assert find(memory, list(range(1000, 1064))) == 0
    keep(memory, list(range(5000, 5000 + 201)))
    assert len(memory) == 3, "one that is too long takes nobody's place"
    big = PromptMemory(1 << 40)
    for first in range(MOST + 10):
        keep(big, [first] * BLOCK)
    assert len(big) == MOST
    assert len(big._by_block) == MOST


def test_any_mix_finds_what_is_right(seed: int) -> None:
    """Against a search of all: never a wrong token, and at least the longest whole block."""
    rng = random.Random(seed)
    memory = PromptMemory(1 << 20)
    kept: list[list[int]] = []
    for _ in range(400):
        base = list(rng.choice(kept)) if kept and rng.random() < 0.7 else []
        tokens = base[: rng.randint(0, len(base))] + rng.choices(range(3), k=rng.randint(1, 60))
        found = find(memory, tokens)
        best = max((_common(tokens, other) for other in kept), default=0)
        assert found >= min(best, len(tokens) - 1) // BLOCK * BLOCK, seed
        keep(memory, tokens)
        kept.append(tokens)


def _common(a: list[int], b: list[int]) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n
