"""What a simulated model says: six strategies, each drawing only on the random stream it is given.

``template`` talks about the prompt's own words, ``lorem`` in Latin, ``random`` in invented words,
``markov`` in the manner of a text, ``echo`` repeats the newest user message, ``fixed`` says what
the config says.

Invariants: the same arguments give the same text; the first four come close to the length asked
for and end in a full stop.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Final, Literal, TypeAlias

from . import markov
from .tokens import count

Strategy: TypeAlias = Literal["template", "lorem", "echo", "fixed", "random", "markov"]

DEFAULT_TEXT: Final = "Hello from the simulator."
"""What ``fixed`` says when the operator says nothing."""

UNDRAWN: Final = ("echo", "fixed")
"""Strategies that draw nothing."""
_WORD: Final = re.compile(r"[^\W\d_]{4,}")
_TOPICS: Final = 12
_LATIN: Final = (
    "lorem", "ipsum", "dolor", "sit", "amet", "consectetur", "adipiscing", "elit", "sed", "do",
    "eiusmod", "tempor", "incididunt", "ut", "labore", "et", "dolore", "magna", "aliqua",
    "enim", "ad", "minim", "veniam", "quis", "nostrud", "exercitation", "ullamco", "laboris",
    "nisi", "aliquip", "ex", "ea", "commodo", "consequat", "duis", "aute", "irure", "in",
    "reprehenderit", "voluptate", "velit", "esse", "cillum", "fugiat", "nulla", "pariatur",
    "excepteur", "sint", "occaecat", "cupidatat", "non", "proident", "sunt", "culpa", "qui",
    "officia", "deserunt", "mollit", "anim", "id", "est", "laborum",
)  # fmt: skip
_COMMON: Final = frozenset(
    ("about", "after", "also", "because", "before", "being", "between", "could", "does",
     "each", "every", "from", "have", "here", "into", "just", "like", "make", "many", "more",
     "most", "much", "need", "only", "other", "over", "please", "same", "should", "some",
     "such", "tell", "than", "that", "their", "them", "then", "there", "these", "they",
     "thing", "this", "those", "through", "under", "using", "very", "want", "what", "when",
     "where", "which", "while", "will", "with", "would", "write", "your")
)  # fmt: skip
"""Words that are never a topic."""
_OPENINGS: Final = (
    "Here is what matters about {a}.",
    "In short, {a} comes down to {b}.",
    "There are a few ways to look at {a}.",
    "Let us take {a} step by step.",
)
_SENTENCES: Final = (
    "Start with {a}, because {b} depends on it.",
    "When {a} changes, {b} usually follows within {n} steps.",
    "A common mistake is to treat {a} and {b} as the same thing.",
    "In practice, {n} out of ten cases of {a} are simple.",
    "The cost of {a} grows with {b}, so measure both.",
    "If {a} is unclear, write down what you expect from {b} first.",
    "Most people meet {a} long before they notice {b}.",
    "For {a}, a small example says more than a long rule.",
    "It helps to keep {a} apart from {b} until both are understood.",
    "Number {n} on the list is {a}, and it is easy to forget.",
    "Once {a} works, {b} needs little attention.",
    "Check {a} again after {n} days; {b} may have moved.",
)
_ONSETS: Final = ("b", "br", "d", "dr", "f", "g", "k", "l", "m", "n", "p", "pl", "r", "s", "st",
                  "t", "tr", "v", "w", "z")  # fmt: skip
_RIMES: Final = ("a", "an", "ar", "e", "el", "en", "i", "in", "ir", "o", "on", "or", "u", "um")
_DEFAULT_TOPICS: Final = ("the question", "the answer")


def say(strategy: Strategy, prompt: str, length: int, random: Random, fixed: str) -> str:
    """Answer ``prompt`` in about ``length`` tokens."""
    if strategy == "echo":
        return prompt
    if strategy == "fixed":
        return fixed
    if strategy == "lorem":
        return _fill(length, lambda first: _sentence(_latin, random, first))
    if strategy == "markov":
        learned = markov.PROSE if fixed in ("", DEFAULT_TEXT) else fixed
        return _fill(length, lambda _first: markov.sentence(learned, random))
    if strategy == "random":
        return _fill(length, lambda first: _sentence(_invented, random, first))
    words = [word for word in _WORD.findall(prompt[-4096:]) if word.lower() not in _COMMON]
    topics = list(dict.fromkeys(words))[-_TOPICS:] or list(_DEFAULT_TOPICS)
    return _fill(length, lambda first: _templated(topics, random, first))


def lengthened(said: str, least: int) -> str:
    """A text of at least so many tokens: itself, again and again."""
    said = said or "."
    times = -(-least // max(count(said), 1))
    # A blank between two goes into the second's first token or is one of its own.
    return said if times < 2 else " ".join([said] * (times + 1))


def length_of(random: Random, least: int, most: int) -> int:
    """Draw an answer's length in tokens; short ones are as likely as ones twice as long."""
    return round(least * float((most / least) ** random.random()))


def _fill(length: int, sentence: Callable[[bool], str]) -> str:
    said: list[str] = []
    left = length
    while left > 0:
        next_one = sentence(not said)
        said.append(next_one)
        left -= count(next_one) + 1
    return " ".join(said)


def _templated(topics: list[str], random: Random, first: bool) -> str:
    form = random.choice(_OPENINGS if first else _SENTENCES)
    a, b = random.choice(topics), random.choice(topics)
    said = form.format(a=a, b=b, n=random.randint(2, 9))
    return said[:1].upper() + said[1:]


def _sentence(word: Callable[[Random], str], random: Random, first: bool) -> str:
    words = [word(random) for _ in range(random.randint(4, 14))]
    if first and word is _latin:
        words[:2] = ["lorem", "ipsum"]
    return " ".join(words).capitalize() + "."


def _latin(random: Random) -> str:
    return random.choice(_LATIN)


def _invented(random: Random) -> str:
    parts = (random.choice(_ONSETS) + random.choice(_RIMES) for _ in range(random.randint(1, 3)))
    return "".join(parts)
