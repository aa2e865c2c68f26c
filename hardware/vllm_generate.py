"""The ``/generate`` of vLLM's older demonstration server, and of servers made after it.

It answers ``{"text": [prompt and answer, …]}``, streamed as such an object a line (or ended by a
zero byte) that says everything anew.  Fields that OpenAI does not know go there as they are.

Known weakness: it tells neither counts nor why it stopped, so these are unknown here too; nor does
a stream say that it is complete, which the framing of HTTP must tell.
"""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec
import orjson
from msgspec import Struct

from tpo_mp.dialects.canonical import ReplyChoice, ReplyEnd, StreamEvent, TextBlock, TextDelta
from tpo_mp.dialects.failure import bad_body, truncated
from tpo_mp.dialects.sse import MAX_EVENT_BYTES
from tpo_mp.types import Call

from .worded import WordedCompletion

PATH: Final = "/generate"


class _Said(Struct):
    text: list[str]


_decode = msgspec.json.Decoder(_Said).decode


class VllmGenerate(WordedCompletion):
    """One completion in the words of ``/generate``."""

    EVENTS: ClassVar[bool] = False
    TARGET: ClassVar[str] = "vLLM's generate"
    LACKS: ClassVar[tuple[str, ...]] = ("logprobs", "logit_bias", "suffix")

    def __init__(self, body: bytes, call: Call) -> None:
        super().__init__(body, call)
        asked = self.asked
        more = self.options(
            max_tokens="max_tokens", temperature="temperature", top_p="top_p", top_k="top_k",
            n="n", seed="seed", frequency_penalty="frequency_penalty",
            presence_penalty="presence_penalty",
        )  # fmt: skip
        if asked.stop:
            more["stop"] = list(asked.stop)
        # What it does not know makes it fail, the model's name among it.
        said = {"prompt": self.prompt, **more, "stream": asked.stream}
        self.body = orjson.dumps(asked.extra | said)
        self._rest = b""
        self._texts: dict[int, str] = {}

    def whole(self, body: bytes) -> bytes:
        """All texts, the prompt before each."""
        said = (text.removeprefix(self.prompt) for text in self._read(body))
        return self.said([ReplyChoice((TextBlock(t),) if t else (), None) for t in said], None)

    def feed(self, chunk: bytes) -> bytes:
        """Lines that say everything anew."""
        lines = (self._rest + chunk).replace(b"\0", b"\n").split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_EVENT_BYTES:
            raise bad_body("an endless line")
        events: list[StreamEvent] = []
        for line in lines:
            if line.strip():
                for index, text in enumerate(self._read(line)):
                    self._hear(index, text, events)
        return self.told(events) if events else b""

    def close(self) -> bytes:
        """The end of the body is that of the stream."""
        out = self.feed(b"\n") if self._rest else b""
        if not self._texts:
            raise truncated()
        return out + self.told([ReplyEnd()])

    def _hear(self, index: int, text: str, events: list[StreamEvent]) -> None:
        before = self._texts.get(index)
        if before is None:
            before = self.prompt if text.startswith(self.prompt) else ""
        if not text.startswith(before):
            raise bad_body("a stream that takes back what it said")
        self._texts[index] = text
        if len(text) > len(before):
            events.append(TextDelta(0, text[len(before) :], index))

    def _read(self, line: bytes) -> list[str]:
        try:
            return _decode(line).text
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise bad_body(f"no texts: {e}") from None
