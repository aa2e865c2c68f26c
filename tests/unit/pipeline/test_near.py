"""Questions that ask the same, and those that only look so."""

from __future__ import annotations

from random import Random

import pytest

from tests.support.gateway import ROOT
from tpo_mp.pipeline.near import question, same_question
from tpo_mp.pipeline.simhash import distance, simhash

LONG = (
    "You are given a report of a meeting. Write a summary of it in the style of a newspaper, with "
    "a headline, a lead and {number} paragraphs, {how} the names of those who spoke, and say what "
    "was decided about {place} and whether sales will {turn} next year."
)
FILLED = {"number": "4", "how": "with", "place": "Berlin", "turn": "increase"}


def same(one: str, other: str, *, strict: bool = True) -> bool:
    """Both ways round."""
    there = same_question(question(one), question(other), strict=strict)
    assert there == same_question(question(other), question(one), strict=strict)
    return there


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "what is  the capital of France"),
        ("Summarise the book of the Rust language.", "Summarize the book of the Rust language"),
        (LONG.format(**FILLED), LONG.format(**FILLED) + " Thanks, please."),
    ],
)
def test_what_asks_the_same(one: str, other: str) -> None:
    """Punctuation, case of what begins, blanks, spelling, politeness."""
    assert same(one, other)


@pytest.mark.parametrize(
    "other",
    [
        {"number": "5"}, {"number": "four"}, {"number": "-4"}, {"number": "4.5"},
        {"how": "without"}, {"how": "with `all`"}, {"how": 'with "all"'}, {"how": "with not"},
        {"place": "Munich"}, {"place": "berlin"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("strict", [True, False])
def test_one_fact_makes_another_question(other: dict[str, str], strict: bool) -> None:
    """Numbers, negations, quotations, code and names: whatever the rest shares."""
    assert not same(LONG.format(**FILLED), LONG.format(**FILLED | other), strict=strict)


def test_a_word_in_a_long_question_is_seen_by_strict_alone() -> None:
    """The weakness that the docs tell of."""
    other = LONG.format(**FILLED | {"turn": "decrease"})
    assert not same(LONG.format(**FILLED), other)
    assert same(LONG.format(**FILLED), other, strict=False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How many signed up in 2023?", "How many signed up in 2024?"),
        ("Does the dog bite the man?", "Does the man bite the dog?"),
        ("I do like this", "I don't like this"),
        ("Is 3 < 4?", "Is 3 > 4?"),
        ("Translate: 'good morning'", "Translate: 'good evening'"),
        ("Give it to the us", "Give it to the US"),
        ("Explain this", "Explain this " + "and that " * 9),
        ("翻译这个句子", "翻译那个句子"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_what_only_looks_the_same(one: str, other: str, strict: bool) -> None:
    """Short questions differ by a word, an order, a sign."""
    assert not same(one, other, strict=strict)


def test_a_changed_word_never_passes_strict(rng: Random) -> None:
    """Any word of any long text, put in place of another."""
    words = [f"w{chr(97 + rng.randrange(26))}{chr(97 + rng.randrange(26))}x" for _ in range(120)]
    for _ in range(200):
        changed = list(words)
        changed[rng.randrange(len(words))] = rng.choice(words) + "y"
        assert not same(" ".join(words), " ".join(changed))
    assert same(" ".join(words), " ".join(words).upper().lower() + ".")


def test_odd_texts_are_taken_apart() -> None:
    """Nothing raises, whatever is not closed or is no word at all."""
    for text in ("", " ", "'", '"', "`", "```", "“" * 700, "?!" * 900, "\n" * 99, "\ud800"):
        assert same(text, text)


def test_the_table_of_the_docs_is_measured() -> None:
    """Each line's distance and verdicts, as this code has them."""
    lines = (ROOT / "docs" / "near-questions.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "| " in line]
    rows = [row for row in rows if row[2:3] != ["bits apart"] and row[2].isdigit()]
    assert len(rows) == 8
    for one, other, bits, strict, loose in rows:
        ours, theirs = question(one), question(other)
        assert distance(simhash(ours.words), simhash(theirs.words)) == int(bits), one
        told = [same_question(ours, theirs, strict=sure) for sure in (True, False)]
        assert told == [strict == "yes", loose == "yes"], one
