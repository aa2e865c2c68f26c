"""llama.cpp's own ``/completion``: all of its samplers, for prompts without a template.

Fields that OpenAI does not know (``min_p``, ``grammar``, ``mirostat``, ``id_slot`` …) go there as
they are.  Seen on ``llama-server``: a stream's last event of each choice has ``stop``, its counts
and why; no ``[DONE]`` follows; several choices are a list, or events that say their ``index``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import msgspec
import orjson
from msgspec import Struct

from tpo_mp.dialects.canonical import (
    ReplyChoice,
    ReplyEnd,
    ReplyFailed,
    ReplyStop,
    ReplyUsage,
    StopReason,
    StreamEvent,
    TextBlock,
    TextDelta,
    TokenUsage,
)
from tpo_mp.dialects.failure import bad_body, of_object
from tpo_mp.dialects.sse import EventCutter
from tpo_mp.types import Call

from .worded import WordedCompletion

PATH: Final = "/completion"
_STOPS: Final[dict[str, StopReason]] = {
    "eos": "end", "limit": "length", "word": "stop_sequence", "none": "end"
}  # fmt: skip


class _Timings(Struct):
    cache_n: int = 0


class _Said(Struct):
    content: str = ""
    index: int = 0
    stop: bool = False
    stop_type: str = "none"
    stopping_word: str = ""
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    timings: _Timings | None = None
    completion_probabilities: list[dict[str, Any]] | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Said).decode
_decode_all = msgspec.json.Decoder(_Said | list[_Said]).decode
_BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class LlamaCompletion(WordedCompletion):
    """One completion in llama.cpp's words."""

    EVENTS: ClassVar[bool] = True
    TARGET: ClassVar[str] = "llama.cpp's completion"
    LACKS: ClassVar[tuple[str, ...]] = ("best_of", "suffix")

    def __init__(self, body: bytes, call: Call) -> None:
        super().__init__(body, call)
        asked = self.asked
        more = self.options(
            max_tokens="n_predict", temperature="temperature", top_p="top_p", top_k="top_k",
            n="n", seed="seed", frequency_penalty="frequency_penalty",
            presence_penalty="presence_penalty", logit_bias="logit_bias", logprobs="n_probs",
        )  # fmt: skip
        if asked.stop:
            more["stop"] = list(asked.stop)
        said = {"model": asked.model, "prompt": self.prompt, **more, "stream": asked.stream}
        self.body = orjson.dumps(asked.extra | said)
        self._cutter = EventCutter()
        self._open = asked.n or 1
        self._usage = TokenUsage()
        self._over = False

    def whole(self, body: bytes) -> bytes:
        """One object, or a list of them."""
        try:
            found = _decode_all(body)
        except _BROKEN as e:
            raise bad_body(f"no completion: {e}") from None
        all_said = found if isinstance(found, list) else [found]
        choices = []
        for said in sorted(all_said, key=lambda one: one.index):
            if not said.stop:
                raise bad_body("no completion: it does not say that it ended")
            self._count(said)
            blocks = (TextBlock(said.content),) if said.content else ()
            choices.append(
                ReplyChoice(blocks, _why(said), said.stopping_word or None, self._rows(said))
            )
        return self.said(choices, self._usage)

    def feed(self, chunk: bytes) -> bytes:
        """Events that are objects like the whole, each with some words."""
        events: list[StreamEvent] = []
        for name, data in self._cutter.feed(chunk):
            if self._over:
                break
            try:
                said = _decode(data)
            except _BROKEN as e:
                raise bad_body(f"an event that is none: {e}") from None
            if said.error is not None or name == b"error":
                self._over = True
                events.append(ReplyFailed(of_object(said.error)))
            else:
                self._hear(said, events)
        return self.told(events) if events else b""

    def close(self) -> bytes:
        """Its last event has said all."""
        return b""

    def _hear(self, said: _Said, events: list[StreamEvent]) -> None:
        if said.content:
            events.append(TextDelta(0, said.content, said.index, self._rows(said)))
        if not said.stop:
            return
        self._count(said)
        events.append(ReplyStop(_why(said), said.stopping_word or None, said.index))
        self._open -= 1
        if self._open <= 0:
            self._over = True
            events += [ReplyUsage(self._usage), ReplyEnd()]

    def _rows(self, said: _Said) -> list[dict[str, Any]] | None:
        return None if self.asked.logprobs is None else said.completion_probabilities or None

    def _count(self, said: _Said) -> None:
        """The prompt is that of all choices; it is computed once, or was there."""
        before = self._usage
        cached = said.timings.cache_n if said.timings is not None else 0
        self._usage = TokenUsage(
            said.tokens_evaluated,
            before.completion + said.tokens_predicted,
            max(0, min(cached if not before.prompt else before.cached, said.tokens_evaluated)),
        )


def _why(said: _Said) -> StopReason:
    return _STOPS.get(said.stop_type, "end")
