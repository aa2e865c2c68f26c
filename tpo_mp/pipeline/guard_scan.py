"""Judges a prompt: one pass of one set of patterns, in time linear in its length.

The patterns are one RE2 set, so a text costs the same whatever it says: no backtracking.  A long
text is taken in pieces that overlap, so that whoever asks may do something else between two of
them; when their work comes to more than ``budget_s`` of processor time, the rest is not looked at
and the verdict is as for an attack.

A critical pattern is a score of 1; otherwise the weights of the patterns that match are added, up
to 1.  A text over ``max_prompt_bytes``, or one that cannot be read, scores at least 0.5, and is
looked at like any other: padding hides nothing.  The class is the most frequent one, ``mixed`` when
two are.

Invariants: one look costs a piece at most; the engine's giving up is noticed (a mark at the end of
each piece must match) and counts as an attack; a verdict quotes nothing of the prompt.
Known weakness: a pattern of the operator's own that spans more than the overlap of two pieces
is missed where they meet.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from tpo_mp.dialects.prompt_text import Shown
from tpo_mp.errors import ConfigError

from .guard_patterns import PLAIN, TIGHT, Signature, ThreatClass
from .guard_views import plain, tight

PIECE: Final = 1 << 14
WIDE_PIECE: Final = 1 << 12
"""Characters of a piece that has others than ASCII: making it plain is what costs."""
OVERLAP: Final = 1 << 10
UNKNOWN_SCORE: Final = 0.5
_END: Final = b"\x00\x01tpo:end\x01"
_MOST_INSTRUCTIONS: Final = 2_000
_MEMORY_BYTES: Final = 8 << 20

Action = Literal["allow", "flag", "block"]
_Score = Annotated[float, Meta(ge=0, le=1)]


class GuardPattern(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pattern of the operator's own."""

    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}$(?!\n)",
        description="What refusals and verdicts call it.")]  # fmt: skip
    pattern: Annotated[str, Meta(min_length=1, max_length=1000,
        description="In the syntax of RE2, upper and lower case alike.")]  # fmt: skip
    weight: Annotated[float, Meta(ge=0.01, le=1, description="What a match adds to the score.")] = (
        0.5
    )
    threat_class: Annotated[
        Literal["instruction_override", "system_prompt_extraction", "roleplay_jailbreak",
                "credential_fishing", "template_injection"],
        Meta(description="What a match is taken for."),
    ] = "instruction_override"  # fmt: skip
    critical: Annotated[bool, Meta(description="A match alone makes the score 1.")] = False

    def __post_init__(self) -> None:
        said = refused(self.pattern)
        if said:
            raise ValueError(f"{self.name}: {said}")


class GuardOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How prompts are judged, and what follows."""

    mode: Annotated[
        Literal["block", "flag"],
        Meta(description="`flag` lets everything through and only tells of it."),
    ] = "block"
    block_score: Annotated[_Score, Meta(description="Refused from this score on.")] = 0.65
    flag_score: Annotated[_Score, Meta(description="Told of from this score on.")] = 0.3
    max_prompt_bytes: Annotated[
        int, Meta(ge=1, le=1 << 30, description="Text over this is suspicious by its size.")
    ] = 32_768
    oversize: Annotated[
        Literal["flag", "block"], Meta(description="What becomes of text over `max_prompt_bytes`.")
    ] = "flag"
    unreadable: Annotated[
        Literal["flag", "block"], Meta(description="What becomes of prompts given as token ids.")
    ] = "block"
    budget_s: Annotated[
        float,
        Meta(ge=0.001, le=1,
             description="Processor time for one prompt; one that needs more counts as an attack."),
    ] = 0.01  # fmt: skip
    without: Annotated[
        tuple[str, ...], Meta(max_length=64, description="Built-in patterns that are not used.")
    ] = ()
    patterns: Annotated[
        tuple[GuardPattern, ...], Meta(max_length=64, description="Further patterns.")
    ] = ()

    def __post_init__(self) -> None:
        if self.flag_score > self.block_score:
            raise ValueError("flag_score is more than block_score")
        known = {one.name for one in (*PLAIN, *TIGHT)}
        for name in self.without:
            if name not in known:
                raise ValueError(f"without: no built-in pattern {name!r}; known: "
                                 + ", ".join(sorted(known)))  # fmt: skip
        own = Counter(one.name for one in self.patterns)
        for name, times in own.items():
            if times > 1 or name in known:
                raise ValueError(f"patterns: another pattern is called {name!r}")


class Verdict(Struct, frozen=True):
    """What was found in a prompt: scores from 0 to 1, names of the patterns that matched."""

    action: Action
    threat_class: ThreatClass
    risk_score: float
    reason: str
    pattern_matches: tuple[str, ...] = ()
    critical_match: bool = False


_NOTHING: Final = Verdict("allow", ThreatClass.BENIGN, 0.0, "nothing was found")


def refused(pattern: str) -> str:
    """Why a pattern cannot be used; empty when it can."""
    re2 = _engine()
    try:
        made = re2.compile(pattern, _options())
    except re2.error as e:
        said = e.args[0] if e.args else "no such pattern"
        said = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        return f"not a pattern of RE2: {said} (it has no back-references and no look-around)"
    if made.programsize > _MOST_INSTRUCTIONS:
        return f"too large: {made.programsize} steps, of which a pattern has {_MOST_INSTRUCTIONS}"
    return "" if made.search("") is None else "it matches the empty text, and so every prompt"


class Scanner:
    """The patterns of some options, compiled; any number of scans share it."""

    def __init__(
        self, options: GuardOptions, clock: Callable[[], float] = time.thread_time
    ) -> None:
        """``clock`` tells the processor time of this thread; raises ``ConfigError``."""
        self.options = options
        self.clock = clock
        own = (
            Signature(p.name, ThreatClass(p.threat_class), p.weight, p.pattern, p.critical)
            for p in options.patterns
        )
        used = (one for one in (*PLAIN, *TIGHT) if one.name not in options.without)
        self.signatures = (*used, *own)
        self._set = _engine().Set.SearchSet(_options())
        for one in self.signatures:
            self._set.Add(one.pattern)
        self._end = self._set.Add(r"\x01tpo:end\x01")
        self._set.Compile()
        # Built now, so that no call waits for the first states.
        if self.look(b"a few words, and one more_line\n") is None:
            raise ConfigError("stages.guard.patterns: together they are too large")

    def begin(self, shown: Shown) -> Scan:
        """Start on a prompt."""
        return Scan(self, shown)

    def judge(self, shown: Shown) -> Verdict:
        """Look at a whole prompt at once."""
        scan = Scan(self, shown)
        while scan.step():
            pass
        return scan.verdict()

    def look(self, data: bytes) -> set[int] | None:
        """The signatures that match, by place; ``None``: the engine gave up."""
        found = set(self._set.Match(data + _END))
        if self._end not in found:
            return None
        found.discard(self._end)
        return found


class Scan:
    """A prompt that is being looked at, piece by piece.

    ``short``: one step is all there is; ``looked`` counts the bytes looked at so far.
    """

    __slots__ = ("_at", "_found", "_given_up", "_left_s", "_plain", "_scanner", "_shown", "_size",
                 "_tight", "looked", "short")  # fmt: skip

    def __init__(self, scanner: Scanner, shown: Shown) -> None:
        text = shown.text
        self._scanner = scanner
        self._shown = shown
        ascii_only = text.isascii()
        self._size = len(text) if ascii_only else len(text.encode("utf-8", "replace"))
        self.short = len(text) <= (PIECE if ascii_only else WIDE_PIECE)
        self._at = 0
        self._plain = self._tight = b""
        self._found: set[int] = set()
        self._given_up = ""
        self._left_s = scanner.options.budget_s
        self.looked = 0

    def step(self) -> bool:
        """Look at the next piece; ``False``: there is no more to look at."""
        if self._oversize_blocks():
            return False
        scanner, text = self._scanner, self._shown.text
        if self.short:
            self._look(text)
            return False
        began = scanner.clock()
        piece = text[self._at : self._at + PIECE]
        if not piece.isascii():
            piece = piece[:WIDE_PIECE]
        self._look(piece)
        self._at += len(piece)
        self._left_s -= scanner.clock() - began
        if (
            self._given_up
            or self._at >= len(text)
            or any(scanner.signatures[i].critical for i in self._found)
        ):
            return False
        if self._left_s <= 0:
            self._given_up = f"took more than {scanner.options.budget_s * 1e3:g} ms to look through"
            return False
        return True

    def _look(self, piece: str) -> None:
        made = plain(piece)
        self._plain += made
        self._tight += tight(made)
        data = b"%b\n\x00%b" % (self._plain, self._tight)
        self.looked += len(data)
        found = self._scanner.look(data)
        if found is None:
            self._given_up = "could not be looked through"
        else:
            self._found |= found
        self._plain, self._tight = self._plain[-OVERLAP:], self._tight[-OVERLAP:]

    def _oversize_blocks(self) -> bool:
        options = self._scanner.options
        return self._size > options.max_prompt_bytes and options.oversize == "block"

    def verdict(self) -> Verdict:
        """What was found so far."""
        options = self._scanner.options
        if (
            not self._found
            and not self._given_up
            and not self._shown.unreadable
            and (self._size <= options.max_prompt_bytes)
        ):
            return _NOTHING
        hits = [self._scanner.signatures[i] for i in sorted(self._found)]
        critical = any(one.critical for one in hits)
        score = 1.0 if critical else min(round(sum(one.weight for one in hits), 4), 1.0)
        reasons = [f"matches {', '.join(one.name for one in hits)}"] if hits else []
        shut = bool(self._given_up)
        if self._size > options.max_prompt_bytes:
            reasons.append(f"has {self._size} bytes of text, over {options.max_prompt_bytes}")
            score = max(score, UNKNOWN_SCORE)
            shut |= options.oversize == "block"
        if self._shown.unreadable:
            reasons.append("is given as token ids")
            score = max(score, UNKNOWN_SCORE)
            shut |= options.unreadable == "block"
        if self._given_up:
            reasons.append(self._given_up)
            score = max(score, options.block_score)
        action: Action = "allow"
        if shut or score >= options.block_score:
            action = "block" if options.mode == "block" else "flag"
        elif score >= options.flag_score:
            action = "flag"
        return Verdict(
            action, _class_of(hits), score, "; ".join(reasons) or "nothing was found",
            tuple(one.name for one in hits), critical,
        )  # fmt: skip


def _class_of(hits: list[Signature]) -> ThreatClass:
    """The most frequent one."""
    ranked = Counter(one.threat for one in hits).most_common(2)
    if not ranked:
        return ThreatClass.BENIGN
    if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
        return ThreatClass.MIXED
    return ranked[0][0]


def _engine() -> Any:
    """RE2, loaded where a guard is configured."""
    import re2

    return re2


def _options() -> Any:
    options = _engine().Options()
    options.case_sensitive = False
    options.log_errors = False
    options.max_mem = _MEMORY_BYTES
    return options
