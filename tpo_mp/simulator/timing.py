"""When the tokens of an answer come: the layers that may tell, and which of them a model has.

::

    model ──► Latency ──► Timing ──► Pace ──► release(n), release(n), …
              by glob     a profile, an engine, …; none: everything at once

A ``Timing`` is what one name of ``[simulator] latency`` means in this process; it makes a ``Pace``
for every call.  Each layer offers its timings by name; the backend puts the offers together.

Invariants: a pace begins when the call arrives and counts from then, whatever composing the answer
took; its first release is the first token a client sees, its last lets everything go; it is begun
once and stopped once, whether it was through or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from tpo_mp.types import Call

if TYPE_CHECKING:
    from .live import LoadedAdapter
    from .provider import Answered

INSTANT: Final = "instant"
"""The name of no latency, which a model has that nothing else matches."""
EVERYTHING: Final = 1 << 60
"""More tokens than any answer has."""
MOST_REMEMBERED: Final = 1024


def _nobody_hears(status: int) -> None:
    """What is refused although nobody can be told."""


def _nobody_cares(shown: int, spent: int) -> None:
    """What is broken off although nobody can be told."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a timing knows of a call: its key draws the numbers, its tokens are paced."""

    call: Call
    key: bytes
    """Of the request's own random streams, see ``seeds``."""
    arrived_at: float
    prompt_tokens: int
    tokens: int
    """Tokens the client sees, over all choices; none for what is not generated."""
    hidden: int = 0
    """Tokens thought before those and not shown."""
    factor: float = 1.0
    """Everything takes so many times as long."""
    answered: Answered | None = None
    """What is said; how much of the prompt was known already may still be told it."""
    refuse: Callable[[int], None] = _nobody_hears
    """Answer with this status after all; called between ``begin`` and ``stop``."""
    break_off: Callable[[int, int], None] = _nobody_cares
    """End the answer behind ``shown`` tokens, of ``spent`` that were computed; as ``refuse``."""
    adapter: LoadedAdapter | None = None
    """Of the model that answers, when the call names one by its name."""
    rank: int = -1
    """Of a data-parallel engine; -1: any."""


class Pace(Protocol):
    """Releases the tokens of one answer in time."""

    def begin(self, release: Callable[[int], None]) -> None:
        """Start; ``release(n)`` lets ``n`` more tokens go, maybe before this returns."""

    def stop(self) -> None:
        """Release nothing more; called once, also when all is released."""


class Timing(Protocol):
    """The timing of one or more models in this process."""

    def pace(self, asked: Asked) -> Pace:
        """How the tokens of one answer come."""


Offer: TypeAlias = Mapping[str, Callable[[], Timing]]
"""Timings of one layer by name, made when a model first needs them."""


def unknown(chosen: Mapping[str, str], names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Where ``[simulator] latency`` names what nobody offers, and why that is wrong."""
    known = sorted({INSTANT, *names})
    for glob, name in chosen.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            yield f"latency.{glob}", f"no timing is named {name!r}; {hint}"


class AtOnce:
    """The pace of no latency: everything may go."""

    def begin(self, release: Callable[[int], None]) -> None:
        """Release every token there can be."""
        release(EVERYTHING)

    def stop(self) -> None:
        """Nothing runs."""


AT_ONCE: Final = AtOnce()


class Latency:
    """Which timing each model has; ``chosen`` maps globs to offered names, first match first.

    ``otherwise`` is what a model has that no glob matches; ``factor`` stretches everything.
    """

    def __init__(
        self,
        chosen: Mapping[str, str],
        offers: Iterable[Offer],
        *,
        otherwise: Timing | None = None,
        factor: float = 1.0,
    ) -> None:
        self._chosen = chosen
        self._offers = tuple(offers)
        self._otherwise = otherwise
        self.factor = factor
        self._made: dict[str, Timing | None] = {INSTANT: None}
        self._known: dict[str, str] = {}

    def name_of(self, model: str) -> str:
        """The name that was chosen for a model; empty: none was."""
        name = self._known.get(model)
        if name is None:
            found = (n for glob, n in self._chosen.items() if fnmatchcase(model, glob))
            name = next(found, "")
            if len(self._known) < MOST_REMEMBERED:
                self._known[model] = name
        return name

    def timing_of(self, model: str) -> Timing | None:
        """The timing of a model; None: everything at once."""
        if self.factor == 0:
            return None
        name = self.name_of(model)
        if not name:
            return self._otherwise
        if name not in self._made:
            made = next(offer[name] for offer in self._offers if name in offer)
            self._made[name] = made()
        return self._made[name]
