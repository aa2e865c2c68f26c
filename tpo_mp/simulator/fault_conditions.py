"""Which requests a rule is about: model, size, words, headers, load; all, any or none of these.

::

    when = { model = "gpt-4*", min_tokens = 1000, any = [{ contains = "pay" }, { … }], none = […] }

Every field that is given must hold; of ``any`` one entry, of ``none`` no entry.

Invariants: a condition never fails a request: of a body that cannot be read, nothing is contained.
Regular expressions are kept from running for long: a repeated group may hold neither a repeat nor
an alternative, at most ``MOST_REPEATS`` parts repeat without end, and of what they are asked about
only the first ``MOST_TEXT`` characters count.
Known weakness: three repeats that all match everything still take some milliseconds; such a pattern
is the operator's own.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Annotated, Final, Literal, Protocol, TypeAlias, get_args

from msgspec import Meta, Struct

from tpo_mp.types import Call, Dialect

from .limits import is_anthropic

Family: TypeAlias = Literal["openai", "anthropic", "gemini"]
_FAMILIES: Final = get_args(Family)
MOST_PATTERN: Final = 256
MOST_TEXT: Final = 256
MOST_REPEATS: Final = 3
_FRAMING: Final = ("connection", "content-length", "expect", "host", "keep-alive", "te", "trailer",
                   "transfer-encoding", "upgrade")  # fmt: skip
"""Headers that say nothing of the request and must not travel on."""
KNOWN: Final = ("authorization", "x-api-key")
"""Headers that every call has at hand."""
_Pattern: TypeAlias = Annotated[str, Meta(max_length=MOST_PATTERN)]
_TOKENS: Final = Meta(ge=0, le=100_000_000, description="Bounds of the prompt's tokens; 0: none.")
_BYTES: Final = Meta(ge=0, le=1 << 40, description="Bounds of the body's bytes; 0: none.")


class Facts(Protocol):
    """What there is to know about a request; whatever costs is found out when it is asked."""

    call: Call

    def text(self) -> str:
        """All that its messages say."""

    def tokens(self) -> int:
        """Tokens of its prompt."""

    def header(self, name: str) -> str | None:
        """A header of the request, of those that rules name."""

    def concurrent(self) -> int:
        """Calls under way on this host, this one included."""


Holds: TypeAlias = Callable[[Facts], bool]


class Matching(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request must be like."""

    model: Annotated[str, Meta(description="Glob of the model's name.")] = ""
    model_regex: Annotated[
        _Pattern, Meta(description="Regular expression found in the model's name.")
    ] = ""
    dialects: Annotated[
        tuple[str, ...],
        Meta(description="Families (`openai`, `anthropic`, `gemini`) or single APIs."),
    ] = ()
    contains: Annotated[str, Meta(description="Text found in the prompt, whatever its case.")] = ""
    min_tokens: Annotated[int, _TOKENS] = 0
    max_tokens: Annotated[int, _TOKENS] = 0
    min_bytes: Annotated[int, _BYTES] = 0
    max_bytes: Annotated[int, _BYTES] = 0
    header: Annotated[
        dict[str, _Pattern],
        Meta(max_length=16, description="Headers, and the expression found in each."),
    ] = {}
    streamed: Annotated[bool | None, Meta(description="Streams only, or none.")] = None
    min_concurrent: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Calls under way on this host, at least.")
    ] = 0

    def __post_init__(self) -> None:
        for pattern in (self.model_regex, *self.header.values()):
            expression(pattern)
        for dialect in self.dialects:
            if dialect not in _FAMILIES and dialect not in set(Dialect):
                known = ", ".join([*_FAMILIES, *Dialect])
                raise ValueError(f"{dialect!r} is no dialect; known: {known}")
        for name in self.header:
            if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", name):
                raise ValueError(f"{name[:64]!r} is no name of a header")
            if name.lower() in _FRAMING:
                raise ValueError(f"the header {name!r} belongs to the connection")


class Condition(Matching, frozen=True, kw_only=True):
    """What a request must be like, with alternatives and exceptions."""

    any: Annotated[
        tuple[Matching, ...], Meta(max_length=64, description="One of these must hold.")
    ] = ()
    none: Annotated[
        tuple[Matching, ...], Meta(max_length=64, description="None of these may hold.")
    ] = ()

    def headers(self) -> Iterator[str]:
        """Names of all headers it asks about, in lower case."""
        for matching in (self, *self.any, *self.none):
            yield from (name.lower() for name in matching.header)

    def counts(self) -> bool:
        """Whether it asks how many calls are under way."""
        return any(m.min_concurrent > 0 for m in (self, *self.any, *self.none))


