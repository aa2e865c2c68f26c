"""Whether two questions ask the same: what must agree before one is given the other's answer.

A near fingerprint is a hint, never a proof: "signed up in 2023" and "in 2024" are 2 bits apart.
``same_question`` asks for all of these:

- the same numbers, negations, quoted strings and code, each as often;
- the same names: words with a capital that do not begin a sentence, and all of ``NASA``'s kind;
- lengths within a tenth of each other, and 9 of 10 shingles shared;
- when ``strict``: the same words in the same order.

Fillers (``please``) do not count as words, and ``-ise`` is ``-ize``.

Known weakness: without ``strict`` a long question may differ in a word that changes its meaning,
``increase`` against ``decrease``.  Words are told by blanks: scripts that write none have one word
per sentence, so that only equal sentences are the same.  Fillers and negations are English.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from .simhash import words_of

LEAST: Final = 0.9
"""Ratio of lengths, and share of shingles, that two questions need."""
FILLERS: Final = frozenset({"please", "kindly", "thanks", "hi", "hello", "hey"})
_NEGATIONS: Final = frozenset({
    "not", "no", "never", "none", "nobody", "nothing", "neither", "nor", "nowhere", "without",
    "except", "cannot", "exclude", "excluding", "unless", "hardly",
})  # fmt: skip
_SPELLED_NUMBERS: Final = frozenset({
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "dozen", "hundred", "thousand", "million", "billion", "first", "second", "third",
    "half", "twice", "once", "double", "both",
})  # fmt: skip
_NUMBER: Final = re.compile(r"[+-]?\d[\d.,:/%-]*")
_CODE: Final = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_QUOTED: Final = re.compile(
    r"\"[^\"]*\"|\u201c[^\u201d]*\u201d|\u00ab[^\u00bb]*\u00bb|(?<!\w)'[^'\n]+'(?!\w)"
)
_SYMBOLS: Final = re.compile(r"[^\w\s.,;:!?'\"()\u2019-]")
_WORD_OR_END: Final = re.compile(r"\w+|[.!?:\n]")
_ISE: Final = re.compile(r"(?<=\w{3})is(e|ed|es|er|ers|ing|ation|ations)$")


@dataclass(frozen=True, slots=True)
class Question:
    """What of a text is compared."""

    length: int
    facts: tuple[tuple[str, int], ...]
    words: tuple[str, ...]
    shingles: frozenset[str | tuple[str, str]]


def question(text: str) -> Question:
    """Take a text apart."""
    every = words_of(text)
    words = tuple(_ISE.sub(r"iz\1", word) for word in every if word not in FILLERS)
    return Question(
        length=len(text),
        facts=_facts(text, every),
        words=words,
        shingles=frozenset([*words, *pairwise(words)]),
    )


def same_question(one: Question, other: Question, *, strict: bool) -> bool:
    """Whether the answer to one is an answer to the other."""
    if one.facts != other.facts or (strict and one.words != other.words):
        return False
    short, long = sorted((one.length, other.length))
    if short < LEAST * long:
        return False
    union = len(one.shingles | other.shingles)
    return len(one.shingles & other.shingles) >= LEAST * union


def _facts(text: str, words: list[str]) -> tuple[tuple[str, int], ...]:
    """Everything that must agree exactly, each with how often it stands there."""
    found: Counter[str] = Counter()
    for kind, pattern in (("code", _CODE), ("quoted", _QUOTED)):
        found.update(f"{kind} {part}" for part in pattern.findall(text))
    found.update(f"number {number.rstrip('.,:/-')}" for number in _NUMBER.findall(text))
    found.update(f"symbol {symbol}" for symbol in _SYMBOLS.findall(text))
    for word in words:
        if word in _NEGATIONS or word.endswith(("n't", "n\u2019t")):
            found[f"negation {word}"] += 1
        elif word in _SPELLED_NUMBERS:
            found[f"number {word}"] += 1
    begins = True
    for part in _WORD_OR_END.findall(text):
        if part[0].isupper() and (not begins or part[1:2].isupper()):
            found[f"name {part.lower()}"] += 1
        begins = part in ".!?:\n"
    return tuple(sorted(found.items()))
