"""What was computed of earlier prompts, found by the longest beginning that a new one shares.

Prompts are known by chained hashes of blocks of ``BLOCK`` tokens, so a search takes one look per
block, however many prompts begin alike (``mlx_lm``'s own trie walks through all of them).

Invariants: what is found is compared token by token before it is used; at most ``most_bytes`` and
``MOST`` prompts, the longest unused give way; a prompt that was continued gives way to its longer
form where that can be cut.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

BLOCK: Final = 16
MOST: Final = 4096


@dataclass(slots=True, eq=False)
class _Prompt:
    tokens: list[int]
    cache: list[Any]
    bytes: int
    blocks: list[int]
    cuts: bool


class PromptMemory:
    """Caches of keys and values, by the tokens they are of."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._prompts: OrderedDict[int, _Prompt] = OrderedDict()
        self._by_block: dict[int, _Prompt] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._prompts)

    def find(self, tokens: list[int]) -> tuple[list[Any] | None, int]:
        """A copy of what is known of a prompt and for how many of its first tokens: never all."""
        found = self._nearest(tokens)
        if found is None:
            return None, 0
        self._prompts.move_to_end(id(found))
        shared = _shared(found.tokens, tokens)
        usable = min(shared, len(tokens) - 1)
        if usable < BLOCK or (usable < len(found.tokens) and not found.cuts):
            return None, 0
        cache = copy.deepcopy(found.cache)
        if usable < len(found.tokens):
            trim_prompt_cache(cache, len(found.tokens) - usable)
        return cache, usable

    def keep(self, tokens: list[int], cache: list[Any]) -> None:
        """Remember what was computed of these tokens."""
        if len(tokens) < BLOCK:
            return
        shorter = self._nearest(tokens)
        kept = _Prompt(
            list(tokens), cache, sum(layer.nbytes for layer in cache), list(_blocks(tokens)),
            can_trim_prompt_cache(cache),
        )  # fmt: skip
        if kept.bytes > self._most_bytes:
            return
        if shorter is not None and _shared(shorter.tokens, tokens) == len(shorter.tokens):
            same = len(shorter.tokens) == len(tokens)
            if kept.cuts or same:
                self._drop(shorter)
        self._prompts[id(kept)] = kept
        self.bytes += kept.bytes
        for block in kept.blocks:
            self._by_block[block] = kept
        while self.bytes > self._most_bytes or len(self._prompts) > MOST:
            self._drop(next(iter(self._prompts.values())))

    def _nearest(self, tokens: Sequence[int]) -> _Prompt | None:
        """One of those that share most whole blocks."""
        found = None
        for name in _blocks(tokens):
            known = self._by_block.get(name)
            if known is None:
                break
            found = known
        return found

    def _drop(self, prompt: _Prompt) -> None:
        del self._prompts[id(prompt)]
        self.bytes -= prompt.bytes
        for block in prompt.blocks:
            if self._by_block.get(block) is prompt:
                del self._by_block[block]


def _blocks(tokens: Sequence[int]) -> Iterator[int]:
    name = 0
    for at in range(0, len(tokens) - BLOCK + 1, BLOCK):
        name = hash((name, *tokens[at : at + BLOCK]))
        yield name


def _shared(a: list[int], b: list[int]) -> int:
    """How many tokens two prompts begin with in common; slices are compared far from Python."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