def holds(condition: Condition) -> Holds | None:
    """The condition as a question; None: it holds for every request."""
    tests = list(_tests(condition))
    if condition.any:
        some = [_all(list(_tests(one))) for one in condition.any]
        tests.append(lambda facts: any(one(facts) for one in some))
    if condition.none:
        exceptions = [_all(list(_tests(one))) for one in condition.none]
        tests.append(lambda facts: not any(one(facts) for one in exceptions))
    return _all(tests) if tests else None


def family_of(dialect: Dialect) -> Family:
    """Whose API a dialect is."""
    if is_anthropic(dialect):
        return "anthropic"
    return "gemini" if dialect.startswith("gemini") else "openai"


def expression(pattern: str) -> re.Pattern[str]:
    """Compile a regular expression that cannot run for long; raises ``ValueError``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what may mean something else in a later Python
            made = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    if _endless(pattern) > MOST_REPEATS:
        said = f"{pattern!r} has more than {MOST_REPEATS} parts that repeat without end"
        raise ValueError(said)
    return made


def _all(tests: list[Holds]) -> Holds:
    if len(tests) == 1:
        return tests[0]
    return lambda facts: all(test(facts) for test in tests)


def _tests(wanted: Matching) -> Iterator[Holds]:
    """One question per field that is given, the cheap ones first."""
    if wanted.model:
        yield lambda facts: fnmatchcase(facts.call.model, wanted.model)
    if wanted.model_regex:
        found = expression(wanted.model_regex).search
        yield lambda facts: found(facts.call.model[:MOST_TEXT]) is not None
    if wanted.dialects:
        yield (
            lambda facts: (
                facts.call.dialect in wanted.dialects
                or family_of(facts.call.dialect) in wanted.dialects
            )
        )
    if wanted.streamed is not None:
        yield lambda facts: facts.call.stream is wanted.streamed
    if wanted.min_bytes or wanted.max_bytes:
        least, most = wanted.min_bytes, wanted.max_bytes or float("inf")
        yield lambda facts: least <= len(facts.call.body) <= most
    for name, pattern in wanted.header.items():
        yield _header(name.lower(), expression(pattern))
    if wanted.min_concurrent:
        yield lambda facts: facts.concurrent() >= wanted.min_concurrent
    if wanted.min_tokens or wanted.max_tokens:
        fewest, limit = wanted.min_tokens, wanted.max_tokens or float("inf")
        yield lambda facts: fewest <= facts.tokens() <= limit
    if wanted.contains:
        words = wanted.contains.casefold()
        yield lambda facts: words in facts.text().casefold()


def _header(name: str, pattern: re.Pattern[str]) -> Holds:
    def test(facts: Facts) -> bool:
        value = facts.header(name)
        return value is not None and pattern.search(value[:MOST_TEXT]) is not None

    return test


_REPEAT: Final = re.compile(r"[*+?]|\{\d*,?\d*\}")


def _endless(pattern: str) -> int:
    """Count the parts that repeat without end; raises ``ValueError`` for a group that explodes."""
    count, at = 0, 0
    groups = [False]
    """Of each open group: whether it holds a repeat or an alternative."""
    closed = False
    while at < len(pattern):
        char = pattern[at]
        repeat = _REPEAT.match(pattern, at)
        if char == "\\":
            at += 1
        elif char == "[":
            at = _class_end(pattern, at)
        elif char == "(":
            groups.append(False)
        elif char == ")":
            held = groups.pop()
            closed = held
            groups[-1] |= held
            at += 1
            repeat = _REPEAT.match(pattern, at)
            if repeat is None or repeat[0] == "?":
                closed = False
                continue
            if closed:
                said = f"{pattern!r} repeats a group that holds a repeat or an alternative"
                raise ValueError(said)
            continue
        elif char == "|":
            groups[-1] = True
        elif repeat is not None and not (char == "?" and pattern[at - 1 : at] == "("):
            groups[-1] = True
            count += repeat[0][0] in "*+" or repeat[0].endswith(",}")
            at = repeat.end() - 1
        at += 1
    return count


def _class_end(pattern: str, at: int) -> int:
    """Where the class that begins here ends."""
    at += 2 if pattern[at + 1 : at + 2] == "^" else 1
    at += pattern[at : at + 1] == "]"
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at
